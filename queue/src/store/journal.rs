//! Partitions in a journal.
//!
//! Partition `n` of a namespace is the logs `2n` and `2n + 1`. A record of the first is one batch,
//! as it is. The last record of the second is the snapshot; earlier ones are released.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use voussoir_journal::{Batch, Commit, Error, Health, Journal, Lease, Log, ReadError};

use super::{Done, Durability, Extent, PartitionStore, Write};
use crate::error::StoreError;

/// Batches from this size on are written without being copied, each as a batch of the journal.
const WHOLE_BYTES: usize = 16 << 10;
/// Smaller ones are put together up to this size: a read of one reads its whole journal batch.
const JOINED_BYTES: usize = 64 << 10;
/// What the journal adds to a commit, besides what it adds to each batch.
const OVERHEAD_BYTES: usize = 512;

/// The partitions of a queue in a namespace of a [`Journal`], which other parts of the process
/// share.
#[derive(Debug)]
pub struct JournalStore {
    journal: Journal,
    lease: Arc<Lease>,
}

impl JournalStore {
    /// Takes `namespace` for itself, until this and all its partitions have been dropped.
    ///
    /// # Errors
    /// Another user of the journal has the namespace, or it is no name.
    pub fn new(journal: &Journal, namespace: &str) -> Result<Self, StoreError> {
        let lease = journal.lease(namespace).map_err(|error| from_commit(&error))?;
        Ok(Self { journal: journal.clone(), lease: Arc::new(lease) })
    }

    /// The log `id` of the namespace, undamaged.
    pub(crate) fn log(&self, id: u64) -> Result<Log, StoreError> {
        let log = self.journal.log(self.lease.namespace(), id);
        let log = log.map_err(|error| from_commit(&error))?;
        match log.health() {
            Health::Intact => Ok(log),
            damage => {
                let why = format!("{} is damaged ({damage:?})", log.name());
                Err(StoreError::Unreadable { why })
            }
        }
    }

    /// The logs of partition `number`, damaged or not: to delete them.
    pub(crate) fn logs_of(&self, number: u32) -> Result<[Log; 2], StoreError> {
        let first = u64::from(number) * 2;
        let log = |id| self.journal.log(self.lease.namespace(), id);
        let logs = log(first).and_then(|data| Ok([data, log(first + 1)?]));
        logs.map_err(|error| from_commit(&error))
    }

    /// The namespace that its logs are in.
    pub(crate) fn namespace(&self) -> &str {
        self.lease.namespace()
    }

    /// The journal, and what a commit of it may have in bytes.
    pub(crate) fn journal(&self) -> (&Journal, usize) {
        (&self.journal, max_write_bytes(&self.journal))
    }

    /// The store of partition `number`, which is created by its first write.
    ///
    /// # Errors
    /// The journal takes no more logs, or damage has hit those of the partition.
    pub fn partition(&self, number: u32) -> Result<JournalPartition, StoreError> {
        let first = u64::from(number) * 2;
        Ok(JournalPartition {
            journal: self.journal.clone(),
            data: self.log(first)?,
            snapshots: self.log(first + 1)?,
            _lease: Arc::clone(&self.lease),
        })
    }
}

/// One partition in a journal.
pub struct JournalPartition {
    journal: Journal,
    data: Log,
    snapshots: Log,
    _lease: Arc<Lease>,
}

impl JournalPartition {
    fn to_commit(&self, write: Write) -> Commit {
        let commit = Commit::new().durability(match write.durability {
            // What the journal has only buffered it may drop when it is full, a small commit of
            // another log may overtake it, and no read shows it: it is not yet in the store.
            Durability::Buffered | Durability::Written => voussoir_journal::Durability::Written,
            Durability::Synced => voussoir_journal::Durability::Synced,
        });
        self.add_to(commit, write)
    }

    /// Whether `log` is the one of its batches.
    pub(crate) fn is_in(&self, log: &Log) -> bool {
        self.data.name() == log.name()
    }

    /// Adds what `write` does to a commit. The partition has no other write on its way.
    pub(crate) fn add_to(&self, mut commit: Commit, write: Write) -> Commit {
        let mut joined = Batch::builder(0);
        for batch in write.batches {
            let is_whole = batch.len() >= WHOLE_BYTES;
            let is_full = joined.len_bytes() + batch.len() > JOINED_BYTES;
            if joined.len_bytes() > 0 && (is_whole || is_full) {
                let full = std::mem::replace(&mut joined, Batch::builder(0));
                commit = commit.append_batch(&self.data, full.finish());
            }
            if is_whole {
                commit = commit.append_batch(&self.data, Batch::from(batch));
            } else {
                joined.push(&batch);
            }
        }
        if joined.len_bytes() > 0 {
            commit = commit.append_batch(&self.data, joined.finish());
        }
        if let Some(upto) = write.release {
            commit = commit.release(&self.data, upto);
        }
        if let Some(snapshot) = write.snapshot {
            // With a release it stands for batches that go.
            if write.release.is_some() {
                commit = commit.frees_space();
            }
            let before = self.snapshots.end();
            commit = commit.append_batch(&self.snapshots, Batch::from(snapshot));
            commit = commit.release(&self.snapshots, before);
        }
        commit
    }
}

impl PartitionStore for JournalPartition {
    fn bounds(&self) -> Range<u64> {
        self.data.bounds()
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        self.data.read_range(range, max_bytes).map_err(from_read)
    }

    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        let Range { start, end } = self.snapshots.bounds();
        if start == end {
            return Ok(None);
        }
        self.snapshots.read(end - 1).map(Some).map_err(from_read)
    }

    fn extents(&self) -> Vec<Extent> {
        let extents = self.data.extents().into_iter();
        extents.map(|at| Extent { first: at.first, end: at.end, bytes: at.bytes }).collect()
    }

    fn max_write_bytes(&self) -> usize {
        max_write_bytes(&self.journal)
    }

    fn submit(&self, write: Write, done: Done) {
        submit(&self.journal, self.to_commit(write), done);
    }
}

impl fmt::Debug for JournalPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalPartition").field("data", &self.data).finish_non_exhaustive()
    }
}

pub(crate) fn max_write_bytes(journal: &Journal) -> usize {
    let bytes = usize::try_from(journal.max_commit_bytes()).unwrap_or(usize::MAX);
    bytes.saturating_sub(OVERHEAD_BYTES)
}

/// Hands a commit to the journal, and answers through `done`.
pub(crate) fn submit(journal: &Journal, commit: Commit, done: Done) {
    // The journal calls the closure once, or rejects the commit and drops it: the answer is
    // left where both can take it.
    let slot = Arc::new(parking_lot::Mutex::new(Some(done)));
    let taken = Arc::clone(&slot);
    let answer = move |result: Result<_, Error>| {
        let done = taken.lock().take();
        if let Some(done) = done {
            done.complete(result.map(|_| ()).map_err(|error| from_commit(&error)));
        }
    };
    if let Err(rejected) = journal.submit(commit, answer) {
        let done = slot.lock().take();
        if let Some(done) = done {
            done.complete(Err(from_commit(&rejected.error)));
        }
    }
}

pub(crate) fn from_commit(error: &Error) -> StoreError {
    let why = error.to_string();
    match error {
        Error::Full { .. } | Error::OverQuota { .. } => StoreError::Full { why },
        Error::Busy { .. } => StoreError::Busy { why },
        Error::Failed { .. } => StoreError::Failed { why },
        Error::Stopped { .. } | Error::Closed => StoreError::Stopped { why },
        _ => StoreError::Rejected { why },
    }
}

pub(crate) fn from_read(error: ReadError) -> StoreError {
    match error {
        ReadError::Released { first } => StoreError::Released { first },
        other => StoreError::Unreadable { why: other.to_string() },
    }
}
