//! Lives of groups whose data comes near a third of their journals: entries from 100 B to the
//! longest, of one length and mixed, in bursts and one by one, on machines that lose power and with
//! another user of the journal who takes all that is left.
//!
//! `VOUSSOIR_SEEDS` sets how many seeds are lived, `VOUSSOIR_SEED` lives one. Journals have threads
//! and run in real time, so a seed draws what happens and not the order of it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;
use voussoir_journal::Journal;
use voussoir_journal::files::crash::{CrashFiles, Loss};
use voussoir_raft::journal::JournalStore;
use voussoir_raft::memory::Network;
use voussoir_raft::{LogStore, Node, NodeConfig, ProposeError, Raft, Role};
use voussoir_sim::{Failure, Report, Rng, Runner, Situations};

use super::{Values, config, fill, give_back, identity, options};

/// How long a group may take nothing, with power and without another user. By the clock of the
/// machine, which may have much else to do.
const STANDSTILL: Duration = Duration::from_secs(120);

/// What a value takes beside its bytes.
const HEAD_BYTES: u64 = 64;

static SITUATIONS: [&str; 16] = [
    "one node",
    "three nodes",
    "several groups on a journal",
    "entries of one length",
    "entries of 100 B among large ones",
    "entries of more than an eighth of a segment",
    "entries of more than 256 KiB",
    "segments below 1 MiB",
    "data above nine tenths of a third of the journal",
    "keys deleted",
    "proposal rejected as busy",
    "snapshot taken",
    "snapshot of a peer installed",
    "process killed",
    "power lost",
    "another user took all the room",
];

/// What is drawn for one seed.
#[derive(Clone, Copy, Debug)]
struct Shape {
    nodes: u64,
    groups: u64,
    segment_bytes: u64,
    max_bytes: u64,
    /// The length of each value; `None`: from 100 B to `longest`.
    length: Option<u64>,
    longest: u64,
    /// What all values may take, at most a third of `max_bytes`.
    budget: u64,
    clients: u64,
    /// How many bytes are written.
    bytes: u64,
}

impl Shape {
    fn draw(rng: &mut Rng) -> Self {
        let nodes = if rng.chance(500_000) { 1 } else { 3 };
        let groups = *rng.pick(&[1, 1, 2, 5]).unwrap();
        let segment_bytes = *rng.pick(&[256 << 10, 512 << 10, 1 << 20, 2 << 20]).unwrap();
        let most = (64 << 20) / segment_bytes;
        let max_bytes = segment_bytes * rng.between(32, most.clamp(32, 48));
        let budget = max_bytes / 3 * rng.between(50, 100) / 100;
        // The longest command of a journal with such segments, and some entries fit.
        let longest = ((1 << 20) - 2048).min(segment_bytes / 4 - 4096).min(budget / 12);
        let lengths = [8 << 10, 64 << 10, 256 << 10, longest];
        let length = rng.chance(600_000).then(|| longest.min(*rng.pick(&lengths).unwrap()));
        let clients = rng.between(1, 20);
        let bytes = max_bytes * rng.between(10, 25) / 10;
        Self { nodes, groups, segment_bytes, max_bytes, length, longest, budget, clients, bytes }
    }
}

/// A machine, whether it runs or not.
struct Host {
    files: CrashFiles,
    journal: Option<Journal>,
    node: Option<Node>,
}

/// What the clients see.
struct Seen {
    /// By group: the replicas that run.
    replicas: Mutex<BTreeMap<u64, Vec<(Raft, Values)>>>,
    /// Bytes that values may still take.
    left: AtomicU64,
    /// Bytes that are still to be written.
    due: AtomicU64,
    busy: AtomicU64,
    /// Since when no group has reason to take nothing.
    clear: Mutex<Instant>,
}

struct Life<'a> {
    seed: u64,
    shape: Shape,
    situations: &'a Situations,
    network: Network,
    hosts: Vec<Host>,
    seen: Arc<Seen>,
    /// Snapshots that replicas have taken whose lives have ended.
    taken: u64,
    /// Snapshots that they have received.
    received: u64,
}

/// What one client has written to a key of its own.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    number: u64,
    length: u64,
}

fn command(key: u64, number: u64, length: u64) -> Bytes {
    let mut command = BytesMut::with_capacity(length as usize + 16);
    command.put_u64_le(key);
    command.put_u64_le(number);
    command.resize(length as usize + 16, number as u8);
    command.freeze()
}

/// Writes until it is acknowledged.
async fn put(seen: &Seen, group: u64, key: u64, write: Written) -> Result<(), String> {
    let began = Instant::now();
    // Ends: by the stand-still, or when the write is taken.
    loop {
        let replicas = seen.replicas.lock().get(&group).cloned().unwrap_or_default();
        for (raft, _) in &replicas {
            if raft.status().borrow().role != Role::Leader {
                continue;
            }
            match raft.propose(command(key, write.number, write.length)).await {
                Ok(_) => return Ok(()),
                Err(ProposeError::Busy) => _ = seen.busy.fetch_add(1, Relaxed),
                Err(_) => {}
            }
        }
        let clear = seen.clear.lock().max(began);
        if clear.elapsed() > STANDSTILL {
            let all: Vec<_> =
                replicas.iter().map(|(raft, _)| raft.status().borrow().clone()).collect();
            return Err(format!("group {group} stands still: {all:#?}"));
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// One client with keys of its own. Returns what it has written to them, by group and key.
async fn client(
    seen: Arc<Seen>,
    shape: Shape,
    id: u64,
    mut rng: Rng,
) -> Result<BTreeMap<(u64, u64), Written>, String> {
    let mut written = BTreeMap::<(u64, u64), Written>::new();
    // As many keys of the mean length as would take the whole budget, and some more.
    let mean = shape.length.unwrap_or(shape.longest / 8) + HEAD_BYTES;
    let keys = (shape.budget / mean * 5 / 4 / shape.clients).max(2);
    while seen.due.load(Relaxed) > 0 {
        let burst = if rng.chance(200_000) { rng.between(2, 16) } else { 1 };
        let mut chosen = BTreeSet::new();
        for _ in 0..burst {
            let key = id + shape.clients * rng.below(keys);
            chosen.insert((1 + key % shape.groups, key));
        }
        let mut puts = JoinSet::new();
        for at in chosen {
            let old = written.get(&at).copied().unwrap_or_default();
            let length = if rng.chance(30_000) {
                0
            } else {
                shape.length.unwrap_or_else(|| rng.scaled(100, shape.longest))
            };
            let more =
                length.saturating_sub(old.length) + if old.number == 0 { HEAD_BYTES } else { 0 };
            let reserved = seen.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(more));
            let length = match reserved {
                Ok(_) => length,
                Err(_) if old.number == 0 => continue,
                Err(_) => old.length,
            };
            let new = Written { number: old.number + 1, length };
            let due = |due: u64| Some(due.saturating_sub(length + HEAD_BYTES));
            let _ = seen.due.fetch_update(Relaxed, Relaxed, due);
            let seen = Arc::clone(&seen);
            puts.spawn(async move {
                put(&seen, at.0, at.1, new).await?;
                seen.left.fetch_add(old.length.saturating_sub(length), Relaxed);
                Ok::<_, String>((at, new))
            });
        }
        if puts.is_empty() {
            // Others have all of the budget, and this one has drawn keys that it does not have.
            sleep(Duration::from_millis(1)).await;
        }
        while let Some(put) = puts.join_next().await {
            let (at, new) = put.expect("no put panics")?;
            written.insert(at, new);
        }
    }
    Ok(written)
}

impl<'a> Life<'a> {
    async fn begin(seed: u64, shape: Shape, situations: &'a Situations) -> Result<Self, String> {
        let seen = Seen {
            replicas: Mutex::default(),
            left: AtomicU64::new(shape.budget),
            due: AtomicU64::new(shape.bytes),
            busy: AtomicU64::new(0),
            clear: Mutex::new(Instant::now()),
        };
        let host = |at| Host { files: CrashFiles::new(seed * 8 + at), journal: None, node: None };
        let (network, hosts) = (Network::new(), (0..shape.nodes).map(host).collect());
        let seen = Arc::new(seen);
        let mut life =
            Self { seed, shape, situations, network, hosts, seen, taken: 0, received: 0 };
        for id in 1..=shape.nodes {
            life.start(id, true).await?;
        }
        Ok(life)
    }

    async fn start(&mut self, id: u64, is_new: bool) -> Result<(), String> {
        let host = &mut self.hosts[id as usize - 1];
        let mut options = options();
        options.segment_bytes = self.shape.segment_bytes;
        options.max_bytes = self.shape.max_bytes;
        let opened = Journal::open_with(host.files.mount(), options);
        let journal = opened.map_err(|error| format!("node {id}: {error}"))?;
        give_back(&journal);
        let node = Node::start(NodeConfig::default(), self.network.node(id)).unwrap();
        for group in 1..=self.shape.groups {
            let whose = identity(id, group);
            let store = if is_new {
                JournalStore::create(&journal, whose)
            } else {
                JournalStore::open(&journal, whose)
            };
            let store = store.map_err(|error| format!("node {id}, group {group}: {error}"))?;
            assert!(store.max_entry_bytes() as u64 >= self.shape.longest + 16, "as drawn");
            let mut config = config(id, self.shape.nodes, group);
            config.max_entry_bytes = config.max_entry_bytes.min(store.max_entry_bytes());
            config.seed = Some(self.seed * 64 + id * 8 + group);
            let values = Values::default();
            let machine = Box::new(values.clone());
            let started = node.start_group(config, Arc::new(store), machine).await;
            let raft = started.map_err(|error| format!("node {id}, group {group}: {error}"))?;
            self.seen.replicas.lock().entry(group).or_default().push((raft, values));
        }
        (host.journal, host.node) = (Some(journal), Some(node));
        *self.seen.clear.lock() = Instant::now();
        Ok(())
    }

    /// Ends the life of a node's process, whose replicas must not have ended before.
    async fn end(&mut self, id: u64, ends: impl Fn(&CrashFiles)) -> Result<(), String> {
        let host = &mut self.hosts[id as usize - 1];
        let node = host.node.take().expect("it runs");
        for replicas in self.seen.replicas.lock().values_mut() {
            for (raft, _) in replicas.extract_if(.., |(raft, _)| raft.status().borrow().id == id) {
                if let Some(reason) = raft.stopped() {
                    return Err(format!("node {id} has stopped by itself: {reason}"));
                }
                let stats = raft.stats();
                self.taken += stats.snapshots_taken;
                self.received += stats.snapshots_received;
            }
        }
        ends(&host.files);
        node.shutdown().await;
        // Where the process was killed it cannot close any more.
        let _ = host.journal.take().expect("it runs").close();
        Ok(())
    }

    async fn trouble(&mut self, rng: &mut Rng) -> Result<(), String> {
        let id = rng.between(1, self.shape.nodes);
        let pause = Duration::from_millis(rng.scaled(1, 300));
        match rng.below(3) {
            0 => {
                self.situations.reached("process killed");
                self.end(id, CrashFiles::kill).await?;
                sleep(pause).await;
                self.start(id, false).await?;
            }
            1 => {
                self.situations.reached("power lost");
                self.end(id, |files| files.power_loss(Loss::Any)).await?;
                sleep(pause).await;
                self.start(id, false).await?;
            }
            _ => {
                self.situations.reached("another user took all the room");
                let journal = self.hosts[id as usize - 1].journal.clone().expect("it runs");
                let task = move || {
                    fill(&journal);
                    std::thread::sleep(pause);
                    give_back(&journal);
                };
                tokio::task::spawn_blocking(task).await.map_err(|error| error.to_string())?;
                *self.seen.clear.lock() = Instant::now();
            }
        }
        Ok(())
    }

    /// What the journals hold, for whoever looks for what is wrong.
    fn journals(&self) -> String {
        let mut lines = Vec::new();
        for (id, host) in (1..).zip(&self.hosts) {
            let Some(journal) = &host.journal else { continue };
            lines.push(format!("node {id}: {:?}", journal.stats()));
            lines.extend(journal.logs().iter().map(|log| format!("  {log:?}")));
        }
        for (raft, _) in self.seen.replicas.lock().values().flatten() {
            lines.push(format!("{:?}\n  {:?}", *raft.status().borrow(), raft.stats()));
        }
        lines.join("\n")
    }

    /// What came of the life, beside what was reached on the way. `least`: of the budget.
    fn reached(&self, written: &BTreeMap<(u64, u64), Written>, least: u64) {
        let shape = &self.shape;
        let longest = written.values().map(|write| write.length).max().unwrap_or(0);
        let is_mixed = shape.length.is_none();
        let below = |bytes: u64| written.values().any(|write| (1..bytes).contains(&write.length));
        let of_third = shape.max_bytes / 3 - shape.budget + least;
        for (name, holds) in [
            ("one node", shape.nodes == 1),
            ("three nodes", shape.nodes == 3),
            ("several groups on a journal", shape.groups > 1),
            ("entries of one length", !is_mixed),
            ("entries of 100 B among large ones", is_mixed && below(1000) && longest > 100_000),
            ("entries of more than an eighth of a segment", longest > shape.segment_bytes / 8),
            ("entries of more than 256 KiB", longest > 256 << 10),
            ("segments below 1 MiB", shape.segment_bytes < 1 << 20),
            ("data above nine tenths of a third of the journal", of_third < shape.max_bytes / 30),
            ("keys deleted", written.values().any(|write| write.length == 0)),
            ("proposal rejected as busy", self.seen.busy.load(Relaxed) > 0),
            ("snapshot taken", self.taken > 0),
            ("snapshot of a peer installed", self.received > 0),
        ] {
            if holds {
                self.situations.reached(name);
            }
        }
    }

    /// Every replica holds of every key what was written to it last.
    async fn judge(&self, written: &BTreeMap<(u64, u64), Written>) -> Result<(), String> {
        let all = self.seen.replicas.lock().clone();
        for (group, replicas) in all {
            for (raft, values) in replicas {
                let id = raft.status().borrow().id;
                let began = Instant::now();
                // Ends: by the stand-still, or when a read is confirmed.
                while let Err(error) = raft.read((began + STANDSTILL).into()).await {
                    if began.elapsed() >= STANDSTILL || raft.stopped().is_some() {
                        return Err(format!("group {group}: node {id} answers no read: {error}"));
                    }
                }
                for (&(_, key), write) in written.iter().filter(|((of, _), _)| *of == group) {
                    let shown = values.written(key);
                    if shown != Some((write.number, write.length as usize)) {
                        return Err(format!(
                            "group {group}, key {key}: node {id} has {shown:?}, not {write:?}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

async fn live(seed: u64, situations: &Situations) -> Result<Report, String> {
    let mut rng = Rng::stream(seed, 1);
    let shape = Shape::draw(&mut rng);
    let named = |text: String| format!("{text}\n{shape:?}");
    let mut life = Life::begin(seed, shape, situations).await.map_err(named)?;
    let mut clients = JoinSet::new();
    for id in 0..shape.clients {
        let rng = Rng::stream(seed, 10 + id);
        clients.spawn(client(Arc::clone(&life.seen), shape, id, rng));
    }
    let (mut written, mut least) = (BTreeMap::new(), shape.budget);
    let mut troubles = rng.between(2, 12);
    // Ends: with the clients, each of which ends.
    loop {
        let pause = sleep(Duration::from_millis(rng.scaled(10, 2000)));
        tokio::select! {
            ended = clients.join_next() => match ended {
                Some(ended) => {
                    let ended = ended.expect("no client panics");
                    let told = |error| named(format!("{error}\n{}", life.journals()));
                    written.extend(ended.map_err(told)?);
                }
                None => break,
            },
            () = pause, if troubles > 0 => {
                troubles -= 1;
                life.trouble(&mut rng).await.map_err(named)?;
            }
        }
        least = least.min(life.seen.left.load(Relaxed));
    }
    life.judge(&written).await.map_err(named)?;
    // And once more from the disks alone.
    for id in 1..=shape.nodes {
        life.end(id, |_| ()).await.map_err(named)?;
    }
    for id in 1..=shape.nodes {
        life.start(id, false).await.map_err(named)?;
    }
    life.judge(&written).await.map_err(named)?;
    for id in 1..=shape.nodes {
        life.end(id, |_| ()).await.map_err(named)?;
    }
    life.reached(&written, least);
    Ok(Report::of(seed))
}

fn run(seed: u64, situations: &Situations) -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(live(seed, situations)).map_err(Failure::new)
}

#[test]
fn groups_live_on_journals_that_are_nearly_full() {
    let situations = Situations::new(&SITUATIONS);
    let command = "cargo test -p voussoir-raft --all-features --test room groups_live";
    // Lives wait for elections most of the time.
    let runner = Runner::new(command).seeds(24).twice(0).threads(NonZeroUsize::new(8).unwrap());
    let summary = runner.run(|seed| run(seed, &situations));
    println!("{}\n{situations}", summary.unwrap());
    if std::env::var_os("VOUSSOIR_SEED").is_none() {
        situations.assert_all_reached();
    }
}
