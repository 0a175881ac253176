//! A raft group of ours: the store and the network in memory that the crate ships.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::{
    Chunks, Command, Config, MachineError, Raft, Role, StateMachine, WholeSnapshot,
};

/// Three nodes in this process.
#[derive(Debug)]
pub struct Group {
    leader: Raft,
    nodes: Vec<Raft>,
}

impl Group {
    /// Starts them and waits for the first leader. A quick machine is run by Raft's own task, any
    /// other by a task of its own.
    ///
    /// # Panics
    /// Where there is none.
    pub async fn start(quick: bool) -> Self {
        let network = Network::new();
        let mut nodes = Vec::new();
        for id in 1..=3 {
            let mut config = Config::new(id, [1, 2, 3]);
            // Long runs without a snapshot, as the others have them.
            (config.snapshot_after_entries, config.snapshot_after_bytes) = (0, 0);
            let store = Arc::new(MemoryStore::new());
            let machine = Box::new(Counter { bytes: 0, quick });
            let node = Raft::start(config, store, machine, network.node(id)).await;
            nodes.push(node.expect("a node starts"));
        }
        let mut status = nodes[0].status();
        let known = status.wait_for(|status| status.leader.is_some()).await;
        let leader = known.expect("a running node").leader.expect("just seen");
        let leader = nodes[leader as usize - 1].clone();
        let mut status = leader.status();
        status.wait_for(|status| status.role == Role::Leader).await.expect("a running node");
        Self { leader, nodes }
    }

    /// Commits one command.
    ///
    /// # Panics
    /// Where it is not committed.
    pub async fn propose(&self, command: Bytes) {
        self.leader.propose(command).await.expect("a committed write");
    }

    /// Stops all three.
    pub async fn stop(self) {
        for node in &self.nodes {
            node.shutdown().await;
        }
    }
}

/// Counts bytes, as the machines of the others do.
#[derive(Debug)]
pub struct Counter {
    /// So far.
    pub bytes: u64,
    /// What [`StateMachine::is_quick`] answers.
    pub quick: bool,
}

#[async_trait]
impl StateMachine for Counter {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        self.bytes += commands.iter().map(|command| command.data.len() as u64).sum::<u64>();
        Ok(vec![Bytes::new(); commands.len()])
    }

    fn is_quick(&self) -> bool {
        self.quick
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        Ok(Box::new(WholeSnapshot::new(self.bytes.to_le_bytes().to_vec())))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let bytes = WholeSnapshot::collect(chunks).await?;
        self.bytes = u64::from_le_bytes(bytes.as_ref().try_into()?);
        Ok(())
    }
}
