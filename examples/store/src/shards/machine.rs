//! The state machines of the groups: that of the map, and that of each shard.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;
use voussoir_raft::{Chunks, Command as Committed, MachineError, StateMachine, WholeSnapshot};

use super::command::Command;
use super::map::{Change, Refused, Routes, ShardMap};
use super::shard::{Cut, Shard};

/// Version of the map's commands and snapshots, their first byte. JSON follows.
const FORMAT: u8 = 1;

/// The state machine of group 0: publishes each version of the map.
pub struct MapMachine {
    routes: watch::Sender<Arc<Routes>>,
}

impl MapMachine {
    pub fn new() -> (Self, watch::Receiver<Arc<Routes>>) {
        let (routes, watch) = watch::channel(Arc::new(Routes::new(ShardMap::default())));
        (Self { routes }, watch)
    }
}

/// The bytes of a change of the map.
pub fn encode_change(change: &Change) -> Bytes {
    with_format(&serde_json::to_vec(change).unwrap_or_default())
}

/// The map's version after a change, or why it was refused.
///
/// # Errors
/// The bytes are no answer of the map's group.
pub fn decode_answer(answer: &[u8]) -> Result<Result<u64, Refused>, serde_json::Error> {
    serde_json::from_slice(answer)
}

fn with_format(json: &[u8]) -> Bytes {
    [&[FORMAT], json].concat().into()
}

fn without_format(bytes: &[u8]) -> Result<&[u8], MachineError> {
    match bytes.split_first() {
        Some((&FORMAT, json)) => Ok(json),
        _ => Err("not a shard map that this version of the store can read".into()),
    }
}

#[async_trait]
impl StateMachine for MapMachine {
    async fn apply(&mut self, commands: &[Committed]) -> Result<Vec<Bytes>, MachineError> {
        let mut map = self.routes.borrow().map.clone();
        let mut answers = Vec::with_capacity(commands.len());
        for Committed { data, .. } in commands {
            let change: Change = serde_json::from_slice(without_format(data)?)?;
            let answer = map.apply(change).map(|()| map.version);
            answers.push(serde_json::to_vec(&answer)?.into());
        }
        self.routes.send_replace(Arc::new(Routes::new(map)));
        Ok(answers)
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let json = serde_json::to_vec(&self.routes.borrow().map)?;
        Ok(Box::new(WholeSnapshot::new(with_format(&json))))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let bytes = WholeSnapshot::collect(chunks).await?;
        let map: ShardMap = serde_json::from_slice(without_format(&bytes)?)?;
        self.routes.send_replace(Arc::new(Routes::new(map)));
        Ok(())
    }
}

/// The state machine of a shard. HTTP handlers read the same state.
pub struct ShardMachine {
    shard: Arc<RwLock<Shard>>,
}

impl ShardMachine {
    pub fn new(shard: Arc<RwLock<Shard>>) -> Self {
        Self { shard }
    }
}

#[async_trait]
impl StateMachine for ShardMachine {
    async fn apply(&mut self, commands: &[Committed]) -> Result<Vec<Bytes>, MachineError> {
        let mut shard = self.shard.write();
        let mut answers = Vec::with_capacity(commands.len());
        for Committed { index, data } in commands {
            let command = Command::decode(data.clone())?;
            answers.push(shard.apply(*index, command).encode());
        }
        Ok(answers)
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let shard = self.shard.clone();
        let shard = tokio::task::spawn_blocking(move || shard.read().clone()).await?;
        Ok(Box::new(ShardChunks(Cut::new(shard))))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let mut shard = Shard::default();
        while let Some(chunk) = chunks.next().await? {
            shard.decode_chunk(chunk)?;
        }
        *self.shard.write() = shard;
        Ok(())
    }
}

struct ShardChunks(Cut);

#[async_trait]
impl Chunks for ShardChunks {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        Ok(self.0.next_chunk())
    }
}
