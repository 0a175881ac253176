//! How many events a second the simulator handles: five nodes that send to each other.
//!
//! Run: `cargo run --release --example sim-speed`

use std::time::Instant;

use bytes::Bytes;
use voussoir_sim::{
    Config, Context, History, Kv, KvOp, KvRet, MILLISECOND, Node, Plan, RequestId, SECOND, World,
    check,
};

const NODES: u64 = 5;

struct Chatter(Bytes);

impl Node for Chatter {
    type Disk = ();
    type Event = ();
    type Request = ();
    type Reply = ();

    fn start(&mut self, ctx: &mut Context<'_, Self>) {
        self.timer(ctx);
    }

    fn message(&mut self, ctx: &mut Context<'_, Self>, from: u64, body: Bytes) {
        let now = ctx.now();
        ctx.set_timer(Some(now + 50 * MILLISECOND));
        ctx.send(1 + (from + ctx.id()) % NODES, body);
    }

    fn timer(&mut self, ctx: &mut Context<'_, Self>) {
        for peer in 1..=NODES {
            ctx.send(peer, self.0.clone());
        }
        let now = ctx.now();
        ctx.set_timer(Some(now + 50 * MILLISECOND));
    }

    fn event(&mut self, _: &mut Context<'_, Self>, (): ()) {}
    fn request(&mut self, _: &mut Context<'_, Self>, _: RequestId, (): ()) {}
}

fn world(name: &str, plan: Plan) {
    let body = Bytes::from(vec![7; 100]);
    let mut world = World::new(plan, move |_| Some(Chatter(body.clone())));
    (1..=NODES).for_each(|id| world.add_node(id, ()));
    let begun = Instant::now();
    while world.step().is_some() {}
    let seconds = begun.elapsed().as_secs_f64();
    let events = world.report().events;
    let rate = events as f64 / seconds / 1e6;
    println!("{name}: {events} events in {seconds:.2} s, {rate:.2} M/s on one thread");
}

/// One writer and three readers a key; every call overlaps others of its key.
fn history(calls: u64, keys: u64) {
    let mut history = History::new();
    for round in 0..calls / 4 / keys {
        for key in 0..keys {
            let put = history.invoke(0, KvOp::Put { key, value: round }, round);
            let gets = [1, 2, 3].map(|reader| history.invoke(reader, KvOp::Get { key }, round));
            history.ok(put, KvRet::Done, round);
            for (reader, get) in gets.into_iter().enumerate() {
                let old = round.checked_sub(1).filter(|_| reader == 0);
                let seen = if reader == 0 { old } else { Some(round) };
                history.ok(get, KvRet::Value(seen), round);
            }
        }
    }
    let begun = Instant::now();
    let checked = check(&Kv::new(), &history, 10_000_000).expect("linearizable");
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    println!("{} calls over {keys} keys checked in {ms:.1} ms: {checked:?}", checked.calls);
}

fn main() {
    let plan = Plan::calm(1, 40 * SECOND);
    world("without faults", plan);
    let mut config = Config::default();
    config.enable_ppm = 1_000_000;
    config.delay_ns.1 = MILLISECOND;
    config.faults_ns = 40 * SECOND;
    world("all classes of faults", config.plan(1).expect("a valid config"));
    history(10_000, 10);
    history(10_000, 1);
}
