//! Policies: breaker, retry, hedge, bulkhead, timeout and shedding around one call, in an explicit
//! order.

mod builder;
mod classify;
mod error;
mod guards;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use builder::PolicyBuilder;
use builder::{BoxFuture, Stage};
pub use classify::{ByResult, Classify, Idempotent};
use error::{Answer, NoAnswer, close, open};
pub use error::{PolicyError, PolicyErrorKind};
use guards::{Bounds, End, Guard, Guards};

use crate::deadline::Deadline;
use crate::error::Outcome;
use crate::hedge::Standing;
use crate::retry::{BudgetedCall, RetryAdvice, RetryBudget};
use crate::shed::Priority;

/// One attempt of a call, as the operation sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// Number of the attempt, from 1; retries count up.
    pub number: u32,
    /// 0 for the first attempt of a race, above 0 for hedges.
    pub hedge: u32,
    /// The caller stops waiting at this deadline. Send it along.
    pub deadline: Option<Deadline>,
    /// How much the call matters. Send it along.
    pub priority: Priority,
}

/// Options of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallOptions {
    /// After which nobody waits for the answer. A call that it cuts short says nothing about the
    /// dependency, unless a breaker looks at slowness and the call has been slow by then.
    pub deadline: Option<Deadline>,
    /// How much the call matters.
    pub priority: Priority,
    /// Sends the call at most once, whatever the classifier says: no retry, no hedge. For a call
    /// that is not idempotent among others that are.
    pub once: bool,
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
///     .classify(Arc::new(Idempotent))
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
    /// Budgets of the retry and of the hedge, without repetition.
    budgets: Vec<Arc<RetryBudget>>,
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

/// Attempts of one call so far, and the call's accounts with the budgets.
#[derive(Default)]
struct Sent {
    begun: AtomicU32,
    /// Attempts whose own error proves that they had no effect.
    harmless: AtomicU32,
    /// One for each budget, begun with the first attempt: a call that is never sent pays nothing
    /// in, and one that is sent often pays once.
    accounts: OnceLock<Vec<BudgetedCall>>,
}

impl Sent {
    fn begin(&self, budgets: &[Arc<RetryBudget>]) {
        if self.begun.fetch_add(1, AcqRel) == 0 {
            self.accounts.get_or_init(|| budgets.iter().map(RetryBudget::begin).collect());
        }
    }

    fn attempts(&self) -> u32 {
        self.begun.load(Acquire)
    }

    fn outcome(&self) -> (u32, Outcome) {
        let begun = self.attempts();
        let is_harmless = begun == self.harmless.load(Acquire);
        (begun, if is_harmless { Outcome::NotApplied } else { Outcome::Unknown })
    }
}

/// The call as it is passed from stage to stage.
struct Call<'a, F> {
    attempt: Attempt,
    once: bool,
    bounds: Bounds<'a>,
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

    /// Calls `op`, once or, if a retry or hedge says so, several times.
    ///
    /// # Errors
    /// An error names the stage that ended the call, and what its attempts may have done.
    ///
    /// # Panics
    /// If `op`, the classifier or the fallback does. All permits are given back; a breaker counts
    /// the call as [`BreakerConfig::on_panic`](crate::BreakerConfig::on_panic) says.
    ///
    /// # Cancel safety
    /// Dropping it drops the attempts under way and gives back every permit. The attempts may have
    /// taken effect.
    pub async fn call<F, Fut>(&self, op: F) -> Result<T, PolicyError<E>>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        self.call_with(CallOptions::default(), op).await
    }

    /// [`call`](Self::call) for a caller who has a deadline of its own, or a priority.
    ///
    /// # Errors
    /// As `call`.
    ///
    /// # Panics
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
        self.call_with(CallOptions { deadline, priority, once: false }, op).await
    }

    /// [`call`](Self::call) with options.
    ///
    /// # Errors
    /// As `call`.
    ///
    /// # Panics
    /// As `call`.
    ///
    /// # Cancel safety
    /// As `call`.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use voussoir_breaker::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let retry = Arc::new(Retry::new(RetryConfig::default())?);
    /// let policy = Policy::builder().classify(Arc::new(Idempotent)).retry(retry).build()?;
    /// let mut order = CallOptions::default();
    /// order.once = true;
    /// let error = policy.call_with(order, |_| async { Err::<(), _>("lost") }).await;
    /// assert_eq!(error.map_err(|error| error.attempts), Err(1));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn call_with<F, Fut>(&self, options: CallOptions, op: F) -> Result<T, PolicyError<E>>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        let sent = Sent::default();
        let CallOptions { deadline, priority, once } = options;
        let attempt = Attempt { number: 1, hedge: 0, deadline, priority };
        let bounds = Bounds { caller: deadline, ..Bounds::default() };
        let call = Call { attempt, once, bounds, sent: &sent, op: &op };
        let answer = match deadline {
            None => self.run(0, call).await,
            Some(deadline) => {
                self.bounded(deadline, 0, call).await.unwrap_or_else(|left| {
                    // The deadline was the caller's, not a limit of the policy.
                    Err(NoAnswer::CutByDeadline(left))
                })
            }
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
            let mut guards = Guards::new(call.bounds, call.sent);
            let (answer, end) = match self.admit(at, call.attempt.priority, &mut guards).await {
                Ok(at) => {
                    let mut call = pin!(self.dispatch(at, call));
                    let answer = poll_fn(|cx| guards.poll(call.as_mut(), cx)).await;
                    let end = guards.classified(|| self.end(&answer));
                    (answer, end)
                }
                Err(refused) => (Err(refused), End::Refused),
            };
            guards.settle(end);
            answer
        })
    }

    /// Passes the stages that only admit; returns the first of another kind.
    async fn admit<'a>(
        &'a self,
        mut at: usize,
        priority: Priority,
        guards: &mut Guards<'a>,
    ) -> Result<usize, NoAnswer> {
        // Ends: each round passes one stage.
        loop {
            match self.stages.get(at) {
                Some(Stage::Shed(shedder)) => {
                    shedder.check(priority).map_err(NoAnswer::Gate)?;
                }
                Some(Stage::Breaker(breaker)) => {
                    let permit = breaker.try_acquire().map_err(NoAnswer::Rejected)?;
                    guards.push(Guard::Breaker(permit));
                }
                Some(Stage::Bulkhead(bulkhead)) => {
                    let permit = bulkhead.acquire().await.map_err(NoAnswer::Gate)?;
                    guards.push(Guard::Bulkhead { _permit: permit });
                }
                Some(Stage::Adaptive(limit)) => {
                    let permit = limit.acquire().await.map_err(NoAnswer::Gate)?;
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
            Some(Stage::Timeout(timeout)) => self.limit(timeout.limit(), at + 1, call).await,
            Some(Stage::Retry(retry)) => {
                let attempt = |number| inner(Attempt { number, ..call.attempt });
                let advice = |answer: &Answer<T, E>| match answer {
                    _ if call.once => RetryAdvice::Stop,
                    Ok(own) => self.classify.advice(own),
                    Err(NoAnswer::TimedOut(_)) => self.classify.timeout_advice(),
                    Err(_) => RetryAdvice::Stop,
                };
                retry.run(call.attempt.deadline, attempt, advice).await.answer
            }
            Some(Stage::Hedge(hedge)) => {
                let won = OnceLock::new();
                let won = &won;
                let attempt = |hedge| async move {
                    let begun = AtomicU32::new(0);
                    let bounds = Bounds { race: Some(won), begun: Some(&begun), ..call.bounds };
                    let attempt = Attempt { hedge, ..call.attempt };
                    self.run(at + 1, Call { attempt, bounds, ..call }).await
                };
                let judge = |answer: &Answer<T, E>, start| {
                    let standing = self.standing(answer);
                    if standing == Standing::Ends {
                        won.get_or_init(|| start);
                    }
                    standing
                };
                let may_hedge = !call.once && self.classify.is_idempotent();
                hedge.race(may_hedge, attempt, judge).await
            }
            _ => self.send(call).await,
        }
    }

    /// The stages from `at` inwards, for no longer than a limit of the policy's own. A deadline
    /// that is earlier is left to whoever set it: it was not this limit that passed.
    async fn limit<'a, F, Fut>(
        &'a self,
        limit: Duration,
        at: usize,
        call: Call<'a, F>,
    ) -> Answer<T, E>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        let end = Deadline::after(limit);
        if call.attempt.deadline.is_some_and(|deadline| deadline <= end) {
            return self.run(at, call).await;
        }
        // Earlier than all limits around it, or one of them would be the deadline.
        let bounds = Bounds { own: Some(end.instant()), ..call.bounds };
        let answer = self.bounded(end, at, Call { bounds, ..call }).await;
        answer.unwrap_or(Err(NoAnswer::TimedOut(limit)))
    }

    /// The stages from `at` inwards, not past a deadline. `Err` is the time that was left at first.
    async fn bounded<'a, F, Fut>(
        &'a self,
        deadline: Deadline,
        at: usize,
        call: Call<'a, F>,
    ) -> Result<Answer<T, E>, Duration>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        let left = deadline.remaining();
        if left.is_zero() {
            return Ok(Err(NoAnswer::DeadlinePassed));
        }
        let attempt = Attempt { deadline: Some(deadline), ..call.attempt };
        let rest = self.run(at, Call { attempt, ..call });
        tokio::time::timeout_at(deadline.instant(), rest).await.map_err(|_| left)
    }

    async fn send<F, Fut>(&self, call: Call<'_, F>) -> Answer<T, E>
    where
        F: Fn(Attempt) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        call.sent.begin(&self.budgets);
        if let Some(begun) = call.bounds.begun {
            begun.fetch_add(1, AcqRel);
        }
        let answer = (call.op)(call.attempt).await;
        if let Err(error) = &answer
            && self.classify.outcome(error) == Outcome::NotApplied
        {
            call.sent.harmless.fetch_add(1, AcqRel);
        }
        Ok(answer)
    }

    /// How an answer completes the permits.
    fn end(&self, answer: &Answer<T, E>) -> End {
        match answer {
            Ok(own) => End::Answered {
                verdict: self.classify.verdict(own),
                is_overload: self.classify.is_overload(own),
            },
            Err(NoAnswer::TimedOut(_)) => End::TimedOut,
            Err(NoAnswer::CutByDeadline(_)) => End::CutByDeadline,
            Err(NoAnswer::Rejected(_) | NoAnswer::Gate(_) | NoAnswer::DeadlinePassed) => {
                End::Refused
            }
        }
    }

    /// Rank of an answer in a race.
    fn standing(&self, answer: &Answer<T, E>) -> Standing {
        match answer {
            Ok(own) => Standing::of(self.classify.verdict(own)),
            Err(NoAnswer::TimedOut(_) | NoAnswer::CutByDeadline(_)) => Standing::TimedOut,
            Err(NoAnswer::Rejected(_) | NoAnswer::Gate(_) | NoAnswer::DeadlinePassed) => {
                Standing::Refused
            }
        }
    }
}
