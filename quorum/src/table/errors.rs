//! How calls and operations fail, and what that did.

use super::Guarantee;

/// Why a call to a replica failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallError {
    /// The request certainly did not reach the replica.
    NotSent,
    /// The replica has answered that it has no room for the request: it has done nothing.
    Busy,
    /// The request may have reached the replica and may have been carried out.
    Unknown,
}

/// Whether a failed operation has had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It has none and will have none.
    NotApplied,
    /// It may have one, now or later.
    Unknown,
}

/// How an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError {
    /// Too few whole replicas answered a read in time, or no replica could be sent a write. Nothing
    /// has changed. Retry.
    #[error("{answered} replicas answered, {needed} are needed; nothing has changed")]
    Unavailable {
        /// How many answered.
        answered: usize,
        /// How many must.
        needed: usize,
    },
    /// No replica that answered has seen what the read was to have seen at least. Nothing has
    /// changed. Retry later, or at a higher level.
    #[error("the replicas that answered are behind the session")]
    Behind,
    /// A read found replicas that disagree, and could not merge the result into enough of them.
    /// Returning it would let a later read see less. Nothing is lost. Retry.
    #[error("{holders} replicas hold the result, {needed} must; nothing is lost")]
    RepairFailed {
        /// How many replicas hold the result.
        holders: usize,
        /// How many must.
        needed: usize,
    },
    /// The primary refused a write: too many siblings, or a context that it never gave out.
    /// Nothing has changed. Read the key and write with its context.
    #[error("the replica refused the write; read the key and write with its context")]
    Refused,
    /// The replicas have changed while the operation ran, and its level cannot give of the new ones
    /// what the table requires. Nothing has changed. Use another level.
    #[error("with the replicas of now this level gives {given:?}, the table requires {required:?}")]
    Guarantee {
        /// What the level gives.
        given: Guarantee,
        /// `TableConfig::require`.
        required: Guarantee,
    },
    /// A write may be on some replicas, or become visible later: it was not acknowledged in time,
    /// or nobody knows what became of the call that was to make it. Read the key to find out; a
    /// repeated write becomes a sibling of the first.
    #[error("{holders} replicas are known to hold the write, {needed} must")]
    WriteUnknown {
        /// How many replicas are known to hold it.
        holders: usize,
        /// How many must.
        needed: usize,
    },
}

impl OperationError {
    /// Whether the operation has had an effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::WriteUnknown { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same operation may be tried again and cannot have a second effect.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::WriteUnknown { .. } | Self::Refused | Self::Guarantee { .. })
    }
}

/// Why an operation was not begun. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// As many operations as allowed are under way, or the replicas do not keep up: the operation
    /// has waited for half of its timeout behind as many as they answer in time. Retry later.
    #[error("{max} operations are under way; retry later")]
    Busy {
        /// `TableConfig::max_operations`, or how many the replicas answer in time.
        max: usize,
    },
    /// The level cannot give what the table requires, or asks for more replicas than there are.
    #[error("this level gives {given:?}, the table requires {required:?}")]
    Guarantee {
        /// What the level would give.
        given: Guarantee,
        /// `TableConfig::require`.
        required: Guarantee,
    },
}
