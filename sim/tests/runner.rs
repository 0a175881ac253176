//! Many seeds, and what is told about one that fails.

mod common;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{finish, world};
use voussoir_sim::{Failure, FaultClass, FaultSet, Plan, Profile, Report, Runner, SECOND};

fn one(seed: u64) -> voussoir_sim::World<common::Probe> {
    let mut profile = Profile::default();
    profile.faults_ns = SECOND;
    profile.settle_ns = SECOND;
    let mut world = world(profile.plan(seed).unwrap(), 3);
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
