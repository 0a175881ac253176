//! The memberships that a log holds: effective when appended, taken back with their entries.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::membership::Membership;

/// The memberships of the log, by index.
#[derive(Clone, Debug)]
pub(super) struct Members {
    /// Ascending by index. The first one is committed or the base of the log; the last one is
    /// effective. Invariant: never empty.
    history: VecDeque<(u64, Arc<Membership>)>,
}

impl Members {
    pub(super) fn new(index: u64, members: Membership) -> Self {
        Self { history: VecDeque::from([(index, Arc::new(members))]) }
    }

    fn last(&self) -> &(u64, Arc<Membership>) {
        self.history.back().expect("a log has a membership, if only that of nobody")
    }

    /// The one that counts.
    pub(super) fn effective(&self) -> &Arc<Membership> {
        &self.last().1
    }

    /// The index of the entry that brought it; 0 for the one that the log was begun with.
    pub(super) fn index(&self) -> u64 {
        self.last().0
    }

    /// The one at the base of the log.
    pub(super) fn base(&self) -> &Arc<Membership> {
        &self.history[0].1
    }

    /// Whether some membership that may yet turn out to be the committed one makes `id` a voter.
    /// A node that its latest membership leaves out may still be needed to commit that one.
    /// Source: thesis §4.2.2.
    pub(super) fn may_vote(&self, id: u64) -> bool {
        self.history.iter().any(|(_, members)| members.is_voter(id))
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.history.iter().any(|(_, members)| members.contains(id))
    }

    pub(super) fn push(&mut self, index: u64, members: Membership) {
        self.history.push_back((index, Arc::new(members)));
    }

    /// The entries from `from` on are gone. Returns whether another membership counts now.
    pub(super) fn truncate(&mut self, from: u64) -> bool {
        let before = self.history.len();
        // The base is committed, and never cut.
        while self.history.len() > 1 && self.index() >= from {
            self.history.pop_back();
        }
        self.history.len() < before
    }

    /// Forgets those that can never count again.
    pub(super) fn committed(&mut self, commit: u64) {
        while self.history.get(1).is_some_and(|(index, _)| *index <= commit) {
            self.history.pop_front();
        }
    }
}
