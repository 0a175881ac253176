//! A log store on `voussoir-journal`. Feature `journal`.
//!
//! A group keeps these logs in the journal that it shares with others:
//!
//! | log | position | record |
//! |---|---|---|
//! | `raft.log`/group | index of the entry | an entry, see [`codec`] |
//! | `raft.log.GROUP`/number | index of the entry | the same, once the log before it had lost some |
//! | `raft.state`/group | the last one counts | identity, hard state, current snapshot |
//! | `raft.snapshot.GROUP`/number | 0 | name of the snapshot |
//! | | 1 and on | its chunks, each in as many records as the end says |
//! | | the last | its end: all of it was written |
//!
//! The log of entries has the number 0, and is then `raft.log`, or another one, by the state
//! record. When it is found to have lost entries, the next number is begun with what lies before
//! them. The damaged one stays as it is while that goes on with what the peers send, and goes with
//! the state record that says that all is there. So whatever ends a repair, the next start knows by
//! the damaged log how far the node had come, and nothing has been thrown away for what had not
//! arrived.
//!
//! A state record, all integers little-endian:
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version: 1 while there has only been the log 0, else 2 |
//! | 1 | u8 | bits: 1 there is a vote, 2 a snapshot, 4 the log is condemned, 8 it has been begun, 16 it is damaged and the next one is written |
//! | 2 | u16 | length without the voters, 112, or 120 in version 2; what a reader does not know at its end is skipped |
//! | 4 | u32 | number of voters at the end; 0 until the first hard state, and where the node joined |
//! | 8 | u128 | cluster |
//! | 24 | u64 | node |
//! | 32 | u64 | group |
//! | 40 | u64, u64 | term, vote |
//! | 56 | u64, u64 | snapshot: index, term |
//! | 72 | u64, u64, u64 | snapshot: identity, number of its log, number of its chunks |
//! | 96 | u64 | the last index known to be committed, or an earlier one; 0 when none was |
//! | 104 | u64 | number of the log of entries; version 1: written as 0, not looked at |
//! | 112 | u64 | version 2: no entry that is lost is of a later term; 0 when none is |
//! | | u64 each | the voters under which the log was begun |
//!
//! The name record of a snapshot is its identity (u64) and then the snapshot as in [`codec`]; the
//! end record is the number of its chunks (u64), their length in bytes (u64), and how many records
//! each chunk takes (u64), the last ones of which may be empty. The third is left out where it is
//! 1, which it is in segments of at least 16 MiB. End records of earlier versions are without the
//! length, too.

#[cfg(all(test, feature = "testing"))]
mod full_tests;
mod pipeline;
mod room;
mod snapshots;
mod state;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use voussoir_journal::{Commit, Health, Journal, Log, ReadError};

use self::pipeline::{Pipeline, Stores};
use self::room::Account;
use self::snapshots::{Adoption, Snapshots};
use self::state::State;
use crate::codec;
use crate::core::Restored;
use crate::store::{
    Cause, Completion, LogStore, LogWrite, ReadFailed, Room, SnapshotName, SnapshotReader,
    SnapshotWriter, StoreError,
};
use crate::types::{Entry, SnapshotMeta};

/// About how many bytes of entries are read at once when a log is restored.
const RESTORE_BYTES: usize = 4 << 20;

/// The longest entry that a batch of the journal holds, in bytes.
const MAX_ENTRY_BYTES: usize = (1 << 20) - 1024;

/// More than a commit of one entry takes beside its data: the heads of the entry and of the frame,
/// a truncation, and a state record with all voters, which replaces the one before.
const COMMIT_HEAD_BYTES: u64 = 1024;

/// The longest entry that a commit to this journal holds, in bytes.
fn max_entry_bytes(journal: &Journal) -> usize {
    let bytes = journal.max_commit_bytes() - COMMIT_HEAD_BYTES;
    MAX_ENTRY_BYTES.min(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Whose data it is. Kept with the data, so that a directory is never taken for another node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u128,
    /// The node in it.
    pub node: u64,
    /// The group of that node.
    pub group: u64,
}

/// Why a group's data could not be opened. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The caller: the data belongs to another node or cluster. Starting with it would give that
    /// node's votes away a second time.
    #[error("the data is of node {} in cluster {:x}, not of node {} in cluster {:x}",
        .found.node, .found.cluster, .wanted.node, .wanted.cluster)]
    WrongNode {
        /// Whose it is.
        found: Identity,
        /// Whose was asked for.
        wanted: Identity,
    },
    /// The journal holds no data of this node, so it may not start from it. If the node has never
    /// run, begin its data with [`JournalStore::create`]. If it has run, its disk was lost or
    /// another one was mounted: with an empty log the node could vote a second time in one term,
    /// and what it has acknowledged is gone. Bring the right disk back, or leave the node down.
    #[error(
        "no data of node {} (cluster {:x}, group {}) in this journal: \
        if this node has never run, create its data; if it has run, its disk was lost or another \
        one is mounted: bring the data back or leave the node down, do not start it empty",
        .wanted.node, .wanted.cluster, .wanted.group
    )]
    Absent {
        /// Whose data was asked for.
        wanted: Identity,
    },
    /// [`JournalStore::create`] found data of this group, or damage that may have hit such data.
    /// Nothing was overwritten. Use [`JournalStore::open`].
    #[error(
        "group {} has data in this journal already, or damage hides whether it has: \
        open it instead of creating it", .wanted.group
    )]
    Exists {
        /// Whose data was to be created.
        wanted: Identity,
    },
    /// A newer version of this crate wrote it. Use that one.
    #[error("the data has format version {found}, this build knows up to {supported}")]
    NewerFormat {
        /// Its version.
        found: u8,
        /// The newest that this build reads.
        supported: u8,
    },
    /// The journal refused or failed.
    #[error("{0}")]
    Journal(#[from] voussoir_journal::Error),
    /// The journal could not read.
    #[error("{0}")]
    Read(#[from] ReadError),
}

/// Keeps one group in a shared [`Journal`]: entries, vote and snapshots become durable with one
/// sync, together with what everybody else on that journal writes at the time.
///
/// Clones are the same store. Open one per group; a second one for the same group would write
/// between the lines of the first. To start a group again in the same process, hand the same store
/// over, which waits for what is still being written; or open another one once
/// [`Raft::shutdown`](crate::Raft::shutdown) has returned, which waits for that too.
#[derive(Clone, Debug)]
pub struct JournalStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `None`: the state cannot be read, so nothing here can be trusted.
    sound: bool,
    pipeline: Arc<Pipeline>,
    snapshots: Arc<Snapshots>,
}

impl JournalStore {
    /// Creates the data of a node that has never run, and opens it. Returns once the new data is
    /// synced. A node is created once; every later start uses [`open`](Self::open).
    ///
    /// Call it only where it is known that this node id has never run in this cluster: from the
    /// command that sets a cluster up, not from the one that starts a node. A new disk under an
    /// old id looks the same as a new node, and the protocol cannot tell the two apart.
    ///
    /// After a crash during this call the data may exist or not: call it again, and when it
    /// answers [`OpenError::Exists`], [`open`](Self::open).
    ///
    /// # Errors
    /// [`OpenError::Exists`] when there is data of this group, of whichever node; the other
    /// variants where the journal fails.
    pub fn create(journal: &Journal, identity: Identity) -> Result<Self, OpenError> {
        let logs = Logs::find(journal, identity)?;
        if !logs.are_new() {
            return Err(OpenError::Exists { wanted: identity });
        }
        let state = State::new(identity);
        pipeline::begin(journal, &logs.entries, &logs.state, &state)?;
        Self::open(journal, identity)
    }

    /// Opens the data of a node that has run before. It never begins new data: a node whose disk
    /// was lost or mixed up is refused here, because with an empty log it could vote a second
    /// time in one term, and against what it has acknowledged.
    ///
    /// Waits for the disk when it has the remains of snapshots to remove, or when this process had
    /// another store of the group on the same journal, some of whose writes may still be under way.
    /// Of these, those that wait for room fail.
    ///
    /// # Errors
    /// [`OpenError::Absent`] when there is no data, [`OpenError::WrongNode`] when it belongs to
    /// another node; the other variants where the journal fails. Damaged data is no error here:
    /// the node that starts with it says so, and is repaired by its peers or halts.
    pub fn open(journal: &Journal, identity: Identity) -> Result<Self, OpenError> {
        let stores: Arc<Stores> = journal.shared();
        stores.settle(journal, identity.group)?;
        let logs = Logs::find(journal, identity)?;
        if logs.are_new() {
            return Err(OpenError::Absent { wanted: identity });
        }
        let is_intact = logs.state.health() == Health::Intact;
        let state = if is_intact { state::read(&logs.state, identity)? } else { None };
        let sound = state.is_some();
        let state = state.unwrap_or_else(|| State::new(identity));
        let group = identity.group;
        let snapshots = Snapshots::open(journal, group, state.snapshot, sound)?;
        let entries = entries_log(journal, group, state.written_log())?;
        let damaged =
            state.repairing.map(|_| entries_log(journal, group, state.log)).transpose()?;
        let (_, snapshot, _) = snapshots.sizes();
        let log = entries.info();
        let account = Account::new(journal.shared(), snapshot, log.end, log.bytes);
        let journal = journal.clone();
        let pipeline = Pipeline::new(journal, entries, damaged, logs.state, state, account);
        stores.note(group, &pipeline);
        Ok(Self { inner: Arc::new(Inner { sound, pipeline, snapshots }) })
    }

    /// The groups of which the journal holds something, ascending.
    pub fn groups(journal: &Journal) -> Vec<u64> {
        let of = |namespace| journal.logs_of(namespace).into_iter().map(|info| info.name.id);
        let mut groups: Vec<u64> = of("raft.log").chain(of("raft.state")).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// Deletes all that the journal holds of a group, of whichever node, in one commit: after a
    /// crash the group is there as a whole, or gone. It must have been stopped here, and this node
    /// must be none of its members any more: a voter that forgets its vote is an error of the
    /// cluster's. Waits, as [`open`](Self::open) does, for what its last store here still has under
    /// way, which would bring a part of the group back.
    ///
    /// # Errors
    /// The error of the journal. Where its outcome is unknown the group may be gone.
    ///
    /// # Cancel safety
    /// After a dropped future the group may be there or gone. Call it again.
    pub async fn delete(journal: &Journal, group: u64) -> Result<(), voussoir_journal::Error> {
        let (stores, of) = (journal.shared::<Stores>(), journal.clone());
        let settled = blocking(move || stores.settle(&of, group).map(|()| stores.forget(group)));
        settled.await.unwrap_or(Err(voussoir_journal::Error::Closed))?;
        let mut commit = Commit::new();
        for namespace in ["raft.log", "raft.state"] {
            commit = commit.delete(&journal.log(namespace, group)?);
        }
        for of in ["raft.log", "raft.snapshot"] {
            let namespace = format!("{of}.{group}");
            for info in journal.logs_of(&namespace) {
                commit = commit.delete(&journal.log(&namespace, info.name.id)?);
            }
        }
        journal.commit(commit).await.map(drop)
    }
}

/// The log of entries with this number.
fn entries_log(journal: &Journal, group: u64, number: u64) -> Result<Log, voussoir_journal::Error> {
    match number {
        0 => journal.log("raft.log", group),
        number => journal.log(&format!("raft.log.{group}"), number),
    }
}

/// The two logs that every group has at first.
struct Logs {
    entries: Log,
    state: Log,
}

impl Logs {
    fn find(journal: &Journal, identity: Identity) -> Result<Self, OpenError> {
        let entries = entries_log(journal, identity.group, 0)?;
        let state = journal.log("raft.state", identity.group)?;
        Ok(Self { entries, state })
    }

    /// Whether nothing was ever written to either. Damage elsewhere in the journal may hide what
    /// was, and then the answer is no.
    fn are_new(&self) -> bool {
        let is_new = |log: &Log| log.health() == Health::Intact && !log.exists();
        is_new(&self.entries) && is_new(&self.state)
    }
}

/// The same without a runtime, for the simulation.
#[cfg(feature = "testing")]
impl JournalStore {
    pub(crate) fn restore_now(&self) -> Result<Restored, StoreError> {
        self.inner.restore()
    }

    pub(crate) fn read_now(
        &self,
        range: Range<u64>,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, ReadFailed> {
        self.inner.read(range, max_bytes)
    }

    pub(crate) fn snapshot_now(&self) -> Result<Option<(SnapshotName, Bytes)>, StoreError> {
        let reader = Snapshots::open_current(&self.inner.snapshots)?;
        reader.map(|reader| reader.whole()).transpose()
    }
}

impl Inner {
    fn restore(&self) -> Result<Restored, StoreError> {
        self.pipeline.check_current()?;
        self.snapshots.unstage_all();
        let (entries, before) = (self.pipeline.entries(), self.pipeline.damaged());
        let damaged = |what: &str| {
            tracing::error!(target: "voussoir::raft", log = %entries.name(), what, "damaged");
            Ok(Restored::damaged())
        };
        let is_suspect = |log: &Log| log.health() == Health::Suspect;
        if !self.sound || is_suspect(&entries) || before.as_ref().is_some_and(is_suspect) {
            return damaged("the log or the state");
        }
        let stored = self.pipeline.stored();
        if stored.condemned {
            return damaged("the log had lost entries, or held others than were committed");
        }
        let State { hard_state, snapshot: current, commit, voters, repairing, .. } = stored;
        let meta = match current {
            None => None,
            Some(current) => match self.snapshots.current_meta(current)? {
                Some(meta) => Some(meta),
                None => return damaged("the snapshot"),
            },
        };
        let covered = meta.as_ref().map_or(0, |meta| meta.index);
        let begin = |first| {
            let mut restored = Restored::new(hard_state, meta.clone(), first);
            restored.set_commit(commit);
            if let Some(voters) = voters.clone() {
                restored.set_voters(voters);
            }
            restored
        };
        let Range { start, end } = entries.bounds();
        let (mut restored, readable) = match load(&entries, covered, begin)? {
            Ok(loaded) => loaded,
            Err(what) => return damaged(what),
        };
        let is_whole = readable.end == end;
        if is_whole && readable.start > start {
            self.pipeline.begin_at(readable.start)?;
        }
        let (before, term) = match (before, repairing) {
            (Some(before), Some(term)) if is_whole => (before, term),
            (Some(_), _) => return damaged("an entry, while others were brought back"),
            (None, _) if is_whole => return Ok(restored),
            (None, _) => {
                // Terms never fall along a log, and no entry is of a later one than the node is in.
                let last = intact(entries.read(end - 1))?;
                let last = last.and_then(|record| codec::decode_entry(record).ok());
                let term = last.map_or(hard_state.term, |entry| entry.term);
                self.pipeline.begin_repair(readable.clone(), term)?;
                (entries, term)
            }
        };
        let last = before.end().saturating_sub(1);
        restored.set_lost(last, term);
        let (log, first) = (before.name(), readable.end);
        tracing::warn!(target: "voussoir::raft", %log, first, last, "entries are lost");
        Ok(restored)
    }

    fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let first = range.start;
        let records = self.pipeline.entries().read_range(range, max_bytes).map_err(read_failed)?;
        if records.is_empty() {
            return Err(ReadFailed::Absent);
        }
        let entry = |(index, record): (u64, Bytes)| {
            let entry = codec::decode_entry(record).map_err(|error| error.to_string())?;
            if entry.index != index {
                return Err(format!("entry {} stands at {index}", entry.index));
            }
            Ok(entry)
        };
        (first..).zip(records).map(entry).collect::<Result<_, _>>().map_err(ReadFailed::Damaged)
    }
}

/// What was read; `None` where it is damaged.
///
/// # Errors
/// The device failed to read, which says nothing about what it holds: it may be able to later.
fn intact<T>(read: Result<T, ReadError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(ReadError::Damaged { .. }) => Ok(None),
        Err(error) => Err(StoreError::Failed(Arc::new(error))),
    }
}

/// The entries of a log up to the first that is damaged, and which those are, or why the log is no
/// log. What is covered by the snapshot is not needed: where that cannot be read, the log begins
/// behind it.
///
/// # Errors
/// The device failed to read an entry that is needed.
fn load(
    log: &Log,
    covered: u64,
    begin: impl Fn(u64) -> Restored,
) -> Result<Result<(Restored, Range<u64>), &'static str>, StoreError> {
    let Range { start, end } = log.bounds();
    // What the journal counts as lost it may give all the same, where later records took the place
    // of lost ones. It takes nothing behind that before it has been released.
    let lost = match log.health() {
        Health::Lost { from, until } => from..until,
        _ => end..end,
    };
    let (mut first, mut next) = (start, start);
    let mut restored = begin(first);
    while next < end {
        let is_lost = lost.contains(&next);
        let upto = if next < lost.start { lost.start } else { end };
        let read = (!is_lost).then(|| log.read_range(next..upto, RESTORE_BYTES));
        if !matches!(read, Some(Ok(_))) && next <= covered {
            next += 1;
            first = next;
            restored = begin(first);
            continue;
        }
        let Some(read) = read else { break };
        let Some(records) = intact(read)? else { break };
        for record in records {
            let entry = codec::decode_entry(record).ok().filter(|entry| entry.index == next);
            let Some(entry) = entry else { return Ok(Err("an entry cannot be understood")) };
            if restored.push(entry).is_err() {
                return Ok(Err("the terms fall"));
            }
            next += 1;
        }
    }
    Ok(Ok((restored, first..next)))
}

#[async_trait]
impl LogStore for JournalStore {
    fn max_entry_bytes(&self) -> usize {
        max_entry_bytes(self.inner.snapshots.journal())
    }

    fn room(&self) -> Option<Room> {
        let (covered, current, staged) = self.inner.snapshots.sizes();
        Some(self.inner.pipeline.room(covered, current, staged))
    }

    async fn restore(&self) -> Result<Restored, StoreError> {
        // A start that was dropped may still be at work on its thread.
        let turn = self.inner.pipeline.turn().await?;
        self.inner.pipeline.settled().await?;
        let inner = Arc::clone(&self.inner);
        let restore = move || {
            let restored = inner.restore();
            drop(turn);
            restored
        };
        blocking(restore).await.unwrap_or(Err(StoreError::Abandoned))
    }

    fn write(&self, write: LogWrite, done: Completion) {
        let Some(name) = &write.snapshot else {
            return self.inner.pipeline.write(write, None, done);
        };
        let adopts = match self.inner.snapshots.adopt(name) {
            Some(Adoption::Newer(current)) => Some(current),
            Some(Adoption::Stale) => None,
            None => return self.inner.pipeline.refuse(StoreError::NotStaged, done),
        };
        let snapshots = Arc::clone(&self.inner.snapshots);
        // Which holds this until it has been told.
        let pipeline = Arc::downgrade(&self.inner.pipeline);
        let adopted = Completion::new(move |result| {
            if let (Some(current), true) = (adopts, result.is_ok()) {
                snapshots.became_current(current);
                // The entries that it covers need room no more, whoever asks for it, or not.
                let (covered, current, staged) = snapshots.sizes();
                pipeline.upgrade().map(|pipeline| pipeline.room(covered, current, staged));
            }
            done.complete(result);
        });
        self.inner.pipeline.write(write, adopts, adopted);
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        let inner = Arc::clone(&self.inner);
        let read = blocking(move || inner.read(range, max_bytes)).await;
        read.unwrap_or_else(|| Err(ReadFailed::Failed(stopped())))
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        if !self.inner.pipeline.admit_snapshot() {
            let why = "the rest of the journal is for the snapshots of other groups";
            return Err(StoreError::Rejected(Arc::new(std::io::Error::other(why))));
        }
        let writer = Snapshots::stage(&self.inner.snapshots, name).await?;
        Ok(Box::new(writer))
    }

    fn unstage(&self, identity: u64) {
        self.inner.snapshots.unstage(identity);
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        let snapshots = Arc::clone(&self.inner.snapshots);
        let opened = blocking(move || Snapshots::open_current(&snapshots)).await;
        let reader = opened.unwrap_or(Err(StoreError::Abandoned))?;
        Ok(reader.map(|reader| Box::new(reader) as Box<dyn SnapshotReader>))
    }
}

/// Runs what may wait for the disk beside the runtime's tasks. `None` when the runtime stops.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

fn stopped() -> Cause {
    Arc::new(std::io::Error::other("the runtime stops"))
}

fn read_failed(error: ReadError) -> ReadFailed {
    match error {
        ReadError::Released { .. } => ReadFailed::Released,
        ReadError::Absent { .. } => ReadFailed::Absent,
        ReadError::Damaged { .. } => ReadFailed::Damaged(error.to_string()),
        error => ReadFailed::Failed(Arc::new(error)),
    }
}

fn store_error(error: voussoir_journal::Error) -> StoreError {
    match error.outcome() {
        voussoir_journal::Outcome::NotApplied => StoreError::Rejected(Arc::new(error)),
        voussoir_journal::Outcome::Unknown => StoreError::Failed(Arc::new(error)),
    }
}

/// What the state record says of the current snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    index: u64,
    term: u64,
    identity: u64,
    /// The number of its log.
    number: u64,
    chunks: u64,
}

impl Current {
    fn is(&self, meta: &SnapshotMeta) -> bool {
        (self.index, self.term) == (meta.index, meta.term)
    }
}
