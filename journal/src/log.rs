//! One log of a journal, to read from and to name in commits.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::commit::{Batch, BatchBuilder};
use crate::core::bounds;
use crate::engine::Engine;
use crate::engine::log::LogInner;
use crate::error::{LogName, ReadError};
use crate::follow::Follow;
use crate::log_info::{self, Extent, Health, LogInfo, health_of};

/// A handle to one log. Positions are dense: records have positions `first()..end()`.
///
/// What a handle shows is what has been acknowledged: a commit changes the bounds at the moment
/// at which it is. Reading is synchronous, mostly from the page cache, and may be done from any
/// thread while others write.
#[derive(Clone)]
pub struct Log {
    engine: Arc<Engine>,
    inner: Arc<LogInner>,
}

impl Log {
    /// The highest position to which a release may move the end of a log: 2^62. From there a log
    /// has as many positions again, so a release never leaves one that takes no records.
    pub const MAX_POSITION: u64 = bounds::MAX_POSITION;

    pub(crate) fn new(engine: Arc<Engine>, inner: Arc<LogInner>) -> Self {
        Self { engine, inner }
    }

    /// Its name.
    pub fn name(&self) -> &LogName {
        self.inner.name()
    }

    /// Position of the first record; equal to [`end`](Self::end) when there is none.
    pub fn first(&self) -> u64 {
        self.inner.view.read().bounds.first
    }

    /// Position after the last record.
    pub fn end(&self) -> u64 {
        self.inner.view.read().bounds.end
    }

    /// Both bounds at one moment.
    pub fn bounds(&self) -> Range<u64> {
        let bounds = self.inner.view.read().bounds;
        bounds.first..bounds.end
    }

    /// Whether the log exists: it comes into being with its first append and goes with its
    /// deletion.
    pub fn exists(&self) -> bool {
        self.inner.view.read().bounds.exists()
    }

    /// Whether damage has hit it.
    pub fn health(&self) -> Health {
        health_of(&self.inner.view.read().bounds)
    }

    /// Bounds, size and health.
    pub fn info(&self) -> LogInfo {
        log_info::info_of(&self.inner)
    }

    /// The parts of the log, from the first record to the last: one for each run of positions that
    /// lie together in a segment. A segment of moved records may have several. For retention by
    /// size or age and for cleaning: releasing up to the `end` of an extent lets go of its segment,
    /// unless a later extent is in the same one.
    pub fn extents(&self) -> Vec<Extent> {
        let view = self.inner.view.read();
        // Under the lock of the view: its extents keep their segments from being recycled.
        let full = |sequence| self.engine.space.is_full(sequence);
        let extents = view.extents().map(|extent| Extent {
            first: extent.first,
            end: extent.end,
            bytes: extent.bytes,
            sealed: full(extent.segment.sequence),
        });
        extents.collect()
    }

    /// Limits what the log may store, in bytes of whole batches; `None` (the default after each
    /// opening) for no limit. Space comes back segment by segment.
    pub fn set_quota(&self, bytes: Option<u64>) {
        self.inner.set_quota(bytes);
    }

    /// The record at a position. Its batch is read and verified as a whole: to read many
    /// records use [`read_range`](Self::read_range).
    ///
    /// A record keeps the memory of its batch alive.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, position: u64) -> Result<Bytes, ReadError> {
        self.engine.read(&self.inner, position)
    }

    /// Records from `range.start` on, up to `range.end` or `max_bytes` of records, whichever
    /// comes first; at least one unless the range is empty. Fewer when the log ends inside the
    /// range.
    ///
    /// # Errors
    /// See [`ReadError`]; about the first position that it could not return.
    pub fn read_range(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, ReadError> {
        self.engine.read_range(&self.inner, range, max_bytes)
    }

    /// Reads the record at each of these positions, in this order, and passes it to `each` with its
    /// index in `positions`. Positions of one batch that follow one another cost one read and one
    /// check of the batch: sort the positions in ascending order.
    ///
    /// A record keeps the memory of its batch alive. If `each` keeps no record, the memory is used
    /// again for the next batch: copy what is to be kept.
    ///
    /// An error, see [`ReadError`], is about its position alone, and the next ones are read. `each`
    /// is called without a lock.
    ///
    /// # Example
    /// ```
    /// use voussoir_journal::{Commit, Config, Journal, MemoryFiles};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let files = std::sync::Arc::new(MemoryFiles::new());
    /// let journal = Journal::open_with(files, Config::default())?;
    /// let log = journal.log("numbers", 1)?;
    /// journal.commit_blocking(Commit::new().append(&log, ["zero", "one", "two"]))?;
    /// let mut found = Vec::new();
    /// log.read_each(&[0, 2, 3], |_, record| found.push(record.ok().map(|bytes| bytes.to_vec())));
    /// assert_eq!(found, [Some(b"zero".to_vec()), Some(b"two".to_vec()), None]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn read_each(
        &self,
        positions: &[u64],
        mut each: impl FnMut(usize, Result<Bytes, ReadError>),
    ) {
        self.engine.read_each(&self.inner, positions, &mut each);
    }

    /// As [`read`](Self::read), but without waiting for a device, for callers that must not block:
    /// `None` when the record is not in memory, or when that is not known. Then `read` it where
    /// blocking is allowed.
    ///
    /// On Linux the page cache is asked (`RWF_NOWAIT`), as far as the file system supports it. The
    /// first read from a segment that is not the newest needs its index, and answers `None` until
    /// a `read` has loaded it (see [`crate::Config::index_cache_bytes`]).
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn try_read(&self, position: u64) -> Result<Option<Bytes>, ReadError> {
        self.engine.try_read(&self.inner, position)
    }

    /// As [`read_range`](Self::read_range), but without waiting for a device: ends early at the
    /// first record that is not in memory, and answers `None` when that is the first of the range.
    /// See [`try_read`](Self::try_read).
    ///
    /// # Errors
    /// See [`ReadError`]; about the first position of the range.
    pub fn try_read_range(
        &self,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Result<Option<Vec<Bytes>>, ReadError> {
        self.engine.try_read_range(&self.inner, range, max_bytes)
    }

    /// Starts a batch for about `capacity` bytes of records. As [`Batch::builder`], but from
    /// 32 KiB on it uses the memory of batches that have been written.
    ///
    /// [`Batch::builder`]: crate::Batch::builder
    pub fn batch(&self, capacity: usize) -> BatchBuilder {
        const POOLED_BYTES_MIN: usize = 32 << 10;
        if capacity < POOLED_BYTES_MIN {
            return Batch::builder(capacity);
        }
        BatchBuilder::pooled(&self.engine.write_buffers, capacity)
    }

    /// Follows the log from a position on: acknowledged records as they come.
    pub fn follow(&self, from: u64) -> Follow {
        Follow::new(self.clone(), from)
    }

    /// What an operation of a commit keeps of a handle: the number of its opened journal, and the
    /// log.
    pub(crate) fn to_operand(&self) -> (u64, Arc<LogInner>) {
        (self.engine.opening, Arc::clone(&self.inner))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn inner(&self) -> &LogInner {
        &self.inner
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = self.bounds();
        f.debug_struct("Log").field("name", self.name()).field("bounds", &bounds).finish()
    }
}
