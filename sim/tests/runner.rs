//! Many seeds, and what is told about one that fails.

mod common;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{TICK, finish, world};
use voussoir_sim::{
    Config, Failure, FaultClass, FaultSet, History, Kv, KvOp, KvRet, Plan, Report, Runner, SECOND,
    World, check,
};

fn one(seed: u64) -> World<common::Probe> {
    let mut config = Config::default();
    config.faults_ns = SECOND;
    config.settle_ns = SECOND;
    let mut world = world(config.plan(seed).unwrap(), 3);
    finish(&mut world);
    world
}

#[test]
fn reports_are_added_up() {
    for threads in [1, 3] {
        let runs = AtomicU64::new(0);
        let summary = Runner::new("-")
            .first(100)
            .seeds(30)
            .twice(4)
            .threads(NonZeroUsize::new(threads).unwrap())
            .run(|seed| {
                runs.fetch_add(1, Ordering::Relaxed);
                Ok(one(seed).report().with("seeds", seed))
            })
            .unwrap();
        assert_eq!((summary.runs, runs.into_inner()), (30, 34));
        assert_eq!(summary.figure("seeds"), (100..130).sum::<u64>());
        assert_eq!(summary.virtual_ns, 60 * SECOND);
        assert!(summary.events > 10_000 && summary.faults.get(FaultClass::Drop) > 0);
        let text = summary.to_string();
        assert!(text.contains("30 seeds") && text.contains("drop=") && text.contains("seeds: "));
        assert!(summary.silent(FaultSet::NONE.with(FaultClass::Drop)).is_empty());
    }
}

#[test]
fn classes_that_never_fired_are_named() {
    let run = |seed| {
        let mut world = world(Plan::calm(seed, SECOND), 2);
        finish(&mut world);
        Ok(world.report())
    };
    let summary = Runner::new("-").seeds(3).run(run).unwrap();
    let wanted = FaultSet::NONE.with(FaultClass::Crash).with(FaultClass::Drop);
    assert_eq!(summary.silent(wanted).to_string(), "drop,crash");
}

#[test]
fn a_failure_tells_all_that_is_needed_to_see_it_again() {
    let broken = Runner::new("cargo test -p mine it")
        .seeds(50)
        .threads(NonZeroUsize::MIN)
        .run(|seed| {
            let world = one(seed);
            if seed == 17 { Err(world.failure("two leaders")) } else { Ok(world.report()) }
        })
        .unwrap_err();
    assert_eq!((broken.seed, broken.reproduced), (17, true));
    assert_eq!(broken.failure.message(), "two leaders");
    assert_eq!(broken.failure.plan().map(|plan| plan.seed), Some(17));
    let text = broken.to_string();
    for part in [
        "seed 17 failed: two leaders",
        "plan: seed=17 quiet=",
        "\"seed\":17,",
        "faults so far: drop=",
        "trace hash ",
        "a second run failed in the same way",
        "to see it again: VOUSSOIR_SEED=17 cargo test -p mine it",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(broken.failure.trace().lines().count() > 20);
    assert_eq!(format!("{broken:?}").trim(), text.trim());
}

#[test]
fn a_panic_is_a_failure_with_the_plan_and_trace_of_its_world() {
    let broken = Runner::new("-")
        .first(9)
        .seeds(1)
        .run(|seed| -> Result<Report, Failure> {
            let world = one(seed);
            assert!(world.now() == 0, "an invariant of seed {seed}");
            Ok(world.report())
        })
        .unwrap_err();
    assert!(broken.reproduced);
    assert_eq!(broken.failure.message(), "panicked: an invariant of seed 9");
    assert_eq!(broken.failure.plan().map(|plan| plan.seed), Some(9));
    assert!(!broken.failure.trace().is_empty());
}

#[test]
fn a_run_that_is_not_deterministic_is_a_failure() {
    let runs = AtomicU64::new(0);
    let run = |seed: u64| {
        let mut world = world(Plan::calm(seed + runs.fetch_add(1, Ordering::Relaxed), SECOND), 2);
        finish(&mut world);
        Ok(world.report())
    };
    let broken = Runner::new("-").seeds(5).threads(NonZeroUsize::MIN).run(run).unwrap_err();
    assert!(broken.failure.message().starts_with("two runs of one seed differ"));
    assert!(broken.to_string().contains("NOT FAIL IN THE SAME WAY"));
}

/// A node whose answers, own events or requests depend on something outside of the run.
struct Whimsical(&'static AtomicU64);

#[derive(Hash)]
struct Told(u64);

impl voussoir_sim::Node for Whimsical {
    type Disk = ();
    type Event = Told;
    type Request = Told;
    type Reply = Told;

    fn start(&mut self, ctx: &mut voussoir_sim::Context<'_, Self>) {
        // Long after the end of the run: what it says shows nowhere else.
        ctx.schedule(10 * SECOND, Told(self.draw(0)));
    }
    fn message(&mut self, _: &mut voussoir_sim::Context<'_, Self>, _: u64, _: bytes::Bytes) {}
    fn timer(&mut self, _: &mut voussoir_sim::Context<'_, Self>) {}
    fn event(&mut self, _: &mut voussoir_sim::Context<'_, Self>, _: Told) {}
    fn request(
        &mut self,
        ctx: &mut voussoir_sim::Context<'_, Self>,
        id: voussoir_sim::RequestId,
        _: Told,
    ) {
        let answer = self.draw(1);
        ctx.reply(id, Told(answer));
    }
}

impl Whimsical {
    /// A number that differs each time, if `part` is the part that is not deterministic.
    fn draw(&self, part: u64) -> u64 {
        let drawn = self.0.fetch_add(1 << 8, Ordering::Relaxed);
        if drawn & 0xff == part { drawn } else { 0 }
    }
}

#[test]
fn answers_events_and_requests_that_are_not_deterministic_are_found() {
    // 0: own events, 1: answers, 2: requests, 3: nothing.
    for part in 0..4 {
        let source: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(part)));
        let run = |seed: u64| {
            let mut world = World::new(Plan::calm(seed, SECOND), move |_| Some(Whimsical(source)));
            world.add_node(1, ());
            let request = Whimsical(source).draw(2);
            world.request(1, 1, Told(request));
            while world.step().is_some() {}
            Ok(world.report())
        };
        let outcome = Runner::new("-").seeds(1).threads(NonZeroUsize::MIN).run(run);
        assert_eq!(outcome.is_ok(), part == 3, "part {part}");
        if let Err(broken) = outcome {
            let message = broken.failure.message().to_owned();
            assert!(message.starts_with("two runs of one seed differ"), "{message}");
        }
    }
}

#[test]
fn a_violation_in_the_middle_is_shown_with_its_times_and_its_trace() {
    let run = |seed: u64| {
        let mut world = world(Plan::calm(seed, 20 * SECOND), 2);
        let mut history = History::new();
        while let Some(_step) = world.step() {
            // One lost write at 5 s, and a long run after it.
            let (now, calls) = (world.now(), history.calls().len());
            if now >= 5 * SECOND && calls == 0 {
                let put = history.invoke(1, KvOp::Put { key: (), value: 1 }, now);
                history.ok(put, KvRet::Done, now + 1_000);
            } else if now >= 5 * SECOND + 3 * TICK && calls == 1 {
                let get = history.invoke(2, KvOp::Get { key: () }, now);
                history.ok(get, KvRet::Value(None), now + TICK);
            }
        }
        check(&Kv::new(), &history, 1_000).map_err(|error| world.not_linearizable(&error))?;
        Ok(world.report())
    };
    let broken = Runner::new("-").seeds(1).run(run).unwrap_err();
    assert!(broken.reproduced);
    let text = broken.to_string();
    for part in [
        "call 1 of process 2, 5030.",
        "to 5040.",
        "Get { key: () } -> Ok(Value(None))",
        "trace around the failure, 5030.",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let around = broken.failure.trace_around();
    assert!(around.lines().count() > 2, "{around}");
    assert!(around.lines().all(|line| line.trim_start().starts_with("50")), "{around}");
    assert!(broken.failure.trace().lines().all(|line| line.trim_start().starts_with("199")
        || line.trim_start().starts_with("198")
        || line.trim_start().starts_with("197")
        || line.trim_start().starts_with("20000")));
}

#[test]
#[should_panic(expected = "0 seeds proves nothing")]
fn a_run_of_no_seeds_is_refused() {
    let _ = Runner::new("-").seeds(0).run(|seed| Ok(Report::of(seed)));
}

#[test]
#[should_panic(expected = "2 seeds from 18446744073709551615 on go beyond the last seed")]
fn seeds_beyond_the_last_are_refused() {
    let _ = Runner::new("-").first(u64::MAX).seeds(2).run(|seed| Ok(Report::of(seed)));
}

#[test]
fn the_last_seed_runs() {
    let summary = Runner::new("-").first(u64::MAX - 1).seeds(2).run(|seed| Ok(Report::of(seed)));
    assert_eq!(summary.unwrap().runs, 2);
}

const CHILD: &str = "VOUSSOIR_SIM_RUNNER_CHILD";

/// Runs a runner of three seeds in a child process with one variable set; returns how many seeds
/// it ran, or what it said.
fn child(variable: &str, value: &str) -> Result<u64, String> {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "variables_that_are_not_numbers_are_refused", "--nocapture"]);
    for name in ["VOUSSOIR_SEED", "VOUSSOIR_SEEDS", "VOUSSOIR_TRACE"] {
        command.env_remove(name);
    }
    let output = command.env(CHILD, "1").env(variable, value).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    match text.lines().find_map(|line| line.split_once("child ran ")) {
        Some((_, runs)) if output.status.success() => Ok(runs.parse().unwrap()),
        _ => Err(text.into_owned()),
    }
}

#[test]
fn variables_that_are_not_numbers_are_refused() {
    if std::env::var_os(CHILD).is_some() {
        let summary = Runner::new("-").seeds(3).run(|seed| Ok(Report::of(seed))).unwrap();
        println!("child ran {}", summary.runs);
        return;
    }
    for (variable, value, runs) in [
        ("VOUSSOIR_SEED", "17", 1),
        ("VOUSSOIR_SEED", "18446744073709551615", 1),
        ("VOUSSOIR_SEEDS", " 7 ", 7),
        ("VOUSSOIR_TRACE", "10", 3),
    ] {
        assert_eq!(child(variable, value), Ok(runs), "{variable}={value}");
    }
    for (variable, value) in [
        ("VOUSSOIR_SEED", "abc"),
        ("VOUSSOIR_SEED", "0x11"),
        ("VOUSSOIR_SEED", "-1"),
        ("VOUSSOIR_SEED", ""),
        ("VOUSSOIR_SEED", "18446744073709551616"),
        ("VOUSSOIR_SEEDS", "0"),
        ("VOUSSOIR_SEEDS", "many"),
        ("VOUSSOIR_TRACE", "0"),
        ("VOUSSOIR_TRACE", "1e3"),
    ] {
        let said = child(variable, value).unwrap_err();
        let expected = format!("{variable}={value} is not a decimal number from ");
        assert!(said.contains(&expected), "{said}");
    }
}
