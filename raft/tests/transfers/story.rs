//! One seed: a node that has missed too much, and what happens while it is helped.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_raft::memory::Network;
use voussoir_raft::testing::FaultyStore;
use voussoir_raft::{Config, Outcome, Raft, Role};
use voussoir_sim::{Report, Rng};

use super::courier::{Courier, Post};
use super::disk;
use super::machine::{Lister, command};

const NODES: u64 = 3;
/// How long everything may take after the last fault.
const RECOVERY: Duration = Duration::from_secs(30);

/// What happens to a run, each of which has to happen now and then.
pub(crate) const FIGURES: [&str; 5] = [
    "leaders cut off",
    "receivers crashed",
    "disks without room for a snapshot",
    "disks without room",
    "snapshots restored",
];

pub(crate) struct Seen {
    counts: [u64; FIGURES.len()],
    post: Arc<Mutex<Post>>,
}

impl Seen {
    pub(crate) fn report(&self, report: Report) -> Report {
        let mut report = self.post.lock().report(report);
        for (name, count) in FIGURES.into_iter().zip(self.counts) {
            report = report.with(name, count);
        }
        report
    }
}

struct Node {
    files: CrashFiles,
    running: Option<(Raft, FaultyStore)>,
    machine: Lister,
}

struct Story {
    rng: Rng,
    network: Network,
    nodes: BTreeMap<u64, Node>,
    config: Config,
    post: Arc<Mutex<Post>>,
    counts: [u64; FIGURES.len()],
    proposed: u64,
    /// By number: how often it may be in the list at least and at most.
    bounds: HashMap<u64, (usize, usize)>,
    late: u64,
}

pub(crate) async fn play(seed: u64) -> Result<Seen, String> {
    let mut rng = Rng::new(seed);
    let mut config = Config::new(1, (1..=NODES).collect::<Vec<_>>());
    config.snapshot_after_entries = rng.between(8, 25);
    config.keep_entries = rng.below(4);
    config.snapshot_window = rng.between(1, 6) as usize;
    config.snapshot_timeout = Duration::from_millis(rng.between(100, 800));
    config.proposal_timeout = Duration::from_secs(1);
    let mut story = Story {
        network: Network::new(),
        nodes: BTreeMap::new(),
        config,
        post: Arc::default(),
        counts: [0; FIGURES.len()],
        proposed: 0,
        bounds: HashMap::new(),
        late: 0,
        rng,
    };
    for id in 1..=NODES {
        let machine = Lister {
            node: id,
            piece_bytes: story.rng.between(100, 500) as usize,
            list: Arc::default(),
            restored: Arc::default(),
            objections: Arc::default(),
        };
        let files = CrashFiles::new(story.rng.next_u64());
        story.nodes.insert(id, Node { files, running: None, machine });
        story.start(id, true).await?;
    }
    story.run().await?;
    Ok(Seen { counts: story.counts, post: story.post })
}

impl Story {
    async fn run(&mut self) -> Result<(), String> {
        let leader = self.leader().await?;
        self.late = leader % NODES + 1;
        self.network.isolate(self.late, 1..=NODES);
        let many = self.rng.between(60, 150);
        self.propose(many).await;
        self.network.heal();
        let end = Instant::now() + Duration::from_secs(self.rng.between(1, 4));
        while Instant::now() < end {
            sleep(Duration::from_millis(self.rng.between(5, 150))).await;
            self.trouble().await?;
            self.object()?;
        }
        self.network.heal();
        for id in 1..=NODES {
            let Some((raft, store)) = &self.nodes[&id].running else { continue };
            store.free();
            if raft.stopped().is_some() {
                self.restart(id).await?;
            }
        }
        self.converge().await
    }

    async fn start(&mut self, id: u64, begin: bool) -> Result<(), String> {
        let mut config = self.config.clone();
        (config.id, config.seed) = (id, Some(self.rng.next_u64() | 1));
        let rng = Rng::new(self.rng.next_u64());
        let courier = Courier {
            node: self.network.node(id),
            rng: Mutex::new(Rng::new(self.rng.next_u64())),
            post: Arc::clone(&self.post),
        };
        let node = self.nodes.get_mut(&id).ok_or("no such node")?;
        let store = FaultyStore::new(Arc::new(disk::open(&node.files, id, begin, rng)));
        let machine = Lister {
            list: Arc::default(),
            restored: Arc::clone(&node.machine.restored),
            objections: Arc::clone(&node.machine.objections),
            ..node.machine
        };
        node.machine = machine.clone();
        let log = Arc::new(store.clone());
        let raft = Raft::start(config, log, Box::new(machine), Arc::new(courier)).await;
        node.running = Some((raft.map_err(|error| error.to_string())?, store));
        Ok(())
    }

    /// The machine of a node loses power, and comes back.
    async fn restart(&mut self, id: u64) -> Result<(), String> {
        let node = self.nodes.get_mut(&id).ok_or("no such node")?;
        if let Some((raft, _)) = node.running.take() {
            raft.shutdown().await;
        }
        node.files.heal();
        node.files.power_loss(Loss::Any);
        self.start(id, false).await
    }

    fn running(&self) -> impl Iterator<Item = (u64, &Raft)> {
        let running =
            self.nodes.iter().filter_map(|(id, node)| Some((*id, &node.running.as_ref()?.0)));
        running.filter(|(_, raft)| raft.stopped().is_none())
    }

    fn leads(&self) -> Option<u64> {
        let status = self.running().map(|(_, raft)| raft.status().borrow().clone());
        let leaders = status.filter(|status| status.role == Role::Leader);
        leaders.max_by_key(|status| status.term).map(|status| status.id)
    }

    async fn leader(&self) -> Result<u64, String> {
        let end = Instant::now() + RECOVERY;
        while Instant::now() < end {
            if let Some(leader) = self.leads() {
                return Ok(leader);
            }
            sleep(Duration::from_millis(10)).await;
        }
        Err("liveness: nobody leads".to_owned())
    }

    /// Proposes commands at whoever leads, and notes what became of them.
    async fn propose(&mut self, count: u64) {
        for _ in 0..count {
            let Some(raft) = self.leads().and_then(|id| self.nodes[&id].running.as_ref()) else {
                return;
            };
            let raft = raft.0.clone();
            self.proposed += 1;
            let bounds = match raft.propose(command(self.proposed)).await {
                Ok(_) => (1, 1),
                Err(error) if error.outcome() == Outcome::NotApplied => (0, 0),
                Err(_) => (0, 1),
            };
            self.bounds.insert(self.proposed, bounds);
            if bounds != (1, 1) {
                return;
            }
        }
    }

    async fn trouble(&mut self) -> Result<(), String> {
        match self.rng.below(10) {
            0..5 => {
                let some = self.rng.between(5, 60);
                self.propose(some).await;
            }
            5..7 => {
                let Some(leader) = self.leads() else { return Ok(()) };
                self.counts[0] += 1;
                self.network.isolate(leader, 1..=NODES);
                sleep(Duration::from_millis(self.rng.between(300, 900))).await;
                self.network.heal();
            }
            7 => {
                self.counts[1] += 1;
                self.restart(self.late).await?;
            }
            8 => {
                let Some((_, store)) = self.nodes[&self.late].running.clone() else {
                    return Ok(());
                };
                self.counts[2] += 1;
                store.fill();
                sleep(Duration::from_millis(self.rng.between(50, 400))).await;
                store.free();
            }
            _ => {
                self.counts[3] += 1;
                let full = Fault::new(Op::Write, When::From(self.rng.below(9)), Effect::NoSpace);
                self.nodes[&self.late].files.inject(full);
                sleep(Duration::from_millis(self.rng.between(50, 400))).await;
                self.nodes[&self.late].files.heal();
                let stopped = |raft: &Raft| raft.stopped().is_some();
                if self.nodes[&self.late].running.as_ref().is_some_and(|(raft, _)| stopped(raft)) {
                    self.restart(self.late).await?;
                }
            }
        }
        Ok(())
    }

    fn object(&self) -> Result<(), String> {
        for (id, node) in &self.nodes {
            if let Some(objection) = node.machine.objections.lock().first() {
                return Err(format!("node {id} was given a mixed snapshot: {objection}"));
            }
        }
        Ok(())
    }

    /// Everybody gets there, with the same list, and nothing is missing from it.
    async fn converge(&mut self) -> Result<(), String> {
        let end = Instant::now() + RECOVERY;
        let last = loop {
            self.propose(1).await;
            self.object()?;
            if self.bounds.get(&self.proposed) == Some(&(1, 1)) {
                break self.proposed;
            }
            if Instant::now() > end {
                return Err("liveness: nothing is committed".to_owned());
            }
            sleep(Duration::from_millis(100)).await;
        };
        for id in 1..=NODES {
            while self.nodes[&id].machine.list.lock().last() != Some(&last) {
                self.object()?;
                if Instant::now() > end {
                    let nodes = self.nodes.values().filter_map(|node| node.running.as_ref());
                    let all: Vec<_> = nodes.map(|(raft, _)| (raft, raft.stopped())).collect();
                    return Err(format!("liveness: node {id} does not get there: {all:#?}"));
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
        self.counts[4] = self.nodes.values().map(|node| *node.machine.restored.lock()).sum();
        self.judge()
    }

    fn judge(&self) -> Result<(), String> {
        let lists: Vec<Vec<u64>> =
            self.nodes.values().map(|node| node.machine.list.lock().clone()).collect();
        if lists.windows(2).any(|two| two[0] != two[1]) {
            return Err("the nodes hold different states".to_owned());
        }
        let mut times: HashMap<u64, usize> = HashMap::new();
        lists[0].iter().for_each(|number| *times.entry(*number).or_default() += 1);
        for (number, (least, most)) in &self.bounds {
            let times = times.get(number).copied().unwrap_or(0);
            if times < *least || times > *most {
                return Err(format!("{number} is there {times} times, not {least} to {most}"));
            }
        }
        Ok(())
    }
}
