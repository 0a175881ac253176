//! Disks that are slow, hang, fail and lose power, under the two stores of the crate.
//!
//! A store reads files on threads of the runtime's pool. Such a read is awaited without letting
//! anything else run, so that the schedule of threads decides nothing.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{Config, Journal, Work};
use voussoir_raft::Restored;
use voussoir_raft::journal::{Identity, JournalStore, OpenError};
use voussoir_raft::memory::MemoryStore;
use voussoir_raft::{
    Completion, Entry, LogStore, LogWrite, ReadFailed, Role, SnapshotName, SnapshotReader,
    SnapshotWriter, Status, StoreError,
};
use voussoir_sim::Rng;

use super::draw::Setup;
use super::gate::Gate;
use super::machine::Truth;
use super::notes::Notes;

const SEGMENT_BYTES: u64 = 256 << 10;
/// How often an idle disk is looked after, so that a journal can write its marks.
const IDLE: Duration = Duration::from_millis(150);
/// Writes within one instant of virtual time that only a loop without an end makes.
const MAX_WRITES_AT_ONCE: u64 = 20_000;

/// What outlives the lives of a node.
pub(crate) struct Disk {
    node: u64,
    platters: Platters,
    /// The platters that were lost and may come back.
    lost: Option<Platters>,
    pub(crate) health: Arc<Health>,
    /// A store has been opened on it.
    used: bool,
    life: Option<Arc<Life>>,
}

enum Platters {
    Memory(MemoryStore),
    Journal(CrashFiles),
}

/// How a disk works now.
pub(crate) struct Health {
    /// Shut while the disk hangs.
    pub(crate) gate: Gate,
    /// Time for one sync, in ms, at least and at most.
    sync_ms: Mutex<(u64, u64)>,
    /// Time for one read in addition, in ms, at most.
    read_ms: AtomicU64,
    grouped: bool,
    rng: Mutex<Rng>,
    /// Writes to a store in memory fail. A journal's files have a fault plan instead.
    failing: AtomicBool,
}

/// One life of a store.
pub(crate) struct Life {
    node: u64,
    alive: AtomicBool,
    /// Writes that a store in memory has not carried out.
    queue: Mutex<VecDeque<(LogWrite, Completion)>>,
    /// One of them has failed.
    has_failed: AtomicBool,
    wake: Notify,
    /// Writes whose completion has not been told.
    pub(crate) pending: AtomicUsize,
    /// The status of the node, once it runs.
    pub(crate) status: OnceLock<watch::Receiver<Status>>,
    /// Virtual time of the last write, and how many came at that time.
    at_once: Mutex<(u64, u64)>,
    /// A snapshot from a peer became current while a confirmed read waited: set by the observer.
    pub(crate) confirmed: AtomicU64,
    pub(crate) reading: AtomicUsize,
}

impl Life {
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }
}

/// Why a disk was not opened.
pub(crate) enum NotOpened {
    /// The store found nothing where there was something.
    Empty,
    Failed(String),
}

impl Health {
    pub(crate) fn set_sync_ms(&self, range: (u64, u64)) {
        *self.sync_ms.lock() = range;
    }

    pub(crate) fn set_read_ms(&self, most: u64) {
        self.read_ms.store(most, Ordering::Relaxed);
    }

    /// The time of one read passes.
    async fn serve_read(&self) {
        self.serve().await;
        let most = self.read_ms.load(Ordering::Relaxed);
        if most > 0 {
            let ms = self.rng.lock().below(most + 1);
            sleep(Duration::from_millis(ms)).await;
        }
    }

    /// The time of one sync passes, and more while the disk hangs.
    async fn serve(&self) {
        let (least, most) = *self.sync_ms.lock();
        let ms = self.rng.lock().between(least, most);
        if ms > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
        self.gate.pass().await;
    }
}

impl Disk {
    pub(crate) fn new(node: u64, setup: &Setup) -> Self {
        let mut rng = Rng::stream(setup.seed, 0xd15c_0000 + node);
        let platters = if setup.journaled {
            Platters::Journal(CrashFiles::new(rng.next_u64()))
        } else {
            Platters::Memory(MemoryStore::new())
        };
        let health = Arc::new(Health {
            gate: Gate::default(),
            sync_ms: Mutex::new(setup.disk_ms),
            read_ms: AtomicU64::new(0),
            grouped: setup.grouped,
            rng: Mutex::new(rng),
            failing: AtomicBool::new(false),
        });
        Self { node, platters, lost: None, health, used: false, life: None }
    }

    /// Opens the store for a new life of the node.
    pub(crate) fn open(
        &mut self,
        setup: &Setup,
        notes: &Arc<Notes>,
        truth: &Arc<Truth>,
    ) -> Result<Store, NotOpened> {
        let inner = match &self.platters {
            Platters::Memory(store) => Inner::Memory(store.clone()),
            Platters::Journal(files) => {
                let mut options = Config::manual();
                options.segment_bytes = SEGMENT_BYTES;
                options.max_bytes = 64 * SEGMENT_BYTES;
                options.identity = Some(u128::from(self.health.rng.lock().next_u64()));
                let journal = Journal::open_with(files.mount(), options);
                let journal = journal.map_err(|error| NotOpened::Failed(error.to_string()))?;
                let store = open_store(&journal, self.node, !self.used)?;
                Inner::Journal { journal, store }
            }
        };
        self.used = true;
        let life = Arc::new(Life {
            node: self.node,
            alive: AtomicBool::new(true),
            has_failed: AtomicBool::new(false),
            queue: Mutex::default(),
            wake: Notify::new(),
            pending: AtomicUsize::new(0),
            status: OnceLock::new(),
            at_once: Mutex::default(),
            confirmed: AtomicU64::new(0),
            reading: AtomicUsize::new(0),
        });
        self.life = Some(Arc::clone(&life));
        let store = Store {
            inner,
            life,
            health: Arc::clone(&self.health),
            notes: Arc::clone(notes),
            truth: Arc::clone(truth),
            append_bytes: setup.config.max_append_bytes,
        };
        tokio::spawn(work(store.clone()));
        Ok(store)
    }

    /// The process dies, or the machine loses power. Nothing that the old life still does reaches
    /// the disk.
    pub(crate) fn crash(&mut self, power: bool) {
        let Some(life) = self.life.take() else { return };
        life.alive.store(false, Ordering::Relaxed);
        life.wake.notify_one();
        self.health.failing.store(false, Ordering::Relaxed);
        let mut queue = std::mem::take(&mut *life.queue.lock());
        if life.has_failed.load(Ordering::Relaxed) {
            // Nothing follows a write that has failed.
            queue.clear();
        }
        match &self.platters {
            Platters::Memory(store) => {
                let mut rng = self.health.rng.lock();
                let all = queue.len() as u64;
                let kept = if power { rng.below(all + 1) } else { all };
                for (at, (mut write, _)) in (0..).zip(queue) {
                    if at > kept
                        || (at == kept && (write.entries.is_empty() || rng.chance(500_000)))
                    {
                        break;
                    }
                    if at == kept {
                        // Of the first write that is missing, a prefix of its entries may be
                        // there.
                        let some = rng.below(write.entries.len() as u64) as usize;
                        write.entries.truncate(some);
                    }
                    store.write(write, Completion::new(|_| ()));
                }
            }
            Platters::Journal(files) => {
                files.heal();
                if power {
                    files.power_loss(Loss::Any);
                } else {
                    files.kill();
                }
            }
        }
    }

    /// From now on writes fail.
    pub(crate) fn fail(&self) {
        self.health.failing.store(true, Ordering::Relaxed);
        if let Platters::Journal(files) = &self.platters {
            let mut rng = self.health.rng.lock();
            let effects = [
                (Op::Write, Effect::NoSpace),
                (Op::Write, Effect::Fail),
                (Op::Sync, Effect::DropDirty),
            ];
            let (op, effect) = effects[rng.below(3) as usize];
            files.inject(Fault::new(op, When::From(rng.below(6)), effect));
        }
    }

    /// Replaces the disk by an empty one. The node must not run. Returns false where the store
    /// has no means to notice.
    pub(crate) fn lose(&mut self) -> bool {
        if matches!(self.platters, Platters::Memory(_)) {
            return false;
        }
        let empty = Platters::Journal(CrashFiles::new(self.health.rng.lock().next_u64()));
        self.lost = Some(std::mem::replace(&mut self.platters, empty));
        true
    }

    /// Puts the disk back that was lost. The node must not run.
    pub(crate) fn put_back(&mut self) {
        if let Some(lost) = self.lost.take() {
            self.platters = lost;
        }
    }
}

fn open_store(journal: &Journal, node: u64, begin: bool) -> Result<JournalStore, NotOpened> {
    let identity = Identity { cluster: 1, node, group: 7 };
    let open = if begin { JournalStore::create } else { JournalStore::open };
    open(journal, identity).map_err(|error| match error {
        OpenError::Absent { .. } => NotOpened::Empty,
        error => NotOpened::Failed(error.to_string()),
    })
}

/// Carries out what a store was asked for, with the pace of its disk, until the life ends.
async fn work(store: Store) {
    let Store { inner, life, health, notes, .. } = store;
    loop {
        if timeout(IDLE, life.wake.notified()).await.is_ok() {
            health.serve().await;
        }
        if !life.is_alive() {
            return;
        }
        match &inner {
            Inner::Memory(memory) => loop {
                let Some((write, done)) = life.queue.lock().pop_front() else { break };
                if health.failing.load(Ordering::Relaxed) {
                    life.has_failed.store(true, Ordering::Relaxed);
                    let cause = std::io::Error::other("injected");
                    done.complete(Err(StoreError::Failed(Arc::new(cause))));
                } else {
                    memory.write(write, done);
                }
                if !health.grouped {
                    life.wake.notify_one();
                    break;
                }
            },
            Inner::Journal { journal, .. } => {
                while journal.work(notes.now()) != Work::Idle {
                    if !health.grouped {
                        life.wake.notify_one();
                        break;
                    }
                }
            }
        }
    }
}

/// The store of one life of a node.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Inner,
    pub(crate) life: Arc<Life>,
    health: Arc<Health>,
    notes: Arc<Notes>,
    truth: Arc<Truth>,
    append_bytes: u64,
}

#[derive(Clone)]
enum Inner {
    Memory(MemoryStore),
    Journal { journal: Journal, store: JournalStore },
}

impl Inner {
    fn store(&self) -> &dyn LogStore {
        match self {
            Self::Memory(store) => store,
            Self::Journal { store, .. } => store,
        }
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for what a thread of the pool does, and lets nothing else run meanwhile.
fn block<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(tokio::task::unconstrained(future));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
        std::thread::park();
    }
}

fn gone() -> StoreError {
    StoreError::Failed(Arc::new(std::io::Error::other("the process is dead")))
}

impl Store {
    fn alive(&self) -> Result<(), StoreError> {
        if self.life.is_alive() { Ok(()) } else { Err(gone()) }
    }

    fn role(&self) -> Option<Role> {
        self.life.status.get().map(|status| status.borrow().role)
    }

    /// A loop that never lets time pass would hang the run: the store stops it.
    fn bound_writes(&self) {
        let now = self.notes.now();
        let mut at_once = self.life.at_once.lock();
        if at_once.0 != now {
            *at_once = (now, 0);
        }
        at_once.1 += 1;
        if at_once.1 > MAX_WRITES_AT_ONCE {
            drop(at_once);
            self.notes.object(format!("node {} writes in a loop without an end", self.life.node));
            panic!("writes in a loop without an end");
        }
    }

    fn observe_write(&self, write: &LogWrite) {
        let notes = &self.notes;
        self.truth.weigh(&write.entries);
        if write.truncate_from.is_some() {
            notes.reached("entries truncated");
        }
        let (Some(name), Some(_)) = (&write.snapshot, write.release) else { return };
        notes.line(format!("node {} installs the snapshot at {}", self.life.node, name.meta.index));
        notes.reached("snapshot of a peer installed");
        if self.life.reading.load(Ordering::Relaxed) > 0 {
            notes.reached("snapshot installed while a read waits");
            let applied = self.life.status.get().map_or(0, |status| status.borrow().applied);
            let confirmed = self.life.confirmed.load(Ordering::Relaxed);
            if confirmed > applied && confirmed < name.meta.index {
                notes.reached("snapshot installed while a confirmed read waits for the machine");
            }
        }
    }
}

#[async_trait]
impl LogStore for Store {
    fn max_entry_bytes(&self) -> usize {
        self.inner.store().max_entry_bytes()
    }

    async fn restore(&self) -> Result<Restored, StoreError> {
        block(self.inner.store().restore())
    }

    fn write(&self, write: LogWrite, done: Completion) {
        self.bound_writes();
        if self.alive().is_err() {
            return done.complete(Err(gone()));
        }
        self.observe_write(&write);
        self.life.pending.fetch_add(1, Ordering::Relaxed);
        let life = Arc::clone(&self.life);
        let done = Completion::new(move |result| {
            life.pending.fetch_sub(1, Ordering::Relaxed);
            done.complete(result);
        });
        match &self.inner {
            Inner::Memory(_) => {
                // A disk has bytes of its own.
                let mut write = write;
                for entry in &mut write.entries {
                    entry.data = Bytes::copy_from_slice(&entry.data);
                }
                self.life.queue.lock().push_back((write, done));
            }
            Inner::Journal { store, .. } => store.write(write, done),
        }
        self.life.wake.notify_one();
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        self.health.serve_read().await;
        self.alive().map_err(|error| ReadFailed::Failed(Arc::new(error)))?;
        let for_peer = max_bytes == self.append_bytes;
        let first = range.start;
        let read = block(self.inner.store().read(range, max_bytes));
        let notes = &self.notes;
        match (&read, for_peer) {
            (Ok(_), true) if self.role() == Some(Role::Leader) => {
                notes.reached("leader reads back entries for a follower behind its window");
                if self.truth.was_probed(self.life.node, first) {
                    notes.reached("probe below the leader's window");
                }
            }
            (Ok(_), false) => notes.reached("machine behind the window: entries read back"),
            (Err(ReadFailed::Released), true) => {
                notes.reached("entries for a follower released before they were read");
            }
            (Err(ReadFailed::Released), false) => {
                notes.reached("entries for the machine released before they were read");
            }
            _ => {}
        }
        read
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        self.alive()?;
        self.life.wake.notify_one();
        let inner = self.inner.store().stage(name).await?;
        Ok(Box::new(Writer { inner, store: self.clone() }))
    }

    fn unstage(&self, identity: u64) {
        if self.alive().is_ok() {
            self.inner.store().unstage(identity);
            self.life.wake.notify_one();
        }
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        self.alive()?;
        let opened = block(self.inner.store().open_snapshot())?;
        let store = self.clone();
        Ok(opened.map(|inner| Box::new(Reader { inner, store }) as Box<dyn SnapshotReader>))
    }
}

struct Writer {
    inner: Box<dyn SnapshotWriter>,
    store: Store,
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn append(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.store.alive()?;
        self.store.life.wake.notify_one();
        let chunk = Bytes::copy_from_slice(&chunk);
        self.inner.append(chunk).await
    }

    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let Self { inner, store } = *self;
        store.health.serve().await;
        store.alive()?;
        store.life.wake.notify_one();
        inner.finish().await
    }
}

struct Reader {
    inner: Box<dyn SnapshotReader>,
    store: Store,
}

#[async_trait]
impl SnapshotReader for Reader {
    fn name(&self) -> &SnapshotName {
        self.inner.name()
    }

    fn chunks(&self) -> u64 {
        self.inner.chunks()
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    async fn chunk(&self, number: u64) -> Result<Bytes, ReadFailed> {
        self.store.health.serve_read().await;
        self.store.alive().map_err(|error| ReadFailed::Failed(Arc::new(error)))?;
        block(self.inner.chunk(number))
    }
}
