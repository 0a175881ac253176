//! `cargo xtask test`: every test of every crate, with the services that some of them need, and a
//! table of what passed, failed and was left out.
//!
//! A test that needs a service carries `#[ignore = "needs SERVICE"]`: it runs here when the service
//! was found, and counts as left out when it was not.

use std::io::{BufRead, BufReader};
use std::process::Command;

use crate::mutants;
use crate::run::{cargo, check, output, show};
use crate::services::Services;

mod summary;

pub(crate) use summary::Binary;
use summary::{Artifacts, Summary};

/// Without arguments: the workspace but for `benches`, whose rivals are no part of the product.
const ALL: [&str; 4] = ["--workspace", "--exclude", "voussoir-benches", "--all-features"];
/// Everything but the tests in documentation, which know no service.
const TARGETS: [&str; 3] = ["--lib", "--bins", "--tests"];

/// Runs all tests. `args` narrow it down, as with `cargo test`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let services = Services::start();
    let mut summary = Summary::default();
    let mut nameless = Vec::new();
    if args.is_empty() {
        let targets: Vec<&str> = ALL.into_iter().chain(TARGETS).collect();
        let libtest: &[&str] = if services.are_complete() { &["--include-ignored"] } else { &[] };
        let artifacts = test(&targets, libtest, &services, &mut summary)?;
        nameless = mutants::without_test(&crate::root(), artifacts.binaries())?;
        let docs: Vec<&str> = ALL.into_iter().chain(["--doc"]).collect();
        test(&docs, &[], &services, &mut summary)?;
        build_minimal_examples()?;
        run_minimal_examples(&mut summary);
    } else {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let end = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
        let libtest = args.get(end + 1..).unwrap_or_default();
        test(&args[..end], libtest, &services, &mut summary)?;
    }
    print!("\n{summary}");
    for line in services.left_out() {
        println!("left out: {line}");
    }
    summary.verdict()?;
    if nameless.is_empty() {
        return Ok(());
    }
    Err(format!("mutants whose test is not there:\n{}", nameless.join("\n")))
}

/// Builds, then runs `cargo test`, shows what it prints and counts the results. Returns what was
/// built.
fn test(
    args: &[&str],
    libtest: &[&str],
    services: &Services,
    summary: &mut Summary,
) -> Result<Artifacts, String> {
    let mut artifacts = Artifacts::default();
    if !args.contains(&"--doc") {
        // The build alone names the package of each test binary.
        let mut build = cargo(&["test", "--locked", "--no-run", "--message-format=json"]);
        artifacts = Artifacts::parse(&output_shown(build.args(args))?);
    }
    let mut command = cargo(&["test", "--locked", "--no-fail-fast"]);
    command.args(args).arg("--").args(libtest);
    services.announce(&mut command);
    let shown = show(&command);
    eprintln!("$ {shown}");
    let failed = |error: std::io::Error| format!("{shown}: {error}");
    // One pipe for both streams: cargo names a test binary on stderr before it runs it, and the
    // binary prints its result to stdout.
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    command.stderr(writer.try_clone().map_err(failed)?).stdout(writer);
    let mut child = command.spawn().map_err(failed)?;
    drop(command);
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        summary.read(text.trim_end(), &artifacts);
        line.clear();
    }
    let status = child.wait().map_err(failed)?;
    summary.ended(status.success(), &shown);
    Ok(artifacts)
}

/// Runs to the end with standard error shown, and returns what went to standard output.
fn output_shown(command: &mut Command) -> Result<String, String> {
    let shown = show(command);
    let out = command.stderr(std::process::Stdio::inherit()).output();
    let out = out.map_err(|error| format!("{shown}: {error}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(text);
    }
    for message in summary::compiler_messages(&text) {
        eprint!("{message}");
    }
    Err(format!("{shown}: {}", out.status))
}

/// Builds what a newcomer copies first, in the tests' profile, whose libraries are there already.
fn build_minimal_examples() -> Result<(), String> {
    let mut build = cargo(&["build", "--locked", "--profile", "test"]);
    build.args(ALL);
    for package in crate::tidy::libraries() {
        build.arg("--example").arg(format!("{package}-minimal"));
    }
    check(&mut build)
}

/// Runs the minimal examples; they stand beside this very program.
fn run_minimal_examples(summary: &mut Summary) {
    for package in crate::tidy::libraries() {
        let name = format!("{package}-minimal{}", std::env::consts::EXE_SUFFIX);
        let began = std::time::Instant::now();
        let ran = std::env::current_exe().map_err(|error| error.to_string()).and_then(|program| {
            output(&mut Command::new(program.with_file_name("examples").join(name)))
        });
        match &ran {
            Ok(_) => println!("example {package}-minimal ... ok"),
            Err(error) => println!("example {package}-minimal ... FAILED: {error}"),
        }
        summary.example(package, ran.is_ok(), began.elapsed());
    }
}
