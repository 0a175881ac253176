//! For tests, ours and users': a clock set by hand, and the conformance suite of limit algorithms.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::breaker::{Breaker, BreakerSnapshot};
use crate::clock::Clock;
use crate::config::{BreakerConfig, Window};
use crate::core::{LimitAlgorithm, LimitSample};

/// A clock that stands still until it is advanced.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock at 1 s: zero hides mistakes.
    pub fn new() -> Self {
        Self(AtomicU64::new(1_000_000_000))
    }

    /// Moves it on.
    pub fn advance(&self, time: Duration) {
        self.0.fetch_add(crate::config::nanos(time), Ordering::AcqRel);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Conformance checks for every [`LimitAlgorithm`], whatever its formula. Run them over your own:
///
/// ```
/// use voussoir_breaker::testing::check_limit_algorithm;
/// use voussoir_breaker::{Aimd, AimdConfig};
///
/// check_limit_algorithm(1, 1_000, || Box::new(Aimd::new(AimdConfig::default())));
/// ```
///
/// # Panics
/// If the limit leaves `min..=max`, grows while it is not used, does not fall under lasting
/// overload, or does not grow again after it.
pub fn check_limit_algorithm(
    min: usize,
    max: usize,
    algorithm: impl Fn() -> Box<dyn LimitAlgorithm>,
) {
    let mut feeder = Feeder { algorithm: algorithm(), now: 0, min, max };
    let first = feeder.algorithm.initial();
    assert!((min..=max).contains(&first), "starts at {first}");
    let unused = feeder.feed(500, MILLI, Some(1), false);
    assert!(unused <= first.max(2), "grew from {first} to {unused} by one call at a time");
    let grown = feeder.feed(20_000, MILLI, None, false);
    assert!(grown > unused, "stayed at {grown} though it was used up and answers were quick");
    let fallen = feeder.feed(2_000, MILLI, None, true);
    assert!(fallen < grown.div_ceil(2), "fell from {grown} only to {fallen} under overload");
    let again = feeder.feed(20_000, MILLI, None, false);
    assert!(again > fallen, "stayed at {again} after the overload");
    // Latencies from one nanosecond to years keep it within its bounds.
    for latency in [1, u64::MAX / 4, MILLI, u64::MAX / 2, 1] {
        feeder.feed(50, latency, None, false);
        feeder.feed(3, latency, None, true);
    }
}

const MILLI: u64 = 1_000_000;

struct Feeder {
    algorithm: Box<dyn LimitAlgorithm>,
    now: u64,
    min: usize,
    max: usize,
}

impl Feeder {
    /// Feeds `count` samples, one every tenth of their latency, with the limit used up unless said
    /// otherwise.
    fn feed(
        &mut self,
        count: u32,
        latency: u64,
        running: Option<usize>,
        is_overload: bool,
    ) -> usize {
        let mut limit = self.algorithm.initial();
        for _ in 0..count {
            self.now = self.now.saturating_add(latency / 10);
            let running = running.unwrap_or(limit);
            let sample = LimitSample::new(self.now, latency, running, is_overload);
            limit = self.algorithm.update(&sample);
            assert!((self.min..=self.max).contains(&limit), "went to {limit}");
        }
        limit
    }
}

/// Restores breakers over both kinds of windows from a snapshot and uses those that accept it, for
/// fuzzers: a snapshot may say anything.
///
/// # Panics
/// When the breaker panics.
pub fn use_snapshot(snapshot: &BreakerSnapshot) {
    let counting =
        BreakerConfig { window: Window::Count { calls: 20 }, ..BreakerConfig::default() };
    for config in [BreakerConfig::default(), counting] {
        let clock = Arc::new(ManualClock::new());
        let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let Ok(breaker) = Breaker::restore("fuzzed", &config, shared, snapshot) else { continue };
        for round in 0..64 {
            if let Ok(permit) = breaker.try_acquire() {
                if round % 3 == 0 { permit.success() } else { permit.failure() }
            }
            clock.advance(Duration::from_millis(700));
        }
        let taken = breaker.snapshot();
        let again = Breaker::restore("again", &config, clock, &taken);
        assert!(again.is_ok(), "its own snapshot is refused: {taken:?}");
    }
}
