//! The store that users run, on a disk that loses power: `JournalStore` over a real journal over
//! the journal's own crash-simulating files.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
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
/// Bits are flipped where something was written, found in pieces of so many bytes.
const PAGE: usize = 64;

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
    /// A store has been opened on it: from then on there is data.
    used: bool,
    ruin: Option<Ruin>,
}

impl JournalDisk {
    /// An empty disk for the journal of `node`.
    pub fn new(node: u64, seed: u64) -> Self {
        Self { files: CrashFiles::new(seed), node, used: false, ruin: None }
    }

    fn open_store(&self, seed: u64) -> Result<Opened<JournaledStore>, OpenError> {
        let mut options = JournalConfig::manual();
        options.segment_bytes = SEGMENT_BYTES;
        options.max_bytes = 64 * SEGMENT_BYTES;
        options.identity = Some(u128::from(seed));
        let journal = Journal::open_with(self.files.mount(), options).map_err(unopened)?;
        let identity = Identity { cluster: CLUSTER, node: self.node, group: 7 };
        let created = (!self.used).then(|| JournalStore::create(&journal, identity));
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
        let store = JournaledStore {
            journal,
            store,
            done: Arc::default(),
            identities: seed,
            failed: false,
        };
        Ok(Opened { store, restored, snapshot })
    }

    /// Closes the journal in good order, so that all of it is known to be durable, and flips a
    /// bit of it.
    fn rot(&mut self, rng: &mut Rng) {
        let closed = self.open_store(0).ok().is_some_and(|opened| {
            let JournaledStore { journal, store, .. } = opened.store;
            drop(store);
            journal.close().is_ok()
        });
        self.files.kill();
        if !closed {
            return;
        }
        let mut used = Vec::new();
        for (name, content) in self.files.snapshot() {
            let pages = content.chunks(PAGE).enumerate();
            let written = pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0));
            used.extend(written.map(|(at, _)| (name.clone(), at as u64)));
        }
        if let Some((name, page)) = rng.pick(&used) {
            let bit = page * PAGE as u64 * 8 + rng.below(PAGE as u64 * 8);
            if self.files.flip_bit(name, bit) {
                self.ruin = Some(Ruin::Rotten);
            }
        }
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
        let opened = self.open_store(seed);
        match &opened {
            Ok(_) => self.used = true,
            // The next attempt needs the lock that this one may still hold.
            Err(_) => self.files.kill(),
        }
        opened
    }

    fn ruin(&self) -> Option<Ruin> {
        self.ruin
    }

    fn absolve(&mut self) {
        self.ruin = None;
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
            DiskFault::Rot if self.used => self.rot(rng),
            DiskFault::Lost if self.used => {
                self.files = CrashFiles::new(rng.next_u64());
                self.ruin = Some(Ruin::Lost);
            }
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
