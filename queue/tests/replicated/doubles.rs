//! A disk that hangs, and a reader of the log lines.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use voussoir_raft::memory::MemoryStore;
use voussoir_raft::{
    Completion, Entry, LogStore, LogWrite, ReadFailed, Restored, SnapshotName, SnapshotReader,
    SnapshotWriter, StoreError,
};

/// What waits for the disks that hang, by node.
pub(crate) type Stalls = Mutex<BTreeMap<u64, Vec<(LogWrite, Completion)>>>;

/// The log of a node whose disk may hang for a while.
pub(crate) struct Stalling {
    pub(crate) id: u64,
    pub(crate) log: MemoryStore,
    pub(crate) stalls: Arc<Stalls>,
}

#[async_trait]
impl LogStore for Stalling {
    async fn restore(&self) -> Result<Restored, StoreError> {
        self.log.restore().await
    }

    fn write(&self, write: LogWrite, done: Completion) {
        match self.stalls.lock().get_mut(&self.id) {
            Some(waiting) => waiting.push((write, done)),
            None => self.log.write(write, done),
        }
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        self.log.read(range, max_bytes).await
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        self.log.stage(name).await
    }

    fn unstage(&self, identity: u64) {
        self.log.unstage(identity);
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        self.log.open_snapshot().await
    }
}

/// Counts warnings and errors of this crate.
pub(crate) struct Events(pub(crate) Arc<[AtomicUsize; 2]>);

impl Subscriber for Events {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "voussoir::queue" && *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let at = usize::from(*event.metadata().level() == Level::ERROR);
        self.0[at].fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
