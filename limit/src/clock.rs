//! Where `now` comes from.
//!
//! Every decision can be given `now` by its caller (`check_at`). A clock is asked only where the
//! caller does not: reading one costs more than the decision.

use std::fmt;

/// A monotonic clock.
///
/// Returns nanoseconds since an epoch of its own, which must not change while a limiter lives. Any
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

/// The clock of `std::time::Instant`: full resolution, about 20 ns a reading. The default of every
/// configuration, whatever features are on.
///
/// Its epoch is some time before the first reading, and fixed for the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    #[cfg(target_os = "linux")]
    fn now(&self) -> u64 {
        read(rustix::time::ClockId::Monotonic)
    }

    #[cfg(not(target_os = "linux"))]
    fn now(&self) -> u64 {
        use std::sync::OnceLock;
        use std::time::Instant;
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        let now = Instant::now();
        let since = now.duration_since(*EPOCH.get_or_init(|| now));
        (since.as_secs() + 1) * 1_000_000_000 + u64::from(since.subsec_nanos())
    }
}

#[cfg(target_os = "linux")]
#[inline]
fn read(id: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(id);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The kernel's coarse monotonic clock: about 5 ns a reading, resolution of one kernel tick
/// (1 to 10 ms, commonly 4).
///
/// Within one tick nothing flows back, so a quota by rate needs a burst of at least what it gives
/// in a tick (4 for 1000 a second), or it gives less than its rate. Its epoch is the machine's
/// start. Only on Linux.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Coarse;

#[cfg(target_os = "linux")]
impl Clock for Coarse {
    #[inline]
    fn now(&self) -> u64 {
        read(rustix::time::ClockId::MonotonicCoarse)
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
