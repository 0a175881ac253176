//! Each class of faults fires, is counted, has its effect, and ends.

mod common;

use common::{Probe, Seen, TICK, finish, seen, world};
use voussoir_sim::{
    Config, Crash, DiskFault, FaultClass, FaultSet, Intensity, MICROSECOND, MILLISECOND, Plan,
    SECOND, Step, World,
};

const QUIET: u64 = 20 * SECOND;
const END: u64 = 30 * SECOND;

/// A run of three nodes under one class alone.
fn under(class: FaultClass, every_ns: u64, for_ns: u64, amount: u64) -> World<Probe> {
    let plan = Plan::calm(7, END).quiet_at(QUIET);
    let mut world = world(plan.with(class, Intensity::new(every_ns, for_ns, amount)), 3);
    let mut at_quiet = None;
    while let Some(step) = world.step() {
        if step == Step::Quiet {
            at_quiet = Some(*world.counts());
        }
    }
    assert!(world.counts().get(class) > 0, "{class} never fired");
    assert!(FaultSet::ALL.without(class).iter().all(|other| world.counts().get(other) == 0));
    // Messages under way when faults ended may still come late.
    if class != FaultClass::Reorder {
        assert_eq!(at_quiet.as_ref(), Some(world.counts()), "{class} went on");
    }
    assert!((1..=3).all(|id| world.node(id).is_some()), "a node was left down");
    world
}

/// How often the number of a message from `from` was (lower than, equal to) one seen before, and
/// how many were missing.
fn disorder(seen: &Seen, from: u64) -> (u64, u64, u64) {
    let numbers = seen.messages.iter().filter(|message| message.0 == from).map(|message| message.1);
    let (mut lower, mut equal, mut all) = (0, 0, std::collections::BTreeSet::new());
    let mut top = 0;
    for number in numbers {
        if !all.insert(number) {
            equal += 1;
        } else if number < top {
            lower += 1;
        }
        top = top.max(number);
    }
    let (Some(first), Some(last)) = (all.first(), all.last()) else { return (0, 0, 0) };
    (lower, equal, last - first + 1 - all.len() as u64)
}

fn disorder_of_all(world: &World<Probe>) -> (u64, u64, u64) {
    let pairs = (1..=3).flat_map(|to| (1..=3).map(move |from| (from, to)));
    pairs.filter(|(from, to)| from != to).fold((0, 0, 0), |sum, (from, to)| {
        let one = disorder(seen(world, to), from);
        (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2)
    })
}

fn slowest(world: &World<Probe>) -> u64 {
    (1..=3).flat_map(|id| seen(world, id).messages.iter()).map(|message| message.2).max().unwrap()
}

#[test]
fn without_a_plan_nothing_goes_wrong() {
    let mut world = world(Plan::calm(7, END), 3);
    finish(&mut world);
    assert_eq!(world.counts().silent(), FaultSet::ALL);
    assert_eq!(disorder_of_all(&world), (0, 0, 0));
    assert!(slowest(&world) <= world.plan().delay_ns.1);
    assert_eq!(seen(&world, 1).ticks.len() as u64, END / TICK);
}

#[test]
fn drop_loses_messages() {
    let world = under(FaultClass::Drop, 0, 0, 50_000);
    let (lower, equal, missing) = disorder_of_all(&world);
    assert_eq!((lower, equal), (0, 0));
    assert_eq!(missing, world.counts().get(FaultClass::Drop));
    assert!((400..800).contains(&missing), "{missing} of 12,000");
}

#[test]
fn duplicate_delivers_twice() {
    let world = under(FaultClass::Duplicate, 0, 0, 50_000);
    let (_, equal, missing) = disorder_of_all(&world);
    assert_eq!((equal, missing), (world.counts().get(FaultClass::Duplicate), 0));
}

#[test]
fn reorder_lets_messages_overtake() {
    let world = under(FaultClass::Reorder, 0, 100 * MILLISECOND, 50_000);
    let (lower, equal, missing) = disorder_of_all(&world);
    assert_eq!((lower, equal, missing), (world.counts().get(FaultClass::Reorder), 0, 0));
}

#[test]
fn delay_holds_messages_up_in_order() {
    let world = under(FaultClass::Delay, 0, 300 * MILLISECOND, 1_000);
    assert_eq!(disorder_of_all(&world), (0, 0, 0));
    assert!(slowest(&world) > 100 * MILLISECOND);
}

#[test]
fn slow_link_makes_messages_wait() {
    let world = under(FaultClass::SlowLink, 3 * SECOND, SECOND, 1_000);
    assert!(slowest(&world) > 200 * MILLISECOND, "{}", slowest(&world));
}

#[test]
fn partition_stops_both_directions() {
    let world = under(FaultClass::Partition, 3 * SECOND, SECOND, 0);
    let (_, _, missing) = disorder_of_all(&world);
    assert_eq!(missing, world.counts().get(FaultClass::Partition));
    // What is cut one way is cut the other way: as many are missing, give or take one a turn.
    for (a, b) in [(1, 2), (1, 3), (2, 3)] {
        let (there, back) = (disorder(seen(&world, b), a).2, disorder(seen(&world, a), b).2);
        assert!(there.abs_diff(back) < 20, "{a} {b}: {there} {back}");
    }
}

#[test]
fn one_way_stops_one_direction() {
    let world = under(FaultClass::OneWay, 3 * SECOND, SECOND, 0);
    let (_, _, missing) = disorder_of_all(&world);
    assert_eq!(missing, world.counts().get(FaultClass::OneWay));
    let uneven = [(1, 2), (1, 3), (2, 3)].into_iter().any(|(a, b)| {
        let (there, back) = (disorder(seen(&world, b), a).2, disorder(seen(&world, a), b).2);
        there.abs_diff(back) > 30
    });
    assert!(uneven);
}

#[test]
fn flap_stops_and_lets_through_in_turns() {
    let world = under(FaultClass::Flap, 2 * SECOND, SECOND, 50 * MILLISECOND);
    let gaps: usize = (1..=3)
        .flat_map(|to| (1..=3).map(move |from| (from, to)))
        .map(|(from, to)| {
            let messages = &seen(&world, to).messages;
            let numbers: Vec<u64> =
                messages.iter().filter(|message| message.0 == from).map(|m| m.1).collect();
            numbers.windows(2).filter(|pair| pair[1] > pair[0] + 1).count()
        })
        .sum();
    // Some ten faults, each of several turns.
    assert!(gaps > 30, "{gaps}");
}

#[test]
fn crash_keeps_what_was_written() {
    let world = under(FaultClass::Crash, SECOND, SECOND, 0);
    let disks = || (1..=3).map(|id| world.disk(id).unwrap());
    let crashes: usize = disks().map(|disk| disk.crashes.len()).sum();
    assert_eq!(crashes as u64, world.counts().get(FaultClass::Crash));
    assert!(disks().all(|disk| disk.crashes.iter().all(|&kind| kind == Crash::Process)));
    assert!(disks().all(|disk| disk.lost == 0 && disk.starts.len() == disk.crashes.len() + 1));
    assert!(disks().all(|disk| disk.starts.windows(2).all(|pair| pair[1] == pair[0] + 1)));
}

#[test]
fn power_loss_takes_what_was_not_synced() {
    let mut plan = Plan::calm(7, END)
        .quiet_at(QUIET)
        .with(FaultClass::PowerLoss, Intensity::new(SECOND, SECOND, 0));
    plan.disk_ns = (5 * MILLISECOND, 9 * MILLISECOND);
    let mut world = world(plan, 3);
    finish(&mut world);
    let disks = || (1..=3).map(|id| world.disk(id).unwrap());
    assert!(disks().map(|disk| disk.lost).sum::<u64>() > 0);
    assert!(disks().all(|disk| disk.crashes.iter().all(|&kind| kind == Crash::Power)));
}

#[test]
fn stopping_nodes_spares_a_majority_or_does_not() {
    for spare in [true, false] {
        let mut plan = Plan::calm(3, END).quiet_at(QUIET);
        for class in [FaultClass::Crash, FaultClass::PowerLoss] {
            plan = plan.with(class, Intensity::new(SECOND / 2, SECOND, 0));
        }
        plan.spare_majority = spare;
        let mut world = world(plan, 3);
        let mut fewest = 3;
        while world.step().is_some() {
            if world.now() > 0 {
                fewest = fewest.min(world.nodes().count());
            }
        }
        assert_eq!(fewest, if spare { 2 } else { 0 });
    }
}

#[test]
fn pause_stands_still_while_the_clock_goes_on() {
    let world = under(FaultClass::Pause, 3 * SECOND, SECOND, 0);
    let ticks = || (1..=3).flat_map(|id| seen(&world, id).ticks.windows(2));
    let longest = ticks().map(|pair| pair[1].0 - pair[0].0).max().unwrap();
    assert!(longest > 300 * MILLISECOND, "{longest}");
    assert!(ticks().all(|pair| pair[1].1 - pair[0].1 == pair[1].0 - pair[0].0));
    // Nothing is lost by a pause.
    assert_eq!(disorder_of_all(&world), (0, 0, 0));
}

#[test]
fn clock_skew_changes_the_rate() {
    let world = under(FaultClass::ClockSkew, 0, 0, 100_000);
    for id in 1..=3 {
        let ticks = &seen(&world, id).ticks;
        let (first, last) = (ticks.first().unwrap(), ticks.last().unwrap());
        let (gone, read) = ((last.0 - first.0) as f64, (last.1 - first.1) as f64);
        let rate = read / gone - 1.0;
        assert!(rate != 0.0 && rate.abs() < 0.1001, "{rate}");
        // Its timers follow its own clock.
        assert!(ticks.windows(2).all(|pair| pair[1].1 - pair[0].1 < TICK + 3));
    }
}

#[test]
fn clock_jump_moves_the_monotonic_clock_ahead_and_the_wall_clock_both_ways() {
    let world = under(FaultClass::ClockJump, SECOND, 2 * SECOND, 0);
    let (mut ahead, mut wall_back, mut wall_ahead) = (0, 0, 0);
    for id in 1..=3 {
        for pair in seen(&world, id).ticks.windows(2) {
            assert!(pair[1].1 >= pair[0].1 + TICK);
            assert!(pair[1].0 <= pair[0].0 + TICK, "a jump ahead fires timers early");
            ahead += u64::from(pair[1].1 > pair[0].1 + TICK);
            let wall = pair[1].2.wrapping_sub(pair[0].2).cast_signed();
            let local = (pair[1].1 - pair[0].1).cast_signed();
            wall_back += u64::from(wall < local);
            wall_ahead += u64::from(wall > local);
        }
    }
    assert!(ahead > 0 && wall_back > 0 && wall_ahead > 0, "{ahead} {wall_back} {wall_ahead}");
}

fn told(world: &World<Probe>, fault: impl Fn(&DiskFault) -> bool) -> usize {
    (1..=3).map(|id| world.disk(id).unwrap().faults.iter().filter(|f| fault(f)).count()).sum()
}

fn longest_write(world: &World<Probe>) -> u64 {
    (1..=3).flat_map(|id| seen(world, id).writes.iter().copied()).max().unwrap()
}

#[test]
fn disks_turn_slow_and_recover() {
    let world = under(FaultClass::DiskSlow, SECOND, SECOND, 100);
    let slow = told(&world, |fault| matches!(fault, DiskFault::Slow { factor: 100 }));
    assert_eq!(slow as u64, world.counts().get(FaultClass::DiskSlow));
    assert_eq!(told(&world, |fault| *fault == DiskFault::Healed), slow);
    let longest = longest_write(&world);
    assert!(longest > 100 * MILLISECOND && longest <= 100 * world.plan().disk_ns.1);
}

#[test]
fn disks_stall_and_go_on() {
    let world = under(FaultClass::DiskStall, SECOND, SECOND, 0);
    assert!(told(&world, |fault| matches!(fault, DiskFault::Stall { .. })) > 3);
    assert!(longest_write(&world) > 300 * MILLISECOND);
}

#[test]
fn disks_fail_and_recover() {
    let world = under(FaultClass::DiskFail, SECOND, SECOND, 0);
    assert!((1..=3).map(|id| seen(&world, id).failing).sum::<u64>() > 100);
    let healed = told(&world, |fault| *fault == DiskFault::Healed);
    assert_eq!(told(&world, |fault| *fault == DiskFault::Fail), healed);
}

#[test]
fn disks_fill_up_and_are_cleared() {
    let world = under(FaultClass::DiskFull, SECOND, SECOND, 0);
    assert!((1..=3).map(|id| seen(&world, id).full).sum::<u64>() > 100);
    assert!(told(&world, |fault| *fault == DiskFault::Full) > 3);
}

/// Whoever loses a disk is down when it happens, comes back, and is one of few.
#[test]
fn disks_are_ruined_while_their_nodes_are_down() {
    for (class, ruined) in
        [(FaultClass::BitRot, DiskFault::Rot), (FaultClass::DiskLoss, DiskFault::Lost)]
    {
        let world = under(class, SECOND, SECOND, 0);
        assert_eq!(told(&world, |fault| *fault == ruined), 1, "one of three, and never two");
        assert_eq!(world.counts().get(class), 1);
        for disk in (1..=3).map(|id| world.disk(id).unwrap()) {
            assert_eq!(disk.crashes.len(), disk.faults.len());
            assert_eq!(disk.starts.len(), disk.faults.len() + 1);
        }
    }
}

#[test]
fn client_loss_takes_requests_and_answers() {
    let plan = Plan::calm(7, END).quiet_at(QUIET);
    let mut world = world(plan.with(FaultClass::ClientLoss, Intensity::new(0, 0, 100_000)), 3);
    world.alarm(0, 0);
    let (mut answered, mut asked) = (0, 0);
    while let Some(step) = world.step() {
        match step {
            Step::Alarm(_) if asked < 1_000 => {
                world.request(9, 1 + asked % 3, asked);
                world.alarm(10 * MILLISECOND, 0);
                asked += 1;
            }
            Step::Reply { client: 9, request, from, reply } => {
                assert_eq!((request, from), (reply, 1 + (reply - 1) % 3));
                answered += 1;
            }
            _ => {}
        }
    }
    assert_eq!(asked - answered, world.counts().get(FaultClass::ClientLoss));
    assert!((100..300).contains(&(asked - answered)), "{answered} of {asked}");
}

#[test]
fn drawn_plans_fire_every_class_between_them() {
    let mut config = Config::default();
    config.faults_ns = 5 * SECOND;
    config.settle_ns = 2 * SECOND;
    config.delay_ns = (50 * MICROSECOND, 5 * MILLISECOND);
    let mut counts = Vec::new();
    for seed in 0..60 {
        let plan = config.plan(seed).unwrap();
        let classes = plan.classes();
        let mut world = world(plan, 5);
        world.alarm(0, 0);
        while let Some(step) = world.step() {
            if let Step::Alarm(_) = step {
                world.request(1, 1, 1);
                world.alarm(20 * MILLISECOND, 0);
            }
        }
        assert_eq!(world.nodes().count(), 5, "seed {seed} left a node down");
        for (class, count) in world.counts().iter() {
            // Slow links and late messages of one class can look like another's only here.
            let allowed = classes.contains(class) || class == FaultClass::Reorder;
            assert!(allowed || count == 0, "seed {seed}: {class} is not in the plan");
        }
        counts.push(*world.counts());
    }
    for class in FaultClass::ALL {
        let runs = counts.iter().filter(|counts| counts.get(class) > 0).count();
        assert!(runs >= 10, "{class} fired in {runs} of 60 runs");
    }
}

/// Pauses alone, at many seeds: they change no order, and end with the other faults.
#[test]
fn pauses_never_reorder_and_end_when_faults_end() {
    let (mut put_off, mut paused_at_quiet) = (0, 0);
    for seed in 0..200 {
        let mut plan = Plan::calm(seed, 5 * SECOND).quiet_at(3 * SECOND);
        plan = plan.with(FaultClass::Pause, Intensity::new(SECOND / 4, 2 * SECOND, 0));
        plan.spare_majority = false;
        plan.limits.steps = 100_000;
        let mut world = world(plan, 3);
        // By hand as well: pauses that are made longer and shorter while they go on.
        for turn in 1..20 {
            while world.step_until(turn * SECOND / 10).is_some() {}
            let for_ns = [30, 250, 0][(turn % 3) as usize] * MILLISECOND;
            world.pause(1 + (seed + turn) % 3, for_ns);
        }
        while world.now() < 3 * SECOND {
            let at_quiet = world.step() == Some(Step::Quiet);
            if at_quiet {
                break;
            }
        }
        let before: Vec<_> = (1..=3).map(|id| seen(&world, id).ticks.last().copied()).collect();
        while world.step_until(3 * SECOND + 2 * TICK).is_some() {}
        for (id, before) in (1..=3).zip(before) {
            let last = seen(&world, id).ticks.last().copied();
            let since = last.map_or(u64::MAX, |last| world.now() - last.0);
            assert!(since <= TICK, "seed {seed}: node {id} stood still after faults had ended");
            let was_still = before.is_some_and(|before| 3 * SECOND - before.0 > 2 * TICK);
            paused_at_quiet += u64::from(was_still);
        }
        finish(&mut world);
        assert_eq!(disorder_of_all(&world), (0, 0, 0), "seed {seed}");
        assert_eq!(world.counts().get(FaultClass::Reorder), 0, "seed {seed}");
        put_off += world.counts().get(FaultClass::Pause);
    }
    assert!(put_off > 10_000 && paused_at_quiet > 50, "{put_off} {paused_at_quiet}");
}

/// A message of so many bytes that a probe takes, sent now.
fn send_long(world: &mut World<Probe>, bytes: usize) {
    world.with_node(1, |_, ctx| {
        let mut body = vec![0; bytes];
        body[8..16].copy_from_slice(&ctx.true_now().to_le_bytes());
        ctx.send(2, body.into());
    });
}

#[test]
fn a_slow_link_is_whole_again_when_faults_end() {
    let slow = Intensity::new(SECOND / 4, 2 * SECOND, 10_000);
    let mut in_time = 0;
    for seed in 0..20 {
        let plan = Plan::calm(seed, 6 * SECOND).quiet_at(4 * SECOND);
        let mut world = world(plan.with(FaultClass::SlowLink, slow), 3);
        for turn in 1..40 {
            while world.step_until(turn * SECOND / 10).is_some() {}
            send_long(&mut world, 1_000_000);
        }
        while world.step_until(4 * SECOND + world.plan().delay_ns.1).is_some() {}
        let arrived = seen(&world, 2).messages.len();
        finish(&mut world);
        let late = &seen(&world, 2).messages[arrived..];
        for from in [1, 3] {
            let count = late.iter().filter(|message| message.0 == from).count();
            assert!(count > 190, "seed {seed}: {count} messages in 2 s from {from}");
        }
        let slowest = late.iter().map(|message| message.2).max().unwrap();
        assert!(slowest <= world.plan().delay_ns.1, "seed {seed}: {slowest} ns");
        in_time += late.len();
        assert_eq!(world.counts().get(FaultClass::Reorder), 0, "and in order");
        assert!(world.counts().get(FaultClass::SlowLink) > 0);
    }
    assert!(in_time > 3_000);
}

#[test]
fn what_is_done_to_a_disk_by_hand_stays_until_it_is_undone_by_hand() {
    let mut plan = Plan::calm(7, END).quiet_at(QUIET);
    let classes =
        [FaultClass::DiskSlow, FaultClass::DiskStall, FaultClass::DiskFail, FaultClass::DiskFull];
    for class in classes {
        plan = plan.with(class, Intensity::new(SECOND / 4, SECOND, 7));
    }
    let mut world = world(plan, 3);
    world.set_disk(1, DiskFault::Fail);
    world.set_disk(2, DiskFault::Full);
    world.set_disk(3, DiskFault::Slow { factor: 50 });
    let mut ticks = 0;
    while world.step().is_some() {
        let health = |world: &mut World<Probe>, id| {
            world.with_node(id, |_, ctx| ctx.disk_health()).expect("no node crashes")
        };
        if world.now() > 0 && seen(&world, 1).ticks.len() > ticks {
            ticks = seen(&world, 1).ticks.len();
            assert!(health(&mut world, 1).failing && health(&mut world, 2).full);
            assert!(health(&mut world, 3).factor >= 50);
        }
    }
    for class in classes {
        assert!(world.counts().get(class) > 10, "{class}");
    }
    let told = world.disk(2).unwrap().faults.clone();
    let after_healed = told.rsplit(|fault| *fault == DiskFault::Healed).next().unwrap();
    assert!(after_healed.contains(&DiskFault::Full), "{told:?}");
    world.set_disk(2, DiskFault::Healed);
    let health = world.with_node(2, |_, ctx| ctx.disk_health()).unwrap();
    assert!(!health.full && health.factor == 1);
    assert_eq!(world.disk(2).unwrap().faults.last(), Some(&DiskFault::Healed));
}

#[test]
fn worlds_of_one_or_two_nodes_have_no_majority_to_spare() {
    for nodes in [1, 2] {
        for class in [FaultClass::Crash, FaultClass::PowerLoss, FaultClass::Pause] {
            let plan = Plan::calm(7, END).quiet_at(QUIET);
            assert!(plan.spare_majority);
            let mut world = world(plan.with(class, Intensity::new(SECOND, SECOND, 0)), nodes);
            finish(&mut world);
            assert!(world.counts().get(class) > 3, "{class} in a world of {nodes}");
        }
    }
}

#[test]
fn everything_done_by_hand_is_in_the_trace_and_its_hash() {
    type Act = fn(&mut World<Probe>);
    let acts: [(&str, Act); 10] = [
        ("node 1: link cut to node 2", |world| world.cut(1, 2)),
        ("node 2: link cut to node 1", |world| world.partition(&[1])),
        ("all cuts healed", World::heal),
        ("node 1: link speed, to node and in bytes a second 2 77", |w| w.set_speed(1, 2, 77)),
        ("node 2: pause in ns 5", |world| world.pause(2, 5)),
        ("node 2: clock rate in ppm 9", |world| world.set_clock_rate(2, 9)),
        ("node 2: clock jump in ns 8", |world| world.jump_clock(2, 8)),
        ("node 2: disk slow by factor 3", |w| w.set_disk(2, DiskFault::Slow { factor: 3 })),
        ("node 2: restart", |world| world.restart(2)),
        ("node 2: disk acted on", |world| assert!(world.disk_mut(2).is_some())),
    ];
    let hash = |act: Option<Act>| {
        let mut world = world(Plan::calm(7, SECOND), 2);
        if let Some(act) = act {
            act(&mut world);
        }
        (world.trace_hash(), world.trace())
    };
    let mut hashes = std::collections::BTreeSet::from([hash(None).0]);
    for (line, act) in acts {
        let (hash, trace) = hash(Some(act));
        assert!(trace.contains(&format!("by hand: {line}")), "{line} is not in: {trace}");
        assert!(hashes.insert(hash), "{line} is not in the hash");
    }
}
