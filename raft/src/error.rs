//! Errors of the core's own surfaces: configuration, decoding, refused proposals and reads.

use thiserror::Error;

/// A field of a [`Config`](crate::Config) that is not valid. Nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What must hold.
    pub rule: &'static str,
}

/// What was restored contradicts itself or the voters, for example a log that starts after its
/// snapshot ends. Nothing was started. The caller's store is to blame; do not retry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("restored state: {problem}")]
#[non_exhaustive]
pub struct RestoredError {
    /// Which parts contradict each other.
    pub problem: &'static str,
}

/// Why a [`Core`](crate::core::Core) cannot be made. Nothing was started; do not retry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CoreError {
    /// The caller: a field of the configuration breaks a rule.
    #[error("config: {0}")]
    Config(#[from] ConfigError),
    /// The store: the restored parts contradict each other or the configuration.
    #[error(transparent)]
    Restored(#[from] RestoredError),
}

/// Why the core did not take a proposal. It was not appended anywhere and will never be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProposeRejected {
    /// This node does not lead. Retry at `leader`, or later when it is unknown.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<u64>,
    },
    /// Too much waits to be committed, written or decided, or the store has little room left for
    /// entries until a snapshot has been taken. Retry when that has been.
    #[error("too much is waiting to be committed, or the store is short of room")]
    Busy,
    /// The command is longer than [`Config::max_entry_bytes`](crate::Config). Do not retry.
    #[error("the command is longer than the limit")]
    TooLarge,
    /// The node has stopped. Retry at another one.
    #[error("the node has halted")]
    Halted,
}

/// Why a change of the membership was refused. Nothing of it is in any log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChangeRejected {
    /// This node does not lead. Retry at `leader`, or later when it is unknown.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<u64>,
    },
    /// Another change is under way. Retry when it has ended.
    #[error("another change of the membership is under way")]
    InProgress,
    /// The caller: [`Config::dynamic`](crate::Config) is not set. Do not retry.
    #[error("the membership of this group is fixed: set `dynamic`")]
    Fixed,
    /// The caller: nobody would vote. Do not retry.
    #[error("a group needs a voter")]
    NoVoters,
    /// The caller: more than [`MAX_VOTERS`](crate::MAX_VOTERS) voters or
    /// [`MAX_LEARNERS`](crate::MAX_LEARNERS) learners, those that are to become voters included.
    #[error("more members than a group may have")]
    TooManyMembers,
    /// The caller: 0 would become a member. It is mostly an id that somebody has forgotten to set,
    /// and no node would answer to it. Do not retry.
    #[error("0 is no id for a node that is added")]
    NoId,
    /// The caller: the change names a node in two ways. Do not retry.
    #[error("the change names a node in two ways")]
    Contradiction,
    /// The caller: an address is longer than
    /// [`MAX_ADDRESS_BYTES`](crate::MAX_ADDRESS_BYTES). Do not retry.
    #[error("an address is longer than the limit")]
    AddressTooLong,
    /// The node has stopped. Retry at another one.
    #[error("the node has halted")]
    Halted,
}

/// Why the core could not give a read index. Reads change nothing: retry freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReadRejected {
    /// Too many reads wait here. Retry when some of them have been answered or withdrawn.
    #[error("too many reads are waiting")]
    Busy,
    /// The node has stopped. Retry at another one.
    #[error("the node has halted")]
    Halted,
}
