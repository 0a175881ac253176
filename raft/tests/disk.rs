//! Nodes on journals and real TCP, on loopback.

mod cluster;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster::{Text, append, soon};
use voussoir_journal::files::crash::Op;
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{Config as JournalConfig, Journal, MemoryFiles};
use voussoir_net::{Peers, Tcp};
use voussoir_raft::core::Core;
use voussoir_raft::journal::{Identity, JournalStore, OpenError};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{
    Completion, Config, Entry, EntryKind, HardState, LogStore, LogWrite, Raft, Role,
};

const CLUSTER: u128 = 77;

struct Node {
    raft: Raft,
    machine: Text,
    journal: Journal,
    tcp: Arc<Tcp>,
}

fn options() -> JournalConfig {
    let mut options = JournalConfig::default();
    options.segment_bytes = 8 << 20;
    options.max_bytes = 256 << 20;
    options
}

/// Starts a node; `new` when it has never run.
async fn start(id: u64, folder: &PathBuf, peers: &Peers, new: bool) -> Node {
    let journal = Journal::open(folder, options()).unwrap();
    let identity = Identity { cluster: CLUSTER, node: id, group: 1 };
    let open = if new { JournalStore::create } else { JournalStore::open };
    let store = open(&journal, identity).unwrap();
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let net = voussoir_net::Config::new(CLUSTER);
    let tcp = Arc::new(Tcp::bind(id, listen, Arc::new(peers.clone()), net).await.unwrap());
    peers.insert(id, tcp.address());
    let transport = Arc::new(NetTransport::new(Arc::clone(&tcp) as Arc<_>, 1).unwrap());
    let mut config = Config::new(id, [1, 2, 3]);
    config.group = 1;
    config.snapshot_after_entries = 50;
    config.keep_entries = 10;
    let machine = Text::default();
    let raft = Raft::start(config, Arc::new(store), Box::new(machine.clone()), transport);
    Node { raft: raft.await.unwrap(), machine, journal, tcp }
}

async fn stop(node: Node) {
    node.raft.shutdown().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
    node.tcp.shutdown(deadline).await;
    node.journal.close().unwrap();
}

/// A node that leads and can prove it.
async fn leader(nodes: &[Node]) -> &Node {
    loop {
        for node in nodes {
            let leads = node.raft.status().borrow().role == Role::Leader;
            if leads && node.raft.read(soon()).await.is_ok() {
                return node;
            }
        }
        let mut status = nodes[0].raft.status();
        let _ = tokio::time::timeout(Duration::from_millis(50), status.changed()).await;
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_restarts_and_snapshots() {
    let root = std::env::temp_dir().join(format!("voussoir-raft-disk-{}", std::process::id()));
    let folders: Vec<PathBuf> = (1..=3).map(|id| root.join(format!("node-{id}"))).collect();
    let peers = Peers::new();
    let mut nodes = Vec::new();
    for (id, folder) in (1..).zip(&folders) {
        nodes.push(start(id, folder, &peers, true).await);
    }
    let mut expected = String::new();
    for round in 0..3 {
        for _ in 0..60 {
            expected.push('.');
            let answer = leader(&nodes).await.raft.propose(append(".")).await.unwrap();
            assert_eq!(answer, expected);
        }
        // One after the other, and in the last round all at once.
        let all = if round == 2 { 0..3 } else { round..round + 1 };
        for at in all {
            let node = nodes.remove(at);
            stop(node).await;
            nodes.insert(at, start(at as u64 + 1, &folders[at], &peers, false).await);
        }
    }
    leader(&nodes).await;
    for node in &nodes {
        node.raft.read(soon()).await.unwrap();
        assert_eq!(*node.machine.value.lock(), expected);
        let status = node.raft.status().borrow().clone();
        assert!(status.snapshot >= 100 && status.first > 50, "snapshots were taken: {status:?}");
    }
    for node in nodes {
        stop(node).await;
    }
    std::fs::remove_dir_all(root).unwrap();
}

#[tokio::test]
async fn the_data_of_another_node_is_refused() {
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), options()).unwrap();
    let mine = Identity { cluster: CLUSTER, node: 1, group: 4 };
    JournalStore::create(&journal, mine).unwrap();
    JournalStore::open(&journal, mine).unwrap();
    let strangers = [Identity { node: 2, ..mine }, Identity { cluster: 78, ..mine }];
    for wanted in strangers {
        match JournalStore::open(&journal, wanted) {
            Err(OpenError::WrongNode { found, wanted: asked }) => {
                assert_eq!((found, asked), (mine, wanted));
            }
            other => panic!("{other:?}"),
        }
    }
    JournalStore::create(&journal, Identity { group: 5, ..mine }).unwrap();
}

/// A write whose completion nobody waits for: an entry, and a vote in the term `9 + index`.
fn entry_and_vote(index: u64) -> LogWrite {
    let entry = Entry { term: 1, index, kind: EntryKind::Command, data: Bytes::from("x") };
    LogWrite {
        entries: vec![entry],
        hard_state: Some(HardState { term: 9 + index, vote: Some(2) }),
        ..LogWrite::default()
    }
}

/// A group may be stopped while a write of it is under way, and started again in the process: what
/// it starts from is durable, and what is written next follows it.
#[tokio::test]
async fn a_store_is_restored_behind_the_writes_that_are_under_way() {
    let hangs = Arc::new(AtomicBool::new(false));
    let hang = Arc::clone(&hangs);
    let files = HookedFiles::new(Arc::new(MemoryFiles::new()), move |call| {
        while call.op == Op::Sync && hang.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    let journal = Journal::open_with(Arc::new(files), options()).unwrap();
    let identity = Identity { cluster: CLUSTER, node: 1, group: 4 };
    let store = JournalStore::create(&journal, identity).unwrap();
    let ignore = || Completion::new(|_| ());
    store.write(entry_and_vote(1), ignore());
    store.restore().await.unwrap();
    hangs.store(true, Ordering::Release);
    store.write(entry_and_vote(2), ignore());
    store.write(entry_and_vote(3), ignore());
    let mut restored = tokio::spawn({
        let store = store.clone();
        async move { store.restore().await.unwrap() }
    });
    let early = tokio::time::timeout(Duration::from_millis(100), &mut restored).await;
    assert!(early.is_err(), "a vote was given back that is not durable");
    hangs.store(false, Ordering::Release);
    let core = Core::new(Config::new(1, [1, 2, 3]), restored.await.unwrap(), 0).unwrap();
    assert_eq!((core.status().last, core.hard_state().term), (3, 12));
    let (done, written) = tokio::sync::oneshot::channel();
    store.write(entry_and_vote(4), Completion::new(move |result| drop(done.send(result))));
    written.await.unwrap().expect("it follows the third");
}
