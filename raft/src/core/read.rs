//! Linearizable reads without writing: ReadIndex, or the leader's [lease](super::lease).
//!
//! A read waits for a round of heartbeats that began after it arrived. Rounds are counted by the
//! leader and never reused within a term, so an answer can only ever confirm reads that came
//! before its question. Source: Raft §8, thesis §6.4.

use std::collections::VecDeque;

use super::io::Output;
use super::{Core, RoleState};
use crate::error::ReadRejected;
use crate::message::{Message, ReadReply, ReadRequest};

/// Rounds that reads wait for at once; further reads share the next one. Ordinary heartbeats do
/// not count, or there would be no room where a round trip is longer than that many of them.
const MAX_ROUNDS: usize = 8;

/// Who asked for a read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Local { token: u64 },
    Peer { id: u64, nonce: u64, context: u64 },
}

/// A read that waits at the leader.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingRead {
    /// The round that confirms it; 0 until it has one.
    pub(super) round: u64,
    pub(super) index: u64,
    pub(super) origin: Origin,
}

/// Reads of this node that wait for the leader's answer.
#[derive(Debug)]
struct Asked {
    context: u64,
    tokens: Vec<u64>,
    /// Time at which the question is sent again. Every answer to it will do: each question was
    /// sent after the reads had arrived.
    due_at: u64,
}

/// Reads of a node that does not lead. They wait for a leader, and then for its answer, until
/// the caller withdraws them. All that come between two flushes share one question.
#[derive(Debug)]
pub(super) struct Forwarded {
    /// Different in each life of the node.
    nonce: u64,
    context: u64,
    /// Reads without a question: no leader is known, or they came since the last flush.
    unsent: Vec<u64>,
    /// Invariant: empty while no leader is known, and while this node leads.
    asked: VecDeque<Asked>,
    /// Invariant: the number of tokens in `unsent` and `asked`; at most `max_reads`.
    waiting: usize,
}

impl Forwarded {
    pub(super) fn new(nonce: u64) -> Self {
        Self { nonce, context: 0, unsent: Vec::new(), asked: VecDeque::new(), waiting: 0 }
    }

    /// A question whose answer is passed over: no read has its context.
    pub(super) fn question_of_nobody(&self, term: u64) -> ReadRequest {
        ReadRequest { term, nonce: self.nonce, context: 0 }
    }

    /// Whether no read waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.asked.iter().map(|asked| asked.due_at).min()
    }

    /// Forgets reads. A question that no read waits for any more is forgotten too: its answer
    /// will be passed over.
    fn withdraw(&mut self, is_withdrawn: impl Fn(u64) -> bool) {
        self.unsent.retain(|token| !is_withdrawn(*token));
        for asked in &mut self.asked {
            asked.tokens.retain(|token| !is_withdrawn(*token));
        }
        self.asked.retain(|asked| !asked.tokens.is_empty());
        let asked = self.asked.iter().map(|asked| asked.tokens.len());
        self.waiting = self.unsent.len() + asked.sum::<usize>();
    }
}

impl Core {
    pub(super) fn on_read(&mut self, token: u64) {
        if matches!(self.role, RoleState::Leader(_)) {
            self.take_read(Origin::Local { token });
        } else if self.forwarded.waiting >= self.config.max_reads {
            self.reject_read(token, ReadRejected::Busy);
        } else {
            self.forwarded.waiting += 1;
            self.forwarded.unsent.push(token);
        }
    }

    pub(super) fn on_read_request(&mut self, from: u64, request: ReadRequest) {
        let ReadRequest { nonce, context, .. } = request;
        let origin = Origin::Peer { id: from, nonce, context };
        if matches!(self.role, RoleState::Leader(_)) && self.members.contains(from) {
            self.take_read(origin);
        } else {
            self.reject_peer_read(from, nonce, context);
        }
    }

    pub(super) fn on_withdraw_reads(&mut self, mut tokens: Vec<u64>) {
        tokens.sort_unstable();
        let is_withdrawn = |token: u64| tokens.binary_search(&token).is_ok();
        if let RoleState::Leader(leader) = &mut self.role {
            let stays = |read: &PendingRead| match read.origin {
                Origin::Local { token } => !is_withdrawn(token),
                Origin::Peer { .. } => true,
            };
            leader.reads.retain(stays);
            // Reads without a round are all at the end.
            let unassigned = leader.reads.iter().rev().take_while(|read| read.round == 0);
            leader.unassigned = unassigned.count();
        }
        self.forwarded.withdraw(is_withdrawn);
    }

    fn take_read(&mut self, origin: Origin) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        if leader.reads.len() >= self.config.max_reads {
            match origin {
                Origin::Local { token } => self.reject_read(token, ReadRejected::Busy),
                Origin::Peer { id, nonce, context } => self.reject_peer_read(id, nonce, context),
            }
            return;
        }
        leader.reads.push_back(PendingRead { round: 0, index: 0, origin });
        leader.unassigned += 1;
    }

    /// Gives waiting reads a round, and answers those whose round a majority has confirmed.
    pub(super) fn flush_reads(&mut self) {
        if matches!(self.role, RoleState::Leader(_)) {
            // Reads that waited for a leader when this node became it.
            self.forwarded.waiting = 0;
            for token in std::mem::take(&mut self.forwarded.unsent) {
                self.take_read(Origin::Local { token });
            }
        }
        let commit = self.commit;
        let RoleState::Leader(leader) = &mut self.role else { return };
        if leader.reads.is_empty() {
            return;
        }
        // Until an entry of its own is committed, a leader does not know what its predecessors
        // committed.
        let knows = commit >= leader.first_own;
        let round = |place| leader.of(place, |peer| peer.round);
        let confirmed = self.roster.reached(u64::MAX, round);
        let has_lease = leader.has_lease(confirmed, self.now, self.timing.lease);
        // Nobody else leads now, and so nobody did since any of these reads arrived.
        let confirmed = if has_lease { u64::MAX } else { confirmed };
        while leader.read_rounds.front().is_some_and(|round| *round <= confirmed) {
            leader.read_rounds.pop_front();
        }
        let room = leader.read_rounds.len() < MAX_ROUNDS;
        let mut must_beat = false;
        if leader.unassigned > 0 && knows && room {
            let round = leader.round + 1;
            let first = leader.reads.len() - leader.unassigned;
            for read in leader.reads.range_mut(first..) {
                (read.round, read.index) = (round, commit);
            }
            leader.unassigned = 0;
            if confirmed < round {
                leader.read_rounds.push_back(round);
            }
            must_beat = round > leader.round && confirmed < round;
        }
        if has_lease && knows {
            self.lease_reads += leader.reads.len() as u64;
        }
        if must_beat {
            self.beat();
        }
        self.answer_reads(confirmed);
    }

    fn answer_reads(&mut self, confirmed: u64) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let mut told = 0;
        while let Some(read) = leader.reads.front().copied() {
            if read.round == 0 || read.round > confirmed {
                return;
            }
            leader.reads.pop_front();
            let (term, index) = (self.term, Some(read.index));
            match read.origin {
                Origin::Local { token } => {
                    self.out.push_back(Output::ReadReady { token, index: read.index });
                }
                Origin::Peer { id, nonce, context } => {
                    let reply = Message::ReadReply(ReadReply { term, nonce, context, index });
                    if told != id {
                        // The follower may not know yet that the index is committed.
                        told = id;
                        let beat = crate::message::Heartbeat {
                            term,
                            round: leader.round,
                            commit: self.commit,
                        };
                        self.out
                            .push_back(Output::Send { to: id, message: Message::Heartbeat(beat) });
                    }
                    self.out.push_back(Output::Send { to: id, message: reply });
                }
            }
        }
    }

    fn reject_read(&mut self, token: u64, reason: ReadRejected) {
        self.out.push_back(Output::ReadRejected { token, reason });
    }

    /// This node does not lead, or has no room.
    fn reject_peer_read(&mut self, to: u64, nonce: u64, context: u64) {
        let reply = ReadReply { term: self.term, nonce, context, index: None };
        self.send(to, Message::ReadReply(reply));
    }

    /// Reads of a leadership that has ended. Those of this node wait for the next leader.
    pub(super) fn hand_reads_back(&mut self, reads: VecDeque<PendingRead>) {
        for read in reads {
            match read.origin {
                Origin::Local { token } => {
                    self.forwarded.waiting += 1;
                    self.forwarded.unsent.push(token);
                }
                Origin::Peer { id, nonce, context } => self.reject_peer_read(id, nonce, context),
            }
        }
    }

    pub(super) fn flush_forwarded(&mut self) {
        if self.forwarded.unsent.is_empty() {
            return;
        }
        let Some(leader) = self.leader.filter(|id| *id != self.config.id) else { return };
        let tokens = std::mem::take(&mut self.forwarded.unsent);
        self.forwarded.context += 1;
        let (nonce, context) = (self.forwarded.nonce, self.forwarded.context);
        let due_at = self.now.saturating_add(self.timing.max_election);
        self.forwarded.asked.push_back(Asked { context, tokens, due_at });
        self.send(leader, Message::ReadRequest(ReadRequest { term: self.term, nonce, context }));
    }

    pub(super) fn on_read_reply(&mut self, reply: ReadReply) {
        if reply.nonce != self.forwarded.nonce {
            return;
        }
        // Whoever was asked does not lead, or has no room: the question is sent again when it is
        // due, or at once to another leader.
        let Some(index) = reply.index else { return };
        let asked = &mut self.forwarded.asked;
        let Some(at) = asked.iter().position(|asked| asked.context == reply.context) else {
            return;
        };
        let Some(answered) = asked.remove(at) else { return };
        self.forwarded.waiting -= answered.tokens.len();
        let ready = |token| Output::ReadReady { token, index };
        self.out.extend(answered.tokens.into_iter().map(ready));
    }

    /// The leader that was asked leads no more: its questions are put to the next one.
    pub(super) fn requeue_forwarded(&mut self) {
        let asked = self.forwarded.asked.drain(..).flat_map(|asked| asked.tokens);
        self.forwarded.unsent.extend(asked);
    }

    /// Refuses all reads that wait here.
    pub(super) fn reject_forwarded(&mut self, reason: ReadRejected) {
        self.requeue_forwarded();
        self.forwarded.waiting = 0;
        let tokens = std::mem::take(&mut self.forwarded.unsent);
        self.out.extend(tokens.into_iter().map(|token| Output::ReadRejected { token, reason }));
    }

    /// Sends questions again that were not answered in time.
    pub(super) fn tick_forwarded(&mut self) {
        let (now, wait) = (self.now, self.timing.max_election);
        if self.forwarded.deadline().is_none_or(|at| now < at) {
            return;
        }
        let (nonce, term, leader) = (self.forwarded.nonce, self.term, self.leader);
        for mut asked in std::mem::take(&mut self.forwarded.asked) {
            if asked.due_at <= now {
                asked.due_at = now.saturating_add(wait);
                if let Some(leader) = leader {
                    let request = ReadRequest { term, nonce, context: asked.context };
                    self.send(leader, Message::ReadRequest(request));
                }
            }
            self.forwarded.asked.push_back(asked);
        }
    }
}
