//! Nodes of three regions in one process, the network between them, and their disks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};
use voussoir_quorum::region::{Region, RegionConfig};
use voussoir_quorum::store::StoreError;
use voussoir_quorum::table::{CallError, TableConfig};
use voussoir_quorum::version::{Siblings, codec};
use voussoir_quorum::*;
use voussoir_sim::Rng;

use crate::disk::Disk;
pub(crate) use crate::disk::Start;

pub(crate) const REGIONS: [u64; 3] = [1, 2, 3];

/// The replicas of a region when it begins.
pub(crate) fn nodes_of(region: u64) -> Vec<u64> {
    (3 * region - 2..=3 * region).collect()
}

/// The region of a node, of a client, and of a node that joins it: 101 and 211 are in the region 1.
pub(crate) fn region_of(id: u64) -> u64 {
    match id {
        201.. => (id - 200) / 10,
        101.. => id - 100,
        _ => id.div_ceil(3),
    }
}

pub(crate) fn map_of(regions: &[u64]) -> RegionConfig {
    let nodes = regions.iter().map(|region| (*region, nodes_of(*region)));
    let mut map = RegionConfig::first(regions[0], nodes);
    (map.timeout, map.compare_every) = (Duration::from_millis(600), Duration::from_secs(4));
    map.max_pending_keys = 12;
    map
}

/// A node that runs, and what is lost with it.
pub(crate) struct Running {
    pub(crate) node: Node,
    pub(crate) region: Region,
    disk: Arc<Disk>,
    pub(crate) local: Arc<dyn Link>,
    /// Held for the tasks of the region.
    _wide: Arc<dyn Link>,
    /// Calls that are being answered end with the node.
    is_gone: watch::Sender<bool>,
}

pub(crate) struct State {
    pub(crate) rng: Rng,
    pub(crate) map: RegionConfig,
    running: BTreeMap<u64, Arc<Running>>,
    disks: BTreeMap<u64, Arc<MemoryStore>>,
    /// The latest membership of each region that was seen.
    latest: BTreeMap<u64, Arc<Membership>>,
    /// What nodes and clients of a region are given as its replicas, if it is not the first ones.
    replicas: BTreeMap<u64, Vec<u64>>,
    /// Pairs of regions between which nothing passes, the smaller id first.
    cuts: BTreeSet<(u64, u64)>,
    /// Nodes that do not reach their own region, nor are reached by it.
    pub(crate) alone: BTreeSet<u64>,
    /// Of a message to be lost, in millionths.
    pub(crate) loss: u32,
    /// Of a message between regions to take a second or more, in millionths.
    pub(crate) late: u32,
    /// Questions that have passed from one region to another, by kind.
    pub(crate) passed: BTreeMap<(u64, u64, u8), u64>,
    /// Questions of this kind to other regions are kept until somebody delivers them.
    pub(crate) keeps: Option<u8>,
    pub(crate) kept: Vec<(u64, Bytes)>,
}

pub(crate) struct World {
    state: Mutex<State>,
}

/// A handle to a node that runs, its link, and what tells that it is gone.
pub(crate) type Operator = (Node, Arc<dyn Link>, watch::Receiver<bool>);

/// What nodes and clients call with.
struct Wire {
    world: Weak<World>,
    from: u64,
    /// Between regions, or in one.
    is_wide: bool,
}

impl World {
    pub(crate) fn new(seed: u64, map: RegionConfig) -> Arc<Self> {
        // What nodes and clients draw for themselves.
        fastrand::seed(seed);
        let state = State {
            rng: Rng::new(seed),
            map,
            running: BTreeMap::new(),
            disks: BTreeMap::new(),
            latest: BTreeMap::new(),
            replicas: BTreeMap::new(),
            cuts: BTreeSet::new(),
            alone: BTreeSet::new(),
            loss: 0,
            late: 0,
            passed: BTreeMap::new(),
            keeps: None,
            kept: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// All nodes of these regions, begun.
    pub(crate) async fn begin(seed: u64, regions: &[u64]) -> Arc<Self> {
        let world = Self::new(seed, map_of(regions));
        for id in regions.iter().flat_map(|region| nodes_of(*region)) {
            world.start(id, Start::Create).await.unwrap();
        }
        world
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap())
    }

    fn link(self: &Arc<Self>, from: u64, is_wide: bool) -> Arc<dyn Link> {
        Arc::new(Wire { world: Arc::downgrade(self), from, is_wide })
    }

    pub(crate) fn config_of(&self, id: u64) -> NodeConfig {
        let region = region_of(id);
        let mut config = NodeConfig::with_replicas(self.replicas(region));
        (config.timeout, config.maintain_every) =
            (Duration::from_millis(300), Duration::from_millis(100));
        config.repair_every = Some(Duration::from_secs(3));
        config.collect_every = Some(Duration::from_secs(2));
        let map = self.with(|state| state.map.clone()).at(region);
        let own = map.regions.iter().find(|member| member.id == region);
        config.lineage = own.map_or(Lineage::UNNAMED, |own| own.lineage);
        config.regions = Some(map);
        config
    }

    pub(crate) async fn start(self: &Arc<Self>, id: u64, start: Start) -> Result<(), StartError> {
        let config = self.config_of(id);
        self.start_of(id, start, config).await
    }

    pub(crate) async fn start_of(
        self: &Arc<Self>,
        id: u64,
        start: Start,
        config: NodeConfig,
    ) -> Result<(), StartError> {
        let records = self.with(|state| {
            assert!(!state.running.contains_key(&id), "node {id} runs");
            if start == Start::Lost {
                state.disks.remove(&id);
            }
            Arc::clone(state.disks.entry(id).or_default())
        });
        let world = Arc::downgrade(self);
        let pause = move |_: bool, _: &[Bytes]| {
            let world = world.upgrade().ok_or(StoreError::Unknown("gone".to_owned()))?;
            let (us, pauses) =
                world.with(|state| (state.rng.below(1_500), state.rng.chance(500_000)));
            Ok(pauses.then(|| Duration::from_micros(us)))
        };
        let disk = Disk::new(records, usize::MAX, Box::new(pause));
        let node = start.node(id, &disk, config).await?;
        let (local, wide) = (self.link(id, false), self.link(id, true));
        node.maintain(&local);
        let region = Region::new(&node).unwrap();
        region.maintain(&local, &wide);
        let is_gone = watch::Sender::new(false);
        let running = Running { node, region, disk, local, _wide: wide, is_gone };
        self.with(|state| state.running.insert(id, Arc::new(running)));
        Ok(())
    }

    /// Ends a node without warning. Its disk is kept. Returns false if it does not run.
    pub(crate) fn crash(&self, id: u64) -> bool {
        let Some(running) = self.with(|state| state.running.remove(&id)) else { return false };
        running.disk.unmount();
        running.is_gone.send_replace(true);
        true
    }

    /// Whether the node has ever begun.
    pub(crate) fn has_disk(&self, id: u64) -> bool {
        self.with(|state| state.disks.contains_key(&id))
    }

    /// What is on the disk of a node that does not run is lost.
    pub(crate) fn wipe(&self, id: u64) {
        self.with(|state| state.disks.remove(&id));
    }

    /// Names the cluster of a node's disk, which does not run.
    pub(crate) async fn rename(&self, id: u64, config: &NodeConfig) -> Result<(), StartError> {
        let store: Arc<dyn ReplicaStore> = self.with(|state| Arc::clone(&state.disks[&id]) as _);
        Node::set_lineage(id, &store, config).await
    }

    pub(crate) fn host(&self, id: u64) -> Option<Arc<Running>> {
        self.with(|state| state.running.get(&id).cloned())
    }

    /// What it takes to change the replicas of a node's region.
    pub(crate) fn operator(&self, id: u64) -> Option<Operator> {
        let host = self.host(id)?;
        Some((host.node.clone(), Arc::clone(&host.local), host.is_gone.subscribe()))
    }

    /// The latest membership that any node of the region serves, or has served when this was asked.
    pub(crate) fn latest(&self, region: u64) -> Arc<Membership> {
        self.with(|state| {
            let nodes = state.running.iter().filter(|(id, _)| region_of(**id) == region);
            let served = nodes.map(|(_, running)| Arc::clone(&running.node.membership().borrow()));
            let all = state.latest.get(&region).cloned().into_iter().chain(served);
            let latest = all.max_by_key(|membership| membership.epoch());
            let latest = latest.filter(|membership| membership.epoch() > 0);
            let latest = latest.unwrap_or_else(|| Arc::new(Membership::first(nodes_of(region))));
            state.latest.insert(region, Arc::clone(&latest));
            latest
        })
    }

    /// The region begins anew, on empty disks.
    pub(crate) fn forget(&self, region: u64) {
        self.with(|state| {
            state.latest.remove(&region);
            state.replicas.remove(&region);
        });
    }

    /// Who starts from now on is given the replicas of now.
    pub(crate) fn follow(&self) {
        for region in REGIONS {
            let ids = self.latest(region).ids();
            self.with(|state| {
                let members = state.map.regions.iter_mut();
                members
                    .filter(|member| member.id == region)
                    .for_each(|member| member.nodes.clone_from(&ids));
                state.replicas.insert(region, ids);
            });
        }
    }

    /// What nodes and clients of a region are given as its replicas.
    pub(crate) fn replicas(&self, region: u64) -> Vec<u64> {
        let replicas = self.with(|state| state.replicas.get(&region).cloned());
        replicas.unwrap_or_else(|| nodes_of(region))
    }

    pub(crate) fn running(&self) -> Vec<u64> {
        self.with(|state| state.running.keys().copied().collect())
    }

    /// A table as a client in a region has it.
    pub(crate) fn table(self: &Arc<Self>, region: u64) -> Table {
        let config = self.table_config(region);
        Table::new(config, self.link(100 + region, false)).unwrap()
    }

    pub(crate) fn table_config(&self, region: u64) -> TableConfig {
        let mut config = TableConfig::with_replicas(self.replicas(region));
        config.timeout = Duration::from_millis(300);
        config
    }

    pub(crate) fn cut(&self, one: u64, two: u64) {
        self.with(|state| state.cuts.insert((one.min(two), one.max(two))));
    }

    pub(crate) fn cut_off(&self, region: u64) {
        REGIONS.iter().filter(|other| **other != region).for_each(|other| self.cut(region, *other));
    }

    pub(crate) fn heal(&self) {
        self.with(|state| state.cuts.clear());
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.with(|state| !state.cuts.is_empty())
    }

    /// The states of the table that a node's disk holds.
    pub(crate) async fn states(&self, id: u64) -> BTreeMap<Bytes, Siblings<Bytes>> {
        let disk = self.with(|state| Arc::clone(&state.disks[&id]));
        let records = disk.scan(b"t", b"", usize::MAX).await.unwrap().into_iter();
        let decode = |record| codec::decode_siblings(record, &codec::Limits::default()).unwrap();
        records.map(|(key, record)| (key.slice(1..), decode(record))).collect()
    }

    /// Whether a message is lost, and how long it takes. Only what `may_be_late` takes seconds.
    fn pass(&self, from: u64, to: u64, may_be_late: bool) -> (bool, Duration) {
        self.with(|state| {
            let (one, two) = (region_of(from), region_of(to));
            let is_cut = state.cuts.contains(&(one.min(two), one.max(two)));
            let is_alone = one == two && [from, to].iter().any(|id| state.alone.contains(id));
            let is_lost = from != to && (is_cut || is_alone || state.rng.chance(state.loss));
            let mut delay = match (from == to, one == two) {
                (true, _) => 0,
                (false, true) => state.rng.below(1_000),
                (false, false) => 5_000 + state.rng.below(20_000),
            };
            if one != two && may_be_late && state.rng.chance(state.late) {
                delay += 1_000_000 * state.rng.below(5);
            }
            (is_lost, Duration::from_micros(delay))
        })
    }

    /// Waits until every node that runs holds the same states, and no tombstone.
    pub(crate) async fn converge(&self, patience: Duration) {
        let ends = Instant::now() + patience;
        // Ends: by the deadline.
        loop {
            let mut all = Vec::new();
            for id in self.running() {
                all.push((id, self.states(id).await));
            }
            let is_equal = all.windows(2).all(|pair| pair[0].1 == pair[1].1);
            let is_clean = all.iter().all(|(_, states)| states.values().all(|s| !s.is_tombstone()));
            if is_equal && is_clean {
                return;
            }
            assert!(Instant::now() < ends, "equal {is_equal}, clean {is_clean}: {all:#?}");
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until a condition holds.
    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let ends = Instant::now() + Duration::from_secs(60);
        // Ends: by the deadline.
        while !holds() {
            let stats = || {
                let hosts = self.running().into_iter().filter_map(|id| self.host(id));
                hosts.map(|host| (host.node.id(), host.region.stats())).collect::<Vec<_>>()
            };
            assert!(Instant::now() < ends, "not in time: {what}: {:#?}", stats());
            sleep(Duration::from_millis(20)).await;
        }
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
        if !self.is_wide && region_of(self.from) != region_of(to) {
            return Err(CallError::NotSent);
        }
        let kind = request.get(1).copied().unwrap_or(0);
        let (is_lost, delay) = world.pass(self.from, to, true);
        let is_kept = world.with(|state| {
            let is_kept = self.is_wide && state.keeps == Some(kind);
            if is_kept {
                state.kept.push((to, request.clone()));
            }
            is_kept
        });
        // A message that is late arrives all the same, after its call has failed.
        let arrives = Instant::now() + delay;
        if is_lost || is_kept {
            sleep_until(deadline).await;
            return Err(CallError::Unknown);
        }
        let (is_wide, from, world) = (self.is_wide, self.from, Arc::clone(&world));
        let answered = tokio::spawn(async move {
            sleep_until(arrives).await;
            let host = world.host(to).ok_or(CallError::NotSent)?;
            let mut is_gone = host.is_gone.subscribe();
            if is_wide && from != to {
                let pair = (region_of(from), region_of(to), kind);
                world.with(|state| *state.passed.entry(pair).or_default() += 1);
            }
            let answer = async {
                if is_wide {
                    host.region.answer(request).await
                } else {
                    host.node.answer(request).await
                }
            };
            tokio::select! {
                biased;
                answer = answer => answer.ok_or(CallError::Unknown),
                _ = is_gone.wait_for(|gone| *gone) => Err(CallError::Unknown),
            }
        });
        let answer = tokio::time::timeout_at(deadline, answered).await;
        let answer = answer.map_err(|_| CallError::Unknown)?.map_err(|_| CallError::Unknown)??;
        let world = self.world.upgrade().ok_or(CallError::NotSent)?;
        let (is_lost, delay) = world.pass(to, self.from, false);
        sleep(delay).await;
        if is_lost {
            sleep_until(deadline).await;
            return Err(CallError::Unknown);
        }
        Ok(answer)
    }
}
