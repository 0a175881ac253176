//! Elections: who leads a term.
//!
//! Source: Raft §5.2, §5.4.1; PreVote and leader stickiness: thesis §9.6, §4.2.3.

use super::io::Output;
use super::roster::OWN;
use super::votes::{Ballot, Votes};
use super::{Core, RoleState};
use crate::message::{Message, VoteReply, VoteRequest};
use crate::types::{HardState, MAX_INDEX, MAX_TERM};

/// The time of an election that was put off.
const HELD: u64 = u64::MAX;

impl Core {
    /// Draws the time of the next election. Where elections repeat without a leader, round trips
    /// or disks are slower than the wait, so each candidacy after the first doubles it.
    pub(super) fn reset_election_timer(&mut self) {
        self.awaits_nodes = false;
        let factor = self.election_backoff();
        let shortest = self.timing.min_election.saturating_mul(factor);
        let longest = self.timing.max_election.saturating_mul(factor);
        self.election_at = self.now.saturating_add(self.rng.between(shortest, longest));
    }

    /// Whether an election is due at `now`, in the caller's time.
    pub(crate) fn is_election_due(&self, now: u64) -> bool {
        let waits = !self.quiescence.quiesced && self.halted.is_none();
        let is_due = self.clock.to_caller(self.election_at) <= now;
        waits && is_due && !matches!(self.role, RoleState::Leader(_))
    }

    /// Puts the next election off until [`release_election`](Self::release_election), or until
    /// something else sets the timer anew.
    pub(crate) fn hold_election(&mut self) {
        self.election_at = HELD;
    }

    /// Makes an election due that was put off. Returns whether there is one.
    pub(crate) fn release_election(&mut self) -> bool {
        let is_held = self.election_at == HELD;
        if is_held {
            self.election_at = self.now;
        }
        is_held && self.is_election_due(self.clock.to_caller(self.now))
    }

    /// Whether an election of this node is under way: from the first question to the commit of
    /// the first entry.
    pub(crate) fn is_campaigning(&self) -> bool {
        match &self.role {
            _ if self.halted.is_some() => false,
            RoleState::Follower => false,
            RoleState::PreCandidate(_) | RoleState::Candidate => true,
            RoleState::Leader(leader) => self.commit < leader.first_own,
        }
    }

    /// The factor by which waits are stretched now, from 1 to `max_backoff`.
    pub(super) fn election_backoff(&self) -> u64 {
        let doublings = self.candidacies.saturating_sub(1).min(u64::BITS - 1);
        (1 << doublings).min(self.timing.max_backoff)
    }

    pub(super) fn on_tick(&mut self) {
        self.tick_forwarded();
        match &self.role {
            _ if self.quiescence.quiesced => {}
            RoleState::Leader(_) => self.on_leader_tick(),
            _ if self.now >= self.election_at => self.on_election_timeout(),
            _ => {}
        }
    }

    pub(super) fn on_campaign(&mut self) {
        if !matches!(self.role, RoleState::Leader(_)) {
            self.on_election_timeout();
        }
    }

    fn on_election_timeout(&mut self) {
        if self.has_promised() {
            // It has just been started, or an operator wants it to campaign.
            self.election_at = self.election_at.max(self.promised_until);
            return;
        }
        self.reset_election_timer();
        self.await_nodes();
        self.leader = None;
        self.requeue_forwarded();
        if !self.may_campaign() {
            self.role = RoleState::Follower;
            self.look_for_leader();
            return;
        }
        // A write that waits for room is no sign of a disk that hangs.
        let silent = self.storage.silent_since().filter(|_| !self.is_short_of_room());
        let disk_silent = silent.map_or(0, |at| self.now.saturating_sub(at));
        let disk_stalled = disk_silent >= self.timing.disk_stall;
        if self.storage.hard_pending().is_some() {
            // A further term would only queue behind the write of this one.
            if disk_stalled && matches!(self.role, RoleState::Candidate) {
                self.role = RoleState::Follower;
            }
            self.ask_again();
            return;
        }
        // A slow disk makes a slow leader, so nodes with faster disks may go first, once.
        let yields = disk_silent >= self.timing.min_election && !self.yielded;
        let Some(question) = self.vote_request() else {
            self.role = RoleState::Follower;
            return;
        };
        if disk_stalled || (yields && !self.roster.is_sole_voter()) {
            self.yielded = true;
            self.role = RoleState::Follower;
            return;
        }
        self.role = RoleState::PreCandidate(Votes::with_own());
        if self.roster.has_won(OWN) {
            self.become_candidate(false);
            return;
        }
        self.ask(u64::MAX, &Message::PreVote(question));
    }

    /// The leader hands over to this node: it campaigns at once, and its voters need not wait
    /// until they miss the leader. Source: thesis §3.10.
    pub(super) fn on_timeout_now(&mut self, from: u64) {
        let asked = self.leader == Some(from) && matches!(self.role, RoleState::Follower);
        if asked && self.may_campaign() && self.storage.hard_pending().is_none() {
            self.become_candidate(true);
        }
    }

    fn become_candidate(&mut self, transfer: bool) {
        let Some(question) = self.vote_request() else { return };
        let question = VoteRequest { transfer, ..question };
        self.yielded = false;
        self.candidacies = self.candidacies.saturating_add(1);
        self.reset_election_timer();
        self.term += 1;
        self.vote = Some(self.config.id);
        self.leader = None;
        self.requeue_forwarded();
        self.contact = None;
        self.role = RoleState::Candidate;
        self.new_term_begins();
        self.ballot = Some(Ballot { votes: Votes::default(), asked_at: self.now });
        self.ask(u64::MAX, &Message::Vote(question));
    }

    /// The own vote is worth something only once it cannot be forgotten.
    pub(super) fn count_own_vote(&mut self) {
        if self.storage.hard_pending().is_some() {
            return;
        }
        if let Some(ballot) = &mut self.ballot {
            ballot.votes.granted |= OWN;
            self.count_votes();
        }
    }

    /// What this node claims when it asks for votes in the next term. `None`: it must not ask.
    ///
    /// Only what is durable is claimed, because the question does not wait for the write of the
    /// own term and vote. If the node crashes before that write is done, it may ask in the same
    /// term again, and votes that its earlier life was given then count for it: its log must
    /// still be as up to date as those voters were told.
    fn vote_request(&self) -> Option<VoteRequest> {
        let last_index = self.storage.durable();
        // None while a received snapshot is being written: the log begins beyond what is durable.
        let last_term = self.log.term_at(last_index)?;
        // At the end of its range a node can lead no further.
        if self.term >= MAX_TERM || self.log.last() >= MAX_INDEX {
            return None;
        }
        Some(VoteRequest { term: self.term + 1, last_index, last_term, transfer: false })
    }

    /// Asks the voters in the places that `wanted` has set. Nothing is promised by asking, so it
    /// does not wait for the own term and vote to be durable.
    fn ask(&mut self, wanted: u64, message: &Message) {
        let wanted = wanted & self.roster.voters();
        for (place, voter) in self.roster.others.iter().enumerate() {
            if wanted & (1 << place) != 0 {
                let message = message.clone();
                self.out.push_back(Output::Send { to: *voter, message });
            }
        }
    }

    /// Asks those again who have not answered in the current term.
    fn ask_again(&mut self) {
        let Some(ballot) = self.ballot else { return };
        if let Some(question) = self.vote_request() {
            let question = VoteRequest { term: self.term, ..question };
            self.ask(!ballot.votes.answered(), &Message::Vote(question));
        }
    }

    /// Writes the hard state of a term that has just begun here, and forgets what was known of
    /// the last one's leader.
    pub(super) fn new_term_begins(&mut self) {
        self.drop_what_waits_for_room();
        self.storage.set_hard(HardState { term: self.term, vote: self.vote });
        // Every leader's log holds what is committed; beyond that nothing is known of this one's.
        self.verified = self.commit;
        self.ack = super::Ack::default();
        self.ballot = None;
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
        if leader.is_some() {
            self.ballot = None;
        }
        if self.leader != leader {
            self.leader = leader;
            self.requeue_forwarded();
        }
        if !was_follower {
            self.reset_election_timer();
        }
    }

    /// Whether this node has reason to believe that a leader is at work, and so must not help
    /// to replace it.
    fn is_led(&self) -> bool {
        match self.role {
            RoleState::Leader(_) => true,
            _ => {
                let fresh = |at: u64| self.now < at.saturating_add(self.timing.min_election);
                self.has_promised() || self.leader.is_some() && self.contact.is_some_and(fresh)
            }
        }
    }

    /// Whether the candidate's log is no worse than this one up to `last`.
    ///
    /// Source: Raft §5.4.1.
    fn is_up_to_date(&self, question: &VoteRequest, last: u64) -> bool {
        let last_term = self.log.term_at(last).unwrap_or(self.log.last_term());
        (question.last_term, question.last_index) >= (last_term, last)
    }

    pub(super) fn on_pre_vote(&mut self, from: u64, question: VoteRequest) {
        let is_free = question.term > self.term && !self.is_led() && !self.is_recovering();
        // What the vote itself would forget does not count.
        let last = self.last_kept_by_a_vote();
        let granted = is_free && self.is_up_to_date(&question, last);
        let term = if granted { question.term } else { self.term };
        // It promises nothing, so it does not wait for a write.
        let message = Message::PreVoteReply(VoteReply { term, granted });
        self.out.push_back(Output::Send { to: from, message });
        // Of two that ask at the same time, the one that has less to claim, or the greater id,
        // lets the other go first: else both become candidates and split the votes, again and
        // again where a round trip is longer than the timeouts differ. Only once, in case the
        // other one cannot win.
        let asks_too =
            matches!(self.role, RoleState::PreCandidate(_)) && question.term == self.term + 1;
        let claims = |question: &VoteRequest| (question.last_term, question.last_index);
        let goes_first = self
            .vote_request()
            .is_some_and(|own| (claims(&question), self.config.id) > (claims(&own), from));
        if granted && asks_too && goes_first && !self.yielded {
            self.yielded = true;
            self.role = RoleState::Follower;
            self.reset_election_timer();
        }
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
        let Some(place) = self.roster.place(from) else { return };
        if let RoleState::PreCandidate(votes) = &mut self.role {
            votes.note(place, reply.granted);
            self.count_pre_votes();
        }
    }

    pub(super) fn on_vote(&mut self, from: u64, question: VoteRequest) {
        if question.term < self.term {
            self.send(from, Message::VoteReply(VoteReply { term: self.term, granted: false }));
            return;
        }
        // Also in the own term: that may have come from somebody who does not lead.
        if self.has_promised() && !question.transfer {
            return;
        }
        if question.term > self.term {
            if self.is_led() && !question.transfer {
                return;
            }
            self.become_follower(question.term, None);
            self.candidacies = self.candidacies.saturating_add(1);
        }
        let free = self.vote.is_none_or(|to| to == from) && !self.is_recovering();
        let is_follower = matches!(self.role, RoleState::Follower);
        let granted = is_follower && free && self.is_up_to_date(&question, self.log.last());
        if granted {
            if self.vote != Some(from) {
                self.vote = Some(from);
                self.storage.set_hard(HardState { term: self.term, vote: self.vote });
            }
            self.reset_election_timer();
        }
        self.send(from, Message::VoteReply(VoteReply { term: self.term, granted }));
    }

    pub(super) fn on_vote_reply(&mut self, from: u64, reply: VoteReply) {
        if reply.term != self.term {
            return;
        }
        let Some(place) = self.roster.place(from) else { return };
        if let Some(ballot) = &mut self.ballot {
            ballot.votes.note(place, reply.granted);
            self.count_votes();
        }
    }

    fn count_pre_votes(&mut self) {
        let RoleState::PreCandidate(votes) = self.role else { return };
        if self.roster.has_won(votes.granted) {
            self.become_candidate(false);
        } else if self.roster.is_lost(votes.refused) {
            // Wait for another leader instead of for the rest of the answers.
            self.role = RoleState::Follower;
        }
    }

    /// Votes count for as long as the term lasts, also when the next pre-vote has begun: where a
    /// round trip is longer than the election timeout they always come so late.
    fn count_votes(&mut self) {
        let Some(Ballot { votes, asked_at }) = self.ballot else { return };
        // The others alone may be a majority. But a leader whose own term and vote are not
        // durable would forget them with a crash.
        if votes.has_own() && self.roster.has_won(votes.granted) && self.leader.is_none() {
            // Used up: a leader that steps down never leads the same term a second time.
            self.ballot = None;
            self.become_leader(self.now.saturating_sub(asked_at));
        } else if self.roster.is_lost(votes.refused) && matches!(self.role, RoleState::Candidate) {
            self.role = RoleState::Follower;
        }
    }
}
