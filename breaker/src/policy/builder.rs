//! Putting a policy together.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use super::{ByResult, Classify, Policy, PolicyErrorKind};
use crate::adaptive::AdaptiveLimit;
use crate::breaker::Breaker;
use crate::bulkhead::Bulkhead;
use crate::error::ConfigError;
use crate::hedge::Hedge;
use crate::retry::{Retry, RetryBudget};
use crate::shed::Shedder;
use crate::timeout::Timeout;

/// Stages of a policy, at most.
const MAX_STAGES: usize = 32;

pub(super) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type FallbackFn<T, E> =
    dyn Fn(PolicyErrorKind<E>) -> BoxFuture<'static, Result<T, PolicyErrorKind<E>>> + Send + Sync;

pub(super) enum Stage<T, E> {
    Fallback(Box<FallbackFn<T, E>>),
    Timeout(Timeout),
    Shed(Arc<Shedder>),
    Retry(Arc<Retry>),
    Hedge(Arc<Hedge>),
    Breaker(Arc<Breaker>),
    Bulkhead(Bulkhead),
    Adaptive(AdaptiveLimit),
}

impl<T, E> fmt::Display for Stage<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fallback(_) => f.write_str("fallback"),
            Self::Timeout(timeout) => write!(f, "timeout {:?}", timeout.limit()),
            Self::Shed(_) => f.write_str("shed"),
            Self::Retry(_) => f.write_str("retry"),
            Self::Hedge(_) => f.write_str("hedge"),
            Self::Breaker(breaker) => write!(f, "breaker {:?}", breaker.name()),
            Self::Bulkhead(_) => f.write_str("bulkhead"),
            Self::Adaptive(_) => f.write_str("adaptive limit"),
        }
    }
}

/// Builds a [`Policy`] from the outside in: each method adds a stage inside all those before it.
#[must_use = "a builder does nothing until it is built"]
pub struct PolicyBuilder<T, E> {
    stages: Vec<Stage<T, E>>,
    classify: Option<Arc<dyn Classify<T, E>>>,
}

impl<T, E> fmt::Debug for PolicyBuilder<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyBuilder").field("stages", &self.stages.len()).finish_non_exhaustive()
    }
}

impl<T: Send + 'static, E: Send + 'static> PolicyBuilder<T, E> {
    pub(super) fn new() -> Self {
        Self { stages: Vec::new(), classify: None }
    }

    /// The classifier of all stages: which answers are failures, and which requests may be sent
    /// twice. Default: [`ByResult`]. Required for a policy with a retry or a hedge.
    pub fn classify(mut self, classify: Arc<dyn Classify<T, E>>) -> Self {
        self.classify = Some(classify);
        self
    }

    fn stage(mut self, stage: Stage<T, E>) -> Self {
        self.stages.push(stage);
        self
    }

    /// Answers in place of what is inside if that fails: with a value, with another call's, or
    /// with the error itself or another.
    pub fn fallback<F, Fut>(self, f: F) -> Self
    where
        F: Fn(PolicyErrorKind<E>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, PolicyErrorKind<E>>> + Send + 'static,
    {
        self.stage(Stage::Fallback(Box::new(move |error| Box::pin(f(error)))))
    }

    /// Bounds the time of all that is inside, and hands the deadline down: retries inside do not
    /// wait past it, and each attempt sees it.
    pub fn timeout(self, timeout: Timeout) -> Self {
        self.stage(Stage::Timeout(timeout))
    }

    /// Turns the less important calls away when the load is high.
    pub fn shed(self, shedder: Arc<Shedder>) -> Self {
        self.stage(Stage::Shed(shedder))
    }

    /// Repeats what is inside, where the classifier advises it. What was refused by a stage inside
    /// is not repeated: failing fast is what that stage is for.
    pub fn retry(self, retry: Arc<Retry>) -> Self {
        self.stage(Stage::Retry(retry))
    }

    /// Doubles what is inside when it is slow. The first answer that is no failure ends the race.
    pub fn hedge(self, hedge: Arc<Hedge>) -> Self {
        self.stage(Stage::Hedge(hedge))
    }

    /// Stops calling what does not answer.
    pub fn breaker(self, breaker: Arc<Breaker>) -> Self {
        self.stage(Stage::Breaker(breaker))
    }

    /// Bounds the calls inside that run at once.
    pub fn bulkhead(self, bulkhead: Bulkhead) -> Self {
        self.stage(Stage::Bulkhead(bulkhead))
    }

    /// The same with a bound that finds itself.
    pub fn adaptive(self, limit: AdaptiveLimit) -> Self {
        self.stage(Stage::Adaptive(limit))
    }

    /// The policy.
    ///
    /// # Errors
    /// More than 32 stages; a retry or hedge inside another of its kind, which would multiply the
    /// attempts; a retry or a hedge without a [`classify`](Self::classify), or a hedge with one
    /// that says that calls are not idempotent: nothing is sent twice without the user's word.
    pub fn build(self) -> Result<Policy<T, E>, ConfigError> {
        if self.stages.len() > MAX_STAGES {
            return Err(ConfigError::new("stages", "must be at most 32"));
        }
        let (mut retries, mut hedges) = (0, 0);
        let mut budgets: Vec<Arc<RetryBudget>> = Vec::new();
        for stage in &self.stages {
            let budget = match stage {
                Stage::Retry(retry) => {
                    retries += 1;
                    retry.budget()
                }
                Stage::Hedge(hedge) => {
                    hedges += 1;
                    hedge.budget()
                }
                _ => None,
            };
            if let Some(budget) = budget
                && !budgets.iter().any(|known| Arc::ptr_eq(known, budget))
            {
                budgets.push(Arc::clone(budget));
            }
        }
        if retries > 1 || hedges > 1 {
            return Err(ConfigError::new(
                "stages",
                "must not hold a retry or hedge inside another: their attempts multiply",
            ));
        }
        if retries + hedges > 0 && self.classify.is_none() {
            return Err(ConfigError::new(
                "classify",
                "must say what may be sent twice where a retry or hedge sends a call again: \
                 `Idempotent` or a classifier of your own",
            ));
        }
        let classify = self.classify.unwrap_or_else(|| Arc::new(ByResult));
        if hedges > 0 && !classify.is_idempotent() {
            return Err(ConfigError::new(
                "classify",
                "must say that calls are idempotent where a hedge sends them twice",
            ));
        }
        Ok(Policy { stages: self.stages, classify, budgets })
    }
}
