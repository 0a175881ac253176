//! Lamport's mutual exclusion (1978) as a pure core: nodes draw numbers from a shared counter.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::{Buf, Bytes};
use voussoir_sim::*;

const NODES: u64 = 3;
const REQUEST: u8 = 0;
const ACKNOWLEDGE: u8 = 1;
const RELEASE: u8 = 2;

/// The core: a Lamport clock, the requests that wait, and the last time heard of each peer.
#[derive(Default)]
struct Mutex {
    id: u64,
    time: u64,
    /// Requests by time and node; the least has the lock.
    queue: BTreeSet<(u64, u64)>,
    heard: [u64; NODES as usize],
    own: Option<u64>,
    /// The defect, to be switched on.
    is_hasty: bool,
}

impl Mutex {
    fn request(&mut self) {
        self.time += 1;
        self.own = Some(self.time);
        self.queue.insert((self.time, self.id));
    }

    fn release(&mut self) {
        self.time += 1;
        self.own = None;
        self.queue.retain(|&(_, node)| node != self.id);
    }

    fn message(&mut self, from: u64, kind: u8, time: u64) {
        self.time = self.time.max(time) + 1;
        self.heard[from as usize] = time;
        match kind {
            REQUEST => drop(self.queue.insert((time, from))),
            RELEASE => self.queue.retain(|&(_, node)| node != from),
            _ => {}
        }
    }

    fn holds_lock(&self) -> bool {
        let Some(own) = self.own else { return false };
        let is_heard = |peer: u64| peer == self.id || self.heard[peer as usize] > own;
        let is_first = self.queue.first() == Some(&(own, self.id));
        is_first && (self.is_hasty || (0..NODES).all(is_heard))
    }
}

/// The adapter: requests of clients, the shared counter, the encoding.
struct MutexNode {
    core: Mutex,
    counter: Rc<Cell<u64>>,
    waiting: Vec<RequestId>,
    is_inside: bool,
}

impl MutexNode {
    fn broadcast(&self, ctx: &mut Context<'_, Self>, kind: u8) {
        let body = Bytes::from([&[kind], &self.core.time.to_le_bytes()[..]].concat());
        let peers = (0..NODES).filter(|&to| to != self.core.id);
        peers.for_each(|to| ctx.send(to, body.clone()));
    }

    fn go_on(&mut self, ctx: &mut Context<'_, Self>) {
        if self.core.own.is_none() && !self.waiting.is_empty() {
            self.core.request();
            self.broadcast(ctx, REQUEST);
        }
        if self.core.holds_lock() && !self.is_inside {
            self.is_inside = true;
            let work_ns = ctx.rng().below(5 * MILLISECOND);
            ctx.schedule(work_ns, self.counter.get());
        }
    }
}

impl Node for MutexNode {
    type Disk = ();
    type Event = u64; // the number read when the critical section began
    type Request = ();
    type Reply = u64;

    fn start(&mut self, _: &mut Context<'_, Self>) {}
    fn timer(&mut self, _: &mut Context<'_, Self>) {}
    fn message(&mut self, ctx: &mut Context<'_, Self>, from: u64, mut body: Bytes) {
        let kind = body.get_u8();
        self.core.message(from, kind, body.get_u64_le());
        if kind == REQUEST {
            self.broadcast(ctx, ACKNOWLEDGE);
        }
        self.go_on(ctx);
    }
    fn event(&mut self, ctx: &mut Context<'_, Self>, number: u64) {
        self.counter.set(number + 1);
        ctx.reply(self.waiting.remove(0), number);
        self.is_inside = false;
        self.core.release();
        self.broadcast(ctx, RELEASE);
        self.go_on(ctx);
    }
    fn request(&mut self, ctx: &mut Context<'_, Self>, id: RequestId, (): ()) {
        self.waiting.push(id);
        self.go_on(ctx);
    }
}

/// A client asks for the next number.
struct Draw;

impl Workload for Draw {
    type Op = ();
    type Ret = u64;
    type Reply = u64;
    fn next_op(&mut self, _: u64, _: u64, _: &mut Rng) {}
    fn answer(&mut self, _: u64, (): &(), number: u64) -> Answer<u64> {
        Answer::Ok(number)
    }
}

/// Plays one seed; the algorithm needs links that lose nothing and nodes that do not crash.
pub(crate) fn run(seed: u64, is_hasty: bool) -> Result<Report, Failure> {
    let mut config = Config::default();
    config.faults = [FaultClass::Delay, FaultClass::Pause].into_iter().collect();
    (config.faults_ns, config.settle_ns) = (2 * SECOND, ClientsConfig::default().settle_ns());
    let counter = Rc::new(Cell::new(0));
    let mut world = World::new(config.plan(seed)?, move |boot| {
        let core = Mutex { id: boot.id, is_hasty, ..Mutex::default() };
        Some(MutexNode { core, counter: Rc::clone(&counter), waiting: vec![], is_inside: false })
    });
    (0..NODES).for_each(|id| world.add_node(id, ()));
    let mut clients = Clients::new(Draw, ClientsConfig::default());
    clients.run(&mut world, |_, _| Ok(()))?;
    check(&Counter, clients.history(), 1_000_000).map_err(|e| world.not_linearizable(&e))?;
    Ok(world.report().with("numbers", clients.history().outcomes().0))
}

fn main() {
    println!("{}", Runner::new("sim-mutex").run(|seed| run(seed, false)).expect("it excludes"));
    println!("{}", Runner::new("sim-mutex").run(|seed| run(seed, true)).expect_err("it does not"));
}
