//! What answers mean.

use crate::breaker::Verdict;
use crate::error::Outcome;
use crate::retry::RetryAdvice;

/// The caller's knowledge of its own answers. Object-safe; a policy holds one in an `Arc`.
///
/// Only [`verdict`](Self::verdict) is commonly written; the rest follows from it.
pub trait Classify<T, E>: Send + Sync {
    /// What an answer says about the dependency's health.
    fn verdict(&self, answer: &Result<T, E>) -> Verdict {
        Verdict::of(answer)
    }

    /// Whether to try again. Default: after each failure. Say [`RetryAdvice::Stop`] where a second
    /// attempt could do the thing twice.
    fn advice(&self, answer: &Result<T, E>) -> RetryAdvice {
        match self.verdict(answer) {
            Verdict::Failure => RetryAdvice::Retry,
            Verdict::Success | Verdict::Ignored => RetryAdvice::Stop,
        }
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

/// `Ok` is a success, `Err` a failure that is tried again.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByResult;

impl<T, E> Classify<T, E> for ByResult {}
