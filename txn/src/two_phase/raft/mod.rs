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
//! ```
//! use std::sync::Arc;
//! use voussoir_raft::memory::{MemoryStore, Network};
//! use voussoir_raft::{Config, Raft, Role};
//! use voussoir_txn::two_phase::raft::{DecisionMachine, Decisions, RaftLog};
//! use voussoir_txn::two_phase::{Ack, Coordinator};
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
//! status.wait_for(|status| status.role == Role::Leader).await?;
//! let log = RaftLog::new(raft.clone(), decisions.clone());
//! // Its participants are the same on each node.
//! let coordinator = Coordinator::builder("transfers").open(log).await?;
//! coordinator.begin()?.commit(Ack::Decided).await?;
//! # raft.shutdown().await;
//! // Serves until another node leads; what was asked to commit goes on to its end.
//! status.wait_for(|status| status.role != Role::Leader).await.ok();
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
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};
use voussoir_raft::{Outcome, Raft};

pub use self::codec::Malformed;
pub use self::machine::{DecisionMachine, Decisions};

use self::register::{Answer, Command};
use super::core::Decision;
use super::gid::{Gid, TxnId};
use super::log::{Committed, DecisionLog, HeuristicOutcome, OpenedLog};
use crate::error::StoreError;

/// Makes a command of the group of the bytes of a command of [`RaftLog`].
pub type Wrap = dyn Fn(Bytes) -> Bytes + Send + Sync;

/// For how long the group may be without a leader before a call fails.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts of a call.
const PAUSE: Duration = Duration::from_millis(50);

/// The decisions of one coordinator in a group of `voussoir-raft`. The nodes of the group are where
/// the coordinator may run; a group has one coordinator, which may be on any node, and is meant to
/// be on the one that leads.
///
/// At most 64 MiB of records are kept: commits whose branches have not all been told, and heuristic
/// outcomes that nobody has forgotten. A commit beyond it is aborted.
pub struct RaftLog {
    raft: Raft,
    decisions: Decisions,
    wrap: Arc<Wrap>,
    patience: Duration,
    /// The epoch of the coordinator of this log; 0 before it was opened.
    epoch: AtomicU64,
}

/// A command that has no answer.
enum Failed {
    /// It is in no log, and never will be.
    NotApplied(String),
    Unknown(String),
}

impl RaftLog {
    /// Decisions in a group whose nodes run a [`DecisionMachine`]; the one of this node has these
    /// `decisions`.
    pub fn new(raft: Raft, decisions: Decisions) -> Self {
        Self::within(raft, decisions, Arc::new(|command| command))
    }

    /// Decisions in a group of your own: `wrap` makes a command of the group of a command of this
    /// log. Your state machine takes it apart again, calls [`Decisions::apply`], and returns what
    /// that returns.
    pub fn within(raft: Raft, decisions: Decisions, wrap: Arc<Wrap>) -> Self {
        let epoch = AtomicU64::new(0);
        Self { raft, decisions, wrap, patience: DEFAULT_PATIENCE, epoch }
    }

    /// For how long a call waits for the group to have a leader, or to confirm what became of a
    /// commit. Default 10 s. After it the outcome of that commit is unknown, and this coordinator
    /// decides nothing more.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        // What is later than the clock counts is never.
        now.checked_add(self.patience).unwrap_or(now + Duration::from_secs(1 << 30))
    }

    async fn propose(&self, command: &Command) -> Result<Answer, Failed> {
        let bytes = command.encode().map_err(|error| Failed::NotApplied(error.to_string()))?;
        match self.raft.propose((self.wrap)(bytes)).await {
            // An answer that cannot be read is one of a command that was carried out.
            Ok(answer) => Answer::decode(&answer).map_err(|bad| Failed::Unknown(bad.to_string())),
            Err(error) if error.outcome() == Outcome::NotApplied => {
                Err(Failed::NotApplied(error.to_string()))
            }
            Err(error) => Err(Failed::Unknown(error.to_string())),
        }
    }

    /// Proposes a command that may be in the log more than once, until it is answered.
    async fn propose_again_and_again(&self, command: &Command) -> Result<Answer, StoreError> {
        let deadline = self.deadline();
        // Ends: it is answered, or the deadline passes.
        loop {
            let (Failed::NotApplied(why) | Failed::Unknown(why)) =
                match timeout_at(deadline, self.propose(command)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(failed)) => failed,
                    Err(_) => Failed::Unknown("not decided in time".to_owned()),
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
    async fn open(&self) -> Result<OpenedLog, StoreError> {
        // An epoch that was begun without an answer has no coordinator, and is skipped.
        let epoch = match self.propose_again_and_again(&Command::Open).await? {
            Answer::Opened { epoch } => epoch,
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
            // Proposed once, and in no log: nobody will find it recorded.
            Ok(Answer::Full) => Ok(Decision::Abort),
            Err(Failed::NotApplied(why)) => {
                tracing::debug!(target: "voussoir::txn", txn = ?commit.txn, why, "not recorded");
                Ok(Decision::Abort)
            }
            Ok(answer) => self.settle(commit.txn, &format!("{answer:?}")).await,
            Err(Failed::Unknown(why)) => self.settle(commit.txn, &why).await,
        }
    }

    async fn forget(&self, txn: TxnId) -> Result<(), StoreError> {
        let by = self.epoch.load(Ordering::Relaxed);
        match self.propose_again_and_again(&Command::Forget { txn, by }).await? {
            Answer::Done => Ok(()),
            answer => Err(StoreError::new(format!("another coordinator forgets: {answer:?}"))),
        }
    }

    async fn report(&self, outcome: &HeuristicOutcome) -> Result<(), StoreError> {
        let by = self.epoch.load(Ordering::Relaxed);
        let report = Command::Report { outcome: outcome.clone(), by };
        match self.propose_again_and_again(&report).await? {
            Answer::Done => Ok(()),
            answer => Err(StoreError::new(format!("not recorded: {answer:?}"))),
        }
    }

    async fn resolve(&self, gid: &Gid) -> Result<(), StoreError> {
        self.propose_again_and_again(&Command::Resolve(gid.clone())).await.map(drop)
    }

    fn is_superseded(&self) -> bool {
        self.decisions.epoch() > self.epoch.load(Ordering::Relaxed)
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
