//! A lease as its holder knows it: until when it may act.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::ConfigError;

/// How long a holder relies on a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseConfig {
    /// Time to live, as the server was told: 100 ms to 1 h. Default 10 s.
    pub ttl: Duration,
    /// How much faster the server's clock may run than the holder's, in parts per million: the
    /// lease is relied on for that much less. Up to 100,000 (10 %). Default 10,000 (1 %), far above
    /// what quartz does.
    pub max_drift_ppm: u32,
    /// Taken off the end, for what the holder has begun to come to its end. At most half of `ttl`.
    /// Default 100 ms.
    pub margin: Duration,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        let (ttl, margin) = (Duration::from_secs(10), Duration::from_millis(100));
        Self { ttl, max_drift_ppm: 10_000, margin }
    }
}

impl LeaseConfig {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let range = Duration::from_millis(100)..=Duration::from_secs(3600);
        ConfigError::first_of(&[
            ("ttl", range.contains(&self.ttl), "must be from 100 ms to 1 h"),
            ("max_drift_ppm", self.max_drift_ppm <= 100_000, "must be at most 100,000"),
            ("margin", self.margin <= self.ttl / 2, "must be at most half of `ttl`"),
        ])
    }

    /// For how long after sending the lease is relied on, in ns.
    fn reliance_ns(&self) -> u64 {
        // Services count whole ms.
        let ttl = self.ttl.as_millis() as u64 * 1_000_000;
        // Rounded up: the remainder belongs to the drift. At most 3.6e12 * 1e5, which fits.
        let drift = (ttl * u64::from(self.max_drift_ppm)).div_ceil(1_000_000);
        ttl - drift - self.margin.as_nanos() as u64
    }
}

/// Until when a holder may act. It counts from the **sending** of the request that was granted or
/// renewed, not from the answer: the server counts from some moment in between.
///
/// Times are in ns of one clock, which must count on while the machine is suspended
/// (`CLOCK_BOOTTIME` on Linux), and must not step.
///
/// A lease that was lost stays lost: its locks may belong to others. No check closes the gap
/// between itself and the effect, for a process may be paused there; the resource must check the
/// fencing token ([`Fence`](crate::Fence)).
///
/// # Example
/// ```
/// use voussoir_lock::{Lease, LeaseConfig};
///
/// let mut config = LeaseConfig::default();
/// config.margin = std::time::Duration::ZERO;
/// const SECOND: u64 = 1_000_000_000;
/// // Sent at 5 s, answered at 6 s: it ends at 14.9 s, for 1 % of the 10 s is for drift.
/// let lease = Lease::granted(&config, 5 * SECOND, 6 * SECOND)?;
/// assert!(lease.check(14 * SECOND).is_ok());
/// assert!(lease.check(15 * SECOND).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Lease {
    /// The holder may act before this, in ns; [`LOST`] once the lease is lost. Otherwise it never
    /// falls.
    deadline: AtomicU64,
    reliance_ns: u64,
}

/// The deadline of a lease that was lost.
const LOST: u64 = 0;

/// The lease has ended for its holder. Final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease has ended")]
pub struct LeaseEnded;

/// Why a lease did not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// The configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The answer took longer than the lease lasts. Give back what was granted, and try again.
    #[error("the answer came after the end of the lease that it grants")]
    TooLate,
}

impl Lease {
    /// A lease that was asked for at `sent_at` and granted; it is `now`.
    ///
    /// # Errors
    /// [`BeginError`].
    pub fn granted(config: &LeaseConfig, sent_at: u64, now: u64) -> Result<Self, BeginError> {
        config.validate()?;
        let reliance_ns = config.reliance_ns();
        let deadline = sent_at.saturating_add(reliance_ns);
        if now >= deadline {
            return Err(BeginError::TooLate);
        }
        Ok(Self { deadline: AtomicU64::new(deadline), reliance_ns })
    }

    /// Whether the holder may act `now`. Once it may not, it never may again.
    ///
    /// # Errors
    /// [`LeaseEnded`].
    #[inline]
    pub fn check(&self, now: u64) -> Result<(), LeaseEnded> {
        let deadline = self.deadline.load(Ordering::Relaxed);
        if now < deadline { Ok(()) } else { self.expire(now) }
    }

    /// A renewal that was sent at `sent_at` was confirmed; it is `now`.
    ///
    /// # Errors
    /// [`LeaseEnded`]: the lease had ended before, and the answer does not revive it.
    pub fn renewed(&self, sent_at: u64, now: u64) -> Result<(), LeaseEnded> {
        let deadline = sent_at.saturating_add(self.reliance_ns);
        let longer = |old: u64| (now < old).then_some(old.max(deadline));
        let set = self.deadline.fetch_update(Ordering::Relaxed, Ordering::Relaxed, longer);
        if set.is_ok() { Ok(()) } else { self.expire(now) }
    }

    /// Ends the lease: the server said so, or its holder has given it back.
    pub fn end(&self) {
        self.deadline.store(LOST, Ordering::Relaxed);
    }

    /// When the holder has to stop, in ns; `None` once it has.
    pub fn deadline(&self) -> Option<u64> {
        let deadline = self.deadline.load(Ordering::Relaxed);
        (deadline != LOST).then_some(deadline)
    }

    /// Makes the loss final, unless a renewal was quicker.
    #[cold]
    fn expire(&self, now: u64) -> Result<(), LeaseEnded> {
        let ended = |old: u64| (now >= old).then_some(LOST);
        match self.deadline.fetch_update(Ordering::Relaxed, Ordering::Relaxed, ended) {
            Ok(_) => Err(LeaseEnded),
            Err(_) => Ok(()),
        }
    }
}
