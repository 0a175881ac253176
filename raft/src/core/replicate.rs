//! The leader's side of replication: what to send to whom, and what the answers mean.
//!
//! Source: Raft §5.3. Sessions: an answer counts only for the stretch of replication in which
//! its question was asked.

use super::io::Output;
use super::leader::{BEATS, Leader};
use super::peer::{Flow, Peer};
use super::{Core, RoleState, Timing};
use crate::config::Config;
use crate::message::{
    AppendAck, AppendHead, AppendReject, Heartbeat, HeartbeatReply, LogLost, Message,
};
use crate::types::{Entry, HaltReason};

/// How often the wait before the next probe of a follower without room is doubled, at most.
const MAX_RESEND_DOUBLINGS: u32 = 3;

/// What there is to do for a follower now.
enum Next {
    Nothing,
    Snapshot,
    Fetch,
    Send { prev_term: u64, end: u64 },
}

impl Core {
    pub(super) fn flush_replication(&mut self) {
        let RoleState::Leader(leader) = &self.role else { return };
        for at in 0..leader.peers.len() {
            while self.replicate_to(at) {}
        }
    }

    /// Does the next thing for the follower at place `at`. Returns whether to go on with it.
    fn replicate_to(&mut self, at: usize) -> bool {
        let RoleState::Leader(leader) = &self.role else { return false };
        let next = self.next_for(leader, &leader.peers[at]);
        let RoleState::Leader(leader) = &mut self.role else { return false };
        match next {
            Next::Nothing => false,
            Next::Snapshot => {
                let peer = &mut leader.peers[at];
                if self.now < peer.snapshot_at {
                    peer.wait_until(peer.snapshot_at);
                } else {
                    self.send_snapshot_to(at);
                }
                false
            }
            Next::Fetch => {
                let id = leader.next_id();
                let peer = &mut leader.peers[at];
                peer.fetch = Some((id, peer.next));
                let last = peer.next.saturating_add(max_entries(&self.config, peer) - 1);
                let end = (last + 1).min(self.log.window_first());
                let (range, max_bytes) = (peer.next..end, self.config.max_append_bytes);
                self.out.push_back(Output::Fetch { id, range, max_bytes });
                false
            }
            Next::Send { prev_term, end } => {
                let peer = &mut leader.peers[at];
                let head = append_head(self.term, self.commit, peer, prev_term);
                let (to, range) = (peer.id, peer.next..end);
                let weight = if range.is_empty() {
                    0
                } else {
                    self.log.weight_upto(end - 1) - self.log.weight_upto(range.start - 1)
                };
                let resend_at = self.now.saturating_add(Self::resend_after(self.timing, peer));
                peer.note_sent(end, weight, self.now, resend_at);
                self.out.push_back(Output::Replicate { to, head, range });
                matches!(peer.flow, Flow::Replicate)
            }
        }
    }

    fn next_for(&self, leader: &Leader, peer: &Peer) -> Next {
        let probing = match peer.flow {
            Flow::Probe { waiting: false } => true,
            Flow::Replicate => false,
            Flow::Probe { waiting: true } | Flow::Snapshot { .. } => return Next::Nothing,
        };
        let config = &self.config;
        let full = peer.is_full(config.max_inflight_appends, config.max_inflight_bytes);
        if peer.fetch.is_some() || full || (!probing && peer.next > self.log.last()) {
            return Next::Nothing;
        }
        let Some(prev_term) = self.log.term_at(peer.next - 1) else {
            let sending = |peer: &&Peer| matches!(peer.flow, Flow::Snapshot { .. });
            let room = leader.peers.iter().filter(sending).count() < config.max_snapshots_sending;
            return if room { Next::Snapshot } else { Next::Nothing };
        };
        if peer.next < self.log.window_first() {
            // A probe may be refused: it is not worth a read.
            let is_refusable = probing && peer.untaken == 0;
            return if is_refusable {
                Next::Send { prev_term, end: peer.next }
            } else {
                Next::Fetch
            };
        }
        let (entries, bytes) = (max_entries(config, peer), config.max_append_bytes);
        Next::Send { prev_term, end: self.log.batch_end(peer.next, entries, bytes) }
    }

    /// The place of the follower whose next message waits for the read `id`, and the first index
    /// that is read.
    pub(super) fn awaiting_fetch(&self, id: u64) -> Option<(usize, u64)> {
        let RoleState::Leader(leader) = &self.role else { return None };
        let fetches = leader.peers.iter().map(|peer| peer.fetch);
        fetches.enumerate().find_map(|(at, fetch)| {
            fetch.filter(|(awaited, _)| *awaited == id).map(|(_, from)| (at, from))
        })
    }

    pub(super) fn on_fetched_entries(&mut self, id: u64, mut entries: Vec<Entry>) {
        let Some((at, from)) = self.awaiting_fetch(id) else { return };
        let RoleState::Leader(leader) = &mut self.role else { return };
        let peer = &mut leader.peers[at];
        peer.fetch = None;
        let as_written = |(index, entry): (u64, &Entry)| {
            let released = index <= self.log.base();
            entry.index == index && (released || self.log.term_at(index) == Some(entry.term))
        };
        if entries.is_empty() || !(from..).zip(&entries).all(as_written) {
            self.halt(HaltReason::ReadFailed);
            return;
        }
        // The follower has acknowledged more since: what it has is not sent again.
        entries.retain(|entry| entry.index >= peer.next);
        let Some(prev_term) = self.log.term_at(peer.next - 1) else { return };
        if entries.first().is_none_or(|entry| entry.index != peer.next) {
            return;
        }
        let head = append_head(self.term, self.commit, peer, prev_term);
        let weight = entries.iter().map(Entry::weight).sum();
        let end = peer.next + entries.len() as u64;
        let resend_at = self.now.saturating_add(Self::resend_after(self.timing, peer));
        peer.note_sent(end, weight, self.now, resend_at);
        let to = peer.id;
        self.out.push_back(Output::Send { to, message: Message::Append { head, entries } });
    }

    pub(super) fn on_fetch_released(&mut self, id: u64) {
        let Some((at, from)) = self.awaiting_fetch(id) else { return };
        if from >= self.log.first() {
            // The core never released them: the store has lost them.
            self.halt(HaltReason::ReadFailed);
            return;
        }
        if let RoleState::Leader(leader) = &mut self.role {
            leader.peers[at].fetch = None;
        }
    }

    /// The follower `from`, which has just given a sign of life, and the leader's other state.
    fn peer_mut(&mut self, from: u64) -> Option<&mut Peer> {
        let now = self.now;
        let RoleState::Leader(leader) = &mut self.role else { return None };
        let peer = leader.peers.iter_mut().find(|peer| peer.id == from)?;
        peer.heard = now;
        Some(peer)
    }

    pub(super) fn on_append_ack(&mut self, from: u64, ack: AppendAck) {
        let last = self.log.last();
        let matched_term = self.log.term_at(ack.matched);
        let (now, timing) = (self.now, self.timing);
        if matches!(self.role, RoleState::Leader(_)) && ack.received > last {
            self.rejected_inputs += 1;
            return;
        }
        let Some(peer) = self.peer_mut(from) else { return };
        if peer.session != ack.session {
            return;
        }
        if peer.lost && ack.matched < peer.matched {
            return;
        }
        // The logs agree where this session began, so what was lost is back.
        peer.lost = false;
        peer.received = ack.received;
        let is_news = peer.acknowledged(ack.matched);
        if is_news {
            peer.matched_term = matched_term.unwrap_or(0);
            peer.resend_at = now.saturating_add(Self::resend_after(timing, peer));
        }
        let takes_entries = ack.received >= peer.next || peer.next > last;
        peer.next = peer.next.max(peer.matched + 1);
        match peer.flow {
            Flow::Replicate => {}
            Flow::Snapshot { index, .. } if peer.matched < index => {}
            // It agrees, and has not taken the entries of a probe, because the probe had none or
            // because the follower has no room: the next probe has some. Once the follower has left
            // those out too, the leader waits before it asks again, or else the two would exchange
            // whole windows at the speed of the link until there is room.
            Flow::Probe { waiting } if !takes_entries => {
                let untaken = if is_news { 0 } else { peer.untaken };
                peer.flow = Flow::Probe { waiting: waiting && untaken > 0 };
                peer.untaken = untaken.saturating_add(1);
                peer.next = ack.received.max(peer.matched) + 1;
            }
            Flow::Probe { .. } | Flow::Snapshot { .. } => {
                // The end of the transfer has not been reported yet.
                if matches!(peer.flow, Flow::Snapshot { .. }) {
                    peer.catch_up(last, now);
                }
                (peer.flow, peer.untaken) = (Flow::Replicate, 0);
                peer.resend_at = now.saturating_add(Self::resend_after(timing, peer));
                // Answers overtake each other: an older one may name less than is known.
                peer.next = ack.received.max(peer.matched) + 1;
            }
        }
        peer.advance_catching_up(last, now, timing.max_election);
    }

    pub(super) fn on_append_reject(&mut self, from: u64, reject: AppendReject) {
        let agree = self.log.last_at_most(reject.hint_index, reject.hint_term);
        let base = self.log.base();
        let Some(peer) = self.peer_mut(from) else { return };
        let current = peer.session == reject.session && reject.prev_index < peer.next;
        if !current || matches!(peer.flow, Flow::Snapshot { .. }) {
            return;
        }
        if reject.is_recovering {
            peer.forget();
        } else if reject.prev_index <= peer.matched {
            self.on_refused_below_matched(from, reject.prev_index);
            return;
        }
        if reject.hint_index > reject.prev_index {
            return;
        }
        // Nothing at or below the base agrees: it takes a snapshot, which `next = base` asks for.
        let next = agree.map_or(base, |index| index + 1).min(reject.prev_index);
        self.start_session(from, next);
    }

    /// A follower refuses an entry that it has acknowledged as durable. Within a session the
    /// acknowledgement may have overtaken the refusal, so the leader asks once more in a new
    /// session. Everything in that one is younger than the acknowledgement: a refusal there shows
    /// that the follower has lost what it had acknowledged. A term never takes entries back, so
    /// there is no other way to it.
    fn on_refused_below_matched(&mut self, from: u64, prev_index: u64) {
        let resend_at = self.now.saturating_add(self.timing.resend);
        let Some(peer) = self.peer_mut(from) else { return };
        let (matched, is_loss) = (peer.matched, peer.refusal_shows_loss(prev_index));
        let is_news = is_loss && !peer.lost;
        peer.lost |= is_loss;
        self.start_session(from, matched + 1);
        if !is_loss {
            return;
        }
        if let Some(peer) = self.peer_mut(from) {
            peer.wait_until(resend_at);
        }
        if is_news {
            self.out.push_back(Output::FollowerLost { peer: from, matched });
        }
        self.remind(from);
    }

    /// Tells a follower what it has acknowledged as durable, for it to look whether it has it.
    pub(super) fn remind(&mut self, to: u64) {
        let term = self.term;
        let RoleState::Leader(leader) = &self.role else { return };
        let Some(peer) = leader.peers.iter().find(|peer| peer.id == to) else { return };
        let (matched, matched_term) = (peer.matched, peer.matched_term);
        if matched > 0 && matched_term > 0 {
            let message = Message::LogLost(LogLost { term, matched, matched_term });
            self.out.push_back(Output::Send { to, message });
        }
    }

    pub(super) fn on_heartbeat_reply(&mut self, from: u64, reply: HeartbeatReply) {
        let RoleState::Leader(leader) = &self.role else { return };
        if reply.round > leader.round || reply.received > self.log.last() {
            self.rejected_inputs += 1;
            return;
        }
        let age = leader.round_age(reply.round, self.now);
        let Some(peer) = self.peer_mut(from) else { return };
        peer.note_round(reply.round, age);
        peer.received = reply.received;
        // It has restarted, and no longer knows that its log is equal to ours. Tell it, or it
        // would not dare to move its commit index before the next entry.
        if reply.received < peer.matched && matches!(peer.flow, Flow::Replicate) {
            let next = peer.matched + 1;
            self.start_session(from, next);
        }
    }

    pub(super) fn on_unreachable(&mut self, id: u64) {
        // Nothing is under way in a group at rest.
        if self.quiescence.quiesced {
            return;
        }
        let RoleState::Leader(leader) = &self.role else { return };
        let Some(peer) = leader.peers.iter().find(|peer| peer.id == id) else { return };
        if matches!(peer.flow, Flow::Replicate) {
            self.start_session(id, peer.matched + 1);
        }
    }

    /// Probes a follower anew from `next`.
    pub(super) fn start_session(&mut self, id: u64, next: u64) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let session = leader.next_id();
        if let Some(peer) = leader.peers.iter_mut().find(|peer| peer.id == id) {
            peer.probe(next.max(1), session);
        }
    }

    /// How long to wait for an answer of `peer` before asking again: `resend_interval`, or two
    /// round trips where they are longer. Else answers would come after their session has ended.
    /// A follower that has no room is asked ever more seldom.
    fn resend_after(timing: Timing, peer: &Peer) -> u64 {
        let doublings = peer.untaken.saturating_sub(1).min(MAX_RESEND_DOUBLINGS);
        timing.resend.max(peer.round_trip.saturating_mul(2)).saturating_mul(1 << doublings)
    }

    /// Asks again where answers are overdue.
    pub(super) fn tick_peers(&mut self) {
        let (now, timing) = (self.now, self.timing);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let mut lost = Vec::new();
        for peer in &mut leader.peers {
            if peer.deadline().is_none_or(|at| self.now < at) {
                continue;
            }
            peer.resend_at = now.saturating_add(Self::resend_after(timing, peer));
            match peer.flow {
                Flow::Probe { .. } => peer.flow = Flow::Probe { waiting: false },
                // All of it has arrived: the follower waits for its disk, or its answer was lost.
                Flow::Replicate if peer.received + 1 >= peer.next => {
                    let Some(prev_term) = self.log.term_at(peer.next - 1) else {
                        lost.push((peer.id, peer.next));
                        continue;
                    };
                    let mut head = append_head(self.term, self.commit, peer, prev_term);
                    head.probe = true;
                    let (to, range) = (peer.id, peer.next..peer.next);
                    self.out.push_back(Output::Replicate { to, head, range });
                }
                Flow::Replicate => lost.push((peer.id, peer.matched.max(peer.received) + 1)),
                Flow::Snapshot { .. } => {}
            }
        }
        for (id, next) in lost {
            self.start_session(id, next);
        }
    }

    /// A round of heartbeats to everybody.
    pub(super) fn beat(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        leader.unsaid = 0;
        leader.round += 1;
        leader.beats[(leader.round % BEATS as u64) as usize] = self.now;
        leader.heartbeat_at = self.now.saturating_add(self.timing.heartbeat);
        let beat = Heartbeat { term: self.term, round: leader.round, commit: self.commit };
        for peer in &leader.peers {
            let message = Message::Heartbeat(beat);
            self.out.push_back(Output::Send { to: peer.id, message });
        }
    }
}

/// The most entries in the next message to `peer`. One that has left entries out for want of room
/// is asked with a single one.
fn max_entries(config: &Config, peer: &Peer) -> u64 {
    if peer.untaken > 1 { 1 } else { config.max_append_entries as u64 }
}

fn append_head(term: u64, commit: u64, peer: &Peer, prev_term: u64) -> AppendHead {
    AppendHead {
        term,
        session: peer.session,
        prev_index: peer.next - 1,
        prev_term,
        commit,
        probe: matches!(peer.flow, Flow::Probe { .. }),
    }
}
