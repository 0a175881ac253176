//! The tokio shell: a node of one group.

mod acks;
mod alarm;
mod applier;
mod driver;
mod ending;
mod error;
mod mailbox;
mod pending;
mod progress;
mod receive_snapshot;
mod room;
mod send_snapshot;
pub(crate) mod shared;
mod tasks;
mod transfers;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use self::acks::Acks;
use self::applier::{Applier, Job, Machine};
use self::driver::Driver;
use self::mailbox::Mailbox;
use self::pending::{Proposal, Proposals, Reads};
use self::progress::CommitIndex;
use self::receive_snapshot::NodeInbox;
use self::room::RoomWatch;
use self::shared::{Event, Shared};
use self::tasks::Tasks;
use crate::config::{Config, DEFAULT_MAX_ENTRY_BYTES};
use crate::core::Core;
use crate::error::ConfigError;
use crate::machine::StateMachine;
use crate::membership::{Change, Membership};
use crate::node::hub::{Seat, Shown};
use crate::store::{LogStore, MAX_CHUNK_BYTES};
use crate::transport::{AttachError, Inbox, Transport};
use crate::types::{ENTRY_OVERHEAD, FollowerStatus, Status};

pub use self::error::{
    ChangeError, Doubt, Outcome, ProposeError, ReadError, StartError, StopReason, TransferError,
};
pub use self::shared::Stats;

/// A running node of one group. Cheap to clone; the node stops when the last clone is dropped.
///
/// # Example
/// See the crate's front page, and `examples/minimal.rs`.
#[derive(Clone)]
pub struct Raft {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    status: watch::Receiver<Status>,
    /// What core time 0 is on the clock.
    epoch: Instant,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.tell(Event::Stop(StopReason::ShutDown));
    }
}

/// More than a message has around its entries or its chunk.
const MESSAGE_HEAD_BYTES: u64 = 1 << 10;

/// Whether the store and the transport take what the configuration allows.
fn check_limits(
    config: &Config,
    log: &dyn LogStore,
    transport: &dyn Transport,
) -> Result<(), ConfigError> {
    if config.max_entry_bytes > log.max_entry_bytes() {
        let rule = "must not be above what the log store takes";
        return Err(ConfigError { field: "max_entry_bytes", rule });
    }
    let longest = config.max_append_bytes.max(config.max_entry_bytes.max(MAX_CHUNK_BYTES) as u64);
    if longest.saturating_add(MESSAGE_HEAD_BYTES) > transport.max_message_bytes() as u64 {
        let rule = "and max_entry_bytes and the chunks of snapshots (1 MiB) must not be above \
                    what the transport carries";
        return Err(ConfigError { field: "max_append_bytes", rule });
    }
    Ok(())
}

/// Says that a node starts to be repaired.
fn tell_of_losses(status: &Status) {
    if let Some(until) = status.recovering {
        let (node, what) = (status.id, "recovering: entries are lost, the peers send them again");
        tracing::warn!(target: "voussoir::raft", node, until, what);
    }
}

impl Raft {
    /// Starts a node from what `log` holds. It runs on the current tokio runtime, with timers
    /// enabled: one task for Raft, and one for a state machine that is not
    /// [`is_quick`](StateMachine::is_quick).
    ///
    /// A node whose log is damaged starts too. Its peers bring back lost entries
    /// ([`Status::recovering`](crate::Status)); after any other damage it stops at once:
    /// [`Status::halted`](crate::Status) says so, and every call answers it.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped future has started nothing.
    pub async fn start(
        config: Config,
        log: Arc<dyn LogStore>,
        machine: Box<dyn StateMachine>,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        let enter = |inbox, _: &Arc<Shared>| transport.attach(config.group, inbox);
        Self::start_with(config.clone(), log, machine, Arc::clone(&transport), None, enter).await
    }

    /// The same on a node of many groups.
    pub(crate) async fn start_seated(
        config: Config,
        log: Arc<dyn LogStore>,
        machine: Box<dyn StateMachine>,
        seat: Arc<Seat>,
    ) -> Result<Self, StartError> {
        let enter = |inbox, shared: &Arc<Shared>| seat.enter(inbox, shared);
        let shown = Some((Arc::clone(&seat), Shown::default()));
        Self::start_with(config, log, machine, Arc::clone(&seat) as _, shown, enter).await
    }

    async fn start_with(
        config: Config,
        log: Arc<dyn LogStore>,
        machine: Box<dyn StateMachine>,
        transport: Arc<dyn Transport>,
        seat: Option<(Arc<Seat>, Shown)>,
        enter: impl FnOnce(Arc<dyn Inbox>, &Arc<Shared>) -> Result<(), AttachError>,
    ) -> Result<Self, StartError> {
        let mut config = config;
        config.validate()?;
        if transport.local() != config.id {
            return Err(StartError::WrongNode { transport: transport.local(), config: config.id });
        }
        if config.max_entry_bytes == DEFAULT_MAX_ENTRY_BYTES {
            config.max_entry_bytes = config.max_entry_bytes.min(log.max_entry_bytes());
        }
        check_limits(&config, &*log, &*transport)?;
        let seed = config.drawn_seed();
        config.seed = Some(seed);
        let restored = log.restore().await?;
        let core = Core::new(config.clone(), restored, 0)?;
        tell_of_losses(&core.status());
        let shared = Arc::new(Shared::new(&config, core.shared_members()));
        let gate = core.gate().clone();
        let inbox = NodeInbox::new(gate, Arc::clone(&shared), Arc::clone(&log));
        let staging = inbox.staging();
        enter(Arc::new(inbox), &shared)?;

        let jobs = Arc::new(Mailbox::new());
        let applier = Applier {
            machine,
            log: Arc::clone(&log),
            shared: Arc::clone(&shared),
            jobs: Arc::clone(&jobs),
            members: core.base_members(),
            nonce: seed ^ config.id.rotate_left(32),
            at: (0, 0),
            gap: false,
            tasks: Tasks::default(),
        };
        let (shown, epoch) = (core.status(), Instant::now());
        let (sender, status) = watch::channel(shown);
        let members = Arc::clone(core.shared_members());
        transport.members(config.group, core.members());
        // Boxed: a future holds each of its arguments twice.
        let driver = Box::new(Driver {
            commit_index: CommitIndex::new(core.commit()),
            core,
            shared: Arc::clone(&shared),
            log,
            transport,
            seat,
            machine: Machine::start(Box::new(applier)),
            status: sender,
            members,
            changes: BTreeMap::new(),
            epoch,
            proposals: Proposals::default(),
            reads: Reads::default(),
            withdrawn: Vec::new(),
            freshness: progress::Freshness::default(),
            followers: progress::FollowersView::default(),
            room: RoomWatch::default(),
            acks: Acks::default(),
            staging,
            tasks: Tasks::default(),
            transfers: Vec::new(),
            now: 0,
            show_at: None,
            shown_at: 0,
            cause: None,
            ending: None,
            writes: Vec::new(),
            expects_more_proposals: false,
            gathered: Vec::new(),
        });
        tokio::spawn(run(driver, jobs));
        Ok(Self { handle: Arc::new(Handle { shared, status, epoch }) })
    }

    /// Puts a command into the replicated log, and returns the state machine's answer to it once
    /// it is committed and applied here.
    ///
    /// Waits while too much is under way ([`Config::max_uncommitted_bytes`](crate::Config)). The
    /// answer comes within [`Config::proposal_timeout`](crate::Config) of the call, whatever the
    /// peers, the disk or the state machine do.
    ///
    /// # Errors
    /// [`ProposeError`]: its [`outcome`](ProposeError::outcome) says whether the command may
    /// have been applied all the same.
    ///
    /// # Cancel safety
    /// Dropping the future before it was first polled does nothing. Later the command may or may
    /// not be applied: the outcome is unknown. Nothing else is affected.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        let shared = &self.handle.shared;
        let (bytes, max_bytes) = (command.len(), shared.max_entry_bytes);
        if bytes > max_bytes {
            return Err(ProposeError::TooLarge { bytes, max_bytes });
        }
        let weight = u32::try_from(bytes as u64 + ENTRY_OVERHEAD)
            .map_err(|_| ProposeError::TooLarge { bytes, max_bytes })?;
        let deadline = Instant::now() + shared.proposal_timeout;
        // Mostly there is room, and then nobody waits for it: what is free goes to those first.
        let room = match shared.proposal_room.try_acquire_many(weight) {
            Ok(room) => Ok(room),
            Err(_) => {
                let room = timeout_at(deadline, shared.proposal_room.acquire_many(weight));
                let Ok(room) = room.await else { return Err(ProposeError::Busy) };
                room
            }
        };
        let Ok(room) = room else { return Err(ProposeError::Stopped(shared.why_stopped())) };
        // Whoever answers the proposal gives the room back, also when nobody waits any more.
        room.forget();
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal { reply, weight };
        let event = Event::Propose { data: command, proposal };
        if shared.events.push_unless(event, |patience| patience.proposals).is_err() {
            return Err(ProposeError::Stopped(shared.why_stopped()));
        }
        let unanswered = |_| Err(ProposeError::Unknown(Doubt::Stopped(shared.why_stopped())));
        // The loop gives up what is not committed in time. This one also ends when the state
        // machine is stuck with it, or the loop itself is.
        let Ok(answer) = timeout_at(deadline, answer).await else {
            return Err(ProposeError::Unknown(Doubt::TimedOut));
        };
        answer.unwrap_or_else(unanswered)
    }

    /// Waits until what this node's state machine shows is at least as new as everything that
    /// was acknowledged anywhere before the call: a read of the machine afterwards is
    /// linearizable. Works on every node: a follower asks the leader. Returns the index that has
    /// been applied. Nothing is written.
    ///
    /// The answer comes by `deadline`, whatever the leader, the network or the state machine do.
    /// Until then the read may wait for room ([`Config::max_reads`](crate::Config)), for a leader
    /// while there is none, for its confirmation, and for the state machine. A change of leaders
    /// ends no read.
    ///
    /// Source: Raft §8; thesis §6.4 (ReadIndex), §6.4.1 (leases, with
    /// [`Config::max_clock_drift_ppm`](crate::Config)).
    ///
    /// # Errors
    /// [`ReadError`]. After `deadline` it is [`ReadError::NoLeader`] while this node knows no
    /// leader, else [`ReadError::TimedOut`]. Nothing was changed, retry freely.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future withdraws the read and gives its room back.
    pub async fn read(&self, deadline: Instant) -> Result<u64, ReadError> {
        let shared = &self.handle.shared;
        let Ok(room) = timeout_at(deadline, shared.read_room.acquire()).await else {
            return Err(ReadError::TimedOut);
        };
        let Ok(room) = room else { return Err(ReadError::Stopped(shared.why_stopped())) };
        // The driver gives it back when it has answered the read, or heard of its withdrawal.
        room.forget();
        let (reply, answer) = oneshot::channel();
        let token = shared.token();
        if shared.events.push(Event::Read { token, deadline, reply }).is_err() {
            return Err(ReadError::Stopped(shared.why_stopped()));
        }
        let withdrawal = Withdrawal { shared, event: Some(Event::ReadWithdrawn { token }) };
        let Ok(answer) = timeout_at(deadline, answer).await else {
            let is_led = self.handle.status.borrow().leader.is_some();
            return Err(if is_led { ReadError::TimedOut } else { ReadError::NoLeader });
        };
        withdrawal.forget();
        answer.unwrap_or_else(|_| Err(ReadError::Stopped(shared.why_stopped())))
    }

    /// Asks this node to start an election now instead of at its next timeout, for an operator
    /// who wants it to lead, or who knows that the leader is gone. Returns at once; the
    /// [`status`](Self::status) shows what comes of it.
    ///
    /// It never takes the place of a leader that works: nodes that hear one refuse their votes, and
    /// a leader ignores the request. A node whose disk is slow may let others go first.
    /// Requests that the node has not seen yet count as one.
    ///
    /// Source: Raft §5.2; PreVote: thesis §9.6.
    ///
    /// # Errors
    /// [`StopReason`] when the node has stopped.
    pub fn campaign(&self) -> Result<(), StopReason> {
        self.handle.shared.campaign()
    }

    /// Changes the membership, and returns the index of the new one once it is committed. Only the
    /// leader does. New voters learn first; while they have not caught up the change waits, and
    /// while another change is under way it is rejected. [`Change`] and the front page say which
    /// steps it takes.
    ///
    /// # Errors
    /// [`ChangeError`]. Whatever it is, the change may be asked for again: what is done already is
    /// not done twice.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws what has not been begun. A learner that was added stays one,
    /// and a joint membership is left all the same.
    pub async fn change(&self, change: Change, deadline: Instant) -> Result<u64, ChangeError> {
        let shared = &self.handle.shared;
        let (reply, answer) = oneshot::channel();
        let token = shared.token();
        if shared.events.push(Event::Change { token, change, reply }).is_err() {
            return Err(ChangeError::Stopped(shared.why_stopped()));
        }
        let withdrawal = Withdrawal { shared, event: Some(Event::ChangeWithdrawn { token }) };
        let Ok(answer) = timeout_at(deadline, answer).await else {
            return Err(ChangeError::TimedOut);
        };
        withdrawal.forget();
        answer.unwrap_or_else(|_| Err(ChangeError::Stopped(shared.why_stopped())))
    }

    /// Replaces `old` by `new`, which is at `address`: the new node learns, gets the vote of the
    /// old one in one step, and the old one leaves. So is a node replaced that has lost its disk:
    /// what takes its place is a new node, with an id of its own.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    ///
    /// # Cancel safety
    /// As [`change`](Self::change).
    pub async fn replace(
        &self,
        old: u64,
        new: u64,
        address: impl Into<String>,
        deadline: Instant,
    ) -> Result<u64, ChangeError> {
        let change = Change::new().remove(old).voter(new).address(new, address);
        self.change(change, deadline).await
    }

    /// Hands leadership over to `to`, or to the voter that is furthest of those that answer, and
    /// returns who leads once this node knows. Meanwhile, for an election timeout at most, this
    /// node takes no proposals.
    ///
    /// Source: Raft thesis §3.10.
    ///
    /// # Errors
    /// [`TransferError`].
    ///
    /// # Cancel safety
    /// A dropped future changes nothing: the transfer goes on or has ended.
    pub async fn transfer_leadership(
        &self,
        to: Option<u64>,
        deadline: Instant,
    ) -> Result<u64, TransferError> {
        let shared = &self.handle.shared;
        let mut status = self.handle.status.clone();
        let (own, term, leader) = {
            let now = status.borrow_and_update();
            (now.id, now.term, now.leader)
        };
        if leader != Some(own) {
            return Err(TransferError::NotLeader { leader });
        }
        check_next_leader(&self.members().borrow(), own, to)?;
        if shared.events.push(Event::TransferLeadership { to }).is_err() {
            return Err(TransferError::Stopped(shared.why_stopped()));
        }
        // A leader that was not followed by another, and was elected again, has not handed over.
        let is_other = |leader| leader != own;
        let led = status.wait_for(|now| now.term > term && now.leader.is_some_and(is_other));
        match timeout_at(deadline, led).await {
            Ok(Ok(now)) => match now.leader {
                Some(leader) if to.is_none_or(|to| to == leader) => Ok(leader),
                leader => Err(TransferError::NotLeader { leader }),
            },
            Ok(Err(_)) => Err(TransferError::Stopped(shared.why_stopped())),
            Err(_) => Err(TransferError::TimedOut),
        }
    }

    /// The members of the group as they count at this node, committed or not, now and at every
    /// change.
    pub fn members(&self) -> watch::Receiver<Arc<Membership>> {
        self.handle.shared.watch_members()
    }

    /// What this node is and how far it has come, now and at every change. The indexes may be up to
    /// a millisecond behind, a leader's `durable` up to a heartbeat where the others have made an
    /// entry durable first, a follower's on a node of many groups until the next thing that it
    /// hears, and changes may be skipped by a slow watcher. Do not hold a `borrow()`
    /// for long: the node waits for it.
    pub fn status(&self) -> watch::Receiver<Status> {
        let mut status = self.handle.status.clone();
        // So that `changed()` waits for something newer than what `borrow()` shows now.
        status.mark_unchanged();
        status
    }

    /// Whether this node may answer reads by its lease while it leads
    /// ([`Config::max_clock_drift_ppm`](crate::Config)). What must hold although a clock or a
    /// suspended machine breaks the lease needs a group without it.
    pub fn reads_by_lease(&self) -> bool {
        self.handle.shared.reads_by_lease
    }

    /// What this node knows of each follower; empty unless it leads. While the node is at work it
    /// is a millisecond behind, else up to a heartbeat. The progress of snapshots is current.
    pub fn followers(&self) -> Vec<FollowerStatus> {
        let shared = &self.handle.shared;
        let mut followers = shared.followers.lock().clone();
        for follower in &mut followers {
            follower.sending = shared.transfers.progress(follower.id);
        }
        followers
    }

    /// How fresh the state machine of this node is, for reads that go without
    /// [`read`](Self::read).
    pub fn freshness(&self) -> Freshness {
        let (applied, fresh_at) = progress::Freshness::read(&self.handle.shared);
        let age = |at| self.handle.epoch.elapsed().saturating_sub(Duration::from_nanos(at));
        Freshness { applied, age: fresh_at.map(age) }
    }

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        self.handle.shared.counters.snapshot()
    }

    /// Why the node has stopped, once it has.
    pub fn stopped(&self) -> Option<StopReason> {
        self.handle.shared.stopped().cloned()
    }

    /// Stops the node and returns when its tasks have ended, it has left the transport, and what it
    /// had handed to the log store is durable or has failed; for the last it waits at most
    /// [`Config::disk_stall`](crate::Config::disk_stall). Proposals under way end with an unknown
    /// outcome. What is durable stays so, as after a crash; peers notice by the silence.
    ///
    /// # Cancel safety
    /// The node stops, whether the future is polled to its end or not, once it has been polled
    /// first.
    pub async fn shutdown(&self) {
        self.handle.shared.tell(Event::Stop(StopReason::ShutDown));
        let mut status = self.handle.status.clone();
        // The sender goes last.
        while status.changed().await.is_ok() {}
    }
}

/// Whether `own` may hand over to `to`, or to anybody.
fn check_next_leader(members: &Membership, own: u64, to: Option<u64>) -> Result<(), TransferError> {
    match to {
        Some(to) if to == own => Err(TransferError::ToSelf),
        Some(to) if !members.is_voter(to) => Err(TransferError::NotVoter { to }),
        None if !members.members().any(|id| id != own && members.is_voter(id)) => {
            Err(TransferError::NoOtherVoter)
        }
        _ => Ok(()),
    }
}

/// How fresh the state machine of a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Freshness {
    /// The last index that it has applied.
    pub applied: u64,
    /// Since it last showed everything that was committed, as far as this node knows. A follower
    /// counts from the arrival of the leader's word: that may have been under way for long, and a
    /// leader that has been cut off believes to be one for up to an election timeout. A leader
    /// counts from the latest heartbeats that a majority has answered, which entries take the place
    /// of for up to three intervals on a node of many groups. `None` before this node has caught
    /// up for the first time since its start. While the group rests the age grows at every node, at
    /// the leader too: it hears nothing from the others. A read ends that.
    pub age: Option<Duration>,
}

/// Withdraws a read or a change when its future is dropped before it was answered.
struct Withdrawal<'a> {
    shared: &'a Shared,
    event: Option<Event>,
}

impl Withdrawal<'_> {
    /// It has been answered.
    fn forget(mut self) {
        self.event = None;
    }
}

impl Drop for Withdrawal<'_> {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.shared.tell(event);
        }
    }
}

impl fmt::Debug for Raft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raft").field("status", &*self.handle.status.borrow()).finish()
    }
}

/// The life of a node.
async fn run(mut driver: Box<Driver>, jobs: Arc<Mailbox<Job>>) {
    let stopping = Stopping {
        shared: Arc::clone(&driver.shared),
        transport: Arc::clone(&driver.transport),
        group: driver.core.config().group,
        status: driver.status.clone(),
        jobs,
    };
    let reason = driver.run().await;
    // Boxed: a task at rest holds the room of its longest future.
    Box::pin(end(driver, stopping, reason)).await;
}

async fn end(mut driver: Box<Driver>, stopping: Stopping, reason: StopReason) {
    driver.condemn(&reason).await;
    // A runtime that ends drops one task after another. The driver, in the middle of a turn, may
    // hear of the machine's.
    if !matches!(reason, StopReason::ShutDown | StopReason::RuntimeEnded) {
        let node = driver.core.config().id;
        tracing::error!(target: "voussoir::raft", node, %reason, "the node has stopped");
    }
    let left = stopping.stop(reason.clone());
    driver.finish(left, &reason);
    let settled = driver.settle();
    // A machine in the middle of its work is not waited for: it may take for ever.
    driver.machine.stop().await;
    driver.tasks.shutdown().await;
    // Whoever waits for the end may open the store anew, or delete what it holds.
    settled.await;
}

/// Cuts a node off from everything around it; also when its driver panics, or its runtime ends.
struct Stopping {
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    group: u64,
    status: watch::Sender<Status>,
    jobs: Arc<Mailbox<Job>>,
}

impl Stopping {
    fn stop(&self, reason: StopReason) -> Vec<Event> {
        self.transport.detach(self.group);
        drop(self.jobs.close());
        self.shared.stop(reason)
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        if self.shared.stopped().is_none() {
            drop(self.stop(StopReason::of_dropped_task()));
        }
        // Also when the machine has said why, and the driver ends before it hears that.
        self.status.send_if_modified(Status::leads_nobody);
    }
}
