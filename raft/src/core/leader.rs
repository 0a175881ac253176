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
use crate::types::{Entry, EntryKind, MAX_INDEX, MAX_VOTERS};

/// What only a leader has.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) peers: Vec<Peer>,
    /// The no-op with which the term began. Nothing before it is committed by counting.
    pub(super) first_own: u64,
    /// The latest round of heartbeats.
    pub(super) round: u64,
    /// When the latest rounds were sent; round `n` at `n % BEATS`.
    pub(super) beats: [u64; BEATS],
    pub(super) heartbeat_at: u64,
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
}

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

    /// The value that a majority has reached, where this node has reached `own`.
    pub(super) fn reached(&self, own: u64, majority: usize, of: impl Fn(&Peer) -> u64) -> u64 {
        let mut values = [0; MAX_VOTERS];
        values[0] = own;
        for (value, peer) in values[1..].iter_mut().zip(&self.peers) {
            *value = if peer.lost { 0 } else { of(peer) };
        }
        let values = &mut values[..=self.peers.len()];
        values.sort_unstable();
        values[values.len() - majority]
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
            peers: Vec::with_capacity(self.others.len()),
            first_own: next,
            round: 0,
            beats: [self.now; BEATS],
            heartbeat_at: self.now.saturating_add(self.timing.heartbeat),
            patient_until: self.now.saturating_add(self.patience(elected_in)),
            last_id: self.last_name,
            reads: VecDeque::new(),
            unassigned: 0,
            read_rounds: VecDeque::new(),
        };
        for id in self.others.iter().copied() {
            let session = leader.next_id();
            leader.peers.push(Peer::new(id, next, session, self.now));
        }
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

    fn append(&mut self, kind: EntryKind, data: Bytes) -> u64 {
        let index = self.log.last() + 1;
        self.log.push(Entry { term: self.term, index, kind, data });
        index
    }

    pub(super) fn on_propose(&mut self, token: u64, data: Bytes) {
        let refusal = if !matches!(self.role, RoleState::Leader(_)) {
            Some(ProposeRejected::NotLeader { leader: self.leader })
        } else if self.log.last() >= MAX_INDEX {
            Some(ProposeRejected::Busy)
        } else if data.len() > self.config.max_entry_bytes {
            Some(ProposeRejected::TooLarge)
        } else if self.waiting_bytes() > self.config.max_uncommitted_bytes
            || self.proposals.undecided() >= self.config.max_undecided
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

    /// The weight of what is not both committed and durable here. It cannot leave memory.
    fn waiting_bytes(&self) -> u64 {
        let settled = self.commit.min(self.storage.durable());
        self.log.total() - self.log.weight_upto(settled)
    }

    /// Commits what a majority holds durably. Only entries of the own term are counted; those
    /// before come with them. Source: Raft §5.4.2.
    pub(super) fn advance_leader_commit(&mut self) {
        self.proposals.tell(&mut self.out);
        let majority = self.majority();
        let own = self.storage.durable();
        let RoleState::Leader(leader) = &mut self.role else { return };
        self.verified = self.log.last();
        let committed = leader.reached(own, majority, |peer| peer.matched);
        if committed >= leader.first_own {
            self.candidacies = 0;
        }
        if committed > self.commit && committed >= leader.first_own {
            self.commit_to(committed);
        }
    }

    pub(super) fn on_leader_tick(&mut self) {
        if self.now >= self.out_of_touch_at()
            || self.disk_stalls_at().is_some_and(|at| self.now >= at)
        {
            self.become_follower(self.term, None);
            return;
        }
        let RoleState::Leader(leader) = &mut self.role else { return };
        if self.now >= leader.heartbeat_at {
            self.beat();
        }
        self.tick_peers();
    }

    /// When this leader will have been silent to a majority for a whole election timeout.
    fn out_of_touch_at(&self) -> u64 {
        let RoleState::Leader(leader) = &self.role else { return u64::MAX };
        let majority = leader.peers.len().div_ceil(2) + 1;
        let heard = leader.reached(u64::MAX, majority, |peer| peer.heard);
        heard.saturating_add(self.timing.max_election).max(leader.patient_until)
    }

    /// When the disk's silence will have cost this leader its place. Never in a group of one,
    /// where nobody else could lead.
    fn disk_stalls_at(&self) -> Option<u64> {
        let since = self.storage.silent_since().filter(|_| !self.others.is_empty())?;
        Some(since.saturating_add(self.timing.disk_stall))
    }

    pub(super) fn leader_deadline(&self, leader: &Leader) -> u64 {
        let mut at = leader.heartbeat_at.min(self.out_of_touch_at());
        for peer in &leader.peers {
            if let Some(resend) = peer.deadline() {
                at = at.min(resend);
            }
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
    }
}
