//! The load on a store in shards: clients that number their requests, and record each operation and
//! its answer in a history.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use voussoir_sim::{History, KvOp, KvRet};

use crate::client::{Lost, Reply};
use crate::shards::clients::RequestId;
use crate::shards::router::Router;

/// The operations of all clients and their answers.
pub type ShardHistory = History<KvOp<String, String>, KvRet<String>>;

/// Keys at a time that are placed by their hash.
const HASHED: u64 = 256;
/// Keys at a time that are placed in order.
const ORDERED: u64 = 128;
/// Keys are replaced by new ones after this time, so that the history of each stays short enough to
/// be checked.
const ERA: Duration = Duration::from_secs(4);

/// What the clients count together.
#[derive(Debug, Default)]
pub struct Stats {
    pub done: AtomicU64,
    pub unknown: AtomicU64,
    pub refused: AtomicU64,
    /// The longest request, in ms, since it was last taken.
    slowest_ms: AtomicU64,
    /// Percentage of the requests that go to ordered keys.
    pub heat: AtomicU64,
}

impl Stats {
    /// The longest request since the last call, in ms.
    pub fn take_slowest_ms(&self) -> u64 {
        self.slowest_ms.swap(0, Ordering::Relaxed)
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    pub stats: Arc<Stats>,
    history: Arc<Mutex<ShardHistory>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts `clients` clients, each with its own number, from 1.
    pub fn start(router: &Router, clients: u64) -> Self {
        let (stats, stop) = (Arc::new(Stats::default()), Arc::new(AtomicBool::new(false)));
        let history = Arc::new(Mutex::new(ShardHistory::new()));
        let (began, mut tasks) = (Instant::now(), JoinSet::new());
        for id in 1..=clients {
            let mut worker = Worker {
                id,
                router: router.clone(),
                stats: stats.clone(),
                history: history.clone(),
                began,
                random: fastrand::Rng::with_seed(id),
                number: 0,
            };
            let stop = stop.clone();
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    worker.one_operation().await;
                }
            });
        }
        Self { stats, history, stop, clients: tasks }
    }

    /// Stops each client after its current operation, and returns the history.
    ///
    /// # Cancel safety
    /// Dropping the future aborts the clients and loses the history.
    pub async fn stop(self) -> ShardHistory {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
        std::mem::take(&mut self.history.lock())
    }
}

struct Worker {
    id: u64,
    router: Router,
    stats: Arc<Stats>,
    history: Arc<Mutex<ShardHistory>>,
    /// The clock of the history, the same for all clients.
    began: Instant,
    random: fastrand::Rng,
    /// Number of the last write.
    number: u64,
}

impl Worker {
    async fn one_operation(&mut self) {
        let era = self.began.elapsed().as_millis() / ERA.as_millis();
        let key = if self.random.u64(..100) < self.stats.heat.load(Ordering::Relaxed) {
            format!("ordered/{:03}/{era}", self.random.u64(..ORDERED))
        } else {
            format!("hashed/{}/{era}", self.random.u64(..HASHED))
        };
        match self.random.u64(..20) {
            0..=8 => drop(self.get(&key).await),
            9..=16 => self.put(key, None).await,
            17 | 18 => {
                if let Some(seen) = self.get(&key).await {
                    self.put(key, Some(seen)).await;
                }
            }
            _ => self.delete(key).await,
        }
    }

    fn next_request(&mut self) -> RequestId {
        self.number += 1;
        RequestId { client: self.id, number: self.number }
    }

    /// Reads a key. Returns its value and version, if it exists.
    async fn get(&mut self, key: &str) -> Option<(String, u64)> {
        let text = |reply: &Reply| String::from_utf8_lossy(&reply.body).into_owned();
        let seen = |reply: &Reply| match reply.status {
            StatusCode::OK => Some(KvRet::Value(Some(text(reply)))),
            StatusCode::NOT_FOUND => Some(KvRet::Value(None)),
            _ => None,
        };
        let op = KvOp::Get { key: key.to_owned() };
        let reply = self.perform(Method::GET, key, None, None, Bytes::new(), op, seen).await?;
        Some((text(&reply), reply.version?))
    }

    /// Writes a value that nobody else writes; with `seen`, if the key still has that version.
    async fn put(&mut self, key: String, seen: Option<(String, u64)>) {
        let id = self.next_request();
        let value = format!("{}-{}", id.client, id.number);
        let version = seen.as_ref().map(|(_, version)| *version);
        let op = match seen {
            None => KvOp::Put { key: key.clone(), value: value.clone() },
            Some((expect, _)) => {
                KvOp::Cas { key: key.clone(), expect: Some(expect), value: value.clone() }
            }
        };
        let written = |reply: &Reply| match (reply.status, version) {
            (StatusCode::NO_CONTENT, None) => Some(KvRet::Done),
            (StatusCode::NO_CONTENT, Some(_)) => Some(KvRet::Applied(true)),
            (StatusCode::PRECONDITION_FAILED, Some(_)) => Some(KvRet::Applied(false)),
            _ => None,
        };
        self.perform(Method::PUT, &key, version, Some(id), value.into(), op, written).await;
    }

    async fn delete(&mut self, key: String) {
        let id = self.next_request();
        let deleted = |reply: &Reply| match reply.status {
            StatusCode::NO_CONTENT => Some(KvRet::Applied(true)),
            StatusCode::NOT_FOUND => Some(KvRet::Applied(false)),
            _ => None,
        };
        let op = KvOp::Delete { key: key.clone() };
        self.perform(Method::DELETE, &key, None, Some(id), Bytes::new(), op, deleted).await;
    }

    #[allow(clippy::too_many_arguments, reason = "a request, and how its answer is recorded")]
    async fn perform(
        &mut self,
        method: Method,
        key: &str,
        if_match: Option<u64>,
        id: Option<RequestId>,
        body: Bytes,
        op: KvOp<String, String>,
        seen: impl Fn(&Reply) -> Option<KvRet<String>>,
    ) -> Option<Reply> {
        let now = || self.began.elapsed().as_nanos() as u64;
        let began = Instant::now();
        let call = self.history.lock().invoke(self.id, op, now());
        let sent = self.router.send(method, key, if_match, id, body).await;
        let took_ms = began.elapsed().as_millis() as u64;
        self.stats.slowest_ms.fetch_max(took_ms, Ordering::Relaxed);
        let mut history = self.history.lock();
        let ret = sent.as_ref().ok().and_then(seen);
        match (sent, ret) {
            (Ok(reply), Some(ret)) => {
                history.ok(call, ret, now());
                self.stats.done.fetch_add(1, Ordering::Relaxed);
                return Some(reply);
            }
            (Err(Lost::NotApplied), _) => {
                history.fail(call, now());
                self.stats.refused.fetch_add(1, Ordering::Relaxed);
            }
            (Ok(_) | Err(Lost::Unknown), _) => {
                history.unknown(call, now());
                self.stats.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
        None
    }
}
