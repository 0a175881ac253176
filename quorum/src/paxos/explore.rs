//! Every order of messages, losses and a crash, for two proposers and three acceptors.
//!
//! What keeps the number of states small:
//! - **Messages are a set that only grows.** A request that was sent may be delivered at any time,
//!   again, or never: losses, repetitions and reordering need no actions of their own. Requests
//!   that can no longer have an effect are left out.
//! - **A reply arrives at once or never.** A late reply is equal to one that arrives at once: the
//!   acceptor takes no part in its delay, and what the proposer sends upon it may itself be
//!   delivered late. Ending a change earlier only asks more of the register.
//! - **Acceptors are alike.** The key of a state sorts what belongs to each of them, so of states
//!   that differ in names only one is looked at.
//! - **A record is durable at once, or a crash takes it.** Nobody can tell a record that becomes
//!   durable later from a request that arrives later. The acceptor that crashes is chosen at the
//!   beginning; the other two are alike.
//! - **A promise arrives.** One that is lost says less than a prepare that never arrived. Lost
//!   answers to phase 2 are looked at.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use voussoir_sim::{ExploreError, ExploreLimits, Explored, StateSpace, explore};

use super::super::{Acceptor, AcceptorInput, AcceptorOutput, Record};
use super::*;
use crate::version::Actor;

const QUORUM: usize = 2;
/// Requests that an acceptor takes before it crashes and loses them.
const MAX_WAITING: usize = 2;
/// A time at which every backoff has passed, and one at which every deadline has.
const LATER: u64 = 1 << 40;
const DEADLINE: u64 = 1 << 50;

/// What a client does, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Op {
    Read,
    Write,
    /// If the register was never written.
    Create,
    /// A write whose client may stop to wait at any time. It then resolves the change.
    ImpatientWrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Crash {
    /// Loses what was not synced.
    Unsynced,
    /// Loses the disk: the acceptor is not whole from then on.
    Disk,
}

#[derive(Clone, Debug)]
enum Action {
    Begin { client: usize },
    Deliver { client: usize, node: usize, request: Request, reply_arrives: bool, is_synced: bool },
    Crash,
    Retry { client: usize },
    GiveUp { client: usize },
}

#[derive(Clone)]
struct Node {
    acceptor: Acceptor,
    disk: Record,
    is_lost: bool,
    writes: Vec<(u64, Record)>,
    /// Requests that a crash will take.
    doomed: Vec<(usize, Request)>,
    /// Every ballot whose acceptance was durable here.
    accepted: BTreeSet<Ballot>,
}

#[derive(Clone)]
struct Client {
    proposer: Proposer,
    /// The next of its operations.
    at: usize,
    attempts: u32,
    resolves: Option<Token>,
    /// How many changes had been chosen when the change began.
    floor: usize,
    dot: Dot,
}

#[derive(Clone)]
struct World {
    nodes: Vec<Node>,
    clients: Vec<Client>,
    /// Requests that were sent and can have an effect.
    sent: Vec<(usize, Request)>,
    crashes: u8,
    /// The changes that were chosen, each alone or as a part of a later state; the first one first.
    chain: Vec<Dot>,
    /// Changes that will never be chosen, as clients were told.
    dead: BTreeSet<Dot>,
    error: Option<String>,
}

struct Space {
    scripts: [Vec<Op>; 2],
    /// How often each client tries a change.
    attempts: [u32; 2],
    crash: Option<Crash>,
}

fn hash(value: &impl Hash) -> u128 {
    let mut low = DefaultHasher::new();
    value.hash(&mut low);
    let mut high = low.clone();
    high.write_u8(1);
    u128::from(high.finish()) << 64 | u128::from(low.finish())
}

/// The `at`-th operation of a client; the one behind it is for its resolution.
fn dot(client: usize, at: usize) -> Dot {
    Dot::new(Actor::new(client as u64, 1), 2 + 2 * at as u64)
}

/// What the change of `dot` writes.
fn value(dot: Dot) -> Bytes {
    Bytes::copy_from_slice(&[dot.actor.node as u8, dot.counter as u8])
}

impl World {
    /// Carries out what the acceptor wants.
    fn drain(&mut self, at: usize, reply_arrives: bool) {
        while let Some(output) = self.nodes[at].acceptor.poll_output() {
            match output {
                AcceptorOutput::Persist { id, record } => self.nodes[at].writes.push((id, record)),
                AcceptorOutput::Reply { to, reply } if reply_arrives => {
                    self.input(to as usize, 0, ProposerInput::Reply { from: at as u64, reply });
                }
                AcceptorOutput::Reply { .. } => {}
            }
        }
    }

    /// The oldest record becomes durable.
    fn sync(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let (id, record) = node.writes.remove(0);
        node.acceptor.step(AcceptorInput::Persisted { id });
        node.disk = record;
        let Some((ballot, state)) = node.disk.accepted.clone() else { return };
        node.accepted.insert(ballot);
        let holders = self.nodes.iter().filter(|node| node.accepted.contains(&ballot)).count();
        if holders >= QUORUM {
            self.chosen(ballot, &state);
        }
    }

    /// The chosen states are one chain: each has all changes of those before it.
    fn chosen(&mut self, ballot: Ballot, state: &State) {
        let common = self.chain.len().min(state.applied.len());
        let last = state.applied.last().copied();
        if state.applied.len() as u64 != state.version || last.map(value) != state.value {
            self.error = Some(format!("{ballot} chooses {state:?}, which no change makes"));
        } else if self.chain[..common] != state.applied[..common] {
            self.error = Some(format!("{ballot} chooses {state:?} after {:?}", self.chain));
        }
        self.chain.extend(&state.applied[common..]);
        if let Some(dot) = self.chain.iter().find(|dot| self.dead.contains(dot)) {
            self.error = Some(format!("{dot} was told as not applied, and is chosen"));
        }
    }

    fn input(&mut self, at: usize, now: u64, input: ProposerInput) {
        self.clients[at].proposer.step(now, input);
        self.pump(at);
    }

    fn pump(&mut self, at: usize) {
        while let Some(output) = self.clients[at].proposer.poll_output() {
            match output {
                ProposerOutput::Send { request, .. } => {
                    if !self.sent.contains(&(at, request.clone())) {
                        self.sent.push((at, request));
                    }
                }
                ProposerOutput::Done { outcome } => self.done(at, outcome),
            }
        }
        // Below every promise, and nobody waits for its answer.
        let current: Vec<_> = self.clients.iter().map(|c| c.proposer.current()).collect();
        let promised = self.nodes.iter().filter(|n| !n.is_lost).map(|node| node.disk.promised);
        let least = promised.min().unwrap_or(Ballot::ZERO);
        self.sent.retain(|(client, request)| {
            let (Request::Prepare { ballot } | Request::Accept { ballot, .. }) = request;
            current[*client] == Some(*ballot) || *ballot >= least
        });
    }

    /// What the client is told agrees with what was chosen while it waited.
    fn done(&mut self, at: usize, outcome: Outcome) {
        let client = &mut self.clients[at];
        let (floor, dot, resolved) = (client.floor, client.dot, client.resolves.take());
        let chosen = |version: u64| self.chain.get((version as usize).checked_sub(1)?).copied();
        let state_is = |version: u64, found: &Option<Bytes>| {
            let is_known = version as usize <= self.chain.len() && version as usize >= floor;
            is_known && chosen(version).map(value) == *found
        };
        let is_right = match (&outcome, resolved) {
            (Outcome::Unknown(token), _) => {
                client.resolves = Some(*token);
                true
            }
            (Outcome::Unavailable, None) => self.dead.insert(dot),
            (Outcome::Unavailable, Some(_)) => true,
            (Outcome::Read { version, value }, _) => state_is(*version, value),
            (Outcome::Applied { version }, None) => {
                *version as usize > floor && chosen(*version) == Some(dot)
            }
            (Outcome::Applied { version }, Some(token)) => chosen(*version) == Some(token.dot),
            (Outcome::NotApplied { version, value }, None) => {
                self.dead.insert(dot);
                *version > 0 && state_is(*version, value)
            }
            (Outcome::NotApplied { version, value }, Some(token)) => {
                self.dead.insert(token.dot);
                state_is(*version, value)
            }
            (Outcome::Forgotten, _) => false,
        };
        let is_dead = self.chain.iter().any(|dot| self.dead.contains(dot));
        if !is_right || is_dead {
            let chain = &self.chain;
            self.error = Some(format!("client {at} is told {outcome:?}; chosen: {chain:?}"));
        }
    }
}

impl Proposer {
    fn current(&self) -> Option<Ballot> {
        match &self.run.as_ref()?.phase {
            Phase::Backoff { .. } => None,
            Phase::Prepare { ballot, .. } | Phase::Accept { ballot, .. } => Some(*ballot),
        }
    }

    /// What of the proposer's state matters, without times and what belongs to one acceptor.
    fn common(&self) -> u128 {
        let run = self.run.as_ref().map(|run| {
            let phase = match &run.phase {
                Phase::Backoff { .. } => None,
                Phase::Prepare { ballot, .. } => Some((*ballot, None)),
                Phase::Accept { ballot, next, state, outcome, .. } => {
                    Some((*ballot, Some((*next, state, outcome))))
                }
            };
            (run.dot, &run.change, run.base, hash(&phase))
        });
        hash(&(self.round, &self.promised, run))
    }

    /// What the proposer knows of one acceptor.
    fn known_of(&self, node: u64) -> u128 {
        match self.run.as_ref().map(|run| &run.phase) {
            Some(Phase::Prepare { promises, refused, .. }) => {
                hash(&(promises.get(&node), refused.contains(&node)))
            }
            Some(Phase::Accept { ballot, learner, refused, .. }) => {
                hash(&(learner.has_accepted(node, *ballot), refused.contains(&node)))
            }
            _ => 0,
        }
    }
}

impl Space {
    /// Whether the proposer's state may depend on the reply to a request, and whether the
    /// acceptor's state depends on the request.
    fn effect(&self, world: &World, at: usize, node: usize, request: &Request) -> (bool, bool) {
        let (Request::Prepare { ballot } | Request::Accept { ballot, .. }) = request;
        let client = &world.clients[at];
        let is_awaited = client.proposer.current() == Some(*ballot);
        let node = &world.nodes[node];
        let Some(record) = node.acceptor.record() else { return (is_awaited, false) };
        let accepted = record.accepted.as_ref().map(|(ballot, _)| *ballot);
        let is_rejected = *ballot < record.promised && accepted != Some(*ballot);
        // A proposer that is told in its last attempt that it is behind does nothing more. That is
        // a part of what it does when the rest of its replies are lost.
        let is_last = is_rejected && client.attempts == self.attempts[at];
        let changes = match request {
            Request::Prepare { .. } => *ballot > record.promised,
            Request::Accept { .. } => !is_rejected && accepted != Some(*ballot),
        };
        (is_awaited && !is_last, changes)
    }

    fn can_crash(&self, world: &World) -> bool {
        self.crash.is_some() && world.crashes == 0
    }
}

impl StateSpace for Space {
    type State = World;
    type Key = u128;
    type Action = Action;

    fn init(&self) -> Vec<World> {
        let node = Node {
            acceptor: Acceptor::new(Record::EMPTY),
            disk: Record::EMPTY,
            is_lost: false,
            writes: Vec::new(),
            doomed: Vec::new(),
            accepted: BTreeSet::new(),
        };
        let client = |at: u64| {
            let mut config = ProposerConfig::with_acceptors(0..3);
            config.seed = Some(1);
            let session = Dot::new(Actor::new(at, 1), 1);
            let proposer = Proposer::new(session, config).unwrap();
            Client { proposer, at: 0, attempts: 0, resolves: None, floor: 0, dot: session }
        };
        vec![World {
            nodes: vec![node; 3],
            clients: (0..2).map(client).collect(),
            sent: Vec::new(),
            crashes: 0,
            chain: Vec::new(),
            dead: BTreeSet::new(),
            error: None,
        }]
    }

    fn key(&self, world: &World) -> u128 {
        let part = |at: usize, node: &Node| {
            let known = [0, 1].map(|client| world.clients[client].proposer.known_of(at as u64));
            let record = node.acceptor.record();
            let may_crash = at == 0 && self.can_crash(world);
            hash(&(
                known,
                record,
                &node.disk,
                (node.is_lost, may_crash),
                &node.doomed,
                &node.accepted,
            ))
        };
        let mut parts: Vec<_> = world.nodes.iter().enumerate().map(|(i, n)| part(i, n)).collect();
        parts.sort_unstable();
        let clients = world.clients.iter().map(|client| {
            let Client { at, attempts, resolves, floor, .. } = client;
            hash(&(client.proposer.common(), at, attempts, resolves, floor))
        });
        let sent = world.sent.iter().map(hash).fold(0, u128::wrapping_add);
        let ghosts = (&world.chain, &world.dead, world.error.is_some());
        hash(&(parts, clients.collect::<Vec<_>>(), sent, world.crashes, ghosts))
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        for (at, client) in world.clients.iter().enumerate() {
            let script = &self.scripts[at];
            match &client.proposer.run {
                None if client.at < script.len() || client.resolves.is_some() => {
                    actions.push(Action::Begin { client: at });
                }
                None => {}
                Some(run) => {
                    let is_behind = matches!(run.phase, Phase::Backoff { .. });
                    if is_behind && client.attempts < self.attempts[at] {
                        actions.push(Action::Retry { client: at });
                    }
                    if client.resolves.is_none() && script[client.at - 1] == Op::ImpatientWrite {
                        actions.push(Action::GiveUp { client: at });
                    }
                }
            }
        }
        if self.can_crash(world) {
            actions.push(Action::Crash);
        }
        for (node, state) in world.nodes.iter().enumerate() {
            for (client, request) in &world.sent {
                let client = *client;
                let (is_awaited, changes) = self.effect(world, client, node, request);
                let is_accept = matches!(request, Request::Accept { .. });
                let mut deliver = |reply_arrives, is_synced| {
                    let request = request.clone();
                    let action =
                        Action::Deliver { client, node, request, reply_arrives, is_synced };
                    actions.push(action);
                };
                let is_doomed = !state.doomed.is_empty();
                if is_awaited && !is_doomed {
                    deliver(true, true);
                }
                if changes && is_accept && !is_doomed {
                    deliver(false, true);
                }
                let has_room = state.doomed.len() < MAX_WAITING;
                if changes && has_room && node == 0 && self.can_crash(world) {
                    deliver(true, false);
                }
            }
        }
        actions
    }

    fn next(&self, world: &World, action: &Action) -> World {
        let mut next = world.clone();
        match action {
            Action::Begin { client: at } => {
                let client = &mut next.clients[*at];
                client.dot = dot(*at, client.at);
                (client.floor, client.attempts) = (next.chain.len(), 1);
                let change = match client.resolves {
                    Some(token) => {
                        client.dot.counter += 1;
                        Change::Resolve(token)
                    }
                    None => {
                        let value = Some(value(client.dot));
                        client.at += 1;
                        match self.scripts[*at][client.at - 1] {
                            Op::Read => Change::Read,
                            Op::Write | Op::ImpatientWrite => Change::Write(value),
                            Op::Create => Change::CompareAndSet { expected: 0, value },
                        }
                    }
                };
                client.proposer.propose(0, client.dot, change, DEADLINE).unwrap();
                next.pump(*at);
            }
            Action::Deliver { client, node: at, request, reply_arrives, is_synced } => {
                let node = &mut next.nodes[*at];
                let input =
                    AcceptorInput::Request { from: *client as u64, request: request.clone() };
                node.acceptor.step(input);
                if !is_synced {
                    node.doomed.push((*client, request.clone()));
                }
                next.drain(*at, *reply_arrives);
                // Ends: each turn takes one record off the list.
                while *is_synced && !next.nodes[*at].writes.is_empty() {
                    next.sync(*at);
                    next.drain(*at, *reply_arrives);
                }
            }
            Action::Crash => {
                next.crashes += 1;
                let node = &mut next.nodes[0];
                (node.writes, node.doomed) = (Vec::new(), Vec::new());
                node.acceptor = Acceptor::new(node.disk.clone());
                if self.crash == Some(Crash::Disk) {
                    (node.is_lost, node.acceptor) = (true, Acceptor::not_whole());
                }
            }
            Action::Retry { client } => {
                next.clients[*client].attempts += 1;
                next.input(*client, LATER, ProposerInput::Time);
            }
            Action::GiveUp { client } => next.input(*client, DEADLINE, ProposerInput::Time),
        }
        next
    }

    fn check(&self, world: &World) -> Result<(), String> {
        world.error.clone().map_or(Ok(()), Err)
    }

    fn is_end(&self, _: &World) -> bool {
        true // Two attempts may both fail.
    }
}

fn run(scripts: [&[Op]; 2], attempts: [u32; 2], crash: Option<Crash>) {
    let began = std::time::Instant::now();
    // All orders with two attempts each take minutes.
    let is_long = std::env::var_os("VOUSSOIR_EXPLORE_LONG").is_some();
    let attempts = if is_long { [2, 2] } else { attempts };
    let name = format!("{scripts:?}, attempts {attempts:?}, {crash:?}");
    let space = Space { scripts: scripts.map(<[Op]>::to_vec), attempts, crash };
    let limits = ExploreLimits { max_depth: 1_000, max_states: 10_000_000 };
    let explored: Result<_, ExploreError<Action>> = explore(&space, limits);
    let Explored { states, actions, depth, is_complete, .. } =
        explored.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(is_complete, "{name}");
    let seconds = began.elapsed().as_secs_f64();
    println!("{name}: {states} states, {actions} actions, depth {depth}, {seconds:.1} s");
}

#[test]
fn explore_two_writers() {
    run([&[Op::Write], &[Op::Write]], [2, 1], Some(Crash::Unsynced));
    run([&[Op::Write], &[Op::Write]], [2, 1], Some(Crash::Disk));
}

#[test]
fn explore_two_creators() {
    run([&[Op::Create], &[Op::Create]], [2, 2], None);
}

#[test]
fn explore_a_writer_and_reads() {
    run([&[Op::Write], &[Op::Read, Op::Read]], [1, 2], Some(Crash::Unsynced));
}

#[test]
fn explore_an_unknown_outcome() {
    run([&[Op::ImpatientWrite], &[Op::Write]], [1, 1], Some(Crash::Unsynced));
}
