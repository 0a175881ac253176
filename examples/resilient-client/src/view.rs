//! What happens, while it happens.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::server::Server;

/// What the users got.
#[derive(Default)]
pub(crate) struct Users {
    pub(crate) fresh: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Microseconds, all answers together.
    pub(crate) waited_us: AtomicU64,
}

impl Users {
    fn counts(&self) -> [u64; 4] {
        [&self.fresh, &self.stale, &self.failed, &self.waited_us].map(|count| count.load(Relaxed))
    }
}

pub(crate) struct View {
    start: Instant,
    before: (Instant, [u64; 4], u64),
    is_terminal: bool,
}

impl View {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let is_terminal = std::io::stdout().is_terminal();
        Self { start: now, before: (now, [0; 4], 0), is_terminal }
    }

    /// Time between two screens.
    pub(crate) fn period(&self) -> Duration {
        Duration::from_millis(if self.is_terminal { 250 } else { 1_000 })
    }

    pub(crate) fn draw(&mut self, users: &Users, client: &Client, server: &Server) {
        let (now, counts, requests) = (Instant::now(), users.counts(), server.requests());
        let (then, before, requests_before) = self.before;
        let seconds = (now - then).as_secs_f64().max(1e-3);
        let rate = |at: usize| (counts[at] - before[at]) as f64 / seconds;
        let answers = (counts[0] + counts[1] + counts[2]) - (before[0] + before[1] + before[2]);
        let mean_ms = (counts[3] - before[3]) as f64 / 1e3 / answers.max(1) as f64;
        let (breaker, limit) = (client.breaker.stats(), client.limit.stats());
        let (budget, hedge) = (client.budget.stats(), client.hedge.stats());
        let lines = [
            format!("{:5.1} s  server {:?}", self.start.elapsed().as_secs_f64(), server.mood()),
            format!("fresh {:.0}/s stale {:.0}/s failed {:.0}/s", rate(0), rate(1), rate(2)),
            format!("mean {mean_ms:.0} ms"),
            format!("requests {:.0}/s", (requests - requests_before) as f64 / seconds),
            format!("breaker {} rejected {}", breaker.state, breaker.rejected),
            format!("limit {} running {} waiting {}", limit.limit, limit.running, limit.waiting),
            format!(
                "extra attempts {} suppressed {}",
                budget.granted,
                budget.suppressed_spent + budget.suppressed_active,
            ),
            format!("hedges {} won {} after {:.0?}", hedge.hedges, hedge.won, hedge.delay),
        ];
        let text = if self.is_terminal {
            // Home, the lines, each cleared to its end, and the rest of the screen.
            format!("\x1b[H{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n"))
        } else {
            format!("{}\n", lines.join(" | "))
        };
        let mut out = std::io::stdout().lock();
        // A closed terminal ends the show, not the run.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        self.before = (now, counts, requests);
    }
}
