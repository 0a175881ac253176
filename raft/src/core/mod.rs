//! Raft as a pure state machine: no clock, no thread, no I/O.
//!
//! [`Core::step`] takes what happened, [`Core::poll_output`] gives what to do, and
//! [`Core::next_deadline`] says when to come back if nothing happens. Steps are cheap and only
//! note what changed; the first poll after them turns it into as few writes and messages as
//! possible. So: step everything that is at hand, then poll until `None` before the next step.
//! The exception to the rule that no order of calls is required: an output lends a range of the
//! log without copying it ([`Core::entries`]), and the next step may truncate that range.

mod calm;
mod change;
mod clock;
mod commit;
mod election;
#[cfg(test)]
mod entrusted_tests;
mod follower;
mod gate;
mod history;
mod invariants;
mod io;
mod leader;
#[cfg(test)]
mod leaderless_tests;
mod lease;
mod left;
mod log;
mod members;
mod peer;
mod quiesce;
mod quiescence;
mod read;
mod repair;
mod replicate;
mod restore;
mod rng;
mod room;
mod roster;
mod snapshot;
mod storage;
mod votes;

use std::collections::VecDeque;
use std::ops::Range;

use self::clock::Clock;
use self::commit::{Handed, Proposals};
use self::follower::Ack;
use self::history::Members;
use self::leader::Leader;
use self::left::Left;
use self::log::Log;
use self::quiescence::Quiescence;
use self::read::Forwarded;
use self::restore::Debt;
use self::rng::Rng;
use self::roster::Roster;
use self::storage::Storage;
use self::votes::{Ballot, Votes};
use crate::config::{Config, nanos};
use crate::error::CoreError;
use crate::message::Message;
use crate::types::{Entry, FollowerStatus, HaltReason, HardState, Role, SnapshotMeta, Status};

pub(crate) use self::calm::Patience;
pub use self::gate::{Gate, PeerFault};
pub use self::io::{FetchError, Input, NotInMemory, Output, Persist, TransferEnd};
pub use self::restore::Restored;

/// The most messages that wait for a term and vote to be durable.
const MAX_HELD: usize = 256;

/// What a node is, with what only that role needs.
#[derive(Debug)]
enum RoleState {
    Follower,
    PreCandidate(Votes),
    Candidate,
    Leader(Box<Leader>),
}

/// The timing of the configuration, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Timing {
    min_election: u64,
    max_election: u64,
    /// How far repeated elections may stretch the wait before the next one, as a factor.
    max_backoff: u64,
    heartbeat: u64,
    disk_stall: u64,
    resend: u64,
    /// How long a leader's lease lasts; `None`: leases are off.
    lease: Option<u64>,
    /// How long a leader has nothing to do before its group quiesces; `None`: never.
    quiesce_after: Option<u64>,
}

impl Timing {
    fn new(config: &Config) -> Self {
        Self {
            min_election: nanos(config.min_election_timeout),
            max_election: nanos(config.max_election_timeout),
            max_backoff: config.max_election_backoff(),
            heartbeat: nanos(config.heartbeat_interval),
            disk_stall: nanos(config.disk_stall),
            resend: nanos(config.resend_interval),
            lease: lease::lease_ns(config),
            quiesce_after: config.quiesce_after.map(nanos),
        }
    }
}

/// One node of one Raft group.
///
/// Time is `u64` nanoseconds since an epoch of the caller. Where it jumps back, no time has passed
/// for the core; where it jumps forward, at most an hour has.
#[derive(Debug)]
pub struct Core {
    config: Config,
    timing: Timing,
    /// The members as this node counts them. Invariant: those of `members.effective()`, once
    /// `adopt_members` has run.
    roster: Roster,
    members: Members,
    /// `members` has changed since `roster` was made.
    members_changed: bool,
    /// The index of a committed membership that leaves this node out, as far as it was told: it
    /// asks for no votes until it is added again.
    removed: Option<members::Removal>,
    rng: Rng,
    gate: Gate,
    rejected_inputs: u64,
    clock: Clock,
    /// The time of the latest step, by `clock`.
    now: u64,

    term: u64,
    vote: Option<u64>,
    role: RoleState,
    leader: Option<u64>,
    /// When the leader of this term was last heard of.
    contact: Option<u64>,
    /// Until then this node votes for nobody, itself included, unless the leader has it so: a lease
    /// may rest on it. Invariant: never falls; 0 while leases are off.
    promised_until: u64,
    /// Reads answered by a lease since the start.
    lease_reads: u64,
    election_at: u64,
    /// `election_at` is late because the nodes of a majority are not known to be alive.
    awaits_nodes: bool,
    /// Candidacies, of this node and of others that asked for its vote, since a leader was last
    /// heard. Each doubles the wait before the next election.
    candidacies: u32,
    /// This node has let another one go first since it last was a candidate or heard a leader.
    yielded: bool,
    quiescence: Quiescence,
    /// The votes for this node in the current term, since it asked for them.
    ballot: Option<Ballot>,

    log: Log,
    storage: Storage,
    commit: u64,
    /// Handed to the state machine.
    applying: u64,
    handed: Handed,
    applied: u64,
    /// Equal to the log of this term's leader up to here; at least `commit`.
    verified: u64,
    ack: Ack,
    /// Up to here the completions of writes may have acknowledged entries, or may do so: they were
    /// entrusted with it by `ack_with`.
    entrusted: u64,
    /// What the disk has lost, until the log holds it again.
    debt: Option<Debt>,

    /// Boxed, as all that most of ten thousand groups do not have.
    snapshot: Option<Box<SnapshotMeta>>,
    /// A received snapshot that becomes current with the write of this id.
    installing: Option<(u64, Box<SnapshotMeta>)>,
    taking_snapshot: bool,
    /// What had been applied, and the log's weight, when a snapshot was last asked for.
    snapshot_mark: (u64, u64),
    /// The log's weight up to the current snapshot.
    covered_weight: u64,
    /// When the latest attempt to take a snapshot failed.
    failed_at: Option<u64>,
    /// Room for entries, where the store has said so.
    left: Option<Left>,
    /// How often this node has handed over because its room was short, since it last led with room.
    room_transfers: u32,
    /// The average weight of the entries between the last two snapshots that were asked for.
    entry_weight: u64,

    /// The last name that an earlier leadership of this core gave.
    last_name: u64,
    proposals: Proposals,
    forwarded: Forwarded,
    /// Messages that must not leave before the write of the given id is durable.
    /// Invariant: at most one of each kind for each receiver, `MAX_HELD` in all, in ascending order
    /// of ids.
    held: VecDeque<(u64, u64, Message)>,
    out: VecDeque<Output>,
    halted: Option<HaltReason>,
    /// A step happened since the last flush.
    dirty: bool,
}

impl Core {
    /// A node that goes on from what its store gave back.
    ///
    /// # Errors
    /// [`CoreError`] when the configuration breaks a rule or the restored parts contradict each
    /// other. A damaged store is no error: the core then starts halted.
    pub fn new(config: Config, restored: Restored, now: u64) -> Result<Self, CoreError> {
        config.validate()?;
        let damaged = restored.log.is_none();
        let gate = Gate::new(&config);
        let start = restored.start(&gate)?;
        let covered = start.snapshot.as_ref().map_or(0, |meta| meta.index);
        let timing = Timing::new(&config);
        let mut rng = Rng::new(config.drawn_seed() ^ config.id.rotate_left(32));
        let mut core = Self {
            timing,
            roster: Roster::new(config.id, start.members.effective()),
            members: start.members,
            members_changed: false,
            removed: None,
            forwarded: Forwarded::new(rng.next()),
            rng,
            gate,
            rejected_inputs: 0,
            clock: Clock::new(now),
            now: 0,
            term: start.hard_state.term,
            vote: start.hard_state.vote,
            role: RoleState::Follower,
            leader: None,
            contact: None,
            promised_until: lease::promised_at_start(timing, start.hard_state.term),
            lease_reads: 0,
            election_at: 0,
            awaits_nodes: false,
            candidacies: 0,
            yielded: false,
            quiescence: Quiescence::default(),
            ballot: None,
            storage: start.storage,
            log: start.log,
            commit: start.commit,
            applying: covered,
            handed: Handed::default(),
            applied: 0,
            verified: start.commit,
            ack: Ack::default(),
            entrusted: 0,
            debt: start.debt,
            snapshot: start.snapshot.map(Box::new),
            installing: None,
            taking_snapshot: false,
            snapshot_mark: (covered, 0),
            covered_weight: 0,
            failed_at: None,
            left: None,
            room_transfers: 0,
            entry_weight: 0,
            last_name: 0,
            proposals: Proposals::default(),
            held: VecDeque::new(),
            out: VecDeque::new(),
            halted: None,
            dirty: true,
            config,
        };
        core.begin(damaged);
        Ok(core)
    }

    fn begin(&mut self, is_damaged: bool) {
        // A sole voter has nobody to be repaired from, unless its log lacks who was added.
        let is_alone = self.roster.is_sole_voter() && !self.config.dynamic;
        if is_damaged || (self.is_recovering() && is_alone) {
            self.halt(HaltReason::Damaged);
            return;
        }
        if let Some(meta) = self.snapshot().cloned() {
            self.out.push_back(Output::Restore { meta });
        }
        // A sole voter has no leader to wait for.
        if !self.roster.is_sole_voter() {
            self.reset_election_timer();
        }
    }

    /// Takes what happened at `now`, in nanoseconds. What to do about it comes out of
    /// [`poll_output`](Self::poll_output), which is to be polled until `None` before the next
    /// batch of steps: a step may change the ranges of the log that earlier outputs name.
    pub fn step(&mut self, now: u64, input: Input) {
        self.now = self.clock.advance(now);
        self.dirty = true;
        if self.out.capacity() == 0 {
            // Few inputs lead to more: among ten thousand groups it would be memory for nothing.
            self.out.reserve_exact(2);
        }
        if self.halted.is_some() {
            self.reject_when_halted(&input);
            return;
        }
        self.stir(&input);
        match input {
            Input::Tick => self.on_tick(),
            Input::Beat => self.on_beat(),
            Input::Node { node, life } => self.on_node(node, life),
            Input::Resigned { from, term } => self.on_resigned(from, term),
            Input::Message { from, message } => self.on_message(from, message),
            Input::Propose { token, data } => self.on_propose(token, data),
            Input::Read { token } => self.on_read(token),
            Input::WithdrawReads { tokens } => self.on_withdraw_reads(tokens),
            Input::Persisted { id } => self.on_persisted(id),
            Input::PersistFailed { id } => self.on_persist_failed(id),
            Input::Applied { index } => self.on_applied(index),
            Input::Fetched { id, result } => self.on_fetched(id, result),
            Input::SnapshotTaken { meta } => self.on_snapshot_taken(meta),
            Input::SnapshotFailed => self.on_snapshot_failed(),
            Input::Room { room } => self.on_room(room),
            Input::SnapshotSent { id, ended } => self.on_snapshot_sent(id, ended),
            Input::SnapshotReceived { from, term, meta } => {
                self.on_snapshot_received(from, term, meta);
            }
            Input::Unreachable { peer } => self.on_unreachable(peer),
            Input::Compact { upto } => self.on_compact(upto),
            Input::Campaign => self.on_campaign(),
            Input::Change { token, change } => self.on_change(token, change),
            Input::WithdrawChange { token } => self.on_withdraw_change(token),
            Input::TransferLeadership { to } => self.on_transfer(to),
        }
    }

    /// The next thing to do, in order; `None` when there is nothing more until the next step.
    /// Poll until `None`, and take the entries that an output names from
    /// [`entries`](Self::entries), before the next step.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.dirty && self.out.is_empty() {
            self.dirty = false;
            self.flush();
            if cfg!(debug_assertions) {
                self.check_invariants();
            }
        }
        self.out.pop_front()
    }

    /// When [`Input::Tick`] is due, if nothing else happens before. `None`: never, the node has
    /// halted or its group has quiesced.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.halted.is_some() {
            return None;
        }
        let role = match &self.role {
            _ if self.quiescence.quiesced => None,
            RoleState::Leader(leader) => Some(self.leader_deadline(leader)),
            _ => Some(self.election_at),
        };
        let at = match (role, self.forwarded.deadline()) {
            (Some(role), Some(asked)) => role.min(asked),
            (role, asked) => role.or(asked)?,
        };
        Some(self.clock.to_caller(at))
    }

    /// What this node, as the leader, knows of its followers. Empty while it does not lead.
    pub fn followers(&self) -> impl Iterator<Item = FollowerStatus> {
        let leader = match &self.role {
            RoleState::Leader(leader) => Some(leader),
            _ => None,
        };
        leader.into_iter().flat_map(|leader| &leader.peers).map(|peer| peer.status(self.now))
    }

    /// What to check inputs of peers with before they reach the core.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Lends the entries of `range`. The entries of [`Persist::range`] and
    /// [`Output::Replicate`] are in memory until the next step: there an error is a bug of the
    /// core, and a harness must fail on it. An empty range is lent wherever it lies.
    ///
    /// # Errors
    /// [`NotInMemory`] when an entry of `range` is not in memory. The entries of
    /// [`Output::Apply`] are then read from the store.
    pub fn entries(
        &self,
        range: Range<u64>,
    ) -> Result<
        impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator + Clone + std::fmt::Debug,
        NotInMemory,
    > {
        self.log.entries(range)
    }

    /// A moment of this node.
    pub fn status(&self) -> Status {
        Status {
            id: self.config.id,
            group: self.config.group,
            role: self.role(),
            term: self.term,
            leader: self.leader,
            first: self.log.first(),
            last: self.log.last(),
            durable: self.storage.durable(),
            commit: self.commit,
            applied: self.applied,
            snapshot: self.snapshot.as_ref().map_or(0, |meta| meta.index),
            rejected_inputs: self.rejected_inputs,
            lost_followers: match &self.role {
                RoleState::Leader(leader) => leader.peers.iter().filter(|peer| peer.lost).count(),
                _ => 0,
            },
            members_index: self.members.index(),
            is_voter: self.roster.votes(),
            is_joint: self.members.effective().is_joint(),
            is_quiesced: self.quiescence.quiesced,
            removed: self.removed.map(|removal| removal.index),
            recovering: self.debt.map(|debt| debt.until),
            halted: self.halted,
        }
    }

    /// What this node is in its term.
    pub fn role(&self) -> Role {
        match self.role {
            RoleState::Follower => Role::Follower,
            RoleState::PreCandidate(_) => Role::PreCandidate,
            RoleState::Candidate => Role::Candidate,
            RoleState::Leader(_) => Role::Leader,
        }
    }

    /// The leader of the current term, as far as this node knows.
    pub fn leader(&self) -> Option<u64> {
        self.leader
    }

    /// The last index known to be committed.
    pub(crate) fn commit(&self) -> u64 {
        self.commit
    }

    /// The last index that the state machine has reported as applied.
    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }

    /// The highest index that is both committed and durable here: no crash loses entries up to it.
    pub(crate) fn safe_commit(&self) -> u64 {
        self.commit.min(self.storage.durable())
    }

    /// Whether the node runs, and all entries of its log are durable.
    pub(crate) fn has_written_all(&self) -> bool {
        self.halted.is_none() && self.storage.durable() == self.log.last()
    }

    /// The configuration that it runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> Option<&SnapshotMeta> {
        self.snapshot.as_deref()
    }

    /// The term of `index`, if the log still knows it.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.log.term_at(index)
    }

    /// The hard state, durable or not.
    pub fn hard_state(&self) -> HardState {
        HardState { term: self.term, vote: self.vote }
    }

    /// Turns what has changed since the last flush into outputs.
    fn flush(&mut self) {
        if self.halted.is_some() {
            return;
        }
        // First, so that nothing that is handed out below is evicted.
        self.log.evict(self.storage.durable(), self.config.max_window_bytes);
        self.advance_leader_commit();
        self.advance_change();
        self.advance_transfer();
        self.advance_repair();
        self.flush_persist();
        self.flush_reads();
        self.flush_replication();
        self.flush_ack();
        self.flush_forwarded();
        self.flush_apply();
    }

    fn flush_persist(&mut self) {
        while self.storage.writes() < self.config.max_persists {
            let max_bytes = self.config.max_persist_bytes;
            let max_bytes = self.writable_bytes().map_or(max_bytes, |left| max_bytes.min(left));
            match self.storage.next_write(&self.log, self.now, max_bytes) {
                Some(persist) => self.out.push_back(Output::Persist(persist)),
                None => break,
            }
        }
    }

    /// Sends `message`. One that is a promise waits until the term and vote that it speaks for
    /// are durable.
    ///
    /// A promise that waits replaces an earlier one of the same kind to the same voter: the later
    /// one says all that the earlier one did, and so the messages that wait are few.
    fn send(&mut self, to: u64, message: Message) {
        match self.storage.hard_pending() {
            Some(id) if message.is_promise() => {
                // Candidates that are strangers are told by the same rule; past the bound a message
                // counts as lost.
                if self.held.len() >= MAX_HELD {
                    return;
                }
                let kind = std::mem::discriminant(&message);
                self.held.retain(|(_, receiver, held)| {
                    *receiver != to || std::mem::discriminant(held) != kind
                });
                self.held.push_back((id, to, message));
            }
            _ => self.out.push_back(Output::Send { to, message }),
        }
    }

    fn on_persisted(&mut self, id: u64) {
        let hard_was_pending = self.storage.hard_pending().is_some();
        if !self.storage.complete(id, self.now) {
            return;
        }
        while self.held.front().is_some_and(|(held, ..)| *held <= id) {
            let Some((_, to, message)) = self.held.pop_front() else { break };
            // The vote of a term that is over may never have been written: its write was replaced
            // by the one of the next term.
            let is_over = message.term() < self.term;
            if !(is_over && matches!(message, Message::VoteReply(_))) {
                self.out.push_back(Output::Send { to, message });
            }
        }
        if let Some((_, meta)) = self.installing.take_if(|(install, _)| *install <= id) {
            self.install_snapshot(*meta);
        }
        self.count_own_vote();
        let leads = matches!(self.role, RoleState::Leader(_));
        if !leads {
            self.ack.due_if_durable(self.verified.min(self.storage.durable()));
        }
        if hard_was_pending && self.storage.hard_pending().is_none() && !leads {
            // The term and vote have just become durable. Only from now on can this node's part
            // in the election be answered, so the answers get a whole wait.
            self.reset_election_timer();
        }
    }

    fn on_persist_failed(&mut self, id: u64) {
        if !self.storage.is_under_way(id) {
            return;
        }
        self.halt(HaltReason::PersistFailed);
    }

    /// Stops for good: what is under way is given up, and only refusals follow.
    fn halt(&mut self, reason: HaltReason) {
        self.quiescence.quiesced = false;
        self.become_follower(self.term, None);
        self.out.retain(|output| {
            matches!(
                output,
                Output::Proposed { .. }
                    | Output::Rejected { .. }
                    | Output::Lost { .. }
                    | Output::ReadReady { .. }
                    | Output::ReadRejected { .. }
                    | Output::ChangeRejected { .. }
                    | Output::ChangeLost { .. }
                    | Output::Changed { .. }
            )
        });
        self.held.clear();
        self.installing = None;
        let (proposals, out) = (&mut self.proposals, &mut self.out);
        proposals.lose_all(out);
        self.reject_forwarded(crate::ReadRejected::Halted);
        self.halted = Some(reason);
        self.out.push_back(Output::Halted { reason });
    }

    fn reject_when_halted(&mut self, input: &Input) {
        match input {
            Input::Propose { token, .. } => self.out.push_back(Output::Rejected {
                token: *token,
                reason: crate::ProposeRejected::Halted,
            }),
            Input::Read { token } => self.out.push_back(Output::ReadRejected {
                token: *token,
                reason: crate::ReadRejected::Halted,
            }),
            Input::Change { token, .. } => self.out.push_back(Output::ChangeRejected {
                token: *token,
                reason: crate::ChangeRejected::Halted,
            }),
            _ => {}
        }
    }
}
