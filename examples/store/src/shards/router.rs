//! A client that caches the shard map, sends each request to the shard's leader, and follows when a
//! key has moved.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, IF_MATCH};
use hyper::{Method, StatusCode};
use parking_lot::RwLock;
use tokio::time::{Instant, sleep};

use super::clients::RequestId;
use super::http::{CLIENT, EPOCH, Moved, REQUEST, SHARD};
use super::map::{MAX_MAP_BYTES, Routes, ShardMap};
use super::place::place;
use crate::client::{Answered, Client, Lost, Reply};

/// Time limit of a request, retries included.
const DEADLINE: Duration = Duration::from_secs(10);
/// Time limit of one attempt.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause before the next attempt when no node could serve the last one.
const PAUSE: Duration = Duration::from_millis(5);

/// A client of a sharded store. Clones share connections and the cached map.
#[derive(Debug, Clone)]
pub struct Router {
    client: Client,
    seeds: Arc<Vec<SocketAddr>>,
    cached: Arc<RwLock<Arc<Routes>>>,
    /// The leader of each shard, where an answer named another node than the map.
    leaders: Arc<RwLock<BTreeMap<u64, SocketAddr>>>,
    followed: Arc<AtomicU64>,
}

/// Where a request goes: to a shard, under an epoch, at a node.
#[derive(Debug, Clone, Copy)]
struct Target {
    shard: u64,
    epoch: u64,
    node: SocketAddr,
}

impl Router {
    /// A client that asks these nodes for the map.
    pub fn new(seeds: Vec<SocketAddr>) -> Self {
        Self {
            client: Client::new(seeds.clone()).with_reply_limit(MAX_MAP_BYTES),
            seeds: Arc::new(seeds),
            cached: Arc::new(RwLock::new(Arc::new(Routes::new(ShardMap::default())))),
            leaders: Arc::default(),
            followed: Arc::default(),
        }
    }

    /// How often an answer said that a key has moved.
    pub fn followed(&self) -> u64 {
        self.followed.load(Ordering::Relaxed)
    }

    /// The map as it is cached.
    pub fn routes(&self) -> Arc<Routes> {
        self.cached.read().clone()
    }

    /// Asks the nodes for a map that is newer than the cached one. Returns whether one had it.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn refresh(&self) -> bool {
        let known = self.routes();
        let of_map = known.map.nodes.values().map(|address| address.http);
        let mut asked = Vec::new();
        for node in of_map.chain(self.seeds.iter().copied()) {
            if asked.contains(&node) {
                continue;
            }
            asked.push(node);
            let until = Instant::now() + ATTEMPT;
            let sent =
                self.client.send_to(node, &Method::GET, "/shards", None, Bytes::new(), until);
            let Ok(Answered::Reply(reply)) = sent.await else { continue };
            let Ok(map) = serde_json::from_slice::<ShardMap>(&reply.body) else { continue };
            let mut cached = self.cached.write();
            if map.version > cached.map.version {
                *cached = Arc::new(Routes::new(map));
                drop(cached);
                self.leaders.write().clear();
                return true;
            }
        }
        false
    }

    /// Sends a request until it is answered, for at most 10 s. A write without a number whose
    /// outcome is unknown is not sent again.
    ///
    /// # Errors
    /// [`Lost`] says whether the request may have been applied.
    ///
    /// # Cancel safety
    /// After a dropped future the outcome of the request is unknown.
    pub async fn send(
        &self,
        method: Method,
        key: &str,
        if_match: Option<u64>,
        id: Option<RequestId>,
        body: Bytes,
    ) -> Result<Reply, Lost> {
        let deadline = Instant::now() + DEADLINE;
        let (place, path) = (place(key), format!("/kv/{key}"));
        let is_repeatable = method == Method::GET || id.is_some();
        let (mut lost, mut tried) = (Lost::NotApplied, 0);
        let mut hint = None;
        while Instant::now() < deadline {
            let Some(target) = hint.take().or_else(|| self.target(&place, tried)) else {
                self.refresh().await;
                sleep(PAUSE).await;
                continue;
            };
            let headers = headers(target, if_match, id);
            let until = deadline.min(Instant::now() + ATTEMPT);
            let sent = self
                .client
                .send_with(target.node, &method, &path, &headers, body.clone(), until)
                .await;
            match sent {
                Ok(Answered::Reply(reply)) if reply.status == StatusCode::MISDIRECTED_REQUEST => {
                    hint = self.follow(target, &reply).await;
                    if hint.is_some() {
                        continue;
                    }
                }
                Ok(Answered::Reply(reply)) => return Ok(reply),
                Err(Lost::Unknown) if !is_repeatable => return Err(Lost::Unknown),
                Err(Lost::Unknown) => lost = Lost::Unknown,
                Ok(Answered::Elsewhere(_) | Answered::Away(_) | Answered::Rejected)
                | Err(Lost::NotApplied) => {}
            }
            // The next attempt goes to another node of the shard, by the newest map.
            self.leaders.write().remove(&target.shard);
            tried += 1;
            if tried % 4 == 0 {
                self.refresh().await;
            }
            sleep(PAUSE).await;
        }
        Err(lost)
    }

    /// The owner of a place by the cached map; after failed attempts, another node of the shard.
    fn target(&self, place: &str, tried: usize) -> Option<Target> {
        let routes = self.routes();
        let (shard, info) = routes.find(place)?;
        let node = info.nodes.get(tried % info.nodes.len().max(1))?;
        let by_map = routes.map.nodes.get(node)?.http;
        let known = self.leaders.read().get(&shard).copied().filter(|_| tried == 0);
        Some(Target { shard, epoch: info.epoch, node: known.unwrap_or(by_map) })
    }

    /// Takes the word of an answer that a key is elsewhere. Returns where to send the request at
    /// once, if that is another place than before.
    async fn follow(&self, from: Target, reply: &Reply) -> Option<Target> {
        self.followed.fetch_add(1, Ordering::Relaxed);
        let moved: Moved = serde_json::from_slice(&reply.body).ok()?;
        if moved.version > self.routes().map.version {
            self.refresh().await;
        }
        let to = Target { shard: moved.shard, epoch: moved.epoch, node: moved.http? };
        if (to.shard, to.epoch) == (from.shard, from.epoch) {
            self.leaders.write().insert(to.shard, to.node);
        }
        let is_other = (to.shard, to.epoch, to.node) != (from.shard, from.epoch, from.node);
        is_other.then_some(to)
    }
}

fn headers(target: Target, if_match: Option<u64>, id: Option<RequestId>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut number = |name: HeaderName, number: u64| {
        headers.insert(name, HeaderValue::from(number));
    };
    number(SHARD, target.shard);
    number(EPOCH, target.epoch);
    if let Some(RequestId { client, number: nth }) = id {
        number(CLIENT, client);
        number(REQUEST, nth);
    }
    if let Some(version) = if_match
        && let Ok(version) = HeaderValue::try_from(format!("\"{version}\""))
    {
        headers.insert(IF_MATCH, version);
    }
    headers
}
