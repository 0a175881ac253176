//! What the judge watches of the membership.

use std::collections::BTreeMap;

use super::oracle::Oracle;
use crate::core::Core;
use crate::membership::Membership;
use crate::types::{Role, Status};

/// What the seeds with changes of the membership have to reach.
pub static CHANGE_SITUATIONS: [&str; 9] = [
    "joint membership entered",
    "joint membership left",
    "failover inside a joint membership",
    "leader removed",
    "learner promoted",
    "entry with a membership truncated",
    "node added again in the term in which it was removed",
    "removed node told",
    "change done",
];

/// The membership of one node when it was last looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    members: Membership,
    index: u64,
    removed: bool,
    /// Leaves of this leadership, by node: its term.
    left: BTreeMap<u64, u64>,
}

impl Seen {
    /// A node starts anew.
    pub(super) fn at_start(core: &Core) -> Self {
        let members = core.members().clone();
        Self { members, index: core.members_index(), ..Self::default() }
    }
}

/// Whether `holders` are a majority of the voters and, while it is joint, of the outgoing ones.
/// Counted here by hand, not by the code that is judged.
fn decides(members: &Membership, holders: &[u64]) -> bool {
    let of = |voters: &[u64]| voters.iter().filter(|id| holders.contains(id)).count() * 2;
    of(members.voters()) > members.voters().len()
        && (!members.is_joint() || of(members.outgoing()) > members.outgoing().len())
}

impl Oracle {
    /// A leader that goes on leading has moved its commit index to `commit`: that is durable at
    /// those who decide, by the membership that counted before or counts now.
    pub(super) fn commits(&mut self, core: &Core, commit: u64) {
        let Some(term) = core.term_at(commit) else { return };
        let id = core.status().id;
        let holders = self.holders(commit, term);
        let before = self.seen(id).is_some_and(|seen| decides(&seen.members, &holders));
        if !before && !decides(core.members(), &holders) {
            let members = core.members().clone();
            self.object(|| {
                format!("leader {id} commits {commit}, durable at {holders:?} of {members:?}")
            });
        }
    }

    /// A node has handled something.
    pub(super) fn observe_members(&mut self, core: &Core, status: &Status, has_won: bool) {
        let Some(seen) = self.seen(status.id).cloned() else { return };
        let members = core.members();
        let mut now = Seen {
            members: members.clone(),
            index: status.members_index,
            removed: status.removed.is_some(),
            left: seen.left.clone(),
        };
        if has_won {
            now.left.clear();
            if members.is_joint() {
                self.reached("failover inside a joint membership");
            }
        }
        if now.removed && status.role != Role::Follower {
            let (id, role) = (status.id, status.role);
            self.object(|| format!("node {id} knows that it was removed, and is {role:?}"));
        }
        if now.removed && !seen.removed {
            self.reached("removed node told");
        }
        if now.index < seen.index {
            self.reached("entry with a membership truncated");
        }
        if status.role == Role::Leader && now.index > seen.index {
            if members.is_joint() && !seen.members.is_joint() {
                self.reached("joint membership entered");
            }
            if !members.is_joint() && seen.members.is_joint() {
                self.reached("joint membership left");
            }
            if members.voters().iter().any(|id| seen.members.learners().contains(id)) {
                self.reached("learner promoted");
            }
            for id in seen.members.members().filter(|id| !members.contains(*id)) {
                now.left.insert(id, status.term);
            }
            for id in members.members().filter(|id| !seen.members.contains(*id)) {
                if now.left.remove(&id) == Some(status.term) {
                    self.reached("node added again in the term in which it was removed");
                }
            }
        }
        self.note_seen(status.id, now);
    }
}
