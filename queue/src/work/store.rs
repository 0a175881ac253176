//! Where a work queue keeps its state: the seam, a store in a journal, one in memory.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::dead::StoredLetter;
use crate::error::StoreError;
use crate::store::Done;

/// One change of a work queue's state, which happens wholly or not at all.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WorkWrite {
    /// Replaces all records of the log, before `events` is appended.
    pub checkpoint: Option<Bytes>,
    /// A record for the log.
    pub events: Bytes,
    /// Dead letters to append, each of which gets the next id.
    pub letters: Vec<StoredLetter>,
    /// Dead letters with ids below this are let go.
    pub release_letters: Option<u64>,
}

/// The log of a work queue's state, and its dead letters.
///
/// A work queue has at most one write on its way.
///
/// Contract: a write is all or nothing, also across a crash, and is acknowledged when it is on
/// stable storage. After a crash the store holds a prefix of its writes that has every acknowledged
/// one; and no write that was begun after a batch of the source had become readable is kept while
/// that batch is lost.
pub trait WorkStore: Send + Sync + fmt::Debug + 'static {
    /// First position of the log, and the position after the last.
    fn bounds(&self) -> Range<u64>;

    /// The records of the log from `range.start` on, up to `range.end` or about `max_bytes`,
    /// whichever comes first; at least one unless the range is empty.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, StoreError>;

    /// The lowest id of a dead letter that is kept, and the id of the next one.
    fn letters(&self) -> Range<u64>;

    /// The dead letter with this id.
    ///
    /// # Errors
    /// It has been let go, or cannot be read.
    fn letter(&self, id: u64) -> Result<StoredLetter, StoreError>;

    /// The most bytes that one write may have: of its records, batches and causes, and
    /// [`BATCH_OVERHEAD_BYTES`](crate::store::BATCH_OVERHEAD_BYTES) more for each of them.
    fn max_write_bytes(&self) -> usize;

    /// Begins a write, and answers through `done` when it is on stable storage or has failed: from
    /// any thread, also before this returns. Must not block for long.
    fn submit(&self, write: WorkWrite, done: Done);
}

/// Keeps the state of a work queue in memory, for tests and for what may be lost with the process.
///
/// Clones share it: opening another work queue over a clone is what a restart is to a store on a
/// disk.
#[derive(Clone, Default)]
pub struct MemoryWork {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    first: u64,
    records: VecDeque<Bytes>,
    first_letter: u64,
    letters: VecDeque<StoredLetter>,
}

impl MemoryWork {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl WorkStore for MemoryWork {
    fn bounds(&self) -> Range<u64> {
        let shared = self.shared.lock();
        shared.first..shared.first + shared.records.len() as u64
    }

    fn read(&self, range: Range<u64>, _max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let shared = self.shared.lock();
        let first = shared.first;
        let skipped = range.start.checked_sub(first).ok_or(StoreError::Released { first })?;
        let wanted = range.end.saturating_sub(range.start) as usize;
        Ok(shared.records.iter().skip(skipped as usize).take(wanted).cloned().collect())
    }

    fn letters(&self) -> Range<u64> {
        let shared = self.shared.lock();
        shared.first_letter..shared.first_letter + shared.letters.len() as u64
    }

    fn letter(&self, id: u64) -> Result<StoredLetter, StoreError> {
        let shared = self.shared.lock();
        let first = shared.first_letter;
        let at = id.checked_sub(first).ok_or(StoreError::Released { first })?;
        let letter = shared.letters.get(at as usize).cloned();
        letter.ok_or_else(|| StoreError::Unreadable { why: format!("no dead letter {id}") })
    }

    fn max_write_bytes(&self) -> usize {
        16 << 20
    }

    fn submit(&self, write: WorkWrite, done: Done) {
        {
            let mut shared = self.shared.lock();
            if let Some(checkpoint) = write.checkpoint {
                shared.first += shared.records.len() as u64;
                shared.records.clear();
                shared.records.push_back(checkpoint);
            }
            shared.records.push_back(write.events);
            shared.letters.extend(write.letters);
            // Ends: each round lets go of a dead letter.
            while shared.first_letter < write.release_letters.unwrap_or(0) {
                if shared.letters.pop_front().is_none() {
                    break;
                }
                shared.first_letter += 1;
            }
        }
        done.complete(Ok(()));
    }
}

impl fmt::Debug for MemoryWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryWork").field("bounds", &self.bounds()).finish_non_exhaustive()
    }
}
