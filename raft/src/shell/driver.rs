//! The task that moves the core: it takes what has happened, lets the core decide, and sees to
//! what the core asks for. It never waits for a disk, a peer or the state machine, though it polls
//! a quick machine beside its events.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::mem::take;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::acks::{Acknowledge, Acks};
use super::alarm::Alarm;
use super::applier::{Job, Machine};
use super::error::{ChangeError, Doubt, ProposeError, ReadError, StopReason};
use super::pending::{ChangeReply, Proposal, Proposals, Reads};
use super::progress::{CommitIndex, FollowersView, Freshness};
use super::receive_snapshot::{Staging, give_up};
use super::room::RoomWatch;
use super::send_snapshot;
use super::shared::{Answer, Event, Shared, count, count_alone};
use super::tasks::Tasks;
use crate::core::{Core, FetchError, Input, Output, Patience, Persist, TransferEnd};
use crate::error::{ProposeRejected, ReadRejected};
use crate::membership::Membership;
use crate::message::{AppendAck, Message};
use crate::node::hub::{Seat, Shown};
use crate::store::{Completion, LogStore, LogWrite, ReadFailed, SnapshotName, StoreError};
use crate::transport::Transport;
use crate::types::{ENTRY_OVERHEAD, Entry, HaltReason, Role, SnapshotMeta, Status};

/// Turns after which the loop lets others run, in case it never sleeps.
const TURNS_AT_A_STRETCH: u32 = 64;

/// How far the indexes that watchers see may be behind, in nanoseconds. Waking watchers for every
/// entry would cost more than replicating it.
const SHOW_WITHIN: u64 = 1_000_000;

/// A node's core and everything that it acts on.
pub(crate) struct Driver {
    pub(crate) core: Core,
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) transport: Arc<dyn Transport>,
    /// The group's place on a node of many groups, and what that knows of it.
    pub(crate) seat: Option<(Arc<Seat>, Shown)>,
    pub(crate) machine: Machine,
    pub(crate) status: watch::Sender<Status>,
    /// As they were last shown.
    pub(crate) members: Arc<Membership>,
    /// Callers of changes by token; the core takes one at a time and answers the others at once.
    pub(crate) changes: BTreeMap<u64, ChangeReply>,
    /// What core time 0 is on the clock.
    pub(crate) epoch: Instant,
    pub(crate) proposals: Proposals,
    pub(crate) reads: Reads,
    /// Reads that were withdrawn in this turn and that the core has not answered.
    pub(crate) withdrawn: Vec<u64>,
    /// What the transport's side of this node receives.
    pub(crate) staging: Staging,
    /// Reads from the log and transfers of snapshots; bounded by the core.
    pub(crate) tasks: Tasks,
    /// The transfers among them, with their receiver and the term.
    pub(crate) transfers: Vec<(u64, u64, AbortHandle)>,
    pub(crate) freshness: Freshness,
    pub(crate) followers: FollowersView,
    pub(crate) commit_index: CommitIndex,
    pub(crate) room: RoomWatch,
    pub(crate) acks: Acks,
    /// When the latest turn began.
    pub(crate) now: u64,
    /// When the status has to be shown, if it is behind.
    pub(crate) show_at: Option<u64>,
    /// When it was last shown.
    pub(crate) shown_at: u64,
    /// What the store said when a call to it failed for the first time.
    pub(crate) cause: Option<String>,
    /// Why to stop when this turn is over.
    pub(crate) ending: Option<StopReason>,
    /// What this turn writes.
    pub(crate) writes: Vec<Persist>,
    /// Several callers have just been answered.
    pub(crate) expects_more_proposals: bool,
    /// Proposals for the next round of replication, where the node is short of processor.
    pub(crate) gathered: Vec<Event>,
}

impl Driver {
    /// Runs until the node stops, and says why it did.
    pub(crate) async fn run(&mut self) -> StopReason {
        let mut events = Vec::new();
        let timer = pin!(sleep_until(self.epoch));
        let mut alarm = Alarm::new(timer);
        let mut turns = 0;
        loop {
            let turn = poll_fn(|cx| Poll::Ready(self.turn(cx, &mut events)));
            if let Some(reason) = turn.await {
                return reason;
            }
            turns += 1;
            // Those who have just been answered often propose again at once. Where the first of
            // them is not handled before the others have had their turn, all go into one batch.
            if take(&mut self.expects_more_proposals) || turns == TURNS_AT_A_STRETCH {
                turns = 0;
                tokio::task::yield_now().await;
            }
            let open = self.sleep(&mut events, &mut alarm, &mut turns).await;
            if !open {
                return self.shared.why_stopped();
            }
        }
    }

    /// Waits for events or the next deadline. Returns whether there may be more events.
    async fn sleep(
        &mut self,
        events: &mut Vec<Event>,
        alarm: &mut Alarm<'_>,
        turns: &mut u32,
    ) -> bool {
        poll_fn(|cx| {
            // First, so that what it has applied is among the events.
            let _ = self.machine.poll(cx);
            let patience = || Patience {
                proposals: self.is_pressed() && self.is_round_under_way(),
                ..self.core.sleeps_through()
            };
            if let Poll::Ready(open) = self.shared.events.poll_take(cx, events, patience) {
                return Poll::Ready(open);
            }
            if !self.gathered.is_empty() && !self.is_round_under_way() {
                return Poll::Ready(true);
            }
            *turns = 0;
            alarm.poll(cx, self.deadline()).map(|()| true)
        })
        .await
    }

    fn deadline(&self) -> Instant {
        let store_at = self.commit_index.deadline(&self.core);
        let room_at = self.room.deadline(&self.core);
        // A day: late enough to be harmless, early enough for every timer.
        let idle = self.now.saturating_add(86_400_000_000_000);
        let earlier = |than: u64, at: Option<u64>| than.min(at.unwrap_or(than));
        let nanos = earlier(earlier(idle, self.core.next_deadline()), self.overdue_at());
        let nanos = earlier(nanos, room_at);
        self.epoch + Duration::from_nanos(earlier(earlier(nanos, self.show_at), store_at))
    }

    /// When the oldest proposal has waited long enough.
    fn overdue_at(&self) -> Option<u64> {
        let timeout = duration_nanos(self.core.config().proposal_timeout);
        self.proposals.oldest().map(|at| at.saturating_add(timeout))
    }

    /// Steps everything at hand and does what comes of it. Returns why to stop, if so.
    fn turn(&mut self, cx: &mut Context<'_>, events: &mut Vec<Event>) -> Option<StopReason> {
        self.now = duration_nanos(self.epoch.elapsed());
        let now = self.now;
        count_alone(&self.shared.counters.turns, 1);
        self.room.look(&mut self.core, &*self.log, now);
        // Before a vote may forget entries.
        if self.core.must_take_acks_back() {
            self.core.acks_taken_back(self.acks.take_back());
        }
        self.take_in(now, events);
        if self.core.next_deadline().is_some_and(|at| at <= now) {
            self.hold_election_until_admitted(now);
            if self.seat.as_ref().is_some_and(|(seat, _)| seat.is_late()) {
                self.core.bear_silence(now);
            }
            self.core.step(now, Input::Tick);
        }
        let has_written = self.carry_out(now);
        // What a quick machine applies, what a quick store has written, and what has come
        // meanwhile, belongs to the same turn; a write alone does not go before those who have
        // just been answered.
        let has_written = has_written && !self.expects_more_proposals;
        if self.ending.is_none() && (self.machine.poll(cx) || has_written) {
            self.shared.events.take(events);
            if !events.is_empty() {
                self.take_in(now, events);
                self.carry_out(now);
            }
        }
        let status = self.core.status();
        self.shared.counters.lease_reads.store(self.core.lease_reads(), Ordering::Relaxed);
        self.store_commit_index();
        self.end_transfers(&status);
        self.tasks.reap();
        self.give_up_overdue(now);
        self.freshness.update(&self.core, &status, &self.shared);
        self.followers.update(&self.core, status.role == Role::Leader, &self.shared, now);
        if status.is_quiesced {
            // There may be ten thousand groups like this one, and few of their turns.
            self.core.shrink();
            self.machine.shrink();
            self.writes.shrink_to_fit();
            self.transfers.shrink_to_fit();
            self.gathered.shrink_to_fit();
            self.shared.events.shrink();
        }
        self.publish(status);
        self.ending.take()
    }

    /// Does what comes of the steps. Returns whether the log was handed something to write.
    fn carry_out(&mut self, now: u64) -> bool {
        // Before a received snapshot is taken from where it was handed over: who looks there and
        // finds nothing has to see that it is committed.
        let commit = self.core.commit();
        self.shared.term.store(self.core.hard_state().term, Ordering::Release);
        self.shared.commit.store(commit, Ordering::Release);
        let leader = self.core.leader().filter(|_| self.core.is_short_of_room());
        give_up(&self.staging, &self.shared, commit, leader);
        // Before anything is sent: whoever rests because of it must hear when that is over.
        if let Some((seat, shown)) = &mut self.seat {
            seat.show(shown, &self.core);
        }
        loop {
            let output = self.core.poll_output();
            // First, so that the transport knows the address of whoever is sent something.
            self.publish_members();
            let Some(output) = output else { break };
            self.perform(output);
        }
        if let Some((seat, shown)) = &mut self.seat {
            seat.show(shown, &self.core);
        }
        // Last: handing a write over may wake a thread that takes this one's place on its
        // processor, and what peers have been sent does not depend on it.
        self.commit_index.update(self.core.safe_commit(), now);
        if self.writes.is_empty() {
            return false;
        }
        let mut writes = take(&mut self.writes);
        writes.drain(..).for_each(|persist| self.persist(persist));
        self.writes = writes;
        true
    }

    /// Steps the events at hand. Proposals wait for the end of a round under way, where rounds do.
    fn take_in(&mut self, now: u64, events: &mut Vec<Event>) {
        let gathers = !self.gathered.is_empty() || self.is_pressed();
        for event in events.drain(..) {
            if gathers && matches!(event, Event::Propose { .. }) {
                self.gathered.push(event);
            } else {
                self.step(now, event);
            }
        }
        // Those who have just been answered get their turn before the next round begins.
        if !self.gathered.is_empty() && !self.is_round_under_way() && !self.expects_more_proposals {
            let mut gathered = take(&mut self.gathered);
            gathered.drain(..).for_each(|event| self.step(now, event));
            self.gathered = gathered;
        }
        if !self.withdrawn.is_empty() {
            let tokens = take(&mut self.withdrawn);
            self.core.step(now, Input::WithdrawReads { tokens });
        }
    }

    fn step(&mut self, now: u64, event: Event) {
        if let Some(input) = self.input(now, event) {
            self.core.step(now, input);
        }
    }

    /// Whether this is one of many groups at work that wait for the processor. A round of
    /// replication costs about the same for one entry and for many, so each group then begins one
    /// when the one before has ended, with all that was proposed meanwhile. A group that has the
    /// processor to itself does not wait: its rounds follow each other closely.
    fn is_pressed(&self) -> bool {
        self.seat.as_ref().is_some_and(|(seat, _)| seat.is_pressed())
    }

    /// Whether this node leads and callers wait for what it has in its log. A machine with a task
    /// of its own works on one round while the next one is replicated.
    fn is_round_under_way(&self) -> bool {
        self.core.is_round_under_way(self.machine.is_here())
    }

    /// Where an election is due and the node has no place for it, it waits for
    /// [`Event::Admitted`].
    fn hold_election_until_admitted(&mut self, now: u64) {
        if let Some((seat, shown)) = &mut self.seat
            && self.core.is_election_due(now)
            && !seat.ask_to_campaign(shown)
        {
            self.core.hold_election();
        }
    }

    /// Turns an event into the core's input, where it has one.
    fn input(&mut self, now: u64, event: Event) -> Option<Input> {
        Some(match event {
            Event::Propose { data, proposal } => self.propose(now, data, proposal),
            Event::Read { token, deadline, reply } => {
                count_alone(&self.shared.counters.reads, 1);
                self.reads.add(token, reply);
                if deadline <= self.epoch + Duration::from_nanos(now) {
                    self.fail_read(token, ReadError::TimedOut);
                    return None;
                }
                Input::Read { token }
            }
            Event::ReadWithdrawn { token } => {
                self.withdraw_read(token);
                return None;
            }
            Event::Message { from, message, weight } => {
                self.shared.taken(weight);
                self.freshness.heard(&self.core, from, &message, now);
                Input::Message { from, message }
            }
            Event::Unreachable { peer } => Input::Unreachable { peer },
            event @ (Event::Beat | Event::Node { .. } | Event::Resigned | Event::Admitted) => {
                self.node_input(&event)?
            }
            Event::Campaign => {
                self.shared.campaign_taken();
                Input::Campaign
            }
            Event::Change { token, change, reply } => {
                self.changes.insert(token, reply);
                Input::Change { token, change }
            }
            Event::ChangeWithdrawn { token } => {
                self.changes.remove(&token);
                Input::WithdrawChange { token }
            }
            Event::TransferLeadership { to } => Input::TransferLeadership { to },
            Event::Persisted { id, result, ack } => self.persisted(id, result, ack),
            Event::Fetched { id, result } => {
                self.note_failed_read(&result);
                Input::Fetched { id, result: result.map_err(|error| FetchError::from(&error)) }
            }
            Event::Applied { index, answered: callers } => {
                self.expects_more_proposals |= callers > 1;
                let answered = self.reads.applied(index);
                self.shared.read_room.add_permits(answered);
                Input::Applied { index }
            }
            Event::SnapshotTaken { meta } => {
                count(&self.shared.counters.snapshots_taken, 1);
                Input::SnapshotTaken { meta: *meta }
            }
            Event::SnapshotFailed => Input::SnapshotFailed,
            Event::SnapshotSent { id, ended } => {
                count(
                    &self.shared.counters.snapshots_sent,
                    u64::from(ended == TransferEnd::Complete),
                );
                Input::SnapshotSent { id, ended }
            }
            Event::SnapshotReceived { from, term, meta } => {
                Input::SnapshotReceived { from, term, meta: *meta }
            }
            Event::Stop(reason) => {
                self.ending.get_or_insert(reason);
                return None;
            }
        })
    }

    /// A write has ended, and with `ack` the leader has been told so.
    fn persisted(
        &mut self,
        id: u64,
        result: Result<(), StoreError>,
        ack: Option<AppendAck>,
    ) -> Input {
        match result {
            // What it asked for beside its entries is durable, and of those the core expects none.
            Ok(()) | Err(StoreError::Overtaken) => {}
            Err(error) => {
                self.note_failure("a write", &error);
                return Input::PersistFailed { id };
            }
        }
        if let Some(ack) = ack {
            self.core.acknowledged(&ack);
        }
        Input::Persisted { id }
    }

    /// What comes from the node of many groups.
    fn node_input(&mut self, event: &Event) -> Option<Input> {
        match event {
            Event::Admitted => {
                if let Some((_, shown)) = &mut self.seat {
                    // Given back at the end of this turn where nothing comes of it.
                    Seat::admitted(shown);
                }
                self.core.release_election().then_some(Input::Tick)
            }
            Event::Beat => {
                self.shared.beat_taken();
                Some(Input::Beat)
            }
            Event::Node { node, life } => Some(Input::Node { node: *node, life: *life }),
            Event::Resigned => {
                let (from, term) = self.shared.take_resignation()?;
                Some(Input::Resigned { from, term })
            }
            _ => None,
        }
    }

    fn propose(&mut self, now: u64, data: Bytes, proposal: Proposal) -> Input {
        count_alone(&self.shared.counters.proposals, 1);
        Input::Propose { token: self.proposals.add(proposal, now), data }
    }

    /// The caller of a read waits no more: its room comes back, and the core forgets it.
    fn withdraw_read(&mut self, token: u64) {
        if let Some((_, confirmed)) = self.reads.take(token) {
            self.shared.read_room.add_permits(1);
            self.withdrawn.extend((!confirmed).then_some(token));
        }
    }

    fn note_failed_read(&mut self, result: &Result<Vec<Entry>, ReadFailed>) {
        if let Err(error) = result
            && FetchError::from(error) == FetchError::Failed
        {
            self.note_failure("a read of entries", error);
        }
    }

    /// Keeps the first failure of the store: it is why the node will halt.
    fn note_failure(&mut self, what: &str, error: &dyn std::error::Error) {
        let node = self.core.config().id;
        tracing::error!(target: "voussoir::raft", node, %error, "{what} failed");
        self.cause.get_or_insert_with(|| error.to_string());
    }

    /// Does what the core asks for.
    fn perform(&mut self, output: Output) {
        match output {
            Output::Persist(persist) => {
                // Mostly it is the only one.
                if self.writes.capacity() == 0 {
                    self.writes.reserve_exact(1);
                }
                self.writes.push(persist);
            }
            Output::Send { to, message } => self.send(to, message),
            Output::Replicate { to, head, range } => {
                let entries = self.lent(range);
                self.send(to, Message::Append { head, entries });
            }
            Output::Apply { range } => {
                let waiting = self.proposals.applying(&range);
                let lent = self.core.entries(range.clone());
                let entries = lent.ok().map(|entries| entries.cloned().collect());
                self.machine.push(Job::Apply { range, entries, waiting });
            }
            Output::Restore { meta } => self.machine.push(Job::Restore { index: meta.index }),
            Output::TakeSnapshot => self.machine.push(Job::Snapshot),
            Output::SendSnapshot { id, to, term, meta } => {
                self.send_snapshot(id, to, term, meta.index);
            }
            Output::DiscardSnapshot { meta } => {
                if let Some(name) = self.handed_over(&meta) {
                    self.log.unstage(name.identity);
                }
            }
            Output::Fetch { id, range, max_bytes } => {
                let log = Arc::clone(&self.log);
                let failed = Err(ReadFailed::Failed(Arc::new(StoreError::Panicked)));
                let answer = Answer::new(&self.shared, Event::Fetched { id, result: failed });
                self.tasks.spawn(async move {
                    let result = log.read(range, max_bytes).await;
                    answer.give(Event::Fetched { id, result });
                });
            }
            Output::Proposed { token, count, index, .. } => {
                self.proposals.place(token, count, index);
            }
            Output::Rejected { token, reason } => self.refuse(token, reason),
            Output::Lost { token, count, superseded } => self.lose(token, count, superseded),
            Output::FollowerLost { peer, matched } => {
                let node = self.core.config().id;
                tracing::error!(
                    target: "voussoir::raft", node, peer, matched,
                    "a follower has lost entries that it had acknowledged: its disk was lost or \
                     replaced; it does not count until its own disk is back"
                );
            }
            Output::ReadReady { token, index } => self.confirm_read(token, index),
            Output::ReadRejected { token, reason } => self.reject_read(token, reason),
            Output::Removed { index } => {
                let node = self.core.config().id;
                tracing::info!(target: "voussoir::raft", node, index, "removed from the group");
            }
            Output::Changed { token, index } => self.end_change(token, Ok(index)),
            Output::ChangeRejected { token, reason } => {
                self.end_change(token, Err(reason.into()));
            }
            Output::ChangeLost { token } => self.end_change(token, Err(ChangeError::Deposed)),
            // Rather than what else there may be: it says what was wrong.
            Output::Halted { reason } => self.ending = Some(self.halted(reason)),
        }
    }

    fn end_change(&mut self, token: u64, result: Result<u64, ChangeError>) {
        if let Some(reply) = self.changes.remove(&token) {
            // An error here only says that the caller has gone.
            let _ = reply.send(result);
        }
    }

    /// Tells the transport and whoever watches of a membership that has begun to count.
    fn publish_members(&mut self) {
        let members = self.core.shared_members();
        if Arc::ptr_eq(members, &self.members) {
            return;
        }
        self.members = Arc::clone(members);
        let (node, index) = (self.core.config().id, self.core.members_index());
        tracing::info!(
            target: "voussoir::raft", node, index, voters = ?members.voters(),
            outgoing = ?members.outgoing(), learners = ?members.learners(), "members"
        );
        self.shared.show_members(members);
        self.transport.members(self.core.config().group, self.core.members());
    }

    fn lent(&self, range: std::ops::Range<u64>) -> Vec<Entry> {
        let lent = self.core.entries(range);
        lent.expect("the core lends the entries that it wants written or sent").cloned().collect()
    }

    fn persist(&mut self, persist: Persist) {
        let ack = self.ack_on_completion(&persist);
        let Persist { id, snapshot, truncate_from, release, range, hard_state, voters, repaired } =
            persist;
        let counters = &self.shared.counters;
        count_alone(&counters.writes, 1);
        count_alone(&counters.entries_written, range.end.saturating_sub(range.start));
        let (known, is_cheap) = (self.core.safe_commit(), hard_state.is_some());
        let commit = self.commit_index.take_along(known, self.now, is_cheap);
        let write = LogWrite {
            snapshot: snapshot.and_then(|meta| self.handed_over(&meta)),
            truncate_from,
            release,
            entries: self.lent(range),
            hard_state,
            voters,
            condemned: false,
            commit,
            repaired,
        };
        let shared = Arc::clone(&self.shared);
        let tell = move |result: Result<(), StoreError>| {
            let is_fine = result.is_ok();
            let ack = ack.filter(|_| is_fine).and_then(|ack| ack.send(&shared));
            let bears = move |patience: &Patience| is_fine && patience.bears_write(ack.as_ref());
            shared.tell_patiently(Event::Persisted { id, result, ack }, bears);
        };
        self.log.write(write, Completion::new(tell));
    }

    /// On a node of many groups a follower's acknowledgement goes on its way, with those of the
    /// others, where its write completes. A turn of the group for that would cost more than all
    /// else that the follower does for an entry.
    fn ack_on_completion(&mut self, persist: &Persist) -> Option<Acknowledge> {
        let (seat, _) = self.seat.as_ref()?;
        let (to, ack) = self.core.ack_with(persist)?;
        Some(self.acks.entrust(seat, to, ack))
    }

    /// Writes the commit index by itself when it is due and nothing else was written.
    fn store_commit_index(&mut self) {
        if self.commit_index.deadline(&self.core).is_none_or(|at| at > self.now) {
            return;
        }
        if let Some(commit) = self.commit_index.take_due(self.core.safe_commit(), self.now) {
            let write = LogWrite { commit: Some(commit), ..LogWrite::default() };
            self.shared.write_or_stop(&*self.log, write);
        }
    }

    /// The received snapshot that the core has decided about.
    fn handed_over(&self, meta: &SnapshotMeta) -> Option<SnapshotName> {
        self.shared.handed_over.lock().take_if(|name| name.meta == *meta).map(|name| *name)
    }

    fn send(&self, to: u64, message: Message) {
        let counters = &self.shared.counters;
        let group = self.core.config().group;
        count(&counters.messages_sent, 1);
        if self.transport.send(to, group, message).is_err() {
            count(&counters.sends_failed, 1);
        }
    }

    fn send_snapshot(&mut self, id: u64, to: u64, term: u64, at_least: u64) {
        let config = self.core.config();
        let transfer = send_snapshot::Transfer {
            id,
            group: config.group,
            to,
            term,
            at_least,
            window: config.snapshot_window,
            timeout: config.snapshot_timeout,
        };
        let (log, shared) = (Arc::clone(&self.log), Arc::clone(&self.shared));
        let transport = Arc::clone(&self.transport);
        let answer = Answer::new(&shared, Event::SnapshotSent { id, ended: TransferEnd::Futile });
        let task = self.tasks.spawn(async move {
            let ended = transfer.run(&*log, &*transport, &shared).await;
            answer.give(Event::SnapshotSent { id, ended });
        });
        self.transfers.push((to, term, task));
    }

    /// Ends the transfers to nodes that are members no more, or of which another one leads now:
    /// they would take their part of the rate from those that are of use.
    fn end_transfers(&mut self, status: &Status) {
        let (core, leads) = (&self.core, status.role == Role::Leader);
        self.transfers.retain(|(to, term, task)| {
            let is_of_use = leads && *term == status.term && core.members().contains(*to);
            if !is_of_use {
                task.abort();
            }
            is_of_use && !task.is_finished()
        });
    }

    fn fail(&self, proposal: Proposal, error: ProposeError) {
        self.shared.proposal_room.add_permits(proposal.weight as usize);
        proposal.fail(error);
    }

    fn refuse(&mut self, token: u64, reason: ProposeRejected) {
        let Some(proposal) = self.proposals.take(token) else { return };
        let error = match reason {
            ProposeRejected::NotLeader { leader } => ProposeError::NotLeader { leader },
            ProposeRejected::Busy => ProposeError::Busy,
            ProposeRejected::TooLarge => ProposeError::TooLarge {
                bytes: (u64::from(proposal.weight) - ENTRY_OVERHEAD) as usize,
                max_bytes: self.shared.max_entry_bytes,
            },
            ProposeRejected::Halted => ProposeError::Stopped(self.why_halted()),
        };
        self.fail(proposal, error);
    }

    fn lose(&mut self, token: u64, count: u64, superseded: bool) {
        let error = if superseded {
            ProposeError::Superseded
        } else if self.core.status().halted.is_some() {
            ProposeError::Unknown(Doubt::Stopped(self.why_halted()))
        } else {
            ProposeError::Unknown(Doubt::Snapshot)
        };
        for token in token..token + count {
            if let Some(proposal) = self.proposals.take(token) {
                self.fail(proposal, error.clone());
            }
        }
    }

    fn why_halted(&self) -> StopReason {
        let halted = self.core.status().halted;
        halted.map_or_else(|| self.shared.why_stopped(), |reason| self.halted(reason))
    }

    fn halted(&self, reason: HaltReason) -> StopReason {
        StopReason::Halted { reason, cause: self.cause.clone() }
    }

    fn give_up_overdue(&mut self, now: u64) {
        if self.overdue_at().is_none_or(|at| at > now) {
            return;
        }
        let timeout = duration_nanos(self.core.config().proposal_timeout);
        for proposal in self.proposals.overdue(now.saturating_sub(timeout)) {
            self.fail(proposal, ProposeError::Unknown(Doubt::TimedOut));
        }
    }

    fn confirm_read(&mut self, token: u64, index: u64) {
        self.reads.confirm(token, index);
        let answered = self.reads.applied(self.core.applied());
        self.shared.read_room.add_permits(answered);
    }

    fn reject_read(&mut self, token: u64, reason: ReadRejected) {
        let error = match reason {
            ReadRejected::Busy => ReadError::Busy,
            ReadRejected::Halted => ReadError::Stopped(self.why_halted()),
        };
        self.fail_read(token, error);
    }

    fn fail_read(&mut self, token: u64, error: ReadError) {
        let Some((reply, _)) = self.reads.take(token) else { return };
        self.shared.read_room.add_permits(1);
        // An error here only says that the caller has gone.
        let _ = reply.send(Err(error));
    }

    /// Shows what has changed to whoever watches: at once what matters, by and by how far the
    /// indexes are.
    fn publish(&mut self, status: Status) {
        let matters = |s: &Status| {
            (s.role, s.term, s.leader, s.halted, (s.snapshot, s.recovering), s.is_quiesced)
        };
        let (reign, recovering) = ((status.role, status.term), status.recovering);
        let (mut is_other, mut is_repaired) = (false, false);
        self.status.send_if_modified(|shown| {
            if *shown == status {
                self.show_at = None;
                return false;
            }
            // The handles have a receiver, and watchers have others. Asked under the lock of what
            // is shown: who begins to watch now has either seen it or is counted.
            let is_watched = self.status.receiver_count() > 1;
            if is_watched && matters(shown) == matters(&status) {
                let due = show_due(self.show_at, self.shown_at, self.now);
                if self.now < due {
                    self.show_at = Some(due);
                    return false;
                }
            }
            is_other = (shown.role, shown.term) != reign;
            is_repaired = shown.recovering.is_some() && recovering.is_none();
            (self.show_at, self.shown_at) = (None, self.now);
            *shown = status;
            // Where nobody watches the status is shown with every turn: nobody is woken, and no
            // timer is needed, which would cost a thousand groups a turn more for each command.
            is_watched
        });
        if !is_other && !is_repaired {
            return;
        }
        let Status { id: node, role, term, leader, last, .. } = self.core.status();
        if is_repaired {
            tracing::info!(target: "voussoir::raft", node, last, "repaired: the log is whole");
        }
        if is_other {
            tracing::info!(target: "voussoir::raft", node, %role, term, leader, "role");
        }
    }
}

/// When a status that is behind has to be shown: [`SHOW_WITHIN`] after the last one, which `due`
/// says once it is behind. Never later than that from now: a clock that jumps back would leave
/// watchers behind for that long.
fn show_due(due: Option<u64>, shown_at: u64, now: u64) -> u64 {
    due.unwrap_or(shown_at.saturating_add(SHOW_WITHIN)).min(now.saturating_add(SHOW_WITHIN))
}

/// Nanoseconds; some five hundred years fit.
fn duration_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_back_does_not_put_the_status_off() {
        let hour = 3_600_000_000_000;
        let due = show_due(None, hour, hour);
        assert_eq!(due, hour + SHOW_WITHIN);
        assert_eq!(show_due(Some(due), hour, hour + 500_000), due, "time goes on: it stays due");
        assert_eq!(show_due(Some(due), hour, 7), 7 + SHOW_WITHIN, "time jumped back by an hour");
        assert_eq!(show_due(None, hour, 7), 7 + SHOW_WITHIN, "and it was not behind before");
        assert_eq!(show_due(None, u64::MAX, u64::MAX), u64::MAX);
    }
}
