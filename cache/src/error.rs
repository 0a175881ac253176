//! One small error for each surface.

use std::sync::Arc;

use thiserror::Error;

use crate::remote::level::LevelError;

/// A configuration that breaks a rule. Nothing was built.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What holds for the field.
    pub rule: &'static str,
}

/// Why a source has no answer, in the source's own words.
#[derive(Clone, Debug, Error)]
#[error("{0}")]
pub struct SourceError(Arc<dyn std::error::Error + Send + Sync>);

impl SourceError {
    /// Wraps an error of the system behind the source.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into().into())
    }

    /// The wrapped error.
    pub fn get(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.0
    }
}

/// Why a load gave no value. Nothing was stored; everybody who joined the load gets the same error.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The source failed. Retry as the source's error says.
    #[error("the source failed: {0}")]
    Source(#[from] SourceError),
    /// The load took longer than [`Config::hard_timeout`](crate::Config::hard_timeout). Retry
    /// later.
    #[error("the load took longer than the hard timeout")]
    TimedOut,
    /// The loader panicked, or the runtime that ran it was shut down. The cache works on; retry.
    #[error("the loader panicked or its runtime was shut down")]
    Panicked,
    /// [`Config::max_loads`](crate::Config::max_loads) loads are under way. Retry after a pause.
    #[error("too many loads are under way")]
    Busy,
    /// The source, such as a replica, has not reached the position of the read's
    /// [`SessionToken`](crate::SessionToken). Retry after a pause, or ask the primary.
    #[error("the source is at position {found:?}, the session has seen {wanted}")]
    Behind {
        /// The position that the session has seen.
        wanted: u64,
        /// The position of the source's answer, if it has told one.
        found: Option<u64>,
    },
    /// The second level gave no answer, and
    /// [`OnOutage::Fail`](crate::OnOutage::Fail) is configured. Retry after a pause.
    #[error(transparent)]
    SecondLevel(#[from] LevelError),
    /// [`Cache::close`](crate::Cache::close) has ended the cache. Ask the one that took its place.
    #[error("the cache is closed")]
    Closed,
    /// The cache has no source. Give the builder one, or use
    /// [`get_or_load_with`](crate::Cache::get_or_load_with).
    #[error("the cache has no source")]
    NoSource,
    /// A source answered fewer keys than it was asked for: a defect of the source.
    #[error("the source answered {answered} of {asked} keys")]
    Unanswered {
        /// Answers.
        answered: usize,
        /// Keys.
        asked: usize,
    },
}

impl LoadError {
    /// Whether the same call may succeed later without a change of code.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Closed | Self::NoSource | Self::Unanswered { .. })
    }
}

/// What is known about a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The sink has not taken it, and will not.
    NotApplied,
    /// The sink may or may not have taken it.
    Unknown,
}

/// Why a sink failed, and whether it may have taken the write.
#[derive(Clone, Debug, Error)]
#[error("{source}")]
pub struct SinkError {
    /// What is known about the write.
    pub outcome: Outcome,
    source: SourceError,
    kind: SinkErrorKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SinkErrorKind {
    Failure,
    /// The sink will never take this write.
    Rejection,
    Panic,
}

impl SinkError {
    fn new(
        outcome: Outcome,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
        kind: SinkErrorKind,
    ) -> Self {
        Self { outcome, source: SourceError::new(error), kind }
    }

    /// A write that the sink has certainly not taken, and may take later.
    pub fn not_applied(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(Outcome::NotApplied, error, SinkErrorKind::Failure)
    }

    /// A write that the sink has not taken and never will, such as one that breaks a constraint.
    /// Write-behind does not try it again: it is kept apart, see
    /// [`Cache::rejected_writes`](crate::Cache::rejected_writes).
    pub fn rejected(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(Outcome::NotApplied, error, SinkErrorKind::Rejection)
    }

    /// Whether the sink will never take the write.
    pub fn is_rejection(&self) -> bool {
        self.kind == SinkErrorKind::Rejection
    }

    /// The sink panicked: whether it took the write is unknown.
    pub(crate) fn panicked() -> Self {
        Self::new(Outcome::Unknown, "the sink panicked", SinkErrorKind::Panic)
    }

    pub(crate) fn into_write_error(self) -> WriteError {
        if self.kind == SinkErrorKind::Panic {
            WriteError::Panicked
        } else {
            WriteError::Sink(self)
        }
    }

    /// A write whose fate is unknown, such as one that timed out.
    pub fn unknown(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(Outcome::Unknown, error, SinkErrorKind::Failure)
    }
}

/// Why a write through the cache failed. The key's entry was dropped unless the write was certainly
/// not applied.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The sink failed.
    #[error("the sink failed: {0}")]
    Sink(#[from] SinkError),
    /// Foreign code panicked, the sink's or that of a key or value: whether the write was taken is
    /// unknown.
    #[error("foreign code panicked during the write")]
    Panicked,
    /// The sink has not answered within [`Config::sink_timeout`](crate::Config::sink_timeout):
    /// whether it takes the write is unknown.
    #[error("the sink has not answered in time")]
    TimedOut,
    /// [`Cache::close`](crate::Cache::close) was called: nothing was written.
    #[error("the cache is closed")]
    Closed,
    /// The runtime on which the cache was built has ended, and with it the task that brings writes
    /// to the sink: nothing was written. Build the cache again, on a runtime that lives on; what
    /// was acknowledged is in the journal, or with
    /// [`WriteBehind::in_memory`](crate::WriteBehind::in_memory) in this cache only.
    #[error("the runtime on which the cache was built has ended; build the cache again")]
    Stopped,
    /// The cache has no sink. Give the builder one.
    #[error("the cache has no sink")]
    NoSink,
    /// The backlog of write-behind has no room, and
    /// [`WriteBehindConfig::on_full`](crate::WriteBehindConfig::on_full) says that no write waits
    /// for it: nothing was written. Write again after a pause.
    #[error("the backlog is full")]
    Full,
    /// The journal under write-behind has not acknowledged the write. Its error says whether the
    /// write may be found, and flushed, after a restart.
    #[cfg(feature = "journal")]
    #[error("the journal has not acknowledged the write: {0}")]
    Journal(voussoir_journal::Error),
}

impl WriteError {
    /// What is known about the write.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Sink(error) => error.outcome,
            Self::Panicked | Self::TimedOut => Outcome::Unknown,
            Self::Closed | Self::Stopped | Self::NoSink | Self::Full => Outcome::NotApplied,
            #[cfg(feature = "journal")]
            Self::Journal(error) => match error.outcome() {
                voussoir_journal::Outcome::NotApplied => Outcome::NotApplied,
                voussoir_journal::Outcome::Unknown => Outcome::Unknown,
            },
        }
    }

    /// Whether the same call may succeed later. Where the outcome is unknown, only a write that
    /// may happen twice is safe to retry.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Closed | Self::Stopped | Self::NoSink => false,
            Self::Sink(error) => !error.is_rejection(),
            Self::Panicked | Self::TimedOut | Self::Full => true,
            #[cfg(feature = "journal")]
            Self::Journal(error) => error.is_retryable(),
        }
    }
}
