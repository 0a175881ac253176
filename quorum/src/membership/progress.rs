//! How far a change is, from what the nodes tell: whom a node copies from, and when the new set may
//! stand alone.

use std::collections::BTreeMap;

use super::{Member, Membership, sources_of};
use crate::table::Level;

/// What a node has told of itself. All of it is durable there, but for `is_ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The epoch that it serves. 0: none yet.
    pub(crate) epoch: u64,
    /// It counts in quorums.
    pub(crate) is_whole: bool,
    /// It has all that the new set needs of it.
    pub(crate) is_ready: bool,
}

/// Too few nodes are where they must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    pub(crate) found: usize,
    pub(crate) needed: usize,
}

/// Whom a node copies from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sources {
    /// All that may be read.
    pub(crate) from: Vec<u64>,
    /// How many of them must be read to the end.
    pub(crate) needed: usize,
}

impl Membership {
    /// Whether a replica that stays must copy from the others before the new set stands alone:
    /// where the replicas become fewer, what was acknowledged may be on fewer of those that stay
    /// than a write waits for.
    pub(crate) fn must_catch_up(&self, id: u64) -> bool {
        self.next.as_ref().is_some_and(|next| {
            next.len() < self.members.len() && next.iter().any(|member| member.id == id)
        })
    }

    /// Whether nothing of an earlier epoch can be acknowledged any more: the old replicas that
    /// still serve it are too few for any quorum, and stay so when one of the others loses its
    /// disk, because too few are left that it could be rebuilt from as a replica of that epoch.
    pub(super) fn fence(&self, seen: &BTreeMap<u64, Seen>, write: Level) -> Result<(), Lack> {
        let n = self.members.len();
        let needed = sources_of(n, write).max(Level::Quorum.count(n));
        let found = self.members.iter().filter(|member| self.is_whole(seen, member)).count();
        if found >= needed { Ok(()) } else { Err(Lack { found, needed }) }
    }

    /// Whether a replica serves this epoch, and counts in it.
    fn is_whole(&self, seen: &BTreeMap<u64, Seen>, member: &Member) -> bool {
        seen.get(&member.id).is_some_and(|seen| seen.is_whole && seen.epoch == self.epoch)
    }

    /// Whom the node `own` copies from, which is not whole, or must catch up. `seen` holds what
    /// each node told after this membership was made known to it, the own node included.
    ///
    /// Only the old set is read: every operation of a joint epoch needs it.
    pub(crate) fn sources(
        &self,
        own: u64,
        seen: &BTreeMap<u64, Seen>,
        write: Level,
    ) -> Result<Sources, Lack> {
        let is_old = self.members.iter().any(|member| member.id == own);
        let whole = self.members.iter().filter(|member| self.is_whole(seen, member));
        let whole: Vec<u64> = whole.map(|member| member.id).collect();
        let is_own_whole = whole.contains(&own);
        if self.is_changing() && (!is_old || is_own_whole) {
            self.fence(seen, write)?;
        }
        if !is_own_whole {
            self.is_current(own, seen, write)?;
        }
        let needed = sources_of(self.members.len(), write).saturating_sub(is_own_whole.into());
        let from: Vec<u64> = whole.into_iter().filter(|id| *id != own).collect();
        if from.len() < needed {
            return Err(Lack { found: from.len(), needed });
        }
        Ok(Sources { from, needed })
    }

    /// Whether so many of the other new replicas serve this joint epoch that the new set cannot
    /// have acknowledged anything alone that the lost store of `own` was counted for.
    fn is_current(&self, own: u64, seen: &BTreeMap<u64, Seen>, write: Level) -> Result<(), Lack> {
        let Some(next) = &self.next else { return Ok(()) };
        if next.iter().all(|member| member.id != own) {
            return Ok(());
        }
        let needed = sources_of(next.len(), write).min(next.len() - 1);
        let others = next.iter().filter(|member| member.id != own);
        let is_here =
            |member: &&Member| seen.get(&member.id).is_some_and(|seen| seen.epoch == self.epoch);
        let found = others.filter(is_here).count();
        if found >= needed { Ok(()) } else { Err(Lack { found, needed }) }
    }

    /// Whether the new set may stand alone: nothing of an earlier epoch is left, and every replica
    /// that was added, or must catch up, has what was acknowledged before. Each of them, for a
    /// table may write at [`Level::All`] and read at [`Level::One`]. One that stays and need not
    /// catch up holds what it held; it may be away.
    pub(crate) fn may_finish(&self, seen: &BTreeMap<u64, Seen>, write: Level) -> bool {
        let is_ready = |member: &Member| {
            let must_copy = !self.members.contains(member) || self.must_catch_up(member.id);
            let is_ready = seen.get(&member.id).is_some_and(|seen| seen.is_ready);
            !must_copy || (self.is_whole(seen, member) && is_ready)
        };
        let next = self.next.as_ref();
        next.is_some_and(|next| next.iter().all(is_ready)) && self.fence(seen, write).is_ok()
    }
}
