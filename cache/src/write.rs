//! Writes that pass through the cache to a sink.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use hashbrown::HashTable;
use tokio::sync::{Mutex, oneshot};
use tokio::time::timeout;

use crate::error::{Outcome, SinkError, WriteError};
use crate::flights::{Key, Value};
use crate::insert::{Insert, Keep, Kept};
use crate::lookup::Inner;
use crate::source::{Sink, Write};
use crate::store::{HashedKey, Probe, SourceVersion};

/// Shards of the table of turns: a power of two.
const SHARDS: usize = 64;

/// Counters of what overtakes writes: a power of two. Two keys that share one cost a load.
const COUNTERS: usize = 4096;

/// Keeps writes of one key in one order, at the sink and in the cache.
pub(crate) struct Writes<K> {
    /// The turns of the keys that are being written or wait for it. Empty without a sink.
    turns: Box<[Shard<K>]>,
    /// How often keys were invalidated or inserted. Changed and compared under the lock of the
    /// key's shard of the flights. Empty without a sink.
    overtaken: Box<[AtomicU64]>,
}

type Shard<K> = parking_lot::Mutex<HashTable<Taken<K>>>;

/// A key's turn in the table.
struct Taken<K> {
    turn: Arc<Turn<K>>,
    /// How many writes have it or wait for it. Invariant: above 0.
    writes: usize,
}

struct Turn<K> {
    key: HashedKey<K>,
    lock: Mutex<()>,
}

/// A write's place in the order of its key. The turn leaves the table with the last one.
struct Place<'a, K: Eq> {
    shard: &'a Shard<K>,
    turn: Arc<Turn<K>>,
}

impl<K: Eq> Drop for Place<'_, K> {
    fn drop(&mut self) {
        let last = {
            let mut table = self.shard.lock();
            let is_this = |taken: &Taken<K>| Arc::ptr_eq(&taken.turn, &self.turn);
            match table.find_entry(self.turn.key.hash, is_this) {
                Ok(mut found) if found.get().writes > 1 => {
                    found.get_mut().writes -= 1;
                    None
                }
                Ok(found) => Some(found.remove().0),
                Err(_) => None,
            }
        };
        // Foreign code, dropping the key: after the lock.
        drop(last);
    }
}

impl<K: Key> Writes<K> {
    pub(crate) fn new(has_sink: bool) -> Self {
        let (shards, counters) = if has_sink { (SHARDS, COUNTERS) } else { (0, 0) };
        Self {
            turns: (0..shards).map(|_| Shard::default()).collect(),
            overtaken: (0..counters).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// A place in the order of a key's writes.
    fn place(&self, key: &HashedKey<K>) -> Place<'_, K> {
        let shard = &self.turns[(key.hash >> 32) as usize % SHARDS];
        // Foreign code, cloning the key, runs before the lock.
        let new = Arc::new(Turn { key: key.clone(), lock: Mutex::new(()) });
        let mut table = shard.lock();
        if let Some(taken) = table.find_mut(key.hash, |taken| taken.turn.key == *key) {
            taken.writes += 1;
            let turn = Arc::clone(&taken.turn);
            drop(table);
            return Place { shard, turn };
        }
        let taken = Taken { turn: Arc::clone(&new), writes: 1 };
        table.insert_unique(key.hash, taken, |taken| taken.turn.key.hash);
        drop(table);
        Place { shard, turn: new }
    }

    /// Keys that are being written.
    #[cfg(test)]
    fn taken(&self) -> usize {
        self.turns.iter().map(|shard| shard.lock().len()).sum()
    }

    /// A number that is another one once the key was invalidated or inserted.
    pub(crate) fn began(&self, hash: u64) -> u64 {
        let counter = self.overtaken.get(hash as usize % COUNTERS);
        counter.map_or(0, |counter| counter.load(Ordering::Acquire))
    }

    /// The key is invalidated or inserted: a write under way may be older.
    pub(crate) fn overtake(&self, hash: u64) {
        if let Some(counter) = self.overtaken.get(hash as usize % COUNTERS) {
            counter.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Drops the key's entry unless the write has ended in a known way.
struct Undecided<'a, K: Key, V: Value> {
    cache: &'a Inner<K, V>,
    key: &'a HashedKey<K>,
}

impl<K: Key, V: Value> Drop for Undecided<'_, K, V> {
    fn drop(&mut self) {
        let is = |other: &K| *other == self.key.key;
        self.cache.tell(&self.key.key, true);
        self.cache.invalidate(&Probe { hash: self.key.hash, is: &is });
    }
}

impl<K: Key, V: Value> Inner<K, V> {
    /// What is kept of a write that begins now.
    pub(crate) fn keep(&self, key: &HashedKey<K>, with: Option<Insert>) -> Arc<Kept> {
        let is = |other: &K| *other == key.key;
        let replaced = self.store.get(&Probe { hash: key.hash, is: &is });
        let above = replaced.and_then(|entry| entry.source_version().map(SourceVersion::floor));
        Arc::new(Kept { with, above })
    }

    /// Writes to the sink, and then to the cache. One write of a key at a time.
    ///
    /// A task of its own: a caller that goes away, or is held without being polled, neither
    /// leaves the sink's answer unseen nor keeps the key's turn.
    pub(crate) async fn write(
        self: &Arc<Self>,
        key: HashedKey<K>,
        value: Option<V>,
        keep: Keep,
    ) -> Result<(), WriteError> {
        if self.is_draining.load(Ordering::Acquire) {
            return Err(WriteError::Closed);
        }
        if let Some(behind) = &self.behind {
            return behind.0.write(&key.key, value, keep).await;
        }
        let Some(sink) = self.sink.clone() else { return Err(WriteError::NoSink) };
        let (mut reply, answer) = oneshot::channel();
        let cache = Arc::clone(self);
        tokio::spawn(async move {
            let place = cache.writes.place(&key);
            // A caller that goes away while it waits for its turn has written nothing.
            let _turn = tokio::select! {
                biased;
                turn = place.turn.lock.lock() => turn,
                () = reply.closed() => return,
            };
            let written = cache.write_through(&*sink, &key, value, keep).await;
            // An error here says that the caller has gone.
            let _ = reply.send(written);
        });
        let shut_down = |_| SinkError::unknown("the runtime was shut down").into_write_error();
        answer.await.map_err(shut_down)?
    }

    /// Writes to the sink, and then to the cache. The caller has the key's turn.
    async fn write_through(
        &self,
        sink: &dyn Sink<K, V>,
        key: &HashedKey<K>,
        value: Option<V>,
        keep: Keep,
    ) -> Result<(), WriteError> {
        let undecided = Undecided { cache: self, key };
        // Before the sink is asked: others may invalidate what they have written after this write,
        // and are heard before the sink's answer is.
        let (version, began) = (self.next_version(), self.writes.began(key.hash));
        let writes = [Write::new(key.key.clone(), value)];
        let written = {
            // In the future, where a panic is caught.
            let mut write = pin!(async { sink.write(&writes).await });
            let answers = std::future::poll_fn(|cx| {
                let polled = catch_unwind(AssertUnwindSafe(|| write.as_mut().poll(cx)));
                polled.unwrap_or_else(|_| Poll::Ready(vec![Err(SinkError::panicked())]))
            });
            let missing = || Err(SinkError::unknown("the sink did not answer for this write"));
            match timeout(self.config.sink_timeout, answers).await {
                Ok(answers) => answers.into_iter().next().unwrap_or_else(missing),
                Err(_) => return Err(WriteError::TimedOut),
            }
        };
        let [Write { value, .. }] = writes;
        if let Err(error) = written {
            if error.outcome == Outcome::NotApplied {
                std::mem::forget(undecided);
            }
            return Err(error.into_write_error());
        }
        let (Some(kept), Some(value)) = (keep, value) else {
            // The entry is dropped, and a load that read the old value is not stored.
            return Ok(());
        };
        let loaded = kept.loaded(value);
        if let Some(entry) = self.entry(&key.key, version, 0, &loaded, Some(&kept)) {
            self.tell(&key.key, false);
            if self.insert_written(key.clone(), entry, began) {
                std::mem::forget(undecided);
            }
        }
        Ok(())
    }

    /// A sink has this value, or with `None` an unknown one. Entries and loads from before are
    /// overtaken. The sink has no other writer, so no invalidation tells of a newer value.
    pub(crate) fn flushed(&self, key: &K, value: Option<(V, &Kept)>) {
        let key = HashedKey { hash: self.hash(key), key: key.clone() };
        let version = self.next_version();
        let entry = value.and_then(|(value, kept)| {
            self.entry(&key.key, version, 0, &kept.loaded(value), Some(kept))
        });
        self.tell(&key.key, entry.is_none());
        if let Some(entry) = entry {
            self.insert(key, entry);
        } else {
            let is = |other: &K| *other == key.key;
            self.invalidate(&Probe { hash: key.hash, is: &is });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_kept_for_as_long_as_a_write_has_or_wants_it() {
        let writes = Writes::<u64>::new(true);
        let key = |key| HashedKey { hash: 7, key };
        let (one, other) = (writes.place(&key(1)), writes.place(&key(2)));
        assert!(!Arc::ptr_eq(&one.turn, &other.turn), "the same hash, and another key");
        let next = writes.place(&key(1));
        assert!(Arc::ptr_eq(&one.turn, &next.turn));
        assert_eq!(writes.taken(), 2);
        drop(one);
        assert!(Arc::ptr_eq(&writes.place(&key(1)).turn, &next.turn), "it waits for its turn");
        drop((other, next));
        assert_eq!(writes.taken(), 0);
    }
}
