//! `cargo xtask test`: every test of every crate, with the services that some of them need.

use crate::run::{cargo, check};
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
    for line in services.left_out() {
        println!("left out: {line}");
    }
    Ok(())
}
