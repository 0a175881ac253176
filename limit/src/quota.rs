//! Quotas: how many units may pass, and by which algorithm they are counted.

use std::time::Duration;

use crate::core::{Kind, Rules};
use crate::error::ConfigError;

/// The most quotas in one limiter.
pub const MAX_TIERS: usize = 8;

/// The most units of a [`Algorithm::SlidingLog`]: it keeps 16 bytes for each.
pub const MAX_LOG_UNITS: u64 = 1 << 20;

/// How a quota counts. [`Quota::most_in`] says what each admits at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The generic cell rate algorithm: units flow back one by one at the rate, and `burst` of them
    /// may be taken at once. Decides exactly as a token bucket that is refilled continuously, in
    /// one word. Source: ITU-T I.371, annex A.
    Gcra,
    /// A bucket of `burst` tokens into which `count` are put at once at each multiple of `per`.
    TokenBucket,
    /// [`Self::Gcra`] with a burst of 1: what passes leaves at even spaces. Callers wait in the
    /// bucket with [`Limiter::until_ready`](crate::Limiter::until_ready), and the number that may
    /// is [`LimiterConfig::max_waiters`](crate::LimiterConfig::max_waiters).
    LeakyBucket,
    /// At most `count` between two multiples of `per`, so up to twice that across one.
    FixedWindow,
    /// At most `count` in any window of `per`, wherever it begins. Remembers each unit.
    SlidingLog,
    /// Two counts in place of the log, on the assumption that the units of the window before were
    /// spread evenly over it. Where they were not, up to twice `count` pass in a window of `per`.
    SlidingCounter,
}

/// A number of units per period, and the algorithm that counts them.
///
/// The rate is `count` in `per`; what may be taken at one moment is `burst`, and is never implied
/// by the rate. Ranges: `per` from 1 ns to 73 years; `burst` times the time of one unit up to 146
/// years; for [`Algorithm::Gcra`] and [`Algorithm::LeakyBucket`] at most one unit a nanosecond, the
/// time of a unit being rounded up to whole nanoseconds: never faster than asked for, and slower by
/// less than a nanosecond a unit (at 300,000 a second 0.02 %, at 30 million 2 %); for the counted
/// ones about 10⁹ units a second; for the log [`MAX_LOG_UNITS`].
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use voussoir_limit::Quota;
///
/// let minute = Duration::from_secs(60);
/// assert_eq!(Quota::gcra(60, minute).most_in(minute), 60);
/// assert_eq!(Quota::gcra(60, minute).burst(60).most_in(minute), 119);
/// assert_eq!(Quota::sliding_log(60, minute).most_in(minute), 60);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Quota {
    /// How it counts.
    pub algorithm: Algorithm,
    /// Units in a period.
    pub count: u64,
    /// The period.
    pub per: Duration,
    /// Units at one moment: for the algorithms by rate only. The windows admit `count` at one
    /// moment.
    pub burst: u64,
    /// The name in the `RateLimit` header fields.
    pub name: &'static str,
}

impl Quota {
    const fn new(algorithm: Algorithm, count: u64, per: Duration) -> Self {
        Self { algorithm, count, per, burst: 1, name: "default" }
    }

    /// `count` in `per` by [`Algorithm::Gcra`], with a burst of 1.
    pub const fn gcra(count: u64, per: Duration) -> Self {
        Self::new(Algorithm::Gcra, count, per)
    }

    /// `count` every `per` into a bucket of `count` tokens, by [`Algorithm::TokenBucket`].
    pub const fn token_bucket(count: u64, per: Duration) -> Self {
        Self::new(Algorithm::TokenBucket, count, per).burst(count)
    }

    /// `count` in `per` by [`Algorithm::LeakyBucket`].
    pub const fn leaky_bucket(count: u64, per: Duration) -> Self {
        Self::new(Algorithm::LeakyBucket, count, per)
    }

    /// `count` in `per` by [`Algorithm::FixedWindow`].
    pub const fn fixed_window(count: u64, per: Duration) -> Self {
        Self::new(Algorithm::FixedWindow, count, per)
    }

    /// `count` in `per` by [`Algorithm::SlidingLog`].
    pub const fn sliding_log(count: u64, per: Duration) -> Self {
        Self::new(Algorithm::SlidingLog, count, per)
    }

    /// `count` in `per` by [`Algorithm::SlidingCounter`].
    pub const fn sliding_counter(count: u64, per: Duration) -> Self {
        Self::new(Algorithm::SlidingCounter, count, per)
    }

    /// The same with another burst.
    pub const fn burst(mut self, units: u64) -> Self {
        self.burst = units;
        self
    }

    /// The same with a name for the header fields.
    pub const fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// The most units that can pass in any window of this length, wherever it begins. 0 for a quota
    /// that no limiter would take.
    pub fn most_in(&self, window: Duration) -> u64 {
        self.rules().map_or(0, |rules| rules.most_in(nanos(window)))
    }

    pub(crate) fn rules(&self) -> Result<Rules, ConfigError> {
        let zero = [
            ("quota.count", self.count == 0),
            ("quota.per", self.per.is_zero()),
            ("quota.burst", self.burst == 0),
        ];
        if let Some((field, _)) = zero.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(ConfigError::new(field, "must be above 0"));
        }
        if !self.name.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\') {
            return Err(ConfigError::new(
                "quota.name",
                "must be printable ASCII without quotes and backslashes",
            ));
        }
        if self.algorithm == Algorithm::SlidingLog && self.count > MAX_LOG_UNITS {
            return Err(ConfigError::new("quota.count", "must be at most 2^20 in a sliding log"));
        }
        let (kind, burst) = match self.algorithm {
            Algorithm::Gcra => (Kind::Gcra, self.burst),
            Algorithm::LeakyBucket => (Kind::Gcra, 1),
            Algorithm::TokenBucket => (Kind::TokenBucket, self.burst),
            Algorithm::FixedWindow => (Kind::FixedWindow, 1),
            Algorithm::SlidingLog => (Kind::SlidingLog, 1),
            Algorithm::SlidingCounter => (Kind::SlidingCounter, 1),
        };
        Rules::new(kind, self.count, nanos(self.per), burst)
            .ok_or(ConfigError::new("quota", "must fit the ranges in the documentation of `Quota`"))
    }
}

pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The rules of all quotas of a limiter.
pub(crate) fn rules_of(quotas: &[Quota]) -> Result<Box<[Rules]>, ConfigError> {
    if quotas.is_empty() || quotas.len() > MAX_TIERS {
        return Err(ConfigError::new("quotas", "must be 1 to 8"));
    }
    quotas.iter().map(Quota::rules).collect()
}

/// The most units that quotas taken together can give at one moment.
pub(crate) fn least_limit(rules: &[Rules]) -> u64 {
    rules.iter().map(|rules| rules.limit).min().unwrap_or(0)
}

/// Rule for a change of quotas, as shown in errors.
const OTHER_KIND: &str = "must keep their number and algorithms, for their states to be kept";

/// The rules of a change, which must keep the shape of what it changes.
pub(crate) fn changed(old: &[Rules], quotas: &[Quota]) -> Result<Box<[Rules]>, ConfigError> {
    let new = rules_of(quotas)?;
    let same = old.len() == new.len() && old.iter().zip(&new).all(|(a, b)| a.kind == b.kind);
    if same { Ok(new) } else { Err(ConfigError::new("quotas", OTHER_KIND)) }
}
