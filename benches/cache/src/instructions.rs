//! Instructions of a hit, counted by callgrind: they do not depend on what else the machine does.
//! A reading of the clock is a call of the kernel there, whose instructions do not count.

use std::process::Command;

use crate::Error;
use crate::report::Report;
use crate::subjects::hits;

/// The argument that asks for a run to be counted.
pub const COUNT: &str = "count";
const KEYS: u64 = 1_000;
const CALLS: u64 = 20_000;

/// Makes the calls of one subject, and nothing else that depends on their number.
pub fn run(name: &str, calls: u64) -> Result<(), Error> {
    let subjects = hits(KEYS);
    let subject = subjects.iter().find(|subject| subject.name == name).ok_or("no such subject")?;
    (subject.run)(0, 1_000);
    (subject.run)(1_000, calls);
    Ok(())
}

/// The instructions of one run.
fn counted(name: &str, calls: u64) -> Result<f64, Error> {
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args([COUNT, name, &calls.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&out.stderr);
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    let (_, number) = line.ok_or_else(|| format!("callgrind has counted nothing: {text}"))?;
    Ok(number.trim().parse()?)
}

/// A row for each subject: the difference of two runs, divided by the calls that they differ by.
pub fn count(report: &mut Report) -> Result<(), Error> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("instructions: valgrind is not installed, left out");
        return Ok(());
    }
    let mut own = None;
    for subject in hits(KEYS) {
        let (few, many) = (counted(subject.name, CALLS)?, counted(subject.name, 2 * CALLS)?);
        let each = (many - few) / CALLS as f64;
        match (subject.name, own) {
            ("ours", _) => own = Some(each),
            (name, Some(own)) => report.beside("hit, instructions", own, name, each, "instr"),
            (name, None) => report.alone(&format!("hit, instructions, {name}"), each, "instr"),
        }
    }
    if let Some(own) = own {
        report.alone("hit, instructions, ours", own, "instr");
    }
    Ok(())
}
