//! A seed is a run: the same in every process, and a failure says how to see it again. Needs the
//! features `testing` and `journal`.

use std::num::NonZeroUsize;
use std::process::{Command, Output};

use voussoir_journal::files::crash::{Effect, Fault, Op, When};
use voussoir_journal::testing::SimDisk;
use voussoir_raft::testing::sim::{Options, run, run_on};
use voussoir_sim::Runner;

/// Set in the child processes of these tests.
const CHILD: &str = "VOUSSOIR_RAFT_CHILD";
const SEEDS: u64 = 6;

/// Runs the test `name` of this binary in a process of its own.
fn child(name: &str, seed: Option<&str>) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(CHILD, "1").env_remove("VOUSSOIR_SEEDS");
    match seed {
        Some(seed) => command.env("VOUSSOIR_SEED", seed),
        None => command.env_remove("VOUSSOIR_SEED"),
    };
    command.output().unwrap()
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

#[test]
fn two_processes_give_the_same_trace_hash() {
    let line = |seed| {
        let report = run(seed, &Options::default()).unwrap();
        format!("seed {seed} hash {:016x} events {}", report.trace_hash, report.events)
    };
    if is_child() {
        (0..SEEDS).for_each(|seed| println!("{}", line(seed)));
        return;
    }
    let lines = || {
        let output = child("two_processes_give_the_same_trace_hash", None);
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter_map(|line| line.find("seed ").map(|at| &line[at..]));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let (first, second) = (lines(), lines());
    assert_eq!(first.len() as u64, SEEDS, "{first:?}");
    assert_eq!(first, second);
    assert_eq!(first[2], line(2), "and here");
}

/// A disk that reports writes as durable which a loss of power takes away.
fn lying_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.files().inject(Fault::new(Op::Sync, When::From(0), Effect::LieSync));
    disk
}

const FAILURE: &str = "a_failure_says_how_to_see_it_again";

/// Cores over disks that lie, run as a user runs them: from what is printed one gets back to the
/// same failure.
#[test]
fn a_failure_says_how_to_see_it_again() {
    let command = format!("cargo test -p voussoir-raft --features testing --test replay {FAILURE}");
    if is_child() {
        let options = Options::default();
        let runner = Runner::new(command).seeds(300).threads(NonZeroUsize::MIN).twice(0);
        runner.run(|seed| run_on(seed, &options, |id| lying_disk(seed ^ id))).unwrap();
        return;
    }
    let failed = |seed: Option<&str>| {
        let output = child(FAILURE, seed);
        assert!(!output.status.success(), "disks that lie lose what was acknowledged");
        String::from_utf8(output.stderr).unwrap()
    };
    let first = failed(None);
    let lines = |start: &str| first.lines().find(|line| line.contains(start)).map(str::to_owned);
    let find = |start: &str| lines(start).unwrap_or_else(|| panic!("no {start:?} in {first}"));
    let headline = find(" failed: ");
    let seed = headline.split("seed ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(find("plan: ").contains(&format!("seed={seed} quiet=")), "{first}");
    assert!(find("plan as JSON: ").contains(&format!("{{\"seed\":{seed},")), "{first}");
    let faults = find("faults so far: ");
    assert!(faults.split_once("faults so far: ").unwrap().1.contains("crash="), "{faults}");
    let hash = find("trace hash ");
    find("a second run failed in the same way");
    let again = find("VOUSSOIR_SEED=");
    assert!(again.ends_with(&format!("VOUSSOIR_SEED={seed} {command}")), "{again}");

    // What the command does: this test with that seed in the environment.
    let replayed = failed(Some(seed));
    for line in [&headline, &hash] {
        assert!(replayed.contains(line.trim()), "{line:?} does not come back:\n{replayed}");
    }
}
