//! The suites for the seams, on the implementations that come with the crate.

mod cluster;

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use voussoir_journal::{Config, Journal, MemoryFiles};
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::net::NetTransport;
use voussoir_raft::testing::conformance;
use voussoir_raft::{
    Config as RaftConfig, Inbox, LogStore, Message, Node, NodeConfig, ProposeError, Raft, Role,
    SnapshotAnswer, SnapshotPart, Transport,
};

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

#[tokio::test]
async fn a_node_on_small_segments_takes_what_they_hold() {
    let start = async |longest: Option<usize>| {
        let mut options = Config::default();
        (options.segment_bytes, options.max_bytes) = (256 << 10, 16 << 20);
        let journal = Journal::open_with(Arc::new(MemoryFiles::new()), options).unwrap();
        let store = JournalStore::create(&journal, IDENTITY).unwrap();
        let mut config = RaftConfig::new(1, [1]);
        config.group = IDENTITY.group;
        config.max_entry_bytes = longest.unwrap_or(config.max_entry_bytes);
        let machine = Box::new(cluster::Text::default());
        Raft::start(config, Arc::new(store), machine, Network::new().node(1)).await
    };
    let refused = start(Some(64 << 10)).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("what the log store takes"), "{refused}");
    let raft = start(None).await.unwrap();
    raft.status().wait_for(|status| status.role == Role::Leader).await.unwrap();
    let mut proposals = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let raft = raft.clone();
        proposals.spawn(async move { raft.propose(Bytes::from(vec![b'a'; 1000])).await.is_ok() });
    }
    assert!(proposals.join_all().await.into_iter().all(|is_ok| is_ok));
    let longest = (64 << 10) - 1024;
    let refused = raft.propose(Bytes::from(vec![b'a'; longest + 1])).await.unwrap_err();
    assert!(matches!(refused, ProposeError::TooLarge { max_bytes, .. } if max_bytes == longest));
    raft.propose(Bytes::from(vec![b'a'; longest])).await.unwrap();
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

/// A message that no peer ever gets would stop all that come behind it.
#[tokio::test]
async fn a_transport_that_carries_too_little_is_refused_at_the_start() {
    let start = async |max_message_bytes: usize, tweak: fn(&mut RaftConfig)| {
        let mut limits = voussoir_net::Config::new(1);
        limits.bulk.max_message_bytes = max_message_bytes;
        let network = voussoir_net::memory::Network::new(limits).unwrap();
        let transport = Arc::new(NetTransport::new(Arc::new(network.join(1)), 3).unwrap());
        let mut config = RaftConfig::new(1, [1]);
        tweak(&mut config);
        let machine = Box::new(cluster::Text::default());
        Raft::start(config, Arc::new(MemoryStore::new()), machine, transport).await.map(|_| ())
    };
    let small = 512 << 10;
    let refused = start(small, |_| ()).await.unwrap_err();
    assert!(refused.to_string().contains("what the transport carries"), "{refused}");
    // Also for the chunks of snapshots alone.
    let tiny = |config: &mut RaftConfig| {
        (config.max_append_bytes, config.max_entry_bytes) = (1 << 10, 1 << 10);
    };
    start(small, tiny).await.unwrap_err();
    start(1 << 20, tiny).await.unwrap();
    let long = |config: &mut RaftConfig| config.max_entry_bytes = 2 << 20;
    start(2 << 20, long).await.unwrap_err();
    start(3 << 20, long).await.unwrap();
}

/// A network whose messages but for appends are as short as it allows.
fn of_small_messages() -> voussoir_net::memory::Network {
    let mut limits = voussoir_net::Config::new(1);
    limits.small.max_message_bytes = 1 << 10;
    voussoir_net::memory::Network::new(limits).unwrap()
}

fn join(network: &voussoir_net::memory::Network, id: u64) -> Arc<NetTransport> {
    Arc::new(NetTransport::new(Arc::new(network.join(id)), 3).unwrap())
}

/// Passes messages on.
struct Arrivals(mpsc::UnboundedSender<Message>);

#[async_trait]
impl Inbox for Arrivals {
    fn message(&self, _: u64, message: Message) {
        self.0.send(message).unwrap();
    }

    fn unreachable(&self, _: u64) {}

    async fn snapshot(&self, _: u64, _: SnapshotPart) -> SnapshotAnswer {
        SnapshotAnswer::Rejected
    }
}

#[tokio::test(start_paused = true)]
async fn bundles_are_no_longer_than_their_class_allows() {
    let network = of_small_messages();
    let (one, two) = (join(&network, 1), join(&network, 2));
    let (send, mut arrivals) = mpsc::unbounded_channel();
    two.attach(5, Arc::new(Arrivals(send))).unwrap();
    // The first may come before the connection stands.
    while one.send(2, 5, Message::Stale { term: 1 }).is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(arrivals.recv().await, Some(Message::Stale { term: 1 }));
    let messages: Vec<_> = (0..100).map(|term| (5, Message::Stale { term })).collect();
    one.send_all(2, messages).unwrap();
    for term in 0..100 {
        assert_eq!(arrivals.recv().await, Some(Message::Stale { term }));
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_of_many_groups_get_on_with_small_messages() {
    const GROUPS: u64 = 60;
    let network = of_small_messages();
    let (mut nodes, mut rafts) = (Vec::new(), Vec::new());
    for id in 1..=3 {
        let node = Node::start(NodeConfig::default(), join(&network, id)).unwrap();
        for group in 1..=GROUPS {
            let mut config = RaftConfig::new(id, [1, 2, 3]);
            (config.group, config.seed) = (group, Some(group * 7 + id));
            config.quiesce_after = None;
            let machine = Box::new(cluster::Text::default());
            let store = Arc::new(MemoryStore::new());
            rafts.push(node.start_group(config, store, machine).await.unwrap());
        }
        nodes.push(node);
    }
    let leads = |raft: &&Raft| raft.status().borrow().role == Role::Leader;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let terms = || rafts.iter().map(|raft| raft.status().borrow().term).sum::<u64>();
    let before = terms();
    assert_eq!(rafts.iter().filter(leads).count() as u64, GROUPS);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(terms(), before, "nobody misses a heartbeat");
    for node in &nodes {
        node.shutdown().await;
    }
}
