//! The same seed does the same, here and in another process.

mod common;

use std::env;
use std::process::Command;

use common::{finish, world};
use voussoir_sim::{Config, FaultClass, MILLISECOND, SECOND, Step};

/// Set in the child processes of this test: the seeds to run and print the hashes of.
const CHILD: &str = "VOUSSOIR_SIM_CHILD";

fn hash(seed: u64) -> (u64, u64) {
    let mut config = Config::default();
    config.faults_ns = 3 * SECOND;
    config.settle_ns = SECOND;
    let mut world = world(config.plan(seed).unwrap(), 4);
    world.alarm(0, 0);
    while let Some(step) = world.step() {
        if let Step::Alarm(_) = step {
            let to = world.rng().between(1, 4);
            world.request(1, to, 1);
            world.alarm(7 * MILLISECOND, 0);
        }
    }
    (world.trace_hash(), world.report().events)
}

#[test]
fn two_processes_give_the_same_trace_hash() {
    if env::var_os(CHILD).is_some() {
        for seed in 0..8 {
            let (hash, events) = hash(seed);
            println!("seed {seed} hash {hash:016x} events {events}");
        }
        return;
    }
    let child = || {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "two_processes_give_the_same_trace_hash", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| line.contains(" hash "));
        lines.map(|line| line[line.find("seed").unwrap()..].to_owned()).collect::<Vec<_>>()
    };
    let (first, second) = (child(), child());
    assert_eq!(first.len(), 8);
    assert_eq!(first, second);
    let (hash, events) = hash(3);
    assert_eq!(first[3], format!("seed 3 hash {hash:016x} events {events}"));
}

#[test]
fn seeds_differ() {
    let hashes: std::collections::HashSet<u64> = (0..20).map(|seed| hash(seed).0).collect();
    assert_eq!(hashes.len(), 20);
}

/// A class left out of a plan leaves the other classes' schedules as they are.
#[test]
fn classes_have_streams_of_their_own() {
    let crashes = |with_pauses: bool| {
        let mut config = Config::default();
        config.enable_ppm = 1_000_000;
        config.faults_ns = 5 * SECOND;
        let mut plan = config.plan(5).unwrap();
        plan.spare_majority = false;
        if !with_pauses {
            plan = plan.with(FaultClass::Pause, None).with(FaultClass::Drop, None);
        }
        plan.limits.trace_lines = 1_000_000;
        let mut world = world(plan, 3);
        finish(&mut world);
        let trace = world.trace();
        let faults = trace.lines().filter(|line| {
            ["partition", "one_way", "slow_link", "disk_full"]
                .iter()
                .any(|name| line.contains(&format!("fault {name}")))
        });
        faults.map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(crashes(true).len() > 6);
    assert_eq!(crashes(true), crashes(false));
}
