//! What a coordinator asks a replica, and what it is answered.

use bytes::Bytes;

use super::Digester;
use crate::version::{Siblings, VersionVector};

/// A call to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Reads a key.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Reads whether a key has the state that another replica has. Answered with
    /// [`Reply::Digest`], or with [`Reply::Value`] where the state has no digest.
    Digest {
        /// The key.
        key: Bytes,
        /// Of the read.
        digester: Digester,
    },
    /// Gives a write its dot and applies it, as the primary of the operation. What carries calls
    /// delivers it at most once: a repeated one would be a second write. The other requests may be
    /// repeated.
    Write {
        /// The key.
        key: Bytes,
        /// What the writer has seen: what the write replaces.
        seen: VersionVector,
        /// The new value; none: deletes what was seen.
        value: Option<Bytes>,
    },
    /// Merges a state of another replica.
    Merge {
        /// The key.
        key: Bytes,
        /// The state.
        state: Siblings<Bytes>,
    },
    /// Drops the tombstone of a key, if it has exactly this context. Sent when every replica holds
    /// the tombstone, and no operation is left that began before they did.
    Forget {
        /// The key.
        key: Bytes,
        /// The tombstone's context.
        context: VersionVector,
    },
    /// Raises the epoch of the replica, if it is lower.
    Epoch {
        /// The epoch.
        epoch: u64,
    },
}

impl Request {
    /// The key that it is about.
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Get { key }
            | Self::Digest { key, .. }
            | Self::Write { key, .. }
            | Self::Merge { key, .. }
            | Self::Forget { key, .. } => Some(key),
            Self::Epoch { .. } => None,
        }
    }
}

/// The answer of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// To a read: the state of the key.
    Value {
        /// The state; empty for a key that was never written.
        state: Siblings<Bytes>,
    },
    /// To a [`Request::Digest`]: the digest of the key's state.
    Digest {
        /// The digest.
        digest: u128,
    },
    /// To a write: the state after it, durable at the replica.
    Written {
        /// The state.
        state: Siblings<Bytes>,
    },
    /// To a merge: what was merged is durable at the replica. To a [`Request::Forget`]: the
    /// replica does not hold that tombstone any more.
    Merged,
    /// Nothing was written. The key has as many siblings or bytes as are allowed, or the writer
    /// claims to have seen writes that this replica has not made.
    Refused,
    /// To an epoch: the replica's epoch, durable.
    Epoch {
        /// The epoch; at least the one that was asked for.
        epoch: u64,
    },
    /// Nothing was done: the operation began before the previous epoch of the replica, and may
    /// carry values whose tombstones were collected since.
    Stale {
        /// The epoch of the replica.
        epoch: u64,
    },
    /// The replica was lost, restored or damaged, and has not been rebuilt. A state to merge may
    /// have been merged, and counts for nothing.
    NotWhole,
}
