//! The store that users run, on a disk that loses power: `JournalStore` over a real journal over
//! the journal's own crash-simulating files.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{Journal, Options as JournalOptions, Work};
use voussoir_sim::{Crash, DiskFault, Failure, Report, Rng};

use super::disk::{Disk, Done, Job, Opened, StoreError, StoreFile};
use super::run::{Options, run_on};
use crate::core::FetchError;
use crate::journal::{Identity, JournalStore};
use crate::store::{Completion, LogStore, LogWrite, SnapshotName};
use crate::types::{Entry, SnapshotMeta};

/// Small segments, so that they fill, rotate and come back all the time.
const SEGMENT_BYTES: u64 = 256 << 10;
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
    files: CrashFiles,
    node: u64,
}

impl JournalDisk {
    /// An empty disk for the journal of `node`.
    pub fn new(node: u64, seed: u64) -> Self {
        Self { files: CrashFiles::new(seed), node }
    }

    fn open_store(&self, seed: u64) -> Option<Opened<JournaledStore>> {
        let mut options = JournalOptions::manual();
        options.segment_bytes = SEGMENT_BYTES;
        options.max_bytes = 64 * SEGMENT_BYTES;
        options.identity = Some(u128::from(seed));
        let journal = Journal::open_with(self.files.mount(), options).ok()?;
        let identity = Identity { cluster: CLUSTER, node: self.node, group: 7 };
        let store = JournalStore::open(&journal, identity).ok()?;
        let restored = store.restore_now().ok()?;
        let snapshot = store.snapshot_now().ok()?.map(|(name, data)| (name.meta, data));
        let store = JournaledStore {
            journal,
            store,
            done: Arc::default(),
            identities: seed,
            failed: false,
        };
        Some(Opened { store, restored, snapshot })
    }
}

impl Disk for JournalDisk {
    type Store = JournaledStore;

    fn open(&mut self, seed: u64) -> Result<Opened<JournaledStore>, StoreError> {
        self.open_store(seed).ok_or_else(|| {
            // The next attempt needs the lock that this one may still hold.
            self.files.kill();
            StoreError
        })
    }

    fn crash(&mut self, store: JournaledStore, kind: Crash, _: &mut Rng) {
        // First, so that what the dying journal still writes reaches nothing.
        match kind {
            Crash::Power => self.files.power_loss(Loss::Any),
            _ => self.files.kill(),
        }
        drop(store);
    }

    fn fault(&mut self, fault: DiskFault, rng: &mut Rng) {
        let effects = [
            (Op::Any, When::From(0), Effect::Fail),
            (Op::Write, When::From(0), Effect::Fail),
            (Op::Sync, When::From(0), Effect::DropDirty),
            (Op::Sync, When::Nth(rng.below(8)), Effect::DropDirty),
            (Op::Write, When::OneIn(3), Effect::Short),
        ];
        let full = [(Op::Write, Effect::NoSpace), (Op::Create, Effect::NoSpace)];
        match fault {
            DiskFault::Fail => {
                if let Some((op, when, effect)) = rng.pick(&effects) {
                    self.files.inject(Fault::new(*op, *when, *effect));
                }
            }
            DiskFault::Full => {
                for (op, effect) in full {
                    self.files.inject(Fault::new(op, When::From(0), effect));
                }
            }
            DiskFault::Healed => self.files.heal(),
            _ => {}
        }
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
