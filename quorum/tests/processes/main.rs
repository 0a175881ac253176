//! Three nodes as processes over TCP, each with a journal on a real disk, killed without warning
//! and started again, cut off and replaced while clients work. The history of the registers must be
//! linearizable, and no acknowledged write of the table may be missing.
//!
//! A node's process is this test binary, told by its environment to be one.

#[path = "../history/mod.rs"]
mod history;
mod proxy;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use self::history::{Known, ask, record};
use self::proxy::Proxy;
use std::sync::Mutex;
use voussoir_journal::Journal;
use voussoir_net::{Peers, Tcp};
use voussoir_quorum::paxos::{Outcome, Token};
use voussoir_quorum::store::JournalStoreConfig;
use voussoir_quorum::table::TableConfig;
use voussoir_quorum::*;
use voussoir_sim::{History, Kv, KvOp, KvRet, Rng, check};

const SERVICE: u16 = 7;
const NODES: [u64; 3] = [1, 2, 3];
/// With the node that takes another one's place.
const ALL: [u64; 4] = [1, 2, 3, 4];
const ID: &str = "VOUSSOIR_QUORUM_NODE";
/// How often a node compares itself with the others; 0: never.
const REPAIR_MS: &str = "VOUSSOIR_QUORUM_REPAIR_MS";

fn net_config() -> voussoir_net::Config {
    voussoir_net::Config::new(0x51)
}

fn peers(addresses: &[SocketAddr]) -> Peers {
    let peers = Peers::new();
    for (id, address) in ALL.iter().zip(addresses) {
        peers.insert(*id, *address);
    }
    peers
}

/// The process of a node: runs until it is killed.
#[test]
fn a_node_when_the_environment_says_so() {
    let Ok(id) = std::env::var(ID) else { return };
    let id: u64 = id.parse().unwrap();
    let variable = |name: &str| std::env::var(name).unwrap();
    let addresses = variable("VOUSSOIR_QUORUM_ADDRESSES");
    let addresses: Vec<SocketAddr> = addresses.split(',').map(|a| a.parse().unwrap()).collect();
    let dir = PathBuf::from(variable("VOUSSOIR_QUORUM_DIR")).join(id.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let mut config = voussoir_journal::Config::default();
        config.segment_bytes = 8 << 20;
        let journal = Journal::open(dir, config).unwrap();
        let store =
            Arc::new(JournalStore::open(&journal, 1, JournalStoreConfig::default()).unwrap());
        let mut config = NodeConfig::with_replicas(NODES);
        config.maintain_every = Duration::from_millis(100);
        let repair_ms: u64 = variable(REPAIR_MS).parse().unwrap();
        config.repair_every = (repair_ms > 0).then(|| Duration::from_millis(repair_ms));
        let begun = if NODES.contains(&id) {
            Node::create(id, store.clone(), config.clone()).await
        } else {
            Node::join(id, store.clone(), config.clone()).await
        };
        let node = match begun {
            Err(StartError::Exists { .. }) => Node::start(id, store, config).await,
            node => node,
        };
        let node = node.unwrap();
        let is_known = NODES.contains(&id);
        assert!(node.is_whole() || !is_known, "a kill loses nothing that was synced");
        let address = addresses[ALL.iter().position(|node| *node == id).unwrap()];
        let peers = Arc::new(peers(&addresses));
        let net = Arc::new(Tcp::bind(id, address, peers, net_config()).await.unwrap());
        let link: Arc<dyn Link> = NetLink::serve(net, SERVICE, node.clone()).unwrap();
        node.maintain(&link);
        let dir = PathBuf::from(variable("VOUSSOIR_QUORUM_DIR"));
        // Ends: with the process. An operator's word is a file.
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let Ok(order) = std::fs::read_to_string(dir.join(format!("{id}.order"))) else {
                continue;
            };
            let ids: Vec<u64> = order.split(' ').map(|id| id.parse().unwrap()).collect();
            let replace = MemberChange::Replace { old: ids[0], new: ids[1] };
            let after = node.reconfigure(&link, replace, Duration::from_secs(2)).await;
            if let Ok(after) = after {
                std::fs::write(dir.join(format!("{id}.done")), after.epoch().to_string()).unwrap();
                std::fs::remove_file(dir.join(format!("{id}.order"))).unwrap();
            }
        }
    });
}

/// Processes that are killed when the test ends, however it ends.
struct Processes {
    dir: PathBuf,
    addresses: Vec<SocketAddr>,
    repair_ms: u64,
    children: Vec<Child>,
}

impl Processes {
    fn start(repair_ms: u64) -> Self {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let count = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("voussoir-quorum-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let addresses = free_addresses();
        let children = NODES.iter().map(|id| spawn(*id, &dir, &addresses, repair_ms)).collect();
        Self { dir, addresses, repair_ms, children }
    }

    fn kill(&mut self, at: usize) {
        self.children[at].kill().unwrap();
        self.children[at].wait().unwrap();
    }

    fn restart(&mut self, at: usize) {
        self.children[at] = spawn(NODES[at], &self.dir, &self.addresses, self.repair_ms);
    }

    /// The fourth node, which is no replica yet.
    fn join(&mut self) {
        self.children.push(spawn(ALL[3], &self.dir, &self.addresses, self.repair_ms));
    }

    /// Tells a node to replace one replica by another, and waits until it has.
    async fn replace(&self, at: u64, old: u64, new: u64) {
        // Written under another name first: the node reads all of it or nothing.
        let draft = self.dir.join("draft");
        std::fs::write(&draft, format!("{old} {new}")).unwrap();
        std::fs::rename(draft, self.dir.join(format!("{at}.order"))).unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(60);
        // Ends: at the latest after a minute.
        while !self.dir.join(format!("{at}.done")).exists() {
            assert!(std::time::Instant::now() < until, "the change has not ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Addresses that nobody else gets while no process listens there: a node that was killed, or has
/// not begun, leaves its port to whoever asks the system for one. On Linux each node has a loopback
/// address of its own, and whoever asks for a port of 127.0.0.1 gets none of those.
fn free_addresses() -> Vec<SocketAddr> {
    static STARTED: AtomicU64 = AtomicU64::new(0);
    let first = STARTED.fetch_add(1, Ordering::Relaxed) * ALL.len() as u64;
    let process = std::process::id();
    let host = |at: u64| {
        if !cfg!(target_os = "linux") {
            return Ipv4Addr::LOCALHOST;
        }
        let [_, high, middle, low] = (process << 5).to_be_bytes();
        // Eight starts of four nodes in each process.
        Ipv4Addr::new(127, high.max(1), middle, low | ((first + at) % 32) as u8)
    };
    let listen = |at: usize| TcpListener::bind((host(at as u64), 0)).unwrap();
    let listeners: Vec<_> = (0..ALL.len()).map(listen).collect();
    listeners.iter().map(|one| one.local_addr().unwrap()).collect()
}

fn spawn(id: u64, dir: &Path, addresses: &[SocketAddr], repair_ms: u64) -> Child {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    std::fs::create_dir_all(dir).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["a_node_when_the_environment_says_so", "--exact", "--nocapture"])
        .env(ID, id.to_string())
        .env(REPAIR_MS, repair_ms.to_string())
        .env("VOUSSOIR_QUORUM_DIR", dir)
        .env("VOUSSOIR_QUORUM_ADDRESSES", addresses.join(","))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What all clients share.
struct World {
    /// Of the registers.
    keys: u8,
    began: std::time::Instant,
    history: Mutex<History<KvOp<u8, u64>, KvRet<u64>>>,
    next_value: AtomicU64,
    is_over: AtomicBool,
    resolved: AtomicU64,
    /// Keys of the table, with the value whose write was acknowledged.
    acknowledged: Mutex<BTreeMap<String, String>>,
}

impl World {
    fn new(keys: u8) -> Arc<Self> {
        Arc::new(Self {
            keys,
            began: std::time::Instant::now(),
            history: Mutex::new(History::new()),
            next_value: AtomicU64::new(1),
            is_over: AtomicBool::new(false),
            resolved: AtomicU64::new(0),
            acknowledged: Mutex::default(),
        })
    }

    /// How many operations have ended well.
    fn done(&self) -> u64 {
        self.history.lock().unwrap().outcomes().0
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}

async fn link(id: u64, addresses: &[SocketAddr]) -> Arc<dyn Link> {
    let address = "127.0.0.1:0".parse().unwrap();
    let net = Tcp::bind(id, address, Arc::new(peers(addresses)), net_config()).await.unwrap();
    NetLink::client(Arc::new(net), SERVICE)
}

/// Asks until there is an answer: the change was made, or never will be.
async fn resolve(registers: &Registers, key: u8, token: Token) -> Option<Outcome> {
    // Ends: a majority comes back.
    loop {
        match registers.resolve(vec![key], token).await {
            Ok(outcome) => return Some(outcome),
            Err(RegisterError::Forgotten) => return None,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn register_client(id: u64, world: Arc<World>, link: Arc<dyn Link>) {
    let mut config = RegisterConfig::with_acceptors(NODES);
    // As many changes of three keys as are made while one of unknown outcome is resolved.
    config.proposer.max_tokens = 512;
    let registers = Registers::new(id, config, link).unwrap();
    let mut rng = Rng::new(id);
    let mut known = Known::new();
    while !world.is_over.load(Ordering::Relaxed) {
        let key = rng.below(world.keys.into()) as u8;
        let value = world.next_value.fetch_add(1, Ordering::Relaxed);
        let (expected, expect) = known.get(&key).copied().unwrap_or((0, None));
        let op = match rng.below(4) {
            0 => KvOp::Get { key },
            1 => KvOp::Put { key, value },
            _ => KvOp::Cas { key, expect, value },
        };
        let call = world.history.lock().unwrap().invoke(id, op.clone(), world.now());
        let result = ask(&registers, &op, expected).await;
        let outcome = match result {
            Err(RegisterError::Unknown(token)) => {
                world.resolved.fetch_add(1, Ordering::Relaxed);
                match resolve(&registers, key, token).await {
                    None => {
                        world.history.lock().unwrap().unknown(call, world.now());
                        continue;
                    }
                    // Resolved as not made: it never will be.
                    Some(Outcome::NotApplied { .. }) => None,
                    outcome => outcome,
                }
            }
            result => result.ok(),
        };
        let mut history = world.history.lock().unwrap();
        record(&mut history, world.now(), call, &op, outcome, &mut known);
    }
}

async fn table_client(id: u64, world: Arc<World>, link: Arc<dyn Link>) {
    let table = Table::new(TableConfig::with_replicas(NODES), link).unwrap();
    let mut count = 0;
    while !world.is_over.load(Ordering::Relaxed) {
        count += 1;
        let (key, value) = (format!("{id}-{}", count % 500), format!("{id}-{count}"));
        let Ok(seen) = table.get(key.clone()).await else { continue };
        // The key's only client sees its last acknowledged write, or a later one of its own.
        if let Some(last) = world.acknowledged.lock().unwrap().get(&key) {
            let number = |text: &str| -> u64 { text.rsplit('-').next().unwrap().parse().unwrap() };
            let found = seen.values().map(|value| std::str::from_utf8(value).unwrap());
            let newest = found.map(number).max();
            assert!(newest >= Some(number(last)), "{key}: {newest:?}, acknowledged {last}");
        }
        if table.put(key.clone(), seen.context(), value.clone()).await.is_ok() {
            world.acknowledged.lock().unwrap().insert(key, value);
        }
    }
}

#[test]
fn processes_that_are_killed_lose_nothing_and_stay_linearizable() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let kills: u64 = std::env::var("VOUSSOIR_KILLS").map_or(10, |n| n.parse().unwrap());
    let mut processes = Processes::start(0);
    let world = World::new(3);
    let clients = clients_of(&world, &processes).await;
    let mut rng = Rng::new(kills);
    // Until the nodes answer for the first time; ends: they were started.
    while world.done() < 10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(200 + rng.below(300))).await;
        let at = rng.below(3) as usize;
        processes.kill(at);
        tokio::time::sleep(Duration::from_millis(rng.below(400))).await;
        processes.restart(at);
    }
    tokio::time::sleep(Duration::from_millis(800)).await;
    finish(&world, clients, 500).await;
}

/// Clients of the registers and of the table.
async fn clients_of(world: &Arc<World>, processes: &Processes) -> Vec<tokio::task::JoinHandle<()>> {
    let mut clients = Vec::new();
    for id in 100..104 {
        let link = link(id, &processes.addresses).await;
        clients.push(tokio::spawn(register_client(id, Arc::clone(world), link)));
    }
    for id in 200..202 {
        let link = link(id, &processes.addresses).await;
        clients.push(tokio::spawn(table_client(id, Arc::clone(world), link)));
    }
    clients
}

/// Ends the clients, and checks what they have seen.
async fn finish(world: &World, clients: Vec<tokio::task::JoinHandle<()>>, min_done: u64) {
    world.is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let history = world.history.lock().unwrap();
    let (ok, failed, unknown) = history.outcomes();
    let resolved = world.resolved.load(Ordering::Relaxed);
    let keys = world.acknowledged.lock().unwrap().len();
    println!("{ok} done, {failed} failed, {unknown} unknown, {resolved} resolved, {keys} keys");
    assert!(ok > min_done && keys > 100, "{ok} operations, {keys} keys");
    assert!(unknown * 20 <= ok + failed, "{unknown} unknown");
    if let Err(error) = check::<Kv<u8, u64>>(&Kv::new(), &history, 50_000_000) {
        panic!("{error}\n{}", history.to_json_lines());
    }
}

/// A replica dies for good and another one takes its place while clients work; then the new one is
/// needed for every quorum, and the old one comes back with its disk.
#[test]
fn a_replica_is_replaced_under_load() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut processes = Processes::start(200);
        let world = World::new(3);
        let clients = clients_of(&world, &processes).await;
        // Ends: the nodes were started.
        while world.done() < 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        processes.kill(2);
        processes.join();
        let before = world.done();
        processes.replace(1, 3, 4).await;
        println!("{} operations while the replica was replaced", world.done() - before);
        // The replicas 2 and 4 are a majority of the new set, and of no other.
        processes.kill(0);
        for until in [world.done() + 200, world.done() + 400] {
            // Ends: two of three replicas are there.
            while world.done() < until {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if processes.children[2].try_wait().unwrap().is_some() {
                processes.restart(2);
            }
        }
        processes.restart(0);
        finish(&world, clients, 500).await;
    });
}

/// Real processes, killed and cut off all along. `VOUSSOIR_OPERATIONS` is how many operations must
/// end well; 100000 is the long form.
#[test]
fn histories_with_kills_and_partitions_are_linearizable() {
    let operations: u64 =
        std::env::var("VOUSSOIR_OPERATIONS").map_or(2_000, |n| n.parse().unwrap());
    let (min_kills, min_cuts) = if operations >= 100_000 { (10, 10) } else { (3, 3) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut processes = Processes::start(1_000);
        let world = World::new(200);
        let (mut clients, mut proxies) = (Vec::new(), Vec::new());
        for id in 100..112 {
            let own: Vec<Proxy> =
                processes.addresses[..3].iter().map(|to| Proxy::start(*to)).collect();
            let addresses: Vec<_> = own.iter().map(|proxy| proxy.address).collect();
            let link = link(id, &addresses).await;
            clients.push(tokio::spawn(register_client(id, Arc::clone(&world), link)));
            proxies.push(own);
        }
        let (mut rng, mut kills, mut cuts) = (Rng::new(operations), 0, 0);
        // Until the nodes answer for the first time; ends: they were started.
        while world.done() < 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let share = operations / (min_kills + min_cuts + 1);
        // Ends: faults are short, and a majority works between them.
        while world.done() < operations || kills < min_kills || cuts < min_cuts {
            let pause = world.done() + share.min(3_000);
            while world.done() < pause {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if kills <= cuts {
                kills += 1;
                let at = rng.below(3) as usize;
                processes.kill(at);
                tokio::time::sleep(Duration::from_millis(rng.below(400))).await;
                processes.restart(at);
                continue;
            }
            cuts += 1;
            // Each client loses other nodes: some a minority, some all.
            let is_reset = rng.chance(500_000);
            for own in &proxies {
                let far = rng.below(4);
                own.iter().filter(|_| rng.below(4) < far).for_each(|proxy| proxy.cut(is_reset));
            }
            tokio::time::sleep(Duration::from_millis(100 + rng.below(400))).await;
            proxies.iter().flatten().for_each(Proxy::mend);
        }
        world.is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }
        let history = world.history.lock().unwrap();
        let (ok, failed, unknown) = history.outcomes();
        let (all, resolved) = (ok + failed + unknown, world.resolved.load(Ordering::Relaxed));
        let seconds = world.began.elapsed().as_secs();
        println!(
            "{all} operations in {seconds} s: {ok} done, {failed} without effect, {unknown} \
             unknown, {resolved} resolved; {kills} kills, {cuts} partitions"
        );
        assert!(ok >= operations && unknown * 20 <= all, "{ok} done, {unknown} unknown");
        if let Err(error) = check::<Kv<u8, u64>>(&Kv::new(), &history, 500_000_000) {
            panic!("{error}");
        }
    });
}

/// A page of a node's records, from the bytes of its answer.
fn page(answer: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    assert_eq!(answer[1], 13, "it is a page");
    let (mut at, mut records) = (16, Vec::new());
    // Ends: each turn takes a record.
    while at < answer.len() {
        let key_bytes = usize::from(u16::from_le_bytes(answer[at..at + 2].try_into().unwrap()));
        let key = answer[at + 2..at + 2 + key_bytes].to_vec();
        at += 2 + key_bytes;
        let bytes = u32::from_le_bytes(answer[at..at + 4].try_into().unwrap()) as usize;
        records.push((key, answer[at + 4..at + 4 + bytes].to_vec()));
        at += 4 + bytes;
    }
    records
}

/// What a node holds: the records of its table, and what its acceptors have accepted. None: it
/// does not answer.
async fn records(link: &Arc<dyn Link>, node: u64) -> Option<BTreeMap<(u8, Vec<u8>), Vec<u8>>> {
    let mut found = BTreeMap::new();
    for space in [1_u8, 2] {
        let mut after = Vec::new();
        // Ends: each page moves on; the last one is empty.
        loop {
            let mut scan = vec![1, 8, 0, 0];
            scan.extend_from_slice(&(Class::MAX_BULK_BYTES as u32).to_le_bytes());
            scan.extend_from_slice(&[0; 8]);
            scan.push(space);
            scan.extend_from_slice(&(after.len() as u16).to_le_bytes());
            scan.extend_from_slice(&after);
            let deadline = Instant::now() + Duration::from_secs(1);
            let answer = link.call(node, Class::Bulk, scan.into(), deadline).await.ok()?;
            let page = page(&answer);
            let Some((last, _)) = page.last() else { break };
            after.clone_from(last);
            for (key, record) in page {
                // Acceptors may have promised different ballots: a head of 4 bytes, a ballot of 32.
                let from = if space == 2 { 36 } else { 0 };
                found.insert((space, key), record[from..].to_vec());
            }
        }
    }
    Some(found)
}

/// A replica that was away, with no hints at anybody, and keys that nobody reads.
#[test]
fn processes_that_were_away_are_repaired_without_hints() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut processes = Processes::start(300);
        let link = link(300, &processes.addresses).await;
        // A client outside keeps no hints.
        let table = Table::new(TableConfig::with_replicas(NODES), Arc::clone(&link)).unwrap();
        let config = RegisterConfig::with_acceptors(NODES);
        let registers = Registers::new(300, config, Arc::clone(&link)).unwrap();
        // Ends: the nodes were started.
        while registers.get("ready").await.is_err() || table.get("ready").await.is_err() {}
        processes.kill(2);
        for key in 0..300 {
            // Ends: two of three answer. A blind write that is tried again would be one more
            // sibling of what the disk of one replica has made durable late, up to the limit.
            loop {
                let Ok(seen) = table.get(format!("{key}")).await else { continue };
                if table.put(format!("{key}"), seen.context(), "v").await.is_ok() {
                    break;
                }
            }
        }
        for key in 0..100 {
            while registers.put(format!("{key}"), "v").await.is_err() {}
        }
        processes.restart(2);
        let until = std::time::Instant::now() + Duration::from_secs(60);
        // Ends: at the latest after a minute.
        loop {
            let mut found = Vec::new();
            for node in NODES {
                found.push(records(&link, node).await.unwrap_or_default());
            }
            if found.iter().all(|records| records.len() >= 400 && *records == found[0]) {
                break;
            }
            let counts: Vec<usize> = found.iter().map(BTreeMap::len).collect();
            assert!(std::time::Instant::now() < until, "{counts:?} of at least 400 records");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}
