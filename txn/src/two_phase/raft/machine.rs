//! The decisions of one node of the group.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_raft::{Chunks, MachineError, StateMachine, WholeSnapshot};

use super::super::core::Decision;
use super::super::gid::TxnId;
use super::super::log::{HeuristicOutcome, OpenedLog};
use super::codec::{Malformed, Unread};
use super::register::{Answer, Command, Register};

/// The decisions of a coordinator on one node of a group, as a part of a replicated state. Clones
/// are one. Made anew, or [cleared](Self::clear), at each start: the node's snapshot and log fill
/// it.
///
/// A state machine of your own, with decisions beside other state, calls [`apply`](Self::apply) for
/// the commands of [`RaftLog`](super::RaftLog), and [`snapshot`](Self::snapshot) and
/// [`restore`](Self::restore) with its own.
#[derive(Clone, Default)]
pub struct Decisions {
    register: Arc<Mutex<Register>>,
}

impl Decisions {
    /// Nothing was decided yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Carries a command out, and returns its answer for whoever has proposed it. Bytes that are no
    /// command change nothing, and are answered so.
    ///
    /// # Errors
    /// [`Malformed`]: the command is of a later version. Stop this node, which is no replica any
    /// more.
    pub fn apply(&self, command: &[u8]) -> Result<Bytes, Malformed> {
        let answer = match Command::decode(command) {
            Ok(command) => self.register.lock().apply(command),
            Err(Unread::Foreign) => Answer::Malformed,
            Err(Unread::Later) => return Err(Malformed { what: "command" }),
        };
        Ok(answer.encode())
    }

    /// Forgets everything, for a node that is started again in this process: its snapshot and its
    /// log fill the state from the beginning. [`DecisionMachine::new`] does it.
    pub fn clear(&self) {
        let before = std::mem::take(&mut *self.register.lock());
        // After the lock is released: up to 64 MiB of records.
        drop(before);
    }

    /// The state as bytes, at most about 70 MiB.
    pub fn snapshot(&self) -> Bytes {
        let register = self.register.lock().clone();
        register.encode()
    }

    /// Replaces the state by that of a [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    /// [`Malformed`]: nothing was changed.
    pub fn restore(&self, snapshot: &[u8]) -> Result<(), Malformed> {
        let register = Register::decode(snapshot)?;
        *self.register.lock() = register;
        Ok(())
    }

    /// The epoch of the latest coordinator that this node knows of; 0 before the first. It may be
    /// behind.
    pub fn epoch(&self) -> u64 {
        self.register.lock().epoch()
    }

    /// The name of the coordinator whose decisions these are; `None` before its first epoch, or if
    /// this node is behind.
    pub fn coordinator(&self) -> Option<Arc<str>> {
        self.register.lock().coordinator.clone()
    }

    /// Commits whose branches may not have been told, as this node knows them. It may be behind.
    pub fn committed(&self) -> usize {
        self.register.lock().committed.len()
    }

    /// What a coordinator begins with; `None` once a later one has begun.
    pub(super) fn opened(&self, epoch: u64) -> Option<OpenedLog> {
        let register = self.register.lock();
        (register.epoch() == epoch).then(|| OpenedLog {
            epoch,
            committed: register.committed(),
            heuristics: register.heuristics(),
        })
    }

    pub(super) fn heuristics(&self) -> Vec<HeuristicOutcome> {
        self.register.lock().heuristics()
    }

    pub(super) fn decision(&self, txn: TxnId) -> Option<Decision> {
        self.register.lock().decision(txn)
    }
}

impl fmt::Debug for Decisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decisions").field("epoch", &self.epoch()).finish_non_exhaustive()
    }
}

/// A state machine with decisions only. It has a task of its own, beside Raft's: a snapshot begins
/// with a copy of all records.
#[derive(Debug)]
pub struct DecisionMachine {
    decisions: Decisions,
}

impl DecisionMachine {
    /// The machine of these decisions, which are also given to
    /// [`RaftLog::new`](super::RaftLog::new). Clears them: a node begins with what its snapshot and
    /// its log hold, and nothing else.
    pub fn new(decisions: Decisions) -> Self {
        decisions.clear();
        Self { decisions }
    }
}

#[async_trait]
impl StateMachine for DecisionMachine {
    async fn apply(
        &mut self,
        commands: &[voussoir_raft::Command],
    ) -> Result<Vec<Bytes>, MachineError> {
        commands.iter().map(|command| Ok(self.decisions.apply(&command.data)?)).collect()
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let register = self.decisions.register.lock().clone();
        let bytes = tokio::task::spawn_blocking(move || register.encode()).await?;
        Ok(Box::new(WholeSnapshot::new(bytes)))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let bytes = WholeSnapshot::collect(chunks).await?;
        Ok(self.decisions.restore(&bytes)?)
    }
}
