//! Three nodes over journals on disks that lose power, and a network whose paths are cut.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use voussoir_journal::files::crash::{CrashFiles, Loss};
use voussoir_journal::{Journal, Work};
use voussoir_net::Transport;
use voussoir_net::memory::Network;
use voussoir_queue::backend::replicated::{Replicated, ReplicatedConfig};
use voussoir_queue::raft::ReplicatedPartition;
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Node, NodeConfig};

pub(crate) const NODES: [u64; 3] = [1, 2, 3];
pub(crate) const MS: Duration = Duration::from_millis(1);

pub(crate) struct Cluster {
    pub(crate) network: Network,
    pub(crate) began: Instant,
    seed: u64,
    starts: u64,
    delivery_timeout: Duration,
    /// A node that takes a minute to notice that it has lost its majority, or its leader.
    pub(crate) slow: Option<u64>,
    disks: BTreeMap<u64, (CrashFiles, bool)>,
    pub(crate) running: BTreeMap<u64, Running>,
}

pub(crate) struct Running {
    pub(crate) node: Node,
    pub(crate) journal: Journal,
    pub(crate) queue: Replicated,
    is_alive: Arc<AtomicBool>,
}

impl Cluster {
    pub(crate) async fn new(seed: u64, delivery_timeout: Duration) -> Self {
        let mut config = voussoir_net::Config::default();
        config.seed = Some(seed);
        let disk = |id: u64| (id, (CrashFiles::new(seed * 3 + id), false));
        let mut cluster = Self {
            network: Network::new(config).expect("a network"),
            began: Instant::now(),
            seed,
            starts: 0,
            delivery_timeout,
            slow: None,
            disks: NODES.into_iter().map(disk).collect(),
            running: BTreeMap::new(),
        };
        for id in NODES {
            cluster.start(id).await;
        }
        cluster
    }

    pub(crate) async fn start(&mut self, id: u64) {
        self.starts += 1;
        let net: Arc<dyn Transport> = Arc::new(self.network.join(id));
        let raft = NetTransport::new(Arc::clone(&net), 1).expect("a transport");
        let node = Node::start(NodeConfig::default(), Arc::new(raft)).expect("a node");
        let mut options = voussoir_journal::Config::manual();
        options.segment_bytes = 1 << 20;
        options.max_bytes = 64 << 20;
        options.identity = Some(u128::from(self.seed * 1_000 + self.starts));
        let (files, is_used) = self.disks.get_mut(&id).expect("a disk");
        let journal = Journal::open_with(files.mount(), options).expect("the journal opens");
        let is_alive = Arc::new(AtomicBool::new(true));
        tokio::spawn(work(journal.clone(), Arc::clone(&is_alive), self.began));
        let mut config = ReplicatedConfig::new(id, NODES, 7, 2);
        config.group.seed = Some(self.seed * 1_000 + self.starts);
        config.group.max_entry_bytes = 128 << 10;
        config.group.snapshot_after_entries = 40;
        config.group.keep_entries = 10;
        config.group.proposal_timeout = Duration::from_secs(2);
        if self.slow == Some(id) {
            let minute = Duration::from_secs(60);
            let group = &mut config.group;
            (group.min_election_timeout, group.max_election_timeout) = (minute, minute);
            group.disk_stall = minute;
        }
        config.limits.partition.max_producers = 20;
        config.limits.partition.max_index_entries = 10;
        config.max_bytes = 8 << 20;
        config.producer.delivery_timeout = Some(self.delivery_timeout);
        if !std::mem::replace(is_used, true) {
            Replicated::create(&journal, &config).expect("a new node");
        }
        let queue = Replicated::start(&node, net, &journal, config).await.expect("it starts");
        self.running.insert(id, Running { node, journal, queue, is_alive });
    }

    /// The process ends at once, and with `power` the machine. What it still does reaches nobody.
    pub(crate) fn kill(&mut self, id: u64, power: bool) {
        let Some(Running { node, is_alive, .. }) = self.running.remove(&id) else { return };
        is_alive.store(false, Relaxed);
        let (files, _) = &self.disks[&id];
        if power {
            files.power_loss(Loss::Any);
        } else {
            files.kill();
        }
        drop(self.network.join(id));
        tokio::spawn(async move { node.shutdown().await });
    }

    pub(crate) fn queue(&self, id: u64) -> Replicated {
        self.running[&id].queue.clone()
    }

    /// The groups of raft that run on a node, and those that have data in its journal.
    pub(crate) fn groups(&self, id: u64) -> (Vec<u64>, Vec<u64>) {
        let Running { node, journal, .. } = &self.running[&id];
        let stored = journal.logs_of("raft.state");
        (node.groups(), stored.into_iter().map(|log| log.name.id).collect())
    }

    /// Who leads the table, as most nodes see it.
    pub(crate) fn leader(&self) -> Option<u64> {
        self.leader_of(|queue| Some(queue.table().clone()))
    }

    /// Who leads a group: a node that says so of itself.
    pub(crate) fn leader_of(
        &self,
        part: impl Fn(&Replicated) -> Option<ReplicatedPartition>,
    ) -> Option<u64> {
        let leads = |id: &u64| {
            let part = part(&self.running[id].queue)?;
            let status = part.raft().status();
            let leader = status.borrow().leader;
            (leader == Some(*id)).then_some(*id)
        };
        self.running.keys().find_map(leads)
    }

    /// Waits until the table has a leader.
    pub(crate) async fn settled(&self) -> u64 {
        // Ends: a majority runs.
        for _ in 0..2_000 {
            if let Some(leader) = self.leader() {
                return leader;
            }
            sleep(10 * MS).await;
        }
        panic!("nobody leads the table");
    }
}

/// The disk of a node works.
async fn work(journal: Journal, is_alive: Arc<AtomicBool>, began: Instant) {
    // Ends: with the node.
    while is_alive.load(Relaxed) {
        let now = u64::try_from(began.elapsed().as_nanos()).expect("it fits");
        // Ends: the journal is idle when everything is written.
        while journal.work(now) != Work::Idle {}
        sleep(MS).await;
    }
}
