//! All of them together, in an order that the caller sees.

mod builder;
mod classify;
mod error;
mod guards;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

pub use builder::PolicyBuilder;
use builder::{BoxFuture, Stage};
pub use classify::{ByResult, Classify};
use error::{Answer, Refusal, close, open};
pub use error::{PolicyError, PolicyErrorKind};
use guards::{Guard, Guards, Told};

use crate::breaker::Verdict;
use crate::deadline::Deadline;
use crate::error::Outcome;
use crate::mutant::Mutant;
use crate::retry::RetryAdvice;
use crate::shed::Priority;

/// One attempt, as the call sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// 1 for the first, more for retries.
    pub number: u32,
    /// 0 for the first, more for those sent beside it.
    pub hedge: u32,
    /// After which nobody waits for the answer. Send it along.
    pub deadline: Option<Deadline>,
    /// How much the call matters. Send it along.
    pub priority: Priority,
}

/// Protection around calls to one dependency, from an explicit list of stages.
///
/// The stages are listed from the outside in; `to_string` shows them so. An order that suits most:
///
/// 1. `fallback`: sees every failure.
/// 2. `timeout`: for the whole call, however many attempts.
/// 3. `shed`: before anything is spent on the call.
/// 4. `retry`: each attempt passes all that follows.
/// 5. `hedge`: inside the retry, so that it races one attempt.
/// 6. `breaker`: inside the retry, so that it sees each attempt and ends the retries by opening.
/// 7. `adaptive` or `bulkhead`: inside the breaker, so that a rejected call takes no place.
/// 8. `timeout`: for the attempt, innermost, so that the breaker sees it as a failure.
///
/// # Example
/// ```
/// use std::{sync::Arc, time::Duration};
/// use voussoir_breaker::*;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let budget = RetryBudget::new(RetryBudgetConfig::default())?;
/// let policy: Policy<String, std::io::Error> = Policy::builder()
///     .fallback(|_error| async { Ok("from the cache".to_owned()) })
///     .timeout(Timeout::new(Duration::from_secs(2))?)
///     .retry(Arc::new(Retry::new(RetryConfig::default())?.with_budget(budget)))
///     .breaker(Arc::new(Breaker::new("catalogue", &BreakerConfig::default())?))
///     .bulkhead(Bulkhead::new(64, QueueConfig::default())?)
///     .timeout(Timeout::new(Duration::from_millis(300))?)
///     .build()?;
/// assert_eq!(
///     policy.to_string(),
///     "fallback > timeout 2s > retry > breaker \"catalogue\" > bulkhead > timeout 300ms",
/// );
/// let answer = policy.call(|_attempt| async { Ok("fresh".to_owned()) }).await?;
/// assert_eq!(answer, "fresh");
/// # Ok(())
/// # }
/// ```
pub struct Policy<T, E> {
    stages: Vec<Stage<T, E>>,
    classify: Arc<dyn Classify<T, E>>,
}

impl<T, E> fmt::Display for Policy<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, stage) in self.stages.iter().enumerate() {
            let arrow = if at > 0 { " > " } else { "" };
            write!(f, "{arrow}{stage}")?;
        }
        Ok(())
    }
}

impl<T, E> fmt::Debug for Policy<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Policy({self})")
    }
}

/// What all attempts of one call did.
#[derive(Default)]
struct Sent {
    begun: AtomicU32,
    /// Those whose own error proves that they did nothing.
    harmless: AtomicU32,
}

impl Sent {
    fn outcome(&self) -> (u32, Outcome) {
        let begun = self.begun.load(Acquire);
        let is_harmless = begun == self.harmless.load(Acquire);
        (begun, if is_harmless { Outcome::NotApplied } else { Outcome::Unknown })
    }
}

/// What a stage knows of the call.
struct Call<'a, F> {
    attempt: Attempt,
    sent: &'a Sent,
    op: &'a F,
}

impl<F> Clone for Call<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Call<'_, F> {}

impl<T: Send + 'static, E: Send + 'static> Policy<T, E> {
    /// A policy without stages, to add some.
    pub fn builder() -> PolicyBuilder<T, E> {
        PolicyBuilder::new()
    }

    /// Calls `op`, as often as the stages see fit.
    ///
    /// # Errors
    /// What ended the call, and what its attempts may have done.
    ///
    /// # Cancel safety
    /// Dropping it drops the attempts under way and gives back every permit. The attempts may have
    /// taken effect.
    pub async fn call<F, Fut>(&self, op: F) -> Result<T, PolicyError<E>>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        self.call_by(None, Priority::default(), op).await
    }

    /// [`call`](Self::call) for a caller who has a deadline of its own, or a priority.
    ///
    /// # Errors
    /// As `call`.
    ///
    /// # Cancel safety
    /// As `call`.
    pub async fn call_by<F, Fut>(
        &self,
        deadline: Option<Deadline>,
        priority: Priority,
        op: F,
    ) -> Result<T, PolicyError<E>>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        let sent = Sent::default();
        let attempt = Attempt { number: 1, hedge: 0, deadline, priority };
        let call = Call { attempt, sent: &sent, op: &op };
        let answer = match deadline {
            None => self.run(0, call).await,
            Some(deadline) => self.bounded(deadline, 0, call).await,
        };
        open(answer).map_err(|kind| {
            let (attempts, outcome) = sent.outcome();
            PolicyError::new(kind, attempts, outcome)
        })
    }

    /// The stages from `at` inwards. One boxed future for each stage that repeats, races or bounds
    /// the rest; those that only admit share one.
    fn run<'a, F, Fut>(&'a self, at: usize, call: Call<'a, F>) -> BoxFuture<'a, Answer<T, E>>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        Box::pin(async move {
            let mut guards = Guards::new(call.attempt.deadline);
            let answer = match self.admit(at, call.attempt.priority, &mut guards).await {
                Ok(at) => self.dispatch(at, call).await,
                Err(refused) => Err(refused),
            };
            guards.settle(self.told(&answer));
            answer
        })
    }

    /// Passes the stages that only admit; returns the first of another kind.
    async fn admit<'a>(
        &'a self,
        mut at: usize,
        priority: Priority,
        guards: &mut Guards<'a>,
    ) -> Result<usize, Refusal> {
        loop {
            match self.stages.get(at) {
                Some(Stage::Shed(shedder)) => {
                    shedder.check(priority).map_err(Refusal::Gate)?;
                }
                Some(Stage::Breaker(breaker)) => {
                    let permit = breaker.try_acquire().map_err(Refusal::Rejected)?;
                    guards.push(Guard::Breaker(permit));
                }
                Some(Stage::Bulkhead(bulkhead)) => {
                    let permit = bulkhead.acquire().await.map_err(Refusal::Gate)?;
                    guards.push(Guard::Bulkhead { _permit: permit });
                }
                Some(Stage::Adaptive(limit)) => {
                    let permit = limit.acquire().await.map_err(Refusal::Gate)?;
                    guards.push(Guard::Adaptive(permit));
                }
                _ => return Ok(at),
            }
            at += 1;
        }
    }

    async fn dispatch<'a, F, Fut>(&'a self, at: usize, call: Call<'a, F>) -> Answer<T, E>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        let inner = move |attempt| self.run(at + 1, Call { attempt, ..call });
        match self.stages.get(at) {
            Some(Stage::Fallback(fallback)) => match open(inner(call.attempt).await) {
                Err(error) => close(fallback(error).await),
                Ok(value) => Ok(Ok(value)),
            },
            Some(Stage::Timeout(timeout)) => {
                let deadline = call.attempt.deadline;
                let deadline = deadline.map_or_else(
                    || Deadline::after(timeout.limit()),
                    |deadline| deadline.at_most(timeout.limit()),
                );
                self.bounded(deadline, at + 1, call).await
            }
            Some(Stage::Retry(retry)) => {
                let attempt = |number| inner(Attempt { number, ..call.attempt });
                let advice = |answer: &Answer<T, E>| self.advice(answer);
                retry.run(call.attempt.deadline, attempt, advice).await.answer
            }
            Some(Stage::Hedge(hedge)) => {
                let attempt = |hedge| inner(Attempt { hedge, ..call.attempt });
                let is_good = |answer: &Answer<T, E>| self.told(answer).is_good();
                hedge.race(attempt, is_good).await
            }
            _ => self.send(call).await,
        }
    }

    /// The stages from `at` inwards, not past a deadline.
    async fn bounded<'a, F, Fut>(
        &'a self,
        deadline: Deadline,
        at: usize,
        call: Call<'a, F>,
    ) -> Answer<T, E>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        let limit = deadline.remaining();
        if limit.is_zero() {
            return Err(Refusal::DeadlinePassed);
        }
        let is_kept = Mutant::DeadlineKept.is_on();
        let handed_down = if is_kept { call.attempt.deadline } else { Some(deadline) };
        let attempt = Attempt { deadline: handed_down, ..call.attempt };
        let rest = self.run(at, Call { attempt, ..call });
        match tokio::time::timeout_at(deadline.instant(), rest).await {
            Ok(answer) => answer,
            Err(_) => Err(Refusal::TimedOut(limit)),
        }
    }

    async fn send<F, Fut>(&self, call: Call<'_, F>) -> Answer<T, E>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        call.sent.begun.fetch_add(1, AcqRel);
        let answer = (call.op)(call.attempt).await;
        if let Err(error) = &answer
            && self.classify.outcome(error) == Outcome::NotApplied
        {
            call.sent.harmless.fetch_add(1, AcqRel);
        }
        Ok(answer)
    }

    /// What an answer says about the dependency. A refusal of our own says nothing.
    fn told(&self, answer: &Answer<T, E>) -> Told {
        match answer {
            Ok(own) => Told {
                verdict: self.classify.verdict(own),
                is_overload: self.classify.is_overload(own),
            },
            Err(Refusal::TimedOut(_)) => Told { verdict: Verdict::Failure, is_overload: true },
            Err(_) => Told { verdict: Verdict::Ignored, is_overload: false },
        }
    }

    fn advice(&self, answer: &Answer<T, E>) -> RetryAdvice {
        match answer {
            Ok(own) => self.classify.advice(own),
            Err(Refusal::TimedOut(_)) => RetryAdvice::Retry,
            Err(_) => RetryAdvice::Stop,
        }
    }
}
