//! What both shared limiters do around their store: time limit, rest after a failure, and the
//! choice of what to do without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::counter::{Counter, StoreError, Take, Taken};
use crate::clock::Clock;
use crate::core::{NEVER, Standing};
use crate::error::{ConfigError, Denied};
use crate::quota::{Quota, nanos};

/// What a shared limiter does while its store gives no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnOutage {
    /// Fail closed: [`SharedError::Store`]. The limit holds, nothing passes.
    #[default]
    Deny,
    /// Fail open: everything passes, marked [`Source::Outage`]. The limit does not hold.
    Admit,
}

/// How a shared limiter treats its store.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OutageConfig {
    /// Fail open or closed. Default: closed.
    pub on_outage: OnOutage,
    /// How long an answer may take. Default 100 ms.
    pub timeout: Duration,
    /// How long the store is left alone after it failed, so that an outage costs one time limit
    /// and not one for each request. Default 500 ms.
    pub rest: Duration,
}

impl Default for OutageConfig {
    fn default() -> Self {
        let (timeout, rest) = (Duration::from_millis(100), Duration::from_millis(500));
        Self { on_outage: OnOutage::Deny, timeout, rest }
    }
}

/// Who let a request pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The store, for this request.
    Store,
    /// A share that the store granted before.
    Lease,
    /// Nobody: the store is away, and the limiter fails open.
    Outage,
}

/// A request passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pass {
    /// Who let it.
    pub source: Source,
    /// Units left: at the store as of its last answer, or in the local share.
    pub remaining: u64,
}

/// Why a request does not pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SharedError {
    /// The limit is reached: nothing was taken.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The store gave no answer, and the limiter fails closed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SharedError {
    /// Whether the same request may pass later.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Denied(denied) => denied.is_retryable(),
            Self::Store(error) => error.is_retryable(),
        }
    }
}

/// The store with the rules around it.
#[derive(Debug)]
pub(super) struct Guard {
    counter: Arc<dyn Counter>,
    quota: Quota,
    limit: u64,
    outage: OutageConfig,
    pub(super) clock: Arc<dyn Clock>,
    rests_until: AtomicU64,
}

impl Guard {
    pub(super) fn new(
        counter: Arc<dyn Counter>,
        quota: Quota,
        outage: OutageConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        let limit = quota.rules()?.limit;
        if !counter.offers(quota.algorithm) {
            return Err(ConfigError::NotOffered);
        }
        if outage.timeout.is_zero() {
            return Err(ConfigError::Limit("timeout"));
        }
        let rests_until = AtomicU64::new(0);
        Ok(Self { counter, quota, limit, outage, clock, rests_until })
    }

    /// Asks for `least` to `most` units.
    pub(super) async fn take(&self, key: &str, least: u64, most: u64) -> Result<Taken, StoreError> {
        if self.clock.now() < self.rests_until.load(Ordering::Relaxed) {
            return Err(StoreError::Resting);
        }
        let takes = [Take { key, quota: self.quota, least, most }];
        let answer =
            match tokio::time::timeout(self.outage.timeout, self.counter.take(&takes)).await {
                Ok(answer) => answer.and_then(|taken| checked(&taken, least, most)),
                Err(_) => Err(StoreError::NoAnswer(format!("within {:?}", self.outage.timeout))),
            };
        if let Err(error) = &answer {
            tracing::warn!(target: "voussoir::limit", %error, key, "no answer from the store");
            let until = self.clock.now().saturating_add(nanos(self.outage.rest));
            self.rests_until.store(until, Ordering::Relaxed);
        }
        answer
    }

    /// The answer of one who could not ask.
    pub(super) fn without_store(&self, error: StoreError) -> Result<Pass, SharedError> {
        match self.outage.on_outage {
            OnOutage::Deny => Err(error.into()),
            OnOutage::Admit => Ok(Pass { source: Source::Outage, remaining: 0 }),
        }
    }

    /// The denial that the store's answer means.
    pub(super) fn denial(&self, taken: &Taken) -> Denied {
        let reset = nanos(taken.reset_after);
        let standing = Standing::new(self.limit, taken.remaining, 1, reset);
        let wait = taken.retry_after.map_or(NEVER, |wait| nanos(wait).clamp(1, NEVER - 1));
        Denied::new(standing, wait)
    }
}

/// A store that grants what was not asked for is not believed.
fn checked(answers: &[Taken], least: u64, most: u64) -> Result<Taken, StoreError> {
    match answers {
        [taken] if taken.granted == 0 || (least..=most).contains(&taken.granted) => Ok(*taken),
        _ => Err(StoreError::Refused("the answer does not fit the question".into())),
    }
}
