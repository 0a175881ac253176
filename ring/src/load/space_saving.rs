//! The most frequent keys, by the Space-Saving sketch.

use std::fmt;

use crate::config::HotKeysConfig;
use crate::error::{ConfigError, SketchesDiffer};
use crate::hash;

const MAX_COUNTERS: usize = 1 << 20;
const MAX_KEY_BYTES: usize = 1024;
const NONE: u32 = u32::MAX;

/// The keys with the most traffic, in bounded memory: the Space-Saving sketch.
///
/// With `m` counters and `N` accesses, every key with more than `N / m` of them is present, its
/// count is never too low, and is too high by at most its reported error, itself at most `N / m`.
/// All memory is taken at construction: recording a key allocates nothing, whatever its length. A
/// key is told apart by its 64-bit hash.
///
/// A value belongs to one thread: keep one per thread and [`merge`](HotKeys::merge) them to report.
///
/// Source: Metwally, Agrawal, El Abbadi, "Efficient computation of frequent and top-k elements in
/// data streams" (ICDT 2005).
///
/// # Example
/// ```
/// use voussoir_ring::load::HotKeys;
/// let mut hot = HotKeys::default();
/// for n in 0..10_000_u32 {
///     hot.record(if n % 4 == 0 { b"celebrity" } else { b"other-key" });
///     hot.record(&n.to_le_bytes());
/// }
/// let above = hot.above(0.1);
/// assert_eq!(above[0].key, b"other-key");
/// assert_eq!(above[1].key, b"celebrity");
/// ```
#[derive(Clone)]
pub struct HotKeys {
    key_bytes: usize,
    /// Count, error and hash of each counter, lowest count at the root of a heap.
    heap: Vec<Counter>,
    capacity: usize,
    /// Open-addressed by hash: the number of a counter's identity, or [`NONE`].
    table: Vec<u32>,
    /// Where each identity stands in the heap; keys are kept by identity and never moved.
    places: Vec<u32>,
    keys: Vec<u8>,
    lengths: Vec<u16>,
    total: u64,
}

#[derive(Clone, Copy)]
struct Counter {
    count: u64,
    error: u64,
    hash: u64,
    identity: u32,
}

/// One key that may be hot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HotKey {
    /// The key, or its first bytes when it is longer than configured.
    pub key: Vec<u8>,
    /// Its hash by [`hash::key`].
    pub hash: u64,
    /// Accesses, at most `error` too high.
    pub count: u64,
    /// By how much the count may be too high.
    pub error: u64,
}

impl Default for HotKeys {
    /// A sketch of the default size.
    fn default() -> Self {
        Self::build(&HotKeysConfig::default())
    }
}

impl HotKeys {
    /// A sketch of this size.
    ///
    /// # Errors
    /// [`ConfigError`] if a field is out of its range.
    pub fn new(config: &HotKeysConfig) -> Result<Self, ConfigError> {
        if !(1..=MAX_COUNTERS).contains(&config.counters) {
            return Err(ConfigError::new("counters", "must be between 1 and 1048576"));
        }
        if !(1..=MAX_KEY_BYTES).contains(&config.key_bytes) {
            return Err(ConfigError::new("key_bytes", "must be between 1 and 1024"));
        }
        Ok(Self::build(config))
    }

    fn build(config: &HotKeysConfig) -> Self {
        let capacity = config.counters;
        Self {
            key_bytes: config.key_bytes,
            heap: Vec::with_capacity(capacity),
            capacity,
            table: vec![NONE; (capacity * 2).next_power_of_two()],
            places: Vec::with_capacity(capacity),
            keys: vec![0; capacity * config.key_bytes],
            lengths: vec![0; capacity],
            total: 0,
        }
    }

    /// Counts one access.
    #[inline]
    pub fn record(&mut self, key: &[u8]) {
        self.record_many(key, 1);
    }

    /// Counts several accesses, or a cost such as bytes.
    #[inline]
    pub fn record_many(&mut self, key: &[u8], times: u64) {
        self.add(hash::key(key), key, times, 0);
    }

    fn add(&mut self, hash: u64, key: &[u8], count: u64, error: u64) {
        if count == 0 {
            return;
        }
        self.total += count;
        if let Some(slot) = self.find(hash) {
            let place = self.places[self.table[slot] as usize] as usize;
            self.heap[place].count += count;
            self.heap[place].error += error;
            self.sift_down(place);
        } else if self.heap.len() < self.capacity {
            let identity = self.heap.len() as u32;
            self.heap.push(Counter { count, error, hash, identity });
            self.places.push(identity);
            self.keep(identity, key);
            self.insert(hash, identity);
            self.sift_up(self.heap.len() - 1);
        } else {
            let least = self.heap[0];
            self.erase(least.hash);
            self.heap[0] = Counter {
                count: least.count + count,
                error: least.count + error,
                hash,
                identity: least.identity,
            };
            self.keep(least.identity, key);
            self.insert(hash, least.identity);
            self.sift_down(0);
        }
    }

    fn keep(&mut self, identity: u32, key: &[u8]) {
        let at = identity as usize * self.key_bytes;
        let length = key.len().min(self.key_bytes);
        self.keys[at..at + length].copy_from_slice(&key[..length]);
        self.lengths[identity as usize] = length as u16;
    }

    fn kept(&self, identity: u32) -> &[u8] {
        let at = identity as usize * self.key_bytes;
        &self.keys[at..at + usize::from(self.lengths[identity as usize])]
    }

    fn slots(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.table.len() - 1;
        (0..=mask).map(move |step| (hash as usize + step) & mask)
    }

    fn hash_at(&self, slot: usize) -> Option<u64> {
        let identity = self.table[slot];
        (identity != NONE).then(|| self.heap[self.places[identity as usize] as usize].hash)
    }

    fn find(&self, hash: u64) -> Option<usize> {
        for slot in self.slots(hash) {
            match self.hash_at(slot) {
                Some(found) if found == hash => return Some(slot),
                Some(_) => {}
                None => return None,
            }
        }
        None
    }

    fn insert(&mut self, hash: u64, identity: u32) {
        if let Some(free) = self.slots(hash).find(|&slot| self.table[slot] == NONE) {
            self.table[free] = identity;
        }
    }

    /// Empties the slot of a hash and moves those after it that would no longer be found.
    fn erase(&mut self, hash: u64) {
        let Some(mut hole) = self.find(hash) else { return };
        let mask = self.table.len() - 1;
        let mut next = hole;
        // Ends, as does the inner loop: `next` goes around the table once, and the table has free
        // slots because it is larger than the number of counters.
        loop {
            self.table[hole] = NONE;
            loop {
                next = (next + 1) & mask;
                let Some(other) = self.hash_at(next) else { return };
                let from_home = next.wrapping_sub(other as usize) & mask;
                if from_home >= (next.wrapping_sub(hole) & mask) {
                    break;
                }
            }
            self.table[hole] = self.table[next];
            hole = next;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.places[self.heap[a].identity as usize] = a as u32;
        self.places[self.heap[b].identity as usize] = b as u32;
    }

    fn sift_down(&mut self, mut at: usize) {
        // Ends: `at` goes down one level of the heap in each turn.
        loop {
            let left = 2 * at + 1;
            let Some(mut least) = (left < self.heap.len()).then_some(left) else { return };
            if left + 1 < self.heap.len() && self.heap[left + 1].count < self.heap[left].count {
                least = left + 1;
            }
            if self.heap[at].count <= self.heap[least].count {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }

    fn sift_up(&mut self, mut at: usize) {
        // Ends: `at` goes up one level of the heap in each turn.
        while at > 0 && self.heap[at].count < self.heap[(at - 1) / 2].count {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    /// All counted keys, the most frequent first.
    pub fn top(&self) -> Vec<HotKey> {
        let key = |counter: &Counter| HotKey {
            key: self.kept(counter.identity).to_vec(),
            hash: counter.hash,
            count: counter.count,
            error: counter.error,
        };
        let mut keys: Vec<HotKey> = self.heap.iter().map(key).collect();
        keys.sort_by_key(|key| (std::cmp::Reverse(key.count), key.hash));
        keys
    }

    /// The keys that may have more than this share of all accesses, the most frequent first. None
    /// that has is missing when the share is at least one over the number of counters.
    pub fn above(&self, share: f64) -> Vec<HotKey> {
        let least = share * self.total as f64;
        let mut keys = self.top();
        keys.retain(|key| key.count as f64 > least);
        keys
    }

    /// Adds what another sketch of the same configuration has counted. Errors add up: with the
    /// counts of both, every key above `N / m` is still found.
    ///
    /// # Errors
    /// [`SketchesDiffer`].
    pub fn merge(&mut self, other: &Self) -> Result<(), SketchesDiffer> {
        if (self.capacity, self.key_bytes) != (other.capacity, other.key_bytes) {
            return Err(SketchesDiffer);
        }
        // A key that a full sketch does not have may have had as much as its lowest count.
        let unseen = |sketch: &Self| match sketch.heap.first() {
            Some(least) if sketch.heap.len() == sketch.capacity => least.count,
            _ => 0,
        };
        let (ours, theirs) = (unseen(self), unseen(other));
        let mut all: Vec<(Counter, Vec<u8>)> =
            Vec::with_capacity(self.heap.len() + other.heap.len());
        for counter in &self.heap {
            let more = other.find(counter.hash).map(|slot| other.counter(slot));
            let (count, error) = more.map_or((theirs, theirs), |c| (c.count, c.error));
            let (count, error) = (counter.count + count, counter.error + error);
            all.push((Counter { count, error, ..*counter }, self.kept(counter.identity).to_vec()));
        }
        for counter in other.heap.iter().filter(|counter| self.find(counter.hash).is_none()) {
            let (count, error) = (counter.count + ours, counter.error + ours);
            all.push((Counter { count, error, ..*counter }, other.kept(counter.identity).to_vec()));
        }
        all.sort_by_key(|(counter, _)| (std::cmp::Reverse(counter.count), counter.hash));
        all.truncate(self.capacity);
        let total = self.total + other.total;
        self.clear();
        for (counter, key) in &all {
            self.add(counter.hash, key, counter.count, counter.error);
        }
        self.total = total;
        Ok(())
    }

    fn counter(&self, slot: usize) -> Counter {
        self.heap[self.places[self.table[slot] as usize] as usize]
    }

    /// Halves all counts, so that old traffic fades: call it at a fixed interval.
    pub fn decay(&mut self) {
        // Halving keeps the order, so the heap stays one.
        for counter in &mut self.heap {
            counter.count /= 2;
            counter.error /= 2;
        }
        self.total /= 2;
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.heap.clear();
        self.places.clear();
        self.table.fill(NONE);
        self.total = 0;
    }

    /// All accesses recorded (halved by each [`decay`](HotKeys::decay)).
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The memory taken at construction, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.heap.capacity() * size_of::<Counter>()
            + (self.table.capacity() + self.places.capacity()) * size_of::<u32>()
            + self.keys.capacity()
            + self.lengths.capacity() * size_of::<u16>()
    }
}

impl fmt::Debug for HotKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HotKeys")
            .field("counters", &self.heap.len())
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}
