//! What can go wrong with a work queue, and what it did.

use crate::error::{FetchError, Outcome, StoreError};

/// Why a call to a [`WorkQueue`](super::WorkQueue) failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkError {
    /// The caller no longer holds the record: its lease has expired, the record is settled already,
    /// or the process was started again. Nothing happened. The record is delivered again unless it
    /// was settled: drop what was done for it, or have done it so that it can be done twice. Also
    /// the answer to a receipt of another work queue, which settles nothing in this one.
    #[error(
        "this work queue has no such lease on the record at offset {offset}: it has ended, or \
         another work queue has given the receipt"
    )]
    LeaseLost {
        /// Offset of the record in the source.
        offset: u64,
    },
    /// As many receivers wait as may (`max_waiting`). Nothing happened. Retry.
    #[error("{limit} receivers wait already (max_waiting)")]
    TooManyWaiting {
        /// The limit.
        limit: usize,
    },
    /// There is no dead letter of this id, or it is being redriven. Nothing happened.
    #[error("there is no dead letter {id}, or it is being redriven")]
    NoDeadLetter {
        /// The id.
        id: u64,
    },
    /// As many dead letters are being redriven as may: `max_records` of them, or `max_bytes` with
    /// this one. Nothing happened. Retry when some have been acknowledged.
    #[error("no more dead letters can be redriven now (at most {limit}, and max_bytes of them)")]
    TooManyRedriven {
        /// The limit of their number, `max_records`.
        limit: usize,
    },
    /// The record is too large for a dead letter: a copy of it fits into no batch, or into no write
    /// of the store. Nothing happened, the lease goes on. Acknowledge it, or it is delivered again
    /// for ever.
    #[error("the record at offset {offset} is too large for a dead letter")]
    CannotDie {
        /// Offset of the record in the source.
        offset: u64,
    },
    /// There are as many dead letters as there may be (`max_dead_letters`). Nothing happened, the
    /// lease goes on. Retry when some have been purged or redriven.
    #[error("there are {limit} dead letters already (max_dead_letters)")]
    DeadLettersFull {
        /// The limit.
        limit: usize,
    },
    /// The delay is longer than `max_delay`. Nothing happened.
    #[error("the delay is longer than max_delay")]
    DelayTooLong,
    /// The topic of the source was deleted, with its records: none of them is delivered or settled
    /// any more. Nothing happened. Drop the work queue; over a topic of the same name open another.
    #[error("the topic of the work queue was deleted")]
    Deleted,
    /// The source cannot be read. Nothing happened.
    #[error("the source of the work queue: {0}")]
    Source(FetchError),
    /// A dead letter that is stored cannot be read. Nothing happened.
    #[error("dead letter {id}: {why}")]
    DeadLetterDamaged {
        /// Its id.
        id: u64,
        /// What is wrong.
        why: String,
    },
    /// The store rejected or failed the write; see [`StoreError::outcome`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WorkError {
    /// Whether the change may have happened.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Store(error) => error.outcome(),
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::TooManyWaiting { .. }
            | Self::TooManyRedriven { .. }
            | Self::DeadLettersFull { .. } => true,
            Self::Store(error) => error.is_retryable(),
            _ => false,
        }
    }
}
