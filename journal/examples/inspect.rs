//! Looks at a journal that is not open, verifying every byte that counts:
//!
//! ```text
//! cargo run --release -p voussoir-journal --example inspect -- DIR
//! ```
//!
//! Ends with status 1 when something is wrong.

use std::process::ExitCode;

use voussoir_journal::{DiskFiles, Health, Report, inspect};

fn main() -> ExitCode {
    let Some(dir) = std::env::args().nth(1) else {
        eprintln!("usage: inspect DIR");
        return ExitCode::from(2);
    };
    let files = match DiskFiles::existing(&dir) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("{dir}: {error}");
            return ExitCode::from(2);
        }
    };
    let found = inspect(&files, &mut |progress| {
        let (done, total) = (progress.segments, progress.segments_total);
        eprint!("\r{done}/{total} segments, {} MiB verified", progress.bytes >> 20);
    });
    eprintln!();
    match found {
        Ok(report) => print(&report),
        Err(error) => {
            eprintln!("{dir}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(report: &Report) -> ExitCode {
    println!("journal {:032x}, opened {} times", report.journal, report.epoch);
    println!("last LSN {}, durable up to {}", report.last_lsn, report.durable_lsn);
    println!("\nsegment           sequence  role    frames        bytes");
    for segment in &report.segments {
        let (name, sequence, role) = (&segment.name, segment.sequence, segment.role);
        let (frames, bytes) = (segment.frames, segment.bytes);
        println!("{name}  {sequence:>8}  {:<6}  {frames:>6}  {bytes:>11}", format!("{role:?}"));
    }
    println!(
        "\nlog                               first         end  segments        bytes  health"
    );
    let mut whole = !report.names_missing && report.problems.is_empty();
    for log in &report.logs {
        whole &= log.health == Health::Intact;
        let (first, end, segments, bytes) = (log.first, log.end, log.segments, log.bytes);
        let name = log.name.to_string();
        println!("{name:<28} {first:>10}  {end:>10}  {segments:>8}  {bytes:>11}  {:?}", log.health);
    }
    if report.names_missing {
        println!("\nthe creation of logs may have been lost");
    }
    for problem in &report.problems {
        println!("\nproblem: {problem:?}");
    }
    if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
