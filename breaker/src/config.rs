//! The configuration of a breaker.

use std::time::Duration;

use crate::breaker::Verdict;
use crate::core::{MAX_COUNT, Thresholds, WindowKind, millionths};
use crate::error::ConfigError;

/// Buckets of a time window, at most.
pub const MAX_BUCKETS: u32 = 1_024;
/// Calls of a count window, at most.
pub const MAX_WINDOW_CALLS: u32 = 65_536;
/// The shortest bucket of a time window.
pub const MIN_BUCKET: Duration = Duration::from_millis(1);

const MAX_STRIPES: u32 = 64;
/// More stripes enlarge a breaker and slow the judgement of its rates.
const MAX_STRIPES_DEFAULT: u32 = 4;

/// Which calls the rates are taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Window {
    /// The calls of the last `span`, which moves in steps of `span / buckets`: the present bucket,
    /// which is filling, and the `buckets - 1` before it.
    Time {
        /// How far back, at least [`MIN_BUCKET`] a bucket.
        span: Duration,
        /// Steps, 1 to [`MAX_BUCKETS`].
        buckets: u32,
    },
    /// The last so many calls, however long ago.
    Count {
        /// 1 to [`MAX_WINDOW_CALLS`].
        calls: u32,
    },
}

/// Conditions that open a breaker, and how it closes again.
///
/// ```
/// use std::time::Duration;
/// use voussoir_breaker::BreakerConfig;
///
/// let mut config = BreakerConfig::default();
/// config.failure_rate = Some(0.3);
/// config.slow_rate = Some(0.8);
/// config.slow_after = Duration::from_millis(300);
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BreakerConfig {
    /// Window of calls over which the rates are computed. Default: 10 s in 10 buckets.
    pub window: Window,
    /// Calls that the window must hold before a rate counts. 1 to 16,777,215 for each bucket of a
    /// time window or to the calls of a count window; default 20.
    pub min_calls: u32,
    /// Opens at this share of failures, above 0 and up to 1. Default 0.5.
    pub failure_rate: Option<f64>,
    /// Opens at this share of slow calls, above 0 and up to 1. Default: slowness is not looked at.
    pub slow_rate: Option<f64>,
    /// Calls that take at least this long are slow. Above 0, default 1 s.
    pub slow_after: Duration,
    /// Opens at so many failures without a success between them, whatever the rates. 1 to
    /// 16,777,215, default: off.
    pub consecutive_failures: Option<u32>,
    /// How long the breaker stays open the first time. Above 0, default 5 s.
    pub open_for: Duration,
    /// Factor by which it stays open longer each time that the probes find the dependency still
    /// sick. 1 to 16, default 2.
    pub open_backoff: f64,
    /// The longest it stays open, jitter included. Not below `open_for`, default 60 s.
    pub max_open_for: Duration,
    /// Spreads the wait by up to this share either way, so that many clients do not probe at
    /// once. 0 to 1, default 0.2.
    pub open_jitter: f64,
    /// Calls that a half-open breaker admits. 1 to 65,535, default 5.
    pub probes: u16,
    /// Probes that may fail or be slow while the breaker still closes. Below `probes`, default 1.
    pub max_bad_probes: u16,
    /// How long all `probes` may be taken without a verdict before the breaker opens again,
    /// counted from the moment at which the last of them was taken. Above 0, default 30 s; `None`
    /// waits for ever.
    pub max_half_open_for: Option<Duration>,
    /// Copies of a window's counters. Threads are spread among them, so that they do not contend
    /// for one cache line. 1 to 64, rounded up to a power of two. Each costs 64 bytes a bucket of a
    /// time window, 128 bytes of a count window. Default: one for each of up to four hardware
    /// threads.
    pub stripes: Option<u32>,
    /// Verdict for a call that is dropped before its answer. Default [`Verdict::Ignored`]. A
    /// half-open breaker gets its probe back whatever the verdict.
    pub on_drop: Verdict,
    /// Verdict for a call that panics. Default [`Verdict::Failure`].
    pub on_panic: Verdict,
    /// Verdict for an attempt that the hedge of a [`Policy`](crate::Policy) around the breaker
    /// drops because a later attempt answered first. Default [`Verdict::Failure`]: the dropped
    /// attempt had more time than the one that answered. With a `failure_rate` near the share of
    /// calls that are hedged, set [`Verdict::Ignored`].
    pub on_overtaken: Verdict,
    /// Seed of the jitter. Default: `None`, drawn from the system for each breaker, so that the
    /// breakers of many processes do not probe at once.
    pub seed: Option<u64>,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            window: Window::Time { span: Duration::from_secs(10), buckets: 10 },
            min_calls: 20,
            failure_rate: Some(0.5),
            slow_rate: None,
            slow_after: Duration::from_secs(1),
            consecutive_failures: None,
            open_for: Duration::from_secs(5),
            open_backoff: 2.0,
            max_open_for: Duration::from_secs(60),
            open_jitter: 0.2,
            probes: 5,
            max_bad_probes: 1,
            max_half_open_for: Some(Duration::from_secs(30)),
            stripes: None,
            on_drop: Verdict::Ignored,
            on_panic: Verdict::Failure,
            on_overtaken: Verdict::Failure,
            seed: None,
        }
    }
}

impl BreakerConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range, or that contradicts another.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.rules().map(drop)
    }

    pub(crate) fn rules(&self) -> Result<Thresholds, ConfigError> {
        self.check_opening()?;
        self.check_closing()?;
        Ok(Thresholds {
            shape: self.shape()?,
            min_calls: u64::from(self.min_calls),
            failure_rate: self.failure_rate.map(millionths),
            slow_rate: self.slow_rate.map(millionths),
            consecutive_failures: self.consecutive_failures.map(u64::from),
            open_for: nanos(self.open_for),
            max_open_for: nanos(self.max_open_for),
            open_backoff: self.open_backoff,
            open_jitter: self.open_jitter,
            probes: self.probes,
            max_bad_probes: self.max_bad_probes,
            max_half_open_for: self.max_half_open_for.map(nanos),
            seed: self.seed.unwrap_or_else(fresh_seed),
        })
    }

    fn shape(&self) -> Result<WindowKind, ConfigError> {
        match self.window {
            Window::Time { span, buckets } => {
                if !(1..=MAX_BUCKETS).contains(&buckets) {
                    return Err(ConfigError::new("window.buckets", "must be 1 to 1024"));
                }
                if u64::from(self.min_calls) > u64::from(buckets) * MAX_COUNT {
                    return Err(ConfigError::new(
                        "min_calls",
                        "must be at most 16777215 for each bucket, or it never opens the breaker",
                    ));
                }
                let width = nanos(span) / u64::from(buckets);
                if width < nanos(MIN_BUCKET) {
                    return Err(ConfigError::new("window.span", "must be at least 1 ms a bucket"));
                }
                Ok(WindowKind::Time { width, buckets, stripes: self.stripes()? })
            }
            Window::Count { calls } => {
                if !(1..=MAX_WINDOW_CALLS).contains(&calls) {
                    return Err(ConfigError::new("window.calls", "must be 1 to 65536"));
                }
                if calls < self.min_calls {
                    return Err(ConfigError::new(
                        "window.calls",
                        "must not be below `min_calls`, or it never opens the breaker",
                    ));
                }
                Ok(WindowKind::Count { calls, stripes: self.stripes()? })
            }
        }
    }

    fn stripes(&self) -> Result<u32, ConfigError> {
        let threads = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let stripes = self.stripes.unwrap_or_else(|| threads().min(MAX_STRIPES_DEFAULT));
        if !(1..=MAX_STRIPES).contains(&stripes) {
            return Err(ConfigError::new("stripes", "must be 1 to 64"));
        }
        Ok(stripes)
    }

    fn check_opening(&self) -> Result<(), ConfigError> {
        if self.min_calls == 0 {
            return Err(ConfigError::new("min_calls", "must be at least 1"));
        }
        for (field, rate) in [("failure_rate", self.failure_rate), ("slow_rate", self.slow_rate)] {
            if let Some(rate) = rate
                && !(1e-6..=1.0).contains(&rate)
            {
                return Err(ConfigError::new(field, "must be 0.000001 to 1"));
            }
        }
        if self.slow_rate.is_some() && self.slow_after.is_zero() {
            return Err(ConfigError::new("slow_after", "must be above 0"));
        }
        if self.consecutive_failures.is_some_and(|max| !(1..=MAX_COUNT).contains(&u64::from(max))) {
            return Err(ConfigError::new("consecutive_failures", "must be 1 to 16777215"));
        }
        if self.failure_rate.is_none()
            && self.slow_rate.is_none()
            && self.consecutive_failures.is_none()
        {
            return Err(ConfigError::new(
                "failure_rate",
                "must be set, or `slow_rate` or `consecutive_failures`: nothing opens it",
            ));
        }
        Ok(())
    }

    fn check_closing(&self) -> Result<(), ConfigError> {
        if self.open_for.is_zero() {
            return Err(ConfigError::new("open_for", "must be above 0"));
        }
        if self.max_open_for < self.open_for {
            return Err(ConfigError::new("max_open_for", "must not be below `open_for`"));
        }
        if !(1.0..=16.0).contains(&self.open_backoff) {
            return Err(ConfigError::new("open_backoff", "must be 1 to 16"));
        }
        if !(0.0..=1.0).contains(&self.open_jitter) {
            return Err(ConfigError::new("open_jitter", "must be 0 to 1"));
        }
        if self.probes == 0 {
            return Err(ConfigError::new("probes", "must be 1 to 65535"));
        }
        if self.max_bad_probes >= self.probes {
            return Err(ConfigError::new("max_bad_probes", "must be below `probes`"));
        }
        if self.max_half_open_for.is_some_and(|max| max.is_zero()) {
            return Err(ConfigError::new("max_half_open_for", "must be above 0"));
        }
        Ok(())
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A seed from the system's random hasher, which differs between processes that share a process
/// id, as containers do. The seed spreads jitter; it protects nothing.
pub(crate) fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0_u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: impl FnOnce(&mut BreakerConfig)) -> ConfigError {
        let mut config = BreakerConfig::default();
        change(&mut config);
        config.validate().expect_err("refused")
    }

    #[test]
    fn the_default_is_valid() {
        assert_eq!(BreakerConfig::default().validate(), Ok(()));
    }

    #[test]
    fn each_field_has_its_range() {
        let span = Duration::from_millis(9);
        let one = Window::Time { span: Duration::from_secs(1), buckets: 1 };
        let too_many = 1 << 24;
        let cases: [(&str, ConfigError); 19] = [
            ("stripes", wrong(|c| c.stripes = Some(65))),
            ("window.buckets", wrong(|c| c.window = Window::Time { span, buckets: 0 })),
            ("window.span", wrong(|c| c.window = Window::Time { span, buckets: 10 })),
            ("window.calls", wrong(|c| c.window = Window::Count { calls: 0 })),
            ("window.calls", wrong(|c| c.window = Window::Count { calls: 19 })),
            ("min_calls", wrong(|c| c.min_calls = 0)),
            ("min_calls", wrong(|c| (c.window, c.min_calls) = (one, too_many))),
            ("consecutive_failures", wrong(|c| c.consecutive_failures = Some(too_many))),
            ("failure_rate", wrong(|c| c.failure_rate = Some(0.0))),
            ("failure_rate", wrong(|c| c.failure_rate = Some(f64::NAN))),
            ("slow_rate", wrong(|c| c.slow_rate = Some(1.1))),
            ("consecutive_failures", wrong(|c| c.consecutive_failures = Some(0))),
            ("failure_rate", wrong(|c| c.failure_rate = None)),
            ("open_for", wrong(|c| c.open_for = Duration::ZERO)),
            ("max_open_for", wrong(|c| c.max_open_for = Duration::from_secs(1))),
            ("open_backoff", wrong(|c| c.open_backoff = f64::NAN)),
            ("open_jitter", wrong(|c| c.open_jitter = -0.1)),
            ("max_bad_probes", wrong(|c| c.max_bad_probes = 5)),
            ("max_half_open_for", wrong(|c| c.max_half_open_for = Some(Duration::ZERO))),
        ];
        for (expected, error) in cases {
            assert_eq!(error.field, expected, "{error}");
        }
    }
}
