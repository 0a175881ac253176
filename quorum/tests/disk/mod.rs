//! The disk of a node, and how the node begins on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::store::{Change, StoreError};
use voussoir_quorum::*;

/// How long a disk takes for a write, or to read these keys; `None`: no time.
type Pause = dyn Fn(bool, &[Bytes]) -> Result<Option<Duration>, StoreError> + Send + Sync;

/// A store in memory that takes its time. What it was not done with when its node crashed is lost.
pub(crate) struct Disk {
    records: Arc<MemoryStore>,
    pause: Box<Pause>,
    /// Short pages: other things happen between them.
    max_page_bytes: usize,
    /// Until the node crashes.
    is_mounted: AtomicBool,
}

impl Disk {
    pub(crate) fn new(
        records: Arc<MemoryStore>,
        max_page_bytes: usize,
        pause: Box<Pause>,
    ) -> Arc<Self> {
        Arc::new(Self { records, pause, max_page_bytes, is_mounted: AtomicBool::new(true) })
    }

    /// Its node crashes.
    pub(crate) fn unmount(&self) {
        self.is_mounted.store(false, Ordering::Relaxed);
    }

    async fn take_time(&self, is_write: bool, keys: &[Bytes]) -> Result<(), StoreError> {
        let pause = (self.pause)(is_write, keys)?;
        if let Some(pause) = pause {
            sleep(pause).await;
        }
        if self.is_mounted.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(StoreError::Unknown("crashed".to_owned()))
        }
    }
}

#[async_trait]
impl ReplicaStore for Disk {
    async fn get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.take_time(false, keys).await?;
        self.records.get(keys).await
    }

    async fn apply(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        self.take_time(true, &[]).await?;
        self.records.apply(batch).await
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: &[u8],
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.take_time(false, &[]).await?;
        self.records.scan(prefix, after, max_bytes.min(self.max_page_bytes)).await
    }

    async fn clear(&self) -> Result<(), StoreError> {
        self.records.clear().await
    }
}

/// How a node begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Create,
    Join,
    Again,
    Lost,
}

impl Start {
    pub(crate) async fn node(
        self,
        id: u64,
        disk: &Arc<Disk>,
        config: NodeConfig,
    ) -> Result<Node, StartError> {
        let store: Arc<dyn ReplicaStore> = Arc::clone(disk) as _;
        match self {
            Self::Create => Node::create(id, store, config).await,
            Self::Join => Node::join(id, store, config).await,
            Self::Again => Node::start(id, store, config).await,
            Self::Lost => Node::start_lost(id, store, config).await,
        }
    }
}
