//! The seam to the disk: what a group keeps, and how it asks for it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::core::{FetchError, Restored};
use crate::types::{Entry, HardState, SnapshotMeta};

/// An error of somebody else's code, kept so that every waiter can have it.
pub type Cause = Arc<dyn std::error::Error + Send + Sync + 'static>;

/// Where one group keeps its log, its vote and its snapshots.
///
/// What every implementation keeps, and `testing::conformance` checks:
///
/// * Writes become durable in the order of the calls. After a crash the store gives back a prefix
///   of them that contains every one reported as durable; of the first write that is missing, a
///   prefix of its entries may be there, but only together with everything else of it.
/// * [`write`](Self::write) does not wait for the disk.
/// * What cannot be given back whole is reported as damaged, never left out.
#[async_trait]
pub trait LogStore: Send + Sync + 'static {
    /// The longest entry that the store takes, in bytes. A node with a larger
    /// [`Config::max_entry_bytes`](crate::Config) does not start, unless that is the default: then
    /// this is the node's limit. Unlimited by default.
    fn max_entry_bytes(&self) -> usize {
        usize::MAX
    }

    /// How much room is left for entries. The node takes snapshots early, and takes no more
    /// entries, where it is short. Asked some ten times a second while the group writes, so it must
    /// be quick and not wait.
    /// `None`, the default: there is no limit that the store knows, and it is not asked again.
    fn room(&self) -> Option<Room> {
        None
    }

    /// Everything that has to be known at the start: hard state, current snapshot, log.
    ///
    /// Where any of it may be damaged the answer is [`Restored::damaged`], so that the node says
    /// so and stands still. Staged snapshots that never became current are gone.
    ///
    /// A store that can tell that nothing but entries is damaged, and up to where the log reached,
    /// may say so instead ([`Restored::set_lost`]), and the node is repaired by its peers. From
    /// then on the log ends where it was readable to, writes go on there, and every restore up to
    /// [`LogWrite::repaired`] says again how far it once reached. What is lost and covered by the
    /// snapshot is not needed: the log may as well begin behind it.
    ///
    /// All writes that were taken before count, and are durable when this returns: a group that is
    /// stopped and started again in one process may have left some under way, and whoever restores
    /// a vote repeats it without another write.
    ///
    /// # Errors
    /// [`StoreError`] when the store could not be read at all, where a retry may succeed, or when a
    /// write before has failed.
    ///
    /// # Cancel safety
    /// Reading changes nothing: dropping the future is harmless.
    async fn restore(&self) -> Result<Restored, StoreError>;

    /// Takes one write and returns. `done` is completed once all of it is durable, or has failed;
    /// on whatever thread that is, also before this returns.
    ///
    /// The parts apply in the order of the fields of [`LogWrite`]. After a failure every later
    /// write fails too.
    ///
    /// A store that has no room for a write need not fail it: it may let it wait until there is,
    /// with all that come after it. Meanwhile one that makes a snapshot current and does nothing
    /// else may go before those that wait. A leader that waits for longer than
    /// [`Config::disk_stall`](crate::Config::disk_stall) steps down, as with a disk that hangs.
    fn write(&self, write: LogWrite, done: Completion);

    /// Reads entries back: a prefix of `range`, at least one, about `max_bytes` of weight (one
    /// entry may exceed it). It sees every write that has been reported as durable.
    ///
    /// # Errors
    /// [`ReadFailed`]; never an empty answer.
    ///
    /// # Cancel safety
    /// Reading changes nothing: dropping the future is harmless.
    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed>;

    /// Begins to stage a snapshot. It counts for nothing until a [`LogWrite::snapshot`] adopts it.
    /// A few may be staged at once.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is staged then.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing that counts; what it had stored is removed by and by.
    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError>;

    /// Drops a staged snapshot that will not be adopted, if it is there. Does not wait.
    fn unstage(&self, identity: u64);

    /// Opens the current snapshot. It stays readable until the reader is dropped, also when a
    /// newer one becomes current meanwhile.
    ///
    /// # Errors
    /// [`StoreError`] when there should be one and it cannot be opened.
    ///
    /// # Cancel safety
    /// Reading changes nothing: dropping the future is harmless.
    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError>;
}

/// A group with less than this behind its snapshot takes no other one to make room, in bytes.
pub(crate) const SMALL_LOG: u64 = 64 << 10;

/// How much room a store has for the entries of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes that entries may take, beside what the store needs so that every group can still take
    /// a snapshot. At 0 no entries are written until something has been released.
    pub bytes: u64,
    /// The limit of the store, in bytes: how much is little.
    pub max_bytes: u64,
    /// Weight of entries since its snapshot at which this group has to take the next one, so that
    /// the groups of the store together do not use the room up.
    pub share: u64,
}

/// One write. The core's [`Persist`](crate::core::Persist) with its entries.
#[derive(Clone, Debug, Default)]
pub struct LogWrite {
    /// The staged and finished snapshot that becomes the current one. The one before goes, once
    /// nobody reads it. When it is not newer than the current one, nothing happens.
    pub snapshot: Option<SnapshotName>,
    /// Entries at and after this index go.
    pub truncate_from: Option<u64>,
    /// Entries before this index go. May lie past the end: the log is then empty and goes on
    /// here.
    pub release: Option<u64>,
    /// Entries to append at the end.
    pub entries: Vec<Entry>,
    /// The term and vote that replace the ones before.
    pub hard_state: Option<HardState>,
    /// The voters of the group. They come once, with the first hard state, and belong into
    /// [`Restored::set_voters`](crate::core::Restored::set_voters) at every start from then on: a
    /// node that is started with another list of peers is refused by them.
    pub voters: Option<Vec<u64>>,
    /// The log is not to be trusted any more: it lost entries that it had acknowledged, or holds
    /// others than were committed. From then on [`LogStore::restore`] answers
    /// [`Restored::damaged`], so that no restart makes the node an ordinary voter again.
    pub condemned: bool,
    /// Entries up to this index are committed and durable here. A store that keeps it gives the
    /// latest one, or an earlier one, back in
    /// [`Restored::set_commit`](crate::core::Restored::set_commit), so that a restarted node shows
    /// what it knew before it reaches a quorum. A store may leave it out, and need not sync a
    /// write that holds nothing else.
    pub commit: Option<u64>,
    /// The log holds again what [`Restored::set_lost`](crate::core::Restored::set_lost) named, or
    /// what was committed in its place. From then on it is an ordinary log. Never set for a store
    /// that named nothing.
    pub repaired: bool,
}

impl LogWrite {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.commit.is_none() && self.binds_nothing()
    }

    /// Whether it holds the commit index and nothing else: then no sync is needed.
    pub fn is_only_commit_index(&self) -> bool {
        self.commit.is_some() && self.binds_nothing()
    }

    /// Whether nothing in it has to survive a crash.
    fn binds_nothing(&self) -> bool {
        self.snapshot.is_none()
            && self.truncate_from.is_none()
            && self.release.is_none()
            && self.entries.is_empty()
            && self.hard_state.is_none()
            && self.voters.is_none()
            && !self.condemned
            && !self.repaired
    }
}

/// Names one snapshot: what it covers, and which of possibly several with that coverage it is.
///
/// Two nodes may cut the same state into different chunks, so a transfer is only resumed where
/// the identity is the same too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotName {
    /// What it covers.
    pub meta: SnapshotMeta,
    /// Drawn by the node that took it; kept when it is transferred.
    pub identity: u64,
}

/// Takes the chunks of a snapshot that is being staged. Dropping it unfinished unstages it.
#[async_trait]
pub trait SnapshotWriter: Send {
    /// Adds a chunk, 1 to [`MAX_CHUNK_BYTES`] bytes. It need not be durable yet.
    ///
    /// # Errors
    /// [`StoreError`]: the snapshot cannot be finished any more.
    ///
    /// # Cancel safety
    /// Not cancel safe: after a dropped future drop the writer too.
    async fn append(&mut self, chunk: Bytes) -> Result<(), StoreError>;

    /// Makes all chunks durable. Afterwards the snapshot can be adopted.
    ///
    /// # Errors
    /// [`StoreError`]: the snapshot is not staged.
    ///
    /// # Cancel safety
    /// After a dropped future the snapshot may be staged or not.
    async fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

/// Gives back the chunks of a stored snapshot, exactly as they were added.
#[async_trait]
pub trait SnapshotReader: Send + Sync + 'static {
    /// Which snapshot it is.
    fn name(&self) -> &SnapshotName;

    /// How many chunks it has; they are numbered from 0.
    fn chunks(&self) -> u64;

    /// The length of all chunks together, in bytes. For operators only: nothing depends on it.
    fn bytes(&self) -> u64;

    /// One chunk.
    ///
    /// # Errors
    /// [`ReadFailed`]; a chunk that differs from what was stored is an error, not an answer.
    ///
    /// # Cancel safety
    /// Reading changes nothing: dropping the future is harmless.
    async fn chunk(&self, number: u64) -> Result<Bytes, ReadFailed>;
}

/// The longest chunk of a snapshot, in bytes: 1 MiB less what a frame needs around it.
pub const MAX_CHUNK_BYTES: usize = (1 << 20) - 1024;

/// Tells the node how a write ended.
///
/// Dropping it without a word counts as [`StoreError::Abandoned`]: a store that loses track of a
/// write must not leave the node waiting.
#[must_use = "dropping it reports a failed write"]
pub struct Completion {
    tell: Option<Tell>,
}

type Tell = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

impl Completion {
    /// Calls `tell` once.
    pub fn new(tell: impl FnOnce(Result<(), StoreError>) + Send + 'static) -> Self {
        Self { tell: Some(Box::new(tell)) }
    }

    /// The write is durable, or has failed.
    pub fn complete(mut self, result: Result<(), StoreError>) {
        if let Some(tell) = self.tell.take() {
            tell(result);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(Err(StoreError::Abandoned));
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

/// Why a store did not do what it was asked to. Whatever the reason, a node whose write failed
/// stops: what of it became durable is known only after a restart.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store refused, for example because it has no room for a snapshot. Nothing was changed.
    /// Free what it asks for; where it was a write, restart the node. The store on the journal
    /// refuses no write because its journal is full: the write waits.
    #[error("the store refused: {0}")]
    Rejected(#[source] Cause),
    /// A read, write or sync failed. What was being written may be found after a restart, or
    /// not.
    #[error("the store failed: {0}")]
    Failed(#[source] Cause),
    /// What is stored is damaged. Nothing was changed. Rebuild the node from its peers.
    #[error("what is stored is damaged: {0}")]
    Damaged(String),
    /// The caller: no snapshot of that name is staged and finished. Nothing was changed.
    #[error("no such snapshot is staged")]
    NotStaged,
    /// The caller: the chunk is empty or longer than [`MAX_CHUNK_BYTES`]. Nothing was stored.
    #[error("{bytes} bytes are no legal chunk of a snapshot")]
    ChunkSize {
        /// Its length.
        bytes: usize,
    },
    /// The store dropped the write without a word. It may be found after a restart, or not.
    #[error("the store abandoned the write")]
    Abandoned,
    /// A later write has made this one needless while it waited, and is durable: its entries were
    /// cut, or a snapshot covers them. They are not in the log. The node goes on.
    #[error("a later write has made it needless")]
    Overtaken,
    /// A call to the store panicked. What it was doing may be found after a restart, or not.
    #[error("the store panicked")]
    Panicked,
}

/// Why something stored could not be read back. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadFailed {
    /// It has been released, or a newer snapshot took its place.
    #[error("it has been released")]
    Released,
    /// It was never written, or was truncated.
    #[error("it is not there")]
    Absent,
    /// The disk gave other bytes than were written. A retry gives the same.
    #[error("what is stored is damaged: {0}")]
    Damaged(String),
    /// The disk failed. A retry may succeed.
    #[error("the store failed: {0}")]
    Failed(#[source] Cause),
}

impl From<&ReadFailed> for FetchError {
    fn from(failed: &ReadFailed) -> Self {
        match failed {
            ReadFailed::Released => Self::Released,
            _ => Self::Failed,
        }
    }
}
