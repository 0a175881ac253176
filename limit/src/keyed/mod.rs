//! A limiter for each of many keys, in bounded memory.

mod cells;
#[cfg(test)]
mod tests;
mod wait;
mod words;

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::quality::RandomState;
use parking_lot::{Mutex, RwLock};

use crate::clock::{Clock, Monotonic};
use crate::core::{Rules, Standing, Verdict};
use crate::error::{ConfigError, Rejected, WaitError};
use crate::limiter::{Admitted, answer};
use crate::quota::{Quota, changed, least_limit, rules_of};
use cells::Cells;
use wait::Waiters;
use words::Words;

/// Decision about a new key while `max_keys` keys are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// All such keys of a shard (one in 64) share one quota between them: never more than the
    /// quota for any of them, and some service for each.
    #[default]
    Share,
    /// They are rejected, to be retried after one period of the first quota.
    Reject,
    /// They pass without being counted.
    Admit,
}

impl WhenFull {
    fn decide(self, first: &Rules, now: u64, share: impl FnOnce() -> Verdict) -> Verdict {
        let nothing = |reset| Standing::new(first.limit, 0, 1, reset);
        match self {
            Self::Share => share(),
            Self::Reject => Verdict { standing: nothing(first.per), wait: first.per, at: now },
            Self::Admit => Verdict { standing: nothing(0), wait: 0, at: now },
        }
    }
}

/// How a keyed limiter is built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeyedConfig {
    /// Room for so many keys that are not as good as new. 1 to 2³²; default 100,000.
    ///
    /// With one quota of one word the table has 32 bytes for each: its addresses are reserved at
    /// once ([`ConfigError`] if the system refuses them), it takes memory as it fills,
    /// and some more keys than this may find a place. With windows that slide
    /// and with several quotas this is the most keys remembered, in tables that grow and shrink.
    pub max_keys: usize,
    /// Decision about new keys above `max_keys`. Default: [`WhenFull::Share`].
    pub when_full: WhenFull,
    /// How many callers may wait in [`Keyed::until_ready`], for all keys together. At least 1;
    /// default 1024.
    pub max_waiters: usize,
}

impl Default for KeyedConfig {
    fn default() -> Self {
        Self { max_keys: 100_000, when_full: WhenFull::Share, max_waiters: 1024 }
    }
}

/// Counters of a keyed limiter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyedStats {
    /// Keys remembered, some of them as good as new.
    pub keys: usize,
    /// Keys forgotten because they were as good as new.
    pub reclaimed: u64,
    /// Requests of keys that found no room.
    pub overflowed: u64,
    /// Bytes reserved for the tables. Without what keys and logs hold on the heap.
    pub table_bytes: usize,
}

/// A limiter for each key.
///
/// A key is forgotten only when its quota is as good as new, so that being forgotten changes
/// nothing: no stream of other keys resets a key that is in debt.
///
/// With one quota by rate or by fixed window a check takes no lock and touches one cache line: the
/// table holds no keys but their hashes of 64 bits under a seed drawn at random, and two keys of
/// one hash would share a quota. Of a million keys any two do with a chance of 3 in 10⁸. With
/// windows that slide and with several quotas the tables hold the keys, behind locks.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use voussoir_limit::{Keyed, Quota};
///
/// let limiter: Keyed<String> = Keyed::new(Quota::gcra(1, Duration::from_secs(1)))?;
/// assert!(limiter.check("alice").is_ok());
/// assert!(limiter.check("alice").is_err());
/// assert!(limiter.check("bob").is_ok());
/// # Ok::<(), voussoir_limit::ConfigError>(())
/// ```
pub struct Keyed<K, S = RandomState> {
    table: Table<K>,
    hasher: S,
    clock: Arc<dyn Clock>,
    /// Held while a change of quotas is applied to all shards, so that changes do not interleave.
    change: Mutex<()>,
    /// Quotas as given by the caller, with their names. Written only while `change` is held.
    quotas: RwLock<Arc<[Quota]>>,
    waiters: Waiters,
}

enum Table<K> {
    Words(Words),
    Cells(Cells<K>),
}

/// Figures of a table.
#[derive(Default)]
struct Totals {
    keys: usize,
    reclaimed: u64,
    overflowed: u64,
}

impl<K: Hash + Eq> Keyed<K> {
    /// A limiter of one quota for each key.
    ///
    /// # Errors
    /// [`ConfigError`] if the quota is out of range.
    pub fn new(quota: Quota) -> Result<Self, ConfigError> {
        Self::with_config(&[quota], KeyedConfig::default())
    }

    /// A limiter of several quotas for each key, with limits of your choice.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota or a limit is out of range.
    pub fn with_config(quotas: &[Quota], config: KeyedConfig) -> Result<Self, ConfigError> {
        Self::with_clock(quotas, config, Arc::new(Monotonic))
    }

    /// The same over a clock of the caller's.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota or a limit is out of range.
    pub fn with_clock(
        quotas: &[Quota],
        config: KeyedConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        Self::with_hasher(quotas, config, clock, RandomState::default())
    }
}

impl<K: Hash + Eq, S: BuildHasher> Keyed<K, S> {
    /// A limiter with a clock and a hasher of your choice. All 64 bits of its hashes must be good,
    /// and it must be seeded at random if keys come from strangers.
    ///
    /// The default one is foldhash: fast, and of a random seed for each limiter, but not made for
    /// an attacker who can measure. One who finds a key of the hash of another's could use up its
    /// quota; `std::hash::RandomState` is made against that, at some 10 ns a check.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota or a limit is out of range.
    pub fn with_hasher(
        quotas: &[Quota],
        config: KeyedConfig,
        clock: Arc<dyn Clock>,
        hasher: S,
    ) -> Result<Self, ConfigError> {
        if config.max_keys == 0 || config.max_keys as u64 > 1 << 32 {
            return Err(ConfigError::new("max_keys", "must be between 1 and 2^32"));
        }
        if config.max_waiters == 0 {
            return Err(ConfigError::new("max_waiters", "must be at least 1"));
        }
        let rules = rules_of(quotas)?;
        let table = if rules.len() == 1 && rules[0].kind.is_word() {
            Table::Words(Words::new(&rules[0], config.max_keys, config.when_full)?)
        } else {
            Table::Cells(Cells::new(&rules, config.max_keys, config.when_full))
        };
        let waiters = Waiters::new(config.max_waiters);
        let quotas = RwLock::new(quotas.into());
        Ok(Self { table, hasher, clock, change: Mutex::new(()), quotas, waiters })
    }

    /// Takes one unit of the key's quota if there is one.
    ///
    /// # Errors
    /// [`Rejected`] if not; nothing was taken.
    #[inline]
    pub fn check<Q>(&self, key: &Q) -> Result<Admitted, Rejected>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.check_at(key, self.clock.now(), 1)
    }

    /// Takes `cost` units of the key's quota, or none.
    ///
    /// # Errors
    /// [`Rejected`] if there are not as many; nothing was taken.
    #[inline]
    pub fn check_n<Q>(&self, key: &Q, cost: u64) -> Result<Admitted, Rejected>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.check_at(key, self.clock.now(), cost)
    }

    /// [`Self::check_n`] at a time given by the caller, in nanoseconds of the limiter's clock.
    ///
    /// # Errors
    /// [`Rejected`] if there are not as many units; nothing was taken.
    #[inline]
    pub fn check_at<Q>(&self, key: &Q, now: u64, cost: u64) -> Result<Admitted, Rejected>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        self.check_hashed(hash, key, now, cost)
    }

    #[inline]
    fn check_hashed<Q>(&self, hash: u64, key: &Q, now: u64, cost: u64) -> Result<Admitted, Rejected>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Table::Words(words) = &self.table
            && let Some(answer) = words.take(hash, now, cost)
        {
            return answer
                .map(|standing| Admitted::new(standing, now, cost))
                .map_err(|(standing, wait)| Rejected::new(standing, wait));
        }
        self.decide(hash, key, now, cost)
    }

    #[inline(never)]
    fn decide<Q>(&self, hash: u64, key: &Q, now: u64, cost: u64) -> Result<Admitted, Rejected>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let (verdict, taken) = match &self.table {
            Table::Words(words) => words.step(hash, now, cost),
            Table::Cells(cells) => cells.step(hash, key, now, cost),
        };
        answer(&verdict, taken)
    }

    /// [`Self::check_at`] for several keys, in their order and each for itself; `each` is given the
    /// answers.
    ///
    /// Where a check touches one cache line, those of 16 keys at a time are asked for before the
    /// first is waited for: worth it for tables larger than the processor's cache.
    pub fn check_many<Q>(
        &self,
        keys: &[&Q],
        now: u64,
        cost: u64,
        mut each: impl FnMut(&Q, Result<Admitted, Rejected>),
    ) where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        for keys in keys.chunks(16) {
            let mut hashes = [0; 16];
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = self.hasher.hash_one(key);
                if let Table::Words(words) = &self.table {
                    words.touch(*hash);
                }
            }
            for (hash, key) in hashes.iter().zip(keys) {
                each(key, self.check_hashed(*hash, *key, now, cost));
            }
        }
    }

    /// Waits for one unit of the key's quota. See [`Self::until_ready_n`].
    ///
    /// # Errors
    /// [`WaitError::QueueFull`] if too many wait already.
    ///
    /// # Cancel safety
    /// Cancel safe: a caller that gives up takes nothing and leaves the queue.
    pub async fn until_ready<Q>(&self, key: &Q) -> Result<Admitted, WaitError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.until_ready_n(key, 1).await
    }

    /// Waits until `cost` units of the key's quota could be taken: those who wait for a key are
    /// served in order, and do not hold up those who wait for another. Callers of [`Self::check`]
    /// may overtake them. The first in line decides again after each [`Self::refund`] of its key
    /// and each [`Self::set_quotas`]. Sleeps on tokio's timer, whose step is a millisecond.
    ///
    /// # Errors
    /// [`WaitError::QueueFull`] if too many wait already, [`WaitError::TooCostly`] if no waiting
    /// would help.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time, if it has to wait.
    ///
    /// # Cancel safety
    /// Cancel safe: a caller that gives up takes nothing and leaves the queue.
    pub async fn until_ready_n<Q>(&self, key: &Q, cost: u64) -> Result<Admitted, WaitError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if cost > least_limit(&self.table.rules()) {
            return Err(WaitError::TooCostly);
        }
        let hash = self.hasher.hash_one(key);
        if !self.waiters.any(hash)
            && let Ok(admitted) = self.check_hashed(hash, key, self.clock.now(), cost)
        {
            return Ok(admitted);
        }
        let waiter = self.waiters.enter(hash)?;
        let _turn = waiter.line.turn.lock().await;
        // Ends when the units are there. The caller chose to wait, and may give up at any time.
        loop {
            // From before the decision: a change right after it must end the sleep.
            let changed = waiter.line.changed.notified();
            let rejected = match self.check_hashed(hash, key, self.clock.now(), cost) {
                Ok(admitted) => return Ok(admitted),
                Err(rejected) => rejected,
            };
            let Some(wait) = rejected.retry_after() else { return Err(WaitError::TooCostly) };
            // Either way the next turn decides.
            let _ = tokio::time::timeout(wait, changed).await;
        }
    }

    /// How many callers wait in [`Self::until_ready`], for all keys together.
    pub fn waiting(&self) -> usize {
        self.waiters.count()
    }

    /// Gives back what was taken for the key and not used, as [`Limiter::refund`] does. Nothing
    /// comes back of what was taken while there was no room for the key.
    ///
    /// [`Limiter::refund`]: crate::Limiter::refund
    pub fn refund<Q>(&self, key: &Q, admitted: Admitted)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let (hash, now) = (self.hasher.hash_one(key), self.clock.now());
        match &self.table {
            Table::Words(words) => words.refund(hash, admitted.receipt(), now),
            Table::Cells(cells) => cells.refund(hash, key, admitted.receipt(), now),
        }
        self.waiters.wake(hash);
    }

    /// Changes the quotas of all keys. What is used stays used, in units. Those that wait in
    /// [`Self::until_ready`] decide again by the new quotas.
    ///
    /// Walks all keys, a 64th at a time: about 10 ms for a million. The checks of a
    /// shard wait while it is walked.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota is out of range, or their number or an algorithm would change;
    /// then nothing is changed.
    pub fn set_quotas(&self, quotas: &[Quota]) -> Result<(), ConfigError> {
        // Read before the lock is taken: the clock is foreign code.
        let now = self.clock.now();
        {
            let _one = self.change.lock();
            let new = changed(&self.table.rules(), quotas)?;
            match &self.table {
                Table::Words(words) => words.set_rules(&new[0], now),
                Table::Cells(cells) => cells.set_rules(&new, now),
            }
            *self.quotas.write() = quotas.into();
        }
        self.waiters.wake_all();
        Ok(())
    }

    /// The quotas of each key, for the `RateLimit` header fields.
    pub fn quotas(&self) -> Arc<[Quota]> {
        Arc::clone(&self.quotas.read())
    }

    /// Forgets all keys that are as good as new now, where that gives memory back: in a limiter
    /// with windows that slide or with several quotas. Never needed for memory to be bounded.
    pub fn reclaim(&self) {
        if let Table::Cells(cells) = &self.table {
            cells.reclaim(self.clock.now());
        }
    }

    /// Keys remembered, some of them as good as new. Walks the shards.
    pub fn len(&self) -> usize {
        self.table.totals().keys
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counters. Walks the shards.
    pub fn stats(&self) -> KeyedStats {
        let Totals { keys, reclaimed, overflowed } = self.table.totals();
        let table_bytes = match &self.table {
            Table::Words(words) => words.bytes(),
            Table::Cells(cells) => cells.bytes(),
        };
        KeyedStats { keys, reclaimed, overflowed, table_bytes }
    }
}

impl<K: Hash + Eq> Table<K> {
    fn rules(&self) -> Box<[Rules]> {
        match self {
            Self::Words(words) => Box::new([words.rules()]),
            Self::Cells(cells) => cells.rules(),
        }
    }
}

impl<K> Table<K> {
    fn totals(&self) -> Totals {
        match self {
            Self::Words(words) => words.totals(),
            Self::Cells(cells) => cells.totals(),
        }
    }
}

/// Up to 64, with 64 keys each at least.
fn shard_count(max_keys: usize) -> usize {
    (max_keys / 64).next_power_of_two().clamp(1, 64)
}

impl<K, S> fmt::Debug for Keyed<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("keys", &self.table.totals().keys).finish_non_exhaustive()
    }
}
