//! The load: clients that read and write a few contended keys and many keys of their own, and
//! record each operation and its answer in a history.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use voussoir_sim::History;

use super::model::{StoreOp, StoreRet};
use crate::client::{Client, Lost, Reply};

/// The operations of all clients and their answers.
pub type StoreHistory = History<StoreOp, StoreRet>;

/// Number of keys that all clients share at a time.
const SHARED_KEYS: u64 = 64;
/// Number of shared keys with the same prefix, which are listed together.
const GROUP_KEYS: u64 = 4;
/// Length of a large value, in bytes.
const LARGE: usize = 64 * 1024;
/// The byte that pads a large value.
const PADDING: u8 = b'.';

/// The shape of the load.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Number of concurrent clients.
    pub clients: u64,
    /// Pause of a client between two operations.
    pub pause: Duration,
    /// Percentage of the writes to shared keys that are 64 KiB long.
    pub large_percent: u64,
    /// The shared keys are replaced by new ones after this time, so that the history of each stays
    /// short enough to be checked.
    pub era: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        let era = Duration::from_secs(3600);
        Self { clients: 32, pause: Duration::ZERO, large_percent: 0, era }
    }
}

/// Counters of the whole run, and the latencies since they were last taken.
#[derive(Debug)]
pub struct Stats {
    latencies_us: Mutex<Histogram<u64>>,
    pub done: AtomicU64,
    pub unknown: AtomicU64,
    pub refused: AtomicU64,
    outage: Mutex<Option<Outage>>,
}

/// An outage: from a kill to the first acknowledged write that began after it.
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

    /// Starts the measurement of an outage.
    pub fn outage_begins(&self) {
        *self.outage.lock() = Some(Outage { since: Instant::now(), over: None });
    }

    /// Length of the last outage; `None` while no write was acknowledged.
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
    pub fn start(client: &Client, shape: Shape) -> Self {
        let stats = Arc::new(Stats::new());
        let stop = Arc::new(AtomicBool::new(false));
        let history = Arc::new(Mutex::new(StoreHistory::new()));
        let epoch = Instant::now();
        let mut clients = JoinSet::new();
        for id in 0..shape.clients {
            let mut worker = Worker {
                id,
                client: client.clone(),
                stats: stats.clone(),
                history: history.clone(),
                epoch,
                shape,
                // Each client repeats its own sequence of choices from run to run.
                random: fastrand::Rng::with_seed(id),
                written: 0,
            };
            let stop = stop.clone();
            clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    worker.one_operation().await;
                    if !shape.pause.is_zero() {
                        tokio::time::sleep(shape.pause).await;
                    }
                }
            });
        }
        Self { stats, history, stop, clients }
    }

    /// Stops each client after its current operation, and returns the history.
    ///
    /// # Cancel safety
    /// Dropping the future aborts the clients and loses the history.
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
    shape: Shape,
    random: fastrand::Rng,
    written: u64,
}

impl Worker {
    async fn one_operation(&mut self) {
        let era = self.epoch.elapsed().as_nanos() / self.shape.era.as_nanos();
        let number = self.random.u64(..SHARED_KEYS);
        let group = format!("shared/{era}/{}/", number / GROUP_KEYS);
        let shared = format!("{group}{}", number % GROUP_KEYS);
        match self.random.u64(..11) {
            0..=2 => {
                let key = format!("own/{}/{}", self.id, self.written);
                self.put(key, false).await;
            }
            3..=5 => {
                let is_large = self.random.u64(..100) < self.shape.large_percent;
                self.put(shared, is_large).await;
            }
            // Compare-and-set: read, then write if the version is still the same.
            6 => {
                if let Some((value, version)) = self.get(&shared).await {
                    self.compare_and_set(shared, value, version).await;
                }
            }
            7 => self.delete(shared).await,
            8 => self.list(group).await,
            _ => drop(self.get(&shared).await),
        }
    }

    /// Each value is written once, so that a value identifies its write.
    fn next_value(&mut self) -> String {
        self.written += 1;
        format!("{}-{}", self.id, self.written)
    }

    async fn put(&mut self, key: String, is_large: bool) {
        let value = self.next_value();
        let path = format!("/kv/{key}");
        let op = StoreOp::Put { key, value: value.clone() };
        let mut body = value.into_bytes();
        if is_large {
            body.resize(LARGE, PADDING);
        }
        self.perform(Method::PUT, &path, None, body.into(), op, written).await;
    }

    async fn compare_and_set(&mut self, key: String, expect: String, version: u64) {
        let value = self.next_value();
        let path = format!("/kv/{key}");
        let op = StoreOp::Cas { key, expect, value: value.clone() };
        self.perform(Method::PUT, &path, Some(version), value.into(), op, written).await;
    }

    async fn delete(&mut self, key: String) {
        let seen = |reply: &Reply| match reply.status {
            StatusCode::NO_CONTENT => Some(StoreRet::Deleted(true)),
            StatusCode::NOT_FOUND => Some(StoreRet::Deleted(false)),
            _ => None,
        };
        let path = format!("/kv/{key}");
        let op = StoreOp::Delete { key };
        self.perform(Method::DELETE, &path, None, Bytes::new(), op, seen).await;
    }

    /// Reads a key. Returns its value and version, if it exists.
    async fn get(&mut self, key: &str) -> Option<(String, u64)> {
        let value = |reply: &Reply| Some((without_padding(&reply.body), reply.version?));
        let seen = |reply: &Reply| match reply.status {
            StatusCode::OK => value(reply).map(|held| StoreRet::Value(Some(held))),
            StatusCode::NOT_FOUND => Some(StoreRet::Value(None)),
            _ => None,
        };
        let op = StoreOp::Get { key: key.to_owned() };
        let path = format!("/kv/{key}");
        let reply = self.perform(Method::GET, &path, None, Bytes::new(), op, seen).await?;
        if reply.status == StatusCode::OK { value(&reply) } else { None }
    }

    async fn list(&mut self, group: String) {
        #[derive(serde::Deserialize)]
        struct Listed {
            key: String,
            version: u64,
        }
        let seen = |reply: &Reply| {
            let listed: Vec<Listed> = serde_json::from_slice(&reply.body).ok()?;
            let listed = listed.into_iter().map(|listed| (listed.key, listed.version));
            Some(StoreRet::Listed(listed.collect()))
        };
        let path = format!("/kv?prefix={group}");
        self.perform(Method::GET, &path, None, Bytes::new(), StoreOp::List { group }, seen).await;
    }

    async fn perform(
        &mut self,
        method: Method,
        path: &str,
        if_match: Option<u64>,
        body: Bytes,
        op: StoreOp,
        seen: impl Fn(&Reply) -> Option<StoreRet>,
    ) -> Option<Reply> {
        let is_write = method != Method::GET;
        let began = Instant::now();
        let now = || self.epoch.elapsed().as_nanos() as u64;
        let call = self.history.lock().invoke(self.id, op, now());
        let sent = self.client.send(method, path, if_match, body).await;
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

/// The part of a value that identifies its write. A large value that is not complete is returned as
/// it is: no client wrote it, so the check of the history fails.
fn without_padding(body: &[u8]) -> String {
    let name = body.split(|byte| *byte == PADDING).next().unwrap_or_default();
    let is_whole = body.len() == name.len()
        || (body.len() == LARGE && body[name.len()..].iter().all(|byte| *byte == PADDING));
    String::from_utf8_lossy(if is_whole { name } else { body }).into_owned()
}

/// The answer to a write, for the history.
fn written(reply: &Reply) -> Option<StoreRet> {
    match reply.status {
        StatusCode::NO_CONTENT => reply.version.map(StoreRet::Written),
        StatusCode::PRECONDITION_FAILED => Some(StoreRet::Conflict),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_value_counts_only_when_it_is_whole() {
        let mut body = b"7-12".to_vec();
        assert_eq!(without_padding(&body), "7-12");
        body.resize(LARGE, PADDING);
        assert_eq!(without_padding(&body), "7-12");
        assert_ne!(without_padding(&body[..LARGE - 1]), "7-12");
        body[LARGE / 2] = 0;
        assert_ne!(without_padding(&body), "7-12");
    }
}
