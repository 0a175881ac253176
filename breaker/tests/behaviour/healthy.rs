//! Adaptive limits in front of a dependency that is well: its latency varies, whatever the load.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use voussoir_breaker::*;

#[derive(Debug, Default)]
struct Now(AtomicU64);

impl Clock for Now {
    fn now(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How long answers take, 20 ms in the mean.
#[derive(Clone, Copy, Debug)]
enum Spread {
    /// 15 to 25 ms.
    Even,
    /// 1 ms and more, exponential.
    Exponential,
}

/// Calls at random moments for 40 s, every other one sheddable, and what became of them after the
/// first 10 s.
struct Load {
    clock: Arc<Now>,
    limit: AdaptiveLimit,
    shedder: Shedder,
    rng: fastrand::Rng,
    running: HashMap<u64, AdaptivePermit>,
    ends: BinaryHeap<Reverse<(u64, u64)>>,
}

/// Counts.
#[derive(Debug, Default)]
struct Ends {
    calls: u32,
    refused: u32,
    shed: u32,
}

const SEC: f64 = 1e9;

impl Load {
    fn new(algorithm: Box<dyn LimitAlgorithm>) -> Self {
        let clock = Arc::new(Now::default());
        let shared: Arc<dyn Clock> = Arc::<Now>::clone(&clock);
        let limit = AdaptiveLimit::with_clock(algorithm, QueueConfig::default(), shared);
        let limit = limit.expect("valid");
        let shedder = Shedder::new(Arc::new(limit.clone()), ShedConfig::default()).expect("valid");
        let rng = fastrand::Rng::with_seed(9);
        Self { clock, limit, shedder, rng, running: HashMap::new(), ends: BinaryHeap::new() }
    }

    fn end_calls(&mut self, now: u64) {
        while let Some(Reverse((end, call))) = self.ends.pop() {
            if end > now {
                self.ends.push(Reverse((end, call)));
                return;
            }
            self.clock.0.store(end, Relaxed);
            self.running.remove(&call).expect("it runs").success();
        }
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.rng.f64()).ln()
    }

    fn run(mut self, rate: f64, spread: Spread) -> Ends {
        let mut seen = Ends::default();
        let mut at = 0.0;
        for call in 0.. {
            at += self.exponential() / rate * SEC;
            if at > 40.0 * SEC {
                break;
            }
            let now = at as u64;
            self.end_calls(now);
            self.clock.0.store(now, Relaxed);
            let counts = u32::from(at > 10.0 * SEC);
            seen.calls += counts;
            if self.rng.bool() && self.shedder.check(Priority::Sheddable).is_err() {
                seen.shed += counts;
                continue;
            }
            let Ok(permit) = self.limit.try_acquire() else {
                seen.refused += counts;
                continue;
            };
            let millis = match spread {
                Spread::Even => 15.0 + 10.0 * self.rng.f64(),
                Spread::Exponential => 1.0 + 19.0 * self.exponential(),
            };
            self.running.insert(call, permit);
            self.ends.push(Reverse((now + (millis * 1e6) as u64, call)));
        }
        seen
    }
}

fn algorithm(name: &str) -> Box<dyn LimitAlgorithm> {
    match name {
        "vegas" => Box::new(Vegas::new(VegasConfig::default())),
        "gradient2" => Box::new(Gradient2::new(Gradient2Config::default())),
        _ => Box::new(Aimd::new(AimdConfig::default())),
    }
}

#[test]
fn a_healthy_dependency_is_not_refused_its_calls() {
    for (rate, spread) in [
        (500.0, Spread::Even),
        (2_000.0, Spread::Even),
        (4_500.0, Spread::Even),
        (2_000.0, Spread::Exponential),
    ] {
        for name in ["vegas", "gradient2", "aimd"] {
            let seen = Load::new(algorithm(name)).run(rate, spread);
            println!("{name}, {rate} calls/s, {spread:?}: {seen:?}");
            let lost = seen.refused + seen.shed;
            assert!(lost * 1_000 < seen.calls, "{name}, {rate} calls/s, {spread:?}: {seen:?}");
        }
    }
}
