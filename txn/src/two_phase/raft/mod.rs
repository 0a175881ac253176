//! Decisions in a group of `voussoir-raft`: while a majority of its nodes lives, no transaction
//! stays blocked because its coordinator is away.
//!
//! The decision of a transaction is a **write-once register** in the group's log. A coordinator
//! proposes to commit, whoever takes over proposes to abort, and the first of the two in the log
//! wins, for ever and for both:
//!
//! - A coordinator runs on the node that leads. When another node leads, that one opens the
//!   coordinator of the same name: one entry begins a new epoch, which aborts all transactions that
//!   the earlier coordinators have not recorded as committed. It tells the branches of those that
//!   they have, and its recovery ends the others.
//! - The earlier coordinator may live and not know it. A commit that it proposes behind that entry
//!   is answered by the abort that stands, and so it tells its caller.
//! - A commit whose proposal has an unknown outcome is not proposed again. The coordinator asks
//!   what stands in the register, and closes it by an abort if nothing does.
//!
//! A group has the decisions of one coordinator, by its name. The name of a coordinator whose log
//! was on one disk may move to a group once all its transactions have ended: begin above its
//! epochs, by [`RaftLog::after`], or branches of both would have one id.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use voussoir_raft::memory::{MemoryStore, Network};
//! use voussoir_raft::{Config, Raft, Role};
//! use voussoir_txn::two_phase::raft::{DecisionMachine, Decisions, RaftLog};
//! use voussoir_txn::two_phase::{Ack, Coordinator, OpenCoordinatorError};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let decisions = Decisions::new();
//! let machine = Box::new(DecisionMachine::new(decisions.clone()));
//! // In production three nodes, a log on the disk of each, and a transport between them.
//! let (log, transport) = (Arc::new(MemoryStore::new()), Network::new().node(1));
//! let raft = Raft::start(Config::new(1, [1]), log, machine, transport).await?;
//!
//! let mut status = raft.status();
//! # let turns = 1;
//! # for _ in 0..turns { // in production: `loop`
//! // Ends with an error when the node stops.
//! status.wait_for(|status| status.role == Role::Leader).await?;
//! let log = RaftLog::new(raft.clone(), decisions.clone());
//! // Its participants are the same on each node.
//! let coordinator = match Coordinator::builder("transfers").open(log).await {
//!     Ok(coordinator) => coordinator,
//!     // The group did not answer, or another node leads by now: look again.
//!     Err(OpenCoordinatorError::Store(_)) => {
//!         tokio::time::sleep(Duration::from_millis(100)).await;
//!         continue;
//!     }
//!     Err(error) => return Err(error.into()),
//! };
//! coordinator.begin()?.commit(Ack::Decided).await?;
//! # raft.shutdown().await;
//! // Serves until another node leads, or this coordinator can decide nothing more; then it is
//! // opened again where the leader is. What was asked to commit goes on to its end.
//! tokio::select! {
//!     _ = status.wait_for(|status| status.role != Role::Leader) => {}
//!     why = coordinator.closed() => eprintln!("the coordinator is opened again: {why}"),
//! }
//! # }
//! # Ok(())
//! # }
//! ```
//!
//! The price is a round trip to a majority, and its syncs, for each decision. Sources: Gray,
//! Lamport, *Consensus on Transaction Commit* (TODS 2006); Corbett et al., *Spanner* (OSDI 2012).

mod codec;
mod machine;
mod register;
#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use voussoir_raft::{Outcome, Raft, Role, Status};

pub use self::codec::Malformed;
pub use self::machine::{DecisionMachine, Decisions};

use self::register::{Answer, Command};
use super::core::Decision;
use super::error::{OtherCoordinator, Superseded};
use super::gid::{Gid, TxnId};
use super::log::{Committed, DecisionLog, HeuristicOutcome, OpenedLog};
use crate::error::StoreError;

/// Makes a command of the group of the bytes of a command of [`RaftLog`].
pub type Wrap = dyn Fn(Bytes) -> Bytes + Send + Sync;
/// Finds the answer of [`Decisions::apply`] in an answer of the group; `None` if there is none.
pub type Unwrap = dyn Fn(Bytes) -> Option<Bytes> + Send + Sync;

/// For how long the group may be without a leader before a call fails.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);
/// The shortest such time: what is below could not even be tried.
const MIN_PATIENCE: Duration = Duration::from_millis(100);
/// Between two attempts of a call.
const PAUSE: Duration = Duration::from_millis(50);

/// The decisions of one coordinator in a group of `voussoir-raft`. The nodes of the group are where
/// the coordinator may run; a group has one coordinator, by its name, which may be on any node, and
/// is meant to be on the one that leads. One of another name is refused, as
/// [`OtherCoordinator`].
///
/// At most 64 MiB of records are kept: commits whose branches have not all been told, and heuristic
/// outcomes that nobody has forgotten. A commit beyond it is aborted.
pub struct RaftLog {
    raft: Raft,
    status: watch::Receiver<Status>,
    decisions: Decisions,
    wrap: Arc<Wrap>,
    unwrap: Arc<Unwrap>,
    patience: Duration,
    after: u64,
    /// The epoch of the coordinator of this log; 0 before it was opened.
    epoch: AtomicU64,
}

/// A command that has no answer.
enum Failed {
    /// It is in no log, and never will be.
    NotApplied(String),
    /// It may be in the log, or come into it.
    Unknown(String),
    /// It was carried out, and its answer cannot be read; nor will that of a repetition.
    Unreadable(String),
}

impl RaftLog {
    /// Decisions in a group whose nodes run a [`DecisionMachine`]; the one of this node has these
    /// `decisions`.
    pub fn new(raft: Raft, decisions: Decisions) -> Self {
        Self::within(raft, decisions, Arc::new(|command| command), Arc::new(Some))
    }

    /// Decisions in a group of your own: `wrap` makes a command of the group of a command of this
    /// log. Your state machine takes it apart again, calls [`Decisions::apply`], and returns what
    /// that returns; `unwrap` finds it in what the group answers. Both are called without a lock;
    /// if `wrap` panics, the command is not proposed; if `unwrap` does, the answer is unreadable.
    ///
    /// In a group whose machine stands in [`Sessions`](voussoir_raft::Sessions), commands are plain
    /// ones, because this log repeats only what may be repeated:
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use voussoir_raft::{Raft, Session, SessionAnswer};
    /// # use voussoir_txn::Bytes;
    /// # use voussoir_txn::two_phase::raft::{Decisions, RaftLog};
    /// fn log(raft: Raft, decisions: Decisions) -> RaftLog {
    ///     let unwrap = |answer| match SessionAnswer::decode(answer) {
    ///         Ok(SessionAnswer::Applied(answer)) => Some(answer),
    ///         _ => None,
    ///     };
    ///     let wrap = |command: Bytes| Session::plain(&command);
    ///     RaftLog::within(raft, decisions, Arc::new(wrap), Arc::new(unwrap))
    /// }
    /// ```
    pub fn within(raft: Raft, decisions: Decisions, wrap: Arc<Wrap>, unwrap: Arc<Unwrap>) -> Self {
        let (status, epoch) = (raft.status(), AtomicU64::new(0));
        let patience = DEFAULT_PATIENCE;
        Self { raft, status, decisions, wrap, unwrap, patience, after: 0, epoch }
    }

    /// For how long a call waits for the group to have a leader, or to confirm what became of a
    /// commit. At least 100 ms, which stand for less; default 10 s. After it the outcome of that
    /// commit is unknown, and this coordinator decides nothing more.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience.max(MIN_PATIENCE);
        self
    }

    /// Begins epochs above this one, if the group has not reached it. For a coordinator whose
    /// decisions were in another log before, where it had reached
    /// [`Coordinator::epoch`](super::Coordinator::epoch) and all its transactions have ended: ids
    /// of branches would come again. Default 0; at most `u64::MAX - 2`.
    pub fn after(mut self, epoch: u64) -> Self {
        self.after = epoch;
        self
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        // What is later than the clock counts is never.
        now.checked_add(self.patience).unwrap_or(now + Duration::from_secs(1 << 30))
    }

    async fn propose(&self, command: &Command) -> Result<Answer, Failed> {
        let bytes = command.encode().map_err(|error| Failed::NotApplied(error.to_string()))?;
        let wrapped = catch_unwind(AssertUnwindSafe(|| (self.wrap)(bytes)))
            .map_err(|_| Failed::NotApplied("`wrap` panicked".to_owned()))?;
        match self.raft.propose(wrapped).await {
            Ok(answer) => self.read_answer(answer),
            Err(error) if error.outcome() == Outcome::NotApplied => {
                Err(Failed::NotApplied(error.to_string()))
            }
            Err(error) => Err(Failed::Unknown(error.to_string())),
        }
    }

    fn read_answer(&self, answer: Bytes) -> Result<Answer, Failed> {
        let unreadable = |why: &str| Failed::Unreadable(format!("the group's answer: {why}"));
        let answer = catch_unwind(AssertUnwindSafe(|| (self.unwrap)(answer)))
            .map_err(|_| unreadable("`unwrap` panicked"))?
            .ok_or_else(|| unreadable("`unwrap` finds none of decisions in it"))?;
        Answer::decode(&answer).map_err(|bad| unreadable(&bad.to_string()))
    }

    /// Proposes a command that may be in the log more than once, until it is answered.
    async fn propose_until_answered(&self, command: &Command) -> Result<Answer, StoreError> {
        let deadline = self.deadline();
        // Ends: it is answered, or the deadline passes.
        loop {
            let why = match timeout_at(deadline, self.propose(command)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failed::Unreadable(why))) => return Err(StoreError::new(why)),
                Ok(Err(Failed::NotApplied(why) | Failed::Unknown(why))) => why,
                Err(_) => "not decided in time".to_owned(),
            };
            if Instant::now() + PAUSE >= deadline || self.raft.stopped().is_some() {
                return Err(StoreError::new(format!("the group has not answered: {why}")));
            }
            sleep(PAUSE).await;
        }
    }

    /// What became of a commit whose proposal was not answered. It may still come into the log, so
    /// a register in which nothing stands is closed by an abort before it is called one.
    async fn settle(&self, txn: TxnId, why: &str) -> Result<Decision, StoreError> {
        tracing::debug!(target: "voussoir::txn", ?txn, why, "asks what became of a commit");
        let deadline = self.deadline();
        // Ends: a decision stands, or the deadline passes.
        loop {
            let aborting = timeout_at(deadline, self.propose(&Command::Abort(txn))).await;
            if let Ok(Ok(Answer::Decided(decision))) = aborting {
                return Ok(decision);
            }
            // Another node leads, and its coordinator may have closed the register already.
            let until = deadline.min(Instant::now() + 10 * PAUSE);
            if self.raft.read(until).await.is_ok()
                && let Some(decision) = self.decisions.decision(txn)
            {
                return Ok(decision);
            }
            if Instant::now() + PAUSE >= deadline || self.raft.stopped().is_some() {
                let why = format!("nobody knows what became of a commit: {why}");
                return Err(StoreError::new(why));
            }
            sleep(PAUSE).await;
        }
    }
}

#[async_trait]
impl DecisionLog for RaftLog {
    async fn open(&self, coordinator: &str) -> Result<OpenedLog, StoreError> {
        // The nonce: repeated after a lost answer it begins one epoch. Of two, the first would be
        // that of no coordinator, and the coordinator before would be two behind: the register
        // knows what became of transactions of the last epoch, and not of those before it.
        let nonce = fastrand::u64(..);
        let open = Command::Open { coordinator: coordinator.into(), after: self.after, nonce };
        let epoch = match self.propose_until_answered(&open).await? {
            Answer::Opened { epoch } => epoch,
            Answer::OtherCoordinator => {
                let owner = self.decisions.coordinator();
                let owner = owner.map_or_else(String::new, |owner| owner.to_string());
                return Err(StoreError::new(OtherCoordinator { owner }));
            }
            Answer::Malformed => {
                let why = "the group does not know commands of decisions: does `wrap` fit it?";
                return Err(StoreError::new(why));
            }
            answer => return Err(StoreError::new(format!("no epoch was begun: {answer:?}"))),
        };
        self.epoch.store(epoch, Ordering::Relaxed);
        // It was applied here: what this node shows is at least as new.
        let opened = self.decisions.opened(epoch);
        opened.ok_or_else(|| StoreError::new("a later coordinator has taken over meanwhile"))
    }

    async fn commit(&self, commit: &Committed) -> Result<Decision, StoreError> {
        match self.propose(&Command::Commit(commit.clone())).await {
            Ok(Answer::Decided(decision)) => Ok(decision),
            // Proposed once, and not recorded then: nobody will find it recorded.
            Ok(Answer::Full | Answer::Forgotten | Answer::Malformed) => Ok(Decision::Abort),
            Err(Failed::NotApplied(why)) => {
                tracing::debug!(target: "voussoir::txn", txn = ?commit.txn, why, "not recorded");
                Ok(Decision::Abort)
            }
            Ok(answer) => self.settle(commit.txn, &format!("{answer:?}")).await,
            Err(Failed::Unknown(why)) => self.settle(commit.txn, &why).await,
            Err(Failed::Unreadable(why)) => self.settle(commit.txn, &why).await,
        }
    }

    async fn forget(&self, txn: TxnId) -> Result<(), StoreError> {
        let by = self.epoch.load(Ordering::Relaxed);
        match self.propose_until_answered(&Command::Forget { txn, by }).await? {
            Answer::Done => Ok(()),
            Answer::Superseded => Err(StoreError::new(Superseded)),
            answer => Err(StoreError::new(format!("not forgotten: {answer:?}"))),
        }
    }

    async fn report(&self, outcome: &HeuristicOutcome) -> Result<(), StoreError> {
        let by = self.epoch.load(Ordering::Relaxed);
        let report = Command::Report { outcome: outcome.clone(), by };
        match self.propose_until_answered(&report).await? {
            Answer::Done => Ok(()),
            Answer::Superseded => Err(StoreError::new(Superseded)),
            answer => Err(StoreError::new(format!("not recorded: {answer:?}"))),
        }
    }

    async fn resolve(&self, gid: &Gid) -> Result<(), StoreError> {
        self.propose_until_answered(&Command::Resolve(gid.clone())).await.map(drop)
    }

    fn heuristics(&self) -> Vec<HeuristicOutcome> {
        self.decisions.heuristics()
    }

    fn is_superseded(&self) -> bool {
        self.decisions.epoch() > self.epoch.load(Ordering::Relaxed)
    }

    fn can_decide(&self) -> bool {
        self.status.borrow().role == Role::Leader && self.raft.stopped().is_none()
    }
}

impl fmt::Debug for RaftLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftLog")
            .field("decisions", &self.decisions)
            .field("own_epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
