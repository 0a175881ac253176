//! Tables in a faulty world: calls lost and delayed, replicas that crash and lose what was not
//! synced, disks that are lost and rebuilt under a new incarnation, coordinators of several
//! clients.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use voussoir_quorum::table::*;
use voussoir_quorum::version::{Actor, Dot, DotSource, Siblings, VersionVector};
use voussoir_sim::{Rng, Situations};

const MS: u64 = 1_000_000;
const TIMEOUT: u64 = 60 * MS;
static SITUATIONS: [&str; 18] = [
    "a request was lost",
    "an answer was lost",
    "a replica crashed with an unsynced record",
    "a disk was lost",
    "a replica was rebuilt",
    "an answer of a replica that is not whole",
    "a read was hedged",
    "a read was answered with a digest",
    "a digest matched no state",
    "a read waited for its repair",
    "a call was made again",
    "an operation ended well whose calls were made again",
    "a repair failed",
    "a write of unknown outcome",
    "a write that was not sent went to another primary",
    "a read was behind its session",
    "concurrent writes became siblings",
    "a delete was acknowledged",
];

struct Server {
    replica: Replica,
    incarnation: u64,
    disk: BTreeMap<Bytes, Siblings<Bytes>>,
    mark: u64,
    is_whole: bool,
    /// What is on the way to the disk.
    writes: Vec<ReplicaOutput>,
    /// Rises with each restart: what the disk had read for an earlier life is lost.
    life: u64,
}

enum Event {
    Request { coordinator: usize, call: u64, to: u64, request: Request },
    Answer { coordinator: usize, input: CoordinatorInput },
    Synced { at: u64 },
    Loaded { at: u64, life: u64, key: Bytes },
    Rebuild { at: u64 },
    Wake { coordinator: usize },
    Begin { coordinator: usize },
}

/// An operation as its client saw it.
struct Seen {
    key: Bytes,
    began: u64,
    ended: u64,
    context: VersionVector,
    is_write: bool,
}

struct Running {
    key: Bytes,
    began: u64,
    at_least: VersionVector,
    is_write: bool,
    is_delete: bool,
    /// Calls that the coordinator had made again before it.
    retried: u64,
}

struct World {
    rng: Rng,
    /// Replicas read keys from the disk when they are asked for them.
    is_on_store: bool,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    config: TableConfig,
    servers: Vec<Server>,
    coordinators: Vec<Coordinator>,
    wake_at: Vec<u64>,
    running: Vec<Option<(u64, Running)>>,
    /// The latest context of each session, by key.
    sessions: Vec<BTreeMap<Bytes, VersionVector>>,
    seen: Vec<Seen>,
    next_value: u64,
    /// The dot of each value, each of which is written once.
    dots: BTreeMap<Bytes, Dot>,
    stats: Stats,
}

impl World {
    fn new(seed: u64, mut config: TableConfig) -> Self {
        (config.timeout, config.hedge_after) =
            (Duration::from_nanos(TIMEOUT), Duration::from_millis(8));
        // Always digests; of some states; none.
        config.min_digest_bytes = [0, 140, u32::MAX][seed as usize % 3];
        let mut world = Self {
            rng: Rng::new(seed),
            is_on_store: seed / 4 % 2 == 1,
            now: 0,
            events: BTreeMap::new(),
            next_event: 0,
            servers: Vec::new(),
            coordinators: Vec::new(),
            wake_at: vec![0; 3],
            running: (0..3).map(|_| None).collect(),
            sessions: vec![BTreeMap::new(); 3],
            seen: Vec::new(),
            next_value: 0,
            dots: BTreeMap::new(),
            stats: Stats::default(),
            config,
        };
        for node in world.config.replicas.clone() {
            let replica =
                Replica::recover(DotSource::recover(Actor::new(node, 1), 0, []), [], true);
            world.servers.push(Server {
                replica,
                incarnation: 1,
                disk: BTreeMap::new(),
                mark: 0,
                is_whole: true,
                writes: Vec::new(),
                life: 0,
            });
            world.recover(node);
        }
        for coordinator in 0..3 {
            world.coordinators.push(Coordinator::new(world.config.clone()).unwrap());
            world.schedule(coordinator as u64 * MS, Event::Begin { coordinator });
        }
        world
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + delay.max(1), self.next_event), event);
    }

    fn is_calm(&self) -> bool {
        self.now > 2_000 * MS
    }

    fn delay(&mut self) -> u64 {
        let is_slow = !self.is_calm() && self.rng.chance(60_000);
        self.rng.below(if is_slow { 90 * MS } else { 3 * MS })
    }

    fn run(&mut self, situations: &Situations) {
        // Ends: clients begin operations for 2.5 s, and each ends by its deadline.
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            match event {
                Event::Request { coordinator, call, to, request } => {
                    let id = call * 8 + coordinator as u64;
                    self.servers[to as usize].replica.request(id, request).unwrap();
                    self.drain(to, situations);
                }
                Event::Answer { coordinator, input } => {
                    self.coordinators[coordinator].step(at, input);
                    self.pump(coordinator, situations);
                }
                Event::Synced { at } => {
                    self.sync(at);
                    self.drain(at, situations);
                }
                Event::Loaded { at, life, key } if self.servers[at as usize].life == life => {
                    self.load(at, key);
                    self.drain(at, situations);
                }
                Event::Loaded { .. } => {}
                Event::Rebuild { at } => self.rebuild(at, situations),
                Event::Wake { coordinator } if self.wake_at[coordinator] == at => {
                    self.coordinators[coordinator].step(at, CoordinatorInput::Time);
                    self.pump(coordinator, situations);
                }
                Event::Wake { .. } => {}
                Event::Begin { coordinator } if at < 2_500 * MS => {
                    self.begin(coordinator);
                    self.pump(coordinator, situations);
                }
                Event::Begin { .. } => {}
            }
            if !self.is_calm() && self.rng.chance(3_000) {
                self.crash(situations);
            }
        }
        for coordinator in &self.coordinators {
            let stats = coordinator.stats();
            assert_eq!(stats.operations, 0, "an operation hangs");
            situations.add("a read was hedged", stats.hedged);
            situations.add("a read waited for its repair", stats.blocking_repairs);
            situations.add("a read was answered with a digest", stats.digests);
            situations.add("a digest matched no state", stats.unmatched_digests);
            situations.add("a call was made again", stats.retried);
            self.stats.divergent_reads += stats.divergent_reads;
        }
        assert!(self.running.iter().all(Option::is_none), "an operation was not answered");
    }

    fn load(&mut self, at: u64, key: Bytes) {
        let server = &mut self.servers[at as usize];
        let state = server.disk.get(&key).cloned();
        server.replica.step(ReplicaInput::Loaded { key, state });
    }

    /// The oldest write reaches the disk.
    fn sync(&mut self, at: u64) {
        let server = &mut self.servers[at as usize];
        if server.writes.is_empty() {
            return;
        }
        let ReplicaOutput::Persist { id, key, state, mark, is_whole } = server.writes.remove(0)
        else {
            return;
        };
        for (dot, value) in state.iter() {
            let first = *self.dots.entry(value.clone()).or_insert(dot);
            assert_eq!(first, dot, "a write has two dots");
        }
        server.is_whole &= is_whole;
        server.disk.insert(key, state);
        server.mark = mark.unwrap_or(server.mark);
        server.replica.step(ReplicaInput::Persisted { id });
    }

    fn drain(&mut self, at: u64, situations: &Situations) {
        while let Some(output) = self.servers[at as usize].replica.poll_output() {
            match output {
                ReplicaOutput::Load { key } => {
                    let life = self.servers[at as usize].life;
                    let delay = self.rng.below(2 * MS);
                    self.schedule(delay, Event::Loaded { at, life, key });
                }
                ReplicaOutput::Persist { .. } => {
                    self.servers[at as usize].writes.push(output);
                    let delay = self.rng.below(2 * MS);
                    self.schedule(delay, Event::Synced { at });
                }
                ReplicaOutput::Reply { id, reply } => {
                    let name = "an answer of a replica that is not whole";
                    situations.add(name, (reply == Reply::NotWhole).into());
                    let (coordinator, call) = ((id % 8) as usize, id / 8);
                    let is_lost = !self.is_calm() && self.rng.chance(40_000);
                    situations.add("an answer was lost", is_lost.into());
                    let input = if is_lost {
                        CoordinatorInput::Failed { call, error: CallError::Unknown }
                    } else {
                        CoordinatorInput::Reply { call, reply }
                    };
                    let delay = self.delay();
                    self.schedule(delay, Event::Answer { coordinator, input });
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn recover(&mut self, at: u64) {
        let server = &mut self.servers[at as usize];
        let dots = DotSource::recover(Actor::new(at, server.incarnation), server.mark, []);
        server.life += 1;
        server.replica = if self.is_on_store {
            Replica::on_store(dots, server.is_whole)
        } else {
            Replica::recover(dots, server.disk.clone(), server.is_whole)
        };
    }

    fn crash(&mut self, situations: &Situations) {
        let at = self.rng.below(self.servers.len() as u64);
        let all_whole = self.servers.iter().all(|server| server.is_whole);
        let server = &mut self.servers[at as usize];
        let name = "a replica crashed with an unsynced record";
        situations.add(name, (!server.writes.is_empty()).into());
        server.writes.clear();
        if all_whole && self.rng.chance(200_000) {
            (server.disk, server.mark, server.is_whole) = (BTreeMap::new(), 0, false);
            server.incarnation += 1;
            situations.reached("a disk was lost");
            self.schedule(2 * TIMEOUT, Event::Rebuild { at });
        }
        self.recover(at);
    }

    /// Copies what the other replicas have on their disks.
    fn rebuild(&mut self, at: u64, situations: &Situations) {
        let others: Vec<_> = self.servers.iter().filter(|s| s.is_whole).map(|s| &s.disk).collect();
        let states: Vec<_> = others.into_iter().flat_map(BTreeMap::clone).collect();
        for (key, state) in states {
            let replica = &mut self.servers[at as usize].replica;
            // An answer to call 0, which no coordinator waits for.
            replica.request(0, Request::Merge { key: key.clone(), state }).unwrap();
            self.load(at, key);
        }
        self.drain(at, situations);
        while !self.servers[at as usize].writes.is_empty() {
            self.sync(at);
        }
        self.servers[at as usize].is_whole = true;
        self.servers[at as usize].replica.rebuilt();
        situations.reached("a replica was rebuilt");
    }

    fn begin(&mut self, at: usize) {
        let key = Bytes::copy_from_slice(&[self.rng.below(3) as u8]);
        let context = self.sessions[at].get(&key).cloned().unwrap_or_default();
        let (mut is_write, mut is_delete) = (true, false);
        let mut at_least = context.clone();
        self.next_value += 1;
        let value = Bytes::copy_from_slice(&self.next_value.to_le_bytes());
        let (now, coordinator) = (self.now, &mut self.coordinators[at]);
        let operation = match self.rng.below(12) {
            0..=5 => {
                is_write = false;
                coordinator.get(now, key.clone(), context.clone())
            }
            6 => {
                // It returns what its primary has, whatever the session has seen.
                at_least = VersionVector::new();
                coordinator.put_blind(now, key.clone(), value)
            }
            7 => {
                is_delete = true;
                coordinator.delete(now, key.clone(), context.clone())
            }
            _ => coordinator.put(now, key.clone(), context, value),
        };
        let retried = coordinator.stats().retried;
        let running = Running { key, began: now, at_least, is_write, is_delete, retried };
        self.running[at] = Some((operation.unwrap(), running));
    }

    fn pump(&mut self, at: usize, situations: &Situations) {
        let mut not_sent = false;
        // Ends: a coordinator has a bounded number of outputs between two inputs.
        while let Some(output) = self.coordinators[at].poll_output() {
            match output {
                CoordinatorOutput::Call { id: call, to, request } => {
                    let is_primary = matches!(request, Request::Write { .. });
                    let name = "a write that was not sent went to another primary";
                    situations.add(name, (is_primary && not_sent).into());
                    let (chance, delay) = (!self.is_calm(), self.delay());
                    if chance && self.rng.chance(60_000) {
                        situations.reached("a request was lost");
                        let is_sure = self.rng.chance(500_000);
                        let error = if is_sure { CallError::NotSent } else { CallError::Unknown };
                        if is_sure && is_primary {
                            // Reported at once, so that the next call is seen to follow it.
                            not_sent = true;
                            let input = CoordinatorInput::Failed { call, error };
                            self.coordinators[at].step(self.now, input);
                            continue;
                        }
                        let input = CoordinatorInput::Failed { call, error };
                        self.schedule(delay, Event::Answer { coordinator: at, input });
                        // An unknown failure may be one of a request that arrives.
                        if is_sure || self.rng.chance(500_000) {
                            continue;
                        }
                    }
                    let event = Event::Request { coordinator: at, call, to, request };
                    self.schedule(delay, event);
                }
                CoordinatorOutput::Cancel { .. } | CoordinatorOutput::Missed { .. } => {}
                CoordinatorOutput::Done { operation, result } => {
                    self.done(at, operation, result, situations);
                    let pause = self.rng.below(10 * MS);
                    self.schedule(pause, Event::Begin { coordinator: at });
                }
                other => panic!("{other:?}"),
            }
        }
        if let Some(due) = self.coordinators[at].next_deadline() {
            self.wake_at[at] = due.max(self.now + 1);
            self.schedule(self.wake_at[at] - self.now, Event::Wake { coordinator: at });
        }
    }

    fn done(
        &mut self,
        at: usize,
        operation: u64,
        result: Result<Value, OperationError>,
        situations: &Situations,
    ) {
        let (expected, running) = self.running[at].take().expect("it is under way");
        assert_eq!(operation, expected);
        match result {
            Ok(state) => {
                assert!(state.context().covers(&running.at_least), "behind its session");
                situations.add("concurrent writes became siblings", (state.len() > 1).into());
                situations.add("a delete was acknowledged", running.is_delete.into());
                let was_tried = self.coordinators[at].stats().retried > running.retried;
                let name = "an operation ended well whose calls were made again";
                situations.add(name, was_tried.into());
                let session = self.sessions[at].entry(running.key.clone()).or_default();
                session.merge(state.context());
                self.seen.push(Seen {
                    key: running.key,
                    began: running.began,
                    ended: self.now,
                    context: state.context().clone(),
                    is_write: running.is_write,
                });
            }
            Err(error) => {
                let is_lost = error == OperationError::Behind;
                assert!(is_lost || self.now < 2_200 * MS, "{error} without faults");
                if is_lost {
                    // What the session had seen was lost with a disk: it begins anew.
                    self.sessions[at].remove(&running.key);
                }
                let name = match error {
                    OperationError::RepairFailed { .. } => "a repair failed",
                    OperationError::WriteUnknown { .. } => "a write of unknown outcome",
                    OperationError::Behind => "a read was behind its session",
                    _ => return,
                };
                situations.reached(name);
            }
        }
    }

    /// How many reads missed a write that was acknowledged before they began, and how many saw less
    /// than a read that had ended before they began.
    fn anomalies(&self) -> (usize, usize) {
        let (mut stale, mut not_monotonic) = (0, 0);
        for read in self.seen.iter().filter(|seen| !seen.is_write) {
            let before = |seen: &&Seen| seen.key == read.key && seen.ended < read.began;
            let missed = |seen: &Seen| !read.context.covers(&seen.context);
            let earlier = || self.seen.iter().filter(before);
            stale += usize::from(earlier().any(|seen| seen.is_write && missed(seen)));
            not_monotonic += usize::from(earlier().any(|seen| !seen.is_write && missed(seen)));
        }
        (stale, not_monotonic)
    }

    /// Merges all replicas: every acknowledged write is there, or was replaced by one that saw it.
    fn converge(&mut self) {
        let mut all: BTreeMap<Bytes, Siblings<Bytes>> = BTreeMap::new();
        for server in &self.servers {
            for (key, state) in &server.disk {
                all.entry(key.clone()).or_default().merge(state.clone());
            }
        }
        for seen in self.seen.iter().filter(|seen| seen.is_write && !seen.context.is_empty()) {
            assert!(
                all[&seen.key].context().covers(&seen.context),
                "an acknowledged write is lost"
            );
        }
    }
}

fn config(read: Level, write: Level, read_repair: ReadRepair) -> TableConfig {
    let mut config = TableConfig::with_replicas([0, 1, 2]);
    (config.read, config.write, config.read_repair) = (read, write, read_repair);
    config.require = config.guarantee();
    config
}

fn seeds(default: u64) -> u64 {
    std::env::var("VOUSSOIR_SEEDS").map_or(default, |n| n.parse().unwrap())
}

#[test]
fn strict_tables_lose_no_write_and_reads_never_go_back() {
    let situations = Situations::new(&SITUATIONS);
    for seed in 0..seeds(120) {
        // Not R = N, W = 1: a lost disk would take the only copy of a write.
        let (read, write) = match seed % 4 {
            0 => (Level::One, Level::All),
            1 => (Level::All, Level::Quorum),
            _ => (Level::Quorum, Level::Quorum),
        };
        let config = config(read, write, ReadRepair::Blocking);
        assert_eq!(config.guarantee(), Guarantee::Monotonic);
        let mut world = World::new(seed, config);
        world.run(&situations);
        assert_eq!(world.anomalies(), (0, 0), "seed {seed}");
        assert!(world.seen.len() > 60, "seed {seed}: {} operations", world.seen.len());
        world.converge();
    }
    println!("{situations}");
    assert_eq!(situations.missed(), ["a read was behind its session"], "R + W > N");
}

/// The checker sees what the weaker settings allow: otherwise it would prove nothing above.
#[test]
fn weak_tables_show_stale_reads_and_reads_that_go_back() {
    let situations = Situations::new(&SITUATIONS);
    let (mut stale, mut background) = (0, (0, 0));
    for seed in 0..seeds(120) {
        let weak = config(Level::One, Level::One, ReadRepair::Background);
        assert_eq!(weak.guarantee(), Guarantee::Eventual);
        let mut world = World::new(seed, weak);
        world.run(&situations);
        stale += world.anomalies().0;
        let config = config(Level::Quorum, Level::Quorum, ReadRepair::Background);
        assert_eq!(config.guarantee(), Guarantee::Intersecting);
        let mut world = World::new(seed, config);
        world.run(&situations);
        let anomalies = world.anomalies();
        background = (background.0 + anomalies.0, background.1 + anomalies.1);
    }
    println!("{situations}");
    assert!(situations.count("a read was behind its session") > 0);
    println!("R=W=1: {stale} stale reads; quorum, background repair: {background:?}");
    assert!(stale > 100, "R + W <= N shows stale reads");
    assert_eq!(background.0, 0, "R + W > N: no acknowledged write is missed");
    assert!(background.1 > 0, "without blocking repair, reads go back");
}

#[test]
fn a_guarantee_that_cannot_be_given_is_refused() {
    let mut config = TableConfig::with_replicas([1, 2, 3]);
    let mut coordinator = Coordinator::new(config.clone()).unwrap();
    let key = Bytes::from_static(b"k");
    let given = Guarantee::Eventual;
    assert_eq!(
        coordinator.get_at(0, key, VersionVector::new(), Level::One),
        Err(Rejected::Guarantee { given, required: Guarantee::Monotonic })
    );
    assert_eq!(coordinator.poll_output(), None, "nothing was sent");
    config.read = Level::One;
    assert_eq!(Coordinator::new(config.clone()).unwrap_err().field, "require");
    config.require = Guarantee::Eventual;
    assert!(Coordinator::new(config.clone()).is_ok());
    (config.read, config.require) = (Level::Quorum, Guarantee::Monotonic);
    config.read_repair = ReadRepair::Background;
    assert_eq!(Coordinator::new(config.clone()).unwrap_err().field, "require");
    config.require = Guarantee::Intersecting;
    assert!(Coordinator::new(config).is_ok());
}

/// riak_kv #1643: a replica that was restored from a backup and kept its incarnation.
#[test]
fn a_replica_that_meets_its_own_future_no_longer_counts() {
    let actor = Actor::new(1, 1);
    let key = Bytes::from_static(b"k");
    let mut replica = Replica::recover(DotSource::recover(actor, 0, []), [], true);
    let value = Some(Bytes::from_static(b"v"));
    let write = |seen| Request::Write { key: key.clone(), seen, value: value.clone() };
    let kept = std::cell::Cell::new(None);
    let mut answer = |request| {
        replica.request(1, request).unwrap();
        let mut reply = None;
        while let Some(output) = replica.poll_output() {
            match output {
                ReplicaOutput::Persist { id, is_whole, .. } => {
                    kept.set(Some(is_whole));
                    replica.step(ReplicaInput::Persisted { id });
                }
                ReplicaOutput::Reply { reply: given, .. } => reply = Some(given),
                other => panic!("{other:?}"),
            }
        }
        reply.unwrap()
    };
    assert!(matches!(answer(write(VersionVector::new())), Reply::Written { .. }));
    let future = Dot::new(actor, 9);
    let seen: VersionVector = [future].into_iter().collect();
    assert_eq!(answer(write(seen.clone())), Reply::Refused, "a context it never gave out");
    // Another key's context may hold what a client made up: it proves nothing.
    let other = Bytes::from_static(b"other");
    let made_up = Siblings::from_parts(seen.clone(), BTreeMap::new());
    assert_eq!(answer(Request::Merge { key: other.clone(), state: made_up }), Reply::Merged);
    // A value under such a dot was drawn by this replica, and forgotten.
    let state = Siblings::from_parts(seen, BTreeMap::from([(future, Bytes::from_static(b"w"))]));
    assert_eq!(answer(Request::Merge { key: key.clone(), state }), Reply::NotWhole);
    assert_eq!(answer(Request::Get { key: key.clone() }), Reply::NotWhole);
    assert!(!replica.is_whole());
    let keys: BTreeSet<_> = replica.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(keys, BTreeSet::from([key, other]));
    // What was noticed is on the disk with the record: a restart does not count either.
    assert_eq!(kept.get(), Some(false));
}

/// An operation whose time is over counts no answer, though the answer is handed in before the
/// timer.
#[test]
fn an_answer_behind_the_deadline_counts_for_nothing() {
    let mut config = TableConfig::with_replicas([1, 2, 3]);
    config.timeout = Duration::from_secs(1);
    let mut coordinator = Coordinator::new(config).unwrap();
    let operation = coordinator.put_blind(0, Bytes::from_static(b"k"), Bytes::new()).unwrap();
    let mut calls = Vec::new();
    let mut done = None;
    let mut poll = |coordinator: &mut Coordinator, calls: &mut Vec<(u64, Request)>| {
        while let Some(output) = coordinator.poll_output() {
            match output {
                CoordinatorOutput::Call { id, request, .. } => calls.push((id, request)),
                CoordinatorOutput::Done { operation, result } => done = Some((operation, result)),
                _ => {}
            }
        }
    };
    poll(&mut coordinator, &mut calls);
    let (primary, _) = calls.pop().unwrap();
    let mut state = Siblings::new();
    state.put_blind(Dot::new(Actor::new(1, 1), 1), Bytes::new()).unwrap();
    let reply = Reply::Written { state };
    coordinator.step(1, CoordinatorInput::Reply { call: primary, reply });
    poll(&mut coordinator, &mut calls);
    let (merge, _) = calls.pop().unwrap();
    let late = CoordinatorInput::Reply { call: merge, reply: Reply::Merged };
    coordinator.step(1_000_000_001, late);
    poll(&mut coordinator, &mut calls);
    let (id, result) = done.unwrap();
    assert_eq!(id, operation);
    assert!(matches!(result, Err(OperationError::WriteUnknown { .. })), "{result:?}");
}

/// What a replica takes, the decoder reads back by default.
#[test]
fn a_value_that_the_decoder_would_refuse_is_refused() {
    let actor = Actor::new(1, 1);
    let mut replica = Replica::recover(DotSource::recover(actor, 0, []), [], true);
    for (len, is_refused) in
        [(Replica::MAX_VALUE_BYTES, false), (Replica::MAX_VALUE_BYTES + 1, true)]
    {
        let (key, seen) = (Bytes::from_static(b"k"), VersionVector::new());
        let value = Some(Bytes::from(vec![0; len]));
        replica.request(1, Request::Write { key, seen, value }).unwrap();
        let mut refused = None;
        while let Some(output) = replica.poll_output() {
            match output {
                ReplicaOutput::Persist { id, .. } => replica.step(ReplicaInput::Persisted { id }),
                ReplicaOutput::Reply { reply, .. } => refused = Some(reply == Reply::Refused),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(refused, Some(is_refused), "{len} bytes");
    }
}

/// Everything that a replica answers, with its disk as quick as can be.
fn ask(replica: &mut Replica, epoch: u64, request: Request) -> Reply {
    replica.request_at(1, epoch, request).unwrap();
    let mut reply = None;
    while let Some(output) = replica.poll_output() {
        match output {
            ReplicaOutput::Persist { id, .. }
            | ReplicaOutput::Forget { id, .. }
            | ReplicaOutput::PersistEpoch { id, .. } => {
                replica.step(ReplicaInput::Persisted { id });
            }
            ReplicaOutput::Reply { reply: given, .. } => reply = Some(given),
            other => panic!("{other:?}"),
        }
    }
    reply.unwrap()
}

/// scylladb #23712: what an operation read before a delete is merged after the tombstone was
/// collected.
#[test]
fn what_was_read_before_the_collection_is_merged_nowhere() {
    let mut replica = Replica::recover(DotSource::recover(Actor::new(1, 1), 0, []), [], true);
    let key = Bytes::from_static(b"k");
    let (seen, value) = (VersionVector::new(), Some(Bytes::from_static(b"v")));
    let write = Request::Write { key: key.clone(), seen, value };
    let Reply::Written { state: old } = ask(&mut replica, 1, write) else { panic!() };
    let seen = old.context().clone();
    let delete = Request::Write { key: key.clone(), seen, value: None };
    let Reply::Written { state: tombstone } = ask(&mut replica, 1, delete) else { panic!() };
    let context = tombstone.context().clone();
    for epoch in [2, 3] {
        assert_eq!(ask(&mut replica, 0, Request::Epoch { epoch }), Reply::Epoch { epoch });
    }
    let other = [Dot::new(Actor::new(2, 1), 1)].into_iter().collect();
    let newer = Request::Forget { key: key.clone(), context: other };
    assert_eq!(ask(&mut replica, 3, newer), Reply::Merged);
    assert_eq!(replica.iter().count(), 1, "a tombstone with another context stays");
    let forget = Request::Forget { key: key.clone(), context };
    assert_eq!(ask(&mut replica, 3, forget), Reply::Merged);
    assert_eq!(replica.iter().count(), 0);
    let merge = Request::Merge { key: key.clone(), state: old };
    assert_eq!(ask(&mut replica, 1, merge.clone()), Reply::Stale { epoch: 3 });
    assert_eq!(replica.iter().count(), 0, "what was deleted stays deleted");
    // Of the previous epoch: it began after every replica held the tombstone.
    assert_eq!(ask(&mut replica, 2, merge), Reply::Merged);
}

/// A store that was lost does not know which tombstones were collected: it merges nothing before
/// it has learned the epoch, and learns none from a collector.
#[test]
fn a_lost_store_merges_nothing_before_it_knows_the_epoch() {
    let dots = DotSource::recover(Actor::new(1, 2), 0, []);
    let mut replica = Replica::recover(dots, [], false).with_epoch(0);
    let mut state = Siblings::new();
    state.put_blind(Dot::new(Actor::new(2, 1), 1), Bytes::new()).unwrap();
    let merge = Request::Merge { key: Bytes::from_static(b"k"), state };
    assert_eq!(ask(&mut replica, 1, merge.clone()), Reply::NotWhole);
    assert_eq!(ask(&mut replica, 0, Request::Epoch { epoch: 5 }), Reply::NotWhole);
    assert_eq!((replica.iter().count(), replica.epoch()), (0, 0));
    replica.learn_epoch(7);
    assert_eq!(ask(&mut replica, 5, merge.clone()), Reply::Stale { epoch: 7 });
    assert_eq!(ask(&mut replica, 7, merge), Reply::NotWhole);
    assert_eq!(replica.iter().count(), 1);
}

/// An operation that is told of a newer epoch begins anew in it, and has one dot.
#[test]
fn an_operation_of_an_old_epoch_begins_anew() {
    let mut coordinator = Coordinator::new(TableConfig::with_replicas([1, 2, 3])).unwrap();
    coordinator.put_blind(0, Bytes::from_static(b"k"), Bytes::new()).unwrap();
    let Some(CoordinatorOutput::Call { id, to, .. }) = coordinator.poll_output() else { panic!() };
    assert_eq!(coordinator.epoch_of(id), Some(1));
    coordinator.step(1, CoordinatorInput::Reply { call: id, reply: Reply::Stale { epoch: 4 } });
    let Some(CoordinatorOutput::Call { id, to: again, .. }) = coordinator.poll_output() else {
        panic!()
    };
    assert_eq!((coordinator.epoch_of(id), again), (Some(4), to));
    assert_eq!(coordinator.poll_output(), None);
}
