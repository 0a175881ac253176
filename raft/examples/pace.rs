//! How fast three nodes in this process are.
//!
//! ```text
//! cargo run --release --example pace -- memory|disk shared|own CLIENTS OPERATIONS
//! ```
//! `memory`: stores and network in memory. `disk`: a journal per node, real TCP on loopback.
//! `shared`: one multi-thread runtime for all. `own`: a current-thread runtime for each node, and
//! with `memory` one for everything.

#[path = "support/mod.rs"]
#[allow(dead_code, reason = "no example uses all of it")]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use voussoir_journal::{Config as JournalConfig, Journal};
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Config, LogStore, Raft, Role, Transport};

use self::support::{Counter, Failure};

async fn start(
    id: u64,
    store: Arc<dyn LogStore>,
    transport: Arc<dyn Transport>,
) -> Result<Raft, Failure> {
    let config = Config::new(id, vec![1, 2, 3]);
    Ok(Raft::start(config, store, Box::new(Counter(0)), transport).await?)
}

async fn memory() -> Result<Vec<Raft>, Failure> {
    let network = Network::new();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(start(id, Arc::new(MemoryStore::new()), network.node(id)).await?);
    }
    Ok(nodes)
}

async fn disk(id: u64, peers: voussoir_net::Peers) -> Result<Raft, Failure> {
    let folder = std::env::temp_dir().join(format!("voussoir-pace-{}-{id}", std::process::id()));
    let mut options = JournalConfig::default();
    options.max_bytes = 1 << 30;
    let journal = Journal::open(&folder, options)?;
    let identity = Identity { cluster: 1, node: id, group: 0 };
    let store = JournalStore::create(&journal, identity)?;
    let net = voussoir_net::Config::new(1);
    let listen = "127.0.0.1:0".parse()?;
    let tcp = voussoir_net::Tcp::bind(id, listen, Arc::new(peers.clone()), net).await?;
    peers.insert(id, tcp.address());
    start(id, Arc::new(store), Arc::new(NetTransport::new(Arc::new(tcp), 1)?)).await
}

async fn leader(nodes: &[Raft]) -> Raft {
    loop {
        for node in nodes {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
            if node.status().borrow().role == Role::Leader && node.read(deadline).await.is_ok() {
                return node.clone();
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Each client sends its next command when the last one has been answered.
async fn load(raft: Raft, clients: u64, operations: u64) -> Result<Vec<Duration>, Failure> {
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let raft = raft.clone();
        tasks.push(tokio::spawn(async move {
            let mut took = Vec::new();
            for _ in 0..operations / clients {
                let sent = Instant::now();
                raft.propose(Bytes::from_static(&[7; 100])).await?;
                took.push(sent.elapsed());
            }
            Ok::<_, Failure>(took)
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    all.sort_unstable();
    Ok(all)
}

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let word = |at: usize, default: &str| words.get(at).cloned().unwrap_or(default.to_owned());
    let (kind, layout) = (word(0, "memory"), word(1, "own"));
    let (clients, operations) = (word(2, "1").parse()?, word(3, "10000").parse()?);
    let current = || Builder::new_current_thread().enable_all().build();
    let client = if layout == "shared" {
        Builder::new_multi_thread().worker_threads(2).enable_all().build()?
    } else {
        current()?
    };
    let peers = voussoir_net::Peers::new();
    let mut nodes = Vec::new();
    match (kind.as_str(), layout.as_str()) {
        ("memory", _) => nodes = client.block_on(memory())?,
        (_, "shared") => {
            for id in 1..=3 {
                nodes.push(client.block_on(disk(id, peers.clone()))?);
            }
        }
        _ => {
            for id in 1..=3 {
                let runtime = current()?;
                nodes.push(runtime.block_on(disk(id, peers.clone()))?);
                run_forever(runtime);
            }
        }
    }
    let raft = client.block_on(leader(&nodes));
    client.block_on(load(raft.clone(), clients, operations / 10 + clients))?;
    let (cpu, began) = (cpu_time(), Instant::now());
    let took = client.block_on(load(raft.clone(), clients, operations))?;
    let (wall, cpu) = (began.elapsed(), cpu_time().saturating_sub(cpu));
    let (count, at) = (took.len() as f64, |part: f64| took[(took.len() as f64 * part) as usize]);
    println!(
        "{kind} {layout} clients={clients} {:.0}/s p50={:?} p99={:?} cpu/op={:.2}us {:?}",
        count / wall.as_secs_f64(),
        at(0.5),
        at(0.99),
        cpu.as_secs_f64() * 1e6 / count,
        raft.stats()
    );
    client.block_on(async {
        for node in &nodes {
            node.shutdown().await;
        }
    });
    Ok(())
}

fn run_forever(runtime: Runtime) {
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
}

/// User and system time of this process so far.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
