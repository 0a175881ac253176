//! What an operator does with a sharded store: add a node, split a hot shard, see how it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use tokio::time::{Instant, sleep};

use super::http::NodeStatus;
use super::load::Hot;
use super::map::{Address, Change, MAX_MAP_BYTES, ShardInfo, ShardMap};
use super::plan::{self, Plan};
use super::router::Router;
use crate::client::{Answered, Client};

/// How long a change of the map is tried.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time limit of one request.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Pause before something is asked for again.
const PAUSE: Duration = Duration::from_millis(50);

/// Changes a sharded store and looks at it, through any of its nodes.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
    nodes: Vec<SocketAddr>,
    router: Router,
}

impl Admin {
    pub fn new(nodes: Vec<SocketAddr>) -> Self {
        let router = Router::new(nodes.clone());
        let client = Client::new(nodes.clone()).with_reply_limit(MAX_MAP_BYTES);
        Self { client, nodes, router }
    }

    /// The newest map that a node gives.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn map(&self) -> ShardMap {
        self.router.refresh().await;
        self.router.routes().map.clone()
    }

    /// A map of this version or a newer one.
    async fn map_since(&self, version: u64) -> ShardMap {
        loop {
            let map = self.map().await;
            if map.version >= version {
                return map;
            }
            sleep(PAUSE).await;
        }
    }

    /// The status of every node in the map that answers.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn statuses(&self) -> BTreeMap<u64, NodeStatus> {
        let mut statuses = BTreeMap::new();
        for (id, address) in &self.map().await.nodes {
            if let Some(status) = self.status_of(address.http).await {
                statuses.insert(*id, status);
            }
        }
        statuses
    }

    async fn status_of(&self, http: SocketAddr) -> Option<NodeStatus> {
        let until = Instant::now() + Duration::from_millis(500);
        let sent =
            self.client.send_to(http, &Method::GET, "/status", None, Bytes::new(), until).await;
        match sent {
            Ok(Answered::Reply(reply)) => serde_json::from_slice(&reply.body).ok(),
            _ => None,
        }
    }

    /// Changes the map, and returns its version. A change may be sent twice on the way: each says
    /// what it expects.
    ///
    /// # Errors
    /// The change was refused, or no node made it within 20 s.
    ///
    /// # Cancel safety
    /// After a dropped future the change may have been made.
    pub async fn change(&self, change: &Change) -> Result<u64, String> {
        let body = Bytes::from(serde_json::to_vec(change).map_err(|error| error.to_string())?);
        let end = Instant::now() + PATIENCE;
        let mut leader = None;
        for nth in 0.. {
            if Instant::now() >= end {
                break;
            }
            let node = leader.take().unwrap_or(self.nodes[nth % self.nodes.len()]);
            let until = Instant::now() + ATTEMPT;
            let body = body.clone();
            match self.client.send_to(node, &Method::POST, "/map", None, body, until).await {
                Ok(Answered::Reply(reply)) if reply.status.is_success() => {
                    return serde_json::from_slice(&reply.body).map_err(|error| error.to_string());
                }
                Ok(Answered::Reply(reply)) => {
                    return Err(String::from_utf8_lossy(&reply.body).into_owned());
                }
                Ok(Answered::Elsewhere(to)) if to != node => leader = Some(to),
                Ok(_) | Err(_) => sleep(PAUSE).await,
            }
        }
        Err(format!("the map was not changed within {} s", PATIENCE.as_secs()))
    }

    /// Keys of each shard, as its leader counts them.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn keys(&self) -> BTreeMap<u64, u64> {
        let statuses = self.statuses().await;
        let led = statuses.values().flat_map(|node| &node.shards).filter(|shard| shard.leads);
        led.map(|shard| (shard.id, shard.keys as u64)).collect()
    }

    /// Adds a node, which runs with `--join`, and names it in the map for its part of the shards.
    /// Returns what moves; [`settled`](Self::settled) waits for it.
    ///
    /// # Errors
    /// A change was refused or not made.
    ///
    /// # Cancel safety
    /// After a dropped future a part of the moves may be named. Call it again.
    pub async fn add(&self, id: u64, address: Address) -> Result<Plan, String> {
        let plan = self.plan(id, address).await?;
        for change in &plan.moves {
            self.change(change).await?;
        }
        Ok(plan)
    }

    /// Adds a node to the map, and plans what moves to it.
    ///
    /// # Errors
    /// No node of that number answers at its HTTP address, its peers do not reach it, it was not
    /// added, or the shards are still busy with an earlier change.
    ///
    /// # Cancel safety
    /// After a dropped future the node may be in the map. Call it again.
    pub async fn plan(&self, id: u64, address: Address) -> Result<Plan, String> {
        // A node that was started a moment ago may not listen yet.
        let until = Instant::now() + PATIENCE;
        loop {
            match self.status_of(address.http).await {
                Some(status) if status.id == id => break,
                Some(status) => return Err(format!("at {} is node {}", address.http, status.id)),
                None if Instant::now() >= until => {
                    return Err(format!("no node answers at {}", address.http));
                }
                None => sleep(Duration::from_millis(50)).await,
            }
        }
        let version = self.change(&Change::AddNode { id, address }).await?;
        self.has_map(id, address, version).await?;
        // Every shard has a leader then, which counts its keys.
        self.settled(PATIENCE).await?;
        let (map, keys) = (self.map_since(version).await, self.keys().await);
        Ok(plan::fill_up(&map, &keys, id))
    }

    /// Waits until a new node has learnt the map, which it does at its address for peers: before
    /// that no shard moves to it, and its address can be corrected.
    async fn has_map(&self, id: u64, address: Address, version: u64) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let status = self.status_of(address.http).await;
            if status.is_some_and(|status| status.version >= version) {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
        let (seconds, peers) = (PATIENCE.as_secs(), address.peers);
        Err(format!("node {id} has no map after {seconds} s: its peers do not reach it at {peers}"))
    }

    /// The hottest shard of all nodes, if one should be split.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn hottest(&self) -> Option<Hot> {
        let hot = self.statuses().await.into_values().filter_map(|status| status.hot);
        hot.max_by(|one, other| one.share.total_cmp(&other.share))
    }

    /// Splits a shard at a place: the right half goes to other nodes. Returns the new shard;
    /// [`settled`](Self::settled) waits for it.
    ///
    /// # Errors
    /// The change was refused or not made.
    ///
    /// # Cancel safety
    /// After a dropped future the split may be under way.
    pub async fn split(&self, shard: u64, at: &str) -> Result<u64, String> {
        let requests = self.statuses().await.into_iter().map(|(id, status)| {
            (id, status.shards.iter().map(|shard| shard.reads + shard.writes).sum())
        });
        let requests = requests.collect();
        let map = self.map().await;
        let info = map.shards.get(&shard).ok_or("the map has no such shard")?;
        let (epoch, replicas) = (info.epoch, info.nodes.len());
        let nodes = plan::apart(&map, &requests, shard);
        if nodes.len() < replicas {
            return Err(format!("{} nodes answer, the new shard needs {replicas}", nodes.len()));
        }
        let change = Change::Split { shard, epoch, at: at.to_owned(), nodes };
        let made = self.change(&change).await;
        let map = match &made {
            Ok(version) => self.map_since(*version).await,
            Err(_) => self.map().await,
        };
        // It may have been made before a request whose answer was lost was sent again.
        let is_new = |info: &&ShardInfo| info.start == at && info.origin == Some(shard);
        let new = map.shards.iter().find(|(_, info)| is_new(info)).map(|(id, _)| *id);
        new.ok_or_else(|| made.err().unwrap_or_else(|| "the split is not in the map".to_owned()))
    }

    /// Takes the split back that made a shard, if nothing was sealed for it yet; otherwise the
    /// split goes on. [`settled`](Self::settled) waits for either.
    ///
    /// # Errors
    /// The change was refused, because the shard is open, or not made.
    ///
    /// # Cancel safety
    /// After a dropped future the split may be taken back.
    pub async fn abort(&self, shard: u64) -> Result<(), String> {
        self.change(&Change::Abort { shard }).await.map(drop)
    }

    /// Waits until every shard is open and held by those that the map names, and nothing moves.
    ///
    /// # Errors
    /// It is not so in time: what is missing.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn settled(&self, within: Duration) -> Result<(), String> {
        let end = Instant::now() + within;
        loop {
            let missing = self.unsettled().await;
            let Some(missing) = missing else { return Ok(()) };
            if Instant::now() >= end {
                return Err(format!("after {} s: {missing}", within.as_secs()));
            }
            sleep(PAUSE).await;
        }
    }

    async fn unsettled(&self) -> Option<String> {
        let (map, statuses) = (self.map().await, self.statuses().await);
        if map.shards.is_empty() {
            return Some("there is no shard map".to_owned());
        }
        for (id, info) in &map.shards {
            if !info.is_open || info.split.is_some() {
                return Some(format!("shard {id} is being split or filled"));
            }
            let replicas = |node: &NodeStatus| node.shards.iter().find(|it| it.id == *id).cloned();
            let Some(leader) = statuses.values().filter_map(replicas).find(|it| it.leads) else {
                return Some(format!("shard {id} has no leader"));
            };
            let mut wanted = info.nodes.clone();
            wanted.sort_unstable();
            let is_exact = leader.voters == wanted && leader.learners.is_empty();
            if !leader.is_open || leader.is_parting || !is_exact {
                return Some(format!("shard {id} is {leader:?}, to be held by {wanted:?}"));
            }
        }
        let stale = |(node, status): (&u64, &NodeStatus)| {
            let extra = status.shards.iter().find(|shard| {
                map.shards.get(&shard.id).is_none_or(|info| !info.nodes.contains(node))
            });
            extra.map(|shard| format!("node {node} still holds shard {}", shard.id))
        };
        statuses.iter().find_map(stale)
    }
}
