//! Hands committed commands to the data, and takes and restores snapshots.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use voussoir_raft::{Chunks, Command as Committed, MachineError, StateMachine};

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

    /// Keys and values are counted references, so a copy of the map takes a few 10 ms for a million
    /// pairs, on a thread of its own. Beyond that, keep the data in a structure that can be cut in
    /// constant time. The copy is encoded chunk by chunk, as they are stored.
    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let kv = self.kv.clone();
        let kv = tokio::task::spawn_blocking(move || kv.read().clone()).await?;
        Ok(Box::new(Cut { kv, after: None, is_first: true }))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let mut kv = Kv::default();
        while let Some(chunk) = chunks.next().await? {
            kv.decode_chunk(chunk)?;
        }
        *self.kv.write() = kv;
        Ok(())
    }
}

/// The state at one index, on its way into a snapshot.
struct Cut {
    kv: Kv,
    /// The last key that was given out.
    after: Option<Bytes>,
    is_first: bool,
}

#[async_trait]
impl Chunks for Cut {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        let (last, chunk) = self.kv.encode_chunk(self.after.as_ref());
        // The snapshot of an empty store is one chunk without pairs.
        let is_over = last.is_none() && !self.is_first;
        self.is_first = false;
        self.after = last.or(self.after.take());
        Ok((!is_over).then_some(chunk))
    }
}

#[cfg(test)]
mod tests {
    use voussoir_raft::testing::conformance;

    use super::*;
    use crate::kv::Condition;

    #[tokio::test]
    async fn the_machine_keeps_the_contract_of_its_seam() {
        let put = |number: u32, len: usize| Command::Put {
            key: Bytes::from(format!("key/{}", number % 7)),
            value: Bytes::from(vec![number as u8; len]),
            condition: if number.is_multiple_of(3) {
                Condition::Present
            } else {
                Condition::Always
            },
        };
        let mut commands: Vec<Bytes> =
            (0..40).map(|n| put(n, n as usize * 9000).encode()).collect();
        let delete = Command::Delete { key: "key/1".into(), condition: Condition::Always };
        commands.push(delete.encode());
        let create = || -> Box<dyn StateMachine> { Box::new(Machine::new(Arc::default())) };
        conformance::state_machine(create, &commands).await;
    }
}
