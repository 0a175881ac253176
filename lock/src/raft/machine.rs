//! The replica as a state machine of its own.

use async_trait::async_trait;
use bytes::Bytes;
use voussoir_raft::{Chunks, Command, MachineError, StateMachine};

use crate::core::Restore;
use crate::replica::Replica;

/// A state machine with locks only.
#[derive(Debug)]
pub struct LockMachine {
    replica: Replica,
}

impl LockMachine {
    /// The machine of this replica, which is also given to
    /// [`RaftLocks::start`](super::RaftLocks::start).
    pub fn new(replica: Replica) -> Self {
        Self { replica }
    }
}

#[async_trait]
impl StateMachine for LockMachine {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let apply = |command: &Command| Ok(self.replica.apply(command.index, &command.data)?);
        commands.iter().map(apply).collect()
    }

    /// A command changes a few entries of a tree.
    fn is_quick(&self) -> bool {
        true
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let replica = self.replica.clone();
        let chunks = tokio::task::spawn_blocking(move || replica.snapshot()).await?;
        Ok(Box::new(Cut { chunks: chunks.into_iter() }))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let mut restore = Restore::new();
        while let Some(chunk) = chunks.next().await? {
            restore.add(&chunk)?;
        }
        self.replica.install(restore.finish()?);
        Ok(())
    }
}

/// A snapshot on its way out.
struct Cut {
    chunks: std::vec::IntoIter<Bytes>,
}

#[async_trait]
impl Chunks for Cut {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        Ok(self.chunks.next())
    }
}
