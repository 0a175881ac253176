//! Further attempts.

mod backoff;
mod budget;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

pub use backoff::{Backoff, Growth, Jitter, Waits};
pub use budget::{
    BudgetedCall, ExtraAttempt, RetryBudget, RetryBudgetConfig, RetryBudgetStats, RetryRejected,
};

use crate::config::fresh_seed;
use crate::deadline::Deadline;
use crate::error::ConfigError;

/// Decision about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryAdvice {
    /// The answer is final.
    Stop,
    /// Try again after the back-off.
    Retry,
    /// Try again, but not before this time: the dependency asked for it (`Retry-After`). The
    /// back-off counts if it is longer.
    RetryAfter(Duration),
}

/// Why there was no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// The answer was final.
    Final,
    /// The attempts were used up.
    AttemptsSpent,
    /// The budget did not pay for another.
    RetryRejected(RetryRejected),
    /// The wait would have outlasted the deadline.
    DeadlineTooNear,
    /// The dependency asked for a longer wait than the configuration allows.
    RetryAfterTooLong,
}

/// How often and when to try again.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RetryConfig {
    /// Attempts, the first included. 1 to 100, default 3.
    pub max_attempts: u32,
    /// The waits between them.
    pub backoff: Backoff,
    /// The longest `Retry-After` that is waited for; a longer one ends the call. Default 30 s.
    pub max_retry_after: Duration,
    /// Seed of the jitter; by default different for each.
    pub seed: Option<u64>,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            backoff: Backoff::default(),
            max_retry_after: Duration::from_secs(30),
            seed: None,
        }
    }
}

/// Why a retried call has no value: its last error, and what became of further attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed after {attempts} attempts")]
#[non_exhaustive]
pub struct RetryError<E> {
    /// The error of the last attempt. What earlier attempts did is not undone by it.
    #[source]
    pub error: E,
    /// Attempts made, at least 1.
    pub attempts: u32,
    /// Why there was no further one.
    pub stopped: Stop,
}

/// Tries again what failed: with back-off, within a budget, and not past a deadline.
///
/// # Example
/// ```
/// use voussoir_breaker::{Retry, RetryAdvice, RetryBudget, RetryBudgetConfig, RetryConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let budget = RetryBudget::new(RetryBudgetConfig::default())?;
/// let retry = Retry::new(RetryConfig::default())?.with_budget(budget);
/// let answer = retry
///     .call(
///         |attempt| async move { if attempt == 1 { Err("busy") } else { Ok(attempt) } },
///         |error| if *error == "busy" { RetryAdvice::Retry } else { RetryAdvice::Stop },
///     )
///     .await;
/// assert_eq!(answer, Ok(2));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Retry {
    config: RetryConfig,
    budget: Option<Arc<RetryBudget>>,
    seed: u64,
    /// Calls so far: each draws its own waits.
    calls: AtomicU64,
}

impl Retry {
    /// Retries without a budget. With more than one client of a dependency, share a budget.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(config: RetryConfig) -> Result<Self, ConfigError> {
        if !(1..=100).contains(&config.max_attempts) {
            return Err(ConfigError::new("max_attempts", "must be 1 to 100"));
        }
        config.backoff.validate()?;
        let seed = config.seed.unwrap_or_else(fresh_seed);
        Ok(Self { config, budget: None, seed, calls: AtomicU64::new(0) })
    }

    /// The same, paying for each further attempt from `budget`.
    pub fn with_budget(mut self, budget: Arc<RetryBudget>) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Makes attempts, numbered from 1, until one succeeds or `decide` or a limit ends it.
    ///
    /// The caller decides which errors are retried: return [`RetryAdvice::Stop`] for an error after
    /// which a second attempt could have the effect twice.
    ///
    /// # Errors
    /// The last attempt's error.
    ///
    /// # Cancel safety
    /// Dropping it drops the attempt under way or the wait; places in the budget are given back.
    pub async fn call<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        attempt: impl FnMut(u32) -> F,
        decide: impl Fn(&E) -> RetryAdvice,
    ) -> Result<T, RetryError<E>> {
        let _account = self.budget.as_ref().map(RetryBudget::begin);
        self.call_unpaid(attempt, decide).await
    }

    /// [`call`](Self::call) as a part of a call that has an account with the budget already, so
    /// that what is nested in each other pays in once: begin the account with
    /// [`RetryBudget::begin`], and hand it to the retry and to the hedge. A policy does so by
    /// itself. An account with another budget than this retry's does not count.
    ///
    /// # Errors
    /// As `call`.
    ///
    /// # Cancel safety
    /// As `call`.
    pub async fn call_within<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        account: &BudgetedCall,
        attempt: impl FnMut(u32) -> F,
        decide: impl Fn(&E) -> RetryAdvice,
    ) -> Result<T, RetryError<E>> {
        let other = self.budget.as_ref().filter(|budget| !account.is_with(budget));
        let _account = other.map(RetryBudget::begin);
        self.call_unpaid(attempt, decide).await
    }

    async fn call_unpaid<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        attempt: impl FnMut(u32) -> F,
        decide: impl Fn(&E) -> RetryAdvice,
    ) -> Result<T, RetryError<E>> {
        let decide = |answer: &Result<T, E>| match answer {
            Ok(_) => RetryAdvice::Stop,
            Err(error) => decide(error),
        };
        let Retried { answer, attempts, stopped } = self.run(None, attempt, decide).await;
        answer.map_err(|error| RetryError { error, attempts, stopped })
    }

    /// The budget that it pays from.
    pub(crate) fn budget(&self) -> Option<&Arc<RetryBudget>> {
        self.budget.as_ref()
    }

    /// The loop under [`call`](Self::call) and the policy. The account with the budget is the
    /// caller's. `decide` is asked about each answer, once.
    pub(crate) async fn run<R, F: Future<Output = R>>(
        &self,
        deadline: Option<Deadline>,
        mut attempt: impl FnMut(u32) -> F,
        mut decide: impl FnMut(&R) -> RetryAdvice,
    ) -> Retried<R> {
        let seed = self.seed ^ self.calls.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut waits = self.config.backoff.waits(seed);
        let mut attempts = 1;
        let mut extra = None;
        loop {
            let answer = attempt(attempts).await;
            let advice = decide(&answer);
            // This attempt's place is free before the next one asks for its own.
            drop(extra.take());
            match self.next(deadline, attempts, advice, &mut waits) {
                Ok((wait, paid)) => {
                    extra = paid;
                    tokio::time::sleep(wait).await;
                    attempts += 1;
                }
                Err(stopped) => return Retried { answer, attempts, stopped },
            }
        }
    }

    /// Whether there is another attempt, and after which wait. Its place in the budget is taken
    /// here, before the wait.
    fn next(
        &self,
        deadline: Option<Deadline>,
        attempts: u32,
        advice: RetryAdvice,
        waits: &mut Waits,
    ) -> Result<(Duration, Option<ExtraAttempt>), Stop> {
        let asked = match advice {
            RetryAdvice::Stop => return Err(Stop::Final),
            RetryAdvice::Retry => Duration::ZERO,
            RetryAdvice::RetryAfter(time) => time,
        };
        if attempts >= self.config.max_attempts {
            return Err(Stop::AttemptsSpent);
        }
        if asked > self.config.max_retry_after {
            return Err(Stop::RetryAfterTooLong);
        }
        let wait = waits.next().unwrap_or(self.config.backoff.max).max(asked);
        if deadline.is_some_and(|deadline| deadline.remaining() <= wait) {
            return Err(Stop::DeadlineTooNear);
        }
        let extra = self.budget.as_ref().map(RetryBudget::try_extra).transpose();
        Ok((wait, extra.map_err(Stop::RetryRejected)?))
    }
}

/// The end of a retried call.
#[derive(Debug)]
pub(crate) struct Retried<R> {
    pub(crate) answer: R,
    pub(crate) attempts: u32,
    pub(crate) stopped: Stop,
}

/// Reads the value of a `Retry-After` header that gives seconds; a date is `None`, for it says
/// nothing without the date of the answer: see `HttpAnswers::retry_after` (feature `http`).
///
/// Source: RFC 9110 §10.2.3.
pub fn retry_after_secs(header: &str) -> Option<Duration> {
    let digits = header.trim();
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| Duration::from_secs(digits.parse().unwrap_or(u64::MAX)))
}
