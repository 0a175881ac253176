//! A register that acknowledges before it has synced: the simulator finds the lost write, and
//! prints the seed, the plan, the trace and how to see it again.

use bytes::Bytes;
use voussoir_sim::*;

struct Register {
    value: Option<u64>,
    /// The bug, to be switched on.
    hasty: bool,
}

impl Node for Register {
    type Disk = Option<u64>;
    type Event = (RequestId, u64);
    type Request = KvOp<(), u64>;
    type Reply = KvRet<u64>;

    fn start(&mut self, ctx: &mut Context<'_, Self>) {
        self.value = *ctx.disk();
    }
    fn message(&mut self, _: &mut Context<'_, Self>, _: u64, _: Bytes) {}
    fn timer(&mut self, _: &mut Context<'_, Self>) {}

    fn request(&mut self, ctx: &mut Context<'_, Self>, id: RequestId, request: KvOp<(), u64>) {
        let KvOp::Put { value, .. } = request else {
            return ctx.reply(id, KvRet::Value(self.value));
        };
        if self.hasty {
            self.value = Some(value);
            ctx.reply(id, KvRet::Done);
        }
        let sync_ns = ctx.disk_delay();
        ctx.schedule(sync_ns, (id, value));
    }

    fn event(&mut self, ctx: &mut Context<'_, Self>, (id, value): (RequestId, u64)) {
        *ctx.disk() = Some(value);
        if !self.hasty {
            self.value = Some(value);
            ctx.reply(id, KvRet::Done);
        }
    }
}

fn run(seed: u64, hasty: bool) -> Result<Report, Failure> {
    let mut config = Config::default();
    config.faults = FaultSet::NONE.with(FaultClass::PowerLoss).with(FaultClass::DiskSlow);
    (config.faults_ns, config.settle_ns) = (SECOND, SECOND);
    let plan = config.plan(seed)?;
    let mut world = World::new(plan, move |_| Some(Register { value: None, hasty }));
    world.add_node(1, None);
    world.alarm(0, 0);
    let (mut history, mut calls) = (History::new(), Vec::new());
    while let Some(step) = world.step() {
        match step {
            Step::Alarm(turn) => {
                let put = KvOp::Put { key: (), value: turn };
                let op = if turn % 2 == 0 { KvOp::Get { key: () } } else { put };
                calls.push(history.invoke(turn, op.clone(), world.now()));
                world.request(turn, 1, op);
                world.alarm(5 * MILLISECOND, turn + 1);
            }
            Step::Reply { client, reply, .. } => {
                history.ok(calls[client as usize], reply, world.now());
            }
            _ => {}
        }
    }
    check(&Kv::new(), &history, 1_000_000).map_err(|error| world.failure(error.to_string()))?;
    Ok(world.report().with("answered", history.outcomes().0))
}

fn main() {
    let runner = Runner::new("cargo run --example sim-minimal").seeds(100);
    println!("patient: {}", runner.run(|seed| run(seed, false)).expect("it keeps its word"));
    println!("hasty: {}", runner.run(|seed| run(seed, true)).expect_err("it does not"));
}
