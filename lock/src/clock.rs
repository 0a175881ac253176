//! Where `now` comes from.

use std::time::{SystemTime, UNIX_EPOCH};

/// A clock, in ns. Which epoch it counts from stands where a clock is asked for.
pub trait Clock: Send + Sync {
    /// The time, in ns.
    fn now(&self) -> u64;
}

impl<F: Fn() -> u64 + Send + Sync> Clock for F {
    fn now(&self) -> u64 {
        self()
    }
}

/// The system's time of day, in ns since the UNIX epoch. It follows every step of the system's
/// clock, backwards too.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}
