//! Errors that mean the same on every back end.

use super::Need;
use crate::error::{CommitError, ConfigError, ConsumeError, Outcome, SendError, TopicError};

/// A back end does not meet a need. Nothing happened, and no retry helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{backend} does not provide {need:?}: {why}")]
#[non_exhaustive]
pub struct Refused {
    /// The back end.
    pub backend: &'static str,
    /// What was asked for.
    pub need: Need,
    /// Why not, and what to do instead.
    pub why: &'static str,
}

impl Refused {
    /// For a back end of your own.
    pub fn new(backend: &'static str, need: Need, why: &'static str) -> Self {
        Self { backend, need, why }
    }
}

/// Why a back end did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The back end cannot do this. Nothing happened. Do not retry.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The caller: a configuration breaks a rule. Nothing happened.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no such topic. Nothing happened. Create it.
    #[error("there is no topic {topic:?}")]
    UnknownTopic {
        /// The topic.
        topic: String,
    },
    /// A topic or a group is there with other settings. Nothing happened.
    #[error("{what} has {field} {found}, and {wanted} is asked for")]
    Mismatch {
        /// The topic or group.
        what: String,
        /// The setting.
        field: &'static str,
        /// What it is.
        found: String,
        /// What the caller wants.
        wanted: String,
    },
    /// What was asked for is rejected for good: a record that is too large, say. Nothing happened.
    #[error("rejected: {why}")]
    Rejected {
        /// What the back end says.
        why: String,
    },
    /// It cannot be done now. Nothing happened. Retry later.
    #[error("not now: {why}")]
    Unavailable {
        /// What the back end says.
        why: String,
    },
    /// The records that were polled may be with another member by now. Nothing was committed. Poll
    /// again: what is still this member's comes again.
    #[error("the records were not committed: {why}")]
    Lost {
        /// What happened.
        why: String,
    },
    /// It may have happened.
    #[error("it may have happened: {why}")]
    Unknown {
        /// What the back end says.
        why: String,
    },
}

impl BackendError {
    /// Whether it may have happened all the same.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later. With [`Outcome::Unknown`] it may happen twice then.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unknown { .. })
    }

    /// What an error of the embedded queue is here.
    pub(super) fn of(error: &dyn std::fmt::Display, outcome: Outcome, is_retryable: bool) -> Self {
        let why = error.to_string();
        match (outcome, is_retryable) {
            (Outcome::Unknown, _) => Self::Unknown { why },
            (Outcome::NotApplied, true) => Self::Unavailable { why },
            (Outcome::NotApplied, false) => Self::Rejected { why },
        }
    }
}

impl From<TopicError> for BackendError {
    fn from(error: TopicError) -> Self {
        match error {
            TopicError::Config(error) => error.into(),
            TopicError::Unknown { name } => Self::UnknownTopic { topic: name },
            error => Self::of(&error, error.outcome(), error.is_retryable()),
        }
    }
}

impl From<SendError> for BackendError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Topic(error) => error.into(),
            SendError::Config(error) => error.into(),
            error => Self::of(&error, error.outcome(), error.is_retryable()),
        }
    }
}

impl From<CommitError> for BackendError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Topic(error) => (*error).into(),
            CommitError::StaleGeneration { .. } | CommitError::NotAssigned { .. } => {
                Self::Lost { why: error.to_string() }
            }
            error => Self::of(&error, error.outcome(), error.is_retryable()),
        }
    }
}

impl From<ConsumeError> for BackendError {
    fn from(error: ConsumeError) -> Self {
        match error {
            ConsumeError::Config(error) => error.into(),
            ConsumeError::Topic(error) => error.into(),
            ConsumeError::Commit(error) => error.into(),
            ConsumeError::Store(error) => Self::of(&error, error.outcome(), error.is_retryable()),
            ConsumeError::Fetch(error) => {
                Self::of(&error, Outcome::NotApplied, error.is_retryable())
            }
            error @ (ConsumeError::TooManyGroups { .. } | ConsumeError::TooManyMembers { .. }) => {
                Self::Unavailable { why: error.to_string() }
            }
            error => Self::Rejected { why: error.to_string() },
        }
    }
}
