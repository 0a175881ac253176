//! The orderly end of a cache.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use crate::cache::Cache;
use crate::flights::{Key, Value};

/// How long the flusher, and what is on its way to the journal, have to end.
const END: Duration = Duration::from_secs(1);

/// What a cache had not brought to its end when it was closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "it says what the sink and other processes do not have"]
#[non_exhaustive]
pub struct Closed {
    /// Keys whose newest acknowledged value the sink does not have. They are in the journal, for
    /// the cache that opens the namespace next; those of
    /// [`WriteBehind::in_memory`](crate::WriteBehind::in_memory) are lost.
    pub backlog: u64,
    /// Writes that the journal had not answered. Their callers are told its answer.
    pub unacknowledged: u64,
    /// Writes that the sink has rejected and that nobody has retried or discarded. Kept where the
    /// backlog is.
    pub rejected_writes: u64,
    /// Invalidations that the second level or the bus does not have. They are lost: what other
    /// processes hold may be stale until the end of its lifetime.
    pub unsent: u64,
    /// The namespace of write-behind is not given back yet, because the journal has not answered or
    /// the sink blocks its thread. It is given back when they go on.
    pub keeps_namespace: bool,
}

impl Closed {
    /// Whether the sink has every acknowledged write or has rejected it, other processes have every
    /// invalidation, and the namespace is given back.
    pub fn is_complete(&self) -> bool {
        let rejected_writes = self.rejected_writes;
        *self == Self { rejected_writes, ..Self::default() }
    }
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Ends the cache, for all of its handles. From the call on every write fails with
    /// [`WriteError::Closed`](crate::WriteError::Closed), those that wait for room in the backlog
    /// too, while the backlog is flushed and invalidations are sent, for `within` at most. Reads
    /// work meanwhile. After that nothing is stored or loaded any more: [`get`](Self::get) finds
    /// nothing, and a load fails with [`LoadError::Closed`](crate::LoadError::Closed).
    ///
    /// A call of the sink that is under way at the end of `within` is dropped, with an unknown
    /// outcome: its writes count as not flushed. Flusher and journal then have a second to end;
    /// after it the namespace of [`WriteBehind`](crate::WriteBehind) can be opened again at once,
    /// unless [`Closed::keeps_namespace`] says otherwise. A write-through that is at its sink goes
    /// on to its end.
    ///
    /// A cache whose handles are dropped without `close` flushes nothing more.
    ///
    /// # Cancel safety
    /// Cancel safe. Writes stay rejected, and the backlog is still being flushed; call it again to
    /// go on. A second call after the first has returned gives the same account.
    ///
    /// # Example
    /// ```
    /// use std::time::Duration;
    /// use voussoir_cache::Cache;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cache: Cache<String, u64> = Cache::builder().build()?;
    /// cache.insert("key".into(), 1);
    /// let closed = cache.close(Duration::from_secs(10)).await;
    /// assert!(closed.is_complete(), "{closed:?}");
    /// assert_eq!(cache.get("key"), None);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn close(&self, within: Duration) -> Closed {
        let inner = &*self.inner;
        inner.is_draining.store(true, Ordering::Release);
        if let Some(behind) = &inner.behind {
            behind.0.drain();
        }
        let drained = async {
            if let Some(behind) = &inner.behind {
                behind.0.answered().await;
            }
            self.flush().await;
            // A flush invalidates in other processes.
            self.settle().await;
        };
        // Late: the account says what is left.
        let _ = timeout(within, drained).await;
        let mut closed = Closed::default();
        // Before the backlog stops to answer readers: what it covers up is older.
        inner.is_closed.store(true, Ordering::Release);
        inner.clear();
        if let Some(behind) = &inner.behind {
            let _ = timeout(END, behind.0.end()).await;
            let counts = behind.0.counts();
            (closed.backlog, closed.rejected_writes) = (counts.backlog, counts.rejected_writes);
            closed.unacknowledged = behind.0.unacknowledged();
            closed.keeps_namespace = !behind.0.has_ended();
        }
        if let Some(remote) = &inner.remote {
            closed.unsent = remote.pending();
            remote.close();
        }
        closed
    }
}
