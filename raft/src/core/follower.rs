//! The follower's side of replication, and the dispatch of messages.
//!
//! Source: Raft §5.3, figure 2 ("AppendEntries RPC").

use super::io::Persist;
use super::{Core, RoleState};
use crate::message::{
    AppendAck, AppendHead, AppendReject, Heartbeat, HeartbeatReply, LogLost, Message,
};
use crate::types::{Entry, HaltReason, MAX_TERM_STEP};

/// What a follower owes its leader.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ack {
    /// The latest session that the leader used.
    session: u64,
    /// The index last acknowledged as durable.
    acked: u64,
    /// An acknowledgement is due with the next flush.
    due: bool,
}

impl Ack {
    /// Acknowledge with the next flush, news or not.
    pub(super) fn due(&mut self) {
        self.due = self.session > 0;
    }

    /// Its message has been sent.
    fn sent(&mut self, matched: u64) {
        self.acked = self.acked.max(matched);
    }

    /// More than what was acknowledged is durable: say so.
    pub(super) fn due_if_durable(&mut self, matched: u64) {
        self.due |= matched > self.acked && self.session > 0;
    }
}

impl Core {
    pub(super) fn on_message(&mut self, from: u64, message: Message) {
        let ahead = message.term() > self.term.saturating_add(MAX_TERM_STEP);
        // Whoever leads or wants to may be a member that this node has not heard of yet; only a
        // member answers, or the leader that this node follows. Source: thesis §4.1.
        let is_known = self.members.contains(from) || self.leader == Some(from);
        let is_stranger = !message.may_come_from_stranger() && !is_known;
        if ahead || is_stranger || self.gate.message(from, &message).is_err() {
            self.rejected_inputs += 1;
            return;
        }
        self.stir_by(from, &message);
        if matches!(message, Message::PreVote(_) | Message::Vote(_)) {
            self.tell_if_removed(from);
        }
        // These do not take part in the order of terms by themselves.
        match message {
            Message::PreVote(question) => return self.on_pre_vote(from, question),
            Message::PreVoteReply(reply) => return self.on_pre_vote_reply(from, reply),
            Message::Vote(question) => return self.on_vote(from, question),
            Message::Removed { term, index } => return self.on_removed(term, index),
            _ => {}
        }
        let term = message.term();
        if term > self.term {
            self.become_follower(term, None);
        }
        if term < self.term {
            if message.is_of_leader() {
                self.send(from, Message::Stale { term: self.term });
            } else if let Message::ReadRequest(request) = message {
                self.on_read_request(from, request);
            }
            return;
        }
        match message {
            Message::VoteReply(reply) => self.on_vote_reply(from, reply),
            Message::Append { head, entries } => self.on_append(from, head, entries),
            Message::AppendAck(ack) => self.on_append_ack(from, ack),
            Message::AppendReject(reject) => self.on_append_reject(from, reject),
            Message::Heartbeat(beat) => self.on_heartbeat(from, beat),
            Message::Quiesce(quiesce) => self.on_quiesce(from, quiesce),
            Message::HeartbeatReply(reply) => self.on_heartbeat_reply(from, reply),
            Message::ReadRequest(request) => self.on_read_request(from, request),
            Message::ReadReply(reply) => self.on_read_reply(reply),
            Message::LogLost(lost) => self.on_log_lost(from, lost),
            Message::TimeoutNow { .. } => self.on_timeout_now(from),
            Message::Removed { .. }
            | Message::PreVote(_)
            | Message::PreVoteReply(_)
            | Message::Vote(_)
            | Message::Node(_)
            | Message::Stale { .. } => {}
        }
    }

    /// A leader of the current term spoke. Returns whether it is to be believed.
    pub(super) fn hear_leader(&mut self, from: u64) -> bool {
        let other = self.leader.is_some_and(|leader| leader != from);
        if other || matches!(self.role, RoleState::Leader(_)) {
            // Two leaders of one term: one of them has forgotten its vote. Following the first
            // keeps this node consistent with what it has already acknowledged.
            return false;
        }
        if !matches!(self.role, RoleState::Follower) || self.leader.is_none() {
            self.become_follower(self.term, Some(from));
        }
        self.contact = Some(self.now);
        self.promise_no_vote();
        (self.candidacies, self.yielded) = (0, false);
        self.reset_election_timer();
        true
    }

    pub(super) fn on_heartbeat(&mut self, from: u64, beat: Heartbeat) {
        if !self.hear_leader(from) {
            return;
        }
        self.commit_to(beat.commit.min(self.verified));
        let Heartbeat { term, round, .. } = beat;
        let received = self.verified;
        self.send(from, Message::HeartbeatReply(HeartbeatReply { term, round, received }));
    }

    /// The leader says that this node has acknowledged an entry which its log lacks. Then its votes
    /// may be gone too, so it must neither vote nor be counted.
    fn on_log_lost(&mut self, from: u64, lost: LogLost) {
        // Whoever is being repaired knows, and its leader will.
        let is_known = self.is_recovering() || lost.matched < self.log.base();
        if !self.hear_leader(from) || is_known {
            return;
        }
        if self.log.term_at(lost.matched) != Some(lost.matched_term) {
            self.halt(HaltReason::LogLost);
        }
    }

    fn on_append(&mut self, from: u64, head: AppendHead, mut entries: Vec<Entry>) {
        if !self.hear_leader(from) {
            return;
        }
        self.ack.session = self.ack.session.max(head.session);
        let (mut prev_index, mut prev_term) = (head.prev_index, head.prev_term);
        let base = self.log.base();
        if prev_index < base {
            // The snapshot covers these: they are committed, hence the same everywhere.
            let covered = (base - prev_index).min(entries.len() as u64);
            entries.drain(..covered as usize);
            if entries.is_empty() {
                self.ack.due = true;
                return;
            }
            (prev_index, prev_term) = (base, self.log.term_at(base).unwrap_or(prev_term));
        }
        if self.log.term_at(prev_index) != Some(prev_term) {
            self.reject(from, &head);
            return;
        }
        let upto = prev_index + entries.len() as u64;
        if upto > self.log.last() && self.holds_enough() {
            // As if it had been lost on its way: the leader sends it again, at its own pace. The
            // answer to a probe tells the leader that its entries were not taken.
            self.ack.due |= head.probe;
            return;
        }
        if !self.store(entries) {
            return;
        }
        self.verified = self.verified.max(upto);
        self.commit_to(head.commit.min(self.verified));
        // Nothing to wait for the disk for, or the leader waits: answer now.
        self.ack.due |= head.probe || upto <= self.storage.durable();
    }

    fn reject(&mut self, from: u64, head: &AppendHead) {
        let hint_index = self.log.last_at_most(head.prev_index, head.prev_term);
        // What is committed agrees with every leader, so no hint below it helps anybody.
        let hint_index = hint_index.unwrap_or(self.log.base()).max(self.commit);
        let reject = AppendReject {
            term: self.term,
            session: head.session,
            prev_index: head.prev_index,
            hint_index,
            hint_term: self.log.term_at(hint_index).unwrap_or(0),
            is_recovering: self.is_recovering(),
        };
        self.send(from, Message::AppendReject(reject));
    }

    /// Puts the leader's entries, which follow on one that is in the log, into the log. Returns
    /// whether they are all there.
    fn store(&mut self, entries: Vec<Entry>) -> bool {
        let mut fresh = entries.into_iter().peekable();
        while let Some(entry) = fresh.peek() {
            match self.log.term_at(entry.index) {
                Some(term) if term == entry.term => {
                    fresh.next();
                }
                Some(_) => {
                    let from = entry.index;
                    if !self.truncate(from) {
                        return false;
                    }
                    break;
                }
                None => break,
            }
        }
        for entry in fresh {
            if entry.term < self.log.last_term() {
                self.adopt_members();
                return false;
            }
            self.push_entry(entry);
        }
        self.adopt_members();
        true
    }

    /// Drops `from` and what follows. Returns false, and halts, if that is committed.
    pub(super) fn truncate(&mut self, from: u64) -> bool {
        if from <= self.commit {
            self.halt(HaltReason::Inconsistent);
            return false;
        }
        self.log.truncate(from);
        self.storage.truncated(from);
        self.entrusted = self.entrusted.min(from - 1);
        self.truncate_members(from);
        true
    }

    /// What this follower says to whom when a write that it asked for becomes durable, if that is
    /// all that comes of it: then whoever wrote can say so without asking the core again. It is
    /// true whatever happens meanwhile. Within the term of the message the entries stay; whoever
    /// leads a later one was elected by somebody who had them when it voted, or without this node.
    /// Where the room is short a vote may forget entries, so nothing is entrusted to their writes.
    /// To be asked between the flush that asks for the write and the next step.
    pub(crate) fn ack_with(&mut self, persist: &Persist) -> Option<(u64, AppendAck)> {
        let (term, session) = self.sent_ack_is_enough()?;
        let leader = self.leader.filter(|_| !self.is_short_of_room())?;
        let Persist { snapshot, truncate_from, release, range, repaired, .. } = persist;
        let cuts = snapshot.is_some() || truncate_from.is_some() || release.is_some() || *repaired;
        let matched = range.end.saturating_sub(1).min(self.verified);
        let is_news = !range.is_empty() && matched > self.ack.acked;
        if !is_news || cuts {
            return None;
        }
        self.entrusted = self.entrusted.max(matched);
        Some((leader, AppendAck { term, session, matched, received: self.verified }))
    }

    /// The term and the session in which nothing is left to do when a write of entries becomes
    /// durable that was acknowledged in them, so that it is enough to hear of it by and by.
    pub(super) fn sent_ack_is_enough(&self) -> Option<(u64, u64)> {
        let follows = matches!(self.role, RoleState::Follower)
            && self.leader.is_some()
            && self.ack.session > 0;
        let has_duties = self.halted.is_some()
            || self.quiescence.quiesced
            || self.is_recovering()
            || self.installing.is_some()
            || !self.held.is_empty()
            || self.storage.hard_pending().is_some()
            || self.storage.writes() >= self.config.max_persists;
        (follows && !has_duties).then_some((self.term, self.ack.session))
    }

    /// The message of [`ack_with`](Self::ack_with) has been sent, and its write is durable.
    pub(crate) fn acknowledged(&mut self, ack: &AppendAck) {
        if (ack.term, ack.session) == (self.term, self.ack.session) {
            self.ack.sent(ack.matched);
        }
    }

    /// Tells the leader what has arrived and what of it is durable.
    pub(super) fn flush_ack(&mut self) {
        let Some(leader) = self.leader.filter(|_| self.ack.due) else { return };
        self.ack.due = false;
        if leader == self.config.id {
            return;
        }
        let ack = AppendAck {
            term: self.term,
            session: self.ack.session,
            matched: self.storage.durable().min(self.verified),
            received: self.verified,
        };
        self.ack.sent(ack.matched);
        self.send(leader, Message::AppendAck(ack));
    }
}
