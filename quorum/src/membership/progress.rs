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

/// The lowest levels that any table reads and writes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Levels {
    pub(crate) read: Level,
    pub(crate) write: Level,
}

/// Too few nodes are where they must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    pub(crate) found: usize,
    pub(crate) needed: usize,
}

/// Why a change would not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unprepared {
    /// The node that is to be added does not answer.
    Away(u64),
    /// The node that is to be added counts in quorums already, which are not those of this cluster.
    NotJoining(u64),
    /// Too few of the replicas are there and whole.
    TooFew(Lack),
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

    /// Whether no operation of an earlier epoch can end any more. The old replicas that still
    /// serve it are fewer than W, fewer than R and no majority. That stays so when one of the
    /// others loses its disk: too few are left from which it could be rebuilt as a replica of that
    /// epoch.
    pub(super) fn fence(&self, seen: &BTreeMap<u64, Seen>, levels: Levels) -> Result<(), Lack> {
        let n = self.members.len();
        // With n - R + 1 replicas behind the fence, R - 1 are left: a read of the old epoch would
        // miss what the new replicas have acknowledged since.
        let without_reads = (n + 1).saturating_sub(levels.read.count(n)).min(n);
        let needed = sources_of(n, levels.write).max(Level::Quorum.count(n)).max(without_reads);
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
        levels: Levels,
    ) -> Result<Sources, Lack> {
        let is_old = self.members.iter().any(|member| member.id == own);
        let whole = self.members.iter().filter(|member| self.is_whole(seen, member));
        let whole: Vec<u64> = whole.map(|member| member.id).collect();
        let is_own_whole = whole.contains(&own);
        if self.is_changing() && (!is_old || is_own_whole) {
            self.fence(seen, levels)?;
        }
        if !is_own_whole {
            self.is_current(own, seen, levels.write)?;
        }
        let needed = sources_of(self.members.len(), levels.write);
        let needed = needed.saturating_sub(is_own_whole.into());
        let from: Vec<u64> = whole.into_iter().filter(|id| *id != own).collect();
        if from.len() < needed {
            return Err(Lack { found: from.len(), needed });
        }
        Ok(Sources { from, needed })
    }

    /// Whether the change that begins with this joint epoch can end, if all nodes stay as they were
    /// when they answered. `seen` holds what each told before the epoch is decided.
    pub(crate) fn is_prepared(
        &self,
        seen: &BTreeMap<u64, Seen>,
        levels: Levels,
    ) -> Result<(), Unprepared> {
        let Some(next) = &self.next else { return Ok(()) };
        // As if every node that answered had heard of this epoch.
        let hear = |(id, told): (&u64, &Seen)| (*id, Seen { epoch: self.epoch, ..*told });
        let heard: BTreeMap<u64, Seen> = seen.iter().map(hear).collect();
        let (stay, added): (Vec<&Member>, Vec<&Member>) =
            next.iter().partition(|m| self.members.contains(m));
        for member in &added {
            match heard.get(&member.id) {
                None => return Err(Unprepared::Away(member.id)),
                Some(told) if told.is_whole => return Err(Unprepared::NotJoining(member.id)),
                Some(_) => {}
            }
        }
        // Until the new one is filled, those that stay are all that the new quorums have. Where all
        // of them are too few (one replica becomes two), operations wait until it is.
        let must_copy = stay.iter().any(|member| self.must_catch_up(member.id));
        let needed = if must_copy { stay.len() } else { Level::Quorum.count(next.len()) };
        let needed = needed.min(stay.len());
        let found = stay.iter().filter(|member| self.is_whole(&heard, member)).count();
        if found < needed {
            return Err(Unprepared::TooFew(Lack { found, needed }));
        }
        self.fence(&heard, levels).map_err(Unprepared::TooFew)?;
        for member in added {
            self.sources(member.id, &heard, levels).map_err(Unprepared::TooFew)?;
        }
        Ok(())
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
    pub(crate) fn may_finish(&self, seen: &BTreeMap<u64, Seen>, levels: Levels) -> bool {
        let is_ready = |member: &Member| {
            let must_copy = !self.members.contains(member) || self.must_catch_up(member.id);
            let is_ready = seen.get(&member.id).is_some_and(|seen| seen.is_ready);
            !must_copy || (self.is_whole(seen, member) && is_ready)
        };
        let next = self.next.as_ref();
        next.is_some_and(|next| next.iter().all(is_ready)) && self.fence(seen, levels).is_ok()
    }
}
