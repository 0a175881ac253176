//! What the simulated node asks of its store.

use std::ops::Range;

use bytes::Bytes;
use voussoir_sim::{Crash, DiskFault, Rng};

use crate::core::{FetchError, Persist, Restored};
use crate::types::{Entry, SnapshotMeta};

/// Something to make durable.
#[derive(Clone, Debug)]
pub enum Job {
    /// A write of the core.
    Persist {
        /// What to write.
        persist: Persist,
        /// The entries of its range.
        entries: Vec<Entry>,
        /// The state of its snapshot, if it has one.
        snapshot: Option<Bytes>,
    },
    /// A snapshot of this node's own machine.
    Snapshot {
        /// What it covers.
        meta: SnapshotMeta,
        /// The state.
        data: Bytes,
    },
}

/// Something that has become durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The write of this id and all before it.
    Persist(u64),
    /// The snapshot of the node's own machine.
    Snapshot(SnapshotMeta),
}

/// Why a store was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The disk does not work now.
    #[error("the store has failed")]
    Failed,
    /// It cannot give back what was stored, and says so.
    #[error("the store is damaged")]
    Damaged,
    /// It holds nothing, and it did.
    #[error("the store is gone")]
    Absent,
}

/// What was done to a disk for good. What it holds is to be refused, in whole or in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruin {
    /// A bit has flipped.
    Rotten,
    /// It was replaced by an empty one.
    Lost,
}

/// The store failed and takes nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has failed")]
pub struct StoreError;

/// What an opened store holds.
#[derive(Debug)]
pub struct Opened<S> {
    /// The store, for the life of the process.
    pub store: S,
    /// What the core starts from.
    pub restored: Restored,
    /// The current snapshot.
    pub snapshot: Option<(SnapshotMeta, Bytes)>,
}

/// What outlives a crash of the node.
pub trait Disk: Sized + 'static {
    /// The store over it, which dies with the process.
    type Store: StoreFile;

    /// Opens the store. One that has been opened before is not begun anew.
    ///
    /// # Errors
    /// [`OpenError`]; it may be asked again.
    fn open(&mut self, seed: u64) -> Result<Opened<Self::Store>, OpenError>;

    /// What was done to it for good, unless that has turned out to be harmless.
    fn ruin(&self) -> Option<Ruin>;

    /// What was done to it has turned out to be harmless.
    fn absolve(&mut self);

    /// The process or the machine died, and with it the store.
    fn crash(&mut self, store: Self::Store, kind: Crash, rng: &mut Rng);

    /// The disk's health changed.
    fn fault(&mut self, fault: DiskFault, rng: &mut Rng);
}

/// An open store: takes jobs, and does them when told to.
pub trait StoreFile {
    /// Takes a job. It is not durable before [`work`](Self::work) says so.
    ///
    /// # Errors
    /// [`StoreError`]: it may or may not become durable, and nothing after it will.
    fn submit(&mut self, job: Job) -> Result<(), StoreError>;

    /// Makes what has been submitted durable, in order. `now` is the node's clock, ns.
    ///
    /// # Errors
    /// [`StoreError`]: what was not reported before may or may not be durable.
    fn work(&mut self, now: u64) -> Result<Vec<Done>, StoreError>;

    /// Reads entries back, at least one.
    ///
    /// # Errors
    /// [`FetchError`] says whether they were released or cannot be read.
    fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, FetchError>;
}
