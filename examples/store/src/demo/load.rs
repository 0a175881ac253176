//! The load: clients that read and write a few contended keys and many keys of their own, and note
//! down what they did and what they were told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use voussoir_sim::{History, KvOp, KvRet};

use super::client::{Client, Lost, Reply};

/// All that the clients asked and were told.
pub type StoreHistory = History<KvOp<String, String>, KvRet<String>>;

/// Clients that work at the same time.
pub const CLIENTS: u64 = 32;
/// Keys that all clients share.
const SHARED_KEYS: u64 = 64;

/// Counters of the whole run, and the latencies since they were last taken.
#[derive(Debug)]
pub struct Stats {
    latencies_us: Mutex<Histogram<u64>>,
    pub done: AtomicU64,
    pub unknown: AtomicU64,
    pub refused: AtomicU64,
    outage: Mutex<Option<Outage>>,
}

/// From a kill to the first acknowledged write that was begun after it.
#[derive(Debug, Clone, Copy)]
struct Outage {
    since: Instant,
    over: Option<Duration>,
}

impl Stats {
    fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, 60_000_000, 3);
        Self {
            latencies_us: Mutex::new(latencies.expect("the bounds are constants in range")),
            done: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            outage: Mutex::new(None),
        }
    }

    /// The latencies since the last call.
    pub fn take_latencies(&self) -> Histogram<u64> {
        let mut held = self.latencies_us.lock();
        let taken = held.clone();
        held.reset();
        taken
    }

    /// The leader is being killed now.
    pub fn outage_begins(&self) {
        *self.outage.lock() = Some(Outage { since: Instant::now(), over: None });
    }

    /// How long no write was acknowledged after the kill, once one was.
    pub fn failover(&self) -> Option<Duration> {
        self.outage.lock().and_then(|outage| outage.over)
    }

    fn acknowledged(&self, began: Instant, is_write: bool) {
        self.done.fetch_add(1, Ordering::Relaxed);
        let micros = began.elapsed().as_micros() as u64;
        self.latencies_us.lock().saturating_record(micros.max(1));
        if let Some(outage) = self.outage.lock().as_mut().filter(|o| o.over.is_none() && is_write)
            && began >= outage.since
        {
            outage.over = Some(outage.since.elapsed());
        }
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    pub stats: Arc<Stats>,
    history: Arc<Mutex<StoreHistory>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts the clients.
    pub fn start(client: &Client) -> Self {
        let stats = Arc::new(Stats::new());
        let stop = Arc::new(AtomicBool::new(false));
        let history = Arc::new(Mutex::new(StoreHistory::new()));
        let epoch = Instant::now();
        let mut clients = JoinSet::new();
        for id in 0..CLIENTS {
            let mut worker = Worker {
                id,
                client: client.clone(),
                stats: stats.clone(),
                history: history.clone(),
                epoch,
                random: id.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
                written: 0,
            };
            let stop = stop.clone();
            clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    worker.one_operation().await;
                }
            });
        }
        Self { stats, history, stop, clients }
    }

    /// Stops the clients, each after the operation that it is in, and returns what they did.
    ///
    /// # Cancel safety
    /// Dropped, the clients are aborted and what they did is lost.
    pub async fn stop(self) -> StoreHistory {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
        std::mem::take(&mut self.history.lock())
    }
}

struct Worker {
    id: u64,
    client: Client,
    stats: Arc<Stats>,
    history: Arc<Mutex<StoreHistory>>,
    epoch: Instant,
    random: u64,
    written: u64,
}

impl Worker {
    async fn one_operation(&mut self) {
        let shared = format!("shared/{}", self.draw() % SHARED_KEYS);
        match self.draw() % 10 {
            0..=2 => {
                let key = format!("own/{}/{}", self.id, self.written);
                self.put(key).await;
            }
            3..=5 => self.put(shared).await,
            // Read, then write only if nobody else did in between.
            6 => {
                if let Some((value, version)) = self.get(&shared).await {
                    self.compare_and_set(shared, value, version).await;
                }
            }
            7 => self.delete(shared).await,
            _ => drop(self.get(&shared).await),
        }
    }

    /// xorshift64*: each client repeats its own sequence from run to run.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
    }

    /// No value is ever written twice, so that a value says which write made it.
    fn next_value(&mut self) -> String {
        self.written += 1;
        format!("{}-{}", self.id, self.written)
    }

    async fn put(&mut self, key: String) {
        let value = self.next_value();
        let op = KvOp::Put { key, value: value.clone() };
        let seen = |reply: &Reply| match reply.status {
            StatusCode::NO_CONTENT => Some(KvRet::Done),
            _ => None,
        };
        self.perform(Method::PUT, None, value.into(), op, seen).await;
    }

    async fn compare_and_set(&mut self, key: String, expected: String, version: u64) {
        let value = self.next_value();
        let op = KvOp::Cas { key, expect: Some(expected), value: value.clone() };
        let seen = |reply: &Reply| match reply.status {
            StatusCode::NO_CONTENT => Some(KvRet::Applied(true)),
            StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED => Some(KvRet::Applied(false)),
            _ => None,
        };
        self.perform(Method::PUT, Some(version), value.into(), op, seen).await;
    }

    async fn delete(&mut self, key: String) {
        let seen = |reply: &Reply| match reply.status {
            StatusCode::NO_CONTENT => Some(KvRet::Applied(true)),
            StatusCode::NOT_FOUND => Some(KvRet::Applied(false)),
            _ => None,
        };
        self.perform(Method::DELETE, None, Bytes::new(), KvOp::Delete { key }, seen).await;
    }

    /// The value and its version, where there is one.
    async fn get(&mut self, key: &str) -> Option<(String, u64)> {
        let text = |reply: &Reply| String::from_utf8_lossy(&reply.body).into_owned();
        let seen = |reply: &Reply| match reply.status {
            StatusCode::OK => Some(KvRet::Value(Some(text(reply)))),
            StatusCode::NOT_FOUND => Some(KvRet::Value(None)),
            _ => None,
        };
        let op = KvOp::Get { key: key.to_owned() };
        let reply = self.perform(Method::GET, None, Bytes::new(), op, seen).await?;
        Some((text(&reply), reply.version?))
    }

    async fn perform(
        &mut self,
        method: Method,
        if_match: Option<u64>,
        body: Bytes,
        op: KvOp<String, String>,
        seen: impl Fn(&Reply) -> Option<KvRet<String>>,
    ) -> Option<Reply> {
        let path = format!("/kv/{}", key_of(&op));
        let is_write = method != Method::GET;
        let began = Instant::now();
        let now = || self.epoch.elapsed().as_nanos() as u64;
        let call = self.history.lock().invoke(self.id, op, now());
        let sent = self.client.send(method, &path, if_match, body).await;
        let mut history = self.history.lock();
        match sent {
            Ok(reply) => {
                if let Some(ret) = seen(&reply) {
                    history.ok(call, ret, now());
                    self.stats.acknowledged(began, is_write);
                    return Some(reply);
                }
                history.unknown(call, now());
                self.stats.unknown.fetch_add(1, Ordering::Relaxed);
            }
            Err(Lost::Unknown) => {
                history.unknown(call, now());
                self.stats.unknown.fetch_add(1, Ordering::Relaxed);
            }
            Err(Lost::NotApplied) => {
                history.fail(call, now());
                self.stats.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        None
    }
}

/// The key that an operation is about.
pub fn key_of(op: &KvOp<String, String>) -> &str {
    match op {
        KvOp::Get { key }
        | KvOp::Put { key, .. }
        | KvOp::Cas { key, .. }
        | KvOp::Delete { key } => key,
        _ => "",
    }
}
