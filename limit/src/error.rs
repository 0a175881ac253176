//! What can go wrong, one enum for each surface.

use std::time::Duration;

use crate::core::{NEVER, Standing};
use crate::header::whole_seconds;

/// Why a limiter could not be made or changed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The quota's `count`, `per` or `burst` is 0.
    #[error("count, period and burst of a quota must not be 0")]
    Zero,
    /// The figures of the quota are too large for each other: see [`Quota`](crate::Quota).
    #[error("{0} does not fit: see the ranges in the documentation of `Quota`")]
    OutOfRange(&'static str),
    /// The name would not be a string of the `RateLimit` header fields.
    #[error("a quota's name must be printable ASCII without quotes and backslashes: {0:?}")]
    Name(&'static str),
    /// A limiter needs at least one quota, and takes at most [`MAX_TIERS`](crate::MAX_TIERS).
    #[error("{0} quotas; a limiter takes 1 to {max}", max = crate::MAX_TIERS)]
    Tiers(usize),
    /// A change must keep the number of quotas and their algorithms, for their states to be kept.
    #[error("a change of quotas must keep their number and algorithms")]
    OtherAlgorithm,
    /// The limit of that name is 0 or too large.
    #[error("{0} is out of range")]
    Limit(&'static str),
    /// The system refused so many bytes for the table of keys: lower
    /// [`max_keys`](crate::KeyedConfig::max_keys).
    #[error("no memory for a table of {0} bytes: lower `max_keys`")]
    NoMemory(usize),
    /// The store cannot count this quota, or not at its rate; the text says why.
    #[error("the store cannot count this quota: {0}")]
    Unsuitable(&'static str),
}

/// The request must not pass: nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rate limit exceeded{}", retry_hint(*.wait))]
pub struct Denied {
    standing: Standing,
    wait: u64,
}

fn retry_hint(wait: u64) -> String {
    if wait == NEVER {
        return " by the cost of this request alone".into();
    }
    format!(", retry after {:?}", Duration::from_nanos(wait))
}

impl Denied {
    pub(crate) const fn new(standing: Standing, wait: u64) -> Self {
        Self { standing, wait }
    }

    /// After how long the same request would pass, if nobody else takes anything in between.
    /// `None`: it never will, because it costs more than the limit.
    pub const fn retry_after(&self) -> Option<Duration> {
        if self.wait == NEVER { None } else { Some(Duration::from_nanos(self.wait)) }
    }

    /// [`Self::retry_after`] in whole seconds, rounded up: the value of HTTP's `Retry-After`.
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after().map(whole_seconds)
    }

    /// Where the quota stands that denies for longest.
    pub const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Whether the same request may pass later.
    pub const fn is_retryable(&self) -> bool {
        self.wait != NEVER
    }
}

/// Why a wait for admission ended without it. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// As many callers wait already as the limiter lets wait. Retry later.
    #[error("too many callers wait for this limiter")]
    QueueFull,
    /// The request costs more than the limit: no waiting helps. See
    /// [`until_ready_in_debt`](crate::Limiter::until_ready_in_debt).
    #[error("the request costs more than the limit")]
    TooCostly,
    /// Only one quota by `Gcra` or `LeakyBucket` can owe units.
    #[error("the limiter's quotas cannot go into debt: only a single one by rate can")]
    NoDebt,
}

impl WaitError {
    /// Whether the same request may pass later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::QueueFull)
    }
}
