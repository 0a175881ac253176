//! One node and its store: what it tells before it is durable, what it refuses, how it ends.
//! Requests are given to it as bytes, as a link does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use voussoir_journal::files::crash::CrashFiles;
use voussoir_journal::{Config, Journal};
use voussoir_quorum::store::{Change, JournalStoreConfig, StoreError};
use voussoir_quorum::table::CallError;
use voussoir_quorum::version::{Actor, Dot, Siblings, VersionVector, codec};
use voussoir_quorum::*;

const WRITTEN: u8 = 2;
const MERGED: u8 = 3;
const REFUSED: u8 = 4;
const NOT_WHOLE: u8 = 5;
const BUSY: u8 = 6;
const EPOCH: u8 = 7;
const STALE: u8 = 8;

fn request(kind: u8, epoch: u64, body: &[&[u8]]) -> Bytes {
    let mut out = vec![1, kind, 0, 0];
    out.extend_from_slice(&u32::MAX.to_le_bytes());
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&body.concat());
    out.into()
}

fn key(key: &str) -> Vec<u8> {
    [&(key.len() as u16).to_le_bytes(), key.as_bytes()].concat()
}

fn value(value: &[u8]) -> Vec<u8> {
    [&(value.len() as u32).to_le_bytes(), value].concat()
}

fn get(name: &str, epoch: u64) -> Bytes {
    request(1, epoch, &[&key(name)])
}

fn write(name: &str, seen: &VersionVector, written: Option<&[u8]>) -> Bytes {
    let seen = codec::encode_context(seen);
    let option = written.map_or(vec![0], |bytes| [vec![1], value(bytes)].concat());
    request(2, 1, &[&key(name), &seen[4..], &option])
}

fn merge(name: &str, state: &Siblings<Bytes>) -> Bytes {
    request(3, 1, &[&key(name), &value(&codec::encode_siblings(state))])
}

fn epoch(epoch: u64) -> Bytes {
    request(5, 1, &[&epoch.to_le_bytes()])
}

fn one_value(dot: Dot, value: &'static [u8]) -> Siblings<Bytes> {
    let mut state = Siblings::new();
    state.put_blind(dot, Bytes::from_static(value)).unwrap();
    state
}

/// What kind of answer it is, and the epoch that it tells.
fn head(answer: Option<Bytes>) -> (u8, u64) {
    let answer = answer.expect("the node answers");
    (answer[1], u64::from_le_bytes(answer[4..12].try_into().unwrap()))
}

/// A store in memory whose writes wait while it is shut, and take 5 ms.
struct Gated {
    records: MemoryStore,
    is_open: tokio::sync::watch::Sender<bool>,
}

impl Gated {
    fn new() -> Arc<Self> {
        let (is_open, _) = tokio::sync::watch::channel(true);
        Arc::new(Self { records: MemoryStore::new(), is_open })
    }
}

#[async_trait]
impl ReplicaStore for Gated {
    async fn get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.records.get(keys).await
    }

    async fn apply(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        self.is_open.subscribe().wait_for(|is_open| *is_open).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.records.apply(batch).await
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: &[u8],
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.records.scan(prefix, after, max_bytes).await
    }

    async fn clear(&self) -> Result<(), StoreError> {
        self.records.clear().await
    }
}

async fn gated_node() -> (Arc<Gated>, Node) {
    let store = Gated::new();
    let mut config = NodeConfig::with_replicas([1]);
    config.max_requests = 64;
    let node = Node::create(1, store.clone(), config).await.unwrap();
    (store, node)
}

/// An epoch that a crash can take back is told nobody: an operation that begins in it would pass
/// for a newer one than it is.
#[tokio::test(start_paused = true)]
async fn an_epoch_is_told_when_it_is_durable() {
    let (store, node) = gated_node().await;
    store.is_open.send_replace(false);
    let (raising, stale) = (node.clone(), node.clone());
    let mut raising = tokio::spawn(async move { raising.answer(epoch(2)).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(head(node.answer(get("k", 1)).await).1, 1, "the epoch 2 is not durable yet");
    let mut stale = tokio::spawn(async move { stale.answer(get("k", 0)).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!raising.is_finished() && !stale.is_finished(), "told before it is durable");
    store.is_open.send_replace(true);
    assert_eq!(head((&mut raising).await.unwrap()), (EPOCH, 2));
    assert_eq!(head((&mut stale).await.unwrap()), (STALE, 2));
}

/// A node that is behind would do what nobody waits for, and stay behind. What others have a part
/// of is finished.
#[tokio::test(start_paused = true)]
async fn a_write_whose_caller_has_gone_is_not_begun() {
    let (_store, node) = gated_node().await;
    let dot = Dot::new(Actor::new(2, 1), 1);
    let written = write("written", &VersionVector::new(), Some(b"v"));
    for request in [written, merge("merged", &one_value(dot, b"v"))] {
        // The request is in the queue, and its caller goes.
        tokio::select! {
            biased;
            _ = node.answer(request) => panic!("answered before the node has run"),
            () = std::future::ready(()) => {}
        }
    }
    let nothing = node.answer(get("nothing", 1)).await;
    assert_eq!(node.answer(get("written", 1)).await, nothing);
    assert_ne!(node.answer(get("merged", 1)).await, nothing);
}

/// What a node takes it can read back: a client's context does not stop it for ever.
#[tokio::test(start_paused = true)]
async fn a_context_that_the_decoder_would_refuse_is_refused() {
    let (_store, node) = gated_node().await;
    let foreign = |from: u64| -> VersionVector {
        (from..from + 1_024).map(|node| Dot::new(Actor::new(node, 1), 1)).collect()
    };
    let delete = write("deleted", &foreign(100), None);
    assert_eq!(head(node.answer(delete).await).0, WRITTEN);
    let delete = write("deleted", &foreign(101), None);
    assert_eq!(head(node.answer(delete).await).0, REFUSED);
    let put = write("put", &foreign(100), Some(b"v"));
    assert_eq!(head(node.answer(put).await).0, REFUSED);
    for (from, kind) in [(100, MERGED), (101, REFUSED)] {
        let state = Siblings::from_parts(foreign(from), BTreeMap::new());
        assert_eq!(head(node.answer(merge("merged", &state)).await).0, kind);
    }
    // Neither has seen the values of the other, so that all stay.
    for (actor, kind) in [(8, MERGED), (9, REFUSED)] {
        let dots = (1..=1_500).map(|counter| Dot::new(Actor::new(actor, 1), counter));
        let values = dots.map(|dot| (dot, Bytes::new())).collect();
        let state = Siblings::from_parts(VersionVector::new(), values);
        assert_eq!(head(node.answer(merge("many", &state)).await).0, kind);
    }
    for name in ["deleted", "put", "merged", "many"] {
        assert!(node.answer(get(name, 1)).await.is_some(), "{name}");
    }
    assert!(node.is_whole());
}

#[tokio::test(start_paused = true)]
async fn deleting_what_is_not_there_leaves_no_record() {
    let (store, node) = gated_node().await;
    let delete = write("k", &VersionVector::new(), None);
    assert_eq!(head(node.answer(delete).await).0, WRITTEN);
    assert_eq!(head(node.answer(merge("k", &Siblings::new())).await).0, MERGED);
    assert_eq!(store.scan(b"t", b"", 1 << 20).await, Ok(Vec::new()));
}

/// A commit of the journal holds a quarter of a segment, less than a batch of a node by default.
#[tokio::test]
async fn writes_at_once_fit_into_the_commits_of_a_small_journal() {
    let mut config = Config::default();
    (config.segment_bytes, config.max_bytes) = (8 << 20, 512 << 20);
    let journal = Journal::open_with(CrashFiles::new(1).mount(), config).unwrap();
    let store = JournalStore::open(&journal, 1, JournalStoreConfig::default()).unwrap();
    let node = Node::create(1, Arc::new(store), NodeConfig::with_replicas([1])).await.unwrap();
    let long = vec![7; 512 << 10];
    let mut puts = tokio::task::JoinSet::new();
    for at in 0..16 {
        let (node, put) =
            (node.clone(), write(&format!("k{at}"), &VersionVector::new(), Some(&long)));
        puts.spawn(async move { head(node.answer(put).await).0 });
    }
    assert_eq!(puts.join_all().await, [WRITTEN; 16]);
}

/// A node that meets writes of its own store while it is rebuilt is not declared whole.
#[tokio::test(start_paused = true)]
async fn a_loss_that_is_noticed_before_the_node_is_whole_stays_noticed() {
    let store = Arc::new(MemoryStore::new());
    // Not whole, of the incarnation 7, with a known epoch: a rebuild was begun.
    let mut own = vec![1, 0, 0, 0];
    for field in [1_u64, 7, 0, 1] {
        own.extend_from_slice(&field.to_le_bytes());
    }
    let own = Change { key: Bytes::from_static(b"m"), record: Some(own.into()) };
    store.apply(vec![own]).await.unwrap();
    let node = Node::start(1, store.clone(), NodeConfig::with_replicas([1, 2, 3])).await.unwrap();
    let ahead = one_value(Dot::new(Actor::new(1, 7), 5), b"v");
    assert_eq!(head(node.answer(merge("k", &ahead)).await).0, NOT_WHOLE);
    assert_eq!(*node.status().borrow(), Status::NotWhole { is_condemned: true });
    node.shutdown().await;
    drop(node);
    let node = Node::start(1, store.clone(), NodeConfig::with_replicas([1, 2, 3])).await.unwrap();
    assert_eq!(*node.status().borrow(), Status::NotWhole { is_condemned: false });
    assert_eq!(store.scan(b"t", b"", 1 << 20).await, Ok(Vec::new()), "it begins anew");
}

/// Nodes in one process, as one of them reaches the others.
struct Switch {
    nodes: Arc<Mutex<BTreeMap<u64, Node>>>,
    /// Whom it does not reach.
    away: u64,
    /// Node 1 is lost, and rebuilt from others, before the first merge reaches node 2.
    is_to_lose: Mutex<bool>,
}

fn five_nodes() -> NodeConfig {
    NodeConfig::with_replicas(1..=5)
}

#[async_trait]
impl Link for Switch {
    async fn call(
        &self,
        to: u64,
        _class: Class,
        request: Bytes,
        _deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if to == self.away {
            return Err(CallError::NotSent);
        }
        if (to, request[1]) == (2, 3) && std::mem::take(&mut *self.is_to_lose.lock().unwrap()) {
            let store = Arc::new(MemoryStore::new());
            let node = Node::start_lost(1, store, five_nodes()).await.unwrap();
            let (nodes, is_to_lose) = (Arc::clone(&self.nodes), Mutex::new(false));
            let link: Arc<dyn Link> = Arc::new(Self { nodes, away: 5, is_to_lose });
            node.rebuild(&link).await.unwrap();
            self.nodes.lock().unwrap().insert(1, node);
        }
        let node = self.nodes.lock().unwrap()[&to].clone();
        node.answer(request).await.ok_or(CallError::Unknown)
    }
}

/// A replica that has acknowledged a tombstone, and was then lost and rebuilt from those that did
/// not hold it yet, does not bring back what was deleted.
#[tokio::test(start_paused = true)]
async fn a_replica_that_is_lost_during_a_collection_brings_nothing_back() {
    let mut nodes = BTreeMap::new();
    let state = one_value(Dot::new(Actor::new(2, 1), 1), b"v");
    for id in 1..=5 {
        let node = Node::create(id, Arc::new(MemoryStore::new()), five_nodes()).await.unwrap();
        assert_eq!(head(node.answer(merge("k", &state)).await).0, MERGED);
        nodes.insert(id, node);
    }
    // A delete that was told as unknown has reached one node.
    let delete = write("k", state.context(), None);
    assert_eq!(head(nodes[&5].answer(delete).await).0, WRITTEN);
    let collector = nodes[&5].clone();
    let nodes = Arc::new(Mutex::new(nodes));
    let switch = Switch { nodes: Arc::clone(&nodes), away: 0, is_to_lose: Mutex::new(true) };
    let switch = Arc::new(switch);
    let link: Arc<dyn Link> = switch.clone();
    assert_eq!(collector.collect_tombstones(&link).await, Ok(1));
    assert!(!*switch.is_to_lose.lock().unwrap(), "the replica was lost on the way");
    for id in 1..=5 {
        let node = nodes.lock().unwrap()[&id].clone();
        let answer = node.answer(get("k", 9)).await.unwrap();
        assert!(!answer.ends_with(b"v"), "node {id} has what was deleted");
    }
}

/// One key that cannot go, by a context that is too long or by damage, holds up no other.
#[tokio::test(start_paused = true)]
async fn a_tombstone_that_cannot_go_holds_up_no_other() {
    let foreign = |from: u64| -> VersionVector {
        (from..from + 600).map(|node| Dot::new(Actor::new(node, 1), 1)).collect()
    };
    let tombstone = |seen: VersionVector| Siblings::from_parts(seen, [].into());
    let (mut nodes, store) = (BTreeMap::new(), Arc::new(MemoryStore::new()));
    let node = Node::create(1, store.clone(), five_nodes()).await.unwrap();
    nodes.insert(1, node);
    for id in 2..=5 {
        let node = Node::create(id, Arc::new(MemoryStore::new()), five_nodes()).await.unwrap();
        nodes.insert(id, node);
    }
    for (node, key, seen) in
        [(1, "long", 100), (3, "long", 1_000), (1, "damaged", 100), (1, "small", 100)]
    {
        let merged = nodes[&node].answer(merge(key, &tombstone(foreign(seen)))).await;
        assert_eq!(head(merged).0, MERGED);
    }
    let record = Some(Bytes::from_static(b"damaged"));
    store.apply(vec![Change { key: "tdamaged".into(), record }]).await.unwrap();
    let collector = nodes[&1].clone();
    let (nodes, is_to_lose) = (Arc::new(Mutex::new(nodes)), Mutex::new(false));
    let link: Arc<dyn Link> = Arc::new(Switch { nodes, away: 0, is_to_lose });
    assert_eq!(collector.collect_tombstones(&link).await, Ok(1));
    let stats = collector.tombstone_stats();
    assert_eq!((stats.held, stats.dropped), (2, 1));
    assert_eq!((stats.refused, stats.unreadable), (1, 1));
}

/// Answers "busy" to each first request about a key, and counts how many are on their way.
struct Crowded {
    nodes: BTreeMap<u64, Node>,
    asked: Mutex<std::collections::BTreeSet<Bytes>>,
    /// Now, and at most so far.
    under_way: Mutex<(usize, usize)>,
}

#[async_trait]
impl Link for Crowded {
    async fn call(
        &self,
        to: u64,
        _class: Class,
        request: Bytes,
        _deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if matches!(request[1], 3 | 5) && self.asked.lock().unwrap().insert(request.clone()) {
            return Ok(request_busy());
        }
        {
            let (now, most) = &mut *self.under_way.lock().unwrap();
            *now += 1;
            *most = (*now).max(*most);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let answer = self.nodes[&to].answer(request).await.ok_or(CallError::Unknown);
        self.under_way.lock().unwrap().0 -= 1;
        answer
    }
}

fn request_busy() -> Bytes {
    [&[1, BUSY, 0, 0][..], &1_u64.to_le_bytes()].concat().into()
}

/// A replica that is short of room for a moment, or takes few requests at all, ends no collection.
#[tokio::test(start_paused = true)]
async fn a_collection_goes_through_replicas_that_take_few_requests() {
    let mut config = five_nodes();
    config.max_requests = 64;
    let mut nodes = BTreeMap::new();
    for id in 1..=5 {
        let node = Node::create(id, Arc::new(MemoryStore::new()), config.clone()).await.unwrap();
        nodes.insert(id, node);
    }
    let seen = VersionVector::from_iter([Dot::new(Actor::new(9, 1), 1)]);
    for key in 0..200 {
        let tombstone = Siblings::from_parts(seen.clone(), [].into());
        let merged = nodes[&1].answer(merge(&format!("k{key}"), &tombstone)).await;
        assert_eq!(head(merged).0, MERGED);
    }
    let collector = nodes[&1].clone();
    let (asked, under_way) = (Mutex::default(), Mutex::default());
    let crowded = Arc::new(Crowded { nodes, asked, under_way });
    let link: Arc<dyn Link> = crowded.clone();
    assert_eq!(collector.collect_tombstones(&link).await, Ok(200));
    let most = crowded.under_way.lock().unwrap().1;
    assert!((8..=32).contains(&most), "{most} requests at once");
}

/// Every caller waits for the end, and what was accepted before is durable then.
#[tokio::test(start_paused = true)]
async fn each_shutdown_waits_until_what_was_accepted_is_durable() {
    let (store, node) = gated_node().await;
    store.is_open.send_replace(false);
    let put = write("k", &VersionVector::new(), Some(b"v"));
    let writer = node.clone();
    let writing = tokio::spawn(async move { writer.answer(put).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut shutdowns = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let node = node.clone();
        shutdowns.spawn(async move { node.shutdown().await });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(shutdowns.try_join_next().is_none(), "a write is not durable yet");
    assert_eq!(node.answer(get("k", 1)).await, None, "it takes no more requests");
    store.is_open.send_replace(true);
    shutdowns.join_all().await;
    assert_eq!(*node.status().borrow(), Status::Stopped);
    assert_eq!(head(writing.await.unwrap()).0, WRITTEN);
    assert_eq!(store.scan(b"t", b"", 1 << 20).await.unwrap().len(), 1);
    node.shutdown().await;
}

/// Clients that go on writing do not keep a node from its end.
#[tokio::test(start_paused = true)]
async fn a_shutdown_under_load_ends() {
    let (store, node) = gated_node().await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..4 {
        let node = node.clone();
        clients.spawn(async move {
            // One after the other, so that there is a write to come whenever one has ended.
            tokio::time::sleep(Duration::from_millis(2 * client)).await;
            let mut written = 0;
            // Ends: with the node.
            loop {
                let put = write(&format!("{client} {written}"), &VersionVector::new(), Some(b"v"));
                match node.answer(put).await {
                    Some(answer) => assert_eq!(head(Some(answer)).0, WRITTEN),
                    None => return written,
                }
                written += 1;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    tokio::time::timeout(Duration::from_secs(10), node.shutdown()).await.expect("it ends");
    let written: usize = clients.join_all().await.into_iter().sum();
    assert!(written > 0);
    assert_eq!(store.scan(b"t", b"", 1 << 20).await.unwrap().len(), written);
}

/// A shutdown that is dropped after its first poll, with the queue of the node full.
#[tokio::test(start_paused = true)]
async fn a_dropped_shutdown_ends_the_node() {
    let (store, node) = gated_node().await;
    let mut queued = Vec::new();
    for at in 0..64 {
        let put = write(&format!("k{at}"), &VersionVector::new(), Some(b"v"));
        let mut answer = Box::pin(async { node.answer(put).await });
        tokio::select! {
            biased;
            _ = &mut answer => panic!("the node has not run"),
            () = std::future::ready(()) => queued.push(answer),
        }
    }
    tokio::select! {
        biased;
        () = node.shutdown() => panic!("the node has not run"),
        () = std::future::ready(()) => {}
    }
    for answer in queued {
        assert_eq!(head(answer.await).0, WRITTEN);
    }
    let mut status = node.status();
    let ended = status.wait_for(|status| *status == Status::Stopped);
    let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
    assert!(ended.is_ok(), "the node goes on");
    assert_eq!(store.scan(b"t", b"", 1 << 20).await.unwrap().len(), 64);
}
