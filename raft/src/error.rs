//! Errors of the core's own surfaces: configuration, decoding, refused proposals and reads.

use thiserror::Error;

/// A [`Config`](crate::Config) that no core can run with. Nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The list of voters is empty, too long, unsorted with duplicates, or lacks this node.
    #[error("voters: {0}")]
    Voters(&'static str),
    /// The named duration is zero, too long, or contradicts another.
    #[error("timing: {0}")]
    Timing(&'static str),
    /// The named limit is zero or contradicts another.
    #[error("limit: {0}")]
    Limit(&'static str),
    /// What was restored contradicts itself, for example a log that starts after its snapshot
    /// ends. The caller's store is to blame; do not retry.
    #[error("restored state: {0}")]
    Restored(&'static str),
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
    /// Too much waits to be committed, written or decided. Retry when some of it has been.
    #[error("too much is waiting to be committed")]
    Busy,
    /// The command is longer than [`Config::max_entry_bytes`](crate::Config). Do not retry.
    #[error("the command is longer than the limit")]
    TooLarge,
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
