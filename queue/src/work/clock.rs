//! Where `now` comes from.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A clock, in ns since the UNIX epoch.
pub trait Clock: Send + Sync {
    /// The time, in ns since the UNIX epoch.
    fn now(&self) -> u64;

    /// The time of day, in ns since the UNIX epoch: what a schedule
    /// ([`DELIVER_AT`](super::DELIVER_AT)) means. Unlike `now` it may be set, also back. The same
    /// as `now` by default.
    fn wall(&self) -> u64 {
        self.now()
    }
}

impl<F: Fn() -> u64 + Send + Sync> Clock for F {
    fn now(&self) -> u64 {
        self()
    }
}

/// Its `now` is the time of day when it was made, and tokio's monotonic clock from then on: the
/// system's clock may be set without a lease ending early, and a test may pause the time.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    /// Ns since the UNIX epoch.
    at_start: u64,
    start: Instant,
}

impl TokioClock {
    /// Takes the time of day from the system.
    pub fn new() -> Self {
        Self { at_start: time_of_day(), start: Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.at_start.saturating_add(elapsed)
    }

    fn wall(&self) -> u64 {
        time_of_day()
    }
}

/// The system's clock, in ns since the UNIX epoch.
pub(crate) fn time_of_day() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
