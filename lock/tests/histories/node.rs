//! A node: a journal, TCP, raft, the lock service.

use std::sync::Arc;

use voussoir_journal::Journal;
use voussoir_lock::Replica;
use voussoir_lock::net::LockServer;
use voussoir_lock::raft::{LockMachine, RaftLocks};
use voussoir_net::Tcp;
use voussoir_raft::journal::{Identity, JournalStore, OpenError};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Config, Raft};

use super::processes::{CLUSTER, Environment};
use super::{LOCK_SERVICE, NODES};

const RAFT_SERVICE: u16 = 1;

pub(crate) async fn run() {
    let environment = Environment::read();
    let id = environment.id;
    let mut config = voussoir_journal::Config::default();
    config.segment_bytes = 4 << 20;
    let folder = environment.folder.join(format!("node-{id}"));
    let journal = Journal::open(folder, config).expect("the journal opens");
    let identity = || Identity { cluster: CLUSTER, node: id, group: 0 };
    let store = match JournalStore::create(&journal, identity()) {
        Err(OpenError::Exists { .. }) => JournalStore::open(&journal, identity()),
        created => created,
    };
    let store = Arc::new(store.expect("a log"));
    let at = NODES.iter().position(|node| *node == id).expect("a node");
    let net = voussoir_net::Config::new(CLUSTER);
    let tcp = Tcp::bind(id, environment.addresses[at], Arc::new(environment.peers()), net);
    let tcp = tcp.await.expect("a free port");
    let transport = NetTransport::new(Arc::new(tcp.clone()), RAFT_SERVICE).expect("not served");
    let mut config = Config::new(id, NODES);
    // Snapshots are taken, and sent to nodes that were away.
    (config.snapshot_after_entries, config.keep_entries) = (2_000, 200);
    let replica = Replica::new();
    let machine = Box::new(LockMachine::new(replica.clone()));
    let raft = Raft::start(config, store, machine, Arc::new(transport)).await.expect("it starts");
    let locks = RaftLocks::start(raft.clone(), replica);
    LockServer::serve(&tcp, LOCK_SERVICE, locks).expect("not served");
    let mut status = raft.status();
    // Ends: the node stops by itself, which is a failure, or it is killed.
    while status.changed().await.is_ok() && raft.stopped().is_none() {}
    panic!("node {id} has stopped: {:?}", raft.stopped());
}
