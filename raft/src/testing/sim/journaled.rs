//! The store that users run, on a disk that loses power: `JournalStore` over a real journal over
//! the journal's own crash-simulating files.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_journal::testing::{Ruin as DiskRuin, SimDisk};
use voussoir_journal::{Config as JournalConfig, Journal, Work};
use voussoir_sim::{Crash, DiskFault, Failure, Report, Rng};

use super::disk::{Disk, Done, Job, OpenError, Opened, Ruin, StoreError, StoreFile};
use super::run::{Options, run_on};
use crate::core::FetchError;
use crate::journal::{Identity, JournalStore, OpenError as Refused};
use crate::store::{Completion, LogStore, LogWrite, SnapshotName};
use crate::types::{Entry, SnapshotMeta};

/// Small segments, so that they fill, rotate and come back all the time.
const SEGMENT_BYTES: u64 = 64 << 10;
const CLUSTER: u128 = 0xc1;

/// Plays `seed` over real journals on simulated disks.
///
/// # Errors
/// As [`run`](super::run).
pub fn run_journaled(seed: u64, options: &Options) -> Result<Report, Failure> {
    run_on(seed, options, |id| JournalDisk::new(id, seed ^ id.rotate_left(40)))
}

/// A simulated disk that holds a node's journal.
#[derive(Debug)]
pub struct JournalDisk {
    disk: SimDisk,
    node: u64,
}

impl JournalDisk {
    /// An empty disk for the journal of `node`.
    pub fn new(node: u64, seed: u64) -> Self {
        Self { disk: SimDisk::new(seed), node }
    }
}

fn unopened(error: voussoir_journal::OpenError) -> OpenError {
    match error {
        voussoir_journal::OpenError::Io(_) => OpenError::Failed,
        _ => OpenError::Damaged,
    }
}

fn refused(error: &Refused) -> OpenError {
    match error {
        Refused::Absent { .. } => OpenError::Absent,
        Refused::Journal(_) | Refused::Read(_) => OpenError::Failed,
        _ => OpenError::Damaged,
    }
}

fn broken(error: &crate::store::StoreError) -> OpenError {
    match error {
        crate::store::StoreError::Damaged(_) => OpenError::Damaged,
        _ => OpenError::Failed,
    }
}

impl Disk for JournalDisk {
    type Store = JournaledStore;

    fn open(&mut self, seed: u64) -> Result<Opened<JournaledStore>, OpenError> {
        let mut config = JournalConfig::manual();
        config.segment_bytes = SEGMENT_BYTES;
        config.max_bytes = 64 * SEGMENT_BYTES;
        config.identity = Some(u128::from(seed));
        let journal = self.disk.open(config).map_err(unopened)?;
        let identity = Identity { cluster: CLUSTER, node: self.node, group: 7 };
        let created = (!self.disk.is_used()).then(|| JournalStore::create(&journal, identity));
        let store = match created {
            // The crash of an earlier attempt may have left the new data behind.
            None | Some(Err(Refused::Exists { .. })) => JournalStore::open(&journal, identity),
            Some(created) => created,
        };
        let store = store.map_err(|error| refused(&error))?;
        let restored = store.restore_now().map_err(|error| broken(&error))?;
        let snapshot = if restored.is_damaged() { Ok(None) } else { store.snapshot_now() };
        let snapshot = snapshot.map_err(|error| broken(&error))?;
        let snapshot = snapshot.map(|(name, data)| (name.meta, data));
        self.disk.set_used();
        let (done, identities) = (Arc::default(), seed);
        let store = JournaledStore { journal, store, done, identities, failed: false };
        Ok(Opened { store, restored, snapshot })
    }

    fn ruin(&self) -> Option<Ruin> {
        self.disk.ruin().map(|ruin| match ruin {
            DiskRuin::Rotten => Ruin::Rotten,
            DiskRuin::Lost => Ruin::Lost,
        })
    }

    fn absolve(&mut self) {
        self.disk.absolve();
    }

    fn crash(&mut self, store: JournaledStore, kind: Crash, _: &mut Rng) {
        self.disk.crash(kind, store);
    }

    fn fault(&mut self, fault: DiskFault, rng: &mut Rng) {
        self.disk.fault(fault, rng);
    }
}

type Finished = Arc<Mutex<Vec<Result<Done, StoreError>>>>;

/// The store over a [`JournalDisk`].
#[derive(Debug)]
pub struct JournaledStore {
    journal: Journal,
    store: JournalStore,
    done: Finished,
    identities: u64,
    failed: bool,
}

impl JournaledStore {
    /// Stages a snapshot, in this moment: only its adoption is a write that takes time.
    fn stage(&mut self, meta: &SnapshotMeta, data: &Bytes) -> Result<SnapshotName, StoreError> {
        self.identities = self.identities.wrapping_add(1);
        let name = SnapshotName { meta: meta.clone(), identity: self.identities };
        let (store, staged) = (self.store.clone(), name.clone());
        let data = data.clone();
        let staging = async move {
            let mut writer = store.stage(&staged).await.map_err(|_| StoreError)?;
            let half = data.len() / 2;
            for chunk in [data.slice(..half), data.slice(half..)] {
                if !chunk.is_empty() {
                    writer.append(chunk).await.map_err(|_| StoreError)?;
                }
            }
            writer.finish().await.map_err(|_| StoreError)
        };
        self.block_on(staging)?;
        Ok(name)
    }

    /// Polls, and lets the journal work in between.
    fn block_on<T>(
        &self,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..1000 {
            if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
                return result;
            }
            self.journal.work(0);
        }
        Err(StoreError)
    }

    fn write(&mut self, write: LogWrite, done: Done) {
        let finished = Arc::clone(&self.done);
        let completion = Completion::new(move |result| {
            finished.lock().push(result.map(|()| done).map_err(|_| StoreError));
        });
        self.store.write(write, completion);
    }
}

impl StoreFile for JournaledStore {
    fn submit(&mut self, job: Job) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError);
        }
        let result = match job {
            Job::Snapshot { meta, data } => self.stage(&meta, &data).map(|name| {
                let write = LogWrite { snapshot: Some(name), ..LogWrite::default() };
                self.write(write, Done::Snapshot(meta));
            }),
            Job::Persist { persist, entries, snapshot } => {
                let staged = match (&persist.snapshot, snapshot) {
                    (Some(meta), Some(data)) => self.stage(meta, &data).map(Some),
                    _ => Ok(None),
                };
                staged.map(|snapshot| {
                    let write = LogWrite {
                        snapshot,
                        truncate_from: persist.truncate_from,
                        release: persist.release,
                        entries,
                        hard_state: persist.hard_state,
                        voters: persist.voters,
                        condemned: false,
                        commit: None,
                    };
                    self.write(write, Done::Persist(persist.id));
                })
            }
        };
        self.failed = result.is_err();
        result
    }

    fn work(&mut self, now: u64) -> Result<Vec<Done>, StoreError> {
        while self.journal.work(now) != Work::Idle {}
        let finished = std::mem::take(&mut *self.done.lock());
        finished.into_iter().collect()
    }

    fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, FetchError> {
        self.store.read_now(range, max_bytes).map_err(|failed| FetchError::from(&failed))
    }
}
