//! Classification of answers.

use crate::breaker::Verdict;
use crate::error::Outcome;
use crate::retry::RetryAdvice;

/// The caller's knowledge of its own calls and answers. Object-safe; a policy holds one in an
/// `Arc`, and asks it about each answer, on the thread of the call.
///
/// Commonly [`verdict`](Self::verdict) and [`is_idempotent`](Self::is_idempotent) are written; the
/// rest follows from them.
pub trait Classify<T, E>: Send + Sync {
    /// Verdict of an answer on the health of the dependency.
    fn verdict(&self, answer: &Result<T, E>) -> Verdict {
        Verdict::of(answer)
    }

    /// Whether a call may be repeated even if an earlier attempt may have taken effect. Default
    /// `false`. Required for hedges, and for retries after a time-out or an error whose
    /// [`outcome`](Self::outcome) is not `NotApplied`. If only some calls are idempotent, return
    /// `true` and send the others with [`CallOptions::once`](crate::CallOptions::once).
    fn is_idempotent(&self) -> bool {
        false
    }

    /// Whether to try again after an answer. Default: after a failure, if the call is idempotent
    /// or the error proves that nothing was done.
    fn advice(&self, answer: &Result<T, E>) -> RetryAdvice {
        let is_harmless = || {
            let error = answer.as_ref().err();
            error.is_some_and(|error| self.outcome(error) == Outcome::NotApplied)
        };
        match self.verdict(answer) {
            Verdict::Failure if self.is_idempotent() || is_harmless() => RetryAdvice::Retry,
            Verdict::Success | Verdict::Failure | Verdict::Ignored => RetryAdvice::Stop,
        }
    }

    /// Whether to try again after a time limit of the policy has dropped an attempt, which may
    /// have taken effect. Default: if the call is idempotent.
    fn timeout_advice(&self) -> RetryAdvice {
        if self.is_idempotent() { RetryAdvice::Retry } else { RetryAdvice::Stop }
    }

    /// Whether the dependency said that it has too much to do: an adaptive limit shrinks by it.
    fn is_overload(&self, _answer: &Result<T, E>) -> bool {
        false
    }

    /// Whether an error proves that nothing was done. Default: it does not.
    fn outcome(&self, _error: &E) -> Outcome {
        Outcome::Unknown
    }
}

/// `Ok` is a success, `Err` a failure. No call is retried after it may have taken effect, and none
/// is hedged.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByResult;

impl<T, E> Classify<T, E> for ByResult {}

/// `Ok` is a success, `Err` a failure, and every call may be sent more than once: failures and
/// time-outs are retried, slow attempts may be hedged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Idempotent;

impl<T, E> Classify<T, E> for Idempotent {
    fn is_idempotent(&self) -> bool {
        true
    }
}
