//! What can be tuned, with units, defaults and ranges.

use std::time::Duration;

use crate::error::ConfigError;

/// The longest lifetime that can be configured: 100 years.
pub(crate) const LIFETIME_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How a cache behaves. Start from [`Default`] and change fields; checked by
/// [`Builder::build`](crate::Builder::build).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The total weight of entries: their number, unless the builder was given a weigher. At least
    /// 1. Default 100,000.
    pub max_weight: u64,
    /// The largest weight of an entry that is certainly stored. The weight is divided among shards,
    /// and an entry has to fit into one: the larger this is, the fewer shards there are, and the
    /// more contention on many cores. A heavier entry may not be stored: `insert` returns false
    /// then, and each read loads it. From 1 to 97 % of `max_weight`. Default `None`: a 64th of
    /// `max_weight`.
    pub max_entry_weight: Option<u64>,
    /// How long an entry is fresh. `None` for as long as it is in the cache. Up to 100 years.
    /// Default `None`.
    ///
    /// With a second level: how long before the second level is asked again, and
    /// [`LevelConfig::ttl`](crate::LevelConfig::ttl) at most, one hour by default. What it answers
    /// may be as old as that.
    pub ttl: Option<Duration>,
    /// How much of its lifetime an entry loses at random, so that entries that were stored together
    /// do not expire together: 0 to 1. Default 0.1.
    pub ttl_jitter: f64,
    /// How long an entry lives without being read. `None` without end. Default `None`.
    pub tti: Option<Duration>,
    /// How long it is remembered that the source has no value for a key; zero not at all. Which
    /// tags the value would have is not known: the invalidation of any tag ends it. Default zero.
    pub negative_ttl: Duration,
    /// How long after it was stored an entry is loaded again in the background when it is read:
    /// refresh-ahead. `None` never. Below `ttl`. Default `None`.
    pub refresh_after: Option<Duration>,
    /// How eagerly one reader in many loads an entry again before it expires (XFetch): the load's
    /// duration times this, times a random number of mean 1, before the end. Zero never; 1 is the
    /// paper's choice. 0 to 100. Default 0.
    pub early_refresh: f64,
    /// How long after its end an entry is still served while it is being loaded again. Default
    /// zero.
    pub stale_while_revalidate: Duration,
    /// How long after its end an entry is served when loading it fails. Never served after an
    /// invalidation. Default zero.
    pub stale_if_error: Duration,
    /// How long an entry is served without another load after one of its key has failed: stale
    /// values, and fresh ones whose refresh has failed. A load failed too when it has run into
    /// `soft_timeout`, or when its last reader has gone away after a quarter of this. After the
    /// pause one reader loads it, and others are given the stale value until that load has ended.
    /// [`Cache::get`](crate::Cache::get) still finds fresh entries only. Zero where each reader is
    /// to ask. Default 1 s.
    pub error_pause: Duration,
    /// How long a reader waits for a load before it is given a stale value, if there is one that
    /// `stale_if_error` allows; the load goes on. `None` for until the load ends. Default `None`.
    pub soft_timeout: Option<Duration>,
    /// The longest that one call of the source or loader may take; the load fails then. A second
    /// level has limits of its own, and makes a load longer by `LevelConfig::lease_wait` and four
    /// times `LevelConfig::timeout` at most. At least 1 ms. Default 30 s.
    pub hard_timeout: Duration,
    /// The longest that a write-through waits for the sink; its outcome is unknown then. A sink
    /// that ends its own attempt before that leaves nothing that could be applied later, unseen.
    /// At least 1 ms. Default 30 s.
    pub sink_timeout: Duration,
    /// Loads under way at once, over all keys. Past it a load fails with
    /// [`LoadError::Busy`](crate::LoadError::Busy) at once. At least 1. Default 1,024.
    pub max_loads: usize,
    /// Tags whose invalidation is remembered for the sake of loads under way. Past it none of the
    /// loads under way is stored. At least 1. Default 1,024.
    pub max_tag_floors: usize,
    /// What happens to those who wait for a load that panics. Default [`OnPanic::Fail`].
    pub on_panic: OnPanic,
    /// Seeds the jitter and the early refresh. `None` (the default) draws one.
    pub seed: Option<u64>,
}

/// What happens to those who wait for a load that panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnPanic {
    /// All fail with [`LoadError::Panicked`](crate::LoadError::Panicked).
    Fail,
    /// One of them starts the load once more; if that panics too, all fail.
    RetryOnce,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_weight: 100_000,
            max_entry_weight: None,
            ttl: None,
            ttl_jitter: 0.1,
            tti: None,
            negative_ttl: Duration::ZERO,
            refresh_after: None,
            early_refresh: 0.0,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            error_pause: Duration::from_secs(1),
            soft_timeout: None,
            hard_timeout: Duration::from_secs(30),
            sink_timeout: Duration::from_secs(30),
            max_loads: 1024,
            max_tag_floors: 1024,
            on_panic: OnPanic::Fail,
            seed: None,
        }
    }
}

impl Config {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let longest = |duration: Duration| duration <= LIFETIME_MAX;
        let positive = |duration: Option<Duration>| {
            duration.is_none_or(|duration| !duration.is_zero() && longest(duration))
        };
        let patience =
            |duration: Duration| duration >= Duration::from_millis(1) && longest(duration);
        let before_ttl = |after: Duration| self.ttl.is_none_or(|ttl| after < ttl);
        let rules = [
            ("max_weight", self.max_weight > 0, "must be at least 1"),
            (
                "max_entry_weight",
                self.max_entry_weight.is_none_or(|weight| {
                    (1..=crate::store::fits_one_shard(self.max_weight)).contains(&weight)
                }),
                "must be from 1 to 97 % of max_weight",
            ),
            ("ttl", positive(self.ttl), "must be above zero and at most 100 years"),
            ("ttl_jitter", (0.0..=1.0).contains(&self.ttl_jitter), "must be from 0 to 1"),
            ("tti", positive(self.tti), "must be above zero and at most 100 years"),
            ("negative_ttl", longest(self.negative_ttl), "must be at most 100 years"),
            (
                "refresh_after",
                positive(self.refresh_after) && self.refresh_after.is_none_or(before_ttl),
                "must be above zero and below ttl",
            ),
            ("early_refresh", (0.0..=100.0).contains(&self.early_refresh), "must be from 0 to 100"),
            (
                "stale_while_revalidate",
                longest(self.stale_while_revalidate),
                "must be at most 100 years",
            ),
            ("stale_if_error", longest(self.stale_if_error), "must be at most 100 years"),
            ("error_pause", longest(self.error_pause), "must be at most 100 years"),
            ("soft_timeout", positive(self.soft_timeout), "must be above zero"),
            ("hard_timeout", patience(self.hard_timeout), "must be from 1 ms to 100 years"),
            ("sink_timeout", patience(self.sink_timeout), "must be from 1 ms to 100 years"),
            ("max_loads", self.max_loads > 0, "must be at least 1"),
            ("max_tag_floors", self.max_tag_floors > 0, "must be at least 1"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

impl Config {
    /// The weight up to which an entry is certainly stored.
    pub(crate) fn largest_entry(&self) -> u64 {
        self.max_entry_weight.unwrap_or((self.max_weight / 64).max(1))
    }
}

/// Nanoseconds of a duration that [`Config::validate`] has bounded.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
