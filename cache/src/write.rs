//! Writes that pass through the cache to a sink.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use tokio::sync::{Mutex, oneshot};
use tokio::time::timeout;

use crate::error::{Outcome, SinkError, WriteError};
use crate::flights::{Key, Value};
use crate::lookup::Inner;
use crate::source::{Loaded, Sink, Write};
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
        self.cache.tell(&self.key.key, true);
        self.cache.invalidate(&Probe { hash: self.key.hash, is: &is });
    }
}

impl<K: Key, V: Value> Inner<K, V> {
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
            return behind.0.write(&key.key, value, keep == Keep::Value).await;
        }
        let Some(sink) = self.sink.clone() else { return Err(WriteError::NoSink) };
        let (mut reply, answer) = oneshot::channel();
        let cache = Arc::clone(self);
        tokio::spawn(async move {
            let turn = &cache.writes.0[key.hash as usize % LOCKS];
            // A caller that goes away while it waits for its turn has written nothing.
            let _turn = tokio::select! {
                turn = turn.lock() => turn,
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
        let (Keep::Value, Some(value)) = (keep, value) else {
            // The entry is dropped, and a load that read the old value is not stored.
            return Ok(());
        };
        let version = self.next_version();
        if let Some(entry) = self.entry(&key.key, version, 0, &Loaded::value(value)) {
            std::mem::forget(undecided);
            self.tell(&key.key, false);
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
        let entry = entry.flatten();
        self.tell(&key.key, entry.is_none());
        if let Some(entry) = entry {
            self.insert(key, entry);
        } else {
            let is = |other: &K| *other == key.key;
            self.invalidate(&Probe { hash: key.hash, is: &is });
        }
    }
}
