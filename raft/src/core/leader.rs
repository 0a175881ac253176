//! Leading: taking proposals, counting acknowledgements, staying in touch with a majority.
//!
//! Source: Raft §5.3, §5.4.2; stepping down without a majority: thesis §6.2.

use std::collections::VecDeque;

use bytes::Bytes;

use super::io::Output;
use super::peer::Peer;
use super::read::PendingRead;
use super::{Core, RoleState};
use crate::error::ProposeRejected;
use crate::membership::{Change, Membership};
use crate::message::Message;
use crate::types::{Entry, EntryKind, MAX_INDEX};

/// What only a leader has.
#[derive(Debug)]
pub(super) struct Leader {
    /// The other members, in the order of the roster.
    pub(super) peers: Vec<Peer>,
    /// The no-op with which the term began. Nothing before it is committed by counting.
    pub(super) first_own: u64,
    /// The latest round of heartbeats.
    pub(super) round: u64,
    /// When the latest rounds were sent; round `n` at `n % BEATS`.
    pub(super) beats: [u64; BEATS],
    pub(super) heartbeat_at: u64,
    /// Rounds since the latest one that were left out for the entries that flow.
    pub(super) unsaid: u32,
    /// Until then silence of a majority does not end this reign: after elections that failed for
    /// slow round trips the first answers take as long.
    pub(super) patient_until: u64,
    /// The last name given to a session, a read from the store or a transfer of a snapshot. Each
    /// leadership of this core goes on from the one before, so that what one of them asked for is
    /// never taken for an answer to a later one.
    last_id: u64,
    /// Reads that wait for a round, oldest first.
    pub(super) reads: VecDeque<PendingRead>,
    /// How many of `reads`, at the end, have no round yet.
    pub(super) unassigned: usize,
    /// The rounds of reads that are not confirmed yet, ascending.
    pub(super) read_rounds: VecDeque<u64>,
    /// The change of the membership that is under way.
    pub(super) change: Option<Pending>,
    /// The index of the latest membership that was committed and not joint when it was looked at.
    pub(super) settled: u64,
    /// Nodes that are to hear that they have left the group.
    pub(super) left: Vec<u64>,
    pub(super) transfer: Option<Transfer>,
    /// Since when the room of this node's store has been short, or since it last tried to hand over
    /// for that.
    short_since: Option<u64>,
    /// A node was told to campaign. That may arrive at any time, and voters then vote whatever they
    /// have promised: there is no lease in this term any more.
    pub(super) lease_given_up: bool,
}

/// A change that the leader has taken.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) token: u64,
    pub(super) change: Change,
    /// What it ends in; known once no earlier change is under way.
    pub(super) target: Option<Membership>,
    /// Some entry of it is in the log.
    pub(super) begun: bool,
    /// The end of the log when the current round of catching up began, and when that was.
    /// Source: thesis §4.2.1.
    pub(super) round: Option<(u64, u64)>,
}

/// A transfer of leadership under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) to: u64,
    /// When the leader goes on by itself.
    pub(super) until: u64,
    pub(super) told: bool,
}

/// How often the wait of a leader without room before it hands over is doubled, at most.
const MAX_ROOM_DOUBLINGS: u32 = 6;

/// How many rounds of heartbeats the leader remembers the time of.
pub(super) const BEATS: usize = 64;

impl Leader {
    /// How long ago `round` was sent, at least.
    pub(super) fn round_age(&self, round: u64, now: u64) -> u64 {
        let oldest = (self.round + 1).saturating_sub(BEATS as u64);
        now.saturating_sub(self.beats[(round.max(oldest) % BEATS as u64) as usize])
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// What a follower counts for: nothing while it has lost what it had acknowledged.
    pub(super) fn of(&self, place: usize, of: impl Fn(&Peer) -> u64) -> u64 {
        self.peers.get(place).filter(|peer| !peer.lost).map_or(0, of)
    }
}

impl Core {
    /// Which entry a leader believes to be durable at each follower, for the watcher of a
    /// simulation.
    #[cfg(all(feature = "testing", feature = "journal"))]
    pub(crate) fn believed(&self) -> impl Iterator<Item = (u64, u64)> {
        let leader = match &self.role {
            RoleState::Leader(leader) => Some(leader),
            _ => None,
        };
        leader.into_iter().flat_map(|leader| &leader.peers).map(|peer| (peer.id, peer.matched))
    }

    /// Leads the current term, after an election that took `elected_in` nanoseconds.
    pub(super) fn become_leader(&mut self, elected_in: u64) {
        debug_assert!(
            self.storage.hard_pending().is_none(),
            "whoever leads has made its own vote durable"
        );
        let next = self.log.last() + 1;
        let mut leader = Leader {
            peers: Vec::new(),
            first_own: next,
            round: 0,
            beats: [self.now; BEATS],
            heartbeat_at: self.now.saturating_add(self.timing.heartbeat),
            unsaid: 0,
            patient_until: self.now.saturating_add(self.patience(elected_in)),
            last_id: self.last_name,
            reads: VecDeque::new(),
            unassigned: 0,
            read_rounds: VecDeque::new(),
            change: None,
            settled: 0,
            left: Vec::new(),
            transfer: None,
            short_since: None,
            lease_given_up: false,
        };
        leader.adopt(&self.roster, next, self.now);
        self.role = RoleState::Leader(Box::new(leader));
        self.leader = Some(self.config.id);
        self.append(EntryKind::Noop, Bytes::new());
        self.verified = self.log.last();
    }

    /// How long a new leader waits for the first answers of a majority, in nanoseconds: at least
    /// the longest wait before an election now, and longer where the election was slow.
    fn patience(&self, elected_in: u64) -> u64 {
        let wait = self.timing.max_election;
        let stretched = wait.saturating_mul(self.election_backoff());
        let longest = wait.saturating_mul(self.timing.max_backoff);
        stretched.max(wait.saturating_add(elected_in.saturating_mul(2))).min(longest)
    }

    pub(super) fn append(&mut self, kind: EntryKind, data: Bytes) -> u64 {
        let index = self.log.last() + 1;
        self.push_entry(Entry { term: self.term, index, kind, data });
        index
    }

    pub(super) fn on_propose(&mut self, token: u64, data: Bytes) {
        let is_short = self.is_short_of_room();
        if is_short {
            self.hand_over_for_room();
        }
        let elsewhere = self.turns_proposals_away();
        let refusal = if elsewhere.is_some() {
            elsewhere
        } else if self.log.last() >= MAX_INDEX {
            Some(ProposeRejected::Busy)
        } else if data.len() > self.config.max_entry_bytes {
            Some(ProposeRejected::TooLarge)
        } else if self.waiting_bytes() > self.config.max_uncommitted_bytes
            || self.proposals.undecided() >= self.config.max_undecided
            || is_short
        {
            Some(ProposeRejected::Busy)
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.out.push_back(Output::Rejected { token, reason });
            return;
        }
        let index = self.append(EntryKind::Command, data);
        self.proposals.push(token, index, self.term, &mut self.out);
    }

    /// A leader whose room has been short for `disk_stall` turns a proposal away: another voter may
    /// have room, and gets the lead. Each time that this node does so during one shortage it waits
    /// twice as long as before, so that nodes that all are short do not pass the lead around.
    fn hand_over_for_room(&mut self) {
        let wait = self.timing.disk_stall.saturating_mul(1 << self.room_transfers);
        let (now, is_alone) = (self.now, self.roster.is_sole_voter());
        let RoleState::Leader(leader) = &mut self.role else { return };
        let is_due = leader.short_since.is_some_and(|since| now.saturating_sub(since) >= wait);
        if is_due && !is_alone && leader.transfer.is_none() {
            leader.short_since = Some(now);
            self.room_transfers = (self.room_transfers + 1).min(MAX_ROOM_DOUBLINGS);
            self.on_transfer(None);
        }
    }

    /// Notes how long the room has been short. With each heartbeat, whoever counts the time for it.
    pub(super) fn watch_room(&mut self) {
        let is_short = self.is_short_of_room();
        let RoleState::Leader(leader) = &mut self.role else { return };
        if is_short {
            leader.short_since.get_or_insert(self.now);
        } else {
            (leader.short_since, self.room_transfers) = (None, 0);
        }
    }

    /// Says where proposals belong instead, where this node does not lead or is about to lead no
    /// more.
    fn turns_proposals_away(&self) -> Option<ProposeRejected> {
        let leader = match &self.role {
            RoleState::Leader(leader) => match leader.transfer {
                Some(transfer) => Some(transfer.to),
                None if self.roster.votes() => return None,
                None => None,
            },
            _ => self.leader,
        };
        Some(ProposeRejected::NotLeader { leader })
    }

    /// The weight of what is not both committed and durable here. It cannot leave memory.
    fn waiting_bytes(&self) -> u64 {
        self.log.total() - self.log.weight_upto(self.safe_commit())
    }

    /// Commits what a majority holds durably. Only entries of the own term are counted; those
    /// before come with them. Source: Raft §5.4.2.
    pub(super) fn advance_leader_commit(&mut self) {
        self.proposals.tell(&mut self.out);
        let own = self.storage.durable();
        let RoleState::Leader(leader) = &mut self.role else { return };
        self.verified = self.log.last();
        let committed = self.roster.reached(own, |place| leader.of(place, |peer| peer.matched));
        if committed >= leader.first_own {
            self.candidacies = 0;
        }
        if committed > self.commit && committed >= leader.first_own {
            self.commit_to(committed);
        }
    }

    pub(super) fn on_leader_tick(&mut self) {
        let stalls = self.disk_stalls_at().is_some_and(|at| self.now >= at);
        if stalls || self.now >= self.out_of_touch_at() {
            self.step_aside(stalls);
            return;
        }
        self.watch_room();
        let RoleState::Leader(leader) = &mut self.role else { return };
        leader.transfer.take_if(|transfer| self.now >= transfer.until);
        if self.now >= leader.heartbeat_at {
            self.beat_or_quiesce();
        }
        if !self.quiescence.quiesced {
            self.tick_peers();
        }
    }

    /// Leads no more. Where its peers hear it, and only its disk hangs, the best voter is
    /// told to campaign at once: the others would first wait for an election timeout.
    fn step_aside(&mut self, is_heard: bool) {
        let RoleState::Leader(leader) = &self.role else { return };
        let best = leader.best(self.now, self.timing.max_election);
        if let Some(to) = best.filter(|_| is_heard) {
            self.send(to, Message::TimeoutNow { term: self.term });
        }
        self.become_follower(self.term, None);
    }

    /// This node could not hear the others: their silence ends no reign for two heartbeats.
    pub(crate) fn bear_silence(&mut self, now: u64) {
        let grace = self.timing.heartbeat.saturating_mul(2);
        let until = self.clock.of_caller(now).saturating_add(grace);
        if let RoleState::Leader(leader) = &mut self.role {
            leader.patient_until = leader.patient_until.max(until);
        }
    }

    /// When the latest round of heartbeats was sent that a majority has answered, by the caller's
    /// clock: up to then, no other node led a later term. Answers may have waited long before this
    /// leader saw them, so it is no later than that. `None` while this node does not lead, or is
    /// not known to.
    pub(crate) fn led_at(&self) -> Option<u64> {
        let RoleState::Leader(leader) = &self.role else { return None };
        let answered = |place| leader.of(place, |peer| peer.round);
        let sent_at = match self.roster.reached(u64::MAX, answered) {
            // Its own word is enough.
            u64::MAX => self.now,
            round => leader.round_sent_at(round)?,
        };
        Some(self.clock.past_to_caller(sent_at))
    }

    /// When this leader will have been silent to a majority for a whole election timeout.
    fn out_of_touch_at(&self) -> u64 {
        let RoleState::Leader(leader) = &self.role else { return u64::MAX };
        let heard = |place| leader.of(place, |peer| peer.heard);
        let heard = self.roster.reached(u64::MAX, heard);
        heard.saturating_add(self.timing.max_election).max(leader.patient_until)
    }

    /// When the disk's silence will have cost this leader its place. Never a sole voter's,
    /// where nobody else could lead.
    fn disk_stalls_at(&self) -> Option<u64> {
        let since = self.storage.silent_since().filter(|_| !self.roster.is_sole_voter())?;
        Some(since.saturating_add(self.timing.disk_stall))
    }

    pub(super) fn leader_deadline(&self, leader: &Leader) -> u64 {
        let mut at = leader.heartbeat_at;
        if let Some(transfer) = &leader.transfer {
            at = at.min(transfer.until);
        }
        let mut heard = u64::MAX;
        for peer in &leader.peers {
            if let Some(resend) = peer.deadline() {
                at = at.min(resend);
            }
            heard = heard.min(if peer.lost { 0 } else { peer.heard });
        }
        // A majority was heard no earlier than the one that has been silent the longest: mostly
        // that is lately enough.
        if heard.saturating_add(self.timing.max_election) < at {
            at = at.min(self.out_of_touch_at());
        }
        self.disk_stalls_at().map_or(at, |stalls_at| at.min(stalls_at))
    }

    /// What a leader that no longer leads leaves behind. Its proposals stay: the next leader may
    /// commit them.
    pub(super) fn step_down(&mut self, leader: Leader) {
        self.last_name = leader.last_id;
        self.verified = self.commit;
        self.ack = super::Ack::default();
        self.hand_reads_back(leader.reads);
        self.give_up_change(leader.change);
    }
}
