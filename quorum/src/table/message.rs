//! What a coordinator asks a replica, and what it is answered.

use bytes::Bytes;

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
    /// To a write: the state after it, durable at the replica.
    Written {
        /// The state.
        state: Siblings<Bytes>,
    },
    /// To a merge: what was merged is durable at the replica.
    Merged,
    /// To a write: nothing was written. The key has as many siblings as are allowed, or the
    /// writer claims to have seen writes that this replica has not made.
    Refused,
    /// The replica was lost, restored or damaged, and has not been rebuilt. A state to merge was
    /// merged, and counts for nothing.
    NotWhole,
}
