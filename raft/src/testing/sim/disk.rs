//! The store that users run, on a disk that loses power: `JournalStore` over a real journal over
//! the journal's own crash-simulating files.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_journal::testing::SimDisk;
use voussoir_journal::{Config as JournalConfig, Journal, Work};

use crate::core::{FetchError, Persist, Restored};
use crate::journal::{Identity, JournalStore, OpenError as Refused};
use crate::store::{Completion, LogStore, LogWrite, SnapshotName, StoreError as LogStoreError};
use crate::types::{Entry, SnapshotMeta};

/// Small segments, so that they fill, rotate and come back all the time.
const SEGMENT_BYTES: u64 = 64 << 10;
const CLUSTER: u128 = 0xc1;

/// Something that has become durable.
#[derive(Debug)]
pub(super) enum Done {
    /// The write of this id and all before it.
    Persist(u64),
    /// A snapshot of the node's own machine.
    Snapshot(SnapshotMeta),
}

/// Why a store was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenError {
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

impl From<voussoir_journal::OpenError> for OpenError {
    fn from(error: voussoir_journal::OpenError) -> Self {
        match error {
            voussoir_journal::OpenError::Io(_) => Self::Failed,
            _ => Self::Damaged,
        }
    }
}

impl From<Refused> for OpenError {
    fn from(error: Refused) -> Self {
        match error {
            Refused::Absent { .. } => Self::Absent,
            Refused::Journal(_) | Refused::Read(_) => Self::Failed,
            _ => Self::Damaged,
        }
    }
}

impl From<LogStoreError> for OpenError {
    fn from(error: LogStoreError) -> Self {
        match error {
            LogStoreError::Damaged(_) => Self::Damaged,
            _ => Self::Failed,
        }
    }
}

/// The store failed and takes nothing any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoreFailed;

/// What an opened store holds.
pub(super) struct Opened {
    /// The store, for the life of the process.
    pub(super) store: Store,
    /// What the core starts from.
    pub(super) restored: Restored,
    /// The current snapshot.
    pub(super) snapshot: Option<(SnapshotMeta, Bytes)>,
}

/// Opens the store of `node`. A disk that has been opened before is not begun anew.
pub(super) fn open(disk: &mut SimDisk, node: u64, seed: u64) -> Result<Opened, OpenError> {
    let mut config = JournalConfig::manual();
    config.segment_bytes = SEGMENT_BYTES;
    config.max_bytes = 64 * SEGMENT_BYTES;
    config.identity = Some(u128::from(seed));
    let journal = disk.open(config)?;
    let identity = Identity { cluster: CLUSTER, node, group: 7 };
    let created = (!disk.is_used()).then(|| JournalStore::create(&journal, identity));
    let store = match created {
        // The crash of an earlier attempt may have left the new data behind.
        None | Some(Err(Refused::Exists { .. })) => JournalStore::open(&journal, identity)?,
        Some(created) => created?,
    };
    let restored = store.restore_now()?;
    let snapshot = if restored.is_damaged() { None } else { store.snapshot_now()? };
    let snapshot = snapshot.map(|(name, data)| (name.meta, data));
    disk.set_used();
    let store =
        Store { journal, log: store, done: Arc::default(), identities: seed, failed: false };
    Ok(Opened { store, restored, snapshot })
}

/// A node's store, which dies with its process.
#[derive(Debug)]
pub(super) struct Store {
    journal: Journal,
    log: JournalStore,
    done: Arc<Mutex<Vec<Result<Done, StoreFailed>>>>,
    identities: u64,
    failed: bool,
}

impl Store {
    /// Takes a write of the core with its entries and the state of its snapshot. It is not durable
    /// before [`work`](Self::work) says so; after a failure it may be, and nothing after it will.
    pub(super) fn persist(
        &mut self,
        persist: Persist,
        entries: Vec<Entry>,
        state: Option<&Bytes>,
    ) -> Result<(), StoreFailed> {
        let snapshot = persist.snapshot.as_ref().zip(state);
        let snapshot = snapshot.map(|(meta, state)| self.stage(meta, state)).transpose()?;
        let write = LogWrite {
            snapshot,
            truncate_from: persist.truncate_from,
            release: persist.release,
            entries,
            hard_state: persist.hard_state,
            voters: persist.voters,
            repaired: persist.repaired,
            ..LogWrite::default()
        };
        self.write(write, Done::Persist(persist.id))
    }

    /// Takes a snapshot of the node's own machine, under the same terms.
    pub(super) fn snapshot(
        &mut self,
        meta: SnapshotMeta,
        state: &Bytes,
    ) -> Result<(), StoreFailed> {
        let snapshot = Some(self.stage(&meta, state)?);
        self.write(LogWrite { snapshot, ..LogWrite::default() }, Done::Snapshot(meta))
    }

    /// Makes what has been taken durable, in order. `now` is the node's clock, ns. After a failure
    /// what was not reported before may or may not be durable.
    pub(super) fn work(&mut self, now: u64) -> Result<Vec<Done>, StoreFailed> {
        while self.journal.work(now) != Work::Idle {}
        let finished = std::mem::take(&mut *self.done.lock());
        finished.into_iter().collect()
    }

    /// Reads entries back, at least one.
    pub(super) fn read(&self, range: Range<u64>, bytes: u64) -> Result<Vec<Entry>, FetchError> {
        self.log.read_now(range, bytes).map_err(|failed| FetchError::from(&failed))
    }

    /// Stages a snapshot, in this moment: only its adoption is a write that takes time.
    fn stage(&mut self, meta: &SnapshotMeta, state: &Bytes) -> Result<SnapshotName, StoreFailed> {
        if self.failed {
            return Err(StoreFailed);
        }
        self.identities = self.identities.wrapping_add(1);
        let name = SnapshotName { meta: meta.clone(), identity: self.identities };
        let (store, staged, state) = (self.log.clone(), name.clone(), state.clone());
        let staging = async move {
            let mut writer = store.stage(&staged).await?;
            let half = state.len() / 2;
            for chunk in [state.slice(..half), state.slice(half..)] {
                if !chunk.is_empty() {
                    writer.append(chunk).await?;
                }
            }
            writer.finish().await
        };
        self.failed = self.block_on(staging).is_err();
        if self.failed { Err(StoreFailed) } else { Ok(name) }
    }

    /// Polls, and lets the journal work in between.
    fn block_on(
        &self,
        future: impl Future<Output = Result<(), LogStoreError>>,
    ) -> Result<(), StoreFailed> {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..1000 {
            if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
                return result.map_err(|_| StoreFailed);
            }
            self.journal.work(0);
        }
        Err(StoreFailed)
    }

    fn write(&mut self, write: LogWrite, done: Done) -> Result<(), StoreFailed> {
        if self.failed {
            return Err(StoreFailed);
        }
        let finished = Arc::clone(&self.done);
        let completion = Completion::new(move |result| {
            finished.lock().push(result.map(|()| done).map_err(|_| StoreFailed));
        });
        self.log.write(write, completion);
        Ok(())
    }
}
