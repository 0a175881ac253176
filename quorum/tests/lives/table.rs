//! Tables: what each guarantee promises, by the contexts and the values that clients are given.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use voussoir_quorum::table::*;
use voussoir_quorum::version::{Actor, Dot, DotSource, Siblings, VersionVector};
use voussoir_sim::Situations;

use super::faults::{Fault, JUMP, Life, MS, SETTLED};

static SITUATIONS: [&str; 29] = [
    "a message was lost",
    "a message came twice",
    "a message came late",
    "a link was cut",
    "a server was cut off",
    "only answers were lost",
    "a clock went back",
    "a clock went ahead",
    "a replica crashed with an unsynced record",
    "a disk was lost",
    "a replica was rebuilt",
    "a client was killed in an operation",
    "an operation was rejected as too many",
    "a read was hedged",
    "a read was answered with a digest",
    "a digest matched no state",
    "a read waited for its repair",
    "a call was made again",
    "a repair failed",
    "a write of unknown outcome",
    "an operation was unavailable",
    "a read was behind its session",
    "a session went on with the token of another",
    "a value has siblings",
    "a write was one sibling too many",
    "a delete was acknowledged",
    "a read missed an acknowledged write",
    "a read saw less than an earlier read",
    "a deleted value was seen again",
];

/// What only weaker settings than [`Guarantee::Monotonic`] show.
static WEAK: [&str; 4] = [
    "a read was behind its session",
    "a read missed an acknowledged write",
    "a read saw less than an earlier read",
    "a deleted value was seen again",
];
const CLIENTS: u64 = 3;
const SESSIONS: usize = 2;
const KEYS: u64 = 2;

struct Server {
    replica: Replica,
    incarnation: u64,
    disk: BTreeMap<Bytes, Siblings<Bytes>>,
    mark: u64,
    is_whole: bool,
    /// Records on the way to the disk.
    writes: Vec<ReplicaOutput>,
}

enum Event {
    Request { client: u64, life: u64, call: u64, to: u64, request: Request },
    Reply { client: u64, life: u64, call: u64, reply: Reply },
    Failed { client: u64, life: u64, call: u64, error: CallError },
    Synced { at: u64 },
    Rebuild { at: u64 },
    Wake { client: u64 },
    Begin { client: u64, session: usize },
}

struct Running {
    session: usize,
    key: u64,
    began: u64,
    is_read: bool,
    is_delete: bool,
    at_least: VersionVector,
    /// What was acknowledged before it began: by writes, and by reads.
    writes: VersionVector,
    reads: VersionVector,
}

struct Client {
    coordinator: Coordinator,
    /// Rises when the process is killed: answers to an earlier one reach nobody.
    life: u64,
    wake_at: u64,
    running: BTreeMap<u64, Running>,
    tokens: Vec<BTreeMap<u64, VersionVector>>,
}

/// What is known of a key from the outside.
#[derive(Default)]
struct Known {
    writes: VersionVector,
    reads: VersionVector,
    /// Every dot that became durable somewhere.
    dots: BTreeSet<Dot>,
    /// What some write or delete was told that it replaces.
    superseded: VersionVector,
    /// Since when an acknowledged result showed that a value is gone, in ns.
    gone: BTreeMap<Dot, u64>,
}

struct Cluster<'a> {
    faults: Life<Event>,
    config: TableConfig,
    servers: Vec<Server>,
    clients: Vec<Client>,
    known: BTreeMap<u64, Known>,
    next_value: u64,
    /// No client writes what it has read: every write becomes a sibling.
    is_blind: bool,
    /// The dot of each value, each of which is written once.
    dots: BTreeMap<Bytes, Dot>,
    /// Operations that ended, or were rejected, when nothing was left of the faults.
    settled: usize,
    counts: &'a Situations,
}

fn name(key: u64) -> Bytes {
    Bytes::copy_from_slice(&key.to_be_bytes())
}

/// One whose pauses are those of the seed.
fn coordinator(config: &mut TableConfig, faults: &mut Life<Event>) -> Coordinator {
    config.seed = Some(faults.rng.next_u64());
    Coordinator::new(config.clone()).unwrap()
}

fn count_stats(stats: Stats, counts: &Situations) {
    counts.add("a read was hedged", stats.hedged);
    counts.add("a read was answered with a digest", stats.digests);
    counts.add("a digest matched no state", stats.unmatched_digests);
    counts.add("a read waited for its repair", stats.blocking_repairs);
    counts.add("a call was made again", stats.retried);
}

impl<'a> Cluster<'a> {
    fn new(seed: u64, mut config: TableConfig, counts: &'a Situations) -> Self {
        let mut faults = Life::new(seed);
        let n = config.replicas.len() as u64;
        config.timeout = Duration::from_millis(faults.rng.between(20, 1_500));
        config.hedge_after = Duration::from_millis(faults.rng.between(1, 100));
        config.local = faults.rng.chance(300_000).then(|| faults.rng.below(n));
        config.min_digest_bytes = *faults.rng.pick(&[0, 140, 1_024]).unwrap();
        config.max_operations = *faults.rng.pick(&[2, 10_000, 10_000, 10_000]).unwrap();
        let server = |node| Server {
            replica: Replica::recover(DotSource::recover(Actor::new(node, 1), 0, []), [], true),
            incarnation: 1,
            disk: BTreeMap::new(),
            mark: 0,
            is_whole: true,
            writes: Vec::new(),
        };
        let servers = config.replicas.iter().map(|node| server(*node)).collect();
        let clients = (0..CLIENTS).map(|_| Client {
            coordinator: coordinator(&mut config, &mut faults),
            life: 0,
            wake_at: 0,
            running: BTreeMap::new(),
            tokens: vec![BTreeMap::new(); SESSIONS],
        });
        let clients = clients.collect();
        let mut life = Self {
            faults,
            config,
            servers,
            clients,
            known: BTreeMap::new(),
            next_value: 0,
            is_blind: seed % 7 == 6,
            dots: BTreeMap::new(),
            settled: 0,
            counts,
        };
        for client in 0..CLIENTS {
            (0..SESSIONS)
                .for_each(|session| life.faults.schedule(1, Event::Begin { client, session }));
        }
        life
    }

    fn run(&mut self) {
        // Ends: sessions begin operations until 1 s after the faults, and another one when nothing
        // is left of them, and each has a deadline.
        while let Some(event) = self.faults.next_event() {
            self.handle(event);
            match self.faults.fault() {
                Some(Fault::Crash) => self.crash(),
                Some(Fault::Kill) => self.kill(),
                Some(Fault::Disturb) => {
                    self.faults.disturb(self.servers.len() as u64, CLIENTS, self.counts);
                }
                None => {}
            }
        }
        for client in &self.clients {
            assert_eq!(client.coordinator.stats().operations, 0, "an operation hangs");
            assert!(client.running.is_empty(), "an operation was not answered");
            count_stats(client.coordinator.stats(), self.counts);
        }
        let mut all: BTreeMap<Bytes, Siblings<Bytes>> = BTreeMap::new();
        for (key, state) in self.servers.iter().flat_map(|server| &server.disk) {
            all.entry(key.clone()).or_default().merge(state.clone());
        }
        if self.config.guarantee() > Guarantee::Eventual {
            for (key, known) in &self.known {
                let state = all.remove(&name(*key)).unwrap_or_default();
                assert!(state.context().covers(&known.writes), "an acknowledged write is lost");
                self.no_value_is_lost(*key, &state);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Request { client, life, call, to, request } => {
                // The id tells the replica nothing; it names whom to answer.
                let id = (call * CLIENTS + client) * 1_000 + life;
                self.servers[to as usize].replica.request(id, request).unwrap();
                self.drain(to);
            }
            Event::Reply { client, life, call, reply } => {
                self.input(client, life, CoordinatorInput::Reply { call, reply });
            }
            Event::Failed { client, life, call, error } => {
                self.input(client, life, CoordinatorInput::Failed { call, error });
            }
            Event::Synced { at } => {
                self.sync(at);
                self.drain(at);
            }
            Event::Rebuild { at } => self.rebuild(at),
            Event::Wake { client } if self.clients[client as usize].wake_at == self.faults.now => {
                let life = self.clients[client as usize].life;
                self.input(client, life, CoordinatorInput::Time);
            }
            Event::Wake { .. } => {}
            Event::Begin { client, session } => match self.faults.wait_to_begin() {
                Some(0) => {
                    self.begin(client, session);
                    self.pump(client);
                }
                Some(wait) => self.faults.schedule(wait, Event::Begin { client, session }),
                None => {}
            },
        }
    }

    fn input(&mut self, at: u64, life: u64, input: CoordinatorInput) {
        if self.clients[at as usize].life == life {
            let now = self.faults.clock(self.servers.len() as u64 + at);
            self.clients[at as usize].coordinator.step(now, input);
            self.pump(at);
        }
    }

    /// The oldest record reaches the disk.
    fn sync(&mut self, at: u64) {
        let server = &mut self.servers[at as usize];
        if server.writes.is_empty() {
            return;
        }
        let ReplicaOutput::Persist { id, key, state, mark, is_whole } = server.writes.remove(0)
        else {
            panic!("not a record");
        };
        let number = u64::from_be_bytes(key[..].try_into().unwrap());
        for (dot, value) in state.iter() {
            let first = *self.dots.entry(value.clone()).or_insert(dot);
            assert_eq!(first, dot, "a write has two dots");
            self.known.entry(number).or_default().dots.insert(dot);
        }
        server.is_whole &= is_whole;
        server.disk.insert(key, state);
        server.mark = mark.unwrap_or(server.mark);
        server.replica.step(ReplicaInput::Persisted { id });
    }

    fn drain(&mut self, at: u64) {
        while let Some(output) = self.servers[at as usize].replica.poll_output() {
            match output {
                ReplicaOutput::Persist { .. } => {
                    self.servers[at as usize].writes.push(output);
                    let delay = self.faults.rng.below(4 * MS);
                    self.faults.schedule(delay, Event::Synced { at });
                }
                ReplicaOutput::Reply { id, reply } => {
                    let (life, client, call) =
                        (id % 1_000, id / 1_000 % CLIENTS, id / 1_000 / CLIENTS);
                    let link = (at, self.servers.len() as u64 + client);
                    for delay in self.faults.fate(link, false, self.counts) {
                        let reply = reply.clone();
                        self.faults.schedule(delay, Event::Reply { client, life, call, reply });
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn crash(&mut self) {
        let at = self.faults.rng.below(self.servers.len() as u64);
        let all_whole = self.servers.iter().all(|server| server.is_whole);
        let server = &mut self.servers[at as usize];
        let unsynced = !server.writes.is_empty();
        self.counts.add("a replica crashed with an unsynced record", unsynced.into());
        server.writes.clear();
        if all_whole && self.faults.rng.chance(200_000) {
            (server.disk, server.mark, server.is_whole) = (BTreeMap::new(), 0, false);
            server.incarnation += 1;
            self.counts.reached("a disk was lost");
            // Also an operation of a client whose clock stands still has ended by then.
            let wait = JUMP + self.config.timeout.as_nanos() as u64 + MS;
            self.faults.schedule(wait, Event::Rebuild { at });
        }
        let server = &mut self.servers[at as usize];
        let dots = DotSource::recover(Actor::new(at, server.incarnation), server.mark, []);
        server.replica = Replica::recover(dots, server.disk.clone(), server.is_whole);
    }

    /// Copies what N - W + 1 other replicas have on their disks, which is the least that suffices.
    fn rebuild(&mut self, at: u64) {
        let n = self.servers.len();
        let mut others: Vec<usize> = (0..n).filter(|other| self.servers[*other].is_whole).collect();
        self.faults.rng.shuffle(&mut others);
        others.truncate(n - self.config.write.count(n) + 1);
        for other in others {
            for (key, state) in self.servers[other].disk.clone() {
                let replica = &mut self.servers[at as usize].replica;
                // Answered to call 0, which nobody has made.
                replica.request(0, Request::Merge { key, state }).unwrap();
            }
        }
        self.drain(at);
        // Ends: each turn takes one record off the list.
        while !self.servers[at as usize].writes.is_empty() {
            self.sync(at);
        }
        self.servers[at as usize].is_whole = true;
        self.servers[at as usize].replica.rebuilt();
        self.counts.reached("a replica was rebuilt");
    }

    /// The process of a client dies with its coordinator. Its sessions keep their tokens.
    fn kill(&mut self) {
        let at = self.faults.rng.below(CLIENTS);
        let client = &mut self.clients[at as usize];
        client.life += 1;
        count_stats(client.coordinator.stats(), self.counts);
        client.coordinator = coordinator(&mut self.config, &mut self.faults);
        let ended = std::mem::take(&mut client.running);
        self.counts.add("a client was killed in an operation", ended.len() as u64);
        for running in ended.into_values() {
            let session = running.session;
            self.faults.schedule(50 * MS, Event::Begin { client: at, session });
        }
    }

    fn begin(&mut self, at: u64, session: usize) {
        let key = self.faults.rng.below(KEYS);
        let choice = self.faults.rng.below(10);
        let choice = if self.is_blind { choice.min(6) } else { choice };
        if self.faults.rng.chance(50_000) {
            // Causal consistency between sessions: the token is passed on.
            let from = self.faults.rng.below(CLIENTS) as usize;
            let token = self.clients[from].tokens[0].get(&key).cloned().unwrap_or_default();
            let own = self.clients[at as usize].tokens[session].entry(key).or_default();
            own.merge(&token);
            self.counts.reached("a session went on with the token of another");
        }
        let now = self.faults.clock(self.servers.len() as u64 + at);
        let client = &mut self.clients[at as usize];
        let token = client.tokens[session].get(&key).cloned().unwrap_or_default();
        let coordinator = &mut client.coordinator;
        self.next_value += 1;
        let value = Bytes::copy_from_slice(&self.next_value.to_be_bytes());
        let known = self.known.entry(key).or_default();
        if choice >= 7 {
            known.superseded.merge(&token);
        }
        let begun = match choice {
            0..6 => coordinator.get(now, name(key), token.clone()),
            6 => coordinator.put_blind(now, name(key), value),
            7 => coordinator.delete(now, name(key), token.clone()),
            _ => coordinator.put(now, name(key), token.clone(), value),
        };
        let Ok(operation) = begun else {
            assert!(matches!(begun, Err(Rejected::Busy { .. })), "{begun:?}");
            self.counts.reached("an operation was rejected as too many");
            self.settled += usize::from(self.faults.now == SETTLED);
            return self.faults.schedule(20 * MS, Event::Begin { client: at, session });
        };
        let running = Running {
            session,
            key,
            began: self.faults.now,
            is_read: choice < 6,
            is_delete: choice == 7,
            at_least: if choice == 6 { VersionVector::new() } else { token },
            writes: known.writes.clone(),
            reads: known.reads.clone(),
        };
        client.running.insert(operation, running);
    }

    fn pump(&mut self, at: u64) {
        let node = self.servers.len() as u64 + at;
        let life = self.clients[at as usize].life;
        // Ends: a coordinator has a bounded number of outputs between two inputs.
        while let Some(output) = self.clients[at as usize].coordinator.poll_output() {
            match output {
                CoordinatorOutput::Call { id: call, to, request } => {
                    // A write is carried out at most once: what repeats it makes a second write.
                    let once = matches!(request, Request::Write { .. });
                    let delays = self.faults.fate((node, to), once, self.counts);
                    if delays.is_empty() && self.faults.rng.chance(500_000) {
                        // The other half is not noticed: the operation's own times must do.
                        let is_sure = self.faults.rng.chance(500_000);
                        let error = if is_sure { CallError::NotSent } else { CallError::Unknown };
                        self.faults.schedule(MS, Event::Failed { client: at, life, call, error });
                    }
                    for delay in delays {
                        let request = request.clone();
                        self.faults.schedule(
                            delay,
                            Event::Request { client: at, life, call, to, request },
                        );
                    }
                }
                CoordinatorOutput::Cancel { .. } | CoordinatorOutput::Missed { .. } => {}
                CoordinatorOutput::Done { operation, result } => {
                    let running = self.clients[at as usize].running.remove(&operation);
                    let running = running.expect("an operation is answered once");
                    let session = running.session;
                    self.done(at, running, result);
                    let pause = self.faults.rng.below(200 * MS);
                    self.faults.schedule(pause, Event::Begin { client: at, session });
                }
                other => panic!("{other:?}"),
            }
        }
        if let Some(due) = self.clients[at as usize].coordinator.next_deadline() {
            let delay = self.faults.until(node, due);
            self.clients[at as usize].wake_at = self.faults.now + delay;
            self.faults.schedule(delay, Event::Wake { client: at });
        }
    }

    fn done(&mut self, at: u64, running: Running, result: Result<Value, OperationError>) {
        let token = &mut self.clients[at as usize].tokens[running.session];
        let state = match result {
            Ok(state) => state,
            Err(error) => {
                let situation = match error {
                    OperationError::RepairFailed { .. } => "a repair failed",
                    OperationError::WriteUnknown { .. } => "a write of unknown outcome",
                    OperationError::Unavailable { .. } => "an operation was unavailable",
                    OperationError::Behind => {
                        // What it had seen may be lost with a disk: the session begins anew.
                        token.remove(&running.key);
                        "a read was behind its session"
                    }
                    OperationError::Refused => {
                        let has_room = |server: &Server| {
                            let mut keys = server.replica.iter();
                            keys.all(|(_, state)| state.len() < Replica::MAX_SIBLINGS)
                        };
                        assert!(!self.servers.iter().all(has_room), "refused without a reason");
                        "a write was one sibling too many"
                    }
                    other => panic!("{other}"),
                };
                let is_due = !matches!(error, OperationError::Behind | OperationError::Refused);
                assert!(running.began < SETTLED || !is_due, "{error}, and nothing is wrong");
                self.settled += usize::from(running.began == SETTLED);
                return self.counts.reached(situation);
            }
        };
        self.settled += usize::from(running.began == SETTLED);
        assert!(state.context().covers(&running.at_least), "behind its session");
        token.entry(running.key).or_default().merge(state.context());
        self.counts.add("a value has siblings", (state.len() > 1).into());
        self.counts.add("a delete was acknowledged", running.is_delete.into());
        let guarantee = self.config.guarantee();
        if running.is_read {
            let missed = !state.context().covers(&running.writes);
            assert!(!missed || guarantee == Guarantee::Eventual, "an acknowledged write is missed");
            self.counts.add("a read missed an acknowledged write", missed.into());
            let less = !state.context().covers(&running.reads);
            assert!(!less || guarantee < Guarantee::Monotonic, "reads go back");
            self.counts.add("a read saw less than an earlier read", less.into());
        }
        let known = self.known.entry(running.key).or_default();
        let is_back = |dot: &Dot| known.gone.get(dot).is_some_and(|since| *since < running.began);
        let back = state.iter().any(|(dot, _)| is_back(&dot));
        if running.is_read {
            assert!(!back || guarantee < Guarantee::Monotonic, "a replaced value comes back");
            self.counts.add("a deleted value was seen again", back.into());
        }
        let live: BTreeSet<Dot> = state.iter().map(|(dot, _)| dot).collect();
        for dot in known.dots.iter().filter(|dot| state.context().contains(**dot)) {
            if !live.contains(dot) {
                known.gone.entry(*dot).or_insert(self.faults.now);
            }
        }
        let seen = if running.is_read { &mut known.reads } else { &mut known.writes };
        seen.merge(state.context());
        self.no_value_is_lost(running.key, &state);
    }

    /// A value that was seen is there, or a write or delete was told to replace it.
    fn no_value_is_lost(&self, key: u64, state: &Siblings<Bytes>) {
        let known = &self.known[&key];
        let live: BTreeSet<Dot> = state.iter().map(|(dot, _)| dot).collect();
        for dot in known.dots.iter().filter(|dot| state.context().contains(**dot)) {
            let is_replaced = known.superseded.contains(*dot);
            assert!(live.contains(dot) || is_replaced, "the value of {dot} is lost");
        }
    }
}

fn config(n: u64, read: Level, write: Level, read_repair: ReadRepair) -> TableConfig {
    let mut config = TableConfig::with_replicas(0..n);
    (config.read, config.write, config.read_repair) = (read, write, read_repair);
    config.require = config.guarantee();
    config
}

#[test]
fn strict_tables_in_long_lives() {
    let counts = Situations::new(&SITUATIONS);
    super::lives("strict_tables_in_long_lives", 90, |seed| {
        // Not W = 1: a lost disk would take the only copy of a write.
        let (n, read, write) = match seed % 6 {
            0 => (3, Level::One, Level::All),
            1 => (3, Level::All, Level::Two),
            2 => (4, Level::Quorum, Level::Quorum),
            3 => (5, Level::Quorum, Level::Quorum),
            _ => (3, Level::Quorum, Level::Quorum),
        };
        let config = config(n, read, write, ReadRepair::Blocking);
        assert_eq!(config.guarantee(), Guarantee::Monotonic);
        let mut life = Cluster::new(seed, config, &counts);
        life.run();
        assert_eq!(life.settled, CLIENTS as usize * SESSIONS, "somebody waits for ever");
        life.faults.trace()
    });
    println!("{counts}");
    assert_eq!(counts.missed(), WEAK, "R + W > N");
}

/// The oracles see what the weaker settings allow: otherwise they would prove nothing above.
#[test]
fn weak_tables_in_long_lives_show_every_anomaly() {
    let counts = Situations::new(&SITUATIONS);
    let intersecting = Situations::new(&SITUATIONS);
    super::lives("weak_tables_in_long_lives_show_every_anomaly", 30, |seed| {
        let (n, level) = *[(3, Level::One), (5, Level::Two)].get(seed as usize % 2).unwrap();
        let repair = [ReadRepair::Off, ReadRepair::Background][seed as usize / 2 % 2];
        let mut weak = Cluster::new(seed, config(n, level, level, repair), &counts);
        weak.run();
        let middle = config(3, Level::Quorum, Level::Quorum, repair);
        assert_eq!(middle.guarantee(), Guarantee::Intersecting);
        Cluster::new(seed, middle, &intersecting).run();
        weak.faults.trace()
    });
    println!("{counts}\n{intersecting}");
    for anomaly in WEAK {
        assert!(counts.count(anomaly) > 10, "the weak settings do not show: {anomaly}");
    }
    assert_eq!(intersecting.count("a read missed an acknowledged write"), 0);
    assert!(intersecting.count("a read saw less than an earlier read") > 0);
}
