//! Where `now` comes from.

/// A monotonic clock.
///
/// Returns nanoseconds since an epoch of its own, which must not change while a cache lives.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the clock's epoch.
    fn now(&self) -> u64;
}

impl<F: Fn() -> u64 + Send + Sync> Clock for F {
    fn now(&self) -> u64 {
        self()
    }
}

/// The clock of `std::time::Instant`: full resolution, about 20 ns a reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> u64 {
        use std::sync::OnceLock;
        use std::time::Instant;
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        let now = Instant::now();
        let since = now.duration_since(*EPOCH.get_or_init(|| now));
        (since.as_secs() + 1) * 1_000_000_000 + u64::from(since.subsec_nanos())
    }
}

/// The kernel's coarse monotonic clock: about 5 ns a reading, resolution of one kernel tick (1 to
/// 10 ms, commonly 4). The default on Linux: a lifetime is not kept more exactly than a tick.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Coarse;

#[cfg(target_os = "linux")]
impl Clock for Coarse {
    #[inline]
    fn now(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

/// The default clock: [`Coarse`] on Linux, [`Monotonic`] elsewhere.
pub(crate) fn default_clock() -> std::sync::Arc<dyn Clock> {
    #[cfg(target_os = "linux")]
    return std::sync::Arc::new(Coarse);
    #[cfg(not(target_os = "linux"))]
    return std::sync::Arc::new(Monotonic);
}

/// tokio's clock, which stands still and jumps in tests with paused time. Its epoch is the clock's
/// creation.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    epoch: tokio::time::Instant,
}

impl Default for TokioClock {
    fn default() -> Self {
        Self { epoch: tokio::time::Instant::now() }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}
