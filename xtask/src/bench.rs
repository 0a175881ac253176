//! `cargo xtask bench`: ours and the rivals, in turn, in one run.

use crate::run::{cargo, check};

/// Each is a binary of the package `benches`.
const BENCHES: &[&str] = &["journal", "raft", "ring", "breaker", "limit"];

pub(crate) fn run(names: &[String]) -> Result<(), String> {
    let unknown = names.iter().find(|name| !BENCHES.contains(&name.as_str()));
    if let Some(name) = unknown {
        return Err(format!("no bench named {name}; there are {}", BENCHES.join(", ")));
    }
    for bench in BENCHES {
        if names.is_empty() || names.iter().any(|name| name == bench) {
            check(cargo(&["run", "--profile", "bench", "--locked"]).args([
                "--package",
                "voussoir-benches",
                "--features",
                "rivals",
                "--bin",
                bench,
            ]))?;
        }
    }
    Ok(())
}
