//! For tests, ours and users': a clock that is set by hand, a second level in memory, and the
//! promises of [`Bus`](crate::Bus) and [`SecondLevel`](crate::SecondLevel) as suites of checks.

mod level;
mod suites;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

pub use level::MemoryLevel;
pub use suites::{check_bus, check_second_level};

/// A clock that stands still until it is advanced.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl Default for ManualClock {
    /// A clock at 1 s: zero hides mistakes.
    fn default() -> Self {
        Self(AtomicU64::new(1_000_000_000))
    }
}

impl ManualClock {
    /// Moves the clock ahead.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        // Ends: `fetch_update` repeats only when another thread has moved the clock.
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(now.saturating_add(by)));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}
