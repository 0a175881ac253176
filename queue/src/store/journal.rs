//! Partitions in a journal.
//!
//! Partition `n` of a namespace is the logs `2n` and `2n + 1`, and when it has been compacted one
//! more. A record of the first is one batch, as it is. The last record of the second is the
//! snapshot; earlier ones are released.
//!
//! Compaction replaces the first batches of the partition by those of a copy, which is a log by
//! itself: `2^63 + g * 2^32 + n` for generation `g`, 1 to 2^31 - 1. The partition's positions are
//! those of log `2n` from where the copy ends; the batches of the copy are at the positions before.
//!
//! A record of the second log, version 1, all integers little-endian: version (1 byte), generation
//! (4), position at which the copy ends (8), number of batches in the copy (8), the snapshot of the
//! partition.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use voussoir_journal::{Batch, Commit, Error, Health, Journal, Lease, Log, ReadError};

use super::gather::{Gather, Small, append_at};
use super::{Done, Durability, Extent, PartitionLog, PartitionStore, Replace, Write};
use crate::error::StoreError;

/// Batches from this size on are written without being copied, each as a batch of the journal.
const WHOLE_BYTES: usize = 16 << 10;
/// Smaller ones are put together up to this size: a read of one reads its whole journal batch.
const JOINED_BYTES: usize = 64 << 10;
/// One write is being made durable, and the next one follows without a pause. What comes meanwhile
/// shares the one after that.
const MAX_IN_FLIGHT: usize = 2;
/// What the journal adds to a commit, besides what it adds to each batch.
const OVERHEAD_BYTES: usize = 576;
/// The version of the records that hold snapshots, and what is before the snapshot.
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 21;
/// Ids of logs that hold copies have this bit.
const COPY_ID: u64 = 1 << 63;
/// The generations of a partition that there may be.
const MAX_GENERATION: u64 = (1 << 31) - 1;

/// The partitions of a queue in a namespace of a [`Journal`], which other parts of the process
/// share.
#[derive(Debug)]
pub struct JournalStore {
    journal: Journal,
    lease: Arc<Lease>,
    gather: Arc<Gather>,
    /// Ids of the copies that there were at the beginning, in the order of their partitions.
    copies: Vec<u64>,
}

impl JournalStore {
    /// Takes `namespace` for itself, until this and all its partitions have been dropped.
    ///
    /// # Errors
    /// Another user of the journal has the namespace, or it is no name.
    pub fn new(journal: &Journal, namespace: &str) -> Result<Self, StoreError> {
        let lease = journal.lease(namespace).map_err(|error| from_commit(&error))?;
        let mut copies: Vec<u64> = copies(journal, namespace).collect();
        copies.sort_unstable_by_key(|id| (partition_of(*id), *id));
        let (lease, gather) = (Arc::new(lease), Gather::new(journal));
        Ok(Self { journal: journal.clone(), lease, gather, copies })
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

    /// The logs of these partitions, damaged or not: to delete them.
    pub(crate) fn logs_of(&self, numbers: &[u32]) -> Result<Vec<Log>, StoreError> {
        let firsts = numbers.iter().map(|number| u64::from(*number) * 2);
        let ids = firsts.flat_map(|first| [first, first + 1]);
        let copies = copies(&self.journal, self.lease.namespace());
        let copies = copies.filter(|id| numbers.contains(&partition_of(*id)));
        let log = |id| self.journal.log(self.lease.namespace(), id);
        let logs: Result<_, _> = ids.chain(copies).map(log).collect();
        logs.map_err(|error| from_commit(&error))
    }

    /// Deletes copies of partitions that are gone: a compaction that was under way may have left
    /// them behind the deletion of its topic.
    pub(crate) fn delete_orphans(&self, exists: impl Fn(u32) -> bool) {
        let orphans = self.copies.iter().copied().filter(|id| !exists(partition_of(*id)));
        let logs = orphans.filter_map(|id| self.journal.log(self.lease.namespace(), id).ok());
        for log in logs {
            clean_up(&self.journal, Commit::new().delete(&log));
        }
    }

    #[cfg(test)]
    pub(super) fn gather(&self) -> &Arc<Gather> {
        &self.gather
    }

    /// The namespace that its logs are in.
    pub(crate) fn namespace(&self) -> &str {
        self.lease.namespace()
    }

    /// The journal, and what a commit of it may have in bytes.
    pub(crate) fn journal(&self) -> (&Journal, usize) {
        (&self.journal, max_write_bytes(&self.journal))
    }

    /// The store of partition `number`, which is created by its first write. What an unfinished
    /// compaction has left is deleted.
    ///
    /// # Errors
    /// The journal takes no more logs, or damage has hit those of the partition.
    pub fn partition(&self, number: u32) -> Result<JournalPartition, StoreError> {
        let first = u64::from(number) * 2;
        let (data, snapshots) = (self.log(first)?, self.log(first + 1)?);
        let head = match last_record(&snapshots)? {
            Some(record) => Head::read(&record)?,
            None => Head::default(),
        };
        let copy = match head.batches {
            0 => None,
            _ => Some(self.log(copy_id(number, head.generation))?),
        };
        if copy.as_ref().is_some_and(|copy| copy.end() != head.batches) {
            let why = format!("the copy of partition {number} has lost batches");
            return Err(StoreError::Unreadable { why });
        }
        let log = Arc::new(JournalLog { data, copy, head });
        let partition = JournalPartition {
            journal: self.journal.clone(),
            lease: Arc::clone(&self.lease),
            gather: Arc::clone(&self.gather),
            commits: Arc::default(),
            number,
            snapshots,
            log: Arc::new(Mutex::new(log)),
        };
        partition.delete_leftovers(self)?;
        Ok(partition)
    }
}

/// The last record of a log.
fn last_record(log: &Log) -> Result<Option<Bytes>, StoreError> {
    let Range { start, end } = log.bounds();
    if start == end {
        return Ok(None);
    }
    log.read(end - 1).map(Some).map_err(from_read)
}

/// The ids of all copies that exist.
fn copies(journal: &Journal, namespace: &str) -> impl Iterator<Item = u64> + use<> {
    let logs = journal.logs_of(namespace).into_iter();
    logs.map(|log| log.name.id).filter(|id| id & COPY_ID != 0)
}

/// The id of the log that holds the copy of a generation.
fn copy_id(number: u32, generation: u64) -> u64 {
    COPY_ID | (generation << 32) | u64::from(number)
}

/// The partition of a log that holds a copy.
fn partition_of(id: u64) -> u32 {
    (id & u64::from(u32::MAX)) as u32
}

/// Lets go of what nobody needs. When it fails, the next opening does it.
fn clean_up(journal: &Journal, commit: Commit) {
    let commit = commit.durability(voussoir_journal::Durability::Written);
    let done = |result: Result<(), StoreError>| {
        if let Err(error) = result {
            tracing::debug!(target: "voussoir::queue", %error, "a replaced log is not deleted yet");
        }
    };
    submit(journal, commit, Done::new(done));
}

/// What stands before a snapshot: which generation it is of, and where its copy is.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    generation: u64,
    /// The position behind the last batch of the copy.
    end: u64,
    /// Batches of the copy. Invariant: at most `end`.
    batches: u64,
}

impl Head {
    fn read(mut record: &[u8]) -> Result<Self, StoreError> {
        let damaged = |why: &str| StoreError::Unreadable { why: format!("a snapshot {why}") };
        if record.len() < HEAD_BYTES {
            return Err(damaged("is cut off"));
        }
        if record.get_u8() != VERSION {
            return Err(damaged("has a version that this build does not know"));
        }
        let generation = u64::from(record.get_u32_le());
        let head = Self { generation, end: record.get_u64_le(), batches: record.get_u64_le() };
        let is_valid = head.batches <= head.end && generation <= MAX_GENERATION;
        if is_valid { Ok(head) } else { Err(damaged("names a copy that cannot be")) }
    }

    /// The record of a snapshot.
    fn record(&self, snapshot: &[u8]) -> Bytes {
        let mut record = BytesMut::with_capacity(HEAD_BYTES + snapshot.len());
        record.put_u8(VERSION);
        record.put_u32_le(self.generation as u32);
        record.put_u64_le(self.end);
        record.put_u64_le(self.batches);
        record.put_slice(snapshot);
        record.freeze()
    }

    /// What position 0 of the copy is in the partition.
    fn shift(&self) -> u64 {
        self.end - self.batches
    }
}

/// A generation of a partition: the copy, and the log from where it ends.
struct JournalLog {
    data: Log,
    /// `None` while nothing has been compacted, or nothing was left.
    copy: Option<Log>,
    head: Head,
}

impl PartitionLog for JournalLog {
    fn generation(&self) -> u64 {
        self.head.generation
    }

    fn bounds(&self) -> Range<u64> {
        // The copy first: a release never reaches beyond it before it is empty.
        let copied = self.copy.as_ref().map(|copy| copy.bounds().start);
        let Range { start, end } = self.data.bounds();
        let start = start.max(self.head.end);
        let first = copied.filter(|first| *first < self.head.batches);
        first.map_or(start, |first| first + self.head.shift())..end.max(start)
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let Some(copy) = self.copy.as_ref().filter(|_| range.start < self.head.end) else {
            if range.start < self.head.end {
                return Err(StoreError::Released { first: self.head.end });
            }
            return self.data.read_range(range, max_bytes).map_err(from_read);
        };
        let shift = self.head.shift();
        let first = self.bounds().start;
        if range.start < first {
            return Err(StoreError::Released { first });
        }
        let copied = range.start - shift..range.end.min(self.head.end).max(shift) - shift;
        let read = copy.read_range(copied, max_bytes);
        let mut batches = read.map_err(|error| match from_read(error) {
            StoreError::Released { first } => StoreError::Released { first: first + shift },
            other => other,
        })?;
        let is_whole = range.start + batches.len() as u64 == self.head.end;
        let bytes: usize = batches.iter().map(Bytes::len).sum();
        if is_whole && range.end > self.head.end && bytes < max_bytes {
            let rest = self.data.read_range(self.head.end..range.end, max_bytes - bytes);
            batches.extend(rest.map_err(from_read)?);
        }
        Ok(batches)
    }

    fn extents(&self) -> Vec<Extent> {
        let (shift, end) = (self.head.shift(), self.head.end);
        let copied = self.copy.iter().flat_map(Log::extents);
        let copied = copied.map(|at| (at.first + shift, at.end + shift, at.bytes));
        let data = self.data.extents().into_iter();
        let data = data.filter(|at| at.end > end).map(|at| (at.first.max(end), at.end, at.bytes));
        copied.chain(data).map(|(first, end, bytes)| Extent { first, end, bytes }).collect()
    }
}

impl fmt::Debug for JournalLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { data, head, .. } = self;
        f.debug_struct("JournalLog").field("data", data).field("head", head).finish_non_exhaustive()
    }
}

/// One partition in a journal.
pub struct JournalPartition {
    journal: Journal,
    lease: Arc<Lease>,
    gather: Arc<Gather>,
    /// Writes on their way that are commits by themselves. While there are any, a small write is
    /// one too: behind a large commit of its log it would hold up those of other partitions.
    commits: Arc<AtomicUsize>,
    number: u32,
    snapshots: Log,
    /// The present generation.
    log: Arc<Mutex<Arc<JournalLog>>>,
}

impl JournalPartition {
    fn current(&self) -> Arc<JournalLog> {
        Arc::clone(&self.log.lock())
    }

    /// The write as a small one, if it is nothing but a few short batches.
    fn to_small(&self, write: &Write) -> Option<Small> {
        let bytes: usize = write.batches.iter().map(|batch| batch.len() + 4).sum();
        let Write { release: None, snapshot: None, replace: None, retire: None, .. } = write else {
            return None;
        };
        if bytes > WHOLE_BYTES || self.commits.load(Ordering::Acquire) > 0 {
            return None;
        }
        let batch = match &write.batches[..] {
            [] => return None,
            [batch] => Batch::from(batch.clone()),
            batches => joined(batches, bytes),
        };
        let (log, position) = (self.current().data.clone(), write.position);
        let durability = durability_of(write);
        Some(Small { log, position, batch, bytes, durability })
    }

    /// Whether `log` is the one of its batches.
    pub(crate) fn is_in(&self, log: &Log) -> bool {
        self.current().data.name() == log.name()
    }

    /// The log of a generation's copy.
    fn copy(&self, generation: u64) -> Result<Log, StoreError> {
        if generation > MAX_GENERATION {
            let why = format!("the partition has been compacted {MAX_GENERATION} times");
            return Err(StoreError::Rejected { why });
        }
        let log = self.journal.log(self.lease.namespace(), copy_id(self.number, generation));
        log.map_err(|error| from_commit(&error))
    }

    /// Deletes what an unfinished compaction, or a replaced generation, has left.
    fn delete_leftovers(&self, store: &JournalStore) -> Result<(), StoreError> {
        let JournalLog { data, head, .. } = &*self.current();
        let current = copy_id(self.number, head.generation);
        let at = store.copies.partition_point(|id| partition_of(*id) < self.number);
        let copies = store.copies[at..].iter().copied();
        let copies = copies.take_while(|id| partition_of(*id) == self.number);
        for id in copies.filter(|id| *id != current || head.batches == 0) {
            let log = self.journal.log(self.lease.namespace(), id);
            let log = log.map_err(|error| from_commit(&error))?;
            clean_up(&self.journal, Commit::new().delete(&log));
        }
        if data.exists() && data.first() < head.end {
            clean_up(&self.journal, Commit::new().release(data, head.end));
        }
        Ok(())
    }

    /// The generation that a write begins.
    fn successor(&self, replace: Replace) -> Result<JournalLog, StoreError> {
        let JournalLog { data, head, .. } = &*self.current();
        let Replace { end, batches } = replace;
        let head = Head { generation: head.generation + 1, end, batches };
        let copy = self.copy(head.generation)?;
        if copy.bounds() != (0..batches) || batches > end {
            let why = format!("the copy has the batches {:?} and not {batches}", copy.bounds());
            return Err(StoreError::Rejected { why });
        }
        let copy = (batches > 0).then_some(copy);
        Ok(JournalLog { data: data.clone(), copy, head })
    }

    /// Adds what `write` does to a commit.
    pub(crate) fn add_to(&self, mut commit: Commit, write: Write) -> Commit {
        let JournalLog { data, copy, head } = &*self.current();
        commit = append_at(commit, data, write.position);
        commit = append_to(commit, data, write.batches);
        if let Some(upto) = write.release {
            if let Some(copy) = copy {
                let released = upto.saturating_sub(head.shift()).min(head.batches);
                commit = commit.release(copy, released);
            }
            if upto > head.end {
                commit = commit.release(data, upto);
            }
        }
        if let Some(retire) = write.retire {
            if data.exists() && data.first() < retire.end {
                commit = commit.release(data, retire.end);
            }
            if let Ok(copy) = self.copy(retire.generation) {
                commit = commit.delete(&copy);
            }
        }
        if let Some(snapshot) = write.snapshot {
            // With a release, or a copy, it stands for batches that go.
            if write.release.is_some() || write.replace.is_some() {
                commit = commit.frees_space();
            }
            let head = match write.replace {
                Some(Replace { end, batches }) => {
                    Head { generation: head.generation + 1, end, batches }
                }
                None => *head,
            };
            let before = self.snapshots.end();
            let record = Batch::from(head.record(&snapshot));
            commit = commit.append_batch(&self.snapshots, record);
            commit = commit.release(&self.snapshots, before);
        }
        commit
    }
}

fn durability_of(write: &Write) -> voussoir_journal::Durability {
    match write.durability {
        // What the journal has only buffered it may drop when it is full, a small commit of
        // another log may overtake it, and no read shows it: it is not yet in the store.
        Durability::Buffered | Durability::Written => voussoir_journal::Durability::Written,
        Durability::Synced => voussoir_journal::Durability::Synced,
    }
}

/// Batches as records of one batch of the journal, of about so many bytes.
fn joined(batches: &[Bytes], bytes: usize) -> Batch {
    let mut joined = Batch::builder(bytes);
    for batch in batches {
        joined.push(batch);
    }
    joined.finish()
}

/// Appends batches to a log: large ones as they are, small ones together.
fn append_to(mut commit: Commit, log: &Log, batches: Vec<Bytes>) -> Commit {
    let (mut from, mut bytes) = (0, 0);
    for (at, batch) in batches.iter().enumerate() {
        let is_whole = batch.len() >= WHOLE_BYTES;
        let is_full = bytes + batch.len() > JOINED_BYTES;
        if from < at && (is_whole || is_full) {
            commit = commit.append_batch(log, joined(&batches[from..at], bytes));
            (from, bytes) = (at, 0);
        }
        if is_whole {
            commit = commit.append_batch(log, Batch::from(batch.clone()));
            from = at + 1;
        } else {
            bytes += batch.len() + 4;
        }
    }
    if from < batches.len() {
        commit = commit.append_batch(log, joined(&batches[from..], bytes));
    }
    commit
}

impl PartitionStore for JournalPartition {
    fn log(&self) -> Arc<dyn PartitionLog> {
        self.current()
    }

    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        let record = last_record(&self.snapshots)?;
        record.map(|record| Head::read(&record).map(|_| record.slice(HEAD_BYTES..))).transpose()
    }

    fn max_write_bytes(&self) -> usize {
        max_write_bytes(&self.journal)
    }

    fn max_in_flight(&self) -> usize {
        MAX_IN_FLIGHT
    }

    fn submit(&self, write: Write, done: Done) {
        let end = self.current().data.end();
        if write.position.is_some_and(|position| position < end) {
            // Nobody else writes to the log: this would cut off what has been acknowledged.
            let why = format!("a write for an earlier position than the end of the log, {end}");
            return done.complete(Err(StoreError::Rejected { why }));
        }
        let successor = match write.replace.map(|replace| self.successor(replace)).transpose() {
            Ok(successor) => successor,
            Err(error) => return done.complete(Err(error)),
        };
        if let Some(small) = self.to_small(&write) {
            return self.gather.submit(small, done);
        }
        let commit = Commit::new().durability(durability_of(&write));
        let commit = self.add_to(commit, write);
        let (log, commits) = (Arc::clone(&self.log), Arc::clone(&self.commits));
        commits.fetch_add(1, Ordering::AcqRel);
        let then = move |result: Result<(), StoreError>| {
            commits.fetch_sub(1, Ordering::AcqRel);
            if let (Ok(()), Some(successor)) = (&result, successor) {
                *log.lock() = Arc::new(successor);
            }
            done.complete(result);
        };
        self.gather.submit_behind(commit, Done::new(then));
    }

    fn discard_copy(&self, done: Done) {
        match self.copy(self.current().head.generation + 1) {
            Ok(copy) => {
                let commit = Commit::new().delete(&copy);
                let commit = commit.durability(voussoir_journal::Durability::Written);
                submit(&self.journal, commit, done);
            }
            Err(error) => done.complete(Err(error)),
        }
    }

    fn append_copy(&self, batches: Vec<Bytes>, done: Done) {
        match self.copy(self.current().head.generation + 1) {
            Ok(copy) => {
                let commit = append_to(Commit::new(), &copy, batches);
                let commit = commit.durability(voussoir_journal::Durability::Written);
                submit(&self.journal, commit, done);
            }
            Err(error) => done.complete(Err(error)),
        }
    }
}

impl fmt::Debug for JournalPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = self.current();
        f.debug_struct("JournalPartition").field("log", &log).finish_non_exhaustive()
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
    let slot = Arc::new(Mutex::new(Some(done)));
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
        // The position of a write that was decided behind one that has failed since.
        Error::Busy { .. } | Error::OutOfRange { .. } => StoreError::Busy { why },
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
