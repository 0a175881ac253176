//! The seam to the disk: what a node asks of the place that keeps its records.

#[cfg(feature = "journal")]
mod journal;
mod memory;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

#[cfg(feature = "journal")]
pub use self::journal::{JournalStore, JournalStoreConfig, OpenError};
pub use self::memory::MemoryStore;

/// A change to the record of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key; up to 1,100 bytes.
    pub key: Bytes,
    /// The new record; none removes it.
    pub record: Option<Bytes>,
}

/// Why a store failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Nothing was written, and the store goes on: its disk is full, or the batch is too large.
    /// Retry when there is room.
    #[error("nothing was written: {0}")]
    NotApplied(String),
    /// The batch may be on the disk or not. The store takes no more batches until it was opened
    /// anew.
    #[error("the store has failed: {0}")]
    Unknown(String),
    /// Records were lost or cannot be read. The store may miss anything that it once held: a node
    /// clears it and is rebuilt from the others.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// Another node is served by the store, or a write of one that was dropped is under way.
    /// Nothing was changed. Retry when that one has ended
    /// ([`Node::shutdown`](crate::Node::shutdown)), or open a store of its own for each node.
    #[error("another node has the store")]
    InUse,
}

/// The right of a node to its store, until it is dropped: see [`ReplicaStore::serve`].
#[must_use = "it ends when it is dropped"]
pub struct Serving {
    _guard: Box<dyn Send + Sync>,
}

impl Serving {
    /// Lets go of the store by dropping `guard`.
    pub fn until_dropped(guard: impl Send + Sync + 'static) -> Self {
        Self { _guard: Box::new(guard) }
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}

/// Records of one node, by key: those of its table, of its registers, and one of its own.
///
/// A node calls `apply` once at a time, with everything that was written meanwhile: that is its
/// group commit. Two nodes on one store would give the same numbers to different writes, and lose
/// those of one of them: a store that can be handed to two refuses the second by
/// [`serve`](Self::serve).
#[async_trait]
pub trait ReplicaStore: Send + Sync + 'static {
    /// The longest batch that `apply` takes, in bytes: the lengths of its keys and records, and 32
    /// bytes for each change. It does not change. A node needs 1,152 KiB.
    fn max_batch_bytes(&self) -> usize {
        usize::MAX
    }

    /// Called by a node before anything else. It drops the answer when its task has ended, and
    /// calls nothing but `get` and `scan` afterwards. By default every node is served: then it is
    /// up to the caller that there is one. A store that wraps another asks it.
    ///
    /// # Errors
    /// [`StoreError::InUse`]: another node has the store.
    fn serve(&self) -> Result<Serving, StoreError> {
        Ok(Serving::until_dropped(()))
    }

    /// The durable records of some keys, in the order of the keys.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Cancel safety
    /// Implementations must bear being dropped.
    async fn get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError>;

    /// Makes the changes, in their order, all of them or none. Returns when they are durable.
    ///
    /// # Errors
    /// [`StoreError`] says whether anything can have been written.
    ///
    /// # Cancel safety
    /// When it is dropped the batch may be written or not. A node drops it only with itself.
    async fn apply(&self, batch: Vec<Change>) -> Result<(), StoreError>;

    /// Up to `max_bytes` of keys and records in ascending order of the keys, at least one if there
    /// is any: those that begin with `prefix` and are greater than `after`. An empty answer: there
    /// are no more. Records that are written meanwhile may be missing or be there.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Cancel safety
    /// Implementations must bear being dropped.
    async fn scan(
        &self,
        prefix: &[u8],
        after: &[u8],
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// Removes everything, damaged or not. Afterwards the store is as good as new.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Cancel safety
    /// When it is dropped the records may be there or not.
    async fn clear(&self) -> Result<(), StoreError>;
}
