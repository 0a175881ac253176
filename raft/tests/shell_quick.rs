//! Machines that Raft's own task polls, and what a deposed leader holds.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cluster::{Cluster, Text, append, timeout};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::{
    Chunks, Command, Config, Doubt, MachineError, ProposeError, Raft, Role, StateMachine,
    StopReason,
};

/// A machine that says that it is quick.
struct Quick(Text);

#[async_trait]
impl StateMachine for Quick {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        self.0.apply(commands).await
    }

    fn is_quick(&self) -> bool {
        true
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        self.0.snapshot().await
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        self.0.restore(chunks).await
    }
}

struct Node {
    raft: Raft,
    machine: Text,
}

async fn start(network: &Network, voters: u64, tune: fn(&mut Config)) -> Vec<Node> {
    let mut nodes = Vec::new();
    for id in 1..=voters {
        let mut config = Config::new(id, (1..=voters).collect::<Vec<_>>());
        config.seed = Some(7);
        tune(&mut config);
        let machine = Text::default();
        let (store, quick) = (Arc::new(MemoryStore::new()), Box::new(Quick(machine.clone())));
        let raft = Raft::start(config, store, quick, network.node(id));
        nodes.push(Node { raft: timeout(raft).await.unwrap(), machine });
    }
    nodes
}

/// The place of the leader among the nodes.
async fn leader(nodes: &[Node]) -> usize {
    let mut status = nodes[0].raft.status();
    let known = timeout(status.wait_for(|status| status.leader.is_some())).await.unwrap();
    let leader = known.leader.unwrap() as usize - 1;
    let mut status = nodes[leader].raft.status();
    timeout(status.wait_for(|status| status.role == Role::Leader)).await.unwrap();
    leader
}

async fn applied(node: &Node, text: &str) {
    let mut status = node.raft.status();
    timeout(async {
        while *node.machine.value.lock() != text {
            status.changed().await.unwrap();
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_quick_machine_has_no_task_of_its_own() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let nodes = start(&Network::new(), 3, |_| ()).await;
    assert_eq!(tasks() - before, 3, "a task for each node");
    let leader = leader(&nodes).await;
    assert_eq!(timeout(nodes[leader].raft.propose(append("a"))).await.unwrap(), "a");
    assert_eq!(timeout(nodes[leader].raft.propose(append("b"))).await.unwrap(), "ab");
    for node in &nodes {
        applied(node, "ab").await;
    }
    for node in &nodes {
        timeout(node.raft.shutdown()).await;
    }
    tokio::task::yield_now().await;
    assert_eq!(tasks(), before, "and none is left");
    let cluster = Cluster::new(1).await;
    assert_eq!(tasks() - before, 2, "one more for a machine that is not quick");
    drop(cluster);
}

#[tokio::test(start_paused = true)]
async fn a_quick_machine_that_awaits_delays_nobody() {
    let nodes = start(&Network::new(), 3, |_| ()).await;
    let leader = leader(&nodes).await;
    let term = nodes[leader].raft.status().borrow().term;
    let gate = &nodes[leader].machine.gate;
    gate.forget_permits(Semaphore::MAX_PERMITS);
    let raft = nodes[leader].raft.clone();
    let slow = tokio::spawn(async move { raft.propose(append("a")).await });
    applied(&nodes[(leader + 1) % 3], "a").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let status = nodes[leader].raft.status().borrow().clone();
    assert_eq!((status.role, status.term), (Role::Leader, term), "it still leads");
    gate.add_permits(100);
    assert_eq!(timeout(slow).await.unwrap().unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_quick_machine_that_fails_or_panics_stops_its_node() {
    for panics in [false, true] {
        let nodes = start(&Network::new(), 3, |_| ()).await;
        let leader = leader(&nodes).await;
        let follower = (leader + 1) % 3;
        if panics {
            for node in (0..3).filter(|node| *node != follower) {
                nodes[node].machine.immune();
            }
            timeout(nodes[leader].raft.propose(append("panic"))).await.unwrap();
        } else {
            nodes[follower].machine.gate.close();
            timeout(nodes[leader].raft.propose(append("a"))).await.unwrap();
        }
        let mut status = nodes[follower].raft.status();
        timeout(async { while status.changed().await.is_ok() {} }).await;
        match nodes[follower].raft.stopped().unwrap() {
            StopReason::Machine(_) => assert!(!panics),
            StopReason::Panicked => assert!(panics),
            other => panic!("{other:?}"),
        }
        timeout(nodes[leader].raft.propose(append("b"))).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_quick_machine_is_restored_from_a_snapshot() {
    fn eager(config: &mut Config) {
        (config.snapshot_after_entries, config.keep_entries) = (5, 1);
    }
    let network = Network::new();
    let nodes = start(&network, 3, eager).await;
    let leader = leader(&nodes).await;
    let late = (leader + 1) % 3;
    network.isolate(late as u64 + 1, 1..=3);
    for _ in 0..40 {
        timeout(nodes[leader].raft.propose(append("x"))).await.unwrap();
    }
    network.heal();
    applied(&nodes[late], &"x".repeat(40)).await;
    assert!(*nodes[late].machine.restored.lock() > 0, "by a snapshot");
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_holds_no_more_than_its_room() {
    fn tight(config: &mut Config) {
        config.max_entry_bytes = 1000;
        config.max_uncommitted_bytes = 2000;
    }
    let network = Network::new();
    let nodes = start(&network, 3, tight).await;
    let leader = leader(&nodes).await;
    network.isolate(leader as u64 + 1, 1..=3);
    let raft = nodes[leader].raft.clone();
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let raft = raft.clone();
            tokio::spawn(async move { raft.propose(append(&"x".repeat(500))).await })
        })
        .collect();
    let mut status = raft.status();
    timeout(status.wait_for(|status| status.role != Role::Leader)).await.unwrap();
    let held = raft.stats().proposals;
    assert!(held * 500 <= 2000 && held > 0, "{held} are held, the others wait outside");
    let mut unknown = 0;
    for proposal in waiting {
        match timeout(proposal).await.unwrap().unwrap_err() {
            ProposeError::Unknown(Doubt::TimedOut) => unknown += 1,
            ProposeError::NotLeader { .. } | ProposeError::Busy => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(unknown, held, "only what was in the log may still be applied");
}
