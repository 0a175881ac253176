//! Memberships: who the replicas are, numbered by epochs, and how one follows another.
//!
//! The replicas of a table and its registers change one at a time, in two epochs each (joint
//! consensus; Raft §6, CASPaxos §2.3):
//!
//! ```text
//! epoch e      {1, 2, 3}
//! epoch e + 1  {1, 2, 3} and {1, 2, 4}   joint: R, W and majorities are needed in both sets
//! epoch e + 2  {1, 2, 4}
//! ```
//!
//! - **One successor.** What follows epoch e is decided by a Paxos register of the replicas of
//!   epoch e, of a joint epoch by the old ones alone, written once: two operators cannot make two
//!   different epochs e + 1, and a majority of the old replicas can take a change back.
//! - **Fence.** Each request carries its epoch, and a node serves no other epoch than its own. Once
//!   N - W + 1 and N - R + 1 of the old replicas have moved to e + 1, and a majority, no write of
//!   epoch e can be acknowledged any more, and no read of it can end.
//! - **Transfer.** The new replica merges the records of N - W + 1 old ones, all read behind the
//!   fence: each acknowledged write and each state that a register has chosen is among them. Until
//!   then it counts in no quorum.
//! - **Operations of neighbouring epochs intersect**, for one of the two sets is the same. So
//!   clients may learn of an epoch late.
//!
//! - **Fork.** [`Lineage`] says of which cluster a membership is, and of which of its pasts.
//!
//! Everything here is a pure value or function. [`Node::reconfigure`](crate::Node::reconfigure) and
//! [`Node::maintain`](crate::Node::maintain) carry it out. No failure detector, and no silence of a
//! node, ever changes a membership: only an operator's word does.

mod change;
mod codec;
mod lineage;
mod progress;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

pub use self::change::{ChangeRejected, MemberChange};
pub(crate) use self::codec::{decode, encode, put_membership, take_membership};
pub use self::lineage::Lineage;
pub(crate) use self::lineage::Stamp;
pub(crate) use self::progress::{Lack, Levels, Seen, Sources, Unprepared};
use crate::table::Level;

/// A replica, and since when it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The node.
    pub id: u64,
    /// The epoch that added it. A node that was removed and added again is another member: what its
    /// store held as the earlier one counts for nothing.
    pub since: u64,
}

/// The replicas of one epoch. While they change there are two sets of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Membership {
    /// 0: not known. At most [`Membership::MAX_EPOCH`].
    epoch: u64,
    /// In ascending order, each id once. Empty only if the epoch is not known.
    members: Vec<Member>,
    /// While they change: the replicas to be. Differs from `members` in one addition, one removal,
    /// or one of each.
    next: Option<Vec<Member>>,
    /// Unnamed also where it is not known; then the epoch is not known either.
    lineage: Lineage,
    /// Those of the last epochs, this one's last. The first epoch has none, and neither has a
    /// cluster without a name; otherwise as many as there were epochs behind the first, at most
    /// [`Membership::MAX_BRANCHES`].
    branches: Vec<u64>,
}

impl Membership {
    /// The epoch of replicas that never changed.
    pub const FIRST_EPOCH: u64 = 1;
    /// The last epoch: 2^62 - 1. What lies above it is refused wherever it arrives.
    pub const MAX_EPOCH: u64 = (1 << 62) - 1;
    /// How far ahead of a node's epoch one may be that it goes on with: 2^20, half as many changes
    /// of the replicas. What is further ahead is a mistake or damage.
    pub const MAX_EPOCHS_AHEAD: u64 = 1 << 20;
    /// How many replicas there may be.
    pub const MAX_MEMBERS: usize = 31;

    /// The membership of the first epoch, of a cluster without a name:
    /// [`Membership::of_lineage`] gives it one.
    pub fn first(ids: impl IntoIterator<Item = u64>) -> Self {
        let ids: BTreeSet<u64> = ids.into_iter().collect();
        let member = |id| Member { id, since: Self::FIRST_EPOCH };
        let members = ids.into_iter().map(member).collect();
        let (lineage, branches) = (Lineage::UNNAMED, Vec::new());
        Self { epoch: Self::FIRST_EPOCH, members, next: None, lineage, branches }
    }

    /// What a node or a client knows that is new, or a node whose store was lost: perhaps of
    /// which cluster it is.
    pub(crate) fn unknown(lineage: Lineage) -> Self {
        Self { epoch: 0, members: Vec::new(), next: None, lineage, branches: Vec::new() }
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The replicas; while they change, those of before.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// While the replicas change, those to be.
    pub fn next(&self) -> Option<&[Member]> {
        self.next.as_deref()
    }

    /// Whether the replicas are being changed: quorums are needed of both sets.
    pub fn is_changing(&self) -> bool {
        self.next.is_some()
    }

    /// The ids of all replicas, of both sets while they change, in ascending order.
    pub fn ids(&self) -> Vec<u64> {
        let ids: BTreeSet<u64> = self.sets().flatten().map(|member| member.id).collect();
        ids.into_iter().collect()
    }

    /// Whether a node is one of the replicas.
    pub fn contains(&self, id: u64) -> bool {
        self.since(id).is_some()
    }

    /// The epoch that added a replica. None: the node is none.
    pub fn since(&self, id: u64) -> Option<u64> {
        self.sets().flatten().find(|member| member.id == id).map(|member| member.since)
    }

    /// Those whose majority decides what follows this epoch: while the replicas change, the old
    /// ones. Any two of these majorities intersect, and no other acceptors ever vote on it.
    pub(crate) fn electorate(&self) -> Self {
        Self { next: None, ..self.clone() }
    }

    /// One set, or two while they change.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &[Member]> {
        std::iter::once(self.members.as_slice()).chain(self.next.as_deref())
    }

    /// Whether the nodes for which `counts` is true are enough for a level: of each set, as many
    /// as the level asks for.
    pub fn is_met(&self, level: Level, counts: impl Fn(u64) -> bool) -> bool {
        self.sets().all(|set| {
            let count = set.iter().filter(|member| counts(member.id)).count();
            !set.is_empty() && count >= level.count(set.len())
        })
    }
}

/// How many others a lost replica of `n` is rebuilt from, and how many old replicas a new one is
/// filled from (itself none of them): each write that was acknowledged at the level `write`, and
/// each state that a majority of acceptors has accepted, is on one of them.
pub(crate) fn sources_of(n: usize, write: Level) -> usize {
    (n + 1).saturating_sub(write.count(n).min(Level::Quorum.count(n)))
}
