//! What a node keeps of the membership: the one that it serves, and as which member.
//!
//! The record, version 1, little-endian: version u8, reserved 7 bytes, joined u64, membership as in
//! `membership/codec.rs`. A whole store without the record is of a version that had none: it gets
//! the first membership, which its configuration names, with its next start.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::membership::{self, Membership};
use crate::store::Change;
use crate::version::codec::DecodeError;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 16;

/// The key of the record. The keys of tables and registers begin with another byte.
pub(super) const KEY: &[u8] = b"v";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// The epoch that added the store as a member. 0: it has been none so far, and holds nothing.
    /// Set with the first membership that has the node, before anything is copied: what a store
    /// has copied for a change that was taken back must not be there when it is added later.
    pub(super) joined: u64,
    /// Its epoch is 0 until it is known.
    pub(super) membership: Arc<Membership>,
}

impl View {
    /// Of a node of a cluster that is being set up.
    pub(super) fn first(replicas: &[u64]) -> Self {
        let membership = Membership::first(replicas.iter().copied());
        Self { joined: Membership::FIRST_EPOCH, membership: Arc::new(membership) }
    }

    /// Of a store that is new or was lost.
    pub(super) fn unknown() -> Self {
        Self { joined: 0, membership: Arc::new(Membership::unknown()) }
    }

    /// The view of a later membership.
    pub(super) fn followed_by(&self, membership: Membership, node: u64) -> Self {
        let joined =
            if self.joined == 0 { membership.since(node).unwrap_or(0) } else { self.joined };
        Self { joined, membership: Arc::new(membership) }
    }

    /// Whether the store was a member, and is none any more: not even if its node is one again,
    /// for it was another member then.
    pub(super) fn is_removed(&self, node: u64) -> bool {
        self.joined != 0 && self.membership.since(node) != Some(self.joined)
    }

    pub(super) fn change(&self) -> Change {
        let membership = membership::encode(&self.membership);
        let mut out = BytesMut::with_capacity(HEAD_BYTES + membership.len());
        out.put_u64_le(u64::from(VERSION));
        out.put_u64_le(self.joined);
        out.put_slice(&membership);
        Change { key: Bytes::from_static(KEY), record: Some(out.freeze()) }
    }

    pub(super) fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        if bytes.len() < HEAD_BYTES {
            return Err(DecodeError::Truncated);
        }
        if bytes.get_u64_le() != u64::from(VERSION) {
            return Err(DecodeError::Invalid("reserved field"));
        }
        let joined = bytes.get_u64_le();
        let membership = membership::decode(bytes)?;
        if joined > membership.epoch() {
            return Err(DecodeError::Invalid("epoch of a member"));
        }
        Ok(Self { joined, membership: Arc::new(membership) })
    }
}
