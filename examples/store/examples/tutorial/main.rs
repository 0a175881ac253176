//! Replicated counters: the program that `TUTORIAL.md` builds.

mod client;
mod counters;
mod node;
#[cfg(test)]
mod sim;
mod transport;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use voussoir_journal::Journal;

use crate::client::{Added, Nodes, add};
use crate::counters::Add;
use crate::node::{Error, NODES, Node};
use crate::transport::HttpTransport;

/// What a node is made of, to take it down again.
struct Process {
    node: Node,
    journal: Journal,
    server: JoinHandle<std::io::Result<()>>,
}

impl Process {
    async fn start(
        id: u64,
        folder: &Path,
        addresses: &BTreeMap<u64, SocketAddr>,
    ) -> Result<Self, Error> {
        let (journal, log) = node::open(id, &folder.join(id.to_string()))?;
        let listener = TcpListener::bind(addresses[&id]).await?;
        let transport = Arc::new(HttpTransport::new(id, addresses));
        let server = tokio::spawn(axum::serve(listener, transport.router()).into_future());
        let node = Node::start(node::config(id), Arc::new(log), transport).await?;
        Ok(Self { node, journal, server })
    }

    async fn stop(self) -> Result<(), Error> {
        self.node.raft.shutdown().await;
        self.server.abort();
        self.journal.close()?;
        Ok(())
    }
}

/// Adds 1 to the counter, `count` times, and returns the last value.
async fn count_up(nodes: &Nodes, request: &mut u64, count: u64) -> Result<i64, Error> {
    let mut last = 0;
    for _ in 0..count {
        *request += 1;
        let command = Add { name: "visits".to_owned(), amount: 1, client: 1, request: *request };
        match add(nodes, &command, Instant::now() + Duration::from_secs(10)).await? {
            Added::Done { value, unknown_attempts: 0 } => last = value,
            Added::Done { value, unknown_attempts } => {
                println!("addition {request}: {unknown_attempts} attempts of unknown outcome");
                last = value;
            }
            lost => return Err(format!("addition {request}: {lost:?}").into()),
        }
    }
    Ok(last)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let mut addresses = BTreeMap::new();
    for id in NODES {
        let free = TcpListener::bind("127.0.0.1:0").await?;
        addresses.insert(id, free.local_addr()?);
        node::create(id, &folder.path().join(id.to_string()))?;
    }
    let nodes = Nodes::default();
    let mut processes = BTreeMap::new();
    for id in NODES {
        let process = Process::start(id, folder.path(), &addresses).await?;
        nodes.lock().insert(id, process.node.clone());
        processes.insert(id, process);
    }
    let mut request = 0;
    println!("three nodes: visits = {}", count_up(&nodes, &mut request, 100).await?);

    // Take the leader down. The other two elect a new one, and nothing is lost.
    let status = processes[&1].node.raft.status().borrow().clone();
    let down = status.leader.ok_or("the leader is known: it has just acknowledged")?;
    nodes.lock().remove(&down);
    processes.remove(&down).ok_or("it runs")?.stop().await?;
    let visits = count_up(&nodes, &mut request, 1000).await?;
    println!("without node {down}: visits = {visits}");

    // Bring it back. The others have released the entries that it lacks: it gets a snapshot.
    let process = Process::start(down, folder.path(), &addresses).await?;
    nodes.lock().insert(down, process.node.clone());
    let applied = nodes.lock()[&(down % 3 + 1)].raft.status().borrow().applied;
    process.node.raft.status().wait_for(|status| status.applied >= applied).await?;
    println!(
        "node {down} is back: visits = {}, {} snapshots received",
        process.node.value("visits").await?,
        process.node.raft.stats().snapshots_received,
    );
    processes.insert(down, process);

    // Restart every node, and read what is on the disks.
    nodes.lock().clear();
    for (_, process) in std::mem::take(&mut processes) {
        process.stop().await?;
    }
    for id in NODES {
        let process = Process::start(id, folder.path(), &addresses).await?;
        nodes.lock().insert(id, process.node.clone());
        processes.insert(id, process);
    }
    println!("all restarted: visits = {}", count_up(&nodes, &mut request, 1).await?);
    for (_, process) in processes {
        process.stop().await?;
    }
    Ok(())
}
