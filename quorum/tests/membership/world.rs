//! Nodes in one process, the network between them, and their disks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};
use voussoir_quorum::store::{Change, StoreError};
use voussoir_quorum::table::CallError;
use voussoir_quorum::*;
use voussoir_sim::Rng;

use crate::disk::Disk;
pub(crate) use crate::disk::Start;

/// A node that runs, and what is lost with it.
struct Running {
    node: Node,
    disk: Arc<Disk>,
    link: Arc<dyn Link>,
    /// Calls that are being answered end with the node.
    is_gone: watch::Sender<bool>,
}

pub(crate) struct State {
    pub(crate) rng: Rng,
    /// The latest membership that was seen.
    latest: Arc<Membership>,
    running: BTreeMap<u64, Running>,
    disks: BTreeMap<u64, Arc<MemoryStore>>,
    /// Messages from one to the other are lost.
    cuts: BTreeSet<(u64, u64)>,
    /// A node takes so long to read a key of its store.
    pub(crate) slow: Option<(u64, Bytes, Duration)>,
    /// Of a message to be lost, in millionths.
    pub(crate) loss: u32,
    pub(crate) max_delay_us: u64,
}

impl State {
    /// How long a node's disk takes.
    fn pause(&mut self, node: u64, is_write: bool, keys: &[Bytes]) -> Option<Duration> {
        let max_us = if is_write { 2_000 } else { 3_000 };
        let (pause, at_once) = (self.rng.below(max_us), self.rng.chance(500_000));
        let pause = (!at_once).then(|| Duration::from_micros(pause));
        let slow = self.slow.as_ref().filter(|(slow, key, _)| *slow == node && keys.contains(key));
        pause.into_iter().chain(slow.map(|(_, _, pause)| *pause)).reduce(|one, two| one + two)
    }
}

pub(crate) struct World {
    config: NodeConfig,
    state: Mutex<State>,
}

/// What nodes and clients call with.
struct Wire {
    world: Weak<World>,
    from: u64,
}

pub(crate) fn node_config(replicas: impl IntoIterator<Item = u64>) -> NodeConfig {
    let mut config = NodeConfig::with_replicas(replicas);
    (config.timeout, config.maintain_every) =
        (Duration::from_millis(300), Duration::from_millis(50));
    config.repair_every = Some(Duration::from_secs(2));
    config.collect_every = Some(Duration::from_secs(1));
    config
}

impl World {
    pub(crate) fn new(seed: u64, config: NodeConfig) -> Arc<Self> {
        // What nodes and clients draw for themselves.
        fastrand::seed(seed);
        let state = State {
            rng: Rng::new(seed),
            latest: Arc::new(Membership::first(config.replicas.iter().copied())),
            running: BTreeMap::new(),
            disks: BTreeMap::new(),
            cuts: BTreeSet::new(),
            slow: None,
            loss: 0,
            max_delay_us: 2_000,
        };
        Arc::new(Self { config, state: Mutex::new(state) })
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap())
    }

    pub(crate) fn link(self: &Arc<Self>, from: u64) -> Arc<dyn Link> {
        Arc::new(Wire { world: Arc::downgrade(self), from })
    }

    pub(crate) async fn start(self: &Arc<Self>, id: u64, start: Start) -> Node {
        self.start_of(id, start, self.config.clone()).await
    }

    pub(crate) async fn start_of(
        self: &Arc<Self>,
        id: u64,
        start: Start,
        config: NodeConfig,
    ) -> Node {
        let records = self.with(|state| {
            assert!(!state.running.contains_key(&id), "node {id} runs");
            if matches!(start, Start::Lost | Start::Join) {
                state.disks.remove(&id);
            }
            Arc::clone(state.disks.entry(id).or_default())
        });
        let world = Arc::downgrade(self);
        let pause = move |is_write: bool, keys: &[Bytes]| {
            let world = world.upgrade().ok_or(StoreError::Unknown("gone".to_owned()))?;
            Ok(world.with(|state| state.pause(id, is_write, keys)))
        };
        let disk = Disk::new(records, 600, Box::new(pause));
        let (node, link) = (start.node(id, &disk, config).await.unwrap(), self.link(id));
        node.maintain(&link);
        let running =
            Running { node: node.clone(), disk, link, is_gone: watch::Sender::new(false) };
        self.with(|state| state.running.insert(id, running));
        node
    }

    /// Ends a node without warning. Its disk is kept. Returns false if it does not run.
    pub(crate) fn crash(&self, id: u64) -> bool {
        let Some(running) = self.with(|state| state.running.remove(&id)) else { return false };
        running.disk.unmount();
        running.is_gone.send_replace(true);
        true
    }

    pub(crate) fn node(&self, id: u64) -> Option<Node> {
        self.with(|state| state.running.get(&id).map(|running| running.node.clone()))
    }

    /// The node and the link with which it calls, and what tells that it is gone.
    pub(crate) fn host(&self, id: u64) -> Option<(Node, Arc<dyn Link>, watch::Receiver<bool>)> {
        self.with(|state| {
            let running = state.running.get(&id)?;
            Some((running.node.clone(), Arc::clone(&running.link), running.is_gone.subscribe()))
        })
    }

    /// Whether the node has ever begun.
    pub(crate) fn has_disk(&self, id: u64) -> bool {
        self.with(|state| state.disks.contains_key(&id))
    }

    pub(crate) fn running(&self) -> Vec<u64> {
        self.with(|state| state.running.keys().copied().collect())
    }

    /// The latest membership that any node serves, or has served when this was asked.
    pub(crate) fn latest(&self) -> Arc<Membership> {
        let nodes: Vec<Node> =
            self.with(|state| state.running.values().map(|running| running.node.clone()).collect());
        let all = nodes.iter().map(|node| Arc::clone(&node.membership().borrow()));
        let latest = all.max_by_key(|membership| membership.epoch());
        self.with(|state| {
            // Also while no node runs.
            if let Some(latest) = latest.filter(|new| new.epoch() > state.latest.epoch()) {
                state.latest = latest;
            }
            Arc::clone(&state.latest)
        })
    }

    /// Nothing passes between the two, in one direction or in both.
    pub(crate) fn cut(&self, from: u64, to: u64, is_both: bool) {
        self.with(|state| {
            state.cuts.insert((from, to));
            if is_both {
                state.cuts.insert((to, from));
            }
        });
    }

    /// Whoever is not of a side reaches nobody of it.
    pub(crate) fn isolate(&self, id: u64) {
        for other in (0..10).chain(100..120).filter(|other| *other != id) {
            self.cut(id, other, true);
        }
    }

    pub(crate) fn heal(&self) {
        self.with(|state| state.cuts.clear());
    }

    /// A node that does not run gets a disk of before.
    pub(crate) async fn put_back(&self, id: u64, records: BTreeMap<Bytes, Bytes>) {
        let disk = Arc::new(MemoryStore::new());
        let change = |(key, record)| Change { key, record: Some(record) };
        disk.apply(records.into_iter().map(change).collect()).await.unwrap();
        self.with(|state| state.disks.insert(id, disk));
    }

    /// The records that a node's disk holds, by their keys in the store.
    pub(crate) async fn records(&self, id: u64) -> BTreeMap<Bytes, Bytes> {
        let disk = self.with(|state| Arc::clone(&state.disks[&id]));
        disk.scan(b"", b"", usize::MAX).await.unwrap().into_iter().collect()
    }
}

#[async_trait]
impl Link for Wire {
    async fn call(
        &self,
        to: u64,
        _class: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let world = self.world.upgrade().ok_or(CallError::NotSent)?;
        let pass = |from: u64, to: u64| {
            world.with(|state| {
                let is_own = from == to;
                let is_lost =
                    !is_own && (state.cuts.contains(&(from, to)) || state.rng.chance(state.loss));
                let delay = if is_own { 0 } else { state.rng.below(state.max_delay_us) };
                (is_lost, Duration::from_micros(delay))
            })
        };
        let (is_lost, delay) = pass(self.from, to);
        sleep(delay).await;
        if is_lost {
            sleep_until(deadline).await;
            return Err(CallError::Unknown);
        }
        let Some((node, _, mut is_gone)) = world.host(to) else {
            // A host that is down refuses connections; one that is cut off says nothing.
            return Err(CallError::NotSent);
        };
        let answer = tokio::select! {
            biased;
            answer = node.answer(request) => answer.ok_or(CallError::Unknown)?,
            _ = is_gone.wait_for(|gone| *gone) => return Err(CallError::Unknown),
            () = sleep_until(deadline) => return Err(CallError::Unknown),
        };
        drop(node);
        let (is_lost, delay) = pass(to, self.from);
        sleep(delay).await;
        if is_lost {
            sleep_until(deadline).await;
            return Err(CallError::Unknown);
        }
        Ok(answer)
    }
}
