//! Why a policy has no value.

use std::time::Duration;

use crate::error::{GateError, Outcome, Rejected};

/// Cause of the end of a call under a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyErrorKind<E> {
    /// The breaker did not admit it. The last attempt was not sent.
    #[error(transparent)]
    Rejected(Rejected),
    /// The bulkhead, the adaptive limit or the shedder did not admit it. The last attempt was not
    /// sent.
    #[error(transparent)]
    Gate(GateError),
    /// No answer within a time limit of the policy, and the call was dropped.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The caller's deadline passed this long after the call began, and the call was dropped.
    #[error("the caller's deadline passed after {0:?}")]
    CutByDeadline(Duration),
    /// The caller's deadline had passed before the last attempt, which was not sent.
    #[error("the deadline had passed before the call")]
    DeadlinePassed,
    /// The last attempt's own error.
    #[error("the call failed")]
    Inner(#[source] E),
}

impl<E> PolicyErrorKind<E> {
    /// Whether this process refused by itself, without asking the dependency.
    pub const fn is_local(&self) -> bool {
        matches!(self, Self::Rejected(_) | Self::Gate(_) | Self::DeadlinePassed)
    }
}

/// A call that did not get as far as an answer of its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum NoAnswer {
    Rejected(Rejected),
    Gate(GateError),
    TimedOut(Duration),
    CutByDeadline(Duration),
    DeadlinePassed,
}

/// Result passed from stage to stage: the call's own answer, unchanged, for the classifier.
pub(super) type Answer<T, E> = Result<Result<T, E>, NoAnswer>;

pub(super) fn open<T, E>(answer: Answer<T, E>) -> Result<T, PolicyErrorKind<E>> {
    match answer {
        Ok(own) => own.map_err(PolicyErrorKind::Inner),
        Err(NoAnswer::Rejected(rejected)) => Err(PolicyErrorKind::Rejected(rejected)),
        Err(NoAnswer::Gate(error)) => Err(PolicyErrorKind::Gate(error)),
        Err(NoAnswer::TimedOut(limit)) => Err(PolicyErrorKind::TimedOut(limit)),
        Err(NoAnswer::CutByDeadline(after)) => Err(PolicyErrorKind::CutByDeadline(after)),
        Err(NoAnswer::DeadlinePassed) => Err(PolicyErrorKind::DeadlinePassed),
    }
}

pub(super) fn close<T, E>(answer: Result<T, PolicyErrorKind<E>>) -> Answer<T, E> {
    match answer {
        Ok(value) => Ok(Ok(value)),
        Err(PolicyErrorKind::Inner(error)) => Ok(Err(error)),
        Err(PolicyErrorKind::Rejected(rejected)) => Err(NoAnswer::Rejected(rejected)),
        Err(PolicyErrorKind::Gate(error)) => Err(NoAnswer::Gate(error)),
        Err(PolicyErrorKind::TimedOut(limit)) => Err(NoAnswer::TimedOut(limit)),
        Err(PolicyErrorKind::CutByDeadline(after)) => Err(NoAnswer::CutByDeadline(after)),
        Err(PolicyErrorKind::DeadlinePassed) => Err(NoAnswer::DeadlinePassed),
    }
}

/// Why a call under a policy has no value, over all of its attempts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} (after {attempts} attempts)")]
#[non_exhaustive]
pub struct PolicyError<E> {
    /// Cause of the end.
    pub kind: PolicyErrorKind<E>,
    /// Attempts that were sent, retries and hedges together. 0: nothing was.
    pub attempts: u32,
    outcome: Outcome,
}

impl<E> PolicyError<E> {
    pub(super) const fn new(kind: PolicyErrorKind<E>, attempts: u32, outcome: Outcome) -> Self {
        Self { kind, attempts, outcome }
    }

    /// Effect of all attempts together: a rejection after a time-out is still [`Outcome::Unknown`].
    pub const fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the same call may succeed later as far as the policy knows: what was refused here
    /// or timed out may. For the call's own errors ask the classifier.
    pub const fn is_retryable(&self) -> bool {
        match self.kind {
            PolicyErrorKind::Rejected(_)
            | PolicyErrorKind::Gate(_)
            | PolicyErrorKind::TimedOut(_) => true,
            PolicyErrorKind::DeadlinePassed
            | PolicyErrorKind::CutByDeadline(_)
            | PolicyErrorKind::Inner(_) => false,
        }
    }
}
