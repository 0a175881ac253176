//! Where `now` comes from.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

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

/// The clock of leases: it does not step, and on Linux it counts on while the machine is suspended
/// (`CLOCK_BOOTTIME`). Its epoch is the machine's start.
///
/// Elsewhere it is [`std::time::Instant`], which may stand still meanwhile: a holder that was
/// suspended with its machine then believes for too long, and only the fencing token helps.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    #[cfg(target_os = "linux")]
    #[inline]
    fn now(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    #[cfg(not(target_os = "linux"))]
    fn now(&self) -> u64 {
        static EPOCH: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        EPOCH.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64
    }
}

/// tokio's clock, which stands still and jumps in tests with paused time. Its epoch is the clock's
/// creation.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    epoch: Instant,
}

impl Default for TokioClock {
    fn default() -> Self {
        Self { epoch: Instant::now() }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}

/// The end of a time to wait that begins now. One of more than 30 years is taken as 30 years, which
/// [`Instant`] can show.
pub(crate) fn after(within: Duration) -> Instant {
    const MOST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    Instant::now() + within.min(MOST)
}

/// Returns once `clock` shows `at`, in ns. Looks at least every `most`: tokio's timers stand still
/// while the machine is suspended, and the clock does not.
pub(crate) async fn sleep_until(clock: &dyn Clock, at: u64, most: Duration) {
    // Ends: the clock reaches `at`.
    loop {
        let left = at.saturating_sub(clock.now());
        if left == 0 {
            return;
        }
        // Rounded up to tokio's resolution, so that this does not spin.
        let pause = Duration::from_nanos(left).min(most).max(Duration::from_millis(1));
        tokio::time::sleep(pause).await;
    }
}
