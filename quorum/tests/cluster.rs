//! Three nodes in one process on a faulty network in memory, under virtual time.

use std::sync::Arc;
use std::time::Duration;

use voussoir_net::memory::{Faults, Memory, Network};
use voussoir_quorum::table::{
    CallError, Guarantee, Level, OperationError, ReadRepair, Rejected, TableConfig, Value,
};
use voussoir_quorum::version::{Actor, Dot, VersionVector};
use voussoir_quorum::*;

const SERVICE: u16 = 7;
const NODES: [u64; 3] = [1, 2, 3];
/// The kind of a request that drops a tombstone.
const FORGET: u8 = 4;

/// A node with all that it holds.
struct Host {
    net: Memory,
    store: Arc<MemoryStore>,
    node: Node,
    link: Arc<dyn Link>,
}

struct Cluster {
    network: Network,
    hosts: Vec<Host>,
}

fn node_config() -> NodeConfig {
    let mut config = NodeConfig::with_replicas(NODES);
    (config.timeout, config.maintain_every) = (Duration::from_secs(1), Duration::from_millis(100));
    config.collect_every = None;
    config
}

impl Host {
    fn new(net: Memory, store: Arc<MemoryStore>, node: Node) -> Self {
        let link = NetLink::serve(Arc::new(net.clone()), SERVICE, node.clone()).unwrap();
        Self { net, store, node, link }
    }

    fn table(&self, config: TableConfig) -> Table {
        Table::with_hints(config, Arc::clone(&self.link), &self.node).unwrap()
    }
}

impl Cluster {
    async fn new() -> Self {
        let mut config = voussoir_net::Config::new(1);
        config.seed = Some(1);
        let network = Network::new(config).unwrap();
        network.set_all_faults(Faults::delay(Duration::from_micros(100), Duration::from_millis(2)));
        let mut hosts = Vec::new();
        for id in NODES {
            let store = Arc::new(MemoryStore::new());
            let node = Node::create(id, store.clone(), node_config()).await.unwrap();
            hosts.push(Host::new(network.join(id), store, node));
        }
        Self { network, hosts }
    }

    fn strict(&self, at: usize) -> Table {
        self.hosts[at].table(TableConfig::with_replicas(NODES))
    }

    fn weak(&self, at: usize) -> Table {
        let mut config = TableConfig::with_replicas(NODES);
        (config.read, config.write) = (Level::One, Level::One);
        (config.require, config.read_repair) = (Guarantee::Eventual, ReadRepair::Off);
        config.local = Some(NODES[at]);
        self.hosts[at].table(config)
    }

    /// The node ends, and its disk is lost.
    async fn lose(&mut self, at: usize) {
        let id = NODES[at];
        self.hosts[at].net.leave();
        let store = Arc::new(MemoryStore::new());
        let node = Node::start_lost(id, store.clone(), node_config()).await.unwrap();
        self.hosts[at] = Host::new(self.network.join(id), store, node);
    }

    /// The node's process ends and begins again, with its disk.
    async fn restart(&mut self, at: usize) {
        let (id, store) = (NODES[at], Arc::clone(&self.hosts[at].store));
        self.hosts[at].net.leave();
        let node = Node::start(id, store.clone(), node_config()).await.unwrap();
        self.hosts[at] = Host::new(self.network.join(id), store, node);
    }

    fn client(&self, id: u64) -> Arc<dyn Link> {
        NetLink::client(Arc::new(self.network.join(id)), SERVICE)
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.values().map(|value| std::str::from_utf8(value).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn values_siblings_and_deletes_are_seen_from_every_node() {
    let cluster = Cluster::new().await;
    let tables: Vec<_> = (0..3).map(|at| cluster.strict(at)).collect();
    assert!(tables[0].get("k").await.unwrap().is_empty());
    let one = tables[0].put_blind("k", "milk").await.unwrap();
    assert_eq!(texts(&tables[1].get("k").await.unwrap()), ["milk"]);
    // Two clients write after the same read.
    let (left, right) = tokio::join!(
        tables[1].put("k", one.context(), "milk, bread"),
        tables[2].put("k", one.context(), "milk, beer")
    );
    left.unwrap();
    right.unwrap();
    let both = tables[0].get("k").await.unwrap();
    let mut found = texts(&both);
    found.sort_unstable();
    assert_eq!(found, ["milk, beer", "milk, bread"]);
    tables[1].delete("k", both.context()).await.unwrap();
    assert!(tables[2].get("k").await.unwrap().is_tombstone());
    let long = Bytes::from(vec![0; MAX_KEY_BYTES + 1]);
    let error = tables[0].get(long).await.unwrap_err();
    assert_eq!(error, TableError::TooLong { key_bytes: MAX_KEY_BYTES + 1, value_bytes: 0 });
}

/// A request that no node reads has an unknown outcome, and is never sent.
#[tokio::test(start_paused = true)]
async fn what_no_node_takes_is_refused_before_anything_is_sent() {
    const MAX: usize = 1 << 20;
    let cluster = Cluster::new().await;
    let own = Arc::clone(&cluster.hosts[0].link);
    let nodes = cluster.hosts.iter().map(|host| host.node.clone()).collect();
    let direct: Arc<dyn Link> = Arc::new(Direct { nodes });
    let bytes = |len: usize| Bytes::from(vec![7; len]);
    // Over the network, and without one.
    for (at, link) in [own, direct].into_iter().enumerate() {
        let table = Table::new(TableConfig::with_replicas(NODES), Arc::clone(&link)).unwrap();
        let registers = Registers::new(9, RegisterConfig::with_acceptors(NODES), link).unwrap();
        let key = Bytes::from(vec![at as u8; MAX_KEY_BYTES]);
        let written = table.put_blind(key.clone(), bytes(MAX)).await.unwrap();
        assert_eq!(written.values().map(Bytes::len).collect::<Vec<_>>(), [MAX]);
        // With its sibling it would be too long: only the replica knows.
        let error = table.put_blind(key.clone(), "v").await.unwrap_err();
        assert_eq!(error, TableError::Failed(OperationError::Refused));
        assert_eq!(registers.put(key.clone(), bytes(MAX)).await, Ok(1));
        let (key_bytes, begun) = (MAX_KEY_BYTES, table.stats());
        for value_bytes in [MAX + 1, 3 << 20, 16 << 20] {
            let error = table.put(key.clone(), written.context(), bytes(value_bytes)).await;
            let error = error.unwrap_err();
            assert_eq!(error, TableError::TooLong { key_bytes, value_bytes });
            assert_eq!(error.outcome(), table::Outcome::NotApplied);
            assert!(!error.is_retryable());
            let error = registers.put(key.clone(), bytes(value_bytes)).await.unwrap_err();
            assert_eq!(error, RegisterError::TooLong { key_bytes, value_bytes });
            assert!(!error.is_retryable());
        }
        let seen = |actors: u64| -> VersionVector {
            (0..actors).map(|id| Dot::new(Actor::new(50 + id, 1), 1)).collect()
        };
        let error = table.delete("k", &seen(1_025)).await.unwrap_err();
        assert_eq!(error, TableError::ContextTooLong { actors: 1_025 });
        assert!(!error.is_retryable());
        assert_eq!(table.put("k", &seen(1_025), "v").await.unwrap_err(), error);
        assert_eq!(table.stats(), begun);
        // The replica's own actor is one more in what it keeps.
        table.put("k", &seen(1_000), "v").await.unwrap();
    }
}

/// In the store its key would be the prefix alone, which no page of a rebuild begins before.
#[tokio::test(start_paused = true)]
async fn an_empty_key_is_refused_before_anything_is_sent() {
    let cluster = Cluster::new().await;
    let (table, registers) = (cluster.strict(0), Arc::clone(&cluster.hosts[0].link));
    let registers = Registers::new(9, RegisterConfig::with_acceptors(NODES), registers).unwrap();
    let seen = VersionVector::new();
    let results = [
        table.get("").await,
        table.get_at("", Level::Quorum, &seen).await,
        table.put("", &seen, "v").await,
        table.put_blind("", "v").await,
        table.delete("", &seen).await,
    ];
    for result in results {
        let error = result.unwrap_err();
        assert_eq!((&error, error.outcome()), (&TableError::EmptyKey, table::Outcome::NotApplied));
        assert!(!error.is_retryable());
    }
    let refused = RegisterError::EmptyKey;
    assert_eq!(registers.get("").await, Err(refused));
    assert_eq!(registers.put("", "v").await, Err(refused));
    assert_eq!(registers.compare_and_set("", 0, None).await, Err(refused));
    assert!(!refused.is_retryable());
    for host in &cluster.hosts {
        let found = host.store.get(&[Bytes::from_static(b"t"), Bytes::from_static(b"p")]).await;
        assert_eq!(found, Ok(vec![None, None]), "nothing was sent");
    }
    // One byte is a key.
    table.put_blind("k", "v").await.unwrap();
    assert_eq!(registers.put("k", "v").await, Ok(1));
}

/// Longer than what the connection for short messages takes, in both directions.
#[tokio::test(start_paused = true)]
async fn long_values_travel_by_the_bulk_connection() {
    let cluster = Cluster::new().await;
    let table = cluster.strict(0);
    let half = Bytes::from(vec![1; 500 << 10]);
    table.put_blind("k", half.clone()).await.unwrap();
    // A short write whose answer is long: the state has both values.
    let state = table.put_blind("k", "short").await.unwrap();
    assert_eq!(state.len(), 2);
    let found = cluster.strict(1).get("k").await.unwrap();
    assert_eq!(found.values().map(Bytes::len).sum::<usize>(), (500 << 10) + 5);
    let whole = Bytes::from(vec![2; 1 << 20]);
    let state = table.put("k", found.context(), whole.clone()).await.unwrap();
    assert_eq!(state.values().collect::<Vec<_>>(), [&whole]);
    // One byte more in all is refused, whichever node is the primary.
    for _ in 0..3 {
        let error = table.put_blind("k", "!").await.unwrap_err();
        assert_eq!(error, TableError::Failed(OperationError::Refused));
    }
}

#[tokio::test(start_paused = true)]
async fn a_minority_refuses_and_a_majority_goes_on() {
    let cluster = Cluster::new().await;
    let (minority, majority) = (cluster.strict(2), cluster.strict(0));
    majority.put_blind("k", "before").await.unwrap();
    cluster.network.isolate(3);
    let seen = majority.get("k").await.unwrap();
    majority.put("k", seen.context(), "during").await.unwrap();
    let error = minority.get("k").await.unwrap_err();
    assert!(matches!(error, TableError::Failed(OperationError::Unavailable { .. })), "{error}");
    assert!(error.is_retryable());
    let error = minority.put("k", seen.context(), "lost?").await.unwrap_err();
    assert_eq!(error.outcome(), table::Outcome::Unknown);
    assert!(!error.is_retryable());
    cluster.network.heal();
    // The write that the minority has kept becomes a sibling of what the majority wrote.
    let found = cluster.strict(1).get("k").await.unwrap();
    assert!(texts(&found).contains(&"during"));
}

/// scylladb #19835, riak's hinted handoff: what a replica missed is handed to it.
#[tokio::test(start_paused = true)]
async fn a_replica_that_was_away_gets_what_it_missed() {
    let cluster = Cluster::new().await;
    let table = cluster.strict(0);
    cluster.network.isolate(3);
    for key in 0..50 {
        table.put_blind(format!("k{key}"), "v").await.unwrap();
    }
    // Operations spread their result until their time is over.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let own = &cluster.hosts[0];
    assert_eq!(own.node.hint_stats().waiting, 50);
    assert_eq!(own.node.hand_over_hints(&own.link).await, 0, "it is still away");
    assert_eq!(own.node.hint_stats().waiting, 50);
    cluster.network.heal();
    tokio::time::sleep(Duration::from_secs(4)).await;
    own.node.maintain(&own.link);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(own.node.hint_stats().waiting, 0);
    let local = cluster.weak(2);
    for key in 0..50 {
        assert_eq!(texts(&local.get(format!("k{key}")).await.unwrap()), ["v"]);
    }
}

/// scylladb #23754, riak_kv #1643: an empty replica outvotes nobody.
#[tokio::test(start_paused = true)]
async fn a_lost_node_counts_for_nothing_until_it_is_rebuilt() {
    let mut cluster = Cluster::new().await;
    let registers = |link| Registers::new(9, RegisterConfig::with_acceptors(NODES), link).unwrap();
    let client = registers(cluster.client(9));
    // What is written is on the nodes 1 and 3 alone.
    cluster.network.isolate(2);
    for key in 0..100 {
        cluster.strict(0).put_blind(format!("k{key}"), "v").await.unwrap();
        client.put(format!("r{key}"), "w").await.unwrap();
    }
    cluster.network.heal();
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.lose(2).await;
    let table = cluster.strict(0);
    let status = cluster.hosts[2].node.status();
    assert_eq!(*status.borrow(), Status::NotWhole { is_condemned: false });
    // One whole node and an empty one are no quorum.
    cluster.network.isolate(2);
    let error = table.get("k0").await.unwrap_err();
    assert!(matches!(error, TableError::Failed(OperationError::Unavailable { .. })), "{error}");
    assert_eq!(client.get("r0").await, Err(RegisterError::Unavailable));
    // Of the other two both are needed to rebuild it.
    let lost = &cluster.hosts[2];
    let error = lost.node.rebuild(&lost.link).await.unwrap_err();
    assert_eq!(error, RebuildError::TooFewReplicas { read: 1, needed: 2 });
    assert!(!lost.node.is_whole());
    cluster.network.heal();
    tokio::time::sleep(Duration::from_secs(4)).await;
    lost.node.maintain(&lost.link);
    let mut status = lost.node.status();
    status.wait_for(|status| *status == Status::Whole).await.unwrap();
    // Now it stands in for another one.
    cluster.network.isolate(1);
    let table = cluster.strict(2);
    let client = registers(cluster.client(10));
    for key in 0..100 {
        assert_eq!(texts(&table.get(format!("k{key}")).await.unwrap()), ["v"]);
        assert_eq!(client.get(format!("r{key}")).await, Ok((1, Some("w".into()))));
    }
}

/// The source that is copied first has an earlier state of a key than the second one.
#[tokio::test(start_paused = true)]
async fn a_rebuilt_node_has_the_merge_of_its_sources() {
    let mut cluster = Cluster::new().await;
    let before = cluster.strict(0).put_blind("twice", "u").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.network.isolate(1);
    let mut near = TableConfig::with_replicas(NODES);
    near.local = Some(NODES[2]);
    cluster.hosts[2].table(near).put("twice", before.context(), "v").await.unwrap();
    cluster.network.heal();
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.lose(2).await;
    let lost = &cluster.hosts[2];
    assert_eq!(lost.node.rebuild(&lost.link).await, Ok(()));
    let key = [Bytes::from_static(b"ttwice")];
    let [first, second, rebuilt] = [0, 1, 2].map(|at: usize| cluster.hosts[at].store.get(&key));
    let (first, second) = (first.await, second.await);
    assert_ne!(first, second, "the sources differ");
    assert_eq!(rebuilt.await, second);
}

/// A page of a copy has more keys than the node takes requests at once.
#[tokio::test(start_paused = true)]
async fn a_lost_node_that_takes_few_requests_at_once_is_rebuilt() {
    let cluster = Cluster::new().await;
    for key in 0..300 {
        cluster.strict(0).put_blind(format!("k{key}"), "v").await.unwrap();
    }
    let mut config = node_config();
    config.max_requests = 64;
    cluster.hosts[2].net.leave();
    let store = Arc::new(MemoryStore::new());
    let node = Node::start_lost(3, store.clone(), config).await.unwrap();
    let lost = Host::new(cluster.network.join(3), store, node);
    assert_eq!(lost.node.rebuild(&lost.link).await, Ok(()));
    assert!(lost.node.is_whole());
    assert_eq!(lost.store.scan(b"t", b"", usize::MAX).await.unwrap().len(), 300);
}

#[tokio::test(start_paused = true)]
async fn tombstones_go_when_every_replica_has_them_and_stay_gone() {
    let mut cluster = Cluster::new().await;
    let table = cluster.strict(0);
    for key in 0..20 {
        let state = table.put_blind(format!("k{key}"), "v").await.unwrap();
        if key < 10 {
            table.delete(format!("k{key}"), state.context()).await.unwrap();
        }
    }
    let records = |host: &Host| {
        let store = Arc::clone(&host.store);
        async move { store.scan(b"t", b"", 1 << 20).await.unwrap().len() }
    };
    cluster.network.isolate(3);
    let own = &cluster.hosts[0];
    let error = own.node.collect_tombstones(&own.link).await.unwrap_err();
    assert_eq!(error, CollectError::Unacknowledged { replica: 3 });
    assert_eq!(records(own).await, 20, "nothing is dropped while a replica is away");
    cluster.network.heal();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(own.node.collect_tombstones(&own.link).await, Ok(10));
    for host in &cluster.hosts {
        assert_eq!(records(host).await, 10, "{:?}", host.node);
    }
    assert_eq!(own.node.collect_tombstones(&own.link).await, Ok(0));
    // A client with an old epoch goes on, and a key that is written anew is there.
    let old = cluster.strict(1);
    assert!(table.get("k3").await.unwrap().is_empty());
    table.put_blind("k3", "again").await.unwrap();
    assert_eq!(texts(&old.get("k3").await.unwrap()), ["again"]);
    let held = || cluster.hosts[0].node.tombstone_stats().held;
    let seen = table.get("k3").await.unwrap();
    table.delete("k3", seen.context()).await.unwrap();
    assert_eq!(held(), 1);
    table.put_blind("k3", "anew").await.unwrap();
    assert_eq!(held(), 0);
    // A node that is lost afterwards learns the epoch before it merges anything.
    cluster.lose(2).await;
    let lost = &cluster.hosts[2];
    let own = &cluster.hosts[0];
    let error = own.node.collect_tombstones(&own.link).await.unwrap_err();
    assert_eq!(error, CollectError::Unacknowledged { replica: 3 });
    lost.node.rebuild(&lost.link).await.unwrap();
    assert!(lost.node.is_whole());
    assert_eq!(records(lost).await, 11);
}

/// A link without a network.
struct Direct {
    nodes: Vec<Node>,
}

#[async_trait]
impl Link for Direct {
    async fn call(&self, to: u64, _: Class, bytes: Bytes, _: Instant) -> Result<Bytes, CallError> {
        let node = self.nodes.iter().find(|node| node.id() == to).ok_or(CallError::NotSent)?;
        node.answer(bytes).await.ok_or(CallError::Unknown)
    }
}

/// A link that does not carry some of the requests.
struct Without {
    link: Arc<dyn Link>,
    is_lost: fn(u64, &Bytes) -> bool,
}

#[async_trait]
impl Link for Without {
    async fn call(
        &self,
        to: u64,
        class: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if (self.is_lost)(to, &request) {
            return Err(CallError::NotSent);
        }
        self.link.call(to, class, request, deadline).await
    }
}

/// Leaves so many tombstones.
async fn delete_keys(table: &Table, count: u64) {
    let seen: VersionVector = [Dot::new(Actor::new(99, 1), 1)].into_iter().collect();
    for key in 0..count {
        table.delete(format!("k{key}"), &seen).await.unwrap();
    }
}

/// riak_kv: what is deleted faster than it is collected fills memory and disk.
#[tokio::test(start_paused = true)]
async fn more_tombstones_than_are_collected_together_go_in_one_call() {
    let cluster = Cluster::new().await;
    delete_keys(&cluster.strict(0), 1_300).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let own = &cluster.hosts[0];
    assert_eq!(own.node.tombstone_stats().held, 1_300);
    let slow = Duration::from_millis(20);
    cluster.network.set_all_faults(Faults::delay(slow, slow));
    let began = Instant::now();
    assert_eq!(own.node.collect_tombstones(&own.link).await, Ok(1_300));
    // One request after the other would take 300 s.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(own.node.tombstone_stats().dropped, 1_300);
    for host in &cluster.hosts {
        assert_eq!(host.node.tombstone_stats().held, 0, "{:?}", host.node);
        assert!(host.store.scan(b"t", b"", 1 << 20).await.unwrap().is_empty());
    }
}

/// A collection with a slow replica takes minutes. A write that was missed meanwhile does not wait
/// for its end.
#[tokio::test(start_paused = true)]
async fn hints_do_not_wait_for_a_collection() {
    let mut cluster = Cluster::new().await;
    delete_keys(&cluster.strict(0), 1_000).await;
    cluster.hosts[0].net.leave();
    let mut config = node_config();
    config.collect_every = Some(Duration::from_millis(1));
    let store = Arc::clone(&cluster.hosts[0].store);
    let node = Node::start(1, store.clone(), config).await.unwrap();
    cluster.hosts[0] = Host::new(cluster.network.join(1), store, node);
    let slow = Duration::from_millis(300);
    for (from, to) in [(1, 3), (3, 1)] {
        cluster.network.set_faults(from, to, Faults::delay(slow, slow));
    }
    let own = &cluster.hosts[0];
    own.node.maintain(&own.link);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let link = Arc::new(Without { link: Arc::clone(&own.link), is_lost: |to, _| to == 2 });
    let config = TableConfig::with_replicas(NODES);
    let table = Table::with_hints(config, link, &own.node).unwrap();
    table.put_blind("missed", "v").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(own.node.tombstone_stats().held, 1_000, "the collection is under way");
    assert_eq!(own.node.hint_stats().waiting, 0);
    let key = cluster.hosts[1].store.get(&["tmissed".into()]).await.unwrap();
    assert!(key[0].is_some(), "node 2 was handed the key");
}

/// A message that is lost keeps the tombstone of its replica, which another collection drops.
#[tokio::test(start_paused = true)]
async fn a_replica_that_was_not_told_to_drop_a_tombstone_collects_it() {
    let cluster = Cluster::new().await;
    delete_keys(&cluster.strict(0), 3).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let own = &cluster.hosts[0];
    let is_lost = |to: u64, request: &Bytes| (to, request[1]) == (3, FORGET);
    let link: Arc<dyn Link> = Arc::new(Without { link: Arc::clone(&own.link), is_lost });
    assert_eq!(own.node.collect_tombstones(&link).await, Ok(3));
    let held = || [0, 1, 2].map(|at| cluster.hosts[at].node.tombstone_stats().held);
    assert_eq!(held(), [0, 0, 3]);
    let last = &cluster.hosts[2];
    assert_eq!(last.node.collect_tombstones(&last.link).await, Ok(3));
    assert_eq!(held(), [0; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_session_reads_its_writes_at_any_level_and_passes_them_on() {
    let cluster = Cluster::new().await;
    let (near, far) = (cluster.weak(0), cluster.weak(2));
    let mut session = Session::new(&near, 2);
    cluster.network.isolate(3);
    session.put("k", "v1").await.unwrap();
    session.put("k", "v2").await.unwrap();
    assert_eq!(texts(&session.get("k").await.unwrap()), ["v2"]);
    session.put("l", "w").await.unwrap();
    let error = session.get("m").await.unwrap_err();
    assert_eq!(error, SessionError::Full { max: 2 });
    // Without the session, the replica that was away answers what it has.
    assert!(far.get("k").await.unwrap().is_empty());
    // With it, a read does not go back.
    let mut passed_on = Session::new(&far, 2);
    let token = SessionToken::decode(&session.token().encode()).unwrap();
    passed_on.add_token(&token).unwrap();
    let error = passed_on.get("k").await.unwrap_err();
    let is_behind = matches!(
        error,
        SessionError::Table(TableError::Failed(
            OperationError::Behind | OperationError::Unavailable { .. }
        ))
    );
    assert!(is_behind, "{error}");
    cluster.network.heal();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(texts(&passed_on.get("k").await.unwrap()), ["v2"]);
    let mut third = Session::new(&far, 1);
    assert_eq!(third.add_token(&token), Err(SessionError::Full { max: 1 }));
    assert!(third.token().is_empty(), "a part of a token is no token");
}

/// What a session has seen of a key is nowhere any more once its tombstone was collected.
#[tokio::test(start_paused = true)]
async fn a_session_reads_a_key_whose_tombstone_was_collected() {
    let cluster = Cluster::new().await;
    let table = cluster.strict(1);
    let mut session = Session::new(&table, 2);
    session.put("k", "v").await.unwrap();
    session.delete("k").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let own = &cluster.hosts[0];
    assert_eq!(own.node.collect_tombstones(&own.link).await, Ok(1));
    // Not while a replica is away that may have it.
    cluster.network.isolate(3);
    assert!(session.get("k").await.is_err());
    cluster.network.heal();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(session.get("k").await.unwrap().is_empty());
    assert!(session.seen(b"k").is_empty());
    session.put("k", "again").await.unwrap();
    assert_eq!(texts(&session.get("k").await.unwrap()), ["again"]);
}

#[tokio::test(start_paused = true)]
async fn a_level_that_breaks_the_promise_of_the_table_is_refused() {
    let cluster = Cluster::new().await;
    let table = cluster.strict(0);
    let error = table.get_at("k", Level::One, &VersionVector::new()).await.unwrap_err();
    assert!(matches!(error, TableError::Rejected(Rejected::Guarantee { .. })), "{error}");
}

/// Futures that are dropped at every point give back what they held.
#[tokio::test(start_paused = true)]
async fn a_dropped_operation_gives_back_its_place() {
    let cluster = Cluster::new().await;
    let mut config = TableConfig::with_replicas(NODES);
    config.max_operations = 3;
    let table = cluster.hosts[0].table(config);
    for micros in (0..5_000).step_by(250) {
        let wait = Duration::from_micros(micros);
        for _ in 0..3 {
            let _ = tokio::time::timeout(wait, table.get("k")).await;
        }
        assert_eq!(table.stats().operations, 0, "after {wait:?}");
        let _ = tokio::time::timeout(wait, table.put_blind("k", "v")).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(table.stats().operations, 0, "after {wait:?}");
        let seen = table.get("k").await.unwrap();
        table.delete("k", seen.context()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// A change that is dropped on its way takes its proposer with it; the next one has a session of
/// its own, and the register goes on.
#[tokio::test(start_paused = true)]
async fn a_dropped_change_leaves_the_register_usable() {
    let cluster = Cluster::new().await;
    let mut config = RegisterConfig::with_acceptors(NODES);
    config.max_changes = 1;
    let registers = Registers::new(9, config, cluster.client(9)).unwrap();
    for micros in (0..9_000).step_by(250) {
        let wait = Duration::from_micros(micros);
        let _ = tokio::time::timeout(wait, registers.put("k", "dropped")).await;
        let before = registers.get("k").await.unwrap();
        let outcome = registers.compare_and_set("k", before.0, Some("set".into())).await.unwrap();
        let version = before.0 + 1;
        assert_eq!(outcome, paxos::Outcome::Applied { version }, "{wait:?}");
    }
}

/// One slow replica of three costs the others nothing.
#[tokio::test(start_paused = true)]
async fn one_slow_replica_does_not_slow_the_table() {
    let cluster = Cluster::new().await;
    let mut config = TableConfig::with_replicas(NODES);
    config.hedge_after = Duration::from_millis(6);
    let table = cluster.hosts[0].table(config);
    let mut p99 = Vec::new();
    for is_slow in [false, true] {
        if is_slow {
            let slow = Faults::delay(Duration::from_millis(50), Duration::from_millis(52));
            cluster.network.set_faults(1, 3, slow);
        }
        let mut latencies = Vec::new();
        for key in 0..2_000 {
            let began = Instant::now();
            table.get(format!("k{}", key % 10)).await.unwrap();
            latencies.push(began.elapsed());
        }
        latencies.sort_unstable();
        p99.push(latencies[latencies.len() * 99 / 100]);
    }
    println!("p99 healthy {:?}, with a slow replica {:?}", p99[0], p99[1]);
    assert!(p99[1] <= p99[0].mul_f64(1.2), "{p99:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_is_one_node_s_and_is_not_begun_twice() {
    let store = Arc::new(MemoryStore::new());
    let config = node_config();
    let error = Node::start(1, store.clone(), config.clone()).await.unwrap_err();
    assert_eq!(error, StartError::Absent { node: 1 });
    drop(Node::create(1, store.clone(), config.clone()).await.unwrap());
    let error = Node::create(1, store.clone(), config.clone()).await.unwrap_err();
    assert_eq!(error, StartError::Exists { found: 1 });
    let error = Node::start(2, store.clone(), config.clone()).await.unwrap_err();
    assert_eq!(error, StartError::WrongNode { found: 1, node: 2 });
    // Whoever the configuration lists, the store says whose it is.
    let error = Node::start(4, store.clone(), config.clone()).await.unwrap_err();
    assert_eq!(error, StartError::WrongNode { found: 1, node: 4 });
    let empty = Arc::new(MemoryStore::new());
    let error = Node::create(4, empty, config.clone()).await.unwrap_err();
    assert!(matches!(error, StartError::Config(_)), "{error}");
    assert!(Node::start(1, store, config).await.unwrap().is_whole());
}

/// Bytes that are no request do nothing and stop nothing.
#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_request_are_dropped() {
    let cluster = Cluster::new().await;
    let node = &cluster.hosts[0].node;
    for len in 0..100 {
        assert_eq!(node.answer(Bytes::from(vec![1; len])).await, None);
    }
    cluster.strict(0).put_blind("k", "v").await.unwrap();
}

/// riak_kv #1094: a dot that was given out before a restart is not given out again.
#[tokio::test(start_paused = true)]
async fn a_restarted_node_goes_on_with_its_dots_and_its_promises() {
    let mut cluster = Cluster::new().await;
    let registers = |link| Registers::new(9, RegisterConfig::with_acceptors(NODES), link).unwrap();
    for round in 1..=5 {
        for at in 0..3 {
            cluster.weak(at).put_blind("k", format!("{round} {at}")).await.unwrap();
        }
        let client = registers(cluster.client(9));
        let outcome = client.compare_and_set("r", round - 1, Some("v".into())).await.unwrap();
        let applied = paxos::Outcome::Applied { version: round };
        assert_eq!(outcome, applied);
        for at in 0..3 {
            cluster.restart(at).await;
            assert!(cluster.hosts[at].node.is_whole());
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let found = cluster.strict(0).get("k").await.unwrap();
        assert_eq!(found.len() as u64, 3 * round, "each write has a dot of its own");
    }
}
