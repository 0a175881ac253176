//! A node that does a bit of everything and writes down what it sees.

#![allow(dead_code, reason = "each test file uses its part")]

use bytes::Bytes;
use voussoir_sim::{
    Boot, Context, Crash, DiskFault, MILLISECOND, Node, Plan, RequestId, Rng, World,
};

pub(crate) const TICK: u64 = 10 * MILLISECOND;

/// What a probe saw, with true times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// (from, number, how long it took).
    pub messages: Vec<(u64, u64, u64)>,
    /// (true time, monotonic clock, wall clock) of each tick.
    pub ticks: Vec<(u64, u64, u64)>,
    /// How long each disk operation took.
    pub writes: Vec<u64>,
    pub failing: u64,
    pub full: u64,
}

/// What survives, and what was done to it.
#[derive(Debug, Default)]
pub(crate) struct ProbeDisk {
    pub written: u64,
    pub synced: u64,
    pub lost: u64,
    pub faults: Vec<DiskFault>,
    /// Kept here to outlive the node.
    pub seen: Seen,
    pub starts: Vec<u64>,
    pub crashes: Vec<Crash>,
}

pub(crate) struct Probe {
    id: u64,
    peers: u64,
    number: u64,
}

#[derive(Debug, Hash)]
pub(crate) enum Own {
    Synced { upto: u64, begun: u64 },
}

impl Node for Probe {
    type Disk = ProbeDisk;
    type Event = Own;
    type Request = u64;
    type Reply = u64;

    fn start(&mut self, ctx: &mut Context<'_, Self>) {
        let now = ctx.now();
        ctx.set_timer(Some(now + TICK));
    }

    fn message(&mut self, ctx: &mut Context<'_, Self>, from: u64, body: Bytes) {
        let word = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        let took = ctx.true_now() - word(8);
        ctx.disk().seen.messages.push((from, word(0), took));
    }

    fn timer(&mut self, ctx: &mut Context<'_, Self>) {
        let (now, wall, begun) = (ctx.now(), ctx.wall(), ctx.true_now());
        ctx.set_timer(Some(now + TICK));
        self.number += 1;
        let health = ctx.disk_health();
        let disk = ctx.disk();
        disk.seen.ticks.push((begun, now, wall));
        disk.seen.failing += u64::from(health.failing);
        disk.seen.full += u64::from(health.full);
        disk.written += 1;
        let upto = disk.written;
        let delay = ctx.disk_delay();
        ctx.schedule(delay, Own::Synced { upto, begun });
        let body = [self.number.to_le_bytes(), begun.to_le_bytes()].concat();
        let body = Bytes::from(body);
        for peer in (1..=self.peers).filter(|&peer| peer != self.id) {
            ctx.send(peer, body.clone());
        }
    }

    fn event(&mut self, ctx: &mut Context<'_, Self>, Own::Synced { upto, begun }: Own) {
        let took = ctx.true_now() - begun;
        let disk = ctx.disk();
        disk.synced = disk.synced.max(upto);
        disk.seen.writes.push(took);
    }

    fn request(&mut self, ctx: &mut Context<'_, Self>, id: RequestId, request: u64) {
        ctx.reply(id, request + 1);
    }

    fn crash(self, disk: &mut ProbeDisk, kind: Crash, _: &mut Rng) {
        disk.crashes.push(kind);
        if kind == Crash::Power {
            disk.lost += disk.written - disk.synced;
            disk.written = disk.synced;
        }
    }

    fn disk_fault(disk: &mut ProbeDisk, fault: DiskFault, _: &mut Rng) {
        disk.faults.push(fault);
    }
}

/// A world of so many probes, with ids from 1.
pub(crate) fn world(plan: Plan, nodes: u64) -> World<Probe> {
    let mut world = World::new(plan, move |boot: Boot<'_, ProbeDisk>| {
        boot.disk.starts.push(boot.incarnation);
        // The numbers go on, so that receivers can tell what is missing.
        Some(Probe { id: boot.id, peers: nodes, number: boot.incarnation * 1_000_000 })
    });
    (1..=nodes).for_each(|id| world.add_node(id, ProbeDisk::default()));
    world
}

/// Runs to the end of the plan.
pub(crate) fn finish(world: &mut World<Probe>) {
    while world.step().is_some() {}
}

pub(crate) fn seen(world: &World<Probe>, id: u64) -> &Seen {
    &world.disk(id).unwrap().seen
}
