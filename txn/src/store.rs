//! Where the records of sagas are: the seam, in memory, and in a journal.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::StoreError;

pub(crate) mod batcher;
pub(crate) mod gather;
#[cfg(feature = "journal")]
mod journal;
#[cfg(feature = "journal")]
#[cfg_attr(docsrs, doc(cfg(feature = "journal")))]
pub use journal::JournalStore;

/// What a record is to its saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordKind {
    /// It follows the saga's earlier records.
    More,
    /// It stands for all that went before: the saga's earlier records are no longer needed.
    Whole,
    /// The saga has been forgotten: none of its records is needed, this one included.
    Forgotten,
}

/// A part of one saga's history. Its format belongs to this crate: see the crate's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The saga's id.
    pub saga: Arc<str>,
    /// What it is to the saga.
    pub kind: RecordKind,
    /// Events, encoded. Empty for [`RecordKind::Forgotten`].
    pub events: Bytes,
}

impl Record {
    /// A record, for stores that read it back.
    pub fn new(saga: impl Into<Arc<str>>, kind: RecordKind, events: Bytes) -> Self {
        Self { saga: saga.into(), kind, events }
    }

    /// What it counts in an append: its id, its events, and 8 bytes.
    pub(crate) fn len_bytes(&self) -> usize {
        self.saga.len() + self.events.len() + 8
    }
}

/// What an opened store holds.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Opened {
    /// Larger than at every opening before, durably.
    pub epoch: u64,
    /// All records that are needed, each saga's in the order in which they were appended.
    pub records: Vec<Record>,
}

impl Opened {
    /// What an opened store holds.
    pub fn new(epoch: u64, records: Vec<Record>) -> Self {
        Self { epoch, records }
    }
}

/// Where records are kept. Called without any lock held.
#[async_trait]
pub trait SagaStore: Send + Sync + 'static {
    /// Begins a new epoch and reads all records. Called once, before anything else.
    ///
    /// # Errors
    /// [`StoreError`]. A history that cannot be read wholly is an error: half a history would run
    /// steps twice.
    ///
    /// # Cancel safety
    /// Not cancel safe: an epoch may be used up.
    async fn open(&self) -> Result<Opened, StoreError>;

    /// Appends records, all or none of them, and returns when they are durable. Calls come one
    /// after the other; each has the records of all sagas that waited for the one before.
    ///
    /// # Errors
    /// [`StoreError`]: no saga that meets it goes on, and the records may be found at the next
    /// opening or not. One that [`is_retryable`](StoreError::is_retryable): the same records are
    /// appended again after a pause, and the sagas wait.
    ///
    /// # Cancel safety
    /// The future is dropped only with the runtime.
    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError>;

    /// Bytes of the largest append: ids and events, with 8 bytes for each record. Default 16 MiB,
    /// which is more than any saga needs. With less, the input and the outputs of a saga have at
    /// most three quarters of it. A store that wraps another asks it.
    fn max_append_bytes(&self) -> usize {
        16 << 20
    }

    /// A saga whose old records keep the store from giving space back: it will be appended again as
    /// [`RecordKind::Whole`].
    fn to_rewrite(&self) -> Option<Arc<str>> {
        None
    }
}

/// Keeps records in memory: for tests, and for sagas that may be lost with the process. Clones
/// share their records, so a clone can play the next process: once it has opened the store, the
/// earlier one appends nothing more.
#[derive(Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Memory>>,
    /// The epoch that this handle has begun; 0 before.
    epoch: AtomicU64,
}

impl Clone for MemoryStore {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), epoch: AtomicU64::new(0) }
    }
}

#[derive(Default)]
struct Memory {
    epoch: u64,
    records: HashMap<Arc<str>, Vec<Record>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sagas = self.shared.lock().records.len();
        f.debug_struct("MemoryStore").field("sagas", &sagas).finish_non_exhaustive()
    }
}

#[async_trait]
impl SagaStore for MemoryStore {
    async fn open(&self) -> Result<Opened, StoreError> {
        let mut shared = self.shared.lock();
        shared.epoch += 1;
        self.epoch.store(shared.epoch, Ordering::Relaxed);
        let records = shared.records.values().flatten().cloned().collect();
        Ok(Opened { epoch: shared.epoch, records })
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let mut shared = self.shared.lock();
        if self.epoch.load(Ordering::Relaxed) != shared.epoch || shared.epoch == 0 {
            return Err(StoreError::new("the store was opened again, or not yet"));
        }
        for record in records {
            match record.kind {
                RecordKind::Forgotten => {
                    shared.records.remove(&record.saga);
                }
                RecordKind::Whole => {
                    shared.records.insert(Arc::clone(&record.saga), vec![record]);
                }
                RecordKind::More => {
                    shared.records.entry(Arc::clone(&record.saga)).or_default().push(record);
                }
            }
        }
        Ok(())
    }
}
