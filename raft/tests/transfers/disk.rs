//! A journal without threads: it works when it is asked to, and snapshots take virtual time.

use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};
use voussoir_journal::files::crash::CrashFiles;
use voussoir_journal::{Config, Journal, Work};
use voussoir_raft::Restored;
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::{
    Completion, Entry, LogStore, LogWrite, ReadFailed, SnapshotName, SnapshotReader,
    SnapshotWriter, StoreError,
};
use voussoir_sim::Rng;

const SEGMENT_BYTES: u64 = 256 << 10;

pub(crate) struct Driven {
    journal: Journal,
    store: JournalStore,
    rng: Arc<Mutex<Rng>>,
}

/// Opens what a disk holds; `begin` where there is nothing yet.
pub(crate) fn open(files: &CrashFiles, node: u64, begin: bool, mut rng: Rng) -> Driven {
    let mut options = Config::manual();
    options.segment_bytes = SEGMENT_BYTES;
    options.max_bytes = 64 * SEGMENT_BYTES;
    options.identity = Some(u128::from(rng.next_u64()));
    let journal = Journal::open_with(files.mount(), options).expect("the disk works");
    let identity = Identity { cluster: 1, node, group: 0 };
    let open = if begin { JournalStore::create } else { JournalStore::open };
    let store = open(&journal, identity).expect("the disk works");
    Driven { journal, store, rng: Arc::new(Mutex::new(rng)) }
}

fn work(journal: &Journal) {
    while journal.work(0) != Work::Idle {}
}

/// Awaits what the journal has to work for.
async fn driven<T>(journal: &Journal, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let first = future.as_mut().poll(cx);
        if first.is_ready() {
            return first;
        }
        work(journal);
        future.as_mut().poll(cx)
    })
    .await
}

#[async_trait]
impl LogStore for Driven {
    fn max_entry_bytes(&self) -> usize {
        self.store.max_entry_bytes()
    }

    async fn restore(&self) -> Result<Restored, StoreError> {
        self.store.restore().await
    }

    fn write(&self, write: LogWrite, done: Completion) {
        self.store.write(write, done);
        work(&self.journal);
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        self.store.read(range, max_bytes).await
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        let inner = driven(&self.journal, self.store.stage(name)).await?;
        let (journal, rng) = (self.journal.clone(), Arc::clone(&self.rng));
        Ok(Box::new(Writer { inner, journal, rng }))
    }

    fn unstage(&self, identity: u64) {
        self.store.unstage(identity);
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        self.store.open_snapshot().await
    }
}

struct Writer {
    inner: Box<dyn SnapshotWriter>,
    journal: Journal,
    rng: Arc<Mutex<Rng>>,
}

/// What a disk needs for a chunk.
fn some_time(rng: &Mutex<Rng>) -> Sleep {
    sleep(Duration::from_micros(rng.lock().below(3000)))
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn append(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        some_time(&self.rng).await;
        driven(&self.journal, self.inner.append(chunk)).await
    }

    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let Self { inner, journal, rng } = *self;
        some_time(&rng).await;
        driven(&journal, inner.finish()).await
    }
}
