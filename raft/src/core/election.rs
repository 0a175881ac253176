//! Elections: who leads a term.
//!
//! Source: Raft §5.2, §5.4.1; PreVote and leader stickiness: thesis §9.6, §4.2.3.

use super::{Core, Mutant, RoleState};
use crate::message::{Message, VoteReply, VoteRequest};
use crate::types::HardState;

/// The answers to one round of an election, as sets of places in the list of other voters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Votes {
    own: bool,
    granted: u16,
    refused: u16,
}

impl Votes {
    fn granted(self) -> usize {
        self.granted.count_ones() as usize + usize::from(self.own)
    }

    fn refused(self) -> usize {
        self.refused.count_ones() as usize
    }

    fn note(&mut self, place: usize, granted: bool) {
        let bit = 1 << place;
        if granted {
            self.granted |= bit;
        } else {
            self.refused |= bit;
        }
    }
}

impl Core {
    /// Draws the time of the next election.
    pub(super) fn rest_before_election(&mut self) {
        let wait = if self.others.is_empty() {
            0
        } else {
            self.rng.between(self.timing.election_min, self.timing.election_max)
        };
        self.election_at = self.now.saturating_add(wait);
    }

    pub(super) fn on_tick(&mut self) {
        self.expire_forwarded();
        match &self.role {
            RoleState::Leader(_) => self.on_leader_tick(),
            _ if self.now >= self.election_at => self.on_election_timeout(),
            _ => {}
        }
    }

    fn on_election_timeout(&mut self) {
        self.rest_before_election();
        self.leader = None;
        self.refuse_forwarded(crate::ReadRefusal::NoLeader);
        let stalled = |at: u64| self.now.saturating_sub(at) >= self.timing.election_min;
        if self.storage.oldest().is_some_and(stalled) {
            // It could not make its own vote durable, and as a leader it would be slow: let a
            // node with a healthy disk go first.
            self.role = RoleState::Follower;
            return;
        }
        self.role = RoleState::PreCandidate(Votes { own: true, ..Votes::default() });
        if self.majority() <= 1 {
            self.become_candidate();
            return;
        }
        let question = self.vote_request(self.term + 1);
        self.ask_all(Message::PreVote(question));
    }

    fn become_candidate(&mut self) {
        self.rest_before_election();
        self.term += 1;
        self.vote = Some(self.config.id);
        self.leader = None;
        self.contact = None;
        self.role = RoleState::Candidate(Votes::default());
        self.new_term_begins();
        let question = self.vote_request(self.term);
        self.ask_all(Message::Vote(question));
        if self.mutant(Mutant::VoteWithoutPersisting) {
            self.count_own_vote();
        }
    }

    /// The own vote is worth something only once it cannot be forgotten.
    pub(super) fn count_own_vote(&mut self) {
        let pending = self.storage.hard_pending().is_some();
        if pending && !self.mutant(Mutant::VoteWithoutPersisting) {
            return;
        }
        if let RoleState::Candidate(votes) = &mut self.role {
            votes.own = true;
            self.count_votes();
        }
    }

    fn vote_request(&self, term: u64) -> VoteRequest {
        VoteRequest { term, last_index: self.log.last(), last_term: self.log.last_term() }
    }

    fn ask_all(&mut self, message: Message) {
        for at in 0..self.others.len() {
            self.send(self.others[at], message.clone());
        }
    }

    /// Writes the hard state of a term that has just begun here, and forgets what was known of
    /// the last one's leader.
    pub(super) fn new_term_begins(&mut self) {
        self.storage.set_hard(HardState { term: self.term, vote: self.vote });
        // Every leader's log holds what is committed; beyond that nothing is known of this one's.
        self.verified = self.commit;
        self.ack = super::Ack::default();
    }

    /// Follows `leader` in `term`, which is not older than the current one.
    pub(super) fn become_follower(&mut self, term: u64, leader: Option<u64>) {
        debug_assert!(term >= self.term, "terms never fall");
        let was_follower = matches!(self.role, RoleState::Follower);
        let old = std::mem::replace(&mut self.role, RoleState::Follower);
        if let RoleState::Leader(old) = old {
            self.step_down(*old);
        }
        if term > self.term {
            self.term = term;
            self.vote = None;
            self.contact = None;
            self.new_term_begins();
        }
        if self.leader != leader {
            self.leader = leader;
            self.refuse_forwarded(crate::ReadRefusal::NoLeader);
        }
        if !was_follower {
            self.rest_before_election();
        }
    }

    /// Whether this node has reason to believe that a leader is at work, and so must not help
    /// to replace it.
    fn is_led(&self) -> bool {
        match self.role {
            RoleState::Leader(_) => true,
            _ => {
                self.leader.is_some()
                    && self.contact.is_some_and(|at| self.now < at + self.timing.election_min)
            }
        }
    }

    /// Source: Raft §5.4.1.
    fn is_up_to_date(&self, question: &VoteRequest) -> bool {
        self.mutant(Mutant::SkipUpToDateCheck)
            || (question.last_term, question.last_index) >= (self.log.last_term(), self.log.last())
    }

    pub(super) fn on_pre_vote(&mut self, from: u64, question: VoteRequest) {
        let granted = question.term > self.term && !self.is_led() && self.is_up_to_date(&question);
        let term = if granted { question.term } else { self.term };
        self.send(from, Message::PreVoteReply(VoteReply { term, granted }));
    }

    pub(super) fn on_pre_vote_reply(&mut self, from: u64, reply: VoteReply) {
        if !reply.granted && reply.term > self.term {
            self.become_follower(reply.term, None);
            return;
        }
        let asked = self.term + 1;
        if reply.granted && reply.term != asked {
            return;
        }
        let Some(place) = self.others.iter().position(|voter| *voter == from) else { return };
        if let RoleState::PreCandidate(votes) = &mut self.role {
            votes.note(place, reply.granted);
            self.count_votes();
        }
    }

    pub(super) fn on_vote(&mut self, from: u64, question: VoteRequest) {
        if question.term < self.term {
            self.send(from, Message::VoteReply(VoteReply { term: self.term, granted: false }));
            return;
        }
        if question.term > self.term {
            if self.is_led() {
                return;
            }
            self.become_follower(question.term, None);
        }
        let free = self.vote.is_none_or(|to| to == from) || self.mutant(Mutant::VoteTwice);
        let is_follower = matches!(self.role, RoleState::Follower);
        let granted = is_follower && free && self.is_up_to_date(&question);
        if granted {
            if self.vote != Some(from) {
                self.vote = Some(from);
                self.storage.set_hard(HardState { term: self.term, vote: self.vote });
            }
            self.rest_before_election();
        }
        self.send(from, Message::VoteReply(VoteReply { term: self.term, granted }));
    }

    pub(super) fn on_vote_reply(&mut self, from: u64, reply: VoteReply) {
        if reply.term != self.term {
            return;
        }
        let Some(place) = self.others.iter().position(|voter| *voter == from) else { return };
        if let RoleState::Candidate(votes) = &mut self.role {
            votes.note(place, reply.granted);
            self.count_votes();
        }
    }

    fn count_votes(&mut self) {
        let majority = self.majority();
        match self.role {
            RoleState::PreCandidate(votes) if votes.granted() >= majority => {
                self.become_candidate();
            }
            RoleState::Candidate(votes) if votes.granted() >= majority => self.become_leader(),
            RoleState::PreCandidate(votes) | RoleState::Candidate(votes)
                if votes.refused() >= majority =>
            {
                // Lost: wait for another leader instead of for the rest of the answers.
                self.role = RoleState::Follower;
            }
            _ => {}
        }
    }
}
