//! The membership as a part of the log: effective when it is appended, taken back with its entry.
//!
//! Source: Raft §6; thesis §4.1 ("always uses the latest configuration in its log").

use std::sync::Arc;

use super::history::Members;
use super::{Core, RoleState};
use crate::core::roster::Roster;
use crate::membership::Membership;
use crate::message::Message;
use crate::types::{Entry, EntryKind};

/// A committed membership that leaves this node out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removal {
    /// Its index, as this node was told.
    pub(super) index: u64,
    /// The index of the latest membership in this node's log when it was told. A later one that
    /// contains the node ends the removal, whatever `index` a peer made up.
    known: u64,
}

impl Removal {
    /// The node's own log says so.
    pub(super) fn known(index: u64) -> Self {
        Self { index, known: index }
    }
}

impl Core {
    /// The membership that counts here: the latest one in the log, committed or not.
    pub fn members(&self) -> &Membership {
        self.members.effective()
    }

    /// The same, to be kept.
    pub(crate) fn shared_members(&self) -> &Arc<Membership> {
        self.members.effective()
    }

    /// The membership at the base of the log: that of the snapshot, or the one that the log was
    /// begun with.
    pub(crate) fn base_members(&self) -> Arc<Membership> {
        Arc::clone(self.members.base())
    }

    /// The index of the entry that brought [`members`](Self::members); 0 for those that the log was
    /// begun with.
    pub fn members_index(&self) -> u64 {
        self.members.index()
    }

    /// Takes an entry into the log, and the membership that it may bring.
    pub(super) fn push_entry(&mut self, entry: Entry) {
        if entry.kind == EntryKind::Config {
            match crate::codec::decode_members(entry.data.clone()) {
                Ok(members) => {
                    self.members.push(entry.index, members);
                    self.members_changed = true;
                }
                // The gate has let it pass, or this node has written it.
                Err(_) => debug_assert!(false, "a membership was checked before it is taken"),
            }
        }
        self.log.push(entry);
    }

    /// The entries from `from` on are gone, and what they said of the membership with them.
    pub(super) fn truncate_members(&mut self, from: u64) {
        self.members_changed |= self.members.truncate(from);
        self.adopt_members();
    }

    /// A snapshot takes the place of the log.
    pub(super) fn reset_members(&mut self, index: u64, members: Membership) {
        self.members = Members::new(index, members);
        self.members_changed = true;
        self.adopt_members();
    }

    pub(super) fn commit_members(&mut self) {
        self.members.committed(self.commit);
    }

    /// Counts by the membership that has become effective.
    pub(super) fn adopt_members(&mut self) {
        if !std::mem::take(&mut self.members_changed) {
            return;
        }
        self.roster = Roster::new(self.config.id, self.members.effective());
        let is_newer = |removal: Removal| self.members.index() > removal.known;
        if self.removed.is_some_and(is_newer) && self.members().contains(self.config.id) {
            self.removed = None;
        }
        let next = self.log.last() + 1;
        let now = self.now;
        if let RoleState::Leader(leader) = &mut self.role {
            leader.adopt(&self.roster, next, now);
        }
    }

    /// Tells a node that asks for votes, and that the membership has left out, so.
    pub(super) fn tell_if_removed(&mut self, to: u64) {
        let index = self.members.index();
        let settled = index > 0 && index <= self.commit;
        if settled && !self.members.contains(to) {
            let message = Message::Removed { term: self.term, index };
            self.send(to, message);
        }
    }

    /// Somebody in `term` says that the committed membership at `index` leaves this node out.
    pub(super) fn on_removed(&mut self, term: u64, index: u64) {
        // This node may know better: it may have been added again since. It does not where it
        // holds the entry that leaves it out, and could not know that it is committed.
        let known = self.members.index();
        let is_member = self.members().contains(self.config.id);
        let knows_better = index < known || (index == known && is_member);
        if knows_better || self.removed.is_some_and(|removal| removal.index >= index) {
            return;
        }
        if matches!(self.role, RoleState::Leader(_)) {
            // Its log holds all that was committed up to its term, so only a later leader can have
            // left it out; and that one leads now.
            if term <= self.term {
                return;
            }
            self.become_follower(term, None);
        }
        self.removed = Some(Removal { index, known });
        self.out.push_back(super::Output::Removed { index });
        self.role = RoleState::Follower;
    }

    /// Whether this node may ask for votes.
    pub(super) fn may_campaign(&self) -> bool {
        let may_vote = self.removed.is_none() && self.members.may_vote(self.config.id);
        may_vote && !self.is_recovering()
    }
}
