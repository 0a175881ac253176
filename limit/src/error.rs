//! Errors, one enum for each surface.

use std::time::Duration;

use crate::core::{NEVER, Standing};
use crate::header::whole_seconds;

/// A field of a configuration or of a quota is out of its range, or a change of quotas is none that
/// keeps their states. Nothing was built or changed; mend the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The name of the field.
    pub field: &'static str,
    /// The rule that the field violates.
    pub rule: &'static str,
}

impl ConfigError {
    pub(crate) const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }
}

/// The request must not pass: nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rate limit exceeded{}", retry_hint(*.wait))]
pub struct Rejected {
    standing: Standing,
    wait: u64,
}

fn retry_hint(wait: u64) -> String {
    if wait == NEVER {
        return " by the cost of this request alone".into();
    }
    format!(", retry after {:?}", Duration::from_nanos(wait))
}

impl Rejected {
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

    /// Where the quota stands that rejects for longest.
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
    /// The queue of waiting callers is full. Retry later.
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
