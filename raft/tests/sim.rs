//! The core over real journals in a world of faults.
//!
//! `VOUSSOIR_SEEDS` sets how many seeds are played, `VOUSSOIR_SEED` plays one.

use voussoir_raft::testing::sim::{CHANGE_SITUATIONS, Options, SITUATIONS, run};
use voussoir_sim::{FaultSet, Runner, Situations, Summary};

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
