//! The project's own commands.
//!
//! - `cargo xtask test [ARGS…]`: every test; starts the services that some of them need.
//! - `cargo xtask tidy`: the rules of STYLE.md that no compiler keeps.
//! - `cargo xtask mutants [CRATE] [NAME]`: deliberate defects, which the named tests must catch.
//! - `cargo xtask bench [CRATE…] [-- PART…]`: ours and the rivals in one run, as a table and JSON
//!   lines.
//! - `cargo xtask new PATH FROM`: a copy of the template `FROM`, as a package of its own.
//! - `cargo xtask templates [NAME…]`: copies templates out, and tests and runs the copies.
//! - `cargo xtask services [up NAME…]`: the servers that tests and templates use.
//! - `cargo xtask long [STEP…]`: the long forms of all tests, and what a release needs.
//! - `cargo xtask features`: each library with each of its features alone.
//! - `cargo xtask ci`: everything that must pass before a change lands, with each step's time.

mod api;
mod bench;
mod ci;
mod features;
mod long;
mod mutants;
mod new;
mod run;
mod sample;
mod services;
mod templates;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match command.as_str() {
        "test" => test::run(&rest),
        "tidy" => tidy::run(),
        "mutants" => mutants::run(&rest),
        "bench" => bench::run(&rest),
        "features" => features::run(),
        "long" => long::run(&rest),
        "new" => new::run(&rest),
        "templates" => templates::run(&rest),
        "services" => services::run(&rest),
        "ci" => ci::run(),
        _ => Err("usage: cargo xtask test [ARGS…] | tidy | mutants [CRATE] [NAME] | \
             bench [CRATE…] [-- PART…] | services [up NAME…] | new PATH FROM | \
             templates [NAME…] | features | ci | long [STEP…]"
            .to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace: the folder above this package.
fn root() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.parent().map_or(package.clone(), PathBuf::from)
}
