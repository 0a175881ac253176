//! Three nodes in one process agree on a counter, also after their leader is gone.

use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::{
    Chunks, Command, Config, MachineError, Raft, Role, StateMachine, WholeSnapshot,
};

/// The state: a number. Commands are decimal numbers to add.
struct Sum(u64);

#[async_trait]
impl StateMachine for Sum {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let add = |command: &Command| {
            // A command that makes no sense changes nothing, on every node alike.
            let text = std::str::from_utf8(&command.data).unwrap_or("0");
            self.0 = self.0.wrapping_add(text.parse().unwrap_or(0));
            Bytes::from(self.0.to_string())
        };
        Ok(commands.iter().map(add).collect())
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        Ok(Box::new(WholeSnapshot::new(self.0.to_le_bytes().to_vec())))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let state = WholeSnapshot::collect(chunks).await?;
        self.0 = u64::from_le_bytes(state.as_ref().try_into()?);
        Ok(())
    }
}

async fn leader(nodes: &[Raft]) -> &Raft {
    loop {
        for node in nodes {
            if node.stopped().is_none() && node.status().borrow().role == Role::Leader {
                return node;
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let network = Network::new();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let (config, store) = (Config::new(id, [1, 2, 3]), Arc::new(MemoryStore::new()));
        nodes.push(Raft::start(config, store, Box::new(Sum(0)), network.node(id)).await?);
    }
    for number in ["1", "2", "3"] {
        let sum = leader(&nodes).await.propose(number.into()).await?;
        println!("added {number}: {}", String::from_utf8_lossy(&sum));
    }
    let old = leader(&nodes).await;
    println!("node {} leads, and is shut down", old.status().borrow().id);
    old.shutdown().await;
    let new = leader(&nodes).await;
    println!("node {} leads", new.status().borrow().id);
    let sum = new.propose("4".into()).await?;
    println!("added 4: {}", String::from_utf8_lossy(&sum));
    assert_eq!(sum, "10", "nothing that was acknowledged is lost");
    Ok(())
}
