//! Registers of Attiya, Bar-Noy and Dolev: histories are linearizable.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use voussoir_quorum::abd::*;
use voussoir_quorum::version::{Actor, Dot};
use voussoir_sim::{CallId, History, Kv, KvOp, KvRet, Situations, check};

use super::faults::{Fault, JUMP, Life, MS, SETTLED};

static SITUATIONS: [&str; 19] = [
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
    "an answer of a replica that is not whole",
    "a client was killed in an operation",
    "an operation was rejected as too many",
    "an operation was unavailable",
    "a write of unknown outcome",
    "a read was written back",
    "two writes chose one number",
    "a delete was acknowledged",
];
/// Enough for an operation where nothing is wrong: two round trips of 6 ms, and a disk of 4 ms in
/// each.
const ENOUGH: Duration = Duration::from_millis(40);
const CLIENTS: u64 = 3;
const SESSIONS: u64 = 2;
const KEYS: u64 = 2;

type Op = KvOp<u64, u64>;

struct Server {
    replica: Replica,
    disk: BTreeMap<Bytes, Versioned>,
    is_whole: bool,
    /// Records on the way to the disk.
    writes: Vec<ReplicaOutput>,
}

enum Event {
    Request { client: u64, life: u64, call: u64, to: u64, request: Request },
    Reply { client: u64, life: u64, from: u64, call: u64, reply: Reply },
    Synced { at: u64 },
    Rebuild { at: u64 },
    Wake { client: u64 },
    Begin { client: u64, session: u64 },
}

struct Client {
    coordinator: Coordinator,
    life: u64,
    counter: u64,
    wake_at: u64,
    /// The session, the call and what was asked of each operation.
    running: BTreeMap<u64, (u64, CallId, Op)>,
}

struct Cluster<'a> {
    faults: Life<Event>,
    config: AbdConfig,
    servers: Vec<Server>,
    clients: Vec<Client>,
    history: History<Op, KvRet<u64>>,
    next_value: u64,
    /// Operations that ended, or were rejected, when nothing was left of the faults.
    settled: u64,
    /// The writer of each number of each key, as the disks have seen them.
    writers: BTreeMap<(Bytes, u64), Dot>,
    counts: &'a Situations,
}

impl<'a> Cluster<'a> {
    fn new(seed: u64, counts: &'a Situations) -> Self {
        let mut faults = Life::new(seed);
        let n = *faults.rng.pick(&[1, 2, 3, 3, 3, 4, 5]).unwrap();
        let mut config = AbdConfig::with_replicas(0..n);
        config.timeout = Duration::from_millis(faults.rng.between(10, 1_000));
        config.resend_after = Duration::from_millis(faults.rng.between(1, 200));
        config.max_operations = *faults.rng.pick(&[1, 10_000, 10_000]).unwrap();
        let server = |_| Server {
            replica: Replica::recover([], true),
            disk: BTreeMap::new(),
            is_whole: true,
            writes: Vec::new(),
        };
        let client = |_| Client {
            coordinator: Coordinator::new(config.clone()).unwrap(),
            life: 0,
            counter: 0,
            wake_at: 0,
            running: BTreeMap::new(),
        };
        let mut life = Self {
            faults,
            servers: (0..n).map(server).collect(),
            clients: (0..CLIENTS).map(client).collect(),
            history: History::new(),
            next_value: 0,
            settled: 0,
            writers: BTreeMap::new(),
            counts,
            config,
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
        assert!(self.clients.iter().all(|c| c.running.is_empty()), "an operation hangs");
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Request { client, life, call, to, request } => {
                let id = (call * CLIENTS + client) * 1_000 + life;
                self.servers[to as usize].replica.request(id, request).unwrap();
                self.drain(to);
            }
            Event::Reply { client, life, from, call, reply } => {
                let not_whole = reply == Reply::NotWhole;
                self.counts.add("an answer of a replica that is not whole", not_whole.into());
                self.input(client, life, CoordinatorInput::Reply { call, from, reply });
            }
            Event::Synced { at } => {
                self.sync(at);
                self.drain(at);
            }
            Event::Rebuild { at } => self.rebuild(at),
            Event::Wake { client } => {
                let state = &self.clients[client as usize];
                if state.wake_at == self.faults.now {
                    let life = state.life;
                    self.input(client, life, CoordinatorInput::Time);
                }
            }
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
        let ReplicaOutput::Persist { id, key, versioned } = server.writes.remove(0) else {
            panic!("not a record");
        };
        let tag = versioned.tag;
        let first = *self.writers.entry((key.clone(), tag.number)).or_insert(tag.writer);
        self.counts.add("two writes chose one number", (first != tag.writer).into());
        server.disk.insert(key, versioned);
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
                        self.faults
                            .schedule(delay, Event::Reply { client, life, from: at, call, reply });
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn crash(&mut self) {
        let n = self.servers.len();
        let at = self.faults.rng.below(n as u64);
        let all_whole = self.servers.iter().all(|server| server.is_whole);
        let server = &mut self.servers[at as usize];
        let unsynced = !server.writes.is_empty();
        self.counts.add("a replica crashed with an unsynced record", unsynced.into());
        server.writes.clear();
        // The disk of one that alone is a majority holds the only copy.
        if n > 1 && all_whole && self.faults.rng.chance(200_000) {
            (server.disk, server.is_whole) = (BTreeMap::new(), false);
            self.counts.reached("a disk was lost");
            // Also an operation of a client whose clock stands still has ended by then.
            let wait = JUMP + self.config.timeout.as_nanos() as u64 + MS;
            self.faults.schedule(wait, Event::Rebuild { at });
        }
        let server = &mut self.servers[at as usize];
        server.replica = Replica::recover(server.disk.clone(), server.is_whole);
    }

    /// Copies what half of all replicas hold, which is the least that suffices.
    fn rebuild(&mut self, at: u64) {
        let n = self.servers.len();
        let mut others: Vec<usize> = (0..n).filter(|other| self.servers[*other].is_whole).collect();
        self.faults.rng.shuffle(&mut others);
        others.truncate(n - self.config.majority() + 1);
        for other in others {
            for (key, versioned) in self.servers[other].disk.clone() {
                let replica = &mut self.servers[at as usize].replica;
                // Answered to call 0, which nobody has made.
                replica.request(0, Request::Store { key, versioned }).unwrap();
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

    fn kill(&mut self) {
        let at = self.faults.rng.below(CLIENTS);
        let client = &mut self.clients[at as usize];
        client.life += 1;
        client.coordinator = Coordinator::new(self.config.clone()).unwrap();
        for (session, call, op) in std::mem::take(&mut client.running).into_values() {
            self.counts.reached("a client was killed in an operation");
            if matches!(op, KvOp::Get { .. }) {
                self.history.fail(call, self.faults.now);
            } else {
                self.history.unknown(call, self.faults.now);
            }
            self.faults.schedule(50 * MS, Event::Begin { client: at, session });
        }
    }

    fn begin(&mut self, at: u64, session: u64) {
        let now = self.faults.clock(self.servers.len() as u64 + at);
        let (key, choice) = (self.faults.rng.below(KEYS), self.faults.rng.below(40));
        let name = Bytes::copy_from_slice(&key.to_be_bytes());
        self.next_value += 1;
        let value = self.next_value;
        let client = &mut self.clients[at as usize];
        client.counter += 1;
        let dot = Dot::new(Actor::new(100 + at, 1), client.counter);
        let bytes = Bytes::copy_from_slice(&value.to_le_bytes());
        // Few deletes: the checker cannot tell one from another, and has to try all orders.
        let (op, begun) = match choice {
            0 => (KvOp::Delete { key }, client.coordinator.write(now, name, dot, None)),
            1..20 => {
                let begun = client.coordinator.write(now, name, dot, Some(bytes));
                (KvOp::Put { key, value }, begun)
            }
            _ => (KvOp::Get { key }, client.coordinator.read(now, name)),
        };
        let Ok(operation) = begun else {
            self.counts.reached("an operation was rejected as too many");
            self.settled += u64::from(self.faults.now == SETTLED);
            return self.faults.schedule(20 * MS, Event::Begin { client: at, session });
        };
        let call = self.history.invoke(at * SESSIONS + session, op.clone(), self.faults.now);
        self.clients[at as usize].running.insert(operation, (session, call, op));
    }

    fn pump(&mut self, at: u64) {
        let node = self.servers.len() as u64 + at;
        let life = self.clients[at as usize].life;
        // Ends: a coordinator has a bounded number of outputs between two inputs.
        while let Some(output) = self.clients[at as usize].coordinator.poll_output() {
            match output {
                CoordinatorOutput::Call { id: call, to, request } => {
                    if let Request::Store { versioned, .. } = &request {
                        let is_back = versioned.tag.writer.actor.node != 100 + at;
                        self.counts.add("a read was written back", is_back.into());
                    }
                    for delay in self.faults.fate((node, to), false, self.counts) {
                        let request = request.clone();
                        self.faults.schedule(
                            delay,
                            Event::Request { client: at, life, call, to, request },
                        );
                    }
                }
                CoordinatorOutput::Done { operation, result } => {
                    let running = self.clients[at as usize].running.remove(&operation);
                    let (session, call, op) = running.expect("an operation is answered once");
                    self.done(call, &op, result);
                    let pause = self.faults.rng.below(150 * MS);
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

    fn done(&mut self, call: CallId, op: &Op, result: Result<Versioned, OperationError>) {
        let now = self.faults.now;
        // What was begun before has ended by then.
        let is_settled = now >= SETTLED;
        self.settled += u64::from(is_settled);
        let is_due = is_settled && self.config.timeout >= ENOUGH;
        match result {
            Ok(versioned) => {
                let is_delete = matches!(op, KvOp::Delete { .. });
                self.counts.add("a delete was acknowledged", is_delete.into());
                let number = |bytes: Bytes| u64::from_le_bytes(bytes[..].try_into().unwrap());
                let ret = match op {
                    KvOp::Get { .. } => KvRet::Value(versioned.value.map(number)),
                    _ => KvRet::Done,
                };
                self.history.ok(call, ret, now);
            }
            Err(error) if is_due => panic!("{error}, and nothing is wrong"),
            Err(OperationError::Unavailable { .. }) => {
                self.counts.reached("an operation was unavailable");
                self.history.fail(call, now);
            }
            Err(OperationError::WriteUnknown { .. }) => {
                self.counts.reached("a write of unknown outcome");
                self.history.unknown(call, now);
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn abd_registers_in_long_lives() {
    let counts = Situations::new(&SITUATIONS);
    super::lives("abd_registers_in_long_lives", 80, |seed| {
        let mut life = Cluster::new(seed, &counts);
        life.run();
        assert_eq!(life.settled, CLIENTS * SESSIONS, "somebody waits for ever");
        if let Err(error) = check::<Kv<u64, u64>>(&Kv::new(), &life.history, 5_000_000) {
            panic!("{error}");
        }
        life.faults.trace()
    });
    counts.assert_all_reached();
}
