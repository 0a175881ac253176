//! A limiter for each of many keys, in bounded memory.

mod shard;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use hashbrown::DefaultHashBuilder;
use parking_lot::Mutex;

use crate::clock::{Clock, Monotonic};
use crate::core::Verdict;
use crate::error::{ConfigError, Denied};
use crate::limiter::Admitted;
use crate::quota::{Quota, changed, rules_of};
use shard::{Found, Shard};

/// What becomes of a key that is new while `keys_max` keys are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// All such keys of a shard (one in 256) share one quota between them: never more than the
    /// quota for any of them, and some service for each.
    #[default]
    Share,
    /// They are denied, to be retried after one period of the first quota.
    Deny,
    /// They pass without being counted.
    Admit,
}

/// How a keyed limiter is built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeyedConfig {
    /// The most keys remembered. 1 to 2³²; default 1,000,000.
    pub keys_max: usize,
    /// What becomes of new keys beyond that. Default: [`WhenFull::Share`].
    pub when_full: WhenFull,
    /// Where `now` comes from. Default: [`Monotonic`].
    pub clock: Arc<dyn Clock>,
}

impl Default for KeyedConfig {
    fn default() -> Self {
        Self { keys_max: 1_000_000, when_full: WhenFull::Share, clock: Arc::new(Monotonic) }
    }
}

/// Counters of a keyed limiter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyedStats {
    /// Keys remembered.
    pub keys: usize,
    /// Keys forgotten because they were as good as new.
    pub reclaimed: u64,
    /// Requests of keys that found no room.
    pub overflowed: u64,
    /// Bytes of the tables. Without what keys and logs hold on the heap.
    pub table_bytes: usize,
}

/// A limiter for each key.
///
/// A key is forgotten only when its quota is as good as new, so that being forgotten changes
/// nothing: no stream of other keys resets a key that is in debt. Forgetting happens on insertion,
/// a shard at a time, and costs a few comparisons an insertion on average.
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
pub struct Keyed<K, S = DefaultHashBuilder> {
    shards: Box<[CachePadded<Mutex<Shard<K>>>]>,
    hasher: S,
    clock: Arc<dyn Clock>,
    when_full: WhenFull,
    keys_max: usize,
    keys: AtomicUsize,
    reclaimed: AtomicU64,
    overflowed: AtomicU64,
}

impl<K: Hash + Eq> Keyed<K> {
    /// A limiter of one quota for each key.
    ///
    /// # Errors
    /// [`ConfigError`] if the quota is out of range.
    pub fn new(quota: Quota) -> Result<Self, ConfigError> {
        Self::with_config(&[quota], KeyedConfig::default())
    }

    /// A limiter of several quotas for each key, with limits and a clock of your choice.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota or a limit is out of range.
    pub fn with_config(quotas: &[Quota], config: KeyedConfig) -> Result<Self, ConfigError> {
        Self::with_hasher(quotas, config, DefaultHashBuilder::default())
    }
}

impl<K: Hash + Eq, S: BuildHasher> Keyed<K, S> {
    /// A limiter with a hasher of your choice.
    ///
    /// The default one is seeded at random for each process, and fast; where an attacker chooses
    /// keys and times answers, `std::hash::RandomState` resists collisions better.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota or a limit is out of range.
    pub fn with_hasher(
        quotas: &[Quota],
        config: KeyedConfig,
        hasher: S,
    ) -> Result<Self, ConfigError> {
        if config.keys_max == 0 || config.keys_max as u64 > 1 << 32 {
            return Err(ConfigError::Limit("keys_max"));
        }
        let rules = rules_of(quotas)?;
        let count = (config.keys_max / 64).next_power_of_two().clamp(1, 256);
        let shard = |_| CachePadded::new(Mutex::new(Shard::new(&rules)));
        Ok(Self {
            shards: (0..count).map(shard).collect(),
            hasher,
            clock: config.clock,
            when_full: config.when_full,
            keys_max: config.keys_max,
            keys: AtomicUsize::new(0),
            reclaimed: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
        })
    }

    /// Takes one unit of the key's quota if there is one.
    ///
    /// # Errors
    /// [`Denied`] if not; nothing was taken.
    #[inline]
    pub fn check<Q>(&self, key: &Q) -> Result<Admitted, Denied>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.check_at(key, self.clock.now(), 1)
    }

    /// Takes `cost` units of the key's quota, or none.
    ///
    /// # Errors
    /// [`Denied`] if there are not as many; nothing was taken.
    #[inline]
    pub fn check_n<Q>(&self, key: &Q, cost: u64) -> Result<Admitted, Denied>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.check_at(key, self.clock.now(), cost)
    }

    /// [`Self::check_n`] at a time given by the caller, in nanoseconds of the limiter's clock.
    ///
    /// # Errors
    /// [`Denied`] if there are not as many units; nothing was taken.
    pub fn check_at<Q>(&self, key: &Q, now: u64, cost: u64) -> Result<Admitted, Denied>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).lock();
        let (verdict, taken) = match shard.step(hash, key, now, cost) {
            Found::Decided(verdict) => (verdict, cost),
            Found::Missing => self.step_new(&mut shard, hash, key, now, cost),
        };
        drop(shard);
        if verdict.admitted() {
            Ok(Admitted::new(&verdict, taken))
        } else {
            Err(Denied::new(&verdict))
        }
    }

    /// A key that is not in its shard: room is made, or the rule for a full table applies. Also
    /// says how many units the key itself can give back later.
    #[cold]
    fn step_new<Q>(
        &self,
        shard: &mut Shard<K>,
        hash: u64,
        key: &Q,
        now: u64,
        cost: u64,
    ) -> (Verdict, u64)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let rehash = |key: &K| self.hasher.hash_one(key.borrow());
        let full = self.keys.load(Ordering::Relaxed) >= self.keys_max;
        if shard.sweep_is_due(now, full) {
            self.forgot(shard.sweep(now, rehash));
        }
        let room = self
            .keys
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < self.keys_max).then_some(n + 1)
            })
            .is_ok();
        if room {
            let (verdict, kept) = shard.insert(hash, key.to_owned(), now, cost, rehash);
            if !kept {
                self.keys.fetch_sub(1, Ordering::Relaxed);
            }
            return (verdict, cost);
        }
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        (shard.overflow(self.when_full, now, cost), 0)
    }

    fn forgot(&self, keys: usize) {
        self.keys.fetch_sub(keys, Ordering::Relaxed);
        self.reclaimed.fetch_add(keys as u64, Ordering::Relaxed);
    }

    /// Gives back what was taken for the key and not used, as [`Limiter::refund`] does. Nothing
    /// comes back of what was taken while there was no room for the key.
    ///
    /// [`Limiter::refund`]: crate::Limiter::refund
    pub fn refund<Q>(&self, key: &Q, admitted: Admitted)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        self.shard(hash).lock().refund(hash, key, admitted.receipt(), self.clock.now());
    }

    /// Changes the quotas of all keys. What is used stays used, in units.
    ///
    /// Walks all keys, a shard at a time: about 10 ms for a million.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota is out of range, or their number or an algorithm would change;
    /// then nothing is changed.
    pub fn set_quotas(&self, quotas: &[Quota]) -> Result<(), ConfigError> {
        let now = self.clock.now();
        let new = changed(self.shards[0].lock().rules(), quotas)?;
        for shard in &self.shards {
            shard.lock().set_rules(&new, now);
        }
        Ok(())
    }

    /// Forgets all keys that are as good as new now. Never needed for memory to be bounded.
    pub fn reclaim(&self) {
        let now = self.clock.now();
        for shard in &self.shards {
            self.forgot(shard.lock().sweep(now, |key: &K| self.hasher.hash_one(key)));
        }
    }

    /// Keys remembered.
    pub fn len(&self) -> usize {
        self.keys.load(Ordering::Relaxed)
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counters. Walks the shards.
    pub fn stats(&self) -> KeyedStats {
        KeyedStats {
            keys: self.len(),
            reclaimed: self.reclaimed.load(Ordering::Relaxed),
            overflowed: self.overflowed.load(Ordering::Relaxed),
            table_bytes: self.shards.iter().map(|shard| shard.lock().table_bytes()).sum(),
        }
    }

    /// The tables take the lowest and the highest bits of the hash; these are others.
    #[inline]
    fn shard(&self, hash: u64) -> &Mutex<Shard<K>> {
        &self.shards[(hash >> 40) as usize & (self.shards.len() - 1)]
    }
}

impl<K, S> fmt::Debug for Keyed<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed")
            .field("keys", &self.keys)
            .field("keys_max", &self.keys_max)
            .field("when_full", &self.when_full)
            .finish_non_exhaustive()
    }
}
