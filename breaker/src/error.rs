//! Errors, one enum for each surface.

use std::time::Duration;

use crate::breaker::{State, Verdict};

/// Effect of a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The call never left this process, or says itself that it changed nothing.
    NotApplied,
    /// The call was begun and nobody knows how far it came.
    Unknown,
}

/// A field of a configuration is out of its range. Nothing was built or changed; mend the field.
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

/// A breaker did not admit the call. Nothing was sent; retry after `retry_after`, or elsewhere at
/// once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rejected by a breaker that is {state}")]
#[non_exhaustive]
pub struct Rejected {
    /// State of the breaker at the rejection.
    pub state: State,
    /// How long until the next call may be admitted, where that is known: the rest of an open
    /// wait. `None` for a half-open breaker, whose probes may answer at any moment, and for one
    /// that is forced open.
    pub retry_after: Option<Duration>,
}

impl Rejected {
    /// [`retry_after`](Self::retry_after) as the value of a `Retry-After` header: whole seconds,
    /// rounded up.
    ///
    /// Source: RFC 9110 §10.2.3.
    pub fn retry_after_header(&self) -> Option<u64> {
        self.retry_after.map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
    }
}

/// Why [`Breaker::call`](crate::Breaker::call) has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BreakerError<E> {
    /// The breaker did not admit the call: nothing was sent.
    #[error(transparent)]
    Rejected(Rejected),
    /// The call itself failed; the breaker has counted it as the classifier said.
    #[error("the call failed")]
    Inner(#[source] E),
}

impl<E> BreakerError<E> {
    /// Effect of the call.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Rejected(_) => Outcome::NotApplied,
            Self::Inner(_) => Outcome::Unknown,
        }
    }

    /// Whether the same call may succeed later as far as this crate knows: a rejected one may.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Rejected(_))
    }

    /// The error of the call, if it was admitted.
    pub fn into_inner(self) -> Option<E> {
        match self {
            Self::Rejected(_) => None,
            Self::Inner(error) => Some(error),
        }
    }
}

/// A snapshot that does not fit the configuration. Nothing was built; build a fresh breaker, or
/// use the configuration that the snapshot was taken under.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The configuration itself is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The snapshot is of another version of its format, or none at all.
    #[error("the snapshot is of version {found}, which this crate does not know")]
    VersionUnknown {
        /// The version it says.
        found: u32,
    },
    /// The snapshot's window is of another kind, or of another bucket width.
    #[error("the snapshot's window differs from the configured one")]
    WindowMismatch,
    /// The snapshot holds more buckets or calls than the window has, or impossible counts.
    #[error("the snapshot's window is not one that this crate wrote")]
    WindowInvalid,
}

/// A registry is full, and those of its breakers whose turn it was to be looked at are open or
/// held. Nothing was changed; calls of this key must go without a breaker, or be refused. The next
/// attempt looks at others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room among the {capacity} breakers of the registry")]
#[non_exhaustive]
pub struct RegistryFull {
    /// The registry's limit.
    pub capacity: usize,
}

/// A call took too long, or had no time left to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimeoutError<E> {
    /// The time limit passed and the call was dropped: it may or may not have taken effect. Retry
    /// only what is safe to do twice.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The caller's deadline passed before the limit did, and the call was dropped: it may or may
    /// not have taken effect, and says nothing about the dependency. Do not retry.
    #[error("the caller's deadline passed after {0:?}")]
    CutByDeadline(Duration),
    /// The deadline had passed before the call was begun: nothing was sent, and nobody waits for
    /// the answer any more. Do not retry.
    #[error("the deadline had passed before the call")]
    DeadlinePassed,
    /// The call itself failed in time.
    #[error("the call failed")]
    Inner(#[source] E),
}

impl<E> TimeoutError<E> {
    /// Effect of the call.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::DeadlinePassed => Outcome::NotApplied,
            Self::TimedOut(_) | Self::CutByDeadline(_) | Self::Inner(_) => Outcome::Unknown,
        }
    }

    /// Verdict on the health of the dependency, for a breaker around the limit: a passed deadline
    /// of the caller says nothing about it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use voussoir_breaker::*;
    /// # async fn run(breaker: Breaker, limit: Timeout, by: Deadline) {
    /// let call = limit.call_by(by, async { Ok::<_, std::io::Error>(1) });
    /// let answer = breaker
    ///     .call_with(call, |answer| match answer {
    ///         Ok(_) => Verdict::Success,
    ///         Err(error) => error.verdict(),
    ///     })
    ///     .await;
    /// # let _ = answer;
    /// # }
    /// ```
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::TimedOut(_) | Self::Inner(_) => Verdict::Failure,
            Self::CutByDeadline(_) | Self::DeadlinePassed => Verdict::Ignored,
        }
    }

    /// Whether another attempt can make sense: after a time-out, for an idempotent call.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::TimedOut(_))
    }
}

/// A bulkhead, a limiter of concurrency or a shedder did not admit the call. Nothing was sent, in
/// every variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// All places and the queue are taken. Retry later, or elsewhere.
    #[error("all {limit} places and the queue of {queue} are taken")]
    Full {
        /// Calls that may run at once.
        limit: usize,
        /// Calls that may wait.
        queue: usize,
    },
    /// The call waited in the queue for as long as it is allowed to under the present load.
    /// Retry later, or elsewhere.
    #[error("waited {0:?} in the queue")]
    QueueTimeout(Duration),
    /// The call's priority is not served at the present load. Retry later.
    #[error("shed at a load of {load_percent} %")]
    Shed {
        /// The load at the time.
        load_percent: u32,
    },
}

impl GateError {
    /// Effect of the call: none.
    pub const fn outcome(&self) -> Outcome {
        Outcome::NotApplied
    }

    /// Whether another attempt can make sense: yes, once the load has gone down.
    pub const fn is_retryable(&self) -> bool {
        true
    }
}
