//! Paxos registers: histories are linearizable, and what a token is resolved to stays true.

use std::time::Duration;

use bytes::Bytes;
use voussoir_quorum::paxos::*;
use voussoir_quorum::version::{Actor, Dot};
use voussoir_sim::{CallId, History, Kv, KvOp, KvRet, Situations, check};

use super::faults::{CALM, Fault, Life, MS};

static SITUATIONS: [&str; 20] = [
    "a message was lost",
    "a message came twice",
    "a message came late",
    "a link was cut",
    "a server was cut off",
    "only answers were lost",
    "a clock went back",
    "a clock went ahead",
    "an acceptor crashed with an unsynced record",
    "all acceptors lost power at once",
    "a disk was lost",
    "a client was killed in a change",
    "a change was unavailable",
    "a change of unknown outcome",
    "another client resolved a change as applied",
    "another client resolved a change as not applied",
    "a change was forgotten",
    "a compare-and-set was not applied",
    "a compare-and-set was applied",
    "the only acceptor",
];
const CLIENTS: u64 = 4;
const KEYS: u64 = 2;

type Op = KvOp<u64, u64>;

struct Server {
    acceptor: Acceptor,
    disk: Record,
    /// Records on the way to the disk.
    writes: Vec<(u64, Record)>,
    is_lost: bool,
}

enum Event {
    Request { client: u64, life: u64, to: usize, request: Request },
    Reply { client: u64, life: u64, from: usize, reply: Reply },
    Synced { at: usize },
    Wake { client: u64 },
}

/// A client works on one key at a time.
struct Client {
    proposer: Proposer,
    key: u64,
    life: u64,
    counter: u64,
    wake_at: u64,
    /// What is under way; none: it resolves `resolving`.
    call: Option<(CallId, Op)>,
    resolving: Option<Pending>,
    known: (u64, Option<u64>),
}

/// A change of unknown outcome, which any client may resolve.
#[derive(Clone)]
struct Pending {
    of: u64,
    call: CallId,
    op: Op,
    key: u64,
    token: Token,
}

struct Cluster<'a> {
    faults: Life<Event>,
    n: u64,
    config: ProposerConfig,
    /// N for each key.
    servers: Vec<Server>,
    clients: Vec<Client>,
    pending: Vec<Pending>,
    history: History<Op, KvRet<u64>>,
    next_value: u64,
    counts: &'a Situations,
}

fn number(value: Option<Bytes>) -> Option<u64> {
    value.map(|bytes| u64::from_le_bytes(bytes[..].try_into().unwrap()))
}

impl<'a> Cluster<'a> {
    fn new(seed: u64, counts: &'a Situations) -> Self {
        let mut faults = Life::new(seed);
        let n = *faults.rng.pick(&[1, 2, 3, 3, 3, 4, 5, 7]).unwrap();
        counts.add("the only acceptor", (n == 1).into());
        let mut config = ProposerConfig::with_acceptors(0..n);
        config.max_tokens = *faults.rng.pick(&[1, 2, 16, 1_024]).unwrap();
        config.resend_after = Duration::from_millis(faults.rng.between(1, 200));
        config.backoff = Duration::from_millis(faults.rng.between(1, 40));
        let server = |_| Server {
            acceptor: Acceptor::new(Record::EMPTY),
            disk: Record::EMPTY,
            writes: Vec::new(),
            is_lost: false,
        };
        let mut life = Self {
            servers: (0..n * KEYS).map(server).collect(),
            faults,
            n,
            config,
            clients: Vec::new(),
            pending: Vec::new(),
            history: History::new(),
            next_value: 1,
            counts,
        };
        for at in 0..CLIENTS {
            let client = life.client(at, 0, 0);
            life.clients.push(client);
            life.arm(at, at * MS);
        }
        life
    }

    /// A process whose dots go on where those of the process before ended.
    fn client(&mut self, at: u64, life: u64, counter: u64) -> Client {
        self.config.seed = Some(self.faults.rng.next_u64());
        let session = Dot::new(Actor::new(100 + at, 1), counter + 1);
        Client {
            proposer: Proposer::new(session, self.config.clone()).unwrap(),
            key: self.faults.rng.below(KEYS),
            life,
            counter: counter + 1,
            wake_at: 0,
            call: None,
            resolving: None,
            known: (0, None),
        }
    }

    fn arm(&mut self, client: u64, delay: u64) {
        let delay = delay.max(1);
        self.clients[client as usize].wake_at = self.faults.now + delay;
        self.faults.schedule(delay, Event::Wake { client });
    }

    fn run(&mut self) {
        // Ends: clients begin calls until 2 s after the faults, and each has a deadline.
        while let Some(event) = self.faults.next_event() {
            self.handle(event);
            match self.faults.fault() {
                Some(Fault::Crash) => self.crash(),
                Some(Fault::Kill) => self.kill(),
                Some(Fault::Disturb) => self.faults.disturb(self.n, CLIENTS, self.counts),
                None => {}
            }
        }
        assert!(self.clients.iter().all(|client| client.call.is_none()), "a call hangs");
        for pending in std::mem::take(&mut self.pending) {
            self.history.unknown(pending.call, self.faults.now);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Request { client, life, to, request } => {
                let from = client * 1_000 + life;
                self.servers[to].acceptor.step(AcceptorInput::Request { from, request });
                self.drain(to);
            }
            Event::Reply { client, life, from, reply } => {
                // A client that has gone over to the other key has another proposer.
                let from = (from as u64) % self.n;
                self.input(client, life, ProposerInput::Reply { from, reply });
            }
            Event::Synced { at } => {
                let server = &mut self.servers[at];
                if !server.writes.is_empty() {
                    let (id, record) = server.writes.remove(0);
                    server.disk = record;
                    server.acceptor.step(AcceptorInput::Persisted { id });
                }
                self.drain(at);
            }
            Event::Wake { client } => {
                let state = &self.clients[client as usize];
                if state.wake_at != self.faults.now {
                    return;
                }
                let life = state.life;
                if state.proposer.next_deadline().is_some() {
                    self.input(client, life, ProposerInput::Time);
                } else if self.faults.now < CALM + 2_000 * MS {
                    self.begin(client);
                }
            }
        }
    }

    fn input(&mut self, at: u64, life: u64, input: ProposerInput) {
        if self.clients[at as usize].life == life {
            let now = self.faults.clock(self.n + at);
            self.clients[at as usize].proposer.step(now, input);
            self.pump(at);
        }
    }

    fn drain(&mut self, at: usize) {
        while let Some(output) = self.servers[at].acceptor.poll_output() {
            match output {
                AcceptorOutput::Persist { id, record } => {
                    self.servers[at].writes.push((id, record));
                    let delay = self.faults.rng.below(4 * MS);
                    self.faults.schedule(delay, Event::Synced { at });
                }
                AcceptorOutput::Reply { to, reply } => {
                    let (client, life, from) = (to / 1_000, to % 1_000, at);
                    let link = (at as u64 % self.n, self.n + client);
                    for delay in self.faults.fate(link, false, self.counts) {
                        let reply = reply.clone();
                        self.faults.schedule(delay, Event::Reply { client, life, from, reply });
                    }
                }
            }
        }
    }

    /// A node restarts with the records of its disk, or all do, or the disk of one is lost.
    fn crash(&mut self) {
        let all = self.faults.rng.chance(200_000);
        let node = self.faults.rng.below(self.n) as usize;
        let n = self.n as usize;
        let lost = self.servers[..n].iter().filter(|server| server.is_lost).count();
        let loses = !all && lost < (n - 1) / 2 && self.faults.rng.chance(100_000);
        self.counts.add("a disk was lost", loses.into());
        self.counts.add("all acceptors lost power at once", all.into());
        for (at, server) in self.servers.iter_mut().enumerate() {
            if all || at % n == node {
                let unsynced = !server.writes.is_empty();
                self.counts.add("an acceptor crashed with an unsynced record", unsynced.into());
                server.writes.clear();
                server.is_lost |= loses;
                server.acceptor = if server.is_lost {
                    Acceptor::not_whole()
                } else {
                    Acceptor::new(server.disk.clone())
                };
            }
        }
    }

    fn kill(&mut self) {
        let at = self.faults.rng.below(CLIENTS);
        let client = &mut self.clients[at as usize];
        if let Some((call, _)) = client.call.take() {
            self.counts.reached("a client was killed in a change");
            self.history.unknown(call, self.faults.now);
        }
        // What it was to resolve stays to be resolved.
        self.pending.extend(client.resolving.take());
        self.renew(at);
        self.arm(at, 20 * MS);
    }

    /// A new proposer, on any key.
    fn renew(&mut self, at: u64) {
        let (life, counter) = (self.clients[at as usize].life, self.clients[at as usize].counter);
        self.clients[at as usize] = self.client(at, life + 1, counter);
    }

    fn begin(&mut self, at: u64) {
        if self.faults.rng.chance(20_000) {
            self.renew(at);
        }
        let now = self.faults.clock(self.n + at);
        let client = &mut self.clients[at as usize];
        client.counter += 1;
        let dot = Dot::new(Actor::new(100 + at, 1), client.counter);
        let patience = self.faults.rng.between(5, 500) * MS;
        let is_calm = self.faults.is_calm();
        let deadline = now + if is_calm { 20_000 * MS } else { patience };
        let same_key = |pending: &Pending| pending.key == client.key;
        if let Some(place) = self.pending.iter().position(same_key)
            && (is_calm || self.faults.rng.chance(500_000))
        {
            let pending = self.pending.remove(place);
            let change = Change::Resolve(pending.token);
            client.resolving = Some(pending);
            client.proposer.propose(now, dot, change, deadline).unwrap();
            return self.pump(at);
        }
        let (key, value) = (client.key, self.next_value);
        let bytes = Some(Bytes::copy_from_slice(&value.to_le_bytes()));
        // Few deletes: the checker cannot tell one from another, and has to try all orders.
        let (op, change) = match self.faults.rng.below(40) {
            0..15 => (KvOp::Get { key }, Change::Read),
            15..27 => (KvOp::Put { key, value }, Change::Write(bytes)),
            27 => (KvOp::Delete { key }, Change::Write(None)),
            _ => {
                let (expected, expect) = client.known;
                let change = Change::CompareAndSet { expected, value: bytes };
                (KvOp::Cas { key, expect, value }, change)
            }
        };
        self.next_value += 1;
        let call = self.history.invoke(at, op.clone(), self.faults.now);
        client.call = Some((call, op));
        client.proposer.propose(now, dot, change, deadline).unwrap();
        self.pump(at);
    }

    fn pump(&mut self, at: u64) {
        let (life, key) = (self.clients[at as usize].life, self.clients[at as usize].key);
        // Ends: a proposer has a bounded number of outputs between two inputs.
        while let Some(output) = self.clients[at as usize].proposer.poll_output() {
            match output {
                ProposerOutput::Send { to: node, request } => {
                    let to = (key * self.n + node) as usize;
                    for delay in self.faults.fate((self.n + at, node), false, self.counts) {
                        let request = request.clone();
                        self.faults
                            .schedule(delay, Event::Request { client: at, life, to, request });
                    }
                }
                ProposerOutput::Done { outcome } => {
                    match self.clients[at as usize].resolving.take() {
                        Some(pending) => self.resolved(at, pending, outcome),
                        None => self.done(at, outcome),
                    }
                    let pause = self.faults.rng.below(150 * MS);
                    self.arm(at, pause);
                }
                other => panic!("{other:?}"),
            }
        }
        if let Some(due) = self.clients[at as usize].proposer.next_deadline() {
            let delay = self.faults.until(self.n + at, due);
            self.arm(at, delay);
        }
    }

    fn done(&mut self, at: u64, outcome: Outcome) {
        let client = &mut self.clients[at as usize];
        let (call, op) = client.call.take().expect("a change is answered once");
        let is_cas = matches!(op, KvOp::Cas { .. });
        let now = self.faults.now;
        match outcome {
            Outcome::Unknown(token) => {
                self.counts.reached("a change of unknown outcome");
                let key = client.key;
                self.pending.push(Pending { of: at, call, op, key, token });
            }
            Outcome::Unavailable => {
                self.counts.reached("a change was unavailable");
                assert!(self.history.fail(call, now));
            }
            Outcome::Read { version, value } => {
                client.known = (version, number(value));
                self.history.ok(call, KvRet::Value(client.known.1), now);
            }
            Outcome::Applied { version } => {
                let value = match op {
                    KvOp::Put { value, .. } | KvOp::Cas { value, .. } => Some(value),
                    _ => None,
                };
                client.known = (version, value);
                self.counts.add("a compare-and-set was applied", is_cas.into());
                let ret = if is_cas { KvRet::Applied(true) } else { KvRet::Done };
                self.history.ok(call, ret, now);
            }
            Outcome::NotApplied { version, value } => {
                assert!(is_cas, "a write has no condition");
                self.counts.reached("a compare-and-set was not applied");
                client.known = (version, number(value));
                // Absent at two versions is one state of the model: it cannot judge that refusal.
                if matches!(op, KvOp::Cas { expect: None, .. }) {
                    self.history.fail(call, now);
                } else {
                    self.history.ok(call, KvRet::Applied(false), now);
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn resolved(&mut self, at: u64, pending: Pending, outcome: Outcome) {
        let now = self.faults.now;
        let is_other = u64::from(pending.of != at);
        match outcome {
            Outcome::Applied { .. } => {
                self.counts.add("another client resolved a change as applied", is_other);
                let is_cas = matches!(pending.op, KvOp::Cas { .. });
                let ret = if is_cas { KvRet::Applied(true) } else { KvRet::Done };
                self.history.ok(pending.call, ret, now);
            }
            Outcome::NotApplied { .. } => {
                self.counts.add("another client resolved a change as not applied", is_other);
                self.history.fail(pending.call, now);
            }
            Outcome::Forgotten => {
                self.counts.reached("a change was forgotten");
                self.history.unknown(pending.call, now);
            }
            // No quorum: it is tried again.
            Outcome::Unavailable => self.pending.push(pending),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn registers_in_long_lives() {
    let counts = Situations::new(&SITUATIONS);
    super::lives("registers_in_long_lives", 60, |seed| {
        let mut life = Cluster::new(seed, &counts);
        life.run();
        let (ok, ..) = life.history.outcomes();
        assert!(ok > 40, "only {ok} calls succeeded");
        if let Err(error) = check::<Kv<u64, u64>>(&Kv::new(), &life.history, 5_000_000) {
            panic!("{error}");
        }
        life.faults.trace()
    });
    counts.assert_all_reached();
}
