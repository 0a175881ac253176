//! The service: counts reports of views through a cache whose writes are acknowledged by the
//! journal and reach the table later.

use std::hash::BuildHasher;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Mutex, Semaphore};
use voussoir_cache::{
    Cache, LoadError, OnFull, Outcome, PlainCodec, Sink, Source, Stats, WriteBehind,
    WriteBehindConfig, WriteError,
};
use voussoir_journal::Journal;

use crate::Error as AnyError;
use crate::counters::{Count, Key};

/// Reports that are being counted at once. Further ones are rejected.
const MAX_REPORTS: usize = 4_096;
/// Counters in memory. One takes about 150 bytes.
const MAX_COUNTERS: u64 = 10_000;
/// Locks over all counters: reports of one counter are counted one after the other.
const TURNS: usize = 1_024;
/// How long a report waits before it is tried again while the backlog is full.
const FULL_PAUSE: Duration = Duration::from_millis(200);
/// The longest load of a counter. Above the statement time-out of the table.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest call of the sink. Above the statement time-out of the table.
const SINK_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause between two attempts to flush.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Bytes of one file of the journal.
const SEGMENT_BYTES: u64 = 4 << 20;

/// What an operator sets.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Counters whose newest value the table does not have yet. At the limit, reports of others
    /// wait.
    pub(crate) max_backlog: usize,
    /// How long a counter collects reports before it is flushed.
    pub(crate) flush_after: Duration,
    /// Bytes of the journal on the disk.
    pub(crate) max_journal_bytes: u64,
}

/// Views that one edge has seen since its last report of the same page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// 1 for the first report of this page by this edge, one more for each further one.
    pub(crate) sequence: u64,
    pub(crate) views: u64,
}

/// Why a report was not counted, or may not have been.
#[derive(Debug, Error)]
pub(crate) enum ReportError {
    /// [`MAX_REPORTS`] are being counted. Not counted; send it again after a pause.
    #[error("{MAX_REPORTS} reports are being counted")]
    Busy,
    /// An earlier report is missing, or later ones were counted. Not counted; sending it again does
    /// not help.
    #[error("report {found} does not follow {last}, the last one of this page and edge")]
    OutOfSequence { found: u64, last: u64 },
    /// The counter would exceed the range of its column. Not counted.
    #[error("the counter would exceed {}", i64::MAX)]
    TooLarge,
    /// The counter could not be read. Not counted; send it again after a pause.
    #[error("the counter was not read: {0}")]
    Load(#[from] LoadError),
    /// The journal has not acknowledged the new count; [`outcome`](Self::outcome) says what is
    /// known. Send it again after a pause: it is counted once.
    #[error("the count was not acknowledged: {0}")]
    Write(#[from] WriteError),
    /// A defect: the task that counted it has panicked. Send it again after a pause.
    #[error("the task that counts the report has panicked")]
    Panicked,
}

impl ReportError {
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Write(error) => error.outcome(),
            Self::Panicked => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }
}

/// Opens the journal in `folder`.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn open_journal(folder: &Path, config: &Config) -> Result<Journal, AnyError> {
    let mut journal = voussoir_journal::Config::default();
    journal.segment_bytes = SEGMENT_BYTES;
    journal.max_bytes = config.max_journal_bytes;
    Ok(Journal::open(folder, journal)?)
}

/// Counts reports. Clones are handles to the same service.
#[derive(Clone, Debug)]
pub(crate) struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: Cache<Key, Count>,
    /// A report reads its counter, and writes it: the lock of the counter makes this one step. A
    /// lock is chosen by the key's hash, so that their number is bounded; two counters may share
    /// one.
    turns: Vec<Mutex<()>>,
    hasher: std::hash::RandomState,
    slots: Arc<Semaphore>,
}

impl Service {
    /// Reads back from the journal what was acknowledged and not flushed. The source must see what
    /// the sink has taken.
    ///
    /// # Errors
    /// The configuration is rejected, or the journal cannot be read.
    pub(crate) fn open(
        journal: &Journal,
        config: &Config,
        source: impl Source<Key, Count>,
        sink: impl Sink<Key, Count>,
    ) -> Result<Self, AnyError> {
        let mut behind = WriteBehindConfig::default();
        behind.max_keys = config.max_backlog;
        // A report that waited for room would keep its slot and the lock of its counter, and others
        // of the backlog's own counters waiting.
        behind.on_full = OnFull::Fail;
        behind.flush_after = config.flush_after;
        behind.sink_timeout = SINK_TIMEOUT;
        behind.max_backoff = MAX_BACKOFF;
        let behind = WriteBehind::open(journal, "views", PlainCodec, behind)?;
        let mut cache = voussoir_cache::Config::default();
        cache.max_weight = MAX_COUNTERS;
        cache.hard_timeout = LOAD_TIMEOUT;
        // Each report looks twice for its counter. This process alone makes new ones.
        cache.negative_ttl = LOAD_TIMEOUT;
        let cache =
            Cache::builder().config(cache).source(source).write_behind(behind, sink).build()?;
        Ok(Self(Arc::new(Inner {
            cache,
            turns: (0..TURNS).map(|_| Mutex::new(())).collect(),
            hasher: std::hash::RandomState::new(),
            slots: Arc::new(Semaphore::new(MAX_REPORTS)),
        })))
    }

    /// Counts a report, and returns the counter with it. Returns the same for a report that was
    /// counted before: whoever is not sure of the outcome sends the report again.
    ///
    /// Waits while the backlog is full; the caller bounds the wait.
    ///
    /// # Errors
    /// [`ReportError`].
    ///
    /// # Cancel safety
    /// The report is still counted when the future is dropped, or rejected where nobody hears it.
    pub(crate) async fn report(&self, key: Key, report: Report) -> Result<Count, ReportError> {
        // Ends: with another answer than that the backlog is full, or with the caller. Between two
        // attempts the report holds nothing.
        loop {
            match self.try_report(key, report).await {
                Err(ReportError::Write(WriteError::Full)) => tokio::time::sleep(FULL_PAUSE).await,
                counted => return counted,
            }
        }
    }

    async fn try_report(&self, key: Key, report: Report) -> Result<Count, ReportError> {
        let slot = Arc::clone(&self.0.slots).try_acquire_owned().map_err(|_| ReportError::Busy)?;
        let inner = Arc::clone(&self.0);
        // In a task of its own: dropped between reading and writing, it would give up the lock
        // while its write is under way, and the next report would read the old count.
        let counted = tokio::spawn(async move {
            let _slot = slot;
            inner.count(key, report).await
        });
        counted.await.unwrap_or(Err(ReportError::Panicked))
    }

    /// The views of a page, over all edges.
    ///
    /// # Errors
    /// A counter could not be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn views(&self, page: u64, edges: u8) -> Result<u64, LoadError> {
        let mut tasks = tokio::task::JoinSet::new();
        // At the same time, so that the misses are one statement.
        for edge in 0..edges {
            let inner = Arc::clone(&self.0);
            tasks.spawn(async move { inner.cache.get_or_load(&Key { page, edge }).await });
        }
        let mut views = 0_u64;
        while let Some(read) = tasks.join_next().await {
            let count = read.unwrap_or(Err(LoadError::Panicked))?.unwrap_or_default();
            views = views.saturating_add(count.views);
        }
        Ok(views)
    }

    /// Waits until the table has everything that was acknowledged before the call.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn flush(&self) {
        self.0.cache.flush().await;
    }

    pub(crate) fn stats(&self) -> Stats {
        self.0.cache.stats()
    }
}

impl Inner {
    async fn count(&self, key: Key, report: Report) -> Result<Count, ReportError> {
        // Before the lock: a load that takes its time holds up no other counter.
        self.cache.get_or_load(&key).await?;
        let turn = self.hasher.hash_one(key) as usize % TURNS;
        let _turn = self.turns[turn].lock().await;
        let held = self.cache.get_or_load(&key).await?.unwrap_or_default();
        if report.sequence == held.sequence && held.sequence > 0 {
            return Ok(held);
        }
        if held.sequence.checked_add(1) != Some(report.sequence) {
            let (found, last) = (report.sequence, held.sequence);
            return Err(ReportError::OutOfSequence { found, last });
        }
        let views =
            held.views.checked_add(report.views).filter(|views| i64::try_from(*views).is_ok());
        let views = views.ok_or(ReportError::TooLarge)?;
        let counted = Count { views, sequence: report.sequence };
        self.cache.write(key, counted).await?;
        Ok(counted)
    }
}

#[cfg(test)]
mod tests;
