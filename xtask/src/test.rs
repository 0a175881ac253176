//! `cargo xtask test`: every test of every crate, with the services that some of them need.

use std::process::Command;

use crate::run::{cargo, check, output};
use crate::services::Services;

/// Runs all tests. `args` narrow it down, as with `cargo test`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let services = Services::start();
    let mut command = cargo(&["test", "--locked"]);
    if args.is_empty() {
        command.args(["--workspace", "--exclude", "voussoir-benches", "--all-features"]);
    } else {
        command.args(args);
    }
    services.announce(&mut command);
    check(&mut command)?;
    if args.is_empty() {
        run_minimal_examples()?;
    }
    for line in services.left_out() {
        println!("left out: {line}");
    }
    Ok(())
}

/// Runs what a newcomer copies first. The tests have built it, beside this very program.
fn run_minimal_examples() -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    for package in crate::tidy::libraries() {
        let name = format!("{package}-minimal{}", std::env::consts::EXE_SUFFIX);
        let example = program.with_file_name("examples").join(name);
        output(&mut Command::new(example))?;
        println!("example {package}-minimal ... ok");
    }
    Ok(())
}
