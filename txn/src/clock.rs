//! Where `now` comes from.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// The time, in ns since the UNIX epoch: deadlines of sagas survive a restart. It must not go back
/// within a process.
pub trait Clock: Send + Sync {
    /// The time, in ns since the UNIX epoch.
    fn now(&self) -> u64;
}

impl<F: Fn() -> u64 + Send + Sync> Clock for F {
    fn now(&self) -> u64 {
        self()
    }
}

/// The system's time of day when it was made, and from there on the time that has passed: a clock
/// that is set changes nothing until the next restart. On tokio's paused time it is paused too.
#[derive(Clone, Copy, Debug)]
pub struct System {
    started: Instant,
    at: u64,
}

impl System {
    /// Asks the system for the time of day.
    pub fn new() -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), at: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX) }
    }
}

impl Default for System {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for System {
    fn now(&self) -> u64 {
        let passed = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.at.saturating_add(passed)
    }
}
