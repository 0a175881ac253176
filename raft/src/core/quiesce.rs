//! Quiescence: a group in which nothing happens sends and waits for nothing.
//!
//! A leader whose followers hold and know all that it has committed tells them so
//! ([`Message::Quiesce`]) and stops its timers, and they stop theirs. From then on the group rests
//! on what the *nodes* know of each other ([`Input::Node`](super::Input::Node)), which is learnt
//! once per node and not once per group. Whatever a client or a peer wants wakes it.
//!
//! Three rules make it live:
//!
//! - A follower quiesces under one life of the leader's node, and wakes, without an assumed leader,
//!   when that life has ended.
//! - A leadership that has quiesced and ends, for whatever reason, says so to every follower until
//!   each has heard it ([`Core::quiesced_reign`]); [`Input::Resigned`](super::Input::Resigned)
//!   wakes them. So no follower rests on a node that lives and no longer leads.
//! - A follower that is not ready answers as to a heartbeat, which wakes the leader.
//!
//! It has no part in safety: a node that wakes too often or too late is a node with odd timers.

use super::io::Output;
use super::leader::{BEATS, Leader};
use super::peer::{Flow, Peer};
use super::roster::OWN;
use super::{Core, Input, RoleState};
use crate::message::{Heartbeat, Message, Quiesce};
use crate::types::{MAX_TERM, MAX_TERM_STEP};

/// How many times as long a group waits between elections while no majority of its nodes is alive.
const CUT_OFF: u64 = 8;

impl Core {
    /// Whether the group rests here: this node sends nothing and has no deadline until something
    /// happens.
    pub fn is_quiesced(&self) -> bool {
        self.quiescence.quiesced
    }

    /// Gives back memory that only a group at work needs.
    pub(crate) fn shrink(&mut self) {
        self.out.shrink_to_fit();
        self.held.shrink_to_fit();
        self.storage.shrink();
        self.handed.shrink();
        self.proposals.shrink();
        // Every member has them. Who needs some after a restart gets them from the store.
        self.log.shrink(self.storage.durable());
    }

    /// The term that this node leads, if it has quiesced in it. When that has become another one,
    /// or `None`, the followers have to be told: see [`Input::Resigned`].
    pub fn quiesced_reign(&self) -> Option<u64> {
        let leads = matches!(self.role, RoleState::Leader(_)) && self.halted.is_none();
        (leads && self.quiescence.reign == self.term).then_some(self.term)
    }

    /// Wakes for an input that is no message, where it asks this node for something.
    pub(super) fn stir(&mut self, input: &Input) {
        let leads = matches!(self.role, RoleState::Leader(_));
        let stirs = match input {
            Input::Read { .. } | Input::Campaign | Input::SnapshotReceived { .. } => true,
            Input::Propose { .. } | Input::Change { .. } | Input::TransferLeadership { .. } => {
                leads
            }
            _ => false,
        };
        if stirs {
            if !matches!(input, Input::Campaign | Input::SnapshotReceived { .. }) {
                self.quiescence.asked_at = Some(self.now);
            }
            self.quiescence.busy_at = self.now;
            self.wake();
        }
    }

    /// Wakes for a message that has passed the gate.
    pub(super) fn stir_by(&mut self, from: u64, message: &Message) {
        if let (RoleState::Leader(leader), Message::HeartbeatReply(reply)) = (&self.role, message) {
            // The answers to heartbeats come while nothing happens. One to the round of the
            // `Quiesce` says that a follower could not follow it.
            if reply.round < leader.round || !self.quiescence.quiesced {
                return;
            }
        }
        if matches!(message, Message::ReadRequest(_)) {
            self.quiescence.asked_at = Some(self.now);
        }
        self.quiescence.busy_at = self.now;
        let has_rested = self.quiescence.quiesced;
        self.wake();
        let Some(leader) = self.leader.filter(|_| has_rested) else { return };
        if ![from, self.config.id].contains(&leader) {
            // It hears nothing of this and rests on, and would be voted out though it is alive.
            let question = self.forwarded.question_of_nobody(self.term);
            self.send(leader, Message::ReadRequest(question));
        }
    }

    /// Goes on as an ordinary leader or follower.
    fn wake(&mut self) {
        if !std::mem::take(&mut self.quiescence.quiesced) {
            return;
        }
        let now = self.now;
        if let RoleState::Leader(leader) = &mut self.role {
            // Nobody has been asked for a sign of life meanwhile.
            leader.patient_until = now.saturating_add(self.timing.max_election);
            self.beat();
            return;
        }
        // The leader's node was alive up to now, so whoever asks for a vote is refused for a while.
        self.contact = Some(now);
        self.reset_election_timer();
    }

    /// Goes on as a follower whose leader is gone: it waits for an election, and helps in one.
    fn wake_orphaned(&mut self) {
        self.quiescence.quiesced = false;
        self.contact = None;
        self.reset_election_timer();
    }

    /// What is known of a node has changed: it is alive in this life, or not known to be alive.
    pub(super) fn on_node(&mut self, node: u64, life: Option<u64>) {
        if self.quiescence.life(node) == life {
            return;
        }
        self.quiescence.set_life(node, life);
        if self.awaits_nodes && !self.is_cut_off() {
            self.reset_election_timer();
        }
        if !self.quiescence.quiesced || node == self.config.id {
            return;
        }
        if matches!(self.role, RoleState::Leader(_)) {
            // Without a majority this node may have been replaced, and has to find that out. And a
            // node that is back knows no leader before it has heard one.
            if !self.roster.has_won(self.alive_places()) || life.is_some() {
                self.wake();
            }
        } else if self.leader == Some(node) {
            self.wake_orphaned();
        }
    }

    /// `from` leads `term` no longer, and never will again.
    pub(super) fn on_resigned(&mut self, from: u64, term: u64) {
        let is_known = self.members.contains(from) || self.leader == Some(from);
        let ahead = term > self.term.saturating_add(MAX_TERM_STEP);
        if term > MAX_TERM || ahead || !is_known {
            self.rejected_inputs += 1;
            return;
        }
        self.quiescence.resigned = self.quiescence.resigned.max(term);
        let rests_on_it = self.quiescence.quiesced && self.leader == Some(from);
        if rests_on_it && self.term == term && from != self.config.id {
            self.wake_orphaned();
        }
    }

    /// A member that may not campaign has missed its leader, which may only be at rest: whatever
    /// asks something of that leader wakes it. Nobody waits for the answer.
    pub(super) fn look_for_leader(&mut self) {
        let may_rest = self.quiescence.life(self.config.id).is_some();
        if !may_rest || self.removed.is_some() || !self.members().contains(self.config.id) {
            return;
        }
        let question = Message::ReadRequest(self.forwarded.question_of_nobody(self.term));
        for (place, id) in self.roster.others.iter().enumerate() {
            if self.roster.voters() & (1 << place) != 0 {
                self.out.push_back(Output::Send { to: *id, message: question.clone() });
            }
        }
    }

    /// Whether the nodes are known, and those that are alive are no majority.
    fn is_cut_off(&self) -> bool {
        let is_hosted = self.quiescence.life(self.config.id).is_some();
        is_hosted && !self.roster.has_won(self.alive_places())
    }

    /// Puts the next election off while the nodes of a majority are not known to be alive: few of
    /// these elections can succeed. Some can, since a node that has missed a change of the
    /// membership does not greet a member that is new to it; so they go on, at long intervals.
    pub(super) fn await_nodes(&mut self) {
        if self.is_cut_off() {
            let (from, to) = (self.timing.min_election, self.timing.max_election);
            let (from, to) = (from.saturating_mul(CUT_OFF), to.saturating_mul(CUT_OFF));
            self.election_at = self.now.saturating_add(self.rng.between(from, to));
            self.awaits_nodes = true;
        }
    }

    /// The places of the members whose nodes are alive.
    fn alive_places(&self) -> u64 {
        let others = self.roster.others.iter().enumerate();
        let alive = others.filter(|(_, id)| self.quiescence.life(**id).is_some());
        alive.fold(OWN, |places, (place, _)| places | (1 << place))
    }

    /// The common tick of all groups of a node: a leader sends its heartbeats now, together with
    /// the others.
    pub(super) fn on_beat(&mut self) {
        self.watch_room();
        let RoleState::Leader(leader) = &self.role else { return };
        if !self.quiescence.quiesced {
            if self.entries_beat(leader) {
                self.leave_unsaid();
            } else {
                self.beat_or_quiesce();
            }
            // Its own time for it comes only when the common tick is late.
            let grace = self.timing.heartbeat / 2;
            if let RoleState::Leader(leader) = &mut self.role {
                leader.heartbeat_at = leader.heartbeat_at.saturating_add(grace);
            }
        }
    }

    /// A round of heartbeats is due that would say nothing new.
    fn leave_unsaid(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        leader.unsaid += 1;
        leader.heartbeat_at = self.now.saturating_add(self.timing.heartbeat);
    }

    /// A round of heartbeats is due.
    pub(super) fn beat_or_quiesce(&mut self) {
        let Some(life) = self.life_to_quiesce_in() else { return self.beat() };
        let RoleState::Leader(leader) = &mut self.role else { return };
        leader.round += 1;
        leader.beats[(leader.round % BEATS as u64) as usize] = self.now;
        let (term, round, commit) = (self.term, leader.round, self.commit);
        for peer in &leader.peers {
            let message = Message::Quiesce(Quiesce { term, round, commit, life });
            self.out.push_back(Output::Send { to: peer.id, message });
        }
        self.quiescence.quiesced = true;
        self.quiescence.reign = self.term;
    }

    /// The life of this node, if it leads and nothing is going on or missing anywhere.
    fn life_to_quiesce_in(&self) -> Option<u64> {
        let RoleState::Leader(leader) = &self.role else { return None };
        let quiesce_after = self.timing.quiesce_after?;
        // What a leader does for itself, as at the beginning of its term, need not be followed by
        // anything: there may be ten thousand new leaders.
        let asked_at = self.quiescence.asked_at;
        let idle = asked_at.is_none_or(|at| self.now.saturating_sub(at) >= quiesce_after);
        let last = self.log.last();
        let is_settled = self.commit == last
            && self.storage.durable() == last
            && self.storage.is_idle()
            && !self.members.effective().is_joint();
        let is_done = |peer: &Peer| {
            self.is_done(leader, peer, last) && self.quiescence.life(peer.id).is_some()
        };
        let is_quiet = idle && is_settled && leader.has_no_duties();
        let life = self.quiescence.life(self.config.id)?;
        (is_quiet && leader.peers.iter().all(is_done)).then_some(life)
    }

    /// Whether a follower holds everything, and has said so lately: in answer to a round that was
    /// sent after the last thing that there was to do.
    fn is_done(&self, leader: &Leader, peer: &Peer, last: u64) -> bool {
        let holds_all = peer.matched == last && peer.received == last && !peer.lost;
        let is_in_step = matches!(peer.flow, Flow::Replicate) && peer.fetch.is_none();
        let busy_at = self.quiescence.busy_at;
        let has_answered = leader.round_sent_at(peer.round).is_some_and(|sent| sent >= busy_at);
        let is_near = self.now.saturating_sub(peer.heard) < self.timing.min_election;
        holds_all && is_in_step && has_answered && is_near
    }

    /// The leader rests. A follower that has everything rests with it; another one answers.
    pub(super) fn on_quiesce(&mut self, from: u64, quiesce: Quiesce) {
        let Quiesce { term, round, commit, life } = quiesce;
        let last = self.log.last();
        let is_same = self.verified == last && last == commit && self.storage.durable() == last;
        let is_idle = self.storage.is_idle()
            && self.installing.is_none()
            && self.forwarded.is_empty()
            && matches!(self.role, RoleState::Follower);
        let rests_on = self.quiescence.life(from) == Some(life) && term > self.quiescence.resigned;
        if !(is_same && is_idle && rests_on) {
            self.on_heartbeat(from, Heartbeat { term, round, commit });
            return;
        }
        if self.hear_leader(from) {
            self.commit_to(commit);
            self.quiescence.quiesced = true;
        }
    }
}

impl Leader {
    /// Whether no caller and no former member waits for something.
    fn has_no_duties(&self) -> bool {
        self.reads.is_empty()
            && self.change.is_none()
            && self.transfer.is_none()
            && self.left.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::Config;
    use crate::core::Restored;

    /// Steps a sole voter, whose writes become durable at once if `writes`.
    fn step(core: &mut Core, input: Input, writes: bool) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            core.step(1, input);
            while let Some(output) = core.poll_output() {
                match output {
                    Output::Persist(persist) if writes => {
                        inputs.push(Input::Persisted { id: persist.id });
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_group_at_rest_keeps_only_entries_that_are_not_durable() {
        let mut core = Core::new(Config::new(1, [1]), Restored::empty(), 0).unwrap();
        step(&mut core, Input::Campaign, true);
        let propose = |token| Input::Propose { token, data: Bytes::from(vec![0; 1000]) };
        (0..100).for_each(|token| step(&mut core, propose(token), true));
        step(&mut core, propose(100), false);
        let (durable, last) = (core.storage.durable(), core.log.last());
        assert_eq!((durable, last), (101, 102));
        core.shrink();
        assert!(core.entries(durable..last).is_err(), "they are read back from the store");
        assert_eq!(core.entries(last..last + 1).unwrap().len(), 1);
        assert_eq!(core.term_at(durable), Some(1), "what consistency checks need stays");
    }
}
