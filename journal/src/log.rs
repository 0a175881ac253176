//! One log of a journal, to read from and to name in commits.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::commit::{Batch, BatchBuilder};
use crate::core::Core;
use crate::core::log::LogInner;
use crate::core::shape::{Shape, UNKNOWN};
use crate::error::{LogName, ReadError};
use crate::follow::Follow;
use crate::inspect;
use crate::journal::LogInfo;

/// A handle to one log. Positions are dense: records have positions `first()..end()`.
///
/// What a handle shows is what has been acknowledged: a commit changes the bounds at the moment
/// at which it is. Reading is synchronous, mostly from the page cache, and may be done from any
/// thread while others write.
#[derive(Clone)]
pub struct Log {
    core: Arc<Core>,
    inner: Arc<LogInner>,
}

/// Whether damage to the disk has hit a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Nothing is known to be wrong. Each read still verifies what it returns.
    Intact,
    /// These positions are lost. The rest is readable; the log takes no appends until it has
    /// been released past `until`, truncated to `from`, or deleted.
    Lost {
        /// First lost position.
        from: u64,
        /// Position after the last lost one.
        until: u64,
    },
    /// Changes to the log may have been lost, of any kind. What is readable is what was once
    /// written, but a truncation, a release or newer records may be missing. The log takes no
    /// appends until it has been deleted or released past its end.
    Suspect,
}

/// The records of a log that lie in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extent {
    /// Position of the first record.
    pub first: u64,
    /// Position after the last one.
    pub end: u64,
    /// Bytes of the batches, counted in whole batches, also of those released or truncated in part.
    pub bytes: u64,
    /// The segment is full: no records are added to this extent any more.
    pub sealed: bool,
}

impl Log {
    pub(crate) fn new(core: Arc<Core>, inner: Arc<LogInner>) -> Self {
        Self { core, inner }
    }

    /// Its name.
    pub fn name(&self) -> &LogName {
        self.inner.name()
    }

    /// Position of the first record; equal to [`end`](Self::end) when there is none.
    pub fn first(&self) -> u64 {
        self.inner.view.read().shape.first
    }

    /// Position after the last record.
    pub fn end(&self) -> u64 {
        self.inner.view.read().shape.end
    }

    /// Both bounds at one moment.
    pub fn bounds(&self) -> Range<u64> {
        let shape = self.inner.view.read().shape;
        shape.first..shape.end
    }

    /// Whether the log exists: it comes into being with its first append and goes with its
    /// deletion.
    pub fn exists(&self) -> bool {
        self.inner.view.read().shape.exists()
    }

    /// Whether damage has hit it.
    pub fn health(&self) -> Health {
        health_of(&self.inner.view.read().shape)
    }

    /// Bounds, size and health.
    pub fn info(&self) -> LogInfo {
        inspect::info_of(&self.inner)
    }

    /// The parts of the log, from the first record to the last: one for each segment that holds
    /// records of it. For retention by size or age and for cleaning: releasing up to the `end` of
    /// an extent lets go of its segment.
    pub fn extents(&self) -> Vec<Extent> {
        let view = self.inner.view.read();
        // Under the lock of the view: its extents keep their segments from being recycled.
        let full = |sequence| self.core.space.is_full(sequence);
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
        self.core.read(&self.inner, position)
    }

    /// Records from `range.start` on, up to `range.end` or `max_bytes` of records, whichever
    /// comes first; at least one unless the range is empty. Fewer when the log ends inside the
    /// range.
    ///
    /// # Errors
    /// See [`ReadError`]; about the first position that it could not return.
    pub fn read_range(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, ReadError> {
        self.core.read_range(&self.inner, range, max_bytes)
    }

    /// As [`read`](Self::read), but without waiting for a device, for callers that must not block:
    /// `None` when the record is not in memory, or when that is not known. Then `read` it where
    /// blocking is allowed.
    ///
    /// On Linux the page cache is asked (`RWF_NOWAIT`), as far as the file system supports it. The
    /// first read from a segment that is not the newest needs its index, and answers `None` until
    /// a `read` has loaded it (see [`Config::index_cache_bytes`](crate::Config)).
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn try_read(&self, position: u64) -> Result<Option<Bytes>, ReadError> {
        self.core.try_read(&self.inner, position)
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
        self.core.try_read_range(&self.inner, range, max_bytes)
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
        BatchBuilder::pooled(&self.core.write_buffers, capacity)
    }

    /// Follows the log from a position on: acknowledged records as they come.
    pub fn follow(&self, from: u64) -> Follow {
        Follow::new(self.clone(), from)
    }

    pub(crate) fn belongs_to(&self, core: &Arc<Core>) -> bool {
        Arc::ptr_eq(&self.core, core)
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn inner(&self) -> &LogInner {
        &self.inner
    }

    pub(crate) fn into_inner(self) -> Arc<LogInner> {
        self.inner
    }
}

pub(crate) fn health_of(shape: &Shape) -> Health {
    match shape.damage {
        None => Health::Intact,
        Some((_, UNKNOWN)) => Health::Suspect,
        Some((from, until)) => Health::Lost { from, until },
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = self.bounds();
        f.debug_struct("Log").field("name", self.name()).field("bounds", &bounds).finish()
    }
}
