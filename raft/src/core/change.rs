//! Changes of the membership, as the leader carries them out.
//!
//! A change is one entry after the other, each appended when the one before is committed: the new
//! voters as learners; when they have caught up, a joint membership or, where one voter differs,
//! the target itself; and after a joint membership what it ends in. The last step needs no change
//! under way: whoever leads takes it, also after a failover. Source: Raft §6, thesis §4.2, §4.3.

use bytes::Bytes;

use super::io::Output;
use super::leader::{Leader, Pending, Transfer};
use super::members::Removal;
use super::peer::Peer;
use super::roster::{OWN, Roster};
use super::{Core, RoleState};
use crate::codec;
use crate::error::ChangeRejected;
use crate::membership::{Change, Membership};
use crate::message::Message;
use crate::types::EntryKind;

/// The next step of a change.
enum Step {
    Wait,
    Append(Membership),
    Done,
    Reject(ChangeRejected),
}

impl Core {
    pub(super) fn on_change(&mut self, token: u64, change: Change) {
        let leader = self.leader;
        let refusal = match &self.role {
            _ if !self.config.dynamic => Some(ChangeRejected::Fixed),
            RoleState::Leader(leads) if leads.change.is_some() => Some(ChangeRejected::InProgress),
            RoleState::Leader(_) => change.check(self.members.effective()).err(),
            _ => Some(ChangeRejected::NotLeader { leader }),
        };
        if let Some(reason) = refusal {
            self.out.push_back(Output::ChangeRejected { token, reason });
            return;
        }
        if let RoleState::Leader(leader) = &mut self.role {
            leader.change =
                Some(Pending { token, change, target: None, begun: false, round: None });
        }
    }

    /// The caller waits no more. What has been appended stays, and a joint membership is left.
    pub(super) fn on_withdraw_change(&mut self, token: u64) {
        if let RoleState::Leader(leader) = &mut self.role {
            leader.change.take_if(|pending| pending.token == token);
        }
    }

    /// Takes the next step of a change, when the last one is committed.
    pub(super) fn advance_change(&mut self) {
        let index = self.members.index();
        let RoleState::Leader(leader) = &self.role else { return };
        // A leader that has committed nothing of its own does not know which membership its
        // predecessors committed: a change on top of another one could elect two leaders.
        if leader.change.is_none() && index <= leader.settled {
            return;
        }
        if index > self.commit || self.commit < leader.first_own {
            return;
        }
        if self.members.effective().is_joint() {
            let after = self.members.effective().after_joint();
            return self.append_members(&after);
        }
        self.settle_members();
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(mut pending) = leader.change.take() else { return };
        let token = pending.token;
        match self.next_step(&mut pending) {
            Step::Done => self.out.push_back(Output::Changed { token, index }),
            Step::Reject(reason) => {
                self.out.push_back(Output::ChangeRejected { token, reason });
            }
            Step::Append(next) if !self.could_commit(&next) => {
                if let RoleState::Leader(leader) = &mut self.role {
                    leader.change = Some(pending);
                }
            }
            step => {
                pending.begun |= matches!(step, Step::Append(_));
                if let RoleState::Leader(leader) = &mut self.role {
                    leader.change = Some(pending);
                }
                if let Step::Append(members) = step {
                    self.append_members(&members);
                }
            }
        }
    }

    fn next_step(&self, pending: &mut Pending) -> Step {
        let current = self.members.effective();
        if pending.target.is_none() {
            match pending.change.apply(current) {
                Ok(target) => pending.target = Some(target),
                Err(reason) => return Step::Reject(reason),
            }
        }
        let Some(target) = &pending.target else { return Step::Wait };
        if **current == *target {
            return Step::Done;
        }
        let RoleState::Leader(leader) = &self.role else { return Step::Wait };
        let learning: Vec<u64> =
            target.voters().iter().copied().filter(|id| !current.is_voter(*id)).collect();
        if learning.iter().any(|id| !current.contains(*id)) {
            return Step::Append(current.with_learners_of(target));
        }
        if !learning.is_empty() {
            let (end, began) = *pending.round.get_or_insert((self.log.last(), self.now));
            if !learning.iter().all(|id| leader.has_matched(*id, end)) {
                return Step::Wait;
            }
            // The last round was short: what is missing now takes no longer.
            if self.now.saturating_sub(began) > self.timing.max_election {
                pending.round = Some((self.log.last(), self.now));
                return Step::Wait;
            }
        }
        if current.voters_that_differ(target) > 1 {
            Step::Append(current.joint_to(target))
        } else {
            Step::Append(target.clone())
        }
    }

    /// Whether a majority of each half of `next` has answered this leader within the longest
    /// election timeout. A membership counts from its entry on: without such a majority the entry
    /// that brings it would never be committed, nor any after it.
    fn could_commit(&self, next: &Membership) -> bool {
        let RoleState::Leader(leader) = &self.role else { return false };
        let roster = Roster::new(self.config.id, next);
        let answers = |id: u64| {
            let peer = leader.peers.iter().find(|peer| peer.id == id);
            peer.is_some_and(|peer| peer.has_answered_since(self.now, self.timing.max_election))
        };
        let places = (0..).zip(&roster.others).filter(|(_, id)| answers(**id));
        roster.has_won(places.fold(OWN, |set, (place, _): (u32, _)| set | 1 << place))
    }

    fn append_members(&mut self, members: &Membership) {
        let data: Bytes = codec::encode_members(members);
        self.append(EntryKind::Config, data);
        self.adopt_members();
    }

    /// The effective membership is committed, and not joint. Those that it left out hear of it,
    /// and a leader that is among them hands over.
    fn settle_members(&mut self) {
        let index = self.members.index();
        let RoleState::Leader(leader) = &mut self.role else { return };
        if leader.settled >= index {
            return;
        }
        leader.settled = index;
        let mut left = std::mem::take(&mut leader.left);
        left.retain(|id| !self.members.contains(*id));
        for to in left {
            self.send(to, Message::Removed { term: self.term, index });
        }
        if self.roster.votes() {
            return;
        }
        let (now, within) = (self.now, self.timing.max_election);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let best = leader.best(now, within);
        if let Some(pending) = leader
            .change
            .take_if(|pending| pending.target.as_ref() == Some(&**self.members.effective()))
        {
            self.out.push_back(Output::Changed { token: pending.token, index });
        }
        if let Some(to) = best {
            self.send(to, Message::TimeoutNow { term: self.term });
        }
        self.become_follower(self.term, None);
        if !self.members.contains(self.config.id) {
            self.removed = Some(Removal::known(index));
            self.out.push_back(Output::Removed { index });
        }
    }

    /// Hands leadership over to `to`, or to the best voter.
    pub(super) fn on_transfer(&mut self, to: Option<u64>) {
        let (now, within) = (self.now, self.timing.max_election);
        let until = now.saturating_add(within);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let to = to.or_else(|| leader.best(now, within));
        let votes = |id: &u64| {
            self.roster.place(*id).is_some_and(|place| self.roster.voters() & (1 << place) != 0)
        };
        if let Some(to) = to.filter(votes) {
            leader.transfer = Some(Transfer { to, until, told: false });
        }
    }

    /// Tells the next leader to campaign, once its log is complete.
    pub(super) fn advance_transfer(&mut self) {
        let (last, term) = (self.log.last(), self.term);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = leader.transfer else { return };
        if !transfer.told && leader.has_matched(transfer.to, last) {
            leader.transfer = Some(Transfer { told: true, ..transfer });
            leader.lease_given_up = true;
            let message = Message::TimeoutNow { term };
            self.out.push_back(Output::Send { to: transfer.to, message });
        }
    }

    /// What becomes of the change of a leader that leads no more.
    pub(super) fn give_up_change(&mut self, pending: Option<Pending>) {
        let Some(Pending { token, begun, .. }) = pending else { return };
        self.out.push_back(if begun {
            Output::ChangeLost { token }
        } else {
            let reason = ChangeRejected::NotLeader { leader: None };
            Output::ChangeRejected { token, reason }
        });
    }
}

impl Leader {
    /// Follows the members of `roster`: in its order, with what is known of those who stay. One
    /// that comes, also one that was a member before in this term, begins a session of its own.
    pub(super) fn adopt(&mut self, roster: &Roster, next: u64, now: u64) {
        let now_known = Vec::with_capacity(roster.others.len());
        let mut before = std::mem::replace(&mut self.peers, now_known);
        for (place, id) in roster.others.iter().enumerate() {
            let known = before.iter().position(|peer| peer.id == *id);
            let mut peer = match known {
                Some(at) => before.swap_remove(at),
                None => {
                    let session = self.next_id();
                    Peer::new(*id, next, session, self.round, now)
                }
            };
            peer.is_voter = roster.voters() & (1 << place) != 0;
            self.peers.push(peer);
        }
        self.left.extend(before.into_iter().map(|peer| peer.id));
    }

    fn has_matched(&self, id: u64, index: u64) -> bool {
        let peer = self.peers.iter().find(|peer| peer.id == id);
        peer.is_some_and(|peer| !peer.lost && peer.matched >= index)
    }

    /// The voter whose log is the longest, of those that were heard less than `within` before `now`
    /// if there are any: a dead one may have everything.
    pub(super) fn best(&self, now: u64, within: u64) -> Option<u64> {
        let voters = self.peers.iter().filter(|peer| peer.is_voter && !peer.lost);
        let fitness = |peer: &&Peer| (peer.has_answered_since(now, within), peer.matched);
        voters.max_by_key(fitness).map(|peer| peer.id)
    }
}
