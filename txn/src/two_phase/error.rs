//! Errors of the coordinator, one enum for each surface.

use std::time::Duration;

use thiserror::Error;

use crate::error::{ConfigError, StoreError};

/// The coordinator was not opened.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum OpenCoordinatorError {
    /// The configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The name has a length or a character that an id of a branch cannot have.
    #[error("a coordinator's name has 1 to 100 letters, digits, `-`, `_` and `.` of ASCII")]
    Name,
    /// Two participants have one name, or a name is empty or longer than 100 bytes.
    #[error("the participant `{name}` has no name of 1 to 100 bytes of its own")]
    Participant {
        /// The name.
        name: String,
    },
    /// The log holds the decisions of a coordinator of another name, whose branches this one would
    /// neither find nor tell. Open it under that name, or take a log of its own.
    #[error("this log has the decisions of the coordinator `{owner}`")]
    OtherCoordinator {
        /// The name under which the log was opened first.
        owner: String,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A later coordinator has opened the log, and does what was asked for. A
/// [`DecisionLog`](super::DecisionLog) answers so with `StoreError::new(Superseded)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a later coordinator has taken over")]
pub struct Superseded;

/// The log was opened before by a coordinator of another name. A
/// [`DecisionLog`](super::DecisionLog) answers so with `StoreError::new(OtherCoordinator { .. })`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("this log has the decisions of the coordinator `{owner}`")]
pub struct OtherCoordinator {
    /// Its name.
    pub owner: String,
}

/// No transaction was begun. Nothing was changed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum BeginError {
    /// [`CoordinatorConfig::max_active`](super::CoordinatorConfig::max_active) transactions have
    /// not ended. Try again later.
    #[error("too many transactions have not ended")]
    Busy,
    /// A participant has held a branch prepared for longer than
    /// [`CoordinatorConfig::max_in_doubt_age`](super::CoordinatorConfig::max_in_doubt_age). It goes
    /// away when the branch is finished: look for what keeps the recovery from reaching the
    /// participant.
    #[error("a branch at `{participant}` has been prepared for {age:?}")]
    InDoubt {
        /// Name of the participant.
        participant: String,
        /// Age of its oldest prepared branch.
        age: Duration,
    },
    /// A later coordinator of this name has taken over, on another node: begin there.
    #[error("a later coordinator has taken over")]
    Superseded,
    /// The node does not lead its group, and its commits would be aborted: begin where the leader
    /// is, or here once this node leads again.
    #[error("this node does not lead its group")]
    NotHere,
    /// The log has failed: open the coordinator again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A branch was not added. The transaction is as before.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EnlistError {
    /// The builder was given no participant of this name.
    #[error("there is no participant `{0}`")]
    Unknown(String),
    /// The transaction has
    /// [`CoordinatorConfig::max_branches`](super::CoordinatorConfig::max_branches) branches.
    #[error("the transaction has {0} branches already")]
    TooMany(u32),
}

/// What a transaction did that was not acknowledged as committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TxnOutcome {
    /// It has no effect, now or later.
    NotApplied,
    /// It may be committed or aborted: the next coordinator of this name finds out.
    Unknown,
}

/// A transaction was not acknowledged as committed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CommitError {
    /// A participant refused or did not vote in time, or the transaction's time is over.
    #[error("aborted: {0}")]
    Aborted(String),
    /// Aborted because commits are not decided here: another coordinator has taken over, or the
    /// node does not lead its group. Do the same work where the leader is.
    #[error("aborted, because it is not decided here: {0}")]
    NotHere(String),
    /// The log failed at the decision. The next coordinator of this name commits or aborts.
    #[error("the decision is unknown: {0}")]
    Unknown(StoreError),
}

impl CommitError {
    /// What the transaction did.
    pub fn outcome(&self) -> TxnOutcome {
        match self {
            Self::Aborted(_) | Self::NotHere(_) => TxnOutcome::NotApplied,
            Self::Unknown(_) => TxnOutcome::Unknown,
        }
    }

    /// Whether the same work may succeed in another transaction, and cannot be done twice by it;
    /// after [`NotHere`](Self::NotHere) in one at another node.
    pub fn is_retryable(&self) -> bool {
        self.outcome() == TxnOutcome::NotApplied
    }
}
