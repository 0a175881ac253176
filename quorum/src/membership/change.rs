//! Which membership follows which.

use super::{Member, Membership, sources_of};
use crate::table::Level;

/// A change of the replicas: one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemberChange {
    /// Adds a node, which was begun by [`Node::join`](crate::Node::join).
    Add(u64),
    /// Removes a replica.
    Remove(u64),
    /// Replaces a replica by a node, which was begun by [`Node::join`](crate::Node::join).
    Replace {
        /// The replica that leaves. It may be dead.
        old: u64,
        /// The node that takes its place.
        new: u64,
    },
}

/// Why a change of the replicas was not begun. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeRejected {
    /// Another change has not ended. It goes on by itself; finish or abandon it first.
    #[error("epoch {epoch} is in the middle of another change of the replicas")]
    Underway {
        /// The joint epoch.
        epoch: u64,
    },
    /// The replica that is to be replaced is none, and neither is its successor one.
    #[error("node {id} is not a replica")]
    NotAMember {
        /// The node.
        id: u64,
    },
    /// The node that is to take another one's place is a replica already. Remove the other one.
    #[error("node {id} is a replica already")]
    IsAMember {
        /// The node.
        id: u64,
    },
    /// There would be no replica, more than 31, or fewer than the nodes' lowest write level needs.
    #[error("{count} replicas are too many, or too few for the write level of the nodes")]
    Count {
        /// How many there would be.
        count: usize,
    },
    /// No epoch is left.
    #[error("no epoch is left")]
    Exhausted,
}

impl Membership {
    /// The joint membership that begins a change. None: the replicas are as the change wants them.
    ///
    /// # Errors
    /// [`ChangeRejected`].
    pub fn begin(
        &self,
        change: MemberChange,
        write: Level,
    ) -> Result<Option<Self>, ChangeRejected> {
        if self.is_changing() {
            return Err(ChangeRejected::Underway { epoch: self.epoch });
        }
        let (old, new) = match change {
            MemberChange::Add(id) => (None, Some(id)),
            MemberChange::Remove(id) => (Some(id), None),
            MemberChange::Replace { old, new } => (Some(old), Some(new)),
        };
        let is_gone = old.is_none_or(|id| !self.contains(id));
        let is_there = new.is_none_or(|id| self.contains(id));
        match (old, new) {
            _ if is_gone && is_there => return Ok(None),
            (Some(_), Some(id)) if is_there => return Err(ChangeRejected::IsAMember { id }),
            (Some(id), Some(_)) if is_gone => return Err(ChangeRejected::NotAMember { id }),
            _ => {}
        }
        let epoch = self.next_epoch()?;
        let mut members = self.members.clone();
        members.retain(|member| Some(member.id) != old);
        members.extend(new.map(|id| Member { id, since: epoch }));
        members.sort_unstable();
        if !is_allowed(members.len(), write) {
            return Err(ChangeRejected::Count { count: members.len() });
        }
        Ok(Some(self.followed(epoch, self.members.clone(), Some(members))))
    }

    /// The membership that ends a change: the new set alone. None: there is no change.
    pub fn finish(&self) -> Option<Self> {
        let members = self.next.clone()?;
        Some(self.followed(self.next_epoch().ok()?, members, None))
    }

    /// The membership that takes a change back: the old set alone. None: there is no change.
    pub fn abandon(&self) -> Option<Self> {
        self.next.as_ref()?;
        Some(self.followed(self.next_epoch().ok()?, self.members.clone(), None))
    }

    /// Whether `later` can be what was decided to follow this membership.
    pub(crate) fn is_followed_by(&self, later: &Self) -> bool {
        let is_next = self.epoch.checked_add(1) == Some(later.epoch);
        is_next
            && self.is_in_past_of(later)
            && match &self.next {
                None => later.members == self.members && later.is_changing(),
                Some(next) => {
                    let is_one = later.members == self.members || later.members == *next;
                    is_one && !later.is_changing()
                }
            }
    }

    /// Whether `later` can be what this membership has become. A replica that was one before is one
    /// of this membership, and the next epoch differs by one step. False: it is of another cluster,
    /// or made up.
    pub(crate) fn can_lead_to(&self, later: &Self) -> bool {
        if !self.is_in_past_of(later) {
            return false;
        }
        if self.epoch == 0 {
            return later.epoch <= Self::MAX_EPOCH;
        }
        if self.epoch.checked_add(1) == Some(later.epoch) {
            return self.is_followed_by(later);
        }
        let is_near = later.epoch.saturating_sub(self.epoch) <= Self::MAX_EPOCHS_AHEAD;
        let mut earlier = later.sets().flatten().filter(|member| member.since <= self.epoch);
        is_near && earlier.all(|member| self.since(member.id) == Some(member.since))
    }

    /// A membership of the same cluster, whose branch is not drawn yet.
    fn followed(&self, epoch: u64, members: Vec<Member>, next: Option<Vec<Member>>) -> Self {
        Self { epoch, members, next, lineage: self.lineage, branches: self.branches_behind() }
    }

    fn next_epoch(&self) -> Result<u64, ChangeRejected> {
        if self.epoch >= Self::MAX_EPOCH {
            return Err(ChangeRejected::Exhausted);
        }
        Ok(self.epoch + 1)
    }
}

/// Whether `n` replicas can be written at a level, and rebuild one that is lost.
fn is_allowed(n: usize, write: Level) -> bool {
    let is_rebuilt = n == 1 || sources_of(n, write) < n;
    (1..=Membership::MAX_MEMBERS).contains(&n) && write.count(n) <= n && is_rebuilt
}
