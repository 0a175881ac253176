//! A node's part in what the groups of its process have in common, as the shell's hub has it: the
//! tick, who is alive, joined heartbeats, and leaderships that have ended. There is one group here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use voussoir_sim::{Context, Crash, MILLISECOND, SECOND, World};

use super::node::{RaftNode, Timed};
use super::wire::Packet;
use crate::codec;
use crate::core::{Core, Input};
use crate::message::{GroupBeat, Message, NodeBeat};
use crate::node::NODE_GROUP;
use crate::node::peers::Peers;
use crate::types::Role;

/// What the seeds of groups that quiesce have to reach.
pub static QUIESCE_SITUATIONS: [&str; 13] = [
    "leader quiesces",
    "follower quiesces",
    "all nodes rest at once",
    "leader at rest woken by a client",
    "leader at rest woken by a message",
    "leader at rest loses its majority",
    "leader at rest wakes for a node that is back",
    "follower at rest asked by a client",
    "follower at rest woken by a message",
    "follower that cannot rest answers",
    "follower at rest loses the leader's node",
    "follower at rest finds the leader's node in another life",
    "follower at rest hears that the leadership has ended",
];

/// What a node keeps of its peers.
#[derive(Debug)]
pub(super) struct Host {
    peers: Peers,
    interval: u64,
    /// The other members of the group.
    linked: Vec<u64>,
    /// The term in which this node, as the leader, has quiesced.
    reign: Option<u64>,
}

impl Host {
    /// `life` differs in each life of each node.
    pub(super) fn new(interval: u64, suspect_after: u64, life: u64, now: u64) -> Self {
        let peers = Peers::new(life, interval, suspect_after, now);
        Self { peers, interval, linked: Vec::new(), reign: None }
    }

    /// The group has been stopped, and the process lives.
    fn leave(&mut self, group: u64) {
        if let Some(term) = self.reign.take() {
            self.peers.resign(group, term, &self.linked);
        }
        for member in std::mem::take(&mut self.linked) {
            self.peers.unlink(member);
        }
    }

    /// The first thing that the core hears.
    pub(super) fn own_life(&self, id: u64) -> Input {
        Input::Node { node: id, life: Some(self.peers.life()) }
    }

    pub(super) fn interval(&self) -> u64 {
        self.interval
    }

    /// Follows the membership and the reign of the core. Returns what it has to hear of new
    /// members.
    pub(super) fn follow(&mut self, core: &Core, group: u64) -> Vec<Input> {
        let reign = core.quiesced_reign();
        if let Some(term) =
            std::mem::replace(&mut self.reign, reign).filter(|_| self.reign != reign)
        {
            self.peers.resign(group, term, &self.linked);
        }
        let own = core.config().id;
        if core.members().members().filter(|id| *id != own).eq(self.linked.iter().copied()) {
            return Vec::new();
        }
        let now: Vec<u64> = core.members().members().filter(|id| *id != own).collect();
        let before = std::mem::replace(&mut self.linked, now);
        let new = self.linked.iter().filter(|id| !before.contains(id));
        let news = new.map(|id| Input::Node { node: *id, life: self.peers.link(*id) }).collect();
        let mut news: Vec<Input> = news;
        for gone in before.iter().filter(|id| !self.linked.contains(id)) {
            if let Some(term) = self.reign {
                self.peers.resign(group, term, &[*gone]);
            }
            self.peers.unlink(*gone);
            news.push(Input::Node { node: *gone, life: None });
        }
        news
    }

    /// Takes a message that travels with others. Gives any other back.
    pub(super) fn join(&mut self, to: u64, group: u64, message: Message) -> Option<Message> {
        let beat = match message {
            Message::Heartbeat(beat) => GroupBeat::Heartbeat(beat),
            Message::HeartbeatReply(reply) => GroupBeat::Reply(reply),
            other => return Some(other),
        };
        // One group never fills a message.
        let full = self.peers.push(to, group, beat);
        debug_assert!(full.is_none());
        None
    }
}

/// Hosts of groups that have been stopped, until those are started again, by node.
pub(super) type Shelf = Rc<RefCell<BTreeMap<u64, Host>>>;

/// Between two attempts to stop a group alone, at least and at most.
const STOP_NS: (u64, u64) = (200 * MILLISECOND, 2 * SECOND);

/// Stops the leader of a group at rest and starts it again, now and then, as an operator may while
/// the process lives on. Returns when to do so again, in ns.
pub(super) fn stop_alone(world: &mut World<RaftNode>, shelf: &Shelf) -> Option<u64> {
    if world.now() >= world.plan().quiet_ns {
        return None;
    }
    let rests = |node: &RaftNode| node.status().is_quiesced && node.status().role == Role::Leader;
    let resting = world.nodes().find(|(_, node)| rests(node)).map(|(id, _)| id);
    if let Some(id) = resting.filter(|_| world.rng().chance(500_000)) {
        let host = world.with_node(id, |node, _| {
            let (group, mut host) = (node.group(), node.host.take()?);
            host.leave(group);
            Some(host)
        });
        shelf.borrow_mut().extend(host.flatten().map(|host| (id, host)));
        world.crash(id, Crash::Process);
        world.restart(id);
    }
    Some(world.rng().scaled(STOP_NS.0, STOP_NS.1))
}

impl RaftNode {
    /// The common tick.
    pub(super) fn tick_host(&mut self, ctx: &mut Context<'_, Self>) {
        let Some(host) = &mut self.host else { return };
        let (suspects, interval) = (host.peers.tick(ctx.now()), host.interval);
        for node in suspects {
            self.step(ctx, Input::Node { node, life: None });
        }
        self.step(ctx, Input::Beat);
        self.flush_host(ctx);
        ctx.schedule(interval, Timed::Host);
    }

    /// Sends what has come together.
    pub(super) fn flush_host(&mut self, ctx: &mut Context<'_, Self>) {
        let Some(host) = &mut self.host else { return };
        for (to, beat) in host.peers.flush() {
            let bytes = codec::encode(NODE_GROUP, &Message::Node(Box::new(beat))).into_bytes();
            ctx.send(to, Packet::Raft(bytes).encode());
        }
    }

    /// Another node speaks of itself and of its groups.
    pub(super) fn hear_host(&mut self, ctx: &mut Context<'_, Self>, from: u64, beat: NodeBeat) {
        let group = self.group();
        let Some(host) = &mut self.host else { return };
        if let Some(life) = host.peers.receive(ctx.now(), from, &beat) {
            self.step(ctx, Input::Node { node: from, life: Some(life) });
        }
        for (_, term) in beat.resigned.into_iter().filter(|(of, _)| *of == group) {
            self.step(ctx, Input::Resigned { from, term });
        }
        for (_, beat) in beat.beats.into_iter().filter(|(of, _)| *of == group) {
            self.step(ctx, Input::Message { from, message: beat.into() });
        }
    }

    /// What an input may do to a core at rest, and what it did.
    pub(super) fn watch_rest(&self, before: Rest, core: &Core) {
        let after = Rest::of(core);
        let leads = before.role == Role::Leader;
        if after.quiesced && core.next_deadline().is_some() {
            let id = core.config().id;
            self.object(format!("node {id} rests and has a deadline"));
        }
        match (before.quiesced, after.quiesced) {
            (false, true) => self.reached(if after.role == Role::Leader {
                "leader quiesces"
            } else {
                "follower quiesces"
            }),
            (true, false) => match before.cause {
                Cause::Client if leads => self.reached("leader at rest woken by a client"),
                Cause::Client => self.reached("follower at rest asked by a client"),
                Cause::Message if leads => self.reached("leader at rest woken by a message"),
                Cause::Message => self.reached("follower at rest woken by a message"),
                Cause::Lost if leads => self.reached("leader at rest loses its majority"),
                Cause::Lost => self.reached("follower at rest loses the leader's node"),
                Cause::Restarted if leads => {
                    self.reached("leader at rest wakes for a node that is back");
                }
                Cause::Restarted => {
                    self.reached("follower at rest finds the leader's node in another life");
                }
                Cause::Resigned => {
                    self.reached("follower at rest hears that the leadership has ended");
                }
                Cause::Quiet => {
                    let id = core.config().id;
                    self.object(format!("node {id} wakes for nothing"));
                }
                Cause::Quiesce | Cause::Halt => {}
            },
            (_, false) if before.cause == Cause::Quiesce => {
                self.reached("follower that cannot rest answers");
            }
            _ => {}
        }
    }
}

/// Why a core may have woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Client,
    Message,
    /// The leader rests: its followers rest or answer.
    Quiesce,
    Lost,
    Restarted,
    Resigned,
    Halt,
    /// Nothing that wakes.
    Quiet,
}

/// A core before an input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    quiesced: bool,
    role: Role,
    cause: Cause,
}

impl Rest {
    fn of(core: &Core) -> Self {
        Self { quiesced: core.is_quiesced(), role: core.role(), cause: Cause::Quiet }
    }

    /// Before `input`.
    pub(super) fn before(core: &Core, input: &Input) -> Self {
        let cause = match input {
            Input::Message { message: Message::Quiesce(_), .. } => Cause::Quiesce,
            Input::Message { .. } | Input::SnapshotReceived { .. } => Cause::Message,
            Input::Node { life: None, .. } => Cause::Lost,
            Input::Node { .. } => Cause::Restarted,
            Input::Resigned { .. } => Cause::Resigned,
            Input::PersistFailed { .. } | Input::Fetched { .. } => Cause::Halt,
            Input::Propose { .. }
            | Input::Read { .. }
            | Input::Change { .. }
            | Input::TransferLeadership { .. } => Cause::Client,
            _ => Cause::Quiet,
        };
        Self { cause, ..Self::of(core) }
    }
}

/// The tick of the simulated nodes, ns.
pub(super) const INTERVAL: u64 = 50 * MILLISECOND;
