//! A store in memory that a test looks into.

use std::ops::Range;

use async_trait::async_trait;
use voussoir_raft::memory::MemoryStore;
use voussoir_raft::{
    Completion, Entry, LogStore, LogWrite, ReadFailed, Restored, Room, SnapshotName,
    SnapshotReader, SnapshotWriter, StoreError,
};

/// What happens before a call, or in its place.
#[async_trait]
pub(crate) trait Hooks: Send + Sync + 'static {
    /// The room that the store says it has.
    fn room(&self) -> Option<Room> {
        None
    }

    /// Before a write is taken, in the call itself.
    fn before_write(&self, _: &LogWrite) {}

    /// Before entries are read back.
    async fn before_read(&self) {}
}

pub(crate) struct Hooked<H> {
    inner: MemoryStore,
    hooks: H,
}

impl<H: Hooks> Hooked<H> {
    pub(crate) fn new(hooks: H) -> Self {
        Self { inner: MemoryStore::new(), hooks }
    }
}

#[async_trait]
impl<H: Hooks> LogStore for Hooked<H> {
    fn room(&self) -> Option<Room> {
        self.hooks.room()
    }

    async fn restore(&self) -> Result<Restored, StoreError> {
        self.inner.restore().await
    }

    fn write(&self, write: LogWrite, done: Completion) {
        self.hooks.before_write(&write);
        self.inner.write(write, done);
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        self.hooks.before_read().await;
        self.inner.read(range, max_bytes).await
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        self.inner.stage(name).await
    }

    fn unstage(&self, identity: u64) {
        self.inner.unstage(identity);
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        self.inner.open_snapshot().await
    }
}
