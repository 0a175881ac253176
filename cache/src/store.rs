//! Where entries are: the seam, and the default behind it.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::Equivalent;
use quick_cache::sync::Cache as Quick;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use crate::core::freshness::Times;
use crate::tags::Tag;

/// Weighs an entry from its key and value, once, when it is stored. A weight of 0 counts as 1, and
/// a weight above the capacity as the capacity and 1. An entry of up to
/// [`Config::max_entry_weight`](crate::Config::max_entry_weight) is stored; one above it may not
/// be, and is then loaded by each read. Runs without any lock held.
pub type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u64 + Send + Sync>;

/// A key with its hash, so that a key is hashed once for each operation.
#[derive(Clone, Debug)]
pub struct HashedKey<K> {
    /// The hash, from the cache's own hasher.
    pub hash: u64,
    /// The key.
    pub key: K,
}

impl<K> Hash for HashedKey<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<K: PartialEq> PartialEq for HashedKey<K> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.key == other.key
    }
}

impl<K: Eq> Eq for HashedKey<K> {}

/// A question for a key by its hash and a comparison, so that a store can be asked with a borrowed
/// form of its keys.
#[derive(Clone, Copy)]
pub struct Probe<'a, K> {
    /// The hash of the key that is looked for.
    pub hash: u64,
    /// Whether a key is the one that is looked for.
    pub is: &'a (dyn Fn(&K) -> bool + 'a),
}

impl<K> fmt::Debug for Probe<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl<K> Hash for Probe<'_, K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<K> Equivalent<HashedKey<K>> for Probe<'_, K> {
    fn equivalent(&self, key: &HashedKey<K>) -> bool {
        self.hash == key.hash && (self.is)(&key.key)
    }
}

/// What is stored for a key. Cloning one costs a clone of the value, and a reference count where
/// the entry has tags, a version of its own, an idle time or a time of refresh.
#[derive(Clone, Debug)]
pub struct Entry<V> {
    /// `None`: the source has no value, and that is remembered.
    pub(crate) value: Option<V>,
    /// When the value's load began or it was inserted, in the order of the cache's operations.
    pub(crate) version: u64,
    /// Before this time, in nanoseconds of the cache's clock, the value is served without a look at
    /// `extra`. 0 for an entry with tags or an idle time. Without `extra` the end of the entry.
    pub(crate) look_at: u64,
    pub(crate) weight: u64,
    pub(crate) extra: Option<Arc<Extra>>,
}

/// The version of the source's own that a value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceVersion {
    /// The source gave it to the value.
    At(u64),
    /// The value was written over one of this version, and its own is not known.
    Above(u64),
}

impl SourceVersion {
    /// The largest version that is certainly not newer than the value.
    pub(crate) fn floor(self) -> u64 {
        match self {
            Self::At(version) | Self::Above(version) => version,
        }
    }

    pub(crate) fn known(self) -> Option<u64> {
        match self {
            Self::At(version) => Some(version),
            Self::Above(_) => None,
        }
    }

    /// Whether the value is newer than one of the source's version `other`.
    pub(crate) fn is_newer_than(self, other: u64) -> bool {
        match self {
            Self::At(version) => version > other,
            Self::Above(version) => version >= other,
        }
    }
}

/// What only some entries have, apart, so that [`Entry`] stays small.
#[derive(Debug)]
pub(crate) struct Extra {
    pub(crate) times: Times,
    pub(crate) tags: Box<[Arc<Tag>]>,
    /// The version that the source gave the value, or a bound of it.
    pub(crate) source_version: Option<SourceVersion>,
    /// The position of the source at which the value was read.
    pub(crate) position: Option<u64>,
    /// The value's own lifetime, where "not modified" may renew it.
    pub(crate) own_ttl: Option<Duration>,
    /// When the entry was last read, where the cache has an idle time.
    pub(crate) read_at: AtomicU64,
    /// Until then the key is not loaded again, because its last load has failed. 0: it has not.
    pub(crate) retry_at: AtomicU64,
}

impl Extra {
    /// That of an entry without tags, version and position.
    pub(crate) fn plain(times: Times, now: u64, retry_at: u64) -> Self {
        let (read_at, retry_at) = (AtomicU64::new(now), AtomicU64::new(retry_at));
        let tags = Box::default();
        let (source_version, position, own_ttl) = (None, None, None);
        Self { times, tags, source_version, position, own_ttl, read_at, retry_at }
    }

    /// Whether a tag was invalidated after the load began that brought the value.
    pub(crate) fn is_invalid(&self, version: u64) -> bool {
        self.tags.iter().any(|tag| tag.floor() > version)
    }

    pub(crate) fn read_at(&self) -> u64 {
        self.read_at.load(Ordering::Relaxed)
    }
}

impl<V> Entry<V> {
    pub(crate) fn times(&self) -> Times {
        self.extra.as_ref().map_or(Times::plain(self.look_at), |extra| extra.times)
    }

    pub(crate) fn source_version(&self) -> Option<SourceVersion> {
        self.extra.as_ref().and_then(|extra| extra.source_version)
    }

    /// The position of the source at which the value was read.
    pub(crate) fn position(&self) -> Option<u64> {
        self.extra.as_ref().and_then(|extra| extra.position)
    }

    /// The weight. It never changes.
    pub fn weight(&self) -> u64 {
        self.weight
    }
}

/// What has left a store. The cache drops it after its locks are released: dropping keys and values
/// is foreign code.
pub type Removed<K, V> = (HashedKey<K>, Entry<V>);

/// A table of entries that evicts some of them to stay within its capacity. All operations are
/// atomic for each key, and none calls back into the cache.
///
/// Keys are compared and values cloned under the table's lock: `Eq` and `Clone` must not call the
/// cache. Wrap values in an `Arc` where cloning does more than copy.
pub trait Store<K, V>: Send + Sync + fmt::Debug {
    /// A clone of the entry, counted as a use of the key.
    fn get(&self, key: &Probe<'_, K>) -> Option<Entry<V>>;
    /// Replaces or adds an entry. Returns what has left the store: what was replaced and what was
    /// evicted, which may be the new entry itself.
    #[must_use = "dropping it runs foreign code: after all locks"]
    fn insert(&self, key: HashedKey<K>, entry: Entry<V>) -> Vec<Removed<K, V>>;
    /// Takes an entry out.
    #[must_use = "dropping it runs foreign code: after all locks"]
    fn remove(&self, key: &Probe<'_, K>) -> Option<Removed<K, V>>;
    /// Takes an entry out if it still has this version.
    #[must_use = "dropping it runs foreign code: after all locks"]
    fn remove_version(&self, key: &Probe<'_, K>, version: u64) -> Option<Removed<K, V>>;
    /// How many entries there are, expired and invalidated ones included.
    fn len(&self) -> u64;
    /// Whether there is no entry.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The total weight.
    fn weight(&self) -> u64;
    /// How many entries were evicted so far to make room.
    fn evicted(&self) -> u64;
    /// Drops all entries.
    fn clear(&self);
}

/// The default store: `quick_cache`, a concurrent table with a policy of the CLOCK-Pro family.
pub struct QuickStore<K, V> {
    table: Quick<HashedKey<K>, Entry<V>, ByWeight, Prehashed, Evictions>,
    evicted: AtomicU64,
}

/// The share of a shard's weight that its frequently used entries may have, and so the share that
/// one entry may have: the table refuses a heavier one.
const HOT_SHARE: f64 = 0.97;
/// A larger weight of a store counts as this: the table's sums of two weights do not overflow.
const WEIGHT_MAX: u64 = 1 << 62;

/// The weight up to which one entry fits into a store of one shard.
pub(crate) fn fits_one_shard(max_weight: u64) -> u64 {
    let max_weight = max_weight.min(WEIGHT_MAX);
    ((max_weight as f64 * HOT_SHARE) as u64).clamp(max_weight.min(1), max_weight)
}

impl<K: Eq + Hash, V: Clone> QuickStore<K, V> {
    /// An empty store for entries of this total weight, none of which weighs more than 1. The
    /// weight is divided among shards, four for each core: a heavier entry may not be stored.
    pub fn new(max_weight: u64) -> Self {
        Self::with_max_entry(max_weight, 1)
    }

    /// An empty store for entries of this total weight, that stores each entry of up to
    /// `max_entry_weight`. It has fewer shards, and more contention on many cores, where they would
    /// be too small for such an entry. 97 % of `max_weight` fits into a store of one shard.
    pub fn with_max_entry(max_weight: u64, max_entry_weight: u64) -> Self {
        let max_weight = max_weight.min(WEIGHT_MAX);
        // Shards and tables are sized by this; entries may weigh more or less than 1.
        let items = usize::try_from(max_weight).unwrap_or(usize::MAX).min(1 << 20);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut shards = (cores * 4).next_power_of_two();
        while shards > 1 && fits_one_shard(max_weight.div_ceil(shards as u64)) < max_entry_weight {
            shards /= 2;
        }
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity(items).weight_capacity(max_weight);
        options.hot_allocation(HOT_SHARE).shards(shards);
        let table = match options.build() {
            Ok(options) => Quick::with_options(options, ByWeight, Prehashed, Evictions),
            // Both numbers are given, so this does not happen.
            Err(_) => Quick::with(items, max_weight, ByWeight, Prehashed, Evictions),
        };
        Self { table, evicted: AtomicU64::new(0) }
    }
}

impl<K: Eq + Hash + Send + Sync, V: Clone + Send + Sync> Store<K, V> for QuickStore<K, V> {
    #[inline]
    fn get(&self, key: &Probe<'_, K>) -> Option<Entry<V>> {
        self.table.get(key)
    }

    fn insert(&self, key: HashedKey<K>, entry: Entry<V>) -> Vec<Removed<K, V>> {
        let (hash, version) = (key.hash, entry.version);
        let extra_of = |entry: &Entry<V>| entry.extra.as_ref().map(Arc::as_ptr);
        let extra = extra_of(&entry);
        let mut removed = Dropped::default();
        self.table.insert_with_lifecycle(key, entry, &mut removed);
        // The entry that was replaced has made no room; the new one may be too heavy to stay.
        let is_new = |entry: &Entry<V>| entry.version == version && extra_of(entry) == extra;
        let is_evicted = |(key, entry): &&Removed<K, V>| key.hash != hash || is_new(entry);
        let evicted = removed.0.iter().filter(is_evicted).count();
        if evicted > 0 {
            self.evicted.fetch_add(evicted as u64, Ordering::Relaxed);
        }
        removed.0
    }

    fn remove(&self, key: &Probe<'_, K>) -> Option<Removed<K, V>> {
        self.table.remove(key)
    }

    fn remove_version(&self, key: &Probe<'_, K>, version: u64) -> Option<Removed<K, V>> {
        self.table.remove_if(key, |entry| entry.version == version)
    }

    fn len(&self) -> u64 {
        self.table.len() as u64
    }

    fn weight(&self) -> u64 {
        self.table.weight()
    }

    fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    fn clear(&self) {
        // One after the other, because `clear` of the table drops them under its locks. Ends: the
        // table is passed once, from its first place to its last.
        self.table.drain().for_each(drop);
    }
}

impl<K, V> fmt::Debug for QuickStore<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuickStore").finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct ByWeight;

impl<K, V> Weighter<K, Entry<V>> for ByWeight {
    fn weight(&self, _: &K, entry: &Entry<V>) -> u64 {
        entry.weight
    }
}

/// Collects what leaves the table.
#[derive(Clone, Debug)]
struct Evictions;

#[derive(Debug)]
struct Dropped<T>(Vec<T>);

impl<T> Default for Dropped<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K, V> Lifecycle<K, V> for Evictions {
    type RequestState = Dropped<(K, V)>;

    fn on_evict(&self, dropped: &mut Self::RequestState, key: K, value: V) {
        dropped.0.push((key, value));
    }
}

/// Keys bring their hash: this hasher returns it unchanged.
#[derive(Clone, Copy, Debug, Default)]
struct Prehashed;

#[derive(Default)]
struct PassThrough(u64);

impl BuildHasher for Prehashed {
    type Hasher = PassThrough;

    fn build_hasher(&self) -> PassThrough {
        PassThrough(0)
    }
}

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
