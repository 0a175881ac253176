//! Errors, one enum per surface.

use std::fmt;
use std::io;

/// Whether a commit that failed may still have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did not happen and will not show up after a restart.
    NotApplied,
    /// It may be found after a restart, wholly or not at all.
    Unknown,
}

/// An I/O error with what was being done, kept in a form that can be handed to every waiter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation} {name}: {message}")]
pub struct Fault {
    /// What the journal was doing: `"write"`, `"sync"`, `"read"`, `"create"`...
    pub operation: &'static str,
    /// The file, or `"directory"`.
    pub name: String,
    /// The kind of the underlying error.
    pub kind: io::ErrorKind,
    /// The text of the underlying error.
    pub message: String,
}

impl Fault {
    pub(crate) fn new(operation: &'static str, name: impl Into<String>, error: &io::Error) -> Self {
        Self { operation, name: name.into(), kind: error.kind(), message: error.to_string() }
    }

    /// A read that failed, with the place, so that the operator knows which sectors to repair.
    pub(crate) fn read(name: String, offset: u64, length: usize, error: &io::Error) -> Self {
        let message = format!("{error} (in bytes {offset}..{})", offset + length as u64);
        Self { message, ..Self::new("read", name, error) }
    }
}

/// The name of a log, for messages and reports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogName {
    /// The namespace: usually the crate or component that owns the log.
    pub namespace: String,
    /// The number within the namespace.
    pub id: u64,
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

/// A field of a configuration that is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What must hold.
    pub rule: &'static str,
}

/// Why a journal could not be opened. Nothing that was in the directory has been lost by the
/// attempt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The caller: a field of the configuration is out of its range. The directory was not touched.
    #[error("invalid configuration: {0}")]
    Config(#[from] ConfigError),
    /// Another journal, of this process or another one, has the directory open. The directory
    /// was not touched. Retry when that one has been closed.
    #[error("the directory is in use by another journal")]
    InUse,
    /// The directory was written by a newer version of this crate. It was not touched.
    #[error("{name} has format version {found}, this build knows up to {supported}")]
    NewerFormat {
        /// The file that says so.
        name: String,
        /// The version found.
        found: u32,
        /// The newest version that this build can read.
        supported: u32,
    },
    /// A segment holds a kind of frame or section that this build does not know. Nothing was
    /// touched. Use a newer version.
    #[error("{name} holds records of unknown kind {kind} (this build knows version {supported})")]
    UnknownKind {
        /// The file.
        name: String,
        /// The kind.
        kind: u8,
        /// The newest version that this build can read.
        supported: u32,
    },
    /// A segment that the manifest lists is not there. Nothing was touched; see "When a journal
    /// is damaged" in the README.
    #[error("{name} is missing")]
    SegmentMissing {
        /// The file.
        name: String,
    },
    /// Both copies of the manifest are unreadable, so it is unknown which segments count. The
    /// directory was not touched; see "When a journal is damaged" in the README.
    #[error("the manifest is damaged: {detail}")]
    ManifestDamaged {
        /// What was found.
        detail: String,
    },
    /// There are segments and no manifest: files were removed or copied incompletely. The
    /// directory was not touched.
    #[error("there are {segments} segment files but no manifest")]
    ManifestMissing {
        /// How many segment files there are.
        segments: usize,
    },
    /// A segment belongs to another journal: directories were mixed up. Not touched.
    #[error("{name} belongs to another journal")]
    ForeignSegment {
        /// The file.
        name: String,
    },
    /// No table of logs could be found, so that not even the names of the logs are known. The
    /// directory was not touched; see "When a journal is damaged" in the README.
    #[error("no readable table of logs: {detail}")]
    TableDamaged {
        /// What was found.
        detail: String,
    },
    /// There is no room for the first segment. Nothing of value was written; opening again works
    /// once there is room.
    #[error("no first segment: {cause}")]
    NoRoom {
        /// Which limit was met.
        cause: FullCause,
    },
    /// The caller: the table of logs, with which each segment begins, would take more than a
    /// quarter of a segment of this size. Nothing was changed. Open with larger segments.
    #[error(
        "the table of the {logs} logs takes {bytes} bytes, more than a quarter of segment_bytes \
         ({segment_bytes}); open with segment_bytes of at least {}",
        (4 * .bytes).next_multiple_of(4096)
    )]
    TableTooLarge {
        /// How many logs there are.
        logs: usize,
        /// Bytes of their table.
        bytes: u64,
        /// The option that is too small for it.
        segment_bytes: u64,
    },
    /// The disk failed. Opening again may work; nothing was acknowledged.
    #[error(transparent)]
    Io(#[from] Fault),
}

/// Why there is no segment to append to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FullCause {
    /// The journal has as many segments as its config allow. Release or delete logs, or open it
    /// with a larger [`Config::max_bytes`](crate::Config::max_bytes).
    #[error("its {segments} segments are all that are allowed (max_bytes: {max_bytes})")]
    Limit {
        /// How many segment files there are, apart from the reserve.
        segments: usize,
        /// The value of the option.
        max_bytes: u64,
    },
    /// The next segment file could not be made ready: the disk or a quota is full, or the process
    /// has no file descriptor left. The journal tries again every second; free space, or whatever
    /// the fault names.
    #[error("{fault}, tried again every second")]
    Disk {
        /// What failed, and on which file.
        fault: Fault,
    },
}

/// Why a commit was rejected or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no segment for the records: the cause says why. Nothing happened. Releases,
    /// truncations and deletes are still accepted, and appends are as soon as there is a segment.
    #[error(
        "the journal is full: {cause}; the oldest segments are pinned by {}",
        names(.pinned_by)
    )]
    Full {
        /// Which limit was met, and what ends that.
        cause: FullCause,
        /// The logs that keep the oldest segments alive, at most eight: releasing or deleting them
        /// makes room whatever the cause is.
        pinned_by: Vec<LogName>,
    },
    /// Too much is waiting to be written. Nothing happened. Retry after some commits have been
    /// acknowledged, or use [`Journal::commit`](crate::Journal::commit), which waits.
    #[error("what waits to be written is at the limit of {limit} ({option})")]
    Busy {
        /// The option that sets the limit: `"max_pending_bytes"` or `"max_waiting"`.
        option: &'static str,
        /// Its value: bytes or commits.
        limit: u64,
    },
    /// The log is over the quota it was given. Nothing happened. Release some of it first.
    #[error("{log} is over its quota of {quota} bytes")]
    OverQuota {
        /// The log.
        log: LogName,
        /// Its quota in bytes.
        quota: u64,
    },
    /// The caller: a batch or the whole commit is larger than allowed. Nothing happened. Split
    /// it.
    #[error("{bytes} bytes are more than the {limit} allowed for a {what}")]
    TooLarge {
        /// `"batch"` or `"commit"`.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The caller: a commit has more operations than fit into a frame. Nothing happened. Split it.
    #[error("{operations} operations are more than the {limit} allowed for a commit")]
    TooManyOperations {
        /// How many it has.
        operations: usize,
        /// The limit.
        limit: usize,
    },
    /// There are as many logs as [`Config::max_logs`](crate::Config::max_logs) allows, those
    /// counted of which somebody only holds a handle. Nothing happened. Delete logs first.
    #[error("there are already {limit} logs (max_logs)")]
    TooManyLogs {
        /// The limit.
        limit: u32,
    },
    /// The table of logs, with which each segment begins, may take a quarter of
    /// [`Config::segment_bytes`](crate::Config::segment_bytes), and would be larger with one log
    /// more. Nothing happened. Delete logs, or open the journal with larger segments.
    #[error(
        "the table of logs would take {bytes} bytes, more than the {limit} that it may take \
         (a quarter of segment_bytes)"
    )]
    TableFull {
        /// Bytes that the table would take.
        bytes: u64,
        /// Bytes that it may take.
        limit: u64,
    },
    /// The caller: a namespace is empty or longer than 64 bytes. Nothing happened.
    #[error("a namespace has 1 to 64 bytes")]
    InvalidName,
    /// Another user of this journal has a [`Lease`](crate::Lease) of the namespace. Nothing
    /// happened. Retry after that one has ended, or choose another namespace.
    #[error("another user of the journal has the namespace {namespace:?}")]
    Leased {
        /// The namespace.
        namespace: String,
    },
    /// The caller: truncation to a position outside the log. Nothing happened.
    #[error("{log}: position {position} is outside {first}..={end}")]
    OutOfRange {
        /// The log.
        log: LogName,
        /// The position asked for.
        position: u64,
        /// The log's first position.
        first: u64,
        /// The position after its last.
        end: u64,
    },
    /// The caller: a release that would move the end of the log beyond
    /// [`Log::MAX_POSITION`](crate::Log::MAX_POSITION), or an append that would pass `u64::MAX`.
    /// Nothing happened.
    #[error("{log}: position {position} is above {max}, to which a release may move an end")]
    PositionTooLarge {
        /// The log.
        log: LogName,
        /// The position asked for.
        position: u64,
        /// The highest position beyond the end that is taken.
        max: u64,
    },
    /// The caller: the handle belongs to another journal. Nothing happened.
    #[error("the log handle belongs to another journal")]
    ForeignLog,
    /// The log has been hit by damage and takes no records until it has been deleted, or
    /// released past the damage where its extent is known. Nothing happened.
    #[error("{log} is damaged")]
    Damaged {
        /// The log.
        log: LogName,
    },
    /// An earlier write or sync failed, and the journal takes nothing more. Nothing of this
    /// commit happened. Close the journal and open it again.
    #[error("the journal has stopped after an earlier failure: {fault}")]
    Stopped {
        /// The first failure.
        fault: Fault,
    },
    /// The write or sync of this very commit failed: it may or may not be found when the journal
    /// is opened again. The journal takes nothing more.
    #[error("the commit may or may not be durable: {fault}")]
    Failed {
        /// The failure.
        fault: Fault,
    },
    /// The caller: `commit_blocking` was called from a completion callback or a waker, on the very
    /// thread that would have to write the commit. Nothing happened. Use
    /// [`submit`](crate::Journal::submit) or [`commit`](crate::Journal::commit) there.
    #[error("commit_blocking was called from within a completion callback")]
    FromCallback,
    /// The journal has been closed. Nothing happened.
    #[error("the journal is closed")]
    Closed,
}

fn names(logs: &[LogName]) -> String {
    let names: Vec<String> = logs.iter().map(ToString::to_string).collect();
    if names.is_empty() { "nothing that can be released".to_owned() } else { names.join(", ") }
}

impl Error {
    /// Whether the commit may have happened all the same.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Failed { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later on the same journal.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Full { .. } | Self::Busy { .. } | Self::OverQuota { .. } | Self::Leased { .. }
        )
    }
}

/// Why records could not be read. Reading changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The position has been released.
    #[error("released: the log now begins at {first}")]
    Released {
        /// The log's first position.
        first: u64,
    },
    /// The position has not been written, or has been truncated.
    #[error("absent: the log ends before {end}")]
    Absent {
        /// The position after the log's last.
        end: u64,
    },
    /// What is stored there fails its checksum or its structure: the disk returned other bytes
    /// than were written. Retrying gives the same answer; restore the log from a replica.
    #[error("damaged at position {position}: {detail}")]
    Damaged {
        /// The first position that cannot be read.
        position: u64,
        /// What was found.
        detail: &'static str,
    },
    /// The device failed to read. May be retried.
    #[error(transparent)]
    Io(#[from] Fault),
    /// The journal was closed or has stopped while following: no more records will come.
    #[error("the journal is closed")]
    Closed,
}

impl ReadError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Io(_))
    }
}
