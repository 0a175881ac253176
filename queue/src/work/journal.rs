//! The state of a work queue in a journal.
//!
//! Log 0 of the namespace has the records of the state: a checkpoint, unless nothing was written
//! before the first one, and the events behind it. Log 1 has two records for each dead letter, at
//! twice its id.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use voussoir_journal::{Batch, Commit, Health, Journal, Lease, Log};

use super::config::WorkConfig;
use super::dead::StoredLetter;
use super::queue::WorkQueue;
use super::store::{WorkStore, WorkWrite};
use crate::error::{OpenError, StoreError, TopicError};
use crate::queue::Queue;
use crate::store::Done;
use crate::store::journal::{from_commit, from_read, max_write_bytes, submit};

/// The longest namespace of a journal.
const MAX_NAMESPACE_BYTES: usize = 64;
/// Dead letters are put together in batches of the journal up to this size.
const JOINED_BYTES: usize = 64 << 10;

/// The state of a work queue in a [`Journal`], in a namespace of its own.
///
/// It must be the journal of the source: only then is no acknowledgement kept whose record is lost.
pub struct JournalWork {
    journal: Journal,
    state: Log,
    letters: Log,
    _lease: Lease,
}

impl JournalWork {
    /// Takes `namespace` for itself until it is dropped. The first write creates its logs.
    ///
    /// # Errors
    /// Another user of the journal has the namespace, it is no name, the journal takes no more
    /// logs, or damage has hit those of the work queue.
    pub fn new(journal: &Journal, namespace: &str) -> Result<Self, StoreError> {
        let lease = journal.lease(namespace).map_err(|error| from_commit(&error))?;
        let log = |id: u64| {
            let log = journal.log(namespace, id).map_err(|error| from_commit(&error))?;
            match log.health() {
                Health::Intact => Ok(log),
                damage => {
                    let why = format!("{} is damaged ({damage:?})", log.name());
                    Err(StoreError::Unreadable { why })
                }
            }
        };
        let (state, letters) = (log(0)?, log(1)?);
        Ok(Self { journal: journal.clone(), state, letters, _lease: lease })
    }

    fn to_commit(&self, write: WorkWrite) -> Commit {
        let mut commit = Commit::new();
        if let Some(checkpoint) = write.checkpoint {
            let before = self.state.end();
            commit = commit.append_batch(&self.state, Batch::from(checkpoint));
            commit = commit.release(&self.state, before);
        }
        commit = commit.append_batch(&self.state, Batch::from(write.events));
        let mut joined = Batch::builder(0);
        for letter in write.letters {
            for record in [letter.batch, letter.cause] {
                if joined.len_bytes() > 0 && joined.len_bytes() + record.len() > JOINED_BYTES {
                    let full = std::mem::replace(&mut joined, Batch::builder(0));
                    commit = commit.append_batch(&self.letters, full.finish());
                }
                if record.len() > JOINED_BYTES {
                    commit = commit.append_batch(&self.letters, Batch::from(record));
                } else {
                    joined.push(&record);
                }
            }
        }
        if joined.len_bytes() > 0 {
            commit = commit.append_batch(&self.letters, joined.finish());
        }
        match write.release_letters {
            Some(id) => commit.release(&self.letters, 2 * id),
            None => commit,
        }
    }
}

impl WorkStore for JournalWork {
    fn bounds(&self) -> Range<u64> {
        self.state.bounds()
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        self.state.read_range(range, max_bytes).map_err(from_read)
    }

    fn letters(&self) -> Range<u64> {
        let Range { start, end } = self.letters.bounds();
        start / 2..end / 2
    }

    fn letter(&self, id: u64) -> Result<StoredLetter, StoreError> {
        let read = |position| self.letters.read(position).map_err(from_read);
        Ok(StoredLetter { batch: read(2 * id)?, cause: read(2 * id + 1)? })
    }

    fn max_write_bytes(&self) -> usize {
        max_write_bytes(&self.journal)
    }

    fn submit(&self, write: WorkWrite, done: Done) {
        submit(&self.journal, self.to_commit(write), done);
    }
}

impl fmt::Debug for JournalWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalWork").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Queue {
    /// Opens the work queue `group` over a partition of a topic. Each group receives all records;
    /// open a group once in a process, and clone the handle.
    ///
    /// Its state is in the queue's journal, in the namespace `<queue>.work.<n>.<group>`, where `n`
    /// is a number that no other partition of the queue ever has: a topic that is deleted and
    /// created again begins with nothing acknowledged.
    ///
    /// # Errors
    /// There is no such topic or partition ([`OpenError::Topic`]); the name of the group is empty,
    /// or longer than the 64 bytes of a journal's namespace leave for it
    /// ([`OpenError::InvalidGroup`]); the group is open already, or the state cannot be read: see
    /// [`OpenError`].
    pub fn work_queue(
        &self,
        topic: &str,
        partition: u32,
        group: &str,
        config: WorkConfig,
    ) -> Result<WorkQueue, OpenError> {
        let slot = self.topic(topic).and_then(|topic| topic.slot(partition));
        let slot = slot.map_err(|error| match error {
            TopicError::Open(error) => error,
            other => OpenError::Topic(Box::new(other)),
        })?;
        let store = self.shared.writer.store();
        let mut namespace = format!("{}.work.{}.", store.namespace(), slot.number);
        let limit = MAX_NAMESPACE_BYTES.saturating_sub(namespace.len());
        if !(1..=limit).contains(&group.len()) {
            return Err(OpenError::InvalidGroup { group: group.to_owned(), limit });
        }
        namespace.push_str(group);
        let work = JournalWork::new(store.journal().0, &namespace)?;
        WorkQueue::open(slot.partition.clone(), work, config)
    }
}
