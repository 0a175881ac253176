//! The world by hand: nodes, time, clients, cuts, crashes.

mod common;

use common::{ProbeDisk, TICK, finish, seen, world};
use voussoir_sim::{
    Boot, Context, Crash, DiskFault, MILLISECOND, Node, Plan, RequestId, SECOND, Step, World,
};

fn calm(nodes: u64) -> World<common::Probe> {
    world(Plan::calm(1, 5 * SECOND), nodes)
}

fn until(world: &mut World<common::Probe>, at: u64) {
    while world.step_until(at).is_some() {}
}

#[test]
fn time_moves_to_the_end_and_no_further() {
    let mut world = calm(2);
    until(&mut world, SECOND);
    assert_eq!(world.now(), SECOND);
    finish(&mut world);
    assert_eq!(world.now(), 5 * SECOND);
    assert_eq!(world.step(), None);
    assert_eq!(world.ids().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_cut_is_one_way_until_healed() {
    let mut world = calm(2);
    until(&mut world, SECOND);
    world.cut(1, 2);
    let before = (seen(&world, 1).messages.len(), seen(&world, 2).messages.len());
    until(&mut world, 2 * SECOND);
    let after = (seen(&world, 1).messages.len(), seen(&world, 2).messages.len());
    assert!(after.0 >= before.0 + 99 && after.1 <= before.1 + 1, "{before:?} {after:?}");
    world.heal();
    until(&mut world, 3 * SECOND);
    assert!(seen(&world, 2).messages.len() > after.1 + 90);
    assert_eq!(world.counts().silent(), voussoir_sim::FaultSet::ALL, "not of the plan");
}

#[test]
fn a_partition_by_hand_stays_when_the_plan_turns_quiet() {
    let plan = Plan::calm(1, 4 * SECOND).quiet_at(2 * SECOND);
    let mut world = world(plan, 3);
    world.partition(&[1, 3]);
    finish(&mut world);
    assert!(seen(&world, 2).messages.is_empty());
    assert!(seen(&world, 1).messages.iter().all(|message| message.0 == 3));
}

#[test]
fn a_node_crashed_by_hand_stays_down_until_restarted() {
    let mut world = world(Plan::calm(1, 5 * SECOND).quiet_at(3 * SECOND), 2);
    until(&mut world, SECOND);
    assert!(world.crash(2, Crash::Power));
    assert!(!world.crash(2, Crash::Power), "it is down already");
    until(&mut world, 4 * SECOND);
    assert!(world.node(2).is_none());
    world.restart(2);
    let step = world.step_until(5 * SECOND);
    assert_eq!(step, Some(Step::Started(2)));
    assert_eq!(world.disk(2).unwrap().starts, [1, 2]);
    finish(&mut world);
    let disk = world.disk(2).unwrap();
    assert_eq!(disk.crashes, [Crash::Power]);
    // Own events of the first life do not reach the second: a write under way is lost.
    assert!(disk.synced + 2 >= disk.written);
}

#[test]
fn clients_ask_and_are_answered() {
    let mut world = calm(2);
    let number = world.request(7, 2, 41);
    assert_eq!(number, world.request(7, 99, 41) - 1, "an unknown node is asked in vain");
    let mut replies = Vec::new();
    while let Some(step) = world.step_until(SECOND) {
        if let Step::Reply { client, request, from, reply } = step {
            replies.push((client, request, from, reply));
        }
    }
    assert_eq!(replies, [(7, number, 2, 42)]);
    world.crash(2, Crash::Process);
    world.request(7, 2, 41);
    while let Some(step) = world.step_until(2 * SECOND) {
        assert!(!matches!(step, Step::Reply { .. }));
    }
}

#[test]
fn a_paused_node_handles_its_inputs_late_and_in_order() {
    let mut world = calm(2);
    until(&mut world, SECOND);
    world.pause(2, SECOND);
    let before = seen(&world, 2).messages.len();
    until(&mut world, 2 * SECOND - 1);
    assert_eq!(seen(&world, 2).messages.len(), before);
    until(&mut world, 2 * SECOND + MILLISECOND);
    let numbers: Vec<u64> = seen(&world, 2).messages.iter().map(|message| message.1).collect();
    assert!(numbers.len() >= before + 99);
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
}

#[test]
fn clocks_and_disks_by_hand() {
    let mut world = calm(2);
    until(&mut world, SECOND);
    world.set_clock_rate(1, 100_000);
    world.jump_clock(2, 500 * MILLISECOND);
    let (one, two) = (seen(&world, 1).ticks.len(), seen(&world, 2).ticks.len());
    until(&mut world, 2 * SECOND);
    let more = seen(&world, 1).ticks.len() - one;
    assert!((109..=110).contains(&more), "a clock 10 % fast: {more}");
    let more = seen(&world, 2).ticks.len() - two;
    assert!((100..=101).contains(&more), "a jump fires the timer once: {more}");
    world.set_disk(1, DiskFault::Slow { factor: 50 });
    world.set_disk(2, DiskFault::Fail);
    until(&mut world, 3 * SECOND);
    assert!(seen(&world, 1).writes.iter().any(|&took| took > 10 * MILLISECOND));
    assert!(seen(&world, 2).failing >= 99);
    world.set_disk(2, DiskFault::Healed);
    assert_eq!(world.disk(2).unwrap().faults, [DiskFault::Fail, DiskFault::Healed]);
}

#[test]
fn a_link_by_hand_carries_so_many_bytes_per_second() {
    let mut world = calm(2);
    world.set_speed(1, 2, 1_600); // 16-byte messages come every 10 ms: just right
    until(&mut world, 2 * SECOND);
    let slowest = seen(&world, 2).messages.iter().map(|message| message.2).max().unwrap();
    assert!((10 * MILLISECOND..15 * MILLISECOND).contains(&slowest), "{slowest}");
    world.set_speed(1, 2, 800);
    until(&mut world, 4 * SECOND);
    let slowest = seen(&world, 2).messages.iter().map(|message| message.2).max().unwrap();
    assert!(slowest > 500 * MILLISECOND, "{slowest}");
}

/// Exits at its first timer, and cannot start the second time.
struct Mortal;

impl Node for Mortal {
    type Disk = u64;
    type Event = ();
    type Request = ();
    type Reply = ();

    fn start(&mut self, ctx: &mut Context<'_, Self>) {
        let now = ctx.now();
        // A deadline in the past fires at once; an own event is due before it.
        ctx.set_timer(Some(now.saturating_sub(5)));
    }

    fn message(&mut self, _: &mut Context<'_, Self>, _: u64, _: bytes::Bytes) {}

    fn timer(&mut self, ctx: &mut Context<'_, Self>) {
        *ctx.disk() += 1;
        ctx.schedule(TICK, ());
        if ctx.incarnation() == 1 {
            ctx.exit();
        }
    }

    fn event(&mut self, ctx: &mut Context<'_, Self>, (): ()) {
        assert_eq!(ctx.incarnation(), 3, "own events die with their node");
        let timers = *ctx.disk();
        ctx.note("event", timers, 0);
        *ctx.disk() += 100;
    }

    fn request(&mut self, _: &mut Context<'_, Self>, _: RequestId, (): ()) {}
}

#[test]
fn a_node_exits_and_is_refused_and_starts_again() {
    let mut world = World::<Mortal>::new(Plan::calm(1, 5 * SECOND), |boot: Boot<'_, u64>| {
        (boot.incarnation != 2).then_some(Mortal)
    });
    world.add_node(5, 0);
    let mut steps = Vec::new();
    while let Some(step) = world.step() {
        steps.push(step);
    }
    let expected = [
        Step::Quiet,
        Step::Started(5),
        Step::Crashed(5),
        Step::Refused(5),
        Step::Started(5),
        Step::Node(5),
        Step::Node(5),
    ];
    assert_eq!(steps, expected);
    assert_eq!(world.disk(5), Some(&102));
    let trace = world.trace();
    for line in ["node 5 exits", "cannot start, incarnation 2", "node 5 notes event 2 0"] {
        assert!(trace.contains(line), "{line} is not in:\n{trace}");
    }
}

#[test]
fn a_node_is_acted_on_from_outside() {
    let mut world = calm(1);
    until(&mut world, TICK / 2);
    let ticks = world.with_node(1, |node, ctx| {
        node.timer(ctx);
        ctx.disk().seen.ticks.len()
    });
    assert_eq!(ticks, Some(1));
    world.with_node(1, |_, ctx| ctx.exit());
    assert!(world.with_node(1, |_, _| ()).is_none(), "it has exited");
    assert!(world.with_node(2, |_, _| ()).is_none(), "there is none");
}

#[test]
#[should_panic(expected = "there is a node 1 already")]
fn ids_are_unique() {
    calm(2).add_node(1, ProbeDisk::default());
}

#[test]
#[should_panic(expected = "more than 1000 events in one run")]
fn steps_are_bounded() {
    let mut plan = Plan::calm(1, 100 * SECOND);
    plan.limits.steps = 1_000;
    finish(&mut world(plan, 2));
}
