//! A partition: batches in order, each record at an offset that never changes.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::config::{Config, Retention};
use crate::core::{State, codec};
use crate::error::{ConfigError, FetchError, OpenError, ProduceError, StoreError};
use crate::format::{Batch, FormatError, Header, MAX_BATCH_BYTES};
use crate::store::{BATCH_OVERHEAD_BYTES, Durability, PartitionStore};

mod append;
mod compact;
#[cfg(feature = "raft")]
mod follow;
mod generation;
mod read;
mod retention;
mod tail;
#[cfg_attr(not(feature = "journal"), expect(dead_code, reason = "topics need a journal"))]
mod turn;
mod waiters;

pub use compact::Compacted;
pub use read::{Fetched, Records, Seek, WaitFuture};

#[cfg(feature = "journal")]
pub(crate) use turn::Turn;

use append::{Queue, Release};
use generation::Generation;
use tail::Tail;
use waiters::Waiters;

/// A handle to a partition. Clones are the same partition.
///
/// One store belongs to one partition: open it once, and clone the handle.
#[derive(Clone)]
pub struct Partition {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn PartitionStore>,
    config: Config,
    /// The largest batch that fits into a write beside the largest snapshot.
    max_batch_bytes: usize,
    /// Writes that may be on their way at once.
    max_in_flight: usize,
    /// Bytes of batches after which a snapshot is due, besides their number: a store that fills up
    /// can always release what its last snapshot covers.
    snapshot_bytes: u64,
    inner: Mutex<Inner>,
    /// A compaction is under way.
    is_compacting: AtomicBool,
    /// Its topic has been deleted.
    is_deleted: AtomicBool,
}

struct Inner {
    /// What has been acknowledged by the store. Its positions are those of `generation`.
    state: State,
    generation: Arc<Generation>,
    queue: Queue,
    tail: Tail,
    waiters: Waiters,
    /// What the stored snapshot covers.
    covered: Covered,
    /// Bytes of the batches behind the stored snapshot.
    bytes_behind: u64,
    /// Offset below which everything is on stable storage.
    synced_offset: u64,
    /// The failure after which the partition takes no more batches.
    stopped: Option<StoreError>,
    appended: u64,
    duplicates: u64,
    rejected: u64,
}

/// The batches that a snapshot speaks of: all before this point.
#[derive(Clone, Copy, Debug)]
struct Covered {
    position: u64,
    offset: u64,
}

impl Covered {
    /// What a snapshot of `state` covers.
    fn by(state: &State) -> Self {
        Self { position: state.next_position, offset: state.next_offset }
    }
}

/// Where a batch is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// Offset of the first record.
    pub base_offset: u64,
    /// Offset of the last record.
    pub last_offset: u64,
    /// The batch had been appended before, by an earlier attempt of the same producer.
    pub is_duplicate: bool,
}

/// What a partition has done since it was opened, and how large it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// First offset that can be read.
    pub start_offset: u64,
    /// Offset after the last record.
    pub end_offset: u64,
    /// Bytes in the store.
    pub stored_bytes: u64,
    /// Bytes that wait to be written.
    pub pending_bytes: usize,
    /// Readers that wait for records.
    pub waiters: usize,
    /// Idempotent producers that are remembered.
    pub producers: usize,
    /// Batches appended.
    pub appended: u64,
    /// Batches that had been appended before.
    pub duplicates: u64,
    /// Batches that were rejected.
    pub rejected: u64,
    /// Records before this offset have been compacted.
    pub compacted_offset: u64,
}

impl Partition {
    /// Opens the partition in `store`, which may be empty: reads its snapshot and the batches
    /// behind it, at most [`Config::snapshot_every`] of them.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(store: impl PartitionStore, config: Config) -> Result<Self, OpenError> {
        config.validate()?;
        let store: Arc<dyn PartitionStore> = Arc::new(store);
        let max_batch_bytes = room_for_a_batch(&*store, &config)?;
        let (state, covered, bytes_behind) = recover(&*store, &config)?;
        let max_in_flight = store.max_in_flight();
        let snapshot_bytes = 4 * store.max_write_bytes() as u64;
        // A store has made everything durable that it shows when it is opened.
        let synced_offset = state.next_offset;
        let tail = Tail::new(config.tail_cache_bytes, state.next_position);
        let waiters = Waiters::new(config.max_waiters);
        let inner = move |generation| Inner {
            state,
            generation,
            queue: Queue::default(),
            tail,
            waiters,
            covered,
            bytes_behind,
            synced_offset,
            stopped: None,
            appended: 0,
            duplicates: 0,
            rejected: 0,
        };
        let shared = Arc::new_cyclic(|shared| {
            let generation = append::generation(Weak::clone(shared), store.log());
            let inner = Mutex::new(inner(generation));
            let (is_compacting, is_deleted) = (AtomicBool::new(false), AtomicBool::new(false));
            Shared {
                store,
                config,
                max_batch_bytes,
                max_in_flight,
                snapshot_bytes,
                inner,
                is_compacting,
                is_deleted,
            }
        });
        Ok(Self { shared })
    }

    /// Whether partitions in such a store can have this configuration.
    #[cfg(feature = "journal")]
    pub(crate) fn check(store: &dyn PartitionStore, config: &Config) -> Result<(), OpenError> {
        room_for_a_batch(store, config).map(|_| ())
    }

    /// Appends a batch. The offsets that its header has are replaced.
    ///
    /// Batches of one caller are appended in the order of the calls. A lone batch is written at
    /// once, and in a journal another one right behind it; all that wait when a write ends share
    /// the next one, and its sync. When a write fails, those that were decided behind it fail too.
    ///
    /// The future need not be polled for the batch to be appended.
    pub fn append(&self, batch: Batch, durability: Durability) -> AppendFuture {
        let (sender, answer) = oneshot::channel();
        append::begin(&self.shared, batch, durability, false, append::answer_by(sender));
        AppendFuture { answer }
    }

    /// Lets go of all whole batches before `offset`. Space comes back when the store has it.
    /// Returns the first offset that is left; it is below `offset` when a batch reaches across it,
    /// or when the store has room for a release and not for a snapshot.
    ///
    /// # Errors
    /// The store rejected or failed the write.
    ///
    /// # Cancel safety
    /// The release happens all the same.
    pub async fn release_before(&self, offset: u64) -> Result<u64, FetchError> {
        for _ in 0..read::MOVED_AGAIN {
            let (generation, position, start_offset) = self.shared.release_point(offset)?;
            let (answer, answered) = oneshot::channel();
            let release = Release { position, start_offset, generation, answer };
            append::release(&self.shared, release);
            if let Some(start) = answered.await.map_err(|_| FetchError::Closed)?? {
                return Ok(start);
            }
        }
        let why = "each time another compaction came before the release".to_owned();
        Err(StoreError::Busy { why }.into())
    }

    /// The first offset to keep under `retention` at `now_ms` (ms since the UNIX epoch), for
    /// [`release_before`](Self::release_before).
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn retention_offset(&self, retention: Retention, now_ms: i64) -> Result<u64, FetchError> {
        self.shared.retention_offset(retention, now_ms)
    }

    /// The offsets that can be read: the first one, and the one after the last record.
    pub fn offsets(&self) -> Range<u64> {
        let inner = self.shared.inner.lock();
        inner.state.start_offset..inner.state.next_offset
    }

    /// The offset at which a reader begins.
    ///
    /// # Errors
    /// For a timestamp, the store cannot be read.
    pub fn seek(&self, to: Seek) -> Result<u64, FetchError> {
        self.shared.seek(to)
    }

    /// The batches from the one that holds `offset` on, about `max_bytes` of them and at least
    /// one; none at the end. The first one may begin before `offset`: [`Fetched::records`] leaves
    /// out what was not asked for.
    ///
    /// Batches that are not among the latest ones are read in the calling thread, mostly from the
    /// page cache.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn fetch(&self, offset: u64, max_bytes: usize) -> Result<Fetched, FetchError> {
        self.shared.fetch(offset, max_bytes)
    }

    /// Resolves when there is a record at `offset`, or beyond. Readers are woken in the order of
    /// their offsets, and only those whose offset has been reached.
    ///
    /// It waits as long as the caller polls it: give it a time-out, or use
    /// [`fetch_wait`](Self::fetch_wait).
    pub fn wait_for(&self, offset: u64) -> WaitFuture {
        WaitFuture::new(Arc::clone(&self.shared), offset)
    }

    /// As [`fetch`](Self::fetch), but waits at the end of the log for a record, at most `max_wait`.
    /// Returns no batches when none came.
    ///
    /// # Errors
    /// See [`FetchError`].
    ///
    /// # Cancel safety
    /// Safe: reading changes nothing.
    pub async fn fetch_wait(
        &self,
        offset: u64,
        max_bytes: usize,
        max_wait: std::time::Duration,
    ) -> Result<Fetched, FetchError> {
        match tokio::time::timeout(max_wait, self.wait_for(offset)).await {
            Ok(waited) => waited?,
            Err(_elapsed) => {}
        }
        self.fetch(offset, max_bytes)
    }

    /// Takes no more batches: what is queued is rejected, a write on its way is still answered, and
    /// readers that wait get [`FetchError::Closed`].
    pub fn close(&self) {
        append::stop(&self.shared, StoreError::Stopped { why: "the partition is closed".into() });
    }

    /// As [`close`](Self::close), when the logs of the partition are gone.
    #[cfg(feature = "journal")]
    pub(crate) fn note_deletion(&self) {
        self.shared.is_deleted.store(true, Ordering::Release);
        append::stop(&self.shared, StoreError::Stopped { why: "the topic was deleted".into() });
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.shared.is_deleted.load(Ordering::Acquire)
    }

    /// A snapshot of sizes and counters.
    pub fn stats(&self) -> Stats {
        let generation = Arc::clone(&self.shared.inner.lock().generation);
        let stored_bytes = generation.log().stored_bytes();
        let inner = self.shared.inner.lock();
        Stats {
            start_offset: inner.state.start_offset,
            end_offset: inner.state.next_offset,
            stored_bytes,
            pending_bytes: inner.queue.bytes,
            waiters: inner.waiters.len(),
            producers: inner.state.producers.len(),
            appended: inner.appended,
            duplicates: inner.duplicates,
            rejected: inner.rejected,
            compacted_offset: inner.state.clean.offset,
        }
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partition").field("offsets", &self.offsets()).finish_non_exhaustive()
    }
}

/// The answer to an append. Dropping it takes nothing back.
#[must_use = "the answer says whether the batch is in the log"]
#[derive(Debug)]
pub struct AppendFuture {
    answer: oneshot::Receiver<Result<Appended, ProduceError>>,
}

impl Future for AppendFuture {
    type Output = Result<Appended, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| {
            answer.unwrap_or_else(|_| {
                let why = "the partition is gone".to_owned();
                Err(ProduceError::Store(StoreError::Failed { why }))
            })
        })
    }
}

/// What a write has left for a batch beside the largest snapshot.
fn room_for_a_batch(store: &dyn PartitionStore, config: &Config) -> Result<usize, OpenError> {
    let snapshot = codec::max_bytes(config.limits());
    let left = store.max_write_bytes().saturating_sub(snapshot + 2 * BATCH_OVERHEAD_BYTES);
    if left < snapshot {
        let (field, rule) = (
            "max_producers",
            "must be so low, with max_index_entries, that a snapshot (91 bytes for each producer, \
             24 for each entry) takes at most half of a write of the store",
        );
        return Err(ConfigError { field, rule }.into());
    }
    Ok(left.min(MAX_BATCH_BYTES))
}

/// The state that the store holds, what its snapshot covers, and the bytes of batches behind it.
fn recover(
    store: &dyn PartitionStore,
    config: &Config,
) -> Result<(State, Covered, u64), OpenError> {
    let log = store.log();
    let bounds = log.bounds();
    let damaged = |position: u64, why: &str| OpenError::Damaged { position, why: why.into() };
    let mut state = match store.snapshot()? {
        Some(bytes) => State::decode(bytes).map_err(|why| damaged(bounds.end, why))?,
        None => State::new(),
    };
    let (covered, mut bytes_behind) = (Covered::by(&state), 0);
    if !(bounds.start..=bounds.end).contains(&state.next_position) {
        return Err(damaged(state.next_position, "the store lacks batches of the snapshot"));
    }
    // Ends: each round applies at least one batch.
    while state.next_position < bounds.end {
        let read = log.read(state.next_position..bounds.end, 1 << 20)?;
        if read.is_empty() {
            return Err(damaged(state.next_position, "the store ends before its bounds"));
        }
        for bytes in read {
            let position = state.next_position;
            bytes_behind += bytes.len() as u64;
            let header = header_of(bytes).map_err(|error| damaged(position, &error.to_string()))?;
            state.apply(&header, config.limits()).map_err(|why| damaged(position, why))?;
        }
    }
    if bounds.start > state.first_position {
        // Released without a new snapshot.
        let mut start_offset = state.next_offset;
        if bounds.start < bounds.end {
            let read = log.read(bounds.start..bounds.start + 1, 1)?.into_iter().next();
            let bytes = read.ok_or_else(|| damaged(bounds.start, "the store has no batch"))?;
            let header = header_of(bytes);
            let header = header.map_err(|error| damaged(bounds.start, &error.to_string()))?;
            start_offset = header.base_offset as u64;
        }
        state.release(bounds.start, start_offset.min(state.next_offset));
    }
    state.fit(config.limits());
    Ok((state, covered, bytes_behind))
}

fn header_of(bytes: bytes::Bytes) -> Result<Header, FormatError> {
    Batch::from_store(bytes).map(|batch| *batch.header())
}
