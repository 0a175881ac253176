//! `cargo xtask bench [CRATE…] [-- PART…]`: ours and the rivals, in turn, in one run. The arguments
//! after `--` go to the bench itself.

use crate::run::{cargo, check};
use crate::services::{Servers, TwoDatabases};

/// Each crate's own, and where its rivals are. `Member` is a binary of the package `benches`; the
/// others are packages with a workspace of their own, so that their rivals stay out of ours.
const BENCHES: &[(&str, Home)] = &[
    ("journal", Home::Member),
    ("raft", Home::Member),
    ("ring", Home::Own("benches/ring/Cargo.toml")),
    ("breaker", Home::Own("benches/breaker/Cargo.toml")),
    ("limit", Home::Own("benches/limit/Cargo.toml")),
    ("lb", Home::Own("benches/lb/Cargo.toml")),
    ("cache", Home::Own("benches/cache/Cargo.toml")),
    ("lock", Home::Own("benches/lock/Cargo.toml")),
    ("txn", Home::Own("benches/txn/Cargo.toml")),
    ("queue", Home::Own("benches/queue/Cargo.toml")),
    ("faults", Home::Own("benches/faults/Cargo.toml")),
    ("quorum", Home::Own("benches/quorum/Cargo.toml")),
    ("store", Home::Own("benches/store/Cargo.toml")),
];

/// Benches over two databases.
const NEED_DATABASES: &[&str] = &["txn"];
/// Benches over other servers, by name.
const NEED_SERVERS: &[(&str, &[&str])] = &[("queue", &["redis", "nats"])];

#[derive(Clone, Copy)]
enum Home {
    Member,
    Own(&'static str),
}

pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let split = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let (names, parts) = args.split_at(split);
    let known = |name: &String| BENCHES.iter().any(|(bench, _)| bench == name);
    if let Some(name) = names.iter().find(|name| !known(name)) {
        let all: Vec<&str> = BENCHES.iter().map(|(bench, _)| *bench).collect();
        return Err(format!("no bench named {name}; there are {}", all.join(", ")));
    }
    for (bench, home) in BENCHES {
        if names.is_empty() || names.iter().any(|name| name == bench) {
            let mut command = cargo(&["run", "--locked"]);
            match home {
                Home::Member => command
                    .args(["--profile", "bench", "--package", "voussoir-benches"])
                    .args(["--features", "rivals", "--bin", bench]),
                Home::Own(manifest) => command.args(["--release", "--manifest-path", manifest]),
            };
            // It prints each of its steps otherwise.
            command.env("WALRUS_QUIET", "1");
            let databases = NEED_DATABASES.contains(bench).then(TwoDatabases::start).transpose()?;
            if let Some(databases) = &databases {
                databases.announce(&mut command);
            }
            let names = NEED_SERVERS.iter().find(|(name, _)| name == bench);
            let servers = names.map(|(_, names)| Servers::start(names)).transpose()?;
            if let Some(servers) = &servers {
                servers.announce(&mut command);
            }
            check(command.args(parts))?;
        }
    }
    Ok(())
}
