//! Bounded memory for reading: indexes of sealed segments, and read buffers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::format::index::{BatchRef, DirectoryEntry};
use crate::recovery::rebuild::Rebuild;

/// Read buffers that are kept for the next read.
const BUFFERS_MAX: usize = 8;
/// A buffer larger than this is not kept.
const BUFFER_BYTES_MAX: usize = 2 << 20;

/// Indexes of sealed segments, the least recently used dropped first.
#[derive(Debug)]
pub(crate) struct IndexCache {
    limit_bytes: usize,
    bytes: usize,
    clock: u64,
    entries: HashMap<Key, Entry>,
    /// The keys by the time of their last use. Invariant: those of `entries`, by `Entry::used`.
    order: BTreeMap<u64, Key>,
}

/// A segment (by sequence) and what of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Directory(u64),
    /// What the frames of a segment without an index say.
    Rebuild(u64),
    /// The batches of one log.
    Batches(u64, u64),
}

#[derive(Debug, Clone)]
pub(crate) enum Cached {
    Directory(Arc<[DirectoryEntry]>),
    Rebuild(Arc<Rebuild>),
    Batches(Arc<[BatchRef]>),
}

#[derive(Debug)]
struct Entry {
    used: u64,
    cached: Cached,
}

impl Cached {
    fn bytes(&self) -> usize {
        const OVERHEAD: usize = 96;
        OVERHEAD
            + match self {
                Self::Directory(entries) => size_of_val::<[DirectoryEntry]>(entries),
                Self::Rebuild(rebuild) => rebuild.bytes(),
                Self::Batches(batches) => size_of_val::<[BatchRef]>(batches),
            }
    }
}

impl IndexCache {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let (entries, order) = (HashMap::new(), BTreeMap::new());
        Self { limit_bytes, bytes: 0, clock: 0, entries, order }
    }

    pub(crate) fn get(&mut self, key: Key) -> Option<Cached> {
        self.clock += 1;
        let entry = self.entries.get_mut(&key)?;
        self.order.remove(&std::mem::replace(&mut entry.used, self.clock));
        self.order.insert(self.clock, key);
        Some(entry.cached.clone())
    }

    pub(crate) fn put(&mut self, key: Key, cached: Cached) {
        self.clock += 1;
        self.bytes += cached.bytes();
        if let Some(old) = self.entries.insert(key, Entry { used: self.clock, cached }) {
            self.order.remove(&old.used);
            self.bytes -= old.cached.bytes();
        }
        self.order.insert(self.clock, key);
        // Without a search: readers that must not block wait for this, and one large entry may take
        // the place of thousands.
        while self.bytes > self.limit_bytes && self.entries.len() > 1 {
            let Some((_, key)) = self.order.pop_first() else { break };
            if let Some(old) = self.entries.remove(&key) {
                self.bytes -= old.cached.bytes();
            }
        }
    }
}

/// A buffer smaller than this is cheaper to allocate than to look for.
const BUFFER_BYTES_MIN: usize = 16 << 10;

/// Buffers that are used again once every record in them has been dropped: this saves zeroing
/// them.
///
/// A buffer is used again only for what fills half of it or more, as a record that is kept keeps
/// all of the buffer.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    kept: Mutex<Vec<Bytes>>,
}

impl Buffers {
    /// A buffer of at least `length` bytes, with any content.
    pub(crate) fn take(&self, length: usize) -> BytesMut {
        if length < BUFFER_BYTES_MIN {
            return BytesMut::zeroed(length);
        }
        let fits = |buffer: &Bytes| (length..=2 * length).contains(&buffer.len());
        let mut kept = self.kept.lock();
        let found = kept.iter().position(|buffer| fits(buffer) && buffer.is_unique());
        let buffer = found.map(|at| kept.swap_remove(at));
        drop(kept);
        match buffer.map(Bytes::try_into_mut) {
            Some(Ok(buffer)) => buffer,
            _ => BytesMut::zeroed(length),
        }
    }

    /// An empty buffer with room for at least `capacity` bytes.
    pub(crate) fn take_empty(&self, capacity: usize) -> BytesMut {
        if capacity < BUFFER_BYTES_MIN {
            return BytesMut::with_capacity(capacity);
        }
        let fits = |buffer: &Bytes| buffer.len() <= 2 * capacity;
        let mut kept = self.kept.lock();
        let found = kept.iter().position(|buffer| fits(buffer) && buffer.is_unique());
        let buffer = found.map(|at| kept.swap_remove(at));
        drop(kept);
        let mut buffer = match buffer.map(Bytes::try_into_mut) {
            Some(Ok(buffer)) => buffer,
            _ => BytesMut::new(),
        };
        buffer.clear();
        buffer.reserve(capacity);
        buffer
    }

    /// Freezes a buffer, and remembers it for when it is free again.
    pub(crate) fn share(&self, buffer: BytesMut) -> Bytes {
        let buffer = buffer.freeze();
        if (BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX).contains(&buffer.len()) {
            let mut kept = self.kept.lock();
            if kept.len() == BUFFERS_MAX {
                // Evicts the oldest entry. Readers that use it hold a reference of their own.
                kept.remove(0);
            }
            kept.push(buffer.clone());
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_only_when_nobody_reads_it() {
        let buffers = Buffers::default();
        let length = 64 << 10;
        let first = buffers.share(buffers.take(length));
        let at = first.as_ptr();
        let held = first.slice(10..20);
        drop(first);
        assert_ne!(buffers.take(length).as_ptr(), at, "a slice is still held");
        drop(held);
        assert_eq!(buffers.take(length).as_ptr(), at);
    }

    #[test]
    fn a_buffer_is_never_much_larger_than_what_it_is_for() {
        let buffers = Buffers::default();
        for length in [1 << 20, 64 << 10, 94, 4 << 10, 20 << 10, 700 << 10, 94, 1 << 20, 30 << 10] {
            let taken = buffers.take(length);
            assert!((length..=2 * length).contains(&taken.len()), "{length}: {}", taken.len());
            drop(buffers.share(taken));
            let mut empty = buffers.take_empty(length);
            assert!(empty.is_empty() && empty.capacity() <= 4 * length, "{length}");
            empty.resize(length, 0);
            drop(buffers.share(empty));
        }
    }

    #[test]
    fn the_cache_drops_what_was_used_least_recently() {
        let batches = |count: u64| {
            let all: Vec<_> = (0..count).map(|at| BatchRef::new(at, 0, 0, 0, 0)).collect();
            Cached::Batches(all.into())
        };
        let mut cache = IndexCache::new(3 * batches(10).bytes());
        for sequence in 0..3 {
            cache.put(Key::Batches(sequence, 1), batches(10));
        }
        assert!(cache.get(Key::Batches(0, 1)).is_some());
        cache.put(Key::Batches(3, 1), batches(10));
        assert!(cache.get(Key::Batches(1, 1)).is_none());
        assert!(cache.get(Key::Batches(0, 1)).is_some());
        assert_eq!(cache.bytes, 3 * batches(10).bytes());
    }

    /// Against a list that is searched: all entries, in the order of their last use.
    #[test]
    fn the_cache_agrees_with_a_list_by_last_use() {
        let batches = |count: u64| {
            let all: Vec<_> = (0..count).map(|at| BatchRef::new(at, 0, 0, 0, 0)).collect();
            Cached::Batches(all.into())
        };
        let limit = 40 * batches(4).bytes();
        let mut cache = IndexCache::new(limit);
        let mut list: Vec<(Key, usize)> = Vec::new();
        // Steps of a generator that visits all numbers below 2^16.
        let mut number = 1u64;
        for _ in 0..20_000 {
            number = (number * 25_173 + 13_849) % (1 << 16);
            let key = Key::Batches(number % 97, 1);
            let at = list.iter().position(|(listed, _)| *listed == key);
            if number & 0x400 == 0 {
                assert_eq!(cache.get(key).is_some(), at.is_some());
                if let Some(at) = at {
                    let used = list.remove(at);
                    list.push(used);
                }
                continue;
            }
            let cached = batches(number >> 12);
            if let Some(at) = at {
                list.remove(at);
            }
            list.push((key, cached.bytes()));
            cache.put(key, cached);
            while list.iter().map(|(_, bytes)| bytes).sum::<usize>() > limit {
                list.remove(0);
            }
            assert_eq!(cache.bytes, list.iter().map(|(_, bytes)| bytes).sum::<usize>());
            let kept: Vec<Key> = cache.order.values().copied().collect();
            assert_eq!(kept, list.iter().map(|(key, _)| *key).collect::<Vec<_>>());
            assert_eq!(cache.entries.len(), list.len());
        }
    }
}
