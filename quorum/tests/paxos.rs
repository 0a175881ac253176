//! Paxos registers in a faulty world: messages lost, repeated and reordered, acceptors that crash
//! and lose what was not synced, one disk that is lost, proposers that are killed.
//!
//! Each run's history is checked for linearizability; changes of unknown outcome are resolved.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use voussoir_quorum::paxos::*;
use voussoir_quorum::version::{Actor, Dot};
use voussoir_sim::{CallId, History, Kv, KvOp, KvRet, Rng, Situations, check};

const MS: u64 = 1_000_000;
static SITUATIONS: [&str; 14] = [
    "a message was lost",
    "a message came twice",
    "an acceptor crashed with an unsynced record",
    "an acceptor crashed with a synced record whose reply was lost",
    "all acceptors lost power at once",
    "a disk was lost",
    "a proposer was killed in phase 2",
    "a proposer was rejected",
    "a change took one round trip",
    "an unknown change was resolved as applied",
    "an unknown change was resolved as not applied",
    "a change was forgotten",
    "a compare-and-set was not applied",
    "a compare-and-set was applied",
];

/// An acceptor's process and its disk.
struct Server {
    acceptor: Acceptor,
    disk: Record,
    /// Records on the way to the disk.
    writes: Vec<(u64, Record)>,
    is_lost: bool,
}

enum Event {
    Request { from: u64, to: u64, request: Request },
    Reply { from: u64, to: u64, reply: Reply },
    Synced { at: u64 },
    Wake { client: u64 },
}

struct Client {
    proposer: Proposer,
    actor: Actor,
    counter: u64,
    /// The call under way, and its change.
    call: Option<(CallId, KvOp<u8, u64>)>,
    token: Option<Token>,
    known: (u64, Option<u64>),
    sends: u32,
    /// When the next wake-up is due, in ns; others are out of date.
    wake_at: u64,
}

struct World {
    rng: Rng,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    servers: Vec<Server>,
    clients: Vec<Client>,
    history: History<KvOp<u8, u64>, KvRet<u64>>,
    next_value: u64,
    max_tokens: usize,
    is_calm: bool,
}

fn bytes(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_le_bytes())
}

fn number(value: Option<Bytes>) -> Option<u64> {
    value.map(|bytes| u64::from_le_bytes(bytes[..].try_into().unwrap()))
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let count = *rng.pick(&[3, 3, 3, 4, 5]).unwrap();
        let max_tokens = *rng.pick(&[1, 2, 16]).unwrap();
        let server = |_| Server {
            acceptor: Acceptor::new(Record::EMPTY),
            disk: Record::EMPTY,
            writes: Vec::new(),
            is_lost: false,
        };
        let mut world = Self {
            servers: (0..count).map(server).collect(),
            rng,
            now: 0,
            events: BTreeMap::new(),
            next_event: 0,
            clients: Vec::new(),
            history: History::new(),
            next_value: 1,
            max_tokens,
            is_calm: false,
        };
        for id in 0..3 {
            let client = world.client(Actor::new(100 + id, 1), 0);
            world.clients.push(client);
            world.arm(id, id * MS);
        }
        world
    }

    /// A process with a proposer. Its dots go on where those of the process before ended.
    fn client(&mut self, actor: Actor, counter: u64) -> Client {
        let mut config = ProposerConfig::with_acceptors(0..self.servers.len() as u64);
        config.seed = Some(self.rng.next_u64());
        config.max_tokens = self.max_tokens;
        config.resend_after = Duration::from_millis(10);
        config.backoff = Duration::from_millis(5);
        let proposer = Proposer::new(Dot::new(actor, counter + 1), config).unwrap();
        let (call, token, known, counter) = (None, None, (0, None), counter + 1);
        Client { proposer, actor, counter, call, token, known, sends: 0, wake_at: 0 }
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + delay, self.next_event), event);
    }

    fn arm(&mut self, client: u64, at: u64) {
        let at = at.max(self.now + 1);
        self.clients[client as usize].wake_at = at;
        self.schedule(at - self.now, Event::Wake { client });
    }

    fn send(&mut self, situations: &Situations, make: impl Fn() -> Event) {
        let faults = if self.is_calm { 0 } else { 60_000 };
        if self.rng.chance(faults) {
            situations.reached("a message was lost");
            return;
        }
        if self.rng.chance(faults) {
            situations.reached("a message came twice");
            let delay = self.rng.below(300 * MS);
            self.schedule(delay, make());
        }
        let delay = if self.rng.chance(faults) { 400 * MS } else { 3 * MS };
        let delay = self.rng.below(delay);
        self.schedule(delay, make());
    }

    fn run(&mut self, situations: &Situations) {
        // Ends: clients begin calls for 4 s, and each call has a deadline.
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.is_calm = at > 3_000 * MS;
            match event {
                Event::Request { from, to, request } => {
                    let server = &mut self.servers[to as usize];
                    server.acceptor.step(AcceptorInput::Request { from, request });
                    self.drain(to, situations);
                }
                Event::Reply { from, to, reply } => {
                    let client = &mut self.clients[(to - 100) as usize];
                    let is_rejection = matches!(reply, Reply::Rejected { .. });
                    situations.add("a proposer was rejected", is_rejection.into());
                    client.proposer.step(at, ProposerInput::Reply { from, reply });
                    self.pump(to - 100, situations);
                }
                Event::Synced { at } => {
                    let server = &mut self.servers[at as usize];
                    if !server.writes.is_empty() {
                        let (id, record) = server.writes.remove(0);
                        server.disk = record;
                        server.acceptor.step(AcceptorInput::Persisted { id });
                    }
                    self.drain(at, situations);
                }
                Event::Wake { client } => self.wake(client, situations),
            }
            if !self.is_calm && self.rng.chance(2_000) {
                self.crash(situations);
            }
        }
    }

    fn drain(&mut self, at: u64, situations: &Situations) {
        while let Some(output) = self.servers[at as usize].acceptor.poll_output() {
            match output {
                AcceptorOutput::Persist { id, record } => {
                    self.servers[at as usize].writes.push((id, record));
                    let delay = self.rng.below(2 * MS);
                    self.schedule(delay, Event::Synced { at });
                }
                AcceptorOutput::Reply { to, reply } => {
                    self.send(situations, || Event::Reply { from: at, to, reply: reply.clone() });
                }
            }
        }
    }

    /// A process dies and comes back, or all acceptors lose power at once.
    fn crash(&mut self, situations: &Situations) {
        if self.rng.chance(300_000) {
            return self.kill_client(situations);
        }
        let count = self.servers.len();
        if self.rng.chance(300_000) {
            situations.reached("all acceptors lost power at once");
            return (0..count).for_each(|at| self.crash_server(at, false, situations));
        }
        let at = self.rng.below(count as u64) as usize;
        let lost = self.servers.iter().filter(|server| server.is_lost).count();
        let may_lose = lost < (count - 1) / 2;
        self.crash_server(at, may_lose, situations);
    }

    /// An acceptor comes back with what its disk has, or its disk is lost.
    fn crash_server(&mut self, at: usize, may_lose: bool, situations: &Situations) {
        let server = &mut self.servers[at];
        let name = if server.writes.is_empty() {
            "an acceptor crashed with a synced record whose reply was lost"
        } else {
            "an acceptor crashed with an unsynced record"
        };
        situations.reached(name);
        server.writes.clear();
        if may_lose && self.rng.chance(50_000) {
            server.is_lost = true;
            situations.reached("a disk was lost");
        }
        server.acceptor =
            if server.is_lost { Acceptor::not_whole() } else { Acceptor::new(server.disk.clone()) };
    }

    fn kill_client(&mut self, situations: &Situations) {
        let at = self.rng.below(3);
        let client = &self.clients[at as usize];
        if client.call.is_some() && client.sends > 3 {
            situations.reached("a proposer was killed in phase 2");
        }
        let (actor, counter) = (client.actor, client.counter);
        if let Some((call, _)) = client.call {
            self.history.unknown(call, self.now);
        }
        let mut next = self.client(actor, counter);
        next.known = self.clients[at as usize].known;
        self.clients[at as usize] = next;
        self.arm(at, self.now + 5 * MS);
    }

    fn wake(&mut self, at: u64, situations: &Situations) {
        let (now, client) = (self.now, &mut self.clients[at as usize]);
        if client.wake_at != now {
            return;
        }
        if client.proposer.next_deadline().is_some() {
            client.proposer.step(now, ProposerInput::Time);
        } else if now < 4_000 * MS || client.call.is_some() {
            self.begin(at);
        }
        self.pump(at, situations);
    }

    fn begin(&mut self, at: u64) {
        let client = &mut self.clients[at as usize];
        client.counter += 1;
        client.sends = 0;
        let dot = Dot::new(client.actor, client.counter);
        let deadline = self.now + if self.is_calm { 20_000 } else { 30 } * MS;
        if let Some(token) = client.token {
            let change = Change::Resolve(token);
            return client.proposer.propose(self.now, dot, change, deadline).unwrap();
        }
        let value = self.next_value;
        let (op, change) = match self.rng.below(4) {
            0 => (KvOp::Get { key: 0 }, Change::Read),
            1 => (KvOp::Put { key: 0, value }, Change::Write(Some(bytes(value)))),
            2 if self.rng.chance(300_000) => (KvOp::Delete { key: 0 }, Change::Write(None)),
            _ => {
                let (expected, expect) = client.known;
                let change = Change::CompareAndSet { expected, value: Some(bytes(value)) };
                (KvOp::Cas { key: 0, expect, value }, change)
            }
        };
        self.next_value += 1;
        let call = self.history.invoke(at, op.clone(), self.now);
        client.call = Some((call, op));
        client.proposer.propose(self.now, dot, change, deadline).unwrap();
    }

    fn pump(&mut self, at: u64, situations: &Situations) {
        // Ends: a proposer has a bounded number of outputs between two inputs.
        while let Some(output) = self.clients[at as usize].proposer.poll_output() {
            match output {
                ProposerOutput::Send { to, request } => {
                    self.clients[at as usize].sends += 1;
                    let from = 100 + at;
                    self.send(situations, || Event::Request { from, to, request: request.clone() });
                }
                ProposerOutput::Done { outcome } => {
                    self.done(at, outcome, situations);
                    let pause = self.rng.below(10 * MS);
                    self.arm(at, self.now + pause);
                }
                other => panic!("{other:?}"),
            }
        }
        if let Some(deadline) = self.clients[at as usize].proposer.next_deadline() {
            self.arm(at, deadline);
        }
    }

    fn done(&mut self, at: u64, outcome: Outcome, situations: &Situations) {
        let client = &mut self.clients[at as usize];
        let was_resolving = client.token.is_some();
        if matches!(outcome, Outcome::Applied { .. }) && client.sends as usize <= self.servers.len()
        {
            situations.reached("a change took one round trip");
        }
        let Some((call, op)) = client.call.clone() else { return };
        let now = self.now;
        let is_cas = matches!(op, KvOp::Cas { .. });
        match outcome {
            // A resolution that found no quorum is tried again.
            Outcome::Unavailable if was_resolving => return,
            Outcome::Unknown(token) => {
                client.token = Some(token);
                return;
            }
            Outcome::Read { version, value } => {
                let value = number(value);
                client.known = (version, value);
                self.history.ok(call, KvRet::Value(value), now);
            }
            Outcome::Applied { version } => {
                if let KvOp::Put { value, .. } | KvOp::Cas { value, .. } = op {
                    client.known = (version, Some(value));
                }
                let name = "an unknown change was resolved as applied";
                situations.add(name, was_resolving.into());
                situations.add("a compare-and-set was applied", is_cas.into());
                let ret = if is_cas { KvRet::Applied(true) } else { KvRet::Done };
                self.history.ok(call, ret, now);
            }
            Outcome::NotApplied { version, value } => {
                client.known = (version, number(value));
                let name = "an unknown change was resolved as not applied";
                situations.add(name, was_resolving.into());
                assert!(is_cas || was_resolving, "a write has no condition");
                situations.add("a compare-and-set was not applied", (!was_resolving).into());
                // Absent at two versions is one state of the model: it cannot judge that refusal.
                if was_resolving || matches!(op, KvOp::Cas { expect: None, .. }) {
                    self.history.fail(call, now);
                } else {
                    self.history.ok(call, KvRet::Applied(false), now);
                }
            }
            Outcome::Unavailable => assert!(self.history.fail(call, now)),
            Outcome::Forgotten => {
                situations.reached("a change was forgotten");
                self.history.unknown(call, now);
            }
            other => panic!("{other:?}"),
        }
        (client.call, client.token) = (None, None);
    }
}

#[test]
fn registers_are_linearizable() {
    let situations = Situations::new(&SITUATIONS);
    let seeds = std::env::var("VOUSSOIR_SEEDS").map_or(300, |n| n.parse().unwrap());
    for seed in 0..seeds {
        let mut world = World::new(seed);
        world.run(&situations);
        let (ok, ..) = world.history.outcomes();
        assert!(ok > 20, "seed {seed}: only {ok} calls succeeded");
        // After the faults every call has ended: with a majority there is progress.
        assert!(world.clients.iter().all(|c| c.call.is_none()), "seed {seed}: a call hangs");
        if let Err(error) = check::<Kv<u8, u64>>(&Kv::new(), &world.history, 5_000_000) {
            panic!("seed {seed}: {error}\n{}", world.history.to_json_lines());
        }
    }
    situations.assert_all_reached();
}

/// An acceptance that comes behind the deadline may be that of a store that was lost since, and
/// was rebuilt without it.
#[test]
fn an_answer_behind_the_deadline_counts_for_nothing() {
    let dot = |counter| Dot::new(Actor::new(9, 1), counter);
    for (now, is_late) in [(9, false), (10, true), (11, true)] {
        let config = ProposerConfig::with_acceptors([1, 2, 3]);
        let mut proposer = Proposer::new(dot(1), config).unwrap();
        proposer.propose(0, dot(2), Change::Write(None), 10).unwrap();
        let (mut outcome, mut accepted) = (None, 0);
        // Ends: each acceptor is asked once in each phase.
        while let Some(output) = proposer.poll_output() {
            match output {
                ProposerOutput::Send { to, request: Request::Prepare { ballot } } => {
                    let reply = Reply::Promise { ballot, accepted: None };
                    proposer.step(1, ProposerInput::Reply { from: to, reply });
                }
                ProposerOutput::Send { to, request: Request::Accept { ballot, .. } } => {
                    let reply = Reply::Accepted { ballot };
                    accepted += 1;
                    // The second of them makes the majority.
                    let at = if accepted == 1 { 1 } else { now };
                    proposer.step(at, ProposerInput::Reply { from: to, reply });
                }
                ProposerOutput::Done { outcome: told } => outcome = Some(told),
                other => panic!("{other:?}"),
            }
        }
        let outcome = outcome.unwrap();
        if is_late {
            assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?} at {now}");
        } else {
            assert_eq!(outcome, Outcome::Applied { version: 1 });
        }
    }
}
