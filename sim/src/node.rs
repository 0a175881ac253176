//! What a world runs: the [`Node`] trait, and what a node may do.

use std::fmt;
use std::hash::Hash;

use bytes::Bytes;

use crate::Rng;
use crate::core::trace::Kind;
use crate::kernel::{Happening, Kernel};

/// One process under test: usually a thin adapter around a pure protocol core.
///
/// A node lives from [`start`](Node::start) to a crash, and acts only in its handlers, through
/// the [`Context`]. What outlives a crash is its [`Disk`](Node::Disk), which the world keeps.
pub trait Node: Sized {
    /// What survives a crash: a crash-simulating file layer, or a plain value with a durable and
    /// a volatile half.
    type Disk;
    /// What the node schedules for itself: completions of I/O, ticks, work put off. Like requests
    /// and replies it enters the trace hash, by its [`Hash`]: a node that is not deterministic
    /// shows in it.
    type Event: Hash;
    /// What clients ask.
    type Request: Hash;
    /// What they are answered.
    type Reply: Hash;

    /// The process has begun; the factory has just built it from its disk.
    fn start(&mut self, ctx: &mut Context<'_, Self>);

    /// A message has come.
    fn message(&mut self, ctx: &mut Context<'_, Self>, from: u64, body: Bytes);

    /// The deadline given to [`Context::set_timer`] has come. It is unset again.
    fn timer(&mut self, ctx: &mut Context<'_, Self>);

    /// An own event of [`Context::schedule`] is due.
    fn event(&mut self, ctx: &mut Context<'_, Self>, event: Self::Event);

    /// A client asks; the answer goes to [`Context::reply`], now or later.
    fn request(&mut self, ctx: &mut Context<'_, Self>, id: RequestId, request: Self::Request);

    /// The process or its machine dies. The node must not write to the disk from here on, and
    /// this is where a power loss is applied to it. The default drops the node.
    fn crash(self, disk: &mut Self::Disk, kind: Crash, rng: &mut Rng) {
        let _ = (disk, kind, rng);
    }

    /// The disk of a node, up or down, has changed its health. The default does nothing: the
    /// node may ask [`Context::disk_health`] instead.
    fn disk_fault(disk: &mut Self::Disk, fault: DiskFault, rng: &mut Rng) {
        let _ = (disk, fault, rng);
    }
}

/// What a factory builds a node from.
#[derive(Debug)]
#[non_exhaustive]
pub struct Boot<'a, D> {
    /// The id the node was added with.
    pub id: u64,
    /// How often it has been started, from 1.
    pub incarnation: u64,
    /// What its monotonic clock reads, in ns.
    pub now: u64,
    /// A seed of its own, another one each time.
    pub seed: u64,
    /// What survived.
    pub disk: &'a mut D,
}

/// How a node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Crash {
    /// The process dies: what it had written reaches the disk, synced or not.
    Process,
    /// The machine dies: what was not synced may be lost or torn.
    Power,
}

/// A change of a disk's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiskFault {
    /// Operations take `factor` times as long.
    Slow {
        /// How many times.
        factor: u64,
    },
    /// Operations do not complete for `for_ns`.
    Stall {
        /// How long, in ns.
        for_ns: u64,
    },
    /// Reads, writes and syncs fail.
    Fail,
    /// Nothing can be added.
    Full,
    /// The node is down, and a bit of what the disk holds flips for good.
    Rot,
    /// The node is down, and the disk is replaced by an empty one.
    Lost,
    /// All is well again. What still ails the disk, if anything, is told anew right after.
    Healed,
}

/// Names a client's request, for [`Context::reply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    pub(crate) client: u64,
    pub(crate) number: u64,
}

impl RequestId {
    /// The client that asked.
    pub const fn client(self) -> u64 {
        self.client
    }

    /// The number that [`World::request`](crate::World::request) returned.
    pub const fn number(self) -> u64 {
        self.number
    }
}

/// The health of a node's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskHealth {
    /// Do operations fail?
    pub failing: bool,
    /// Is there no room?
    pub full: bool,
    /// How many times as long as usual operations take; 1 is healthy.
    pub factor: u64,
    /// For how long yet no operation completes, in ns.
    pub stalled_ns: u64,
}

/// What a node may do while it handles something.
pub struct Context<'a, N: Node> {
    pub(crate) kernel: &'a mut Kernel<N>,
    pub(crate) disk: &'a mut N::Disk,
    pub(crate) at: usize,
}

impl<N: Node> Context<'_, N> {
    /// The node's id.
    pub fn id(&self) -> u64 {
        self.kernel.sites[self.at].id
    }

    /// How often the node has been started, from 1.
    pub fn incarnation(&self) -> u64 {
        self.kernel.sites[self.at].incarnation
    }

    /// The node's monotonic clock, in ns. It starts anywhere, may run fast or slow and jump
    /// ahead, and never goes back while the node is up.
    pub fn now(&self) -> u64 {
        self.kernel.sites[self.at].clock.local(self.kernel.now)
    }

    /// The node's wall clock, in ns. It may jump either way.
    pub fn wall(&self) -> u64 {
        self.kernel.sites[self.at].clock.wall(self.kernel.now)
    }

    /// True time in ns, for oracles and histories only: a real node cannot know it.
    pub fn true_now(&self) -> u64 {
        self.kernel.now
    }

    /// Sends `body` to the node `to`, or loses it. Never blocks; a message to an id that no node
    /// has is lost.
    pub fn send(&mut self, to: u64, body: Bytes) {
        self.kernel.send(self.at, to, body);
    }

    /// Answers a request: once, now or in a later handler. The answer may get lost.
    pub fn reply(&mut self, id: RequestId, reply: N::Reply) {
        self.kernel.reply(self.at, id, reply);
    }

    /// Sets the one timer of the node, in terms of its [`now`](Context::now); `None` unsets it.
    /// A deadline that has passed fires at once, after this handler.
    pub fn set_timer(&mut self, deadline: Option<u64>) {
        self.kernel.sites[self.at].timer = deadline;
        self.kernel.arm(self.at);
    }

    /// Has `event` handled `delay_ns` of true time from now. It dies with the node.
    pub fn schedule(&mut self, delay_ns: u64, event: N::Event) {
        let (node, incarnation) = (self.at as u32, self.incarnation());
        let due = self.kernel.now.saturating_add(delay_ns);
        self.kernel.trace.words([self.kernel.now, Kind::Own as u64, self.id(), due, 0]);
        event.hash(&mut self.kernel.trace);
        self.kernel.queue.push(due, Happening::Own { node, incarnation, event });
    }

    /// How long a disk operation that begins now takes, in ns: for
    /// [`schedule`](Context::schedule). Counts a stall and slowness in.
    pub fn disk_delay(&mut self) -> u64 {
        self.kernel.disk_delay(self.at)
    }

    /// The health of the node's disk.
    pub fn disk_health(&self) -> DiskHealth {
        self.kernel.disk_health(self.at)
    }

    /// The node's disk.
    pub fn disk(&mut self) -> &mut N::Disk {
        self.disk
    }

    /// A generator of the node's own, seeded by the run.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.kernel.sites[self.at].rng
    }

    /// Puts a line into the trace, and its parts into the trace hash. Allocates nothing.
    pub fn note(&mut self, label: &'static str, a: u64, b: u64) {
        let (now, id) = (self.kernel.now, self.id());
        self.kernel.trace.labelled(now, Kind::Note, id, a, b, label);
    }

    /// Ends the process once this handler returns, as [`Crash::Process`] would, and has it
    /// started again after a while: what a node does whose disk has failed.
    pub fn exit(&mut self) {
        self.kernel.exiting = true;
    }
}

impl<N: Node> fmt::Debug for Context<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("id", &self.id()).finish_non_exhaustive()
    }
}
