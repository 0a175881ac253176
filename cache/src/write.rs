//! Writes that pass through the cache to a sink.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::Mutex;

use crate::error::{Outcome, SinkError, WriteError};
use crate::flights::{Key, Value};
use crate::lookup::Inner;
use crate::source::{Loaded, Write};
use crate::store::{HashedKey, Probe};

/// Locks for the writes of one key: a power of two. Writes of different keys rarely share one.
const LOCKS: usize = 256;

/// Keeps writes of one key in one order, at the sink and in the cache.
pub(crate) struct Writes(Box<[Mutex<()>]>);

impl Writes {
    pub(crate) fn new() -> Self {
        Self((0..LOCKS).map(|_| Mutex::new(())).collect())
    }
}

/// What is left in the cache after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The value that was written.
    Value,
    /// Nothing: the next reader loads it.
    Nothing,
}

/// Drops the key's entry unless the write has ended in a known way.
struct Undecided<'a, K: Key, V: Value> {
    cache: &'a Inner<K, V>,
    key: &'a HashedKey<K>,
}

impl<K: Key, V: Value> Drop for Undecided<'_, K, V> {
    fn drop(&mut self) {
        let is = |other: &K| *other == self.key.key;
        self.cache.invalidate(&Probe { hash: self.key.hash, is: &is });
    }
}

impl<K: Key, V: Value> Inner<K, V> {
    /// Writes to the sink, and then to the cache. One write of a key at a time.
    pub(crate) async fn write(
        self: &Arc<Self>,
        key: HashedKey<K>,
        value: Option<V>,
        keep: Keep,
    ) -> Result<(), WriteError> {
        if let Some(behind) = &self.behind {
            return behind.0.write(&key.key, value, keep == Keep::Value).await;
        }
        let Some(sink) = self.sink.as_ref() else { return Err(WriteError::NoSink) };
        let _turn = self.writes.0[key.hash as usize % LOCKS].lock().await;
        let undecided = Undecided { cache: self, key: &key };
        let writes = [Write::new(key.key.clone(), value)];
        let written = {
            let mut write = pin!(sink.write(&writes));
            let answers = std::future::poll_fn(|cx| {
                let polled = catch_unwind(AssertUnwindSafe(|| write.as_mut().poll(cx)));
                polled.unwrap_or_else(|_| Poll::Ready(vec![Err(SinkError::panicked())]))
            });
            let missing = || Err(SinkError::unknown("the sink did not answer for this write"));
            answers.await.into_iter().next().unwrap_or_else(missing)
        };
        let [Write { value, .. }] = writes;
        match written {
            Ok(()) => {}
            Err(error) => {
                if error.outcome == Outcome::NotApplied {
                    std::mem::forget(undecided);
                }
                return Err(error.into_write_error());
            }
        }
        let (Keep::Value, Some(value)) = (keep, value) else {
            // The entry is dropped, and a load that read the old value is not stored.
            return Ok(());
        };
        let version = self.next_version();
        if let Some(entry) = self.entry(&key.key, version, 0, &Loaded::value(value)) {
            std::mem::forget(undecided);
            self.insert(key.clone(), entry);
        }
        Ok(())
    }

    /// A sink has this value, or with `None` an unknown one. Entries and loads from before are
    /// overtaken.
    pub(crate) fn flushed(&self, key: &K, value: Option<V>) {
        let key = HashedKey { hash: self.hash(key), key: key.clone() };
        let version = self.next_version();
        let entry = value.map(|value| self.entry(&key.key, version, 0, &Loaded::value(value)));
        if let Some(entry) = entry.flatten() {
            self.insert(key, entry);
        } else {
            let is = |other: &K| *other == key.key;
            self.invalidate(&Probe { hash: key.hash, is: &is });
        }
    }
}
