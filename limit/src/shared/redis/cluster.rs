//! A cluster: which server keeps a key, and a connection of its own for each server, so that one
//! that is away holds up no other.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redis::{Client, ConnectionAddr, ConnectionInfo, Value};
use tokio::task::JoinSet;

use super::ask::{Answer, Failure, Redirect, ask};
use super::call::Call;
use super::link::Links;
use crate::shared::counter::StoreError;

/// Slots of a cluster.
const SLOTS: usize = 16_384;

/// The map of slots is read again when it is this old and a take comes by.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// After an outage it is read again when it is this old.
const READ_AGAIN_AFTER_OUTAGE: Duration = Duration::from_millis(100);

/// How long one server may take to tell the map.
const MAX_READ: Duration = Duration::from_millis(500);

/// The most servers known at once.
const MAX_NODES: usize = 4096;

#[derive(Debug)]
struct Node {
    /// The hash of its address.
    number: u64,
    host: String,
    links: Links,
}

/// The calls of one server, and the place of each among all calls.
type OfNode = (Arc<Node>, Vec<usize>, Vec<Call>);

pub(super) struct Cluster {
    seeds: Box<[Arc<Node>]>,
    /// How to connect, but for the address.
    info: ConnectionInfo,
    map: RwLock<Map>,
    epoch: Instant,
    /// When the last reading of the map began, ns since `epoch`. 0: never.
    read_at: AtomicU64,
    reading: AtomicBool,
    /// Counts the readings: each begins with another server.
    readings: AtomicUsize,
}

#[derive(Default)]
struct Map {
    /// By number. At most `MAX_NODES`.
    nodes: HashMap<u64, Arc<Node>>,
    /// The server of each slot; empty before the first reading.
    slots: Box<[Option<Arc<Node>>]>,
}

impl Cluster {
    /// `None` without any client.
    pub(super) fn new(seeds: Vec<Client>) -> Option<Arc<Self>> {
        let info = seeds.first()?.get_connection_info().clone();
        let seed = |client: Client| {
            let address = client.get_connection_info().addr().to_string();
            let (number, host) = (number_of(&address), address.rsplit_once(':'));
            let host = host.map_or("", |(host, _)| host).to_owned();
            Arc::new(Node { number, host, links: Links::new(client) })
        };
        Some(Arc::new(Self {
            seeds: seeds.into_iter().map(seed).collect(),
            info,
            map: RwLock::default(),
            epoch: Instant::now(),
            read_at: AtomicU64::new(0),
            reading: AtomicBool::new(false),
            readings: AtomicUsize::new(0),
        }))
    }

    /// The number of the server that keeps a Redis key, as far as is known.
    pub(super) fn server_of(&self, key: &[u8]) -> u64 {
        self.node_of(slot_of(key)).number
    }

    /// The server of `slot`. While the slot map is unknown, any seed server, which answers with a
    /// redirect.
    fn node_of(&self, slot: usize) -> Arc<Node> {
        let known = self.map.read().slots.get(slot).cloned().flatten();
        known.unwrap_or_else(|| Arc::clone(&self.seeds[slot % self.seeds.len()]))
    }

    /// Asks the server of each call, all servers at once.
    pub(super) async fn ask(
        self: &Arc<Self>,
        hash: &str,
        calls: Vec<Call>,
    ) -> Vec<Result<Answer, StoreError>> {
        self.refresh(READ_AGAIN);
        let mut answers: Vec<Option<Result<Answer, StoreError>>> = Vec::new();
        answers.resize_with(calls.len(), || None);
        let mut by_node: HashMap<u64, OfNode> = HashMap::new();
        for (place, call) in calls.into_iter().enumerate() {
            let node = self.node_of(slot_of(call.key().as_bytes()));
            let of_node = || (Arc::clone(&node), Vec::new(), Vec::new());
            let (_, places, calls) = by_node.entry(node.number).or_insert_with(of_node);
            places.push(place);
            calls.push(call);
        }
        // Dropped with this future: then the tasks end.
        let mut tasks = JoinSet::new();
        for (_, (node, places, calls)) in by_node {
            let (cluster, hash) = (Arc::clone(self), hash.to_owned());
            tasks.spawn(async move { (places, cluster.ask_node(&node, &hash, &calls).await) });
        }
        while let Some(done) = tasks.join_next().await {
            let Ok((places, of_node)) = done else { continue };
            for (place, answer) in places.into_iter().zip(of_node) {
                answers[place] = Some(answer);
            }
        }
        let missing = || Err(StoreError::NoAnswer("the runtime has ended".into()));
        answers.into_iter().map(|answer| answer.unwrap_or_else(missing)).collect()
    }

    async fn ask_node(
        self: &Arc<Self>,
        node: &Node,
        hash: &str,
        calls: &[Call],
    ) -> Vec<Result<Answer, StoreError>> {
        let first = ask(&node.links, hash, calls, false).await;
        let mut answers = Vec::with_capacity(first.len());
        for (answer, call) in first.into_iter().zip(calls) {
            let answer = match answer {
                Err(Failure::Redirected(redirect)) => self.follow(&redirect, hash, call).await,
                Err(Failure::Store(error)) => Err(error),
                Ok(answer) => Ok(answer),
            };
            if answer.as_ref().is_err_and(StoreError::is_outage) {
                // Another server may keep its slots by now.
                self.refresh(READ_AGAIN_AFTER_OUTAGE);
            }
            answers.push(answer);
        }
        answers
    }

    /// Once: a call that is redirected twice finds the cluster in the midst of a change.
    async fn follow(
        &self,
        redirect: &Redirect,
        hash: &str,
        call: &Call,
    ) -> Result<Answer, StoreError> {
        let elsewhere = |why: &str| StoreError::Unreachable(format!("{}: {why}", redirect.address));
        let (host, port) = redirect.address.rsplit_once(':').unwrap_or_default();
        let port = port.parse::<u16>().map_err(|_| elsewhere("the redirection has no port"))?;
        let node = self.node_at(host, port)?;
        if !redirect.asking
            && let Some(slot) = self.map.write().slots.get_mut(usize::from(redirect.slot))
        {
            *slot = Some(Arc::clone(&node));
        }
        let mut answers = ask(&node.links, hash, std::slice::from_ref(call), redirect.asking).await;
        match answers.pop() {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(Failure::Store(error))) => Err(error),
            Some(Err(Failure::Redirected(_))) => Err(elsewhere("redirected twice")),
            None => Err(StoreError::Invalid("an answer is missing".into())),
        }
    }

    /// The server of an address; its connection is made with its first call.
    fn node_at(&self, host: &str, port: u16) -> Result<Arc<Node>, StoreError> {
        let number = number_of(&format!("{host}:{port}"));
        let known = |map: &Map| map.nodes.get(&number).cloned();
        if let Some(node) = known(&self.map.read()) {
            return Ok(node);
        }
        if let Some(node) = self.seeds.iter().find(|node| node.number == number) {
            return Ok(Arc::clone(node));
        }
        let address = match self.info.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        };
        let client = Client::open(self.info.clone().set_addr(address));
        let client = client.map_err(|e| StoreError::Unreachable(e.to_string()))?;
        let node = Arc::new(Node { number, host: host.to_owned(), links: Links::new(client) });
        let mut map = self.map.write();
        if map.nodes.len() >= MAX_NODES {
            return Err(StoreError::Unreachable(format!("more than {MAX_NODES} servers")));
        }
        Ok(Arc::clone(map.nodes.entry(number).or_insert(node)))
    }

    /// Begins to read the map in the background, if it is at least this old.
    fn refresh(self: &Arc<Self>, age: Duration) {
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
        let read_at = self.read_at.load(Ordering::Relaxed);
        let is_old = read_at == 0 || u128::from(now.saturating_sub(read_at)) >= age.as_nanos();
        if !is_old || self.reading.swap(true, Ordering::AcqRel) {
            return;
        }
        self.read_at.store(now, Ordering::Relaxed);
        let reading = Reading(Arc::clone(self));
        tokio::spawn(async move { reading.0.read().await });
    }

    /// Asks one server after the other until one tells the map. Without any the old map stays.
    async fn read(&self) {
        let mut nodes: Vec<Arc<Node>> = self.map.read().nodes.values().cloned().collect();
        nodes.extend(self.seeds.iter().cloned());
        let first = self.readings.fetch_add(1, Ordering::Relaxed) % nodes.len();
        nodes.rotate_left(first);
        for node in nodes {
            let told = tokio::time::timeout(MAX_READ, slots_of(&node)).await;
            if let Ok(Some(ranges)) = told {
                self.replace(&ranges);
                return;
            }
        }
    }

    fn replace(&self, ranges: &[Range]) {
        let mut slots: Vec<Option<Arc<Node>>> = vec![None; SLOTS];
        for range in ranges {
            if let Ok(node) = self.node_at(&range.host, range.port) {
                slots[range.first..=range.last].fill(Some(node));
            }
        }
        let mut map = self.map.write();
        map.nodes
            .retain(|_, node| slots.iter().flatten().any(|of_slot| of_slot.number == node.number));
        map.slots = slots.into();
    }
}

impl fmt::Debug for Cluster {
    /// Without the password among what it connects with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("seeds", &self.seeds).finish_non_exhaustive()
    }
}

/// A reading of the map in progress. Dropped with its task, also if the runtime ends.
struct Reading(Arc<Cluster>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.reading.store(false, Ordering::Release);
    }
}

/// Slots of one server. Invariant: `first <= last < SLOTS`.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: usize,
    last: usize,
    host: String,
    port: u16,
}

async fn slots_of(node: &Node) -> Option<Vec<Range>> {
    let link = node.links.get().await.ok()?;
    let mut connection = link.connection.clone();
    let sent = node.links.sent(&link);
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    let answer: Value = command.query_async(&mut connection).await.ok()?;
    sent.answered();
    parse(&answer, &node.host)
}

/// The ranges in an answer to `CLUSTER SLOTS`: entries of first slot, last slot, and the primary's
/// host and port, followed by others. A server that does not know its own host leaves it empty: it
/// is `asked`, the host that was asked.
fn parse(answer: &Value, asked: &str) -> Option<Vec<Range>> {
    let Value::Array(entries) = answer else { return None };
    let mut ranges = Vec::with_capacity(entries.len().min(SLOTS));
    for entry in entries {
        let Value::Array(entry) = entry else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &entry[..] else {
            return None;
        };
        let [host, Value::Int(port), ..] = &primary[..] else { return None };
        let host = match host {
            Value::BulkString(host) => std::str::from_utf8(host).ok()?,
            Value::SimpleString(host) => host,
            _ => "",
        };
        let host = if host.is_empty() || host == "?" { asked } else { host }.to_owned();
        let (first, last) = (usize::try_from(*first).ok()?, usize::try_from(*last).ok()?);
        if first > last || last >= SLOTS {
            return None;
        }
        ranges.push(Range { first, last, host, port: u16::try_from(*port).ok()? });
    }
    Some(ranges)
}

/// FNV-1a.
fn number_of(address: &str) -> u64 {
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    address.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}

/// The slot of a key: CRC16 (XMODEM) of its hash tag. Source: Redis cluster specification.
fn slot_of(key: &[u8]) -> usize {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let after = &key[open + 1..];
        let close = after.iter().position(|byte| *byte == b'}')?;
        (close > 0).then_some(&after[..close])
    });
    let crc = tag.unwrap_or(key).iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            crc << 1 ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 }
        })
    });
    usize::from(crc) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures of the cluster specification, and of a server's `CLUSTER KEYSLOT`.
    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot_of(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"limit:{foo}:g1"), slot_of(b"foo"));
        // An empty tag is no tag.
        assert_ne!(slot_of(b"limit:{}:g1"), slot_of(b""));
        assert_eq!(slot_of(b"{a{b}c}"), slot_of(b"a{b"));
    }

    #[test]
    fn an_answer_that_is_no_map_is_not_believed() {
        let host = |host: &str| Value::BulkString(host.into());
        let range = |first, last, name, port| {
            let primary = Value::Array(vec![host(name), Value::Int(port)]);
            Value::Array(vec![Value::Int(first), Value::Int(last), primary])
        };
        let map = Value::Array(vec![range(0, 99, "a", 1), range(100, 16_383, "", 2)]);
        let ranges = parse(&map, "asked").unwrap();
        let hosts: Vec<&str> = ranges.iter().map(|range| range.host.as_str()).collect();
        assert_eq!(hosts, ["a", "asked"]);
        for answer in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![range(-1, 5, "a", 1)]),
            Value::Array(vec![range(9, 5, "a", 1)]),
            Value::Array(vec![range(0, 16_384, "a", 1)]),
            Value::Array(vec![range(0, i64::MAX, "a", 1)]),
            Value::Array(vec![range(0, 5, "a", 70_000)]),
        ] {
            assert_eq!(parse(&answer, "asked"), None, "{answer:?}");
        }
    }
}
