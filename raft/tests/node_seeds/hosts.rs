//! Nodes of many groups over a network in memory that loses messages, and that panics.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use voussoir_raft::memory::{MemoryStore, Network, NetworkNode};
use voussoir_raft::testing::FaultyStore;
use voussoir_raft::{
    AttachError, Chunks, Command, Completion, Config, Entry, Inbox, LogStore, LogWrite,
    MachineError, Membership, Message, Node, NodeConfig, Raft, ReadFailed, Restored, Role, Room,
    SendError, SnapshotAnswer, SnapshotName, SnapshotPart, SnapshotReader, SnapshotWriter,
    StartError, StateMachine, Status, StoreError, Transport, WholeSnapshot, async_trait,
};
use voussoir_sim::Rng;

/// Counts commands, and answers with the number.
struct Counter(Arc<AtomicU64>);

#[async_trait]
impl StateMachine for Counter {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let count = |_| {
            let count = 1 + self.0.fetch_add(1, Ordering::Relaxed);
            Bytes::from(count.to_string())
        };
        Ok(commands.iter().map(count).collect())
    }

    fn is_quick(&self) -> bool {
        true
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        Ok(Box::new(WholeSnapshot::new(self.0.load(Ordering::Relaxed).to_string())))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let state = WholeSnapshot::collect(chunks).await?;
        self.0.store(std::str::from_utf8(&state)?.parse()?, Ordering::Relaxed);
        Ok(())
    }
}

/// What a seed has its groups do, on every node alike.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Features {
    /// Leaders read under leases.
    pub(crate) leases: bool,
    /// Groups do not rest.
    pub(crate) is_awake: bool,
    /// Round trips are about as long as elections wait, and longer.
    pub(crate) is_long: bool,
    /// There is room for one or a few waiting messages of peers.
    pub(crate) is_small: bool,
    /// Each write takes its time.
    pub(crate) is_slow: bool,
    /// Disks have no room at times.
    pub(crate) is_narrow: bool,
}

impl Features {
    /// How long a caller has patience, of what is enough where round trips are short.
    pub(crate) fn patience(self, ms: u64) -> Duration {
        Duration::from_millis(if self.is_long { 5 * ms } else { ms })
    }

    /// Whether a leader may be missed without a fault: heartbeats come late by as much as elections
    /// wait, or find no room in the inbox.
    pub(crate) fn moves_leaders(self) -> bool {
        self.is_long || self.is_small
    }

    /// How long a message takes, at least and at most, in ms; `None`: no time. Where there is room
    /// for one message, those of several nodes must not arrive in step for ever: only the first of
    /// them would be heard.
    fn delay_ms(self) -> Option<(u64, u64)> {
        match (self.is_long, self.is_small) {
            (true, _) => Some((30, 140)),
            (false, true) => Some((0, 10)),
            (false, false) => None,
        }
    }
}

/// What the network does wrong.
pub(crate) struct Faults {
    /// Messages that are lost, of a million.
    pub(crate) loss_ppm: AtomicU32,
    /// From, to, group: what the group says there is lost, and the nodes hear each other.
    pub(crate) muffled: Mutex<Option<(u64, u64, u64)>>,
    /// The node whose transport panics at a message of the nodes; 0: none.
    pub(crate) panics_at: AtomicU64,
    /// The nodes whose disks have no room, a bit each.
    pub(crate) full: AtomicU64,
    /// The lives that the nodes have named.
    pub(crate) lives: Mutex<BTreeMap<u64, u64>>,
    delay_ms: Option<(u64, u64)>,
    rng: Mutex<Rng>,
}

impl Faults {
    /// How long the next message takes; `None`: no time.
    fn delay(&self) -> Option<Duration> {
        let (least, most) = self.delay_ms?;
        Some(Duration::from_millis(self.rng.lock().between(least, most)))
    }
}

/// The disk of a node, for one of its groups.
struct Disk {
    id: u64,
    store: FaultyStore,
    features: Features,
    faults: Arc<Faults>,
}

#[async_trait]
impl LogStore for Disk {
    fn room(&self) -> Option<Room> {
        let is_full = self.faults.full.load(Ordering::Relaxed) >> self.id & 1 == 1;
        let bytes = if is_full { 0 } else { 1 << 20 };
        self.features.is_narrow.then_some(Room { bytes, max_bytes: 4 << 20, share: 256 << 10 })
    }

    async fn restore(&self) -> Result<Restored, StoreError> {
        self.store.carry_out(usize::MAX);
        self.store.restore().await
    }

    /// Where that takes time, writes are held back and carried out one after the other.
    fn write(&self, write: LogWrite, done: Completion) {
        if !self.features.is_slow {
            return self.store.write(write, done);
        }
        self.store.stall();
        self.store.write(write, done);
        let delay = Duration::from_millis(self.faults.rng.lock().between(0, 12));
        let store = self.store.clone();
        tokio::spawn(async move {
            sleep(delay).await;
            store.carry_out(1);
        });
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        self.store.read(range, max_bytes).await
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        self.store.stage(name).await
    }

    fn unstage(&self, identity: u64) {
        self.store.unstage(identity);
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        self.store.open_snapshot().await
    }
}

/// A node's end of the network.
struct Wire {
    inner: Arc<NetworkNode>,
    faults: Arc<Faults>,
}

#[async_trait]
impl Transport for Wire {
    fn local(&self) -> u64 {
        self.inner.local()
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        self.inner.attach(group, inbox)
    }

    fn detach(&self, group: u64) {
        self.inner.detach(group);
    }

    fn members(&self, group: u64, members: &Membership) {
        self.inner.members(group, members);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        self.send_all(to, vec![(group, message)])
    }

    /// What goes together is lost and delayed together.
    fn send_all(&self, to: u64, mut messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        let (own, faults) = (self.local(), &self.faults);
        let muffled = faults.muffled.lock().filter(|(from, at, _)| (*from, *at) == (own, to));
        let muffled = muffled.map(|(_, _, group)| group);
        for (_, message) in &mut messages {
            if let Message::Node(beat) = message {
                let panics = faults.panics_at.load(Ordering::Relaxed) == own;
                assert!(!panics, "a transport that panics, as this test wants it");
                faults.lives.lock().insert(own, beat.life);
                beat.beats.retain(|(group, _)| Some(*group) != muffled);
            }
        }
        messages.retain(|(group, _)| muffled != Some(*group));
        let is_lost = faults.rng.lock().chance(faults.loss_ppm.load(Ordering::Relaxed));
        if is_lost || messages.is_empty() {
            return Ok(());
        }
        if let Some(delay) = faults.delay() {
            let inner = Arc::clone(&self.inner);
            tokio::spawn(async move {
                sleep(delay).await;
                // Lost where the link is cut by then.
                let _ = inner.send_all(to, messages);
            });
            return Ok(());
        }
        self.inner.send_all(to, messages)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        if let Some(delay) = self.faults.delay() {
            sleep(2 * delay).await;
        }
        self.inner.snapshot(to, group, part, timeout).await
    }
}

/// A group, and where it stands.
pub(crate) struct Group {
    pub(crate) id: u64,
    /// Ascending.
    pub(crate) voters: &'static [u64],
    pub(crate) learner: Option<u64>,
}

impl Group {
    pub(crate) fn members(&self) -> impl Iterator<Item = u64> + '_ {
        self.voters.iter().copied().chain(self.learner)
    }
}

/// The nodes of a process each.
pub(crate) struct Hosts {
    pub(crate) network: Network,
    pub(crate) faults: Arc<Faults>,
    pub(crate) groups: &'static [Group],
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) features: Features,
    /// Every life of every replica.
    pub(crate) lives: Vec<Raft>,
    seed: u64,
    stores: BTreeMap<(u64, u64), FaultyStore>,
    /// What the machines show, by node and group.
    counts: BTreeMap<(u64, u64), Arc<AtomicU64>>,
}

impl Hosts {
    pub(crate) async fn new(seed: u64, groups: &'static [Group], features: Features) -> Self {
        let faults = Arc::new(Faults {
            loss_ppm: AtomicU32::new(0),
            muffled: Mutex::default(),
            panics_at: AtomicU64::new(0),
            full: AtomicU64::new(0),
            lives: Mutex::default(),
            delay_ms: features.delay_ms(),
            rng: Mutex::new(Rng::stream(seed, 2)),
        });
        let mut hosts = Self {
            network: Network::new(),
            faults,
            groups,
            nodes: BTreeMap::new(),
            features,
            lives: Vec::new(),
            seed,
            stores: BTreeMap::new(),
            counts: BTreeMap::new(),
        };
        hosts.start_all().await;
        hosts
    }

    /// Starts what does not run.
    pub(crate) async fn start_all(&mut self) {
        let ids: Vec<u64> = self.groups.iter().flat_map(Group::members).collect();
        for id in ids {
            self.start(id).await;
        }
    }

    /// Starts a node, and those of its groups that do not run.
    pub(crate) async fn start(&mut self, id: u64) {
        if !self.nodes.contains_key(&id) {
            let (inner, faults) = (self.network.node(id), Arc::clone(&self.faults));
            let wire = Arc::new(Wire { inner, faults });
            self.nodes.insert(id, Node::start(NodeConfig::default(), wire).unwrap());
        }
        for group in self.groups.iter().filter(|group| group.members().any(|at| at == id)) {
            if self.raft(id, group.id).is_none() {
                self.start_group(id, group).await.unwrap();
            }
        }
    }

    pub(crate) async fn start_group(&mut self, id: u64, group: &Group) -> Result<Raft, StartError> {
        let new = || FaultyStore::new(Arc::new(MemoryStore::new()));
        let store = self.stores.entry((id, group.id)).or_insert_with(new).clone();
        let mut config = Config::new(id, group.voters);
        if !group.voters.contains(&id) {
            config = Config::joining(id);
        }
        (config.group, config.dynamic) = (group.id, true);
        config.seed = Some(self.seed.wrapping_mul(97) + group.id * 11 + id);
        let (features, faults) = (self.features, Arc::clone(&self.faults));
        let Features { leases, is_awake, is_small, .. } = features;
        config.quiesce_after = (!is_awake).then_some(Duration::from_millis(200));
        config.max_clock_drift_ppm = leases.then_some(10_000);
        if is_small {
            config.max_inbox_bytes = 1 << (self.seed / 16 % 10);
        }
        let count = Arc::new(AtomicU64::new(0));
        self.counts.insert((id, group.id), Arc::clone(&count));
        let machine = Box::new(Counter(count));
        let store = Arc::new(Disk { id, store, features, faults });
        let raft = self.nodes[&id].start_group(config, store, machine).await?;
        self.lives.push(raft.clone());
        Ok(raft)
    }

    /// What a replica writes to.
    pub(crate) fn disk(&self, id: u64, group: u64) -> &FaultyStore {
        &self.stores[&(id, group)]
    }

    /// What the machine of a replica shows.
    pub(crate) fn count(&self, id: u64, group: u64) -> u64 {
        self.counts.get(&(id, group)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(crate) fn raft(&self, id: u64, group: u64) -> Option<Raft> {
        self.nodes.get(&id)?.group(group)
    }

    pub(crate) fn status(&self, id: u64, group: u64) -> Option<Status> {
        self.raft(id, group).map(|raft| raft.status().borrow().clone())
    }

    /// The leader of the highest term.
    pub(crate) fn leader(&self, group: u64) -> Option<u64> {
        let all = self.nodes.keys().filter_map(|id| self.status(*id, group));
        let leaders = all.filter(|status| status.role == Role::Leader);
        leaders.max_by_key(|status| status.term).map(|status| status.id)
    }

    /// Waits until `holds`, for half a minute at most.
    pub(crate) async fn until(&self, holds: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(30);
        while !holds(self) {
            if Instant::now() > end {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Whether every member of every group is at rest.
    pub(crate) fn all_rest(&self) -> bool {
        let rests = |id, group| self.status(id, group).is_some_and(|status| status.is_quiesced);
        self.groups.iter().all(|group| group.members().all(|id| rests(id, group.id)))
    }
}
