//! The core over real journals in a world of faults.
//!
//! `VOUSSOIR_SEEDS` sets how many seeds are played, `VOUSSOIR_SEED` plays one.

use voussoir_raft::testing::sim::{
    CHANGE_SITUATIONS, LEASE_SITUATIONS, Options, QUIESCE_SITUATIONS, REPAIR_SITUATIONS,
    SITUATIONS, run,
};
use voussoir_sim::{Failure, FaultClass, FaultSet, Runner, Situations, Summary};

/// What may meet in one seed, by the four lowest bits of its number: seeds in which leases answered
/// reads and leaders came to rest, where that is part of it, and did not where it is not.
static TOGETHER: [&str; 16] = [
    "none of them",
    "leases",
    "rest",
    "leases, rest",
    "long round trips",
    "leases, long round trips",
    "rest, long round trips",
    "leases, rest, long round trips",
    "tight queues",
    "leases, tight queues",
    "rest, tight queues",
    "leases, rest, tight queues",
    "long round trips, tight queues",
    "leases, long round trips, tight queues",
    "rest, long round trips, tight queues",
    "leases, rest, long round trips, tight queues",
];

const COMMAND: &str = "cargo test -p voussoir-raft --features testing --test sim";

/// Three and five nodes, all classes of faults, the store that users run.
#[test]
fn over_journals() {
    let options = Options::default();
    let runner = Runner::new(format!("{COMMAND} over_journals")).seeds(6000).twice(10);
    let summary = runner.run(|seed| run(seed, &options)).unwrap();
    println!("{summary}");
    assert!(summary.silent(FaultSet::ALL).is_empty(), "{}", summary.silent(FaultSet::ALL));
    all_reached(&summary, &SITUATIONS);
    for figure in ["damage reported", "damage harmless", "lost disks refused"] {
        assert!(summary.figure(figure) > 0, "never seen: {figure}");
    }
}

/// The same while the membership changes: learners, joint memberships, leaders that leave.
#[test]
fn members_change() {
    let options = Options::changing();
    let runner = Runner::new(format!("{COMMAND} members_change")).seeds(2000).twice(10);
    let summary = runner.run(|seed| run(seed, &options)).unwrap();
    println!("{summary}");
    assert!(summary.silent(FaultSet::ALL).is_empty(), "{}", summary.silent(FaultSet::ALL));
    all_reached(&summary, &CHANGE_SITUATIONS);
    all_reached(&summary, &SITUATIONS);
    for figure in ["damage reported", "lost disks refused"] {
        assert!(summary.figure(figure) > 0, "never seen: {figure}");
    }
}

/// Lease reads on clocks that drift by as much as the nodes rely on, in every third seed while the
/// membership changes.
#[test]
fn leases() {
    let runner = Runner::new(format!("{COMMAND} leases")).seeds(1000).twice(10);
    let summary = runner
        .run(|seed| {
            let mut options = Options::leasing(1000 << (seed % 9));
            options.changes = seed % 3 == 0;
            run(seed, &options)
        })
        .unwrap();
    println!("{summary}");
    let without_jumps = FaultSet::ALL.without(FaultClass::ClockJump);
    assert!(summary.silent(without_jumps).is_empty(), "{}", summary.silent(without_jumps));
    all_reached(&summary, &LEASE_SITUATIONS);
}

/// Groups that rest while their clients pause, in every third seed while the membership changes.
#[test]
fn groups_rest() {
    let runner = Runner::new(format!("{COMMAND} groups_rest")).seeds(400).twice(10);
    let summary = runner
        .run(|seed| {
            let mut options = Options::quiescing();
            options.changes = seed % 3 == 0;
            run(seed, &options)
        })
        .unwrap();
    println!("{summary}");
    assert!(summary.silent(FaultSet::ALL).is_empty(), "{}", summary.silent(FaultSet::ALL));
    all_reached(&summary, &QUIESCE_SITUATIONS);
}

/// Entries rot on one disk after the other, under all other faults: the node starts again and is
/// repaired by its peers, in every third seed while the membership changes.
#[test]
fn logs_rot() {
    let runner = Runner::new(format!("{COMMAND} logs_rot")).seeds(1000).twice(10);
    let summary = runner
        .run(|seed| {
            let mut options = Options::rotting();
            options.changes = seed % 3 == 0;
            run(seed, &options)
        })
        .unwrap();
    println!("{summary}");
    all_reached(&summary, &REPAIR_SITUATIONS);
}

/// Every combination of lease reads, groups that rest, long round trips and tight queues.
#[test]
fn features_together() {
    let runner = Runner::new(format!("{COMMAND} features_together")).seeds(800).twice(10);
    let summary = runner
        .run(|seed| {
            let report = run(seed, &Options::together(seed))?;
            let has = |name| report.figures.iter().any(|(found, n)| *found == name && *n > 0);
            let acts = [has("read answered under a lease"), has("leader quiesces")];
            let wanted = [seed & 1 == 1, seed >> 1 & 1 == 1];
            let is_reached = acts == wanted && has("calls ok");
            Ok(report.with(TOGETHER[(seed % 16) as usize], u64::from(is_reached)))
        })
        .unwrap();
    println!("{summary}");
    all_reached(&summary, &TOGETHER);
}

/// Where nothing is lost, coming to rest and waking cost no election.
#[test]
fn coming_to_rest_costs_no_election() {
    let mut options = Options::quiescing();
    (options.faults, options.hunt_ppm) = (FaultSet::NONE, 0);
    let runner = Runner::new(format!("{COMMAND} coming_to_rest")).seeds(100).twice(0);
    let summary = runner
        .run(|seed| {
            let report = run(seed, &options)?;
            let elections = report.figures.iter().find(|(name, _)| *name == "elections");
            if elections.is_none_or(|(_, count)| *count != 1) {
                return Err(Failure::new(format!("seed {seed}: {elections:?}")));
            }
            Ok(report)
        })
        .unwrap();
    assert!(summary.figure("leader at rest woken by a client") > 0, "{summary}");
}

/// Where clocks drift by more than the nodes rely on, leases outlive the promises that they rest
/// on, and reads become stale. The judge sees it, or the seeds above would show nothing.
#[test]
fn the_judge_sees_stale_reads_of_clocks_beyond_their_bound() {
    let mut options = Options::leasing(1);
    options.skew_ppm = 500_000;
    let runner = Runner::new(format!("{COMMAND} the_judge_sees")).seeds(1500).twice(0);
    let broken = runner.run(|seed| run(seed, &options)).expect_err("a stale read");
    let text = broken.to_string();
    let found = text.lines().next().unwrap();
    let words = ["stale read", "read index", "linearizab"];
    assert!(words.iter().any(|word| found.contains(word)), "{text}");
}

/// Fails when the seeds did not reach one of the situations; a seed that is played alone may.
fn all_reached(summary: &Summary, names: &'static [&'static str]) {
    let situations = Situations::new(names);
    for name in names {
        situations.add(name, summary.figure(name));
    }
    if std::env::var_os("VOUSSOIR_SEED").is_some() {
        println!("{situations}");
    } else {
        situations.assert_all_reached();
    }
}
