//! `cargo xtask long [STEP…]`: the long forms, run before a release, with one table of results.
//!
//! The steps are the tests with more seeds, kills and data ([`TESTS`]), a copy of every template,
//! all mutants, licences and sources (`deny`), and a dry run of publishing. A step that fails does
//! not keep the others from running.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::run::{cargo, check};
use crate::services::Services;
use crate::{mutants, templates};

/// A test whose length is set by the environment.
struct Test {
    package: &'static str,
    /// Arguments after `cargo test -p PACKAGE --all-features`.
    args: &'static [&'static str],
    length: &'static [(&'static str, &'static str)],
}

impl Test {
    /// The package and what makes the test long.
    fn title(&self) -> String {
        let length: Vec<String> =
            self.length.iter().map(|(name, n)| format!("{name}={n}")).collect();
        let title = format!("{} {}", self.package, length.join(" "));
        title.replace("VOUSSOIR_", "").replace("voussoir-", "")
    }
}

const TESTS: &[Test] = &[
    Test {
        package: "voussoir-journal",
        args: &["--test", "power"],
        length: &[("VOUSSOIR_POWER_LOSSES", "20000"), ("VOUSSOIR_FLIPS", "40000")],
    },
    Test {
        package: "voussoir-net",
        args: &["--test", "hostile"],
        length: &[("VOUSSOIR_NET_MUTATIONS", "10000")],
    },
    Test {
        package: "voussoir-raft",
        args: &["--test", "sim"],
        length: &[("VOUSSOIR_SEEDS", "10000")],
    },
    Test {
        package: "voussoir-raft",
        args: &["--test", "shell_seeds"],
        length: &[("VOUSSOIR_SEEDS", "10000")],
    },
    Test {
        package: "voussoir-raft",
        args: &["--test", "transfers"],
        length: &[("VOUSSOIR_SEEDS", "1000")],
    },
    Test {
        package: "voussoir-ring",
        args: &["--test", "plan", "--test", "load"],
        length: &[("VOUSSOIR_PLANS", "20000"), ("VOUSSOIR_STREAM", "50000000")],
    },
    Test {
        package: "voussoir-breaker",
        args: &[],
        length: &[("ORDERS", "200"), ("TERMINATION_MS", "5000"), ("PROPTEST_CASES", "4096")],
    },
    Test {
        package: "voussoir-limit",
        args: &["--test", "configs"],
        length: &[("VOUSSOIR_CASES", "10000")],
    },
    Test {
        package: "voussoir-cache",
        args: &["--test", "stampede"],
        length: &[("VOUSSOIR_OPERATIONS", "1000000")],
    },
    Test {
        package: "voussoir-cache",
        args: &["--test", "power"],
        length: &[("VOUSSOIR_POWER_LOSSES", "10000")],
    },
    Test {
        package: "voussoir-cache",
        args: &["--test", "seeds"],
        length: &[("VOUSSOIR_SEEDS", "10000")],
    },
    Test {
        package: "voussoir-cache",
        args: &["--test", "kill", "--", "--include-ignored"],
        length: &[("VOUSSOIR_KILLS", "50"), ("VOUSSOIR_SINK_DOWN_SECONDS", "60")],
    },
    Test {
        package: "voussoir-txn",
        args: &["--lib", "every_saga_ends"],
        length: &[("VOUSSOIR_SAGA_LIVES", "2000000")],
    },
    Test {
        package: "voussoir-txn",
        args: &["--lib", "all_branches"],
        length: &[("VOUSSOIR_TXN_LIVES", "1000000")],
    },
    Test {
        package: "voussoir-txn",
        args: &["--test", "postgres", "--", "--include-ignored"],
        length: &[("VOUSSOIR_KILLS", "200")],
    },
    Test {
        package: "voussoir-txn",
        args: &["--test", "power", "--test", "power_two_phase"],
        length: &[("VOUSSOIR_POWER_LOSSES", "20000")],
    },
    Test {
        package: "voussoir-cache",
        args: &["--test", "soak"],
        length: &[("VOUSSOIR_SOAK_SECONDS", "300")],
    },
    Test {
        package: "voussoir-lb",
        args: &["--test", "configs"],
        length: &[("VOUSSOIR_LB_CASES", "10000")],
    },
    Test {
        package: "voussoir-lb",
        args: &["--test", "lives", "--test", "l4"],
        length: &[("VOUSSOIR_LB_LIVES", "20000"), ("VOUSSOIR_L4_SEEDS", "0..500")],
    },
    Test {
        package: "voussoir-quorum",
        args: &["--test", "table", "--test", "paxos"],
        length: &[("VOUSSOIR_SEEDS", "20000")],
    },
    Test {
        package: "voussoir-quorum",
        args: &["--test", "siblings", "--test", "crdt"],
        length: &[("VOUSSOIR_LIVES", "50000")],
    },
    Test {
        package: "voussoir-quorum",
        args: &["--test", "lives"],
        length: &[("VOUSSOIR_LIVES", "20000")],
    },
    Test {
        package: "voussoir-quorum",
        args: &["--test", "merkle"],
        length: &[("VOUSSOIR_MERKLE_KEYS", "1000000")],
    },
    Test {
        package: "voussoir-quorum",
        args: &["--test", "membership", "--test", "regions"],
        length: &[("VOUSSOIR_LIVES", "150")],
    },
    Test {
        package: "voussoir-queue",
        args: &["--test", "kill"],
        length: &[("VOUSSOIR_KILLS", "100")],
    },
    Test {
        package: "voussoir-queue",
        args: &["--test", "power", "--test", "work_power"],
        length: &[("VOUSSOIR_POWER_LOSSES", "20000")],
    },
    Test {
        package: "voussoir-queue",
        args: &["--test", "cluster", "--test", "replicated"],
        length: &[("VOUSSOIR_CLUSTER_SEEDS", "100"), ("VOUSSOIR_REPLICATED_SEEDS", "500")],
    },
    Test {
        package: "voussoir-lock",
        args: &["--test", "cluster", "--test", "leases", "--test", "ids"],
        length: &[("VOUSSOIR_SEEDS", "5000")],
    },
    Test {
        package: "voussoir-lock",
        args: &["--test", "histories"],
        length: &[("VOUSSOIR_LOCK_OPERATIONS", "100000"), ("VOUSSOIR_LOCK_FAULTS", "10")],
    },
    Test {
        package: "voussoir-lock",
        args: &["--test", "worker_numbers"],
        length: &[("VOUSSOIR_LOCK_IDS", "1000000000")],
    },
    Test { package: "store", args: &["--test", "kill"], length: &[("VOUSSOIR_KILL_ROUNDS", "20")] },
    Test {
        package: "store",
        args: &["--test", "outages"],
        length: &[("VOUSSOIR_OUTAGE_MB", "1000")],
    },
    Test {
        package: "store",
        args: &["--test", "soak"],
        length: &[("VOUSSOIR_SOAK_SECONDS", "600")],
    },
];

/// Runs a step and adds its rows to the table.
type Step = fn(&mut Vec<Row>);

const STEPS: &[(&str, Step)] = &[
    ("tests", longer_tests),
    ("templates", copies),
    ("mutants", |rows| rows.push(Row::of("mutants", || mutants::run(&[])))),
    ("deny", |rows| rows.push(Row::of("deny", deny))),
    ("publish", |rows| rows.push(Row::of("publish", publish))),
];

/// A line of the table of results.
struct Row {
    name: String,
    result: Result<(), String>,
    time: Duration,
}

impl Row {
    fn of(name: impl Into<String>, run: impl FnOnce() -> Result<(), String>) -> Self {
        let name = name.into();
        eprintln!("\n== {name}");
        let began = Instant::now();
        let result = run();
        Self { name, result, time: began.elapsed() }
    }
}

/// Every step, and what makes the tests long.
fn help() -> String {
    let steps: Vec<&str> = STEPS.iter().map(|(step, _)| *step).collect();
    let tests: Vec<String> = TESTS.iter().map(|test| format!("  {}\n", test.title())).collect();
    let (steps, tests) = (steps.join(", "), tests.concat());
    format!(
        "usage: cargo xtask long [STEP…]\nsteps: {steps}\n\
         tests, each with what makes it long:\n{tests}"
    )
}

/// Runs every step, or the named ones.
pub(crate) fn run(names: &[String]) -> Result<(), String> {
    if names.iter().any(|name| name == "--help") {
        print!("{}", help());
        return Ok(());
    }
    if let Some(name) = names.iter().find(|name| !STEPS.iter().any(|(step, _)| step == name)) {
        let all: Vec<&str> = STEPS.iter().map(|(step, _)| *step).collect();
        return Err(format!("no step named {name}; there are {}", all.join(", ")));
    }
    let began = Instant::now();
    let mut rows = Vec::new();
    for (name, step) in STEPS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            step(&mut rows);
        }
    }
    println!("\n{:<60} {:<7} {:>8}", "step", "result", "seconds");
    for row in &rows {
        let result = if row.result.is_ok() { "passed" } else { "FAILED" };
        println!("{:<60} {result:<7} {:>8.0}", row.name, row.time.as_secs_f64());
        if let Err(error) = &row.result {
            println!("    {}", error.lines().next().unwrap_or_default());
        }
    }
    let failed = rows.iter().filter(|row| row.result.is_err()).count();
    println!("{} steps, {failed} failed, {:.0} s", rows.len(), began.elapsed().as_secs_f64());
    if failed == 0 { Ok(()) } else { Err(format!("{failed} steps failed")) }
}

fn longer_tests(rows: &mut Vec<Row>) {
    let services = Services::start();
    for test in TESTS {
        let mut command = cargo(&["test", "--locked", "--all-features", "-p", test.package]);
        command.args(test.args).envs(test.length.iter().copied());
        services.announce(&mut command);
        rows.push(Row::of(test.title(), || check(&mut command)));
    }
}

fn copies(rows: &mut Vec<Row>) {
    match templates::names() {
        Ok(names) => rows.extend(names.into_iter().map(|name| {
            let row = format!("copy of the template {name}");
            Row::of(row, || templates::run(&[name]))
        })),
        Err(error) => rows.push(Row::of("templates", || Err(error))),
    }
}

/// Licences and sources of everything in the lock file.
fn deny() -> Result<(), String> {
    let program = tool("cargo-deny")?;
    let mut command = std::process::Command::new(program);
    command.current_dir(crate::root());
    check(command.args(["--all-features", "check", "bans", "licenses", "sources"]))
}

/// A program of crates.io: as the machine has it, else built into `target/tools`.
fn tool(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name));
    if let Some(found) = found.into_iter().find(|file| file.is_file()) {
        return Ok(found);
    }
    let folder = crate::root().join("target/tools");
    let program = folder.join("bin").join(name);
    if !program.is_file() {
        check(cargo(&["install", "--locked", "--root"]).arg(&folder).arg(name))?;
    }
    Ok(program)
}

/// Packs every library, builds what was packed, and stops before the upload. Each package must
/// carry the texts of its licences.
fn publish() -> Result<(), String> {
    for library in crate::tidy::libraries() {
        for text in ["LICENSE-MIT", "LICENSE-APACHE"] {
            if !crate::root().join(library).join(text).is_file() {
                return Err(format!("{library}: no {text}"));
            }
        }
    }
    check(&mut cargo(&["publish", "--workspace", "--dry-run", "--locked"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length that no test reads would leave the long form as short as the usual one.
    #[test]
    fn each_length_is_read_by_its_crate() {
        let files = crate::run::files(&crate::root()).unwrap();
        for test in TESTS {
            let folder = test.package.strip_prefix("voussoir-").map_or("examples/store/", |n| n);
            let texts: Vec<String> = files
                .iter()
                .filter(|file| file.starts_with(folder) || file.starts_with("sim/src/"))
                .filter_map(|file| std::fs::read_to_string(crate::root().join(file)).ok())
                .collect();
            for (variable, _) in test.length {
                let quoted = format!("\"{variable}\"");
                assert!(texts.iter().any(|text| text.contains(&quoted)), "{variable} in {folder}");
            }
        }
    }
}
