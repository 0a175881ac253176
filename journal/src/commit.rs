//! What is committed: batches of records and changes to logs, together.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::config::Durability;
use crate::engine::cache::Buffers;
use crate::engine::log::LogInner;
use crate::error::Error;
use crate::format::{self, BATCH_BYTES_MAX};

/// Changes to one or several logs that happen together: after a crash either all of them are
/// found or none.
///
/// Operations apply in the order in which they were added. Building a commit does the work that
/// needs no order (copying, checksums) in the calling thread.
///
/// # Example
/// ```
/// # use voussoir_journal::{Commit, Journal, MemoryFiles, Config};
/// # let files = std::sync::Arc::new(MemoryFiles::new());
/// # let journal = Journal::open_with(files, Config::manual()).unwrap();
/// let entries = journal.log("raft", 1).unwrap();
/// let state = journal.log("raft-state", 1).unwrap();
/// let commit = Commit::new()
///     .truncate(&entries, 0)
///     .append(&entries, ["first", "second"])
///     .append(&state, [[7u8; 8]])
///     .release(&state, 0);
/// let receipt = journal.commit_blocking(commit).unwrap();
/// assert_eq!(receipt.positions(), [0..2, 0..1]);
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "a commit does nothing until it is given to a journal"]
pub struct Commit {
    pub(crate) operations: Vec<Operation>,
    pub(crate) durability: Durability,
    pub(crate) frees_space: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Operation {
    /// Number of the opened journal that the log is of, see `Engine::opening`.
    pub(crate) opening: u64,
    pub(crate) log: Arc<LogInner>,
    pub(crate) change: Change,
}

#[derive(Debug, Clone)]
pub(crate) enum Change {
    Append(Batch),
    Truncate(u64),
    Release(u64),
    Delete,
}

impl Commit {
    /// A commit without operations, [`Durability::Synced`]. Given to a journal as it is, it is a
    /// barrier: it is told after all commits that were accepted before it, of whatever logs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets when the commit is acknowledged.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Declares that the commit frees more space than its records take: a snapshot with the release
    /// of what it covers, the entry of a table with the deletion of the log that it names. When the
    /// journal is full, such a commit may use one segment of the reserve
    /// ([`Config::max_bytes`](crate::Config::max_bytes)). The declaration counts only beside a
    /// release, truncation or deletion that has an effect. A commit without appends needs none.
    pub fn frees_space(mut self) -> Self {
        self.frees_space = true;
        self
    }

    /// Bytes that its frame takes at most (creations counted as if each log needed one).
    pub(crate) fn frame_bytes(&self) -> u64 {
        let section = format::frame::SECTION_BYTES as u64;
        let operations: u64 = self
            .operations
            .iter()
            .map(|operation| match &operation.change {
                Change::Append(batch) => {
                    let name = operation.log.name().namespace.len() as u64;
                    2 * section + format::padded(name) + format::padded(batch.len_bytes())
                }
                _ => section,
            })
            .sum();
        format::frame::HEADER_BYTES as u64 + operations
    }

    /// Whether it has appends, and neither says that it frees space nor could.
    pub(crate) fn only_adds(&self) -> bool {
        let is_append = |operation: &Operation| matches!(operation.change, Change::Append(_));
        let appends = self.operations.iter().filter(|operation| is_append(operation)).count();
        appends > 0 && !(self.frees_space && appends < self.operations.len())
    }

    /// The limits that do not depend on the state of the journal.
    pub(crate) fn check(&self, frame_limit: u64) -> Result<(), Error> {
        for operation in &self.operations {
            if let Change::Append(batch) = &operation.change
                && batch.len_bytes() > BATCH_BYTES_MAX
            {
                let bytes = batch.len_bytes();
                return Err(Error::TooLarge { what: "batch", bytes, limit: BATCH_BYTES_MAX });
            }
        }
        // Each append may need a section for the creation of its log as well.
        let (operations, limit) = (self.operations.len(), format::SECTIONS_MAX / 2);
        if operations > limit {
            return Err(Error::TooManyOperations { operations, limit });
        }
        let bytes = self.frame_bytes();
        if bytes > frame_limit {
            return Err(Error::TooLarge { what: "commit", bytes, limit: frame_limit });
        }
        Ok(())
    }
}

/// Records that are appended together, encoded and with their checksum: build it where the
/// records arise, to copy them only once.
///
/// Cloning is cheap; the same batch may be appended to several logs.
///
/// # Example
/// ```
/// use voussoir_journal::Batch;
/// let mut builder = Batch::builder(64);
/// builder.push(b"one");
/// builder.push(b"two");
/// let batch = builder.finish();
/// assert_eq!(batch.len(), 2);
/// let large = Batch::from(bytes::Bytes::from_static(b"a record that is not copied"));
/// assert_eq!(large.len(), 1);
/// ```
#[derive(Debug, Clone)]
pub struct Batch {
    /// The records, followed by the table of ends when they are in one allocation.
    pub(crate) records: Bytes,
    /// The table of ends when it is not part of `records`.
    pub(crate) ends: Bytes,
    pub(crate) count: u32,
    pub(crate) crc: u32,
    /// Position of its first record, when salvage restores a log: at or behind the end of the log,
    /// and also in one that is damaged. `None` for the end of the log.
    pub(crate) position: Option<u64>,
}

impl Batch {
    /// Starts a batch for about `capacity` bytes of records.
    ///
    /// For batches of 32 KiB and more, [`Log::batch`](crate::Log::batch) saves the memory of
    /// earlier ones.
    pub fn builder(capacity: usize) -> BatchBuilder {
        BatchBuilder { payload: BytesMut::with_capacity(capacity), ..BatchBuilder::default() }
    }

    /// How many records it has.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        (self.records.len() + self.ends.len()) as u64
    }

    /// Bytes of the records alone.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.len_bytes().saturating_sub(4 * u64::from(self.count))
    }

    /// For the restoration of a log: the batch stands at this position.
    pub(crate) fn at(self, position: u64) -> Self {
        Self { position: Some(position), ..self }
    }
}

impl From<Bytes> for Batch {
    /// A batch of one record, which is not copied.
    fn from(record: Bytes) -> Self {
        // A record this long is rejected when it is committed; the end is cut only then.
        let end = u32::try_from(record.len()).unwrap_or(u32::MAX);
        let ends = Bytes::copy_from_slice(&end.to_le_bytes());
        let crc = format::crc32c_of_two(&record, &ends);
        Self { records: record, ends, count: 1, crc, position: None }
    }
}

/// Collects the records of a [`Batch`].
#[derive(Debug, Default)]
#[must_use = "finish it"]
pub struct BatchBuilder {
    payload: BytesMut,
    ends: Vec<u32>,
    /// Where the memory goes when the batch has been written.
    buffers: Option<Arc<Buffers>>,
}

impl BatchBuilder {
    pub(crate) fn pooled(buffers: &Arc<Buffers>, capacity: usize) -> Self {
        let payload = buffers.take_empty(capacity);
        Self { payload, ends: Vec::new(), buffers: Some(Arc::clone(buffers)) }
    }

    /// Adds a record. Limits are checked when the batch is committed.
    pub fn push(&mut self, record: &[u8]) {
        self.push_pieces(&[record]);
    }

    /// Adds a record that is in several pieces.
    pub fn push_pieces(&mut self, pieces: &[&[u8]]) {
        for piece in pieces {
            self.payload.extend_from_slice(piece);
        }
        self.ends.push(u32::try_from(self.payload.len()).unwrap_or(u32::MAX));
    }

    /// Bytes that the batch takes so far, with 4 per record.
    pub fn len_bytes(&self) -> usize {
        self.payload.len() + 4 * self.ends.len()
    }

    /// Encodes the batch and computes its checksum.
    pub fn finish(mut self) -> Batch {
        self.payload.reserve(4 * self.ends.len());
        for end in &self.ends {
            self.payload.extend_from_slice(&end.to_le_bytes());
        }
        let crc = format::crc32c(&self.payload);
        let count = u32::try_from(self.ends.len()).unwrap_or(u32::MAX);
        let records = match self.buffers {
            Some(buffers) => buffers.share(self.payload),
            None => self.payload.freeze(),
        };
        Batch { records, ends: Bytes::new(), count, crc, position: None }
    }
}

/// A commit that the journal did not take. Nothing of it happened.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the commit was rejected: {error}")]
#[non_exhaustive]
pub struct Rejected {
    /// Why.
    #[source]
    pub error: Error,
    /// The whole commit, to be submitted again when [`Error::is_retryable`] says so.
    pub commit: Commit,
}

impl From<Box<Rejected>> for Error {
    fn from(rejected: Box<Rejected>) -> Self {
        rejected.error
    }
}

/// What an acknowledged commit became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub(crate) lsn: Option<u64>,
    pub(crate) positions: Positions,
}

/// One range without an allocation: nearly all commits append to one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Positions {
    None,
    One([Range<u64>; 1]),
    Many(Vec<Range<u64>>),
}

impl Positions {
    pub(crate) fn push(&mut self, range: Range<u64>) {
        match self {
            Self::None => *self = Self::One([range]),
            Self::One([one]) => *self = Self::Many(vec![one.clone(), range]),
            Self::Many(many) => many.push(range),
        }
    }
}

impl Receipt {
    /// The log sequence number of the commit: commits with higher ones were written later. `None`
    /// for [`Durability::Buffered`], which is acknowledged before it has one.
    pub fn lsn(&self) -> Option<u64> {
        self.lsn
    }

    /// The positions given to each append, in the order of the commit.
    pub fn positions(&self) -> &[Range<u64>] {
        match &self.positions {
            Positions::None => &[],
            Positions::One(one) => one,
            Positions::Many(many) => many,
        }
    }
}
