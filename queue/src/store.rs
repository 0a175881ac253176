//! Where the batches of a partition are: the trait of a store, one in a journal, one in memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::StoreError;

#[cfg(feature = "journal")]
mod gather;
#[cfg(feature = "journal")]
pub(crate) mod journal;
mod memory;

#[cfg(feature = "journal")]
pub use journal::{JournalPartition, JournalStore};
pub use memory::MemoryPartition;

/// What a store may add to each batch and snapshot of a write, in bytes.
pub const BATCH_OVERHEAD_BYTES: usize = 128;

/// How durable a write is before it is acknowledged. Not how soon: in a journal a write waits for
/// those that were submitted before it, of any partition, and for their syncs; small writes of
/// several partitions that wait leave in one commit, which is as durable as the most demanding of
/// them. What must not wait for the syncs of others has a journal of its own.
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
    /// The position that the first of `batches` is for, when the write was decided while others
    /// were on their way. Where the log ends before, one of them has failed, and the store answers
    /// [`StoreError::Busy`].
    pub position: Option<u64>,
    /// Positions before this one are let go.
    pub release: Option<u64>,
    /// Replaces the snapshot.
    pub snapshot: Option<Bytes>,
    /// Begins a generation of the log with the copy in it.
    pub replace: Option<Replace>,
    /// A generation that nobody reads any more.
    pub retire: Option<Retire>,
    /// When the write may be acknowledged.
    pub durability: Durability,
}

/// How a compaction ends: the batches before `end` are replaced by those of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replace {
    /// The first position that stays as it is. The batches of the copy are at the positions before
    /// it, so that the log is dense.
    pub end: u64,
    /// Batches of the copy, no more than those that they replace.
    pub batches: u64,
}

/// A generation of a log that has been replaced, and has no reader any more: its part of the store
/// can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retire {
    /// The generation: [`PartitionLog::generation`].
    pub generation: u64,
    /// Where its successor took over: [`Replace::end`].
    pub end: u64,
}

/// A part of a log whose space is reclaimed as a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First position.
    pub first: u64,
    /// Position after the last one.
    pub end: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// The answer to a [`Write`]. Dropped without an answer, it answers
/// [`StoreError::Failed`]: the outcome is unknown.
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

/// A generation of a log: batches at dense positions. Compaction begins another one, in which
/// positions may mean other batches; the old one can be read until it is
/// [retired](Write::retire).
pub trait PartitionLog: Send + Sync + fmt::Debug + 'static {
    /// Its number: how often the log has been replaced.
    fn generation(&self) -> u64 {
        0
    }

    /// First position, and the position after the last.
    fn bounds(&self) -> Range<u64>;

    /// The batches from `range.start` on, up to `range.end` or about `max_bytes`, whichever comes
    /// first; at least one unless the range is empty. May wait for a device.
    ///
    /// # Errors
    /// The position has been released, or what is there cannot be read.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, StoreError>;

    /// The parts of the log, from the first position to the last.
    fn extents(&self) -> Vec<Extent>;

    /// Bytes of all parts.
    fn stored_bytes(&self) -> u64 {
        self.extents().iter().map(|extent| extent.bytes).sum()
    }
}

/// A log of batches, with a snapshot beside it.
///
/// A partition has at most [`max_in_flight`](Self::max_in_flight) writes on their way, of which all
/// but the first have a [position](Write::position). They are appended and answered in the order in
/// which they were submitted, and behind one that fails all others do. The store need not order
/// them against those of other partitions, which may overtake each other: what belongs together,
/// such as batches and the state of their producers, is in one write.
///
/// Contract: a write is all or nothing, also across a crash. After a crash the store holds a prefix
/// of its writes that has every one acknowledged as [`Durability::Synced`], and so every one before
/// it. What the [log](Self::log) shows is what has been acknowledged.
///
/// A store that can be compacted keeps a copy beside the log, which is empty at first. The
/// partition fills it with [`append_copy`](Self::append_copy), each call when the one before has
/// been answered, and ends it with a write that has [`Write::replace`]; what became of a copy
/// without one does not matter. Writes may come between.
pub trait PartitionStore: Send + Sync + fmt::Debug + 'static {
    /// The present generation of the log.
    fn log(&self) -> Arc<dyn PartitionLog>;

    /// The latest snapshot.
    ///
    /// # Errors
    /// It cannot be read.
    fn snapshot(&self) -> Result<Option<Bytes>, StoreError>;

    /// The most bytes that one write may have: those of its batches and snapshot, and
    /// [`BATCH_OVERHEAD_BYTES`] more for each of them.
    fn max_write_bytes(&self) -> usize;

    /// How many writes may be on their way at once. Those beyond the first only append batches.
    fn max_in_flight(&self) -> usize {
        1
    }

    /// Begins a write. Calls `done` once, when the write is as durable as [`Write::durability`]
    /// asks, or has failed: from any thread, possibly before this returns. Must not block for long.
    fn submit(&self, write: Write, done: Done);

    /// Empties the copy. A store that cannot be compacted rejects it.
    fn discard_copy(&self, done: Done) {
        done.complete(Err(no_compaction()));
    }

    /// Appends batches to the copy. Need not be durable when it is answered, but no write that
    /// begins after the answer may be durable without it.
    fn append_copy(&self, batches: Vec<Bytes>, done: Done) {
        drop(batches);
        done.complete(Err(no_compaction()));
    }
}

fn no_compaction() -> StoreError {
    StoreError::Rejected { why: "the store cannot be compacted".to_owned() }
}

impl<S: PartitionStore + ?Sized> PartitionStore for Arc<S> {
    fn log(&self) -> Arc<dyn PartitionLog> {
        (**self).log()
    }

    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        (**self).snapshot()
    }

    fn max_write_bytes(&self) -> usize {
        (**self).max_write_bytes()
    }

    fn max_in_flight(&self) -> usize {
        (**self).max_in_flight()
    }

    fn submit(&self, write: Write, done: Done) {
        (**self).submit(write, done);
    }

    fn discard_copy(&self, done: Done) {
        (**self).discard_copy(done);
    }

    fn append_copy(&self, batches: Vec<Bytes>, done: Done) {
        (**self).append_copy(batches, done);
    }
}
