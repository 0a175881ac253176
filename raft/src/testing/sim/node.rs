//! A node of the world: the core, a store, a machine.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use voussoir_journal::testing::{Ruin, SimDisk};
use voussoir_sim::{
    Context, Crash, DiskFault, KvOp, KvRet, MILLISECOND, Node, RequestId, Rng, SECOND,
};

use super::disk::{self, Done, Opened, Store};
use super::host::{Host, Rest};
use super::machine::{Machine, Reply};
use super::oracle::Oracle;
use super::wire::Packet;
use crate::codec;
use crate::config::Config;
use crate::core::{Core, FetchError, Input, NotInMemory, Output, Persist, TransferEnd};
use crate::membership::{Change, Membership};
use crate::message::Message;
use crate::types::{Entry, EntryKind, HaltReason, Role, SnapshotMeta, Status};

/// What a node schedules for itself.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum Timed {
    /// The store works.
    Disk,
    /// The machine works.
    Machine,
    /// A read of entries for a follower has taken its time.
    Fetch {
        /// From [`Output::Fetch`].
        id: u64,
        /// The first index to read.
        start: u64,
        /// The index after the last one.
        end: u64,
        /// From [`Output::Fetch`].
        max_bytes: u64,
    },
    /// A snapshot transfer has taken too long.
    GiveUp(u64),
    /// The common tick of the groups of a process.
    Host,
}

/// Work for the machine, in order.
#[derive(Debug)]
enum Task {
    /// The entries of a range; `None`: they are read from the store when their turn comes, as the
    /// shell does.
    Apply(Range<u64>, Option<Vec<Entry>>),
    Restore(SnapshotMeta, Bytes),
    Snapshot,
}

/// A client that waits for its command to be applied.
#[derive(Debug)]
struct Waiting {
    token: u64,
    term: u64,
    request: RequestId,
}

/// A client that waits for a read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    request: RequestId,
    key: u64,
    /// What had been told to clients when it began.
    least: u64,
}

/// A simulated process around one core.
#[derive(Debug)]
pub(super) struct RaftNode {
    core: Core,
    /// What the groups of a process share; `None`: the group stands alone.
    pub(super) host: Option<Host>,
    store: Store,
    disk_busy: bool,
    /// The latest write that is not durable; 0 when all are.
    persisting: u64,
    machine: Machine,
    applied: (u64, u64),
    /// The membership at `applied`.
    members: Arc<Membership>,
    tasks: VecDeque<Task>,
    machine_busy: bool,
    /// Entries were released before they could be applied: nothing is applied before the next
    /// restore.
    awaits_restore: bool,
    snapshot: Option<(SnapshotMeta, Bytes)>,
    /// Received, and not yet taken or discarded by the core.
    staged: Vec<(SnapshotMeta, Bytes)>,
    transfers: Vec<u64>,
    /// Requests by token, until they have a place in the log.
    tokens: BTreeMap<u64, RequestId>,
    next_token: u64,
    /// The change of the membership that is under way.
    changing: Option<u64>,
    /// Requests by index.
    waiting: BTreeMap<u64, Waiting>,
    reads: BTreeMap<u64, Reading>,
    /// Confirmed reads, with the index that has to be applied first.
    ready: Vec<(u64, Reading)>,
    oracle: Rc<RefCell<Oracle>>,
    inputs: VecDeque<Input>,
    /// Role and term as last noted in the trace.
    known: (Role, u64),
    /// Reads answered under a lease when that was last looked at.
    lease_reads: u64,
}

impl RaftNode {
    /// A node that starts from its disk; `None` while that does not work.
    pub(super) fn boot(
        config: Config,
        disk: &mut SimDisk,
        seed: u64,
        now: u64,
        oracle: Rc<RefCell<Oracle>>,
        host: Option<Host>,
    ) -> Option<Self> {
        let opened = disk::open(disk, config.id, seed);
        let is_damaged = match &opened {
            Ok(Opened { restored, .. }) => restored.is_damaged() || restored.lost_until().is_some(),
            Err(error) => matches!(error, disk::OpenError::Damaged),
        };
        if is_damaged {
            disk.accuse();
        }
        let ruin = disk.ruin();
        let Opened { store, restored, snapshot } = match opened {
            Ok(opened) => opened,
            Err(error) => {
                oracle.borrow_mut().refused(config.id, error, ruin);
                return None;
            }
        };
        let damaged = restored.is_damaged();
        let core = match Core::new(config, restored, now) {
            Ok(core) => core,
            Err(error) => {
                oracle.borrow_mut().object(|| format!("a restored state is refused: {error}"));
                return None;
            }
        };
        if damaged {
            oracle.borrow_mut().damaged(core.status().id, ruin);
        } else if core.status().recovering.is_some() {
            oracle.borrow_mut().recovers(core.status().id, ruin);
            oracle.borrow_mut().restarted(core.status().id, &core);
            disk.absolve();
        } else {
            // Whatever happened to the disk, the node claims to have all that it has promised.
            oracle.borrow_mut().restarted(core.status().id, &core);
            oracle.borrow_mut().unharmed(ruin);
            disk.absolve();
        }
        Some(Self {
            members: core.base_members(),
            core,
            host,
            store,
            disk_busy: false,
            persisting: 0,
            machine: Machine::default(),
            applied: (0, 0),
            tasks: VecDeque::new(),
            machine_busy: false,
            awaits_restore: false,
            snapshot,
            staged: Vec::new(),
            transfers: Vec::new(),
            tokens: BTreeMap::new(),
            next_token: 0,
            changing: None,
            waiting: BTreeMap::new(),
            reads: BTreeMap::new(),
            ready: Vec::new(),
            oracle,
            inputs: VecDeque::new(),
            known: (Role::Follower, 0),
            lease_reads: 0,
        })
    }

    /// The bytes of one of its entries on the disk, by a number of any size: of those that may not
    /// be committed, or of all.
    pub(super) fn record(&self, wanted: u64, is_late: bool) -> Option<Bytes> {
        let Status { first, durable, commit, .. } = self.core.status();
        let from = if is_late { first.max(commit) } else { first };
        let count = (durable + 1).checked_sub(from).filter(|count| *count > 0)?;
        let index = from + wanted % count;
        let read = self.store.read(index..index + 1, 1).ok()?;
        read.first().map(codec::encode_entry)
    }

    /// The core's view.
    pub(super) fn status(&self) -> Status {
        self.core.status()
    }

    /// The membership that counts here.
    pub(super) fn members(&self) -> &Membership {
        self.core.members()
    }

    /// Wants another membership. The one that was wanted before is given up, now and then.
    pub(super) fn change(&mut self, ctx: &mut Context<'_, Self>, change: Change) {
        if let Some(token) = self.changing.take_if(|_| ctx.rng().chance(500_000)) {
            self.step(ctx, Input::WithdrawChange { token });
        }
        self.next_token += 1;
        let token = self.next_token;
        self.changing = self.changing.or(Some(token));
        ctx.note("wants other members: token", token, 0);
        self.step(ctx, Input::Change { token, change });
    }

    /// Wants another node to lead: `to`, or whichever.
    pub(super) fn hand_over(&mut self, ctx: &mut Context<'_, Self>, to: Option<u64>) {
        self.step(ctx, Input::TransferLeadership { to });
    }

    /// The state machine, and the last index that it holds.
    pub(super) fn machine(&self) -> (&Machine, u64) {
        (&self.machine, self.applied.0)
    }

    /// Steps, then does all that the core wants done.
    pub(super) fn step(&mut self, ctx: &mut Context<'_, Self>, input: Input) {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            let before = Rest::before(&self.core, &input);
            self.core.step(ctx.now(), input);
            self.poll(ctx);
            self.watch_rest(before, &self.core);
            if let Some(host) = &mut self.host {
                self.inputs.extend(host.follow(&self.core, self.core.config().group));
            }
        }
        self.flush_host(ctx);
        self.oracle.borrow_mut().observe(&self.core);
        let (status, known) = (self.core.status(), self.known);
        if (status.role, status.term) != known {
            self.known = (status.role, status.term);
            let label = match status.role {
                Role::Follower => "follows: term, last",
                Role::PreCandidate => "may be a candidate: term, last",
                Role::Candidate => "is a candidate: term, last",
                Role::Leader => "leads: term, last",
            };
            ctx.note(label, status.term, status.last);
        }
        if self.core.lease_reads()
            > std::mem::replace(&mut self.lease_reads, self.core.lease_reads())
        {
            self.reached("read answered under a lease");
        }
        ctx.set_timer(self.core.next_deadline());
    }

    fn poll(&mut self, ctx: &mut Context<'_, Self>) {
        while let Some(output) = self.core.poll_output() {
            self.act(ctx, output);
        }
        if !self.tasks.is_empty() && !self.machine_busy {
            self.machine_busy = true;
            let delay = pause(ctx, 10_000);
            ctx.schedule(delay, Timed::Machine);
        }
    }

    fn act(&mut self, ctx: &mut Context<'_, Self>, output: Output) {
        let group = self.core.config().group;
        if matches!(output, Output::Send { .. } | Output::Replicate { .. } | Output::Persist(_))
            && self.core.status().halted.is_some()
        {
            let id = ctx.id();
            self.oracle.borrow_mut().object(|| format!("node {id} has halted and goes on"));
        }
        match output {
            Output::Persist(persist) => self.persist(ctx, persist),
            Output::Send { to, message } => {
                self.oracle.borrow_mut().sent(ctx.id(), to, &message);
                self.watch_elections(&message);
                if matches!(message, Message::Vote(_)) && self.persisting > 0 {
                    self.reached("vote asked for while an own write is under way");
                }
                let alone = match &mut self.host {
                    Some(host) => host.join(to, group, message),
                    None => Some(message),
                };
                if let Some(message) = alone {
                    let bytes = codec::encode(group, &message).into_bytes();
                    ctx.send(to, Packet::Raft(bytes).encode());
                }
            }
            Output::Replicate { to, head, range } => {
                let next = range.start..range.start + 1;
                let stored =
                    (self.core.status().first..=self.core.status().last).contains(&next.start);
                if range.is_empty() && stored && self.core.entries(next).is_err() {
                    self.reached("probe below the leader's window");
                }
                // As strict as the shell, which panics where the core lends nothing.
                match self.core.entries(range) {
                    Ok(lent) => {
                        let bytes = codec::encode_append(group, &head, lent).into_bytes();
                        ctx.send(to, Packet::Raft(bytes).encode());
                    }
                    Err(error) => self.entries_missing(ctx.id(), "send", &error),
                }
            }
            Output::Apply { range } => {
                let lent = self.core.entries(range.clone()).map(|lent| lent.cloned().collect());
                self.tasks.push_back(Task::Apply(range, lent.ok()));
            }
            Output::Restore { meta } => {
                if let Some((_, data)) = self.snapshot.clone().filter(|(held, _)| *held == meta) {
                    self.tasks.push_back(Task::Restore(meta, data));
                } else {
                    self.oracle.borrow_mut().object(|| format!("no snapshot {meta:?} to restore"));
                }
            }
            Output::TakeSnapshot => self.tasks.push_back(Task::Snapshot),
            Output::SendSnapshot { id, to, term, meta } => {
                self.reached("snapshot sent to a follower behind the log");
                self.send_snapshot(ctx, id, to, term, &meta);
            }
            Output::DiscardSnapshot { meta } => self.staged.retain(|(staged, _)| *staged != meta),
            Output::Fetch { id, range, max_bytes } => {
                self.reached("leader reads back entries for a follower behind its window");
                let (start, end) = (range.start, range.end);
                let delay = pause(ctx, 50_000);
                ctx.schedule(delay, Timed::Fetch { id, start, end, max_bytes });
            }
            Output::Halted { reason } => self.halted(ctx, reason),
            other => self.answer(ctx, other),
        }
    }

    /// Outputs that are for clients.
    fn answer(&mut self, ctx: &mut Context<'_, Self>, output: Output) {
        match output {
            Output::Proposed { token, count, index, term } => {
                for at in 0..count {
                    if let Some(request) = self.tokens.remove(&(token + at)) {
                        let token = token + at;
                        self.waiting.insert(index + at, Waiting { token, term, request });
                    }
                }
            }
            Output::Lost { token, count, superseded } => {
                self.reached(if superseded {
                    "proposals superseded"
                } else {
                    "proposals hidden by a snapshot"
                });
                let lost = token..token + count;
                self.waiting.retain(|_, waiting| {
                    let is_lost = lost.contains(&waiting.token);
                    if is_lost && superseded {
                        ctx.reply(waiting.request, Reply::NotApplied { leader: None });
                    } else if is_lost {
                        ctx.reply(waiting.request, Reply::Unknown);
                    }
                    !is_lost
                });
            }
            Output::Rejected { token, .. } => {
                if let Some(request) = self.tokens.remove(&token) {
                    let leader = self.core.status().leader;
                    ctx.reply(request, Reply::NotApplied { leader });
                }
            }
            Output::FollowerLost { peer, matched } => {
                self.oracle.borrow_mut().object(|| {
                    format!(
                        "follower {peer} is said to have lost {matched}, and disks lose nothing"
                    )
                });
            }
            Output::ReadReady { token, index } => {
                if let Some(reading) = self.reads.remove(&token) {
                    let id = ctx.id();
                    self.oracle.borrow_mut().read_index(id, reading.least, index);
                    self.ready.push((index, reading));
                    self.answer_reads(ctx);
                }
            }
            Output::ReadRejected { token, .. } => {
                if let Some(reading) = self.reads.remove(&token) {
                    let leader = self.core.status().leader;
                    ctx.reply(reading.request, Reply::NotApplied { leader });
                }
            }
            Output::Changed { token, .. } => {
                self.reached("change done");
                self.changing.take_if(|changing| *changing == token);
            }
            Output::ChangeRejected { token, .. } | Output::ChangeLost { token } => {
                self.changing.take_if(|changing| *changing == token);
            }
            _ => {}
        }
    }

    /// A node that is being repaired takes no part in elections.
    fn watch_elections(&self, message: &Message) {
        let takes_part = match message {
            Message::PreVote(_) | Message::Vote(_) | Message::TimeoutNow { .. } => true,
            Message::PreVoteReply(reply) | Message::VoteReply(reply) => reply.granted,
            _ => false,
        };
        let status = self.core.status();
        if takes_part && status.recovering.is_some() {
            self.object(format!("node {} is being repaired and says {message:?}", status.id));
        }
    }

    fn halted(&mut self, ctx: &mut Context<'_, Self>, reason: HaltReason) {
        ctx.note("halted", reason as u64, 0);
        let ruined = reason == HaltReason::Damaged && ctx.disk().ruin() == Some(Ruin::Rotten);
        let damaged = matches!(reason, HaltReason::Inconsistent | HaltReason::Damaged);
        if damaged && !ruined {
            let id = ctx.id();
            self.oracle.borrow_mut().object(|| format!("node {id} halts: {reason}"));
        }
        ctx.exit();
    }

    fn entries_missing(&self, id: u64, purpose: &str, error: &NotInMemory) {
        self.oracle
            .borrow_mut()
            .object(|| format!("node {id} does not lend the entries to {purpose}: {error}"));
    }

    /// Starts the write that the core asked for; `Timed::Disk` ends it. A failure is queued, for
    /// this runs inside the step that asked.
    fn persist(&mut self, ctx: &mut Context<'_, Self>, persist: Persist) {
        self.oracle.borrow_mut().submitted(ctx.id(), &persist, &self.core);
        let entries = match self.core.entries(persist.range.clone()) {
            Ok(lent) => lent.cloned().collect(),
            Err(error) => {
                self.entries_missing(ctx.id(), "write", &error);
                return ctx.exit();
            }
        };
        let mut snapshot = None;
        if let Some(meta) = persist.snapshot.as_deref() {
            let at = self.staged.iter().position(|(staged, _)| staged == meta);
            if at.is_none() {
                let id = ctx.id();
                self.oracle.borrow_mut().object(|| format!("node {id} has no snapshot {meta:?}"));
            }
            self.reached("snapshot of a peer installed");
            if !self.ready.is_empty() {
                self.reached("snapshot installed while a confirmed read waits for the machine");
            }
            self.snapshot = at.map(|at| self.staged.swap_remove(at));
            snapshot = self.snapshot.as_ref().map(|(_, data)| data.clone());
        }
        if let Some(from) = persist.truncate_from {
            ctx.note("truncates: from, write", from, persist.id);
        }
        if let Some(first) = persist.release {
            ctx.note("releases: below, write", first, persist.id);
        }
        let id = persist.id;
        self.persisting = id;
        if self.store.persist(persist, entries, snapshot.as_ref()).is_err() {
            self.inputs.push_back(Input::PersistFailed { id });
        }
        self.wake_disk(ctx);
    }

    fn wake_disk(&mut self, ctx: &mut Context<'_, Self>) {
        if !self.disk_busy {
            self.disk_busy = true;
            let delay = ctx.disk_delay();
            ctx.schedule(delay, Timed::Disk);
        }
    }

    fn work_disk(&mut self, ctx: &mut Context<'_, Self>) {
        self.disk_busy = false;
        let Ok(done) = self.store.work(ctx.now()) else {
            if self.persisting == 0 {
                ctx.exit();
            }
            self.step(ctx, Input::PersistFailed { id: self.persisting });
            return;
        };
        for done in done {
            match done {
                Done::Persist(id) => {
                    if id == self.persisting {
                        self.persisting = 0;
                    }
                    self.oracle.borrow_mut().durable(ctx.id(), id);
                    self.step(ctx, Input::Persisted { id });
                }
                Done::Snapshot(meta) => {
                    self.oracle.borrow_mut().snapshot_durable(ctx.id(), meta.index);
                    self.step(ctx, Input::SnapshotTaken { meta });
                }
            }
        }
    }

    /// Reads entries that are no longer in memory.
    fn read_back(&self, mut range: Range<u64>) -> Result<Vec<Entry>, FetchError> {
        let mut all = Vec::new();
        while !range.is_empty() {
            let some = self.store.read(range.clone(), 1 << 20)?;
            range.start += some.len() as u64;
            all.extend(some);
        }
        Ok(all)
    }

    fn work_fetch(&mut self, ctx: &mut Context<'_, Self>, id: u64, range: Range<u64>, bytes: u64) {
        let result = self.store.read(range, bytes);
        if self.core.status().role != Role::Leader {
            self.reached("entries read back for an earlier leadership");
        } else if result == Err(FetchError::Released) {
            self.reached("entries for a follower released before they were read");
        }
        self.step(ctx, Input::Fetched { id, result });
    }

    pub(super) fn group(&self) -> u64 {
        self.core.config().group
    }

    pub(super) fn object(&self, text: String) {
        self.oracle.borrow_mut().object(|| text);
    }

    pub(super) fn reached(&self, situation: &'static str) {
        self.oracle.borrow_mut().reached(situation);
    }

    fn work_machine(&mut self, ctx: &mut Context<'_, Self>) {
        self.machine_busy = false;
        match self.tasks.pop_front() {
            Some(Task::Apply(..)) if self.awaits_restore => return self.poll(ctx),
            Some(Task::Apply(range, lent)) => {
                if lent.is_none() {
                    self.reached("entries for the machine read back");
                }
                match lent.map_or_else(|| self.read_back(range), Ok) {
                    Ok(entries) => entries.into_iter().for_each(|entry| self.apply(ctx, entry)),
                    Err(FetchError::Released) => {
                        self.awaits_restore = true;
                        return self.poll(ctx);
                    }
                    Err(FetchError::Failed) => return ctx.exit(),
                }
            }
            Some(Task::Restore(meta, data)) => {
                self.oracle.borrow_mut().restored(ctx.id(), meta.index);
                self.awaits_restore = false;
                self.machine = Machine::restore(data);
                self.applied = (meta.index, meta.term);
                self.members = Arc::new(meta.members);
                if self.waiting.keys().next().is_some_and(|first| *first <= meta.index) {
                    self.oracle.borrow_mut().object(|| "a hidden proposal was kept".to_owned());
                }
            }
            Some(Task::Snapshot) => return self.take_snapshot(ctx),
            None => return,
        }
        let (index, state) = (self.applied.0, self.machine.snapshot());
        self.oracle.borrow_mut().stands(ctx.id(), index, &state, &self.members);
        self.answer_reads(ctx);
        self.step(ctx, Input::Applied { index: self.applied.0 });
    }

    fn apply(&mut self, ctx: &mut Context<'_, Self>, entry: Entry) {
        self.oracle.borrow_mut().apply(ctx.id(), &entry);
        ctx.note("applies: index, term", entry.index, entry.term);
        self.applied = (entry.index, entry.term);
        let waiting = self.waiting.remove(&entry.index);
        let result = match entry.kind {
            EntryKind::Command => self.machine.apply(entry.data),
            EntryKind::Config => {
                match codec::decode_members(entry.data) {
                    Ok(members) => self.members = Arc::new(members),
                    Err(error) => {
                        let text = || format!("a membership is refused: {error}");
                        self.oracle.borrow_mut().object(text);
                    }
                }
                None
            }
            EntryKind::Noop => None,
        };
        let Some(Waiting { term, request, .. }) = waiting else { return };
        if term != entry.term {
            self.oracle.borrow_mut().object(|| "a superseded proposal was kept".to_owned());
        }
        match result {
            Some(ret) => {
                self.oracle.borrow_mut().told(entry.index);
                ctx.reply(request, Reply::Ok(ret));
            }
            None => self.oracle.borrow_mut().object(|| "a command is refused".to_owned()),
        }
    }

    fn read(&mut self, ctx: &mut Context<'_, Self>, token: u64) {
        let leads = self.core.status().role == Role::Leader;
        let leases = leads && self.core.config().max_clock_drift_ppm.is_some();
        if leases && self.oracle.borrow().is_deposed(self.core.status().term) {
            self.reached("read asked of a leader while a later one leads");
        }
        self.step(ctx, Input::Read { token });
        if leases && self.reads.contains_key(&token) {
            self.reached("read that found the lease over");
        }
    }

    fn answer_reads(&mut self, ctx: &mut Context<'_, Self>) {
        let (machine, applied) = (&self.machine, self.applied.0);
        let oracle = &self.oracle;
        self.ready.retain(|(index, reading)| {
            if *index > applied {
                return true;
            }
            oracle.borrow_mut().read_ends(ctx.id(), reading.least, applied);
            ctx.reply(reading.request, Reply::Ok(KvRet::Value(machine.get(reading.key))));
            false
        });
    }

    fn take_snapshot(&mut self, ctx: &mut Context<'_, Self>) {
        let (index, term) = self.applied;
        if self.members.is_empty() {
            // As in the shell: it has joined, and has not come to the entry that says so.
            return self.step(ctx, Input::SnapshotFailed);
        }
        let meta = SnapshotMeta { index, term, members: (*self.members).clone() };
        let data = self.machine.snapshot();
        if self.snapshot.as_ref().is_some_and(|(held, _)| held.index >= index)
            || self.store.snapshot(meta.clone(), &data).is_err()
        {
            self.step(ctx, Input::SnapshotFailed);
            return;
        }
        self.snapshot = Some((meta, data));
        self.wake_disk(ctx);
        self.poll(ctx);
    }

    fn send_snapshot(
        &mut self,
        ctx: &mut Context<'_, Self>,
        id: u64,
        to: u64,
        term: u64,
        meta: &SnapshotMeta,
    ) {
        let Some((held, data)) = self.snapshot.clone().filter(|(held, _)| held.index >= meta.index)
        else {
            self.inputs.push_back(Input::SnapshotSent { id, ended: TransferEnd::Futile });
            return;
        };
        self.transfers.push(id);
        ctx.send(to, Packet::Snapshot { id, term, meta: held, data }.encode());
        ctx.schedule(SECOND, Timed::GiveUp(id));
    }

    fn end_transfer(&mut self, ctx: &mut Context<'_, Self>, id: u64, ok: bool) {
        let before = self.transfers.len();
        self.transfers.retain(|transfer| *transfer != id);
        if self.transfers.len() < before {
            let ended = if ok { TransferEnd::Complete } else { TransferEnd::Futile };
            self.step(ctx, Input::SnapshotSent { id, ended });
        }
    }
}

/// How long a piece of work takes, in ns: mostly less than a millisecond, and up to 300 ms in
/// `slow_ppm` of a million cases.
fn pause(ctx: &mut Context<'_, RaftNode>, slow_ppm: u32) -> u64 {
    let slow = ctx.rng().chance(slow_ppm);
    if slow {
        ctx.rng().scaled(MILLISECOND, 300 * MILLISECOND)
    } else {
        ctx.rng().below(MILLISECOND)
    }
}

impl Node for RaftNode {
    type Disk = SimDisk;
    type Event = Timed;
    type Request = KvOp<u64, u64>;
    type Reply = Reply;

    fn start(&mut self, ctx: &mut Context<'_, Self>) {
        let status = self.core.status();
        ctx.note("starts: snapshot, last", status.snapshot, status.last);
        if let Some(host) = &self.host {
            let (input, interval) = (host.own_life(ctx.id()), host.interval());
            self.inputs.push_back(input);
            ctx.schedule(interval, Timed::Host);
        }
        self.step(ctx, Input::Tick);
    }

    fn message(&mut self, ctx: &mut Context<'_, Self>, from: u64, body: Bytes) {
        match Packet::decode(body) {
            Some(Packet::Raft(bytes)) => match codec::decode(bytes) {
                Ok((_, Message::Node(beat))) => self.hear_host(ctx, from, *beat),
                Ok((_, message)) => self.step(ctx, Input::Message { from, message }),
                Err(error) => {
                    self.oracle.borrow_mut().object(|| format!("a message is refused: {error}"));
                }
            },
            Some(Packet::Snapshot { id, term, meta, data }) => {
                self.staged.retain(|(staged, _)| *staged != meta);
                self.staged.push((meta.clone(), data));
                self.step(ctx, Input::SnapshotReceived { from, term, meta });
                ctx.send(from, Packet::Taken { id }.encode());
            }
            Some(Packet::Taken { id }) => self.end_transfer(ctx, id, true),
            None => self.oracle.borrow_mut().object(|| "a packet is refused".to_owned()),
        }
    }

    fn timer(&mut self, ctx: &mut Context<'_, Self>) {
        self.step(ctx, Input::Tick);
    }

    fn event(&mut self, ctx: &mut Context<'_, Self>, event: Timed) {
        match event {
            Timed::Disk => self.work_disk(ctx),
            Timed::Machine => self.work_machine(ctx),
            Timed::Fetch { id, start, end, max_bytes } => {
                self.work_fetch(ctx, id, start..end, max_bytes);
            }
            Timed::Host => self.tick_host(ctx),
            Timed::GiveUp(id) => self.end_transfer(ctx, id, false),
        }
    }

    fn request(&mut self, ctx: &mut Context<'_, Self>, id: RequestId, request: KvOp<u64, u64>) {
        self.next_token += 1;
        let token = self.next_token;
        if let KvOp::Get { key } = request {
            let least = self.oracle.borrow().read_begins();
            self.reads.insert(token, Reading { request: id, key, least });
            self.read(ctx, token);
        } else if let Some(data) = Machine::encode(&request) {
            self.tokens.insert(token, id);
            self.step(ctx, Input::Propose { token, data });
        }
    }

    fn crash(self, disk: &mut SimDisk, kind: Crash, _: &mut Rng) {
        disk.crash(kind, self.store);
    }

    fn disk_fault(disk: &mut SimDisk, fault: DiskFault, rng: &mut Rng) {
        disk.fault(fault, rng);
    }
}
