//! The suites for the seams, on the implementations that come with the crate.

mod cluster;

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use voussoir_journal::{Config, Journal, MemoryFiles};
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::net::NetTransport;
use voussoir_raft::testing::conformance;
use voussoir_raft::{LogStore, Transport};

const IDENTITY: Identity = Identity { cluster: 1, node: 1, group: 5 };

#[tokio::test]
async fn the_store_in_memory_keeps_its_promises() {
    let mut store = MemoryStore::new();
    conformance::log_store(|new| {
        if new {
            store = MemoryStore::new();
        }
        ready(Arc::new(store.clone()) as Arc<dyn LogStore>)
    })
    .await;
}

#[tokio::test]
async fn the_store_on_the_journal_keeps_its_promises() {
    let mut options = Config::default();
    options.segment_bytes = 8 << 20;
    let mut files = Arc::new(MemoryFiles::new());
    let mut open: Option<Journal> = None;
    conformance::log_store(|new| {
        if let Some(before) = open.take() {
            before.close().unwrap();
        }
        if new {
            files = Arc::new(MemoryFiles::new());
        }
        let journal = Journal::open_with(files.clone(), options.clone()).unwrap();
        let begin = if new { JournalStore::create } else { JournalStore::open };
        let store = begin(&journal, IDENTITY).unwrap();
        open = Some(journal);
        ready(Arc::new(store) as Arc<dyn LogStore>)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_network_in_memory_keeps_its_promises() {
    let network = Network::new();
    conformance::transport(network.node(1), network.node(2)).await;
}

#[tokio::test]
async fn the_transport_on_tcp_keeps_its_promises() {
    let peers = voussoir_net::Peers::new();
    let mut nodes: Vec<Arc<dyn Transport>> = Vec::new();
    for id in [1, 2] {
        let config = voussoir_net::Config::new(1);
        let listen = "127.0.0.1:0".parse().unwrap();
        let tcp =
            voussoir_net::Tcp::bind(id, listen, Arc::new(peers.clone()), config).await.unwrap();
        peers.insert(id, tcp.address());
        nodes.push(Arc::new(NetTransport::new(Arc::new(tcp), 3).unwrap()));
    }
    conformance::transport(Arc::clone(&nodes[0]), Arc::clone(&nodes[1])).await;
}

#[tokio::test]
async fn the_machine_of_the_tests_keeps_its_promises() {
    let commands = ["a", "b", "c"].map(Bytes::from);
    conformance::state_machine(|| Box::new(cluster::Text::default()), &commands).await;
}
