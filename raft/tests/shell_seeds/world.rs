//! The nodes of a run: their starts, crashes and ends, and what has to hold at any time.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;
use voussoir_raft::{Raft, Role, Status};
use voussoir_sim::{History, KvOp, KvRet, Rng};

use super::disk::{Disk, Life, NotOpened};
use super::draw::Setup;
use super::held::Held;
use super::machine::{Pace, Replica, State, Truth};
use super::notes::Notes;
use super::wire::{Port, Wire};

/// How long the shutdown of a node may take.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// What became of a write to a key of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    Done,
    NotApplied,
    Unknown,
}

/// All of one run.
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) notes: Arc<Notes>,
    pub(crate) wire: Arc<Wire>,
    pub(crate) truth: Arc<Truth>,
    nodes: Mutex<BTreeMap<u64, Node>>,
    pub(crate) history: Mutex<History<KvOp<u64, u64>, KvRet<u64>>>,
    /// Who led when that was last looked at.
    led_by: Mutex<Option<u64>>,
    /// Who was last asked to campaign, and the term in which it was.
    asked: Mutex<Option<(u64, u64)>>,
    /// Writes that are proposed once each, by key; the value is the key.
    pub(crate) singles: Mutex<BTreeMap<u64, Fate>>,
    /// Calls whose future is alive.
    pub(crate) open_calls: AtomicUsize,
    /// Lives that have ended.
    ended: Mutex<Vec<Raft>>,
    /// Clients begin no more calls.
    pub(crate) resting: AtomicBool,
    /// For what is done to the nodes.
    pub(crate) rng: Mutex<Rng>,
}

struct Node {
    disk: Disk,
    pace: Arc<Pace>,
    running: Option<Running>,
    /// Its disk was replaced by an empty one: it stays out until its own disk is back.
    out: bool,
    /// Its disk fails: its life may end by itself.
    excused: bool,
    seeds: Rng,
}

/// One life of a node.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) id: u64,
    pub(crate) raft: Raft,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) life: Arc<Life>,
    pub(crate) held: Arc<Held>,
}

impl Running {
    pub(crate) fn status(&self) -> Status {
        self.raft.status().borrow().clone()
    }
}

impl World {
    pub(crate) fn new(setup: Setup, notes: Arc<Notes>) -> Arc<Self> {
        let truth = Arc::new(Truth::default());
        let wire = Wire::new(&setup, &notes, &truth);
        let node = |id: &u64| Node {
            disk: Disk::new(*id, &setup),
            pace: Arc::default(),
            running: None,
            out: false,
            excused: false,
            seeds: Rng::stream(setup.seed, 0x11fe_0000 + id),
        };
        let nodes = setup.voters.iter().map(|id| (*id, node(id))).collect();
        let rng = Rng::stream(setup.seed, u64::from_le_bytes(*b"trouble!"));
        Arc::new(Self {
            notes,
            wire,
            truth,
            nodes: Mutex::new(nodes),
            history: Mutex::default(),
            led_by: Mutex::default(),
            asked: Mutex::default(),
            singles: Mutex::default(),
            open_calls: AtomicUsize::new(0),
            ended: Mutex::default(),
            resting: AtomicBool::new(false),
            rng: Mutex::new(rng),
            setup,
        })
    }

    /// Starts a node from its disk. Does nothing where it runs, or stays out.
    pub(crate) async fn start(&self, id: u64) {
        let prepared = {
            let mut nodes = self.nodes.lock();
            let Some(node) = nodes.get_mut(&id) else { return };
            if node.out || node.running.is_some() {
                return;
            }
            node.excused = false;
            let opened = node.disk.open(&self.setup, &self.notes, &self.truth);
            opened.map(|store| (store, Arc::clone(&node.pace), node.seeds.next_u64() | 1))
        };
        let (store, pace, seed) = match prepared {
            Ok(prepared) => prepared,
            Err(NotOpened::Empty) => return self.object(id, "its disk is said to be empty"),
            Err(NotOpened::Failed(error)) => {
                return self.object(id, &format!("its disk is not opened: {error}"));
            }
        };
        let mut config = self.setup.config_of(id);
        config.seed = Some(seed);
        let (held, state) = (Arc::new(Held::default()), Arc::new(Mutex::new(State::default())));
        let life = Arc::clone(&store.life);
        let machine = Replica {
            node: id,
            state: Arc::clone(&state),
            pace,
            truth: Arc::clone(&self.truth),
            notes: Arc::clone(&self.notes),
            quick: self.setup.quick,
            chunk_bytes: (self.setup.chunk_bytes + id) as usize,
            filler_bytes: self.setup.filler_bytes as usize,
        };
        let port = Port {
            node: id,
            wire: Arc::clone(&self.wire),
            held: Arc::clone(&held),
            life: Arc::clone(&life),
        };
        let started = Raft::start(config, Arc::new(store), Box::new(machine), Arc::new(port)).await;
        let raft = match started {
            Ok(raft) => raft,
            Err(error) => return self.object(id, &format!("it does not start: {error}")),
        };
        // Set once: the life has just begun.
        let _ = life.status.set(raft.status());
        self.notes.line(format!("node {id} starts: {:?}", raft.status().borrow().clone()));
        let running = Running { id, raft, state, life, held };
        if let Some(node) = self.nodes.lock().get_mut(&id) {
            node.running = Some(running);
        }
    }

    /// Ends the life of a node: its process is killed, or its machine loses power.
    pub(crate) async fn crash(&self, id: u64, power: bool) {
        let running = {
            let mut nodes = self.nodes.lock();
            let Some(node) = nodes.get_mut(&id) else { return };
            self.wire.cut_power(id);
            let running = node.running.take();
            if let Some(running) = &running {
                let pending = running.life.pending.load(Ordering::Relaxed);
                if power && pending > 0 {
                    self.notes.reached("power lost with writes under way");
                }
                self.notes.line(format!("node {id} crashes, power {power}, {pending} writes"));
            }
            node.disk.crash(power);
            running
        };
        let Some(running) = running else { return };
        if timeout(SHUTDOWN, running.raft.shutdown()).await.is_err() {
            self.object(id, "its shutdown does not end");
        }
        self.ended.lock().push(running.raft);
    }

    /// Notes which features have met in this run: what leases answered and what full inboxes
    /// dropped, over all lives.
    pub(crate) fn note_features(&self) {
        let mut lives = self.ended.lock().clone();
        lives.extend(self.all_running().into_iter().map(|node| node.raft));
        let sum = |of: fn(voussoir_raft::Stats) -> u64| -> u64 {
            lives.iter().map(|raft| of(raft.stats())).sum()
        };
        let (by_lease, dropped) = (sum(|it| it.lease_reads), sum(|it| it.messages_dropped));
        if (by_lease > 0) != self.setup.config.max_clock_drift_ppm.is_some() {
            return;
        }
        self.notes.reached(match (by_lease > 0, dropped > 0, self.setup.is_long()) {
            (false, false, false) => "no leases",
            (false, true, false) => "no leases, small inbox",
            (false, false, true) => "no leases, long round trips",
            (false, true, true) => "no leases, small inbox, long round trips",
            (true, false, false) => "leases",
            (true, true, false) => "leases, small inbox",
            (true, false, true) => "leases, long round trips",
            (true, true, true) => "leases, small inbox, long round trips",
        });
    }

    /// A node's disk is replaced by an empty one, and it is started: the store must refuse.
    pub(crate) async fn lose_disk(&self, id: u64) {
        self.crash(id, true).await;
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(&id) else { return };
        if !node.disk.lose() {
            return;
        }
        node.out = true;
        match node.disk.open(&self.setup, &self.notes, &self.truth) {
            Err(NotOpened::Empty) => self.notes.reached("restart on an empty disk refused"),
            Err(NotOpened::Failed(error)) => self.object(id, &error),
            Ok(_) => self.object(id, "it starts on an empty disk"),
        }
        node.disk.crash(true);
    }

    /// The disk that a node had lost is put back, and it is started.
    pub(crate) async fn return_disk(&self, id: u64) {
        {
            let mut nodes = self.nodes.lock();
            let Some(node) = nodes.get_mut(&id).filter(|node| node.out) else { return };
            node.disk.put_back();
            node.out = false;
        }
        self.start(id).await;
        self.notes.reached("node rebuilt on the disk that it had lost");
    }

    /// Asks a node to campaign.
    pub(crate) fn campaign(&self, node: &Running) {
        if node.raft.campaign().is_ok() {
            *self.asked.lock() = Some((node.id, node.status().term));
        }
    }

    fn object(&self, id: u64, text: &str) {
        self.notes.object(format!("node {id}: {text}"));
    }

    pub(crate) fn running(&self, id: u64) -> Option<Running> {
        self.nodes.lock().get(&id)?.running.clone()
    }

    /// All nodes that run.
    pub(crate) fn all_running(&self) -> Vec<Running> {
        self.nodes.lock().values().filter_map(|node| node.running.clone()).collect()
    }

    /// How many nodes stay out.
    pub(crate) fn out(&self) -> usize {
        self.nodes.lock().values().filter(|node| node.out).count()
    }

    /// Whoever leads the latest term, as far as the nodes know.
    pub(crate) fn leader(&self) -> Option<Running> {
        let leads = |node: &Running| {
            let status = node.status();
            status.role == Role::Leader && status.halted.is_none()
        };
        let leaders = self.all_running().into_iter().filter(leads);
        leaders.max_by_key(|node| node.status().term)
    }

    /// Does something to the disk and the machine of a node.
    pub(crate) fn with<T>(&self, id: u64, f: impl FnOnce(&mut Disk, &Pace) -> T) -> Option<T> {
        let mut nodes = self.nodes.lock();
        let node = nodes.get_mut(&id)?;
        Some(f(&mut node.disk, &node.pace))
    }

    /// The disk of a node fails from now on.
    pub(crate) fn fail_disk(&self, id: u64) {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get_mut(&id).filter(|node| node.running.is_some()) {
            node.excused = true;
            node.disk.fail();
        }
    }

    /// Tells all nodes to stop, from a thread outside the run.
    pub(crate) fn stop_all(&self) {
        for node in self.all_running() {
            // The first poll tells the node; nobody waits for its end.
            let mut shutdown = pin!(node.raft.shutdown());
            let _ = shutdown.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// What has to hold at any time.
    pub(crate) fn check(&self) {
        if let Some(leader) = self.leader() {
            let won =
                |asked: &mut (u64, u64)| asked.0 == leader.id && asked.1 < leader.status().term;
            if self.asked.lock().take_if(won).is_some() {
                self.notes.reached("node asked to campaign leads");
            }
            let before = self.led_by.lock().replace(leader.id);
            if before.is_some_and(|before| before != leader.id) {
                self.notes.reached("leadership moves");
            }
        }
        for (id, node) in self.nodes.lock().iter() {
            let Some(running) = &node.running else { continue };
            if let Some(reason) = running.raft.stopped() {
                if node.excused {
                    continue;
                }
                self.object(*id, &format!("it has stopped by itself: {reason}"));
                continue;
            }
            let status = running.status();
            let behind = self.truth.weight(status.applied, status.commit);
            if behind > self.setup.config.max_window_bytes.max(4096) * 2 {
                self.notes.reached("machine behind by more bytes than the window holds");
            }
            let (held, limit) = (running.held.bytes(), self.max_held(running, &status));
            if held > limit {
                let text = format!("it keeps {held} bytes alive, its limits allow {limit}");
                self.object(*id, &text);
            }
            if running.raft.stats().messages_dropped > 0 {
                self.notes.reached("message dropped at a full inbox");
            }
        }
    }

    /// The most bytes of commands and messages that a node keeps alive under its configuration,
    /// in the state that it shows.
    fn max_held(&self, node: &Running, status: &Status) -> u64 {
        let Setup { config, payload_bytes, .. } = &self.setup;
        let largest = payload_bytes + voussoir_raft::ENTRY_OVERHEAD;
        let append = config.max_append_bytes + largest;
        let window = config.max_window_bytes + largest;
        // Entries that are not durable stay: a leader's own, and what a follower is sent.
        let unsafe_bytes = if status.durable == status.last {
            0
        } else {
            config.max_uncommitted_bytes.max(largest) + config.max_inflight_bytes + append
        };
        let arriving = node.held.recent().min(config.max_inbox_bytes + append) + append;
        let applying = config.max_applying_bytes + largest;
        let waiting = self.open_calls.load(Ordering::Relaxed) as u64 * payload_bytes;
        // An entry keeps the whole message alive with which it came; it may have been sent twice.
        2 * (window + unsafe_bytes + arriving + applying) + waiting + (16 << 10)
    }
}
