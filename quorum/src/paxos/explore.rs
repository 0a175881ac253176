//! Every order of messages, losses and a crash, for two proposers and three acceptors, one of which
//! may be replaced by a fourth meanwhile.
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
//!
//! Of a change of the acceptors these are looked at in any order: each acceptor hears of the joint
//! epoch, and of the last one once `Membership::may_finish` allows it; each proposer does, in the
//! middle of its phases, once an acceptor has; the new acceptor reads old ones, as many as
//! `Membership::sources` asks for. The decisions themselves are registers, too, and are not
//! explored once more. The joint epoch is decided from the beginning, for nobody need hear of it.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use voussoir_sim::{ExploreError, ExploreLimits, Explored, StateSpace, explore};

use super::super::{Acceptor, AcceptorInput, AcceptorOutput, Record};
use super::*;
use crate::membership::{Levels, MemberChange, Seen};
use crate::version::Actor;

const QUORUM: usize = 2;
/// The acceptor that leaves, and the one that takes its place.
const LEAVES: usize = 2;
const COMES: usize = 3;
const LEVELS: Levels = Levels { read: Level::Quorum, write: Level::Quorum };
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

/// How a change of the acceptors ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ends {
    /// The new acceptor has taken the place of the old one.
    Finished,
    /// The old acceptors have taken it back.
    Abandoned,
}

/// A request of a client, in the epoch that it had heard of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sent {
    client: usize,
    epoch: u64,
    request: Request,
}

#[derive(Clone, Debug)]
enum Action {
    Begin {
        client: usize,
    },
    Deliver {
        sent: Sent,
        node: usize,
        reply_arrives: bool,
        is_synced: bool,
    },
    /// An acceptor serves the next epoch.
    Adopt {
        node: usize,
    },
    /// A client goes on with the next epoch.
    Learn {
        client: usize,
    },
    /// The new acceptor reads an old one.
    Copy {
        from: usize,
    },
    Crash,
    Retry {
        client: usize,
    },
    GiveUp {
        client: usize,
    },
}

#[derive(Clone)]
struct Node {
    acceptor: Acceptor,
    disk: Record,
    is_lost: bool,
    writes: Vec<(u64, Record)>,
    /// Requests that a crash will take.
    doomed: Vec<Sent>,
    epoch: u64,
    /// The new acceptor has read it.
    is_copied: bool,
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
    /// The latest epoch that it has heard of.
    epoch: u64,
}

#[derive(Clone)]
struct World {
    nodes: Vec<Node>,
    clients: Vec<Client>,
    /// Requests that were sent and can have an effect.
    sent: Vec<Sent>,
    /// Somebody serves the last epoch.
    is_last_decided: bool,
    ends: Option<Ends>,
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
    /// What crashes how.
    crash: Option<(usize, Crash)>,
    /// Of the epochs 1 to 3. Only the first one, if the acceptors do not change.
    memberships: Vec<Membership>,
    ends: Option<Ends>,
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
                AcceptorOutput::Reply { to, reply } => {
                    if let Reply::Accepted { ballot } = reply {
                        // Also one that it has read at another acceptor, and is asked for now.
                        self.has_accepted(at, ballot);
                    }
                    if reply_arrives {
                        let reply = ProposerInput::Reply { from: at as u64, reply };
                        self.input(to as usize, 0, reply);
                    }
                }
            }
        }
    }

    /// The oldest record becomes durable.
    fn sync(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let (id, record) = node.writes.remove(0);
        node.acceptor.step(AcceptorInput::Persisted { id });
        node.disk = record;
        if let Some((ballot, _)) = node.disk.accepted {
            self.has_accepted(at, ballot);
        }
    }

    /// The acceptor answers for a ballot whose state is on its disk.
    fn has_accepted(&mut self, at: usize, ballot: Ballot) {
        let node = &mut self.nodes[at];
        let epoch = node.epoch;
        let is_new = node.accepted.insert(ballot);
        let on_disk = node.disk.accepted.clone().filter(|(accepted, _)| *accepted == ballot);
        let Some((_, state)) = on_disk.filter(|_| is_new) else { return };
        let holds = |at: &&usize| self.nodes[**at].accepted.contains(&ballot);
        let mut sets = sets(epoch, self.ends).iter();
        if sets.all(|set| set.iter().filter(holds).count() >= QUORUM) {
            self.chosen(ballot, &state);
        }
    }

    /// What each acceptor would tell of itself.
    fn seen(&self) -> BTreeMap<u64, Seen> {
        let seen = |node: &Node| {
            let is_whole = node.acceptor.record().is_some();
            Seen { epoch: node.epoch, is_whole, is_ready: is_whole }
        };
        self.nodes.iter().enumerate().map(|(at, node)| (at as u64, seen(node))).collect()
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

    /// The new acceptor has read what an old one has on its disk; the last one that it must read
    /// makes it whole.
    fn copy(&mut self, from: usize, joint: &Membership) {
        let needed = joint.sources(COMES as u64, &self.seen(), LEVELS).map(|from| from.needed);
        self.nodes[from].is_copied = true;
        let read = self.nodes[from].disk.clone();
        let copied = self.nodes.iter().filter(|node| node.is_copied).count();
        let new = &mut self.nodes[COMES];
        new.disk = new.disk.clone().merge(read);
        if needed.is_ok_and(|needed| copied >= needed) {
            new.acceptor = Acceptor::new(new.disk.clone());
        }
        self.discard();
    }

    fn input(&mut self, at: usize, now: u64, input: ProposerInput) {
        self.clients[at].proposer.step(now, input);
        self.pump(at);
    }

    fn pump(&mut self, at: usize) {
        while let Some(output) = self.clients[at].proposer.poll_output() {
            match output {
                ProposerOutput::Send { request, .. } => {
                    let sent = Sent { client: at, epoch: self.clients[at].epoch, request };
                    if !self.sent.contains(&sent) {
                        self.sent.push(sent);
                    }
                }
                ProposerOutput::Done { outcome } => self.done(at, outcome),
            }
        }
        self.discard();
    }

    /// Leaves requests out that are below every promise of those that still serve their epoch, if
    /// nobody waits for their answer.
    fn discard(&mut self) {
        let current: Vec<_> = self.clients.iter().map(|c| c.proposer.current()).collect();
        let nodes = &self.nodes;
        self.sent.retain(|Sent { client, epoch, request }| {
            let (Request::Prepare { ballot } | Request::Accept { ballot, .. }) = request;
            let mut reached = nodes.iter().filter(|node| !node.is_lost && node.epoch <= *epoch);
            let can_change = reached.any(|node| *ballot >= node.disk.promised);
            let is_served = nodes.iter().any(|node| node.epoch <= *epoch);
            is_served && (current[*client] == Some(*ballot) || can_change)
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
    fn effect(&self, world: &World, sent: &Sent, node: usize) -> (bool, bool) {
        let Sent { client: at, epoch, request } = sent;
        let (Request::Prepare { ballot } | Request::Accept { ballot, .. }) = request;
        let client = &world.clients[*at];
        let is_member = sets(*epoch, world.ends).iter().any(|set| set.contains(&node));
        if world.nodes[node].epoch != *epoch || !is_member {
            return (false, false); // Told of the other epoch, which is an action of its own.
        }
        let is_awaited = client.proposer.current() == Some(*ballot);
        let node = &world.nodes[node];
        let Some(record) = node.acceptor.record() else { return (is_awaited, false) };
        let accepted = record.accepted.as_ref().map(|(ballot, _)| *ballot);
        let is_rejected = *ballot < record.promised && accepted != Some(*ballot);
        // A proposer that is told in its last attempt that it is behind does nothing more. That is
        // a part of what it does when the rest of its replies are lost.
        let is_last = is_rejected && client.attempts == self.attempts[*at];
        let changes = match request {
            Request::Prepare { .. } => *ballot > record.promised,
            Request::Accept { .. } => !is_rejected && accepted != Some(*ballot),
        };
        (is_awaited && !is_last, changes)
    }

    fn can_crash(&self, world: &World, node: usize) -> bool {
        self.crash.is_some_and(|(crashes, _)| crashes == node) && world.crashes == 0
    }

    /// An acceptor that is asked for nothing more in the first epoch: nothing is lost if it serves
    /// the next one now.
    fn idle(&self, world: &World) -> Option<Action> {
        let can_ask = |(at, client): (usize, &Client)| {
            let is_busy = client.proposer.run.is_some() || client.at < self.scripts[at].len();
            client.epoch == 1 && (is_busy || client.resolves.is_some())
        };
        let is_asked = world.clients.iter().enumerate().any(can_ask)
            || world.sent.iter().any(|sent| sent.epoch == 1);
        if self.memberships.len() == 1 || is_asked {
            return None;
        }
        let is_idle = |node: &Node| node.epoch == 1 && node.doomed.is_empty();
        world.nodes.iter().position(is_idle).map(|node| Action::Adopt { node })
    }

    /// What the change of the acceptors can do next.
    fn of_change(&self, world: &World, actions: &mut Vec<Action>) {
        if self.memberships.len() == 1 {
            return;
        }
        let (seen, joint) = (world.seen(), &self.memberships[1]);
        let is_last_decided = world.is_last_decided
            || self.ends == Some(Ends::Abandoned)
            || joint.may_finish(&seen, LEVELS);
        for (at, node) in world.nodes.iter().enumerate() {
            // What was not synced is taken by a crash; an epoch is served behind what was.
            let is_decided = node.epoch == 1 || (node.epoch == 2 && is_last_decided);
            if is_decided && node.doomed.is_empty() {
                actions.push(Action::Adopt { node: at });
            }
        }
        for (at, client) in world.clients.iter().enumerate() {
            let is_heard = world.nodes.iter().any(|node| node.epoch > client.epoch);
            if client.proposer.run.is_some() && is_heard {
                actions.push(Action::Learn { client: at });
            }
        }
        let new = world.nodes.get(COMES).filter(|new| new.acceptor.record().is_none());
        if new.is_some_and(|new| new.epoch == 2 && !new.is_lost)
            && let Ok(sources) = joint.sources(COMES as u64, &seen, LEVELS)
        {
            let is_left = |from: &u64| !world.nodes[*from as usize].is_copied;
            let from = sources.from.iter().filter(|from| is_left(from));
            actions.extend(from.map(|from| Action::Copy { from: *from as usize }));
        }
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
            epoch: 1,
            is_copied: false,
        };
        let mut nodes = vec![node; 3];
        if self.memberships.len() > 1 {
            let acceptor = Acceptor::not_whole();
            nodes.push(Node { acceptor, epoch: 2, ..nodes[0].clone() });
        }
        let client = |at: u64| {
            let mut config = ProposerConfig::with_acceptors(0..3);
            config.seed = Some(1);
            let session = Dot::new(Actor::new(at, 1), 1);
            let proposer = Proposer::new(session, config).unwrap();
            let proposer = proposer.of(self.memberships[0].clone());
            let (resolves, dot) = (None, session);
            Client { proposer, at: 0, attempts: 0, resolves, floor: 0, dot, epoch: 1 }
        };
        vec![World {
            nodes,
            clients: (0..2).map(client).collect(),
            sent: Vec::new(),
            is_last_decided: false,
            ends: self.ends,
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
            // Acceptors are alike but for their part in the change and in the crash.
            let changes = self.memberships.len() > 1 && at >= LEAVES;
            let part = (if changes { at } else { 0 }, self.can_crash(world, at));
            hash(&(
                known,
                record,
                &node.disk,
                (node.is_lost, part, node.epoch, node.is_copied),
                &node.doomed,
                &node.accepted,
            ))
        };
        let mut parts: Vec<_> = world.nodes.iter().enumerate().map(|(i, n)| part(i, n)).collect();
        parts.sort_unstable();
        let clients = world.clients.iter().map(|client| {
            let Client { at, attempts, resolves, floor, epoch, .. } = client;
            hash(&(client.proposer.common(), at, attempts, resolves, floor, epoch))
        });
        let sent = world.sent.iter().map(hash).fold(0, u128::wrapping_add);
        let ghosts = (&world.chain, &world.dead, world.error.is_some());
        hash(&(
            parts,
            clients.collect::<Vec<_>>(),
            sent,
            (world.crashes, world.is_last_decided),
            ghosts,
        ))
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        if let Some(adopt) = self.idle(world) {
            return vec![adopt];
        }
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
        if self.crash.is_some_and(|(node, _)| self.can_crash(world, node)) {
            actions.push(Action::Crash);
        }
        self.of_change(world, &mut actions);
        for (node, state) in world.nodes.iter().enumerate() {
            for sent in &world.sent {
                let (is_awaited, changes) = self.effect(world, sent, node);
                let is_accept = matches!(sent.request, Request::Accept { .. });
                let mut deliver = |reply_arrives, is_synced| {
                    let sent = sent.clone();
                    actions.push(Action::Deliver { sent, node, reply_arrives, is_synced });
                };
                let is_doomed = !state.doomed.is_empty();
                if is_awaited && !is_doomed {
                    deliver(true, true);
                }
                if changes && is_accept && !is_doomed {
                    deliver(false, true);
                }
                let has_room = state.doomed.len() < MAX_WAITING;
                if changes && has_room && self.can_crash(world, node) {
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
            Action::Deliver { sent, node: at, reply_arrives, is_synced } => {
                let node = &mut next.nodes[*at];
                let (from, request) = (sent.client as u64, sent.request.clone());
                node.acceptor.step(AcceptorInput::Request { from, request });
                if !is_synced {
                    node.doomed.push(sent.clone());
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
                let Some((at, how)) = self.crash else { return next };
                let node = &mut next.nodes[at];
                (node.writes, node.doomed) = (Vec::new(), Vec::new());
                if node.acceptor.record().is_some() {
                    node.acceptor = Acceptor::new(node.disk.clone());
                }
                if how == Crash::Disk {
                    (node.is_lost, node.acceptor) = (true, Acceptor::not_whole());
                }
            }
            Action::Adopt { node } => {
                next.nodes[*node].epoch += 1;
                next.is_last_decided |= next.nodes[*node].epoch == 3;
                next.discard();
            }
            Action::Learn { client: at } => {
                let client = &mut next.clients[*at];
                client.epoch += 1;
                let later = self.memberships[client.epoch as usize - 1].clone();
                client.proposer.reconfigure(0, later);
                next.pump(*at);
            }
            Action::Copy { from } => next.copy(*from, &self.memberships[1]),
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

fn is_long() -> bool {
    std::env::var_os("VOUSSOIR_EXPLORE_LONG").is_some()
}

/// The sets of acceptors of an epoch: what its membership must come to.
fn sets(epoch: u64, ends: Option<Ends>) -> &'static [[usize; 3]] {
    match (epoch, ends) {
        (2, _) => &[[0, 1, LEAVES], [0, 1, COMES]],
        (3, Some(Ends::Finished)) => &[[0, 1, COMES]],
        _ => &[[0, 1, LEAVES]],
    }
}

fn run(scripts: [&[Op]; 2], attempts: [u32; 2], crash: Option<Crash>) {
    run_with(scripts, attempts, crash.map(|crash| (0, crash)), None, 1_000);
}

/// The first membership, and those of a change that ends so.
fn memberships(ends: Option<Ends>) -> Vec<Membership> {
    let first = Membership::first(0..3);
    let Some(ends) = ends else { return vec![first] };
    let replace = MemberChange::Replace { old: LEAVES as u64, new: COMES as u64 };
    let joint = first.begin(replace, Level::Quorum).unwrap().unwrap();
    let last = match ends {
        Ends::Finished => joint.finish(),
        Ends::Abandoned => joint.abandon(),
    };
    vec![first, joint, last.unwrap()]
}

fn run_with(
    scripts: [&[Op]; 2],
    attempts: [u32; 2],
    crash: Option<(usize, Crash)>,
    ends: Option<Ends>,
    max_depth: usize,
) {
    let began = std::time::Instant::now();
    // All orders with two attempts each take minutes; with a change of the acceptors each proposer
    // has one: it begins again whenever it hears of an epoch.
    let attempts = if is_long() && ends.is_none() { [2, 2] } else { attempts };
    let name = format!("{scripts:?}, attempts {attempts:?}, {crash:?}, change {ends:?}");
    let memberships = memberships(ends);
    let space = Space { scripts: scripts.map(<[Op]>::to_vec), attempts, crash, memberships, ends };
    let limits = ExploreLimits { max_depth, max_states: 10_000_000 };
    let explored: Result<_, ExploreError<Action>> = explore(&space, limits);
    let Explored { states, actions, depth, is_complete, .. } =
        explored.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(is_complete || ends.is_some(), "{name}");
    let cut = if is_complete { "" } else { ", longer runs are not looked at" };
    let seconds = began.elapsed().as_secs_f64();
    println!("{name}: {states} states, {actions} actions, depth {depth}{cut}, {seconds:.1} s");
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

/// Most actions of a run in which the acceptors change: the states of all runs do not fit into
/// memory. In the short form a run can adopt the joint epoch, fill the new acceptor, and choose.
fn max_depth() -> usize {
    let text = std::env::var("VOUSSOIR_EXPLORE_DEPTH");
    text.map_or(if is_long() { 13 } else { 10 }, |depth| depth.parse().unwrap())
}

/// The acceptor that crashes stays, leaves or comes.
#[test]
fn explore_a_change_of_the_acceptors() {
    for node in [0, LEAVES, COMES] {
        let crash = Some((node, Crash::Unsynced));
        let scripts: [&[Op]; 2] = [&[Op::Write], &[Op::Write]];
        run_with(scripts, [1, 1], crash, Some(Ends::Finished), max_depth());
    }
}

#[test]
fn explore_a_change_that_is_taken_back() {
    // One action less: nothing has to be filled for its end, so that more runs are as long.
    let (crash, depth) = (Some((0, Crash::Unsynced)), max_depth() - 1);
    run_with([&[Op::Write], &[Op::Write]], [1, 1], crash, Some(Ends::Abandoned), depth);
}
