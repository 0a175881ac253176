//! The service on virtual time: three real nodes in one thread, with links that are cut and nodes
//! that are restarted. Clients record what they asked and were told; a checker then looks for an
//! order of all calls that explains every answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_sim::{History, Model, Rng, Situations, check};

use crate::client::{Added, Nodes, add};
use crate::counters::Add;
use crate::node::{self, NODES, Node};

/// What a run has to reach to prove anything.
static SITUATIONS: [&str; 6] = [
    "leader cut off",
    "leader that hears nobody",
    "node restarted",
    "snapshot received",
    "applied after an attempt of unknown outcome",
    "outcome unknown at the end",
];
const CLIENTS: u64 = 4;
const CALLS: u64 = 60;
const FAULTS: u64 = 20;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Op {
    Add { name: String, amount: i64 },
    Read { name: String },
}

/// The specification: a counter, one call after the other.
struct Counting;

impl Model for Counting {
    type Op = Op;
    type Ret = i64;
    type Key = String;
    type State = i64;

    fn key(&self, op: &Op) -> String {
        match op {
            Op::Add { name, .. } | Op::Read { name } => name.clone(),
        }
    }

    fn init(&self, _name: &String) -> i64 {
        0
    }

    fn step(&self, state: &i64, op: &Op, ret: Option<&i64>) -> Option<i64> {
        let next = match op {
            Op::Add { amount, .. } => state + amount,
            Op::Read { .. } => *state,
        };
        ret.is_none_or(|seen| *seen == next).then_some(next)
    }

    fn is_read(&self, op: &Op, _ret: &i64) -> bool {
        matches!(op, Op::Read { .. })
    }
}

/// The nodes, what their disks hold, and the network between them.
struct World {
    network: Network,
    disks: BTreeMap<u64, MemoryStore>,
    nodes: Nodes,
    seed: u64,
}

impl World {
    async fn start(&self, id: u64) {
        let mut config = node::config(id);
        config.seed = Some(self.seed * 10 + id);
        // Shorter than a fault: the outcome of an attempt is unknown while the fault lasts.
        config.proposal_timeout = Duration::from_millis(200);
        config.snapshot_after_entries = 20;
        config.keep_entries = 5;
        let log = Arc::new(self.disks[&id].clone());
        let node = Node::start(config, log, self.network.node(id)).await.unwrap();
        self.nodes.lock().insert(id, node);
    }

    /// One fault, for a while.
    async fn fault(&self, random: &mut Rng, situations: &Situations) {
        let leader = self.nodes.lock()[&1].raft.status().borrow().leader;
        let any = NODES[random.below(3) as usize];
        let id = leader.unwrap_or(any);
        let pause = Duration::from_millis(random.between(50, 1500));
        match random.below(3) {
            0 => {
                situations.add("leader cut off", u64::from(leader.is_some()));
                self.network.isolate(id, NODES);
                sleep(pause).await;
                self.network.heal();
            }
            1 => {
                // Its entries arrive and their acknowledgements do not: the next leader commits
                // what this one never answered.
                situations.add("leader that hears nobody", u64::from(leader.is_some()));
                NODES.iter().filter(|peer| **peer != id).for_each(|p| self.network.cut(*p, id));
                sleep(pause).await;
                self.network.heal();
            }
            _ => {
                let node = self.nodes.lock().remove(&any);
                if let Some(node) = node {
                    node.raft.shutdown().await;
                }
                sleep(pause).await;
                self.start(any).await;
                situations.reached("node restarted");
            }
        }
        sleep(Duration::from_millis(300)).await;
    }
}

async fn run_client(
    id: u64,
    seed: u64,
    nodes: Nodes,
    history: Arc<Mutex<History<Op, i64>>>,
    situations: Arc<Situations>,
) {
    let mut random = Rng::stream(seed, id);
    let epoch = Instant::now();
    let now = || epoch.elapsed().as_nanos() as u64;
    for request in 1..=CALLS {
        let name = format!("counter {}", random.below(3));
        if random.below(2) == 0 {
            let node = nodes.lock().get(&NODES[random.below(3) as usize]).cloned();
            let Some(node) = node else { continue };
            let call = history.lock().invoke(id, Op::Read { name: name.clone() }, now());
            match node.value(&name).await {
                Ok(value) => history.lock().ok(call, value, now()),
                Err(_) => history.lock().fail(call, now()),
            };
        } else {
            let amount = random.between(1, 1000) as i64;
            let call = history.lock().invoke(id, Op::Add { name: name.clone(), amount }, now());
            let command = Add { name, amount, client: id, request };
            let deadline = Instant::now() + Duration::from_millis(random.between(20, 8000));
            let added = add(&nodes, &command, deadline).await.unwrap();
            match added {
                Added::Done { value, unknown_attempts } => {
                    let is_retry = u64::from(unknown_attempts > 0);
                    situations.add("applied after an attempt of unknown outcome", is_retry);
                    history.lock().ok(call, value, now())
                }
                Added::NotApplied => history.lock().fail(call, now()),
                Added::Unknown => {
                    situations.reached("outcome unknown at the end");
                    history.lock().unknown(call, now())
                }
            };
        }
        sleep(Duration::from_millis(random.below(200))).await;
    }
}

async fn run(seed: u64, situations: &Arc<Situations>) {
    let disks = NODES.map(|id| (id, MemoryStore::new())).into();
    let world = World { network: Network::new(), disks, nodes: Nodes::default(), seed };
    for id in NODES {
        world.start(id).await;
    }
    let history = Arc::new(Mutex::new(History::new()));
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|id| {
            let (nodes, history) = (Arc::clone(&world.nodes), Arc::clone(&history));
            tokio::spawn(run_client(id, seed, nodes, history, Arc::clone(situations)))
        })
        .collect();
    let mut random = Rng::stream(seed, 0);
    for _ in 0..FAULTS {
        world.fault(&mut random, situations).await;
        let nodes = world.nodes.lock().clone();
        let received = nodes.values().map(|node| node.raft.stats().snapshots_received);
        situations.add("snapshot received", received.sum());
    }
    for client in clients {
        client.await.unwrap();
    }
    let checked = check(&Counting, &history.lock(), 10_000_000);
    assert!(checked.is_ok(), "seed {seed}: {checked:?}\n{:#?}", history.lock().calls());
}

#[test]
fn every_addition_counts_once_whatever_happens() {
    let situations = Arc::new(Situations::new(&SITUATIONS));
    for seed in 1..=20 {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(seed, &situations));
    }
    println!("{situations}");
    situations.assert_all_reached();
}
