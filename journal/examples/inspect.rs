//! Looks at a journal that is not open, verifying every byte that counts:
//!
//! ```text
//! cargo run --release -p voussoir-journal --example inspect -- DIR
//! ```
//!
//! Ends with status 1 when something is wrong.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;

use voussoir_journal::{DiskFiles, Health, Report, inspect};

fn main() -> ExitCode {
    let Some(dir) = std::env::args().nth(1) else {
        say(format_args!("usage: inspect DIR\n"));
        return ExitCode::from(2);
    };
    let files = match DiskFiles::existing(&dir) {
        Ok(files) => files,
        Err(error) => {
            say(format_args!("{dir}: {error}\n"));
            return ExitCode::from(2);
        }
    };
    let found = inspect(&files, &mut |progress| {
        let (done, total) = (progress.segments, progress.segments_total);
        say(format_args!("\r{done}/{total} segments, {} MiB verified", progress.bytes >> 20));
    });
    say(format_args!("\n"));
    let report = match found {
        Ok(report) => report,
        Err(error) => {
            say(format_args!("{dir}: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    let mut text = String::new();
    if describe(&report, &mut text).is_err() {
        return ExitCode::FAILURE;
    }
    // Whoever reads may have seen enough, as `head` has; the verdict is the same.
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            say(format_args!("{error}\n"));
            ExitCode::FAILURE
        }
        _ if is_whole(&report) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Tells how far it is, to whoever listens.
fn say(text: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

fn is_whole(report: &Report) -> bool {
    !report.names_missing
        && report.problems.is_empty()
        && report.logs.iter().all(|log| log.health == Health::Intact)
}

fn describe(report: &Report, out: &mut String) -> fmt::Result {
    writeln!(out, "journal {:032x}, opened {} times", report.journal, report.epoch)?;
    writeln!(out, "last LSN {}, durable up to {}", report.last_lsn, report.durable_lsn)?;
    writeln!(out, "\nsegment           sequence  role    frames        bytes")?;
    for segment in &report.segments {
        let (name, sequence, role) = (&segment.name, segment.sequence, segment.role);
        let (frames, bytes) = (segment.frames, segment.bytes);
        let role = format!("{role:?}");
        writeln!(out, "{name}  {sequence:>8}  {role:<6}  {frames:>6}  {bytes:>11}")?;
    }
    writeln!(
        out,
        "\nlog                               first         end  segments        bytes  health"
    )?;
    for log in &report.logs {
        let (first, end, segments, bytes) = (log.first, log.end, log.segments, log.bytes);
        let (name, health) = (log.name.to_string(), &log.health);
        writeln!(out, "{name:<28} {first:>10}  {end:>10}  {segments:>8}  {bytes:>11}  {health:?}")?;
    }
    if report.names_missing {
        writeln!(out, "\nthe creation of logs may have been lost")?;
    }
    for problem in &report.problems {
        writeln!(out, "\nproblem: {problem:?}")?;
    }
    Ok(())
}
