//! What a node keeps of the membership: the one that it serves, and as which member.
//!
//! The record, version 1, little-endian: version u8, reserved 7 bytes, joined u64, membership as in
//! `membership/codec.rs`. Version 2 has floor u64 behind joined, and is written where the cluster
//! has a name or the floor is not 0. A whole store without the record is of a version that had
//! none: it gets the first membership, which its configuration names, with its next start.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::membership::{self, Lineage, Membership};
use crate::store::Change;
use crate::version::codec::DecodeError;

const VERSION: u8 = 1;
const VERSION_WITH_FLOOR: u8 = 2;
const HEAD_BYTES: usize = 16;

/// The key of the record. The keys of tables and registers begin with another byte.
pub(super) const KEY: &[u8] = b"v";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// The epoch that added the store as a member. 0: it has been none so far, and holds nothing.
    /// Set with the first membership that has the node, before anything is copied: what a store
    /// has copied for a change that was taken back must not be there when it is added later.
    pub(super) joined: u64,
    /// The latest epoch that an earlier life of the store has served. What is known to have passed
    /// stays so when the store is cleared: no earlier epoch is ever served again. A store of a
    /// cluster without a name that is cleared for one with a name keeps none: its epochs are of
    /// another cluster.
    pub(super) floor: u64,
    /// Its epoch is 0 until it is known.
    pub(super) membership: Arc<Membership>,
}

impl View {
    /// Of a node of a cluster that is being set up.
    pub(super) fn first(replicas: &[u64], lineage: Lineage) -> Self {
        let membership = Membership::first(replicas.iter().copied()).of_lineage(lineage);
        Self { joined: Membership::FIRST_EPOCH, floor: 0, membership: Arc::new(membership) }
    }

    /// Of a store that is new or was lost.
    pub(super) fn unknown(lineage: Lineage, floor: u64) -> Self {
        Self { joined: 0, floor, membership: Arc::new(Membership::unknown(lineage)) }
    }

    /// Of the same store, once it is cleared.
    pub(super) fn cleared(&self, lineage: Lineage) -> Self {
        let own = self.membership.lineage();
        if !own.is_named() && lineage.is_named() {
            return Self::unknown(lineage, 0);
        }
        Self::unknown(own, self.floor.max(self.membership.epoch()))
    }

    /// The same; a node that has been of no cluster so far is of the one that is named.
    pub(super) fn or_of_lineage(self, lineage: Lineage) -> Self {
        let is_of_none = self.membership.epoch() == 0 && !self.membership.lineage().is_named();
        if is_of_none { self.of_lineage(lineage) } else { self }
    }

    /// The same, of a cluster with another name.
    pub(super) fn of_lineage(&self, lineage: Lineage) -> Self {
        let membership = Membership::clone(&self.membership).of_lineage(lineage);
        Self { membership: Arc::new(membership), ..self.clone() }
    }

    /// Whether the node may serve a membership after this one.
    pub(super) fn can_lead_to(&self, later: &Membership) -> bool {
        later.epoch() >= self.floor && self.membership.can_lead_to(later)
    }

    /// The view of a later membership.
    pub(super) fn followed_by(&self, membership: Membership, node: u64) -> Self {
        let joined =
            if self.joined == 0 { membership.since(node).unwrap_or(0) } else { self.joined };
        Self { joined, floor: self.floor, membership: Arc::new(membership) }
    }

    /// Whether the store was a member, and is none any more: not even if its node is one again,
    /// for it was another member then.
    pub(super) fn is_removed(&self, node: u64) -> bool {
        self.joined != 0 && self.membership.since(node) != Some(self.joined)
    }

    pub(super) fn change(&self) -> Change {
        let membership = membership::encode(&self.membership);
        let mut out = BytesMut::with_capacity(HEAD_BYTES + membership.len());
        let is_plain = self.floor == 0 && !self.membership.lineage().is_named();
        out.put_u64_le(u64::from(if is_plain { VERSION } else { VERSION_WITH_FLOOR }));
        out.put_u64_le(self.joined);
        if !is_plain {
            out.put_u64_le(self.floor);
        }
        out.put_slice(&membership);
        Change { key: Bytes::from_static(KEY), record: Some(out.freeze()) }
    }

    pub(super) fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
        if !(VERSION..=VERSION_WITH_FLOOR).contains(&version) {
            return Err(DecodeError::Version(version));
        }
        let has_floor = version == VERSION_WITH_FLOOR;
        if bytes.len() < HEAD_BYTES + if has_floor { 8 } else { 0 } {
            return Err(DecodeError::Truncated);
        }
        if bytes.get_u64_le() != u64::from(version) {
            return Err(DecodeError::Invalid("reserved field"));
        }
        let joined = bytes.get_u64_le();
        let floor = if has_floor { bytes.get_u64_le() } else { 0 };
        let membership = membership::decode(bytes)?;
        if joined > membership.epoch() {
            return Err(DecodeError::Invalid("epoch of a member"));
        }
        Ok(Self { joined, floor, membership: Arc::new(membership) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows the joint epoch may be decided under the old name, and would be decided again
    /// under the new one: two halves, each with a quorum.
    #[tokio::test]
    async fn a_cluster_is_not_renamed_while_its_replicas_are_being_changed() {
        use crate::membership::MemberChange;
        use crate::store::ReplicaStore;
        let store: Arc<dyn ReplicaStore> = Arc::new(crate::MemoryStore::new());
        let first = View::first(&[1, 2, 3], Lineage::UNNAMED);
        let level = crate::table::Level::Quorum;
        let joint = first.membership.begin(MemberChange::Add(4), level).unwrap().unwrap();
        let view = first.followed_by(joint, 1);
        let changes = vec![super::super::Meta::first(1).change(), view.change()];
        store.apply(changes).await.unwrap();
        let mut config = super::super::NodeConfig::with_replicas([1, 2, 3]);
        config.lineage = Lineage::new(7);
        let set = async || crate::Node::set_lineage(1, &store, &config).await;
        assert_eq!(set().await, Err(crate::StartError::Changing { epoch: 2 }));
        let ended = view.membership.finish().unwrap();
        store.apply(vec![view.followed_by(ended, 1).change()]).await.unwrap();
        assert_eq!(set().await, Ok(()));
    }

    #[test]
    fn views_keep_their_bytes_and_those_of_before_are_read() {
        let unnamed = View::first(&[7], Lineage::UNNAMED);
        let bytes = unnamed.change().record.unwrap();
        let first = [
            &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..],
            &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
            &[7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes, first.concat());
        let named = View { floor: 9, ..View::first(&[7], Lineage::new(0x1122)) };
        let second = [
            &[2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(named.change().record.unwrap(), second.concat());
        for view in [unnamed, named.clone(), named.cleared(Lineage::UNNAMED)] {
            let bytes = view.change().record.unwrap();
            assert_eq!(View::decode(bytes.clone()), Ok(view));
            for at in 0..bytes.len() {
                assert!(View::decode(bytes.slice(..at)).is_err());
            }
        }
        let newer = [&[3][..], &second.concat()[1..]].concat();
        assert_eq!(View::decode(newer.into()), Err(DecodeError::Version(3)));
    }
}
