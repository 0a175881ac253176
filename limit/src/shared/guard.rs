//! Calls to the store by both shared limiters: time limit, rest after an outage, and the decision
//! that is made while the store is away.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::counter::{Counter, StoreError, Take, Taken};
use crate::clock::Clock;
use crate::core::{NEVER, Standing};
use crate::error::{ConfigError, Rejected};
use crate::quota::{Quota, nanos};

/// Decision of a shared limiter while its store gives no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnOutage {
    /// Fail closed: [`SharedError::Store`]. The limit holds, nothing passes.
    #[default]
    Reject,
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
    /// How long a server is left alone after it could not be reached or did not answer in time, so
    /// that an outage costs one time limit and not one for each request. Errors about one key do
    /// not count. Default 500 ms.
    pub rest: Duration,
}

impl Default for OutageConfig {
    fn default() -> Self {
        let (timeout, rest) = (Duration::from_millis(100), Duration::from_millis(500));
        Self { on_outage: OnOutage::Reject, timeout, rest }
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
    /// No store: it is away, and the limiter fails open.
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
    Rejected(#[from] Rejected),
    /// The store gave no answer, and the limiter fails closed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SharedError {
    /// Whether the same request may pass later.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Rejected(rejected) => rejected.is_retryable(),
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
    rests: Rests,
    /// When the last failure was logged as a warning, ns of the clock; 0: never.
    warned_at: AtomicU64,
}

/// Failures are logged as warnings at most once in this time; the others at level debug.
const WARN_EVERY_NS: u64 = 1_000_000_000;

impl Guard {
    pub(super) fn new(
        counter: Arc<dyn Counter>,
        quota: Quota,
        outage: OutageConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        let limit = quota.rules()?.limit;
        counter.accepts(&quota)?;
        if outage.timeout.is_zero() {
            return Err(ConfigError::new("outage.timeout", "must be above 0"));
        }
        let (rests, warned_at) = (Rests::default(), AtomicU64::new(0));
        Ok(Self { counter, quota, limit, outage, clock, rests, warned_at })
    }

    /// When a question asked at `now` has been answered at the latest.
    pub(super) fn answers_by(&self, now: u64) -> u64 {
        now.saturating_add(nanos(self.outage.timeout))
    }

    /// Asks for `least` to `most` units.
    pub(super) async fn take(&self, key: &str, least: u64, most: u64) -> Result<Taken, StoreError> {
        // From before the question: an outage is that of the server that was asked, also if another
        // one has taken over meanwhile.
        let (server, now) = (self.counter.server_of(key), self.clock.now());
        if self.rests.any(now) && self.rests.has(server, now) {
            return Err(StoreError::Resting);
        }
        let takes = [Take { key, quota: self.quota, least, most }];
        let answer =
            match tokio::time::timeout(self.outage.timeout, self.counter.take(&takes)).await {
                Ok(mut answers) => match (answers.pop(), answers.pop()) {
                    (Some(answer), None) => answer.and_then(|taken| checked(taken, least, most)),
                    _ => Err(StoreError::Invalid("not one answer to one question".into())),
                },
                Err(_) => Err(StoreError::NoAnswer(format!("within {:?}", self.outage.timeout))),
            };
        if let Err(error) = &answer {
            self.failed(server, key, error);
        }
        answer
    }

    fn failed(&self, server: u64, key: &str, error: &StoreError) {
        let now = self.clock.now();
        if error.is_outage() {
            let until = now.saturating_add(nanos(self.outage.rest));
            self.rests.begin(server, now, until);
        }
        let warned_at = self.warned_at.load(Ordering::Relaxed);
        if warned_at == 0 || now >= warned_at.saturating_add(WARN_EVERY_NS) {
            self.warned_at.store(now.max(1), Ordering::Relaxed);
            tracing::warn!(target: "voussoir::limit", %error, key, "no answer from the store");
        } else {
            tracing::debug!(target: "voussoir::limit", %error, key, "no answer from the store");
        }
    }

    /// The answer of one who could not ask.
    pub(super) fn without_store(&self, error: StoreError) -> Result<Pass, SharedError> {
        match self.outage.on_outage {
            OnOutage::Reject => Err(error.into()),
            OnOutage::Admit => Ok(Pass { source: Source::Outage, remaining: 0 }),
        }
    }

    /// The rejection that the store's answer means.
    pub(super) fn rejection(&self, taken: &Taken) -> Rejected {
        let reset = nanos(taken.reset_after);
        let standing = Standing::new(self.limit, taken.remaining, 1, reset);
        let wait = taken.retry_after.map_or(NEVER, |wait| nanos(wait).clamp(1, NEVER - 1));
        Rejected::new(standing, wait)
    }
}

/// The most servers that are left alone at once; others are asked.
const MAX_RESTS: usize = 1 << 14;

/// The servers that are left alone after an outage.
#[derive(Debug, Default)]
struct Rests {
    /// Until when, by the number of the server.
    until: Mutex<HashMap<u64, u64>>,
    /// The latest of the times in `until`, or later.
    latest: AtomicU64,
}

impl Rests {
    /// Whether any server may be left alone.
    fn any(&self, now: u64) -> bool {
        now < self.latest.load(Ordering::Acquire)
    }

    fn has(&self, server: u64, now: u64) -> bool {
        self.until.lock().get(&server).is_some_and(|until| now < *until)
    }

    fn begin(&self, server: u64, now: u64, until: u64) {
        let mut rests = self.until.lock();
        if rests.len() >= MAX_RESTS {
            rests.retain(|_, until| now < *until);
        }
        if rests.len() < MAX_RESTS {
            rests.insert(server, until);
            self.latest.fetch_max(until, Ordering::Release);
        }
    }
}

/// A store that grants what was not asked for is not believed.
fn checked(taken: Taken, least: u64, most: u64) -> Result<Taken, StoreError> {
    if taken.granted == 0 || (least..=most).contains(&taken.granted) {
        return Ok(taken);
    }
    Err(StoreError::Invalid(format!("{} units for {least} to {most}", taken.granted)))
}
