//! Everything that must pass before a change lands.

use std::time::Instant;

use crate::run::{cargo, check};
use crate::{features, mutants, templates, test, tidy};

type Step = (&'static str, fn() -> Result<(), String>);

const STEPS: &[Step] = &[
    ("fmt", || check(&mut cargo(&["fmt", "--all", "--check"]))),
    ("tidy", tidy::run),
    ("clippy", || {
        let args = ["clippy", "--workspace", "--all-targets", "--locked"];
        // `benches` only with what it builds by default: its rivals are no part of the product.
        let features = ["--exclude", "voussoir-benches", "--all-features", "--", "-D", "warnings"];
        check(cargo(&args).args(features))?;
        check(&mut cargo(&[
            "clippy",
            "-p",
            "voussoir-benches",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]))
    }),
    ("features", features::run),
    ("docs", || {
        let args = ["doc", "--workspace", "--exclude", "voussoir-benches"];
        let args = [&args[..], &["--all-features", "--no-deps", "--locked"]].concat();
        check(cargo(&args).env("RUSTDOCFLAGS", "-D warnings"))
    }),
    ("test", || test::run(&[])),
    ("mutants", mutants::sample),
    ("template", templates::sample),
];

pub(crate) fn run() -> Result<(), String> {
    let start = Instant::now();
    let mut times = Vec::new();
    let mut failed = None;
    for (name, step) in STEPS {
        eprintln!("\n== {name}");
        let began = Instant::now();
        let result = step();
        times.push((name, began.elapsed()));
        if let Err(error) = result {
            failed = Some(format!("{name} failed: {error}"));
            break;
        }
    }
    println!();
    for (name, time) in times {
        println!("{name:>8} {:6.1} s", time.as_secs_f64());
    }
    println!("{:>8} {:6.1} s", "all", start.elapsed().as_secs_f64());
    failed.map_or(Ok(()), Err)
}
