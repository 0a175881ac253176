//! For tests, ours and users': a clock set by hand, and the conformance suite of limit algorithms.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

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
