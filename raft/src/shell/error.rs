//! What the callers of a node can be told.

use crate::error::{ChangeRejected, ConfigError, CoreError, RestoredError};
use crate::store::StoreError;
use crate::transport::AttachError;
use crate::types::HaltReason;

/// What became of an operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did not happen and never will. Sending it again cannot do it twice.
    NotApplied,
    /// It may have happened, or may still happen.
    Unknown,
}

/// Why a proposal brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// This node does not lead; the command is in no log. Retry at `leader`, or later when it is
    /// unknown.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<u64>,
    },
    /// Too much waits to be committed, and no room came free within
    /// [`Config::proposal_timeout`](crate::Config), or the leader's store has little room left for
    /// entries ([`LogStore::room`](crate::LogStore::room)) and takes a snapshot to have more. The
    /// command is in no log. Retry after a pause.
    #[error("too much is waiting to be committed, or the store is short of room")]
    Busy,
    /// The command is longer than [`Config::max_entry_bytes`](crate::Config); it is in no log.
    /// Do not retry.
    #[error("{bytes} bytes are more than the {max_bytes} of a command")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The longest that is taken.
        max_bytes: usize,
    },
    /// Leadership changed and other commands were committed in its place: it will never be
    /// applied. Retry at the new leader.
    #[error("superseded after a change of leadership")]
    Superseded,
    /// It was in the log, and this node cannot say what became of it: it was replaced by a
    /// snapshot, or was not decided within
    /// [`Config::proposal_timeout`](crate::Config). A retry may apply it a second time.
    #[error("outcome unknown: {0}")]
    Unknown(Doubt),
    /// The node stopped before the command got into the log. Retry at another node.
    #[error("the node has stopped: {0}")]
    Stopped(StopReason),
}

/// Why the outcome of a proposal is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Doubt {
    /// It was not committed and applied in time: there is no quorum, or it is slow, or this node's
    /// state machine is.
    #[error("not decided in time")]
    TimedOut,
    /// A snapshot took the place of the entries among which it was decided.
    #[error("decided before a snapshot that was received since")]
    Snapshot,
    /// The node stopped while it was under way.
    #[error("the node has stopped: {0}")]
    Stopped(StopReason),
}

impl ProposeError {
    /// Whether the command may have been applied.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown(_) => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same command may succeed later, here or at another node. After
    /// [`Outcome::Unknown`] a retry may apply it twice: retry only commands that bear that.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::TooLarge { .. })
    }

    /// The node to turn to, when this one knows it.
    pub fn leader(&self) -> Option<u64> {
        match self {
            Self::NotLeader { leader } => *leader,
            _ => None,
        }
    }
}

/// Why a read was not confirmed. Reads change nothing: retry freely.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The caller's deadline passed while this node knew no leader: a majority is out of its
    /// reach, or an election takes long. Ask another node.
    #[error("no leader was known when the deadline passed")]
    NoLeader,
    /// Too many reads wait here. Retry after a pause.
    #[error("too many reads are waiting")]
    Busy,
    /// The caller's deadline passed. The leader, a majority or this node's state machine is slow
    /// or out of reach. Retry, or ask another node.
    #[error("the read was not confirmed and applied before its deadline")]
    TimedOut,
    /// The node has stopped. Ask another one.
    #[error("the node has stopped: {0}")]
    Stopped(StopReason),
}

impl ReadError {
    /// Always [`Outcome::NotApplied`].
    pub fn outcome(&self) -> Outcome {
        Outcome::NotApplied
    }

    /// Always `true`: at this node or, when it has stopped, at another.
    pub fn is_retryable(&self) -> bool {
        true
    }
}

/// Why a change of the membership was not reported as done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// Nothing of it is in any log. [`ChangeRejected`] says what to do.
    #[error(transparent)]
    Rejected(#[from] ChangeRejected),
    /// The deadline passed: a new voter has not caught up, or a majority is out of reach. A part
    /// of the change may be done, and a joint membership is left in any case. Ask again: what is
    /// done already is not done twice.
    #[error("the change of the membership was not done before its deadline")]
    TimedOut,
    /// This node leads no more. The next leader completes or undoes what was begun. Ask again
    /// there: what is done already is not done twice.
    #[error("leadership changed while the change of the membership was under way")]
    Deposed,
    /// The node stopped. A part of the change may be done.
    #[error("the node has stopped: {0}")]
    Stopped(StopReason),
}

impl ChangeError {
    /// Whether a part of it may be done.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Rejected(_) => Outcome::NotApplied,
            _ => Outcome::Unknown,
        }
    }

    /// Whether the same change may succeed later, here or at another node. It may be repeated
    /// whatever the outcome.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Rejected(reason) => matches!(
                reason,
                ChangeRejected::NotLeader { .. }
                    | ChangeRejected::InProgress
                    | ChangeRejected::Halted
            ),
            _ => true,
        }
    }
}

/// Why leadership was not handed over. This node leads on, or another one than was wanted does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// This node does not lead.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<u64>,
    },
    /// The caller: this node was to hand over to itself, and leads already. Nothing was done.
    #[error("this node leads already")]
    ToSelf,
    /// The caller: the node is no member of the group, or only learns. Nothing was done; make it a
    /// voter first ([`Change::voter`](crate::Change::voter)).
    #[error("node {to} is no voter of the group")]
    NotVoter {
        /// Who was to lead.
        to: u64,
    },
    /// The caller: no other node of the group votes. Nothing was done; add one first.
    #[error("the group has no other voter")]
    NoOtherVoter,
    /// The deadline passed: the node that was to lead is out of reach or behind.
    #[error("leadership was not handed over before the deadline")]
    TimedOut,
    /// The node has stopped.
    #[error("the node has stopped: {0}")]
    Stopped(StopReason),
}

/// The cause of a halt as the end of its message; nothing where there is none.
fn after_colon(cause: Option<&String>) -> String {
    cause.map(|cause| format!(": {cause}")).unwrap_or_default()
}

/// Why a node runs no more. Others of its process go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// It was asked to, or the last handle was dropped.
    #[error("shut down")]
    ShutDown,
    /// It could no longer vouch for its log. See [`HaltReason`] for what to do.
    #[error("halted: {reason}{}", after_colon(cause.as_ref()))]
    Halted {
        /// What it could not vouch for.
        reason: HaltReason,
        /// What the store said, when a call to the store was the cause: the error of the disk, and
        /// the path where the store names it.
        cause: Option<String>,
    },
    /// The state machine failed, with this message. A restart rebuilds it from the log.
    #[error("the state machine failed: {0}")]
    Machine(String),
    /// A task of the node panicked: a defect, in this crate, the store, the transport or the
    /// state machine. What is on disk is as after a crash.
    #[error("a task of the node panicked")]
    Panicked,
    /// The runtime was shut down before the node was, for example because `main` returned. What
    /// is on disk is as after a crash; nothing that was acknowledged is lost.
    #[error("the runtime was shut down before the node")]
    RuntimeEnded,
}

impl StopReason {
    /// Why the node halted, if it did.
    pub fn halted(&self) -> Option<HaltReason> {
        match self {
            Self::Halted { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    /// What to say of a task that is dropped before its end: it panics, or its runtime ends.
    pub(crate) fn of_dropped_task() -> Self {
        if std::thread::panicking() { Self::Panicked } else { Self::RuntimeEnded }
    }
}

/// Why a node did not start. Nothing is running, and nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The caller: a field of the configuration breaks a rule.
    #[error("config: {0}")]
    Config(#[from] ConfigError),
    /// The caller: what the store restored contradicts itself, or was begun with other voters
    /// than the configuration names.
    #[error(transparent)]
    Restored(#[from] RestoredError),
    /// The caller: the transport belongs to another node than the configuration.
    #[error("the transport is node {transport}, the configuration node {config}")]
    WrongNode {
        /// [`Transport::local`](crate::Transport::local).
        transport: u64,
        /// [`Config::id`](crate::Config::id).
        config: u64,
    },
    /// The store could not be read. A retry may succeed.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The node hosts as many groups as it may. Stop one, or raise
    /// [`NodeConfig::max_groups`](crate::NodeConfig::max_groups).
    #[error("the node hosts {max_groups} groups already")]
    TooManyGroups {
        /// [`NodeConfig::max_groups`](crate::NodeConfig::max_groups).
        max_groups: usize,
    },
    /// The transport did not take the group.
    #[error("transport: {0}")]
    Transport(#[from] AttachError),
}

impl From<CoreError> for StartError {
    fn from(error: CoreError) -> Self {
        match error {
            CoreError::Config(error) => Self::Config(error),
            CoreError::Restored(error) => Self::Restored(error),
        }
    }
}
