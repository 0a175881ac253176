//! Tags and messages.

use bytes::Bytes;

use crate::version::{Actor, Dot};

/// Orders the writes of a register: by number, then by writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// One more than the greatest that the writer found. Range: 0 ([`Tag::NONE`] only) to
    /// [`Tag::MAX_NUMBER`].
    pub number: u64,
    /// The write's dot, which no other write has.
    pub writer: Dot,
}

impl Tag {
    /// Of a register that was never written. Below every other tag.
    pub const NONE: Self = Self { number: 0, writer: Dot::new(Actor::new(0, 0), 0) };
    /// The greatest number: 2^62 - 1. What lies above it is refused wherever it arrives.
    pub const MAX_NUMBER: u64 = (1 << 62) - 1;

    /// Whether a writer can have made it, or it is [`Tag::NONE`].
    pub fn is_valid(&self) -> bool {
        let is_made = (1..=Self::MAX_NUMBER).contains(&self.number) && self.writer.is_valid();
        is_made || *self == Self::NONE
    }
}

/// A value and the tag of its write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Versioned {
    /// The tag.
    pub tag: Tag,
    /// The value; none before the first write and after a delete.
    pub value: Option<Bytes>,
}

impl Versioned {
    /// Of a register that was never written.
    pub const NONE: Self = Self { tag: Tag::NONE, value: None };
}

/// What a coordinator asks a replica. Repeating a request changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Reads a register.
    Get {
        /// The register.
        key: Bytes,
    },
    /// Stores a value, unless a greater tag is there.
    Store {
        /// The register.
        key: Bytes,
        /// The value and its tag.
        versioned: Versioned,
    },
}

/// The answer of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// To a read: the greatest tag that is durable at the replica, and its value.
    Value {
        /// [`Versioned::NONE`] if the register was never written.
        versioned: Versioned,
    },
    /// To a store: a tag at least as great is durable at the replica.
    Stored,
    /// The replica was lost, restored or damaged, and has not been rebuilt. A value to store was
    /// stored, and counts for nothing.
    NotWhole,
}
