//! A limit of which each process spends a share that it took in advance.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::counter::{Counter, StoreError, Taken};
use super::guard::{Guard, OutageConfig, Pass, SharedError, Source};
use crate::clock::{Clock, Monotonic};
use crate::core::Kind;
use crate::error::ConfigError;
use crate::quota::{Quota, nanos};

/// How a leased limiter is built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeasedConfig {
    /// The most units taken from the store at once. At least 1; default 100. The first share of a
    /// key is one unit; each that is spent in time doubles the next one, and one that was not spent
    /// cuts it to what was. Never more than a quarter of the quota's burst or window, which other
    /// processes share.
    pub lease: u64,
    /// How long a share may be spent; what is left then is lost. Default 1 s.
    pub lease_for: Duration,
    /// The most keys with a share here. Others are decided by the store. Default 100,000.
    pub max_keys: usize,
    /// How the store is treated.
    pub outage: OutageConfig,
}

impl Default for LeasedConfig {
    fn default() -> Self {
        Self {
            lease: 100,
            lease_for: Duration::from_secs(1),
            max_keys: 100_000,
            outage: OutageConfig::default(),
        }
    }
}

/// Counters of a leased limiter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeasedStats {
    /// Keys with a share.
    pub keys: usize,
    /// Questions to the store.
    pub asked: u64,
    /// Units granted by the store.
    pub granted: u64,
    /// Units of shares that ran out of time.
    pub lost: u64,
}

/// A limiter that takes units from the store in shares and spends them without asking.
///
/// Everything spent was granted by the store before, so over all time nothing is exceeded; a share
/// granted before a window may be spent in it. [`Self::most_in`] states the bound.
#[derive(Debug)]
pub struct Leased {
    guard: Guard,
    quota: Quota,
    /// The most units of a share: the configured number, or a quarter of the quota's limit.
    lease: u64,
    lease_for: u64,
    /// How long a rejection holds at least: until half a lease has flowed back, so that a limit
    /// that is reached is not fetched unit by unit, but no longer than a lease. What flows back
    /// meanwhile fits into the burst.
    pause: u64,
    max_keys: usize,
    shares: Mutex<Shares>,
    asked: AtomicU64,
    granted: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Shares {
    by_key: HashMap<Box<str>, Arc<Share>>,
    /// Keys turned away since the last sweep: a sweep is paid for by as many.
    refused: usize,
}

#[derive(Debug, Default)]
struct Share {
    state: Mutex<State>,
    /// Held by the one who asks the store for this key.
    asking: tokio::sync::Mutex<()>,
    /// Questions for this key that failed. Changed by the holder of `asking`.
    failures: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    units: u64,
    until: u64,
    /// Units that the share began with, and what the next one asks for. Of a new key: 0.
    begun_with: u64,
    next: u64,
    /// The store's last rejection, and until when a request of that cost need not ask again.
    rejected: Option<(Taken, u64, u64)>,
}

impl Leased {
    /// A limiter over a store.
    ///
    /// # Errors
    /// [`ConfigError`] if the quota or a limit is out of range, or the store does not offer the
    /// algorithm.
    pub fn new(
        counter: Arc<dyn Counter>,
        quota: Quota,
        config: LeasedConfig,
    ) -> Result<Self, ConfigError> {
        Self::with_clock(counter, quota, config, Arc::new(Monotonic))
    }

    /// The same over a clock of the caller's.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_clock(
        counter: Arc<dyn Counter>,
        quota: Quota,
        config: LeasedConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        for (value, name) in [(config.lease, "lease"), (config.max_keys as u64, "max_keys")] {
            if value == 0 {
                return Err(ConfigError::new(name, "must be at least 1"));
            }
        }
        if config.lease_for.is_zero() {
            return Err(ConfigError::new("lease_for", "must be above 0"));
        }
        let guard = Guard::new(counter, quota, config.outage, clock)?;
        let rules = quota.rules()?;
        let lease = config.lease.min((rules.limit / 4).max(1));
        let pause = match rules.kind {
            Kind::Gcra => rules.interval.saturating_mul(lease / 2).min(nanos(config.lease_for)),
            _ => 0,
        };
        Ok(Self {
            guard,
            pause,
            quota,
            lease,
            lease_for: nanos(config.lease_for),
            max_keys: config.max_keys,
            shares: Mutex::default(),
            asked: AtomicU64::new(0),
            granted: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        })
    }

    /// The most units of a key that `nodes` processes can spend together in any window of this
    /// length: what the store grants within it, and what was in their hands when it began, which
    /// is at most a lease each and was granted at most `lease_for` earlier.
    pub fn most_in(&self, window: Duration, nodes: u64) -> u64 {
        let held = nodes.saturating_mul(self.lease);
        let by_share = self.quota.most_in(window).saturating_add(held);
        let by_time = window.saturating_add(Duration::from_nanos(self.lease_for));
        by_share.min(self.quota.most_in(by_time))
    }

    /// Takes `cost` units of the key, at least 1, or none: from the share if it has as many, else
    /// what it has and the rest with the next share from the store. One caller at a time asks for a
    /// key; the store's rejection holds for all until its time is over.
    ///
    /// # Errors
    /// [`SharedError::Rejected`] if there are not as many; [`SharedError::Store`] if the share is
    /// spent, the store gives no answer, and the limiter fails closed.
    ///
    /// # Cancel safety
    /// A caller that gives up while the store is asked may lose a share. Never are more admitted
    /// for it.
    pub async fn check(&self, key: &str, cost: u64) -> Result<Pass, SharedError> {
        let cost = cost.max(1);
        let Some(share) = self.share(key) else { return self.ask_directly(key, cost).await };
        if let Some(answer) = self.spend(&share, cost) {
            return answer;
        }
        let failures = share.failures.load(Ordering::Acquire);
        let _one = share.asking.lock().await;
        if let Some(answer) = self.spend(&share, cost) {
            return answer;
        }
        if share.failures.load(Ordering::Acquire) != failures {
            // The question that this caller waited for failed: one question for all of them.
            return self.guard.without_store(StoreError::Resting);
        }
        // From before the question: the store grants later than this.
        let asked_at = self.guard.clock.now();
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (wanted, held) = {
            let mut state = share.state.lock();
            (state.grown(asked_at, self.lease), self.hold(&share, &mut state, asked_at))
        };
        let least = cost.saturating_sub(held.units).max(1);
        let most = wanted.saturating_sub(held.units).max(least);
        let taken = match self.guard.take(key, least, most).await {
            Ok(taken) => taken,
            Err(error) => {
                share.failures.fetch_add(1, Ordering::Release);
                return self.guard.without_store(error);
            }
        };
        self.granted.fetch_add(taken.granted, Ordering::Relaxed);
        // Read before the lock is taken: the clock is foreign code.
        let now = self.guard.clock.now();
        if taken.granted == 0 {
            drop(held);
            let mut state = share.state.lock();
            let wait = taken.retry_after.map(|wait| nanos(wait).max(self.pause));
            let taken = Taken { retry_after: wait.map(Duration::from_nanos), ..taken };
            if let Some(wait) = wait {
                state.rejected = Some((taken, cost, now.saturating_add(wait)));
            }
            return Err(self.guard.rejection(&taken).into());
        }
        let units = held.spend();
        let mut state = share.state.lock();
        self.lost.fetch_add(state.units, Ordering::Relaxed);
        state.units = units + taken.granted - cost;
        state.begun_with = state.units;
        state.until = asked_at.saturating_add(self.lease_for);
        state.rejected = None;
        Ok(Pass { source: Source::Store, remaining: state.units })
    }

    /// Takes what is left of the share out of it, to be spent by a request that costs more. Nothing
    /// if its time may be over before the store has answered.
    fn hold<'a>(&self, share: &'a Share, state: &mut State, now: u64) -> Held<'a> {
        let is_in_time = self.guard.answers_by(now) <= state.until;
        let units = if is_in_time { std::mem::take(&mut state.units) } else { 0 };
        Held { share, units }
    }

    async fn ask_directly(&self, key: &str, cost: u64) -> Result<Pass, SharedError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.guard.take(key, cost, cost).await {
            Ok(taken) if taken.granted == 0 => Err(self.guard.rejection(&taken).into()),
            Ok(taken) => {
                self.granted.fetch_add(taken.granted, Ordering::Relaxed);
                Ok(Pass { source: Source::Store, remaining: taken.remaining })
            }
            Err(error) => self.guard.without_store(error),
        }
    }

    /// Decides from what is here, if that is possible.
    fn spend(&self, share: &Share, cost: u64) -> Option<Result<Pass, SharedError>> {
        let now = self.guard.clock.now();
        let mut state = share.state.lock();
        if now >= state.until && state.units > 0 {
            self.lost.fetch_add(state.units, Ordering::Relaxed);
            // With the unit of the one who asked.
            state.next = state.begun_with - state.units + 1;
            state.units = 0;
        }
        if state.units >= cost {
            state.units -= cost;
            return Some(Ok(Pass { source: Source::Lease, remaining: state.units }));
        }
        match &state.rejected {
            Some((taken, rejected_cost, until)) if cost >= *rejected_cost && now < *until => {
                let left = Duration::from_nanos(until - now);
                let taken = Taken { retry_after: Some(left), ..*taken };
                Some(Err(self.guard.rejection(&taken).into()))
            }
            _ => None,
        }
    }

    fn share(&self, key: &str) -> Option<Arc<Share>> {
        // Read before the lock is taken: the clock is foreign code.
        let now = self.guard.clock.now();
        let mut shares = self.shares.lock();
        if let Some(share) = shares.by_key.get(key) {
            return Some(Arc::clone(share));
        }
        if shares.by_key.len() >= self.max_keys {
            shares.refused += 1;
            if shares.refused <= self.max_keys / 8 {
                return None;
            }
            shares.refused = 0;
            shares.by_key.retain(|_, share| Arc::strong_count(share) > 1 || share.is_live(now));
            if shares.by_key.len() >= self.max_keys {
                return None;
            }
        }
        let share = Arc::<Share>::default();
        shares.by_key.insert(key.into(), Arc::clone(&share));
        Some(share)
    }

    /// Counters.
    pub fn stats(&self) -> LeasedStats {
        LeasedStats {
            keys: self.shares.lock().by_key.len(),
            asked: self.asked.load(Ordering::Relaxed),
            granted: self.granted.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
        }
    }
}

/// Units of a share that wait for the store to grant the rest of a request. They go back to the
/// share when this is dropped.
struct Held<'a> {
    share: &'a Share,
    units: u64,
}

impl Held<'_> {
    fn spend(mut self) -> u64 {
        std::mem::take(&mut self.units)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.units > 0 {
            self.share.state.lock().units += self.units;
        }
    }
}

impl State {
    /// How many units to ask for now: twice as many as before if those were spent in time.
    fn grown(&mut self, now: u64, max: u64) -> u64 {
        if now < self.until {
            self.next = self.next.saturating_mul(2);
        }
        self.next = self.next.clamp(1, max);
        self.next
    }
}

impl Share {
    /// Whether forgetting it would lose units or a rejection.
    fn is_live(&self, now: u64) -> bool {
        let state = self.state.lock();
        let rejected = state.rejected.is_some_and(|(_, _, until)| now < until);
        rejected || (state.units > 0 && now < state.until)
    }
}
