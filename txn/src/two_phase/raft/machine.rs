//! The decisions of one node of the group.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_raft::{Chunks, MachineError, StateMachine, WholeSnapshot};

use super::super::core::Decision;
use super::super::gid::TxnId;
use super::super::log::OpenedLog;
use super::codec::Malformed;
use super::register::{Command, Register};

/// The decisions of a coordinator on one node of a group, as a part of a replicated state. Clones
/// are one. Made anew at each start: the node's snapshot and log fill it.
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

    /// Carries a command out, and returns its answer for whoever has proposed it.
    ///
    /// # Errors
    /// [`Malformed`]: stop this node, which is no replica any more.
    pub fn apply(&self, command: &[u8]) -> Result<Bytes, Malformed> {
        let command = Command::decode(command)?;
        Ok(self.register.lock().apply(command).encode())
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

    pub(super) fn decision(&self, txn: TxnId) -> Option<Decision> {
        self.register.lock().decision(txn)
    }
}

impl fmt::Debug for Decisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decisions").field("epoch", &self.epoch()).finish_non_exhaustive()
    }
}

/// A state machine with decisions only.
#[derive(Debug)]
pub struct DecisionMachine {
    decisions: Decisions,
}

impl DecisionMachine {
    /// The machine of these decisions, which are given to [`RaftLog`](super::RaftLog), too.
    pub fn new(decisions: Decisions) -> Self {
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

    /// A command changes an entry of a tree.
    fn is_quick(&self) -> bool {
        true
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
