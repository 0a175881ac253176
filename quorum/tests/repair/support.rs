//! Nodes in one process, and a link that counts what it carries and loses what it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use voussoir_quorum::table::{CallError, TableConfig};
use voussoir_quorum::version::{Actor, Dot, Siblings, codec};
use voussoir_quorum::*;

/// The record of an acceptor begins with a head of 4 bytes and the ballot that it has promised.
const ACCEPTOR_HEAD_BYTES: usize = 36;

/// Nodes with their stores in memory. None of them maintains itself.
pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) stores: BTreeMap<u64, Arc<MemoryStore>>,
    pub(crate) carrier: Arc<Carrier>,
    config: NodeConfig,
}

/// Carries the requests of all nodes.
#[derive(Default)]
pub(crate) struct Carrier {
    nodes: Mutex<BTreeMap<u64, Node>>,
    away: Mutex<BTreeSet<u64>>,
    /// Of requests and answers.
    bytes: Mutex<u64>,
}

/// The link of every node.
struct From {
    carrier: Arc<Carrier>,
}

#[async_trait]
impl Link for From {
    async fn call(
        &self,
        to: u64,
        _class: Class,
        request: Bytes,
        _deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if self.carrier.away.lock().unwrap().contains(&to) {
            return Err(CallError::NotSent);
        }
        let node = self.carrier.nodes.lock().unwrap()[&to].clone();
        let asked = request.len();
        let answer = node.answer(request).await.ok_or(CallError::Unknown)?;
        *self.carrier.bytes.lock().unwrap() += (asked + answer.len()) as u64;
        Ok(answer)
    }
}

impl Cluster {
    pub(crate) async fn with_config(config: &NodeConfig) -> Self {
        let (mut nodes, mut stores) = (BTreeMap::new(), BTreeMap::new());
        for id in config.replicas.iter().copied() {
            let store = Arc::new(MemoryStore::new());
            stores.insert(id, Arc::clone(&store));
            nodes.insert(id, Node::create(id, store, config.clone()).await.unwrap());
        }
        let carrier = Arc::new(Carrier::default());
        carrier.nodes.lock().unwrap().clone_from(&nodes);
        Self { nodes, stores, carrier, config: config.clone() }
    }

    /// The node ends, and begins again with its store; without it if it is lost.
    pub(crate) async fn restart(&mut self, id: u64, is_lost: bool) {
        self.nodes[&id].shutdown().await;
        let store = Arc::clone(&self.stores[&id]);
        let node = if is_lost {
            Node::start_lost(id, store, self.config.clone()).await.unwrap()
        } else {
            Node::start(id, store, self.config.clone()).await.unwrap()
        };
        self.carrier.nodes.lock().unwrap().insert(id, node.clone());
        self.nodes.insert(id, node);
    }

    /// From now on another node is the one with this id.
    pub(crate) fn replace(&self, id: u64, node: &Node) {
        self.carrier.nodes.lock().unwrap().insert(id, node.clone());
    }

    /// Bytes of requests and answers since the last call.
    pub(crate) fn take_bytes(&self) -> u64 {
        std::mem::take(&mut *self.carrier.bytes.lock().unwrap())
    }

    /// What the stores must agree on: the records of the table, and what was accepted of registers.
    pub(crate) async fn records(&self, id: u64) -> BTreeMap<Bytes, Bytes> {
        let records = self.all_records(id).await.into_iter();
        let part = |(key, record): (Bytes, Bytes)| match key[0] {
            b't' => Some((key, record)),
            b'p' => Some((key, record.slice(ACCEPTOR_HEAD_BYTES..))),
            _ => None,
        };
        records.filter_map(part).collect()
    }

    /// The promises of a node's acceptors: nothing below such a ballot is accepted.
    pub(crate) async fn promised(&self, id: u64) -> BTreeMap<Bytes, Bytes> {
        let records = self.all_records(id).await.into_iter();
        let acceptors = records.filter(|(key, _)| key[0] == b'p');
        acceptors.map(|(key, record)| (key, record.slice(4..ACCEPTOR_HEAD_BYTES))).collect()
    }

    async fn all_records(&self, id: u64) -> BTreeMap<Bytes, Bytes> {
        let (mut found, mut after) = (BTreeMap::new(), Bytes::new());
        // Ends: each page moves on.
        loop {
            let page = self.stores[&id].scan(b"", &after, 1 << 20).await.unwrap();
            let Some((last, _)) = page.last() else { return found };
            after = last.clone();
            found.extend(page);
        }
    }

    pub(crate) fn link(&self) -> Arc<dyn Link> {
        Arc::new(From { carrier: Arc::clone(&self.carrier) })
    }

    /// These nodes are reached by nobody, not even by themselves.
    pub(crate) fn set_away(&self, ids: &[u64]) {
        *self.carrier.away.lock().unwrap() = ids.iter().copied().collect();
    }

    /// A table in the process of a node.
    pub(crate) fn table(&self, id: u64) -> Table {
        let config = TableConfig::with_replicas(self.nodes.keys().copied());
        Table::with_hints(config, self.link(), &self.nodes[&id]).unwrap()
    }

    /// The state of a key at one node.
    pub(crate) async fn state(&self, id: u64, key: &str) -> Siblings<Bytes> {
        let answer = self.nodes[&id].answer(request(1, &[&short(key)])).await.unwrap();
        assert_eq!(answer[1], 1, "it is a value");
        codec::decode_siblings(answer.slice(16..), &codec::Limits::default()).unwrap()
    }

    /// The values of a key at one node.
    pub(crate) async fn values(&self, id: u64, key: &str) -> Vec<String> {
        let state = self.state(id, key).await;
        state.values().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
    }
}

fn short(key: &str) -> Vec<u8> {
    [&(key.len() as u16).to_le_bytes(), key.as_bytes()].concat()
}

fn request(kind: u8, body: &[&[u8]]) -> Bytes {
    let mut out = vec![1, kind, 0, 0];
    out.extend_from_slice(&u32::MAX.to_le_bytes());
    // An epoch that no replica refuses.
    out.extend_from_slice(&(1_u64 << 60).to_le_bytes());
    out.extend_from_slice(&body.concat());
    out.into()
}

/// A request that merges a state into the replica of a node.
pub(crate) fn merge(key: &str, state: &Siblings<Bytes>) -> Bytes {
    let state = codec::encode_siblings(state);
    request(3, &[&short(key), &(state.len() as u32).to_le_bytes(), &state])
}

pub(crate) fn dot(node: u64, counter: u64) -> Dot {
    Dot::new(Actor::new(node, 1), counter)
}

/// Polls a future up to `polls` times, with the other tasks in between. Returns whether it ended.
pub(crate) async fn poll<F: Future>(future: &mut Pin<Box<F>>, polls: usize) -> bool {
    for _ in 0..polls {
        let now = std::future::poll_fn(|context| {
            std::task::Poll::Ready(future.as_mut().poll(context).is_ready())
        });
        if now.await {
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}
