//! Where the batches of a partition are: the seam, a store in a journal, one in memory.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use crate::error::StoreError;

#[cfg(feature = "journal")]
pub(crate) mod journal;
mod memory;

#[cfg(feature = "journal")]
pub use journal::{JournalPartition, JournalStore};
pub use memory::MemoryPartition;

/// What a store may add to each batch and snapshot of a write, in bytes.
pub const BATCH_OVERHEAD_BYTES: usize = 128;

/// How durable a write is before it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// Accepted into memory: lost when the process or the machine crashes.
    Buffered,
    /// Given to the operating system: lost when the machine crashes.
    Written,
    /// On stable storage.
    #[default]
    Synced,
}

/// One change of a partition, which happens wholly or not at all.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Write {
    /// Batches to append, each one record at one position, stored as they are.
    pub batches: Vec<Bytes>,
    /// Positions before this one are let go.
    pub release: Option<u64>,
    /// Replaces the snapshot.
    pub snapshot: Option<Bytes>,
    /// When the write may be acknowledged.
    pub durability: Durability,
}

/// A part of a store that comes back as space as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First position.
    pub first: u64,
    /// Position after the last one.
    pub end: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// The answer to a [`Write`]. Dropping it without an answer says that the outcome is unknown.
#[must_use = "each write is answered"]
pub struct Done(Option<Then>);

type Then = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

impl Done {
    /// Calls `then` with the answer.
    pub fn new(then: impl FnOnce(Result<(), StoreError>) + Send + 'static) -> Self {
        Self(Some(Box::new(then)))
    }

    /// Answers the write. Calls back into the partition: hold no lock.
    pub fn complete(mut self, result: Result<(), StoreError>) {
        if let Some(then) = self.0.take() {
            then(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then(Err(StoreError::Failed { why: "the store dropped the write".to_owned() }));
        }
    }
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done").finish_non_exhaustive()
    }
}

/// A log of batches at dense positions, with a snapshot beside it.
///
/// A partition has at most one write on its way, so a store need not order writes of one partition.
/// It must order them against nothing else: data, producer state and whatever else belongs together
/// are in one write. Writes of different partitions may overtake each other.
///
/// Contract: a write is all or nothing, also across a crash. After a crash the store holds a prefix
/// of its writes that has every one acknowledged as [`Durability::Synced`], and so every one before
/// it. What [`bounds`](Self::bounds) and reads show is what has been acknowledged.
pub trait PartitionStore: Send + Sync + fmt::Debug + 'static {
    /// First position, and the position after the last.
    fn bounds(&self) -> Range<u64>;

    /// The batches from `range.start` on, up to `range.end` or about `max_bytes`, whichever comes
    /// first; at least one unless the range is empty. May wait for a device.
    ///
    /// # Errors
    /// The position has been released, or what is there cannot be read.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, StoreError>;

    /// The latest snapshot.
    ///
    /// # Errors
    /// It cannot be read.
    fn snapshot(&self) -> Result<Option<Bytes>, StoreError>;

    /// The parts of the store, from the first position to the last.
    fn extents(&self) -> Vec<Extent>;

    /// Bytes of all parts.
    fn stored_bytes(&self) -> u64 {
        self.extents().iter().map(|extent| extent.bytes).sum()
    }

    /// The most bytes that one write may have: those of its batches and snapshot, and
    /// [`BATCH_OVERHEAD_BYTES`] more for each of them.
    fn max_write_bytes(&self) -> usize;

    /// Begins a write, and answers through `done` when it is as durable as it asks for, or has
    /// failed: from any thread, also before this returns. Must not block for long.
    fn submit(&self, write: Write, done: Done);
}

impl<S: PartitionStore + ?Sized> PartitionStore for std::sync::Arc<S> {
    fn bounds(&self) -> Range<u64> {
        (**self).bounds()
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        (**self).read(range, max_bytes)
    }

    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        (**self).snapshot()
    }

    fn extents(&self) -> Vec<Extent> {
        (**self).extents()
    }

    fn stored_bytes(&self) -> u64 {
        (**self).stored_bytes()
    }

    fn max_write_bytes(&self) -> usize {
        (**self).max_write_bytes()
    }

    fn submit(&self, write: Write, done: Done) {
        (**self).submit(write, done);
    }
}
