//! What can be tuned, with units, defaults and ranges.

use std::time::Duration;

use crate::error::ConfigError;

/// The longest duration that can be configured: 100 years.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How a step is tried again: after `base`, then twice as long each time up to `max_delay`, each
/// time less a random share of up to `jitter`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Retry {
    /// Attempts in all, the first included. After the last one a compensatable step fails the
    /// saga; an undo, and a step from the pivot on, waits for an operator. At least 1. Default 10.
    pub max_attempts: u32,
    /// The first delay. 0 is as soon as others have had their turn, about 1 ms. Up to 100 years.
    /// Default 100 ms.
    pub base: Duration,
    /// The longest delay. Not below `base`, up to 100 years. Default 30 s.
    pub max_delay: Duration,
    /// The share of a delay that chance may take off: 0 to 1. Default 0.5.
    pub jitter: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            base: Duration::from_millis(100),
            max_delay: Duration::from_secs(30),
            jitter: 0.5,
        }
    }
}

impl Retry {
    /// One attempt.
    pub fn never() -> Self {
        Self { max_attempts: 1, ..Self::default() }
    }

    /// At most this many attempts, from `base` on.
    pub fn exponential(base: Duration, max_attempts: u32) -> Self {
        let max_delay = Duration::from_secs(30).max(base);
        Self { max_attempts, base, max_delay, ..Self::default() }
    }

    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rules = [
            ("max_attempts", self.max_attempts > 0, "must be at least 1"),
            ("base", self.base <= DURATION_MAX, "must be at most 100 years"),
            (
                "max_delay",
                self.max_delay >= self.base && self.max_delay <= DURATION_MAX,
                "must be from `base` to 100 years",
            ),
            ("jitter", (0.0..=1.0).contains(&self.jitter), "must be from 0 to 1"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

/// How sagas are run. Start from [`Default`] and change fields; checked by
/// [`Builder::open`](crate::Builder::open).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Sagas that have not ended. Past it [`Sagas::start`](crate::Sagas::start) is rejected. At
    /// least 1. Default 100,000.
    pub max_open: usize,
    /// Ended sagas whose results are remembered, so that starting one again answers with its
    /// result. The oldest is forgotten first; one that is forgotten could run again. Default
    /// 100,000.
    pub max_ended: usize,
    /// The longest input or output of a step, in bytes, encoded. 1 to 1 MiB less 1 KiB. Default
    /// 256 KiB.
    pub max_value_bytes: usize,
    /// Seeds the jitter of delays. `None` (the default) draws one.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_open: 100_000, max_ended: 100_000, max_value_bytes: 256 << 10, seed: None }
    }
}

impl Config {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let most = (1 << 20) - (1 << 10);
        let rules = [
            ("max_open", self.max_open > 0, "must be at least 1"),
            (
                "max_value_bytes",
                (1..=most).contains(&self.max_value_bytes),
                "must be from 1 to 1,047,552",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

/// Nanoseconds of a duration that was checked against [`DURATION_MAX`].
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
