//! Hands committed commands to the data, and takes and restores snapshots.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use voussoir_raft::{Chunks, Command as Committed, MachineError, StateMachine, WholeSnapshot};

use crate::kv::{Command, Kv};

/// The state machine of a node. HTTP handlers read the same data.
pub struct Machine {
    kv: Arc<RwLock<Kv>>,
}

impl Machine {
    pub fn new(kv: Arc<RwLock<Kv>>) -> Self {
        Self { kv }
    }
}

#[async_trait]
impl StateMachine for Machine {
    async fn apply(&mut self, commands: &[Committed]) -> Result<Vec<Bytes>, MachineError> {
        let mut kv = self.kv.write();
        let mut answers = Vec::with_capacity(commands.len());
        for Committed { index, data } in commands {
            let command = Command::decode(data.clone())?;
            answers.push(kv.apply(*index, command).encode());
        }
        Ok(answers)
    }

    /// Keys and values are counted references, so a copy of the map is cheap enough for a few
    /// million pairs. Beyond that, keep the data in a structure that can be cut in constant time.
    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let cut = self.kv.read().clone();
        let encoded = tokio::task::spawn_blocking(move || cut.encode()).await?;
        Ok(Box::new(WholeSnapshot::new(encoded)))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let encoded = WholeSnapshot::collect(chunks).await?;
        *self.kv.write() = Kv::decode(encoded)?;
        Ok(())
    }
}
