//! What the terminal shows: both forms side by side, and what waits for each service.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::pipeline::Pipeline;
use crate::services::NAMES;

/// Time between two lines.
const PERIOD: Duration = Duration::from_secs(1);

/// Latencies of one form.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Since the last line, and of the whole run.
    recent: Vec<Duration>,
    all: Vec<Duration>,
    failed: u64,
    failed_in_all: u64,
}

impl Latencies {
    pub(crate) fn add(&self, latency: Duration, is_ok: bool) {
        let mut inner = self.inner.lock();
        inner.recent.push(latency);
        inner.all.push(latency);
        inner.failed += u64::from(!is_ok);
        inner.failed_in_all += u64::from(!is_ok);
    }

    /// Median and 99th percentile in ms, and failures, since the last call.
    fn take_recent(&self) -> String {
        let mut inner = self.inner.lock();
        let failed = std::mem::take(&mut inner.failed);
        let recent = std::mem::take(&mut inner.recent);
        drop(inner);
        format!("{} {failed:>4}", percentiles(recent))
    }

    fn sum_up(&self) -> String {
        let inner = self.inner.lock();
        let (all, failed) = (inner.all.clone(), inner.failed_in_all);
        drop(inner);
        format!("{} orders, p50 and p99 in ms {}, {failed} failed", all.len(), percentiles(all))
    }
}

fn percentiles(mut latencies: Vec<Duration>) -> String {
    latencies.sort_unstable();
    let at = |part: f64| {
        let index = (latencies.len() as f64 * part) as usize;
        let latency = latencies.get(index.min(latencies.len().saturating_sub(1)));
        latency.map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    };
    format!("{:>7.1} {:>7.1}", at(0.5), at(0.99))
}

#[derive(Debug, Default)]
pub(crate) struct View {
    /// Orders that were queued, and those that were waited for.
    pub(crate) queued: Arc<Latencies>,
    pub(crate) waited: Arc<Latencies>,
    next: Duration,
}

impl View {
    /// Prints a line when it is time.
    pub(crate) fn look(&mut self, at: Duration, pipeline: &Pipeline, now: &str) {
        if at < self.next {
            return;
        }
        if self.next == Duration::ZERO {
            println!("        queued                synchronous           waiting at");
            println!(
                "   s    p50     p99 fail    p50     p99 fail {}  dead  ",
                NAMES.map(|name| format!("{name:>13}")).concat()
            );
        }
        self.next = at + PERIOD;
        let stats: Vec<_> =
            pipeline.groups().iter().map(voussoir_queue::work::WorkQueue::stats).collect();
        let waiting: Vec<_> = stats.iter().map(|stats| format!("{:>13}", stats.lag)).collect();
        let waiting = waiting.concat();
        let dead: usize = stats.iter().map(|stats| stats.dead_letters).sum();
        println!(
            "{:>4.0} {} {} {waiting} {dead:>5}  {now}",
            at.as_secs_f64(),
            self.queued.take_recent(),
            self.waited.take_recent(),
        );
    }

    pub(crate) fn sum_up(&self) {
        println!("      queued: {}", self.queued.sum_up());
        println!(" synchronous: {}", self.waited.sum_up());
    }
}
