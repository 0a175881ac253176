//! The groups of this node: which run here, and what they share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, watch};
use voussoir_journal::Journal;
use voussoir_raft::journal::{Identity, JournalStore, OpenError};
use voussoir_raft::{Config, Node, Raft};

use super::load::Load;
use super::machine::ShardMachine;
use super::map::{MAX_MAP_BYTES, Routes, ShardInfo};
use super::shard::Shard;
use crate::args::Serve;
use crate::client::Client;
use crate::members::AddressBook;
use crate::node::CLUSTER;
use crate::room::Room;

/// The group that replicates the map.
pub const MAP_GROUP: u64 = 0;
/// Shards at once whose members this node changes, as their leader.
const MOVES_AT_ONCE: usize = 2;

/// Why a group did not start.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// A replica of a shard.
pub struct Replica {
    pub raft: Raft,
    pub shard: Arc<RwLock<Shard>>,
    pub reads: AtomicU64,
    pub writes: AtomicU64,
}

impl Replica {
    pub fn leads(&self) -> bool {
        let status = self.raft.status();
        let status = status.borrow();
        status.leader == Some(status.id)
    }

    pub fn count(&self, is_write: bool) {
        let counter = if is_write { &self.writes } else { &self.reads };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the tasks and handlers of a node share.
pub struct Host {
    pub serve: Serve,
    pub node: Node,
    pub journal: Journal,
    pub book: Arc<AddressBook>,
    /// Group 0.
    pub map: Raft,
    pub routes: watch::Receiver<Arc<Routes>>,
    /// Requests to other nodes.
    pub client: Client,
    pub load: Mutex<Load>,
    /// For the pairs of all shards here: they are in one journal. What this node leads reserves its
    /// room; the writes of other leaders are counted when they are applied here.
    pub room: Arc<Room>,
    /// Turns of the shards that change their members.
    pub moves: Semaphore,
    /// The shards of which a replica could not be started or deleted, and why.
    pub failures: Mutex<BTreeMap<u64, String>>,
    replicas: RwLock<BTreeMap<u64, Arc<Replica>>>,
    /// Shards of which the journal holds nothing: looked up once.
    absent: Mutex<BTreeSet<u64>>,
}

impl Host {
    pub fn new(
        serve: Serve,
        node: Node,
        journal: Journal,
        book: Arc<AddressBook>,
        map: Raft,
        routes: watch::Receiver<Arc<Routes>>,
    ) -> Self {
        let room = Room::new(serve.limits.max_data());
        Self {
            serve,
            node,
            journal,
            book,
            map,
            routes,
            client: Client::new(Vec::new()).with_reply_limit(MAX_MAP_BYTES),
            load: Mutex::default(),
            room,
            moves: Semaphore::new(MOVES_AT_ONCE),
            failures: Mutex::default(),
            replicas: RwLock::default(),
            absent: Mutex::default(),
        }
    }

    pub fn id(&self) -> u64 {
        self.serve.id
    }

    /// The map as this node knows it.
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.borrow().clone()
    }

    pub fn replica(&self, shard: u64) -> Option<Arc<Replica>> {
        self.replicas.read().get(&shard).cloned()
    }

    pub fn replicas(&self) -> Vec<(u64, Arc<Replica>)> {
        self.replicas.read().iter().map(|(id, replica)| (*id, replica.clone())).collect()
    }

    /// Bytes of the pairs of all shards here.
    pub fn stored_bytes(&self) -> u64 {
        self.replicas.read().values().map(|replica| replica.shard.read().stored_bytes()).sum()
    }

    /// Whether a node that this one knows has gone silent.
    pub fn is_dead(&self, node: u64) -> bool {
        self.node.peers().iter().any(|peer| peer.id == node && !peer.is_alive)
    }

    /// The nodes, those that have gone silent last.
    pub fn living_first(&self, nodes: impl Iterator<Item = u64>) -> Vec<u64> {
        let (mut living, dead): (Vec<u64>, Vec<u64>) = nodes.partition(|node| !self.is_dead(*node));
        living.extend(dead);
        living
    }

    /// Shards that the map has forgotten, of which the journal holds a replica.
    pub fn strays(&self) -> impl Iterator<Item = u64> {
        let routes = self.routes();
        JournalStore::groups(&self.journal).into_iter().filter(move |id| {
            *id != MAP_GROUP && *id <= routes.map.last_shard && !routes.map.shards.contains_key(id)
        })
    }

    fn identity(&self, shard: u64) -> Identity {
        Identity { cluster: CLUSTER, node: self.id(), group: shard }
    }

    /// Starts the replica of a shard from what the journal holds. Returns false where it holds
    /// nothing.
    pub async fn open(&self, shard: u64, info: &ShardInfo) -> Result<bool, Failed> {
        if self.absent.lock().contains(&shard) {
            return Ok(false);
        }
        match JournalStore::open(&self.journal, self.identity(shard)) {
            Ok(store) => self.start(shard, info, store).await.map(|()| true),
            Err(OpenError::Absent { .. }) => {
                self.absent.lock().insert(shard);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Creates the replica of a shard and starts it. The caller has read the map from a majority
    /// since this node last deleted a replica: an old map could ask for one that was deleted, and
    /// that one may have voted.
    pub async fn create(&self, shard: u64, info: &ShardInfo) -> Result<(), Failed> {
        let store = JournalStore::create(&self.journal, self.identity(shard))?;
        self.absent.lock().remove(&shard);
        self.start(shard, info, store).await
    }

    async fn start(&self, id: u64, info: &ShardInfo, store: JournalStore) -> Result<(), Failed> {
        let shard = Arc::new(RwLock::new(Shard::default()));
        let machine = Box::new(ShardMachine::new(shard.clone()));
        let config = self.config(id, info);
        let raft = self.node.start_group(config, Arc::new(store), machine).await?;
        let (reads, writes) = (AtomicU64::new(0), AtomicU64::new(0));
        let replica = Replica { raft, shard, reads, writes };
        self.replicas.write().insert(id, Arc::new(replica));
        Ok(())
    }

    /// A node that is none of the founders learns from the group's log who the voters are.
    fn config(&self, shard: u64, info: &ShardInfo) -> Config {
        let mut config = self.serve.raft();
        config.group = shard;
        let is_founder = info.founders.contains(&self.id());
        config.voters = if is_founder { info.founders.clone() } else { Vec::new() };
        config
    }

    /// Stops the replica of a shard that has removed this node, and deletes it.
    pub async fn delete(&self, shard: u64) -> Result<(), Failed> {
        self.replicas.write().remove(&shard);
        self.node.stop_group(shard).await;
        JournalStore::delete(&self.journal, shard).await?;
        self.absent.lock().insert(shard);
        Ok(())
    }
}
