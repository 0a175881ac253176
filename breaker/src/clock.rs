//! Where `now` comes from.
//!
//! Every decision of this crate can be given `now` by its caller. A clock is asked only where the
//! caller does not: reading one costs more than the decision.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// A monotonic clock.
///
/// Returns nanoseconds since an epoch of its own, which must not change while a breaker lives. Any
/// closure that returns them is one, and the same closure serves every crate of this family.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the clock's epoch.
    fn now(&self) -> u64;
}

impl fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl<F: Fn() -> u64 + Send + Sync> Clock for F {
    fn now(&self) -> u64 {
        self()
    }
}

/// `std::time::Instant`: full resolution, about 25 ns a reading.
///
/// Its epoch is the first reading in the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> u64 {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        EPOCH.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// The kernel's coarse monotonic clock: about 5 ns a reading, resolution of one kernel tick
/// (1 to 10 ms, commonly 4).
///
/// Good for windows, open waits and slow-call thresholds of tens of milliseconds; too coarse for
/// latencies. Its epoch is the machine's start. Where the system has no such clock (only Linux
/// has), it is [`Monotonic`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Coarse;

impl Clock for Coarse {
    #[cfg(target_os = "linux")]
    #[inline]
    fn now(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    #[cfg(not(target_os = "linux"))]
    #[inline]
    fn now(&self) -> u64 {
        Monotonic.now()
    }
}

/// tokio's clock, which stands still and jumps in tests with paused time.
///
/// Its epoch is the clock's creation.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    epoch: tokio::time::Instant,
}

impl TokioClock {
    /// A clock that starts at 0.
    pub fn new() -> Self {
        Self { epoch: tokio::time::Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}

/// The clock of breakers, registries and retry budgets that are given none: [`Coarse`], whatever
/// the features. Another one is chosen with `with_clock`.
pub fn default_clock() -> Arc<dyn Clock> {
    Arc::new(Coarse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_clock_follows_the_fine_one() {
        let (coarse, fine) = (default_clock(), Monotonic);
        let (coarse_start, fine_start) = (coarse.now(), fine.now());
        while fine.now() - fine_start < 40_000_000 {
            std::hint::spin_loop();
        }
        let passed = coarse.now() - coarse_start;
        assert!(passed >= 20_000_000, "{passed} ns of 40 ms seen");
    }
}
