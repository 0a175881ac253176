//! Looks at a journal that is not open, verifying every byte that counts, or saves what can be
//! saved of one that does not open:
//!
//! ```text
//! cargo run --release -p voussoir-journal --example inspect -- DIR [--json]
//! cargo run --release -p voussoir-journal --example inspect -- salvage DIR OUT
//!     [--json] [--journal ID] [--accept-end]
//! ```
//!
//! Ends with status 1 when something is wrong or missing, with 2 when it could not do its work.
//! Nothing is ever written to DIR.

mod json;

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use voussoir_journal::{
    DiskFiles, Health, Report, SalvageConfig, SalvageReport, SalvagedLog, inspect, salvage,
};

const USAGE: &str = "usage: inspect DIR [--json]
       inspect salvage DIR OUT [--json] [--journal ID] [--accept-end]
";

/// What the command line asks for.
#[derive(Default)]
struct Asked {
    folders: Vec<String>,
    salvages: bool,
    json: bool,
    config: SalvageConfig,
}

fn main() -> ExitCode {
    let Some(asked) = Asked::of(std::env::args().skip(1)) else {
        say(format_args!("{USAGE}"));
        return ExitCode::from(2);
    };
    let done = match &asked.folders[..] {
        [dir, out] if asked.salvages => run_salvage(dir, out, &asked),
        [dir] if !asked.salvages => run_inspect(dir, asked.json),
        _ => Err(USAGE.to_owned()),
    };
    let (text, is_whole) = match done {
        Ok(done) => done,
        Err(error) => {
            say(format_args!("{error}\n"));
            return ExitCode::from(2);
        }
    };
    // Whoever reads may have seen enough, as `head` has; the verdict is the same.
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            say(format_args!("{error}\n"));
            ExitCode::from(2)
        }
        _ if is_whole => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

impl Asked {
    fn of(mut args: impl Iterator<Item = String>) -> Option<Self> {
        let mut asked = Self::default();
        while let Some(arg) = args.next() {
            match &*arg {
                "--json" => asked.json = true,
                "--accept-end" => asked.config.accept_end = true,
                "--journal" => {
                    asked.config.journal = Some(u128::from_str_radix(&args.next()?, 16).ok()?);
                }
                "salvage" if asked.folders.is_empty() => asked.salvages = true,
                option if option.starts_with("--") => return None,
                _ => asked.folders.push(arg),
            }
        }
        (!asked.folders.is_empty()).then_some(asked)
    }
}

/// Tells how far it is, to whoever listens.
fn say(text: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

type Done = Result<(String, bool), String>;

fn run_inspect(dir: &str, json: bool) -> Done {
    let named = |error: &dyn fmt::Display| format!("{dir}: {error}");
    let files = DiskFiles::existing(dir).map_err(|error| named(&error))?;
    let report = inspect(&files, &mut |progress| {
        let (done, total) = (progress.segments, progress.segments_total);
        say(format_args!("\r{done}/{total} segments, {} MiB verified", progress.bytes >> 20));
    });
    say(format_args!("\n"));
    let report = report.map_err(|error| {
        format!("{}\nsave what is there by: inspect salvage {dir} OUT", named(&error))
    })?;
    let is_whole = !report.names_missing
        && report.problems.is_empty()
        && report.logs.iter().all(|log| log.health == Health::Intact);
    let mut text = String::new();
    let written =
        if json { json::inspected(&report, &mut text) } else { write_text(&report, &mut text) };
    written.map_err(|error| error.to_string())?;
    Ok((text, is_whole))
}

fn write_text(report: &Report, out: &mut String) -> fmt::Result {
    writeln!(out, "journal {:032x}, opened {} times", report.journal, report.epoch)?;
    writeln!(out, "last LSN {}, durable up to {}", report.last_lsn, report.durable_lsn)?;
    writeln!(out, "\nsegment           sequence  role       frames        bytes")?;
    for segment in &report.segments {
        let (name, sequence, role) = (&segment.name, segment.sequence, segment.role);
        let (frames, bytes) = (segment.frames, segment.bytes);
        let role = format!("{role:?}");
        writeln!(out, "{name}  {sequence:>8}  {role:<9}  {frames:>6}  {bytes:>11}")?;
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

fn run_salvage(dir: &str, out: &str, asked: &Asked) -> Done {
    let from = DiskFiles::existing(dir).map_err(|error| format!("{dir}: {error}"))?;
    let to = DiskFiles::new(out).map_err(|error| format!("{out}: {error}"))?;
    let report = salvage(&from, Arc::new(to), &asked.config, &mut |done| {
        let (files, frames, records) = (done.files, done.frames, done.records);
        say(format_args!("\r{files} files, {frames} frames found, {records} records written"));
    });
    say(format_args!("\n"));
    let report = report.map_err(|error| error.to_string())?;
    let mut text = String::new();
    let written = if asked.json {
        json::salvaged(&report, &mut text)
    } else {
        write_salvage_text(&report, &mut text)
    };
    written.map_err(|error| error.to_string())?;
    Ok((text, report.is_whole()))
}

fn write_salvage_text(report: &SalvageReport, out: &mut String) -> fmt::Result {
    let (first, last) = report.lsns;
    writeln!(
        out,
        "journal {:032x}: {} frames, LSN {first} to {last}",
        report.journal, report.frames
    )?;
    writeln!(out, "\nfile                      sequence  frames  role")?;
    for file in &report.files {
        let sequence = file.sequence.map_or("-".to_owned(), |sequence| sequence.to_string());
        let (name, frames, role) = (&file.name, file.frames, file.role);
        write!(out, "{name:<24}  {sequence:>8}  {frames:>6}  {role:?}")?;
        match file.journal.filter(|journal| *journal != report.journal) {
            Some(journal) => writeln!(out, " ({journal:032x})")?,
            None => writeln!(out)?,
        }
    }
    for name in &report.missing_segments {
        writeln!(out, "{name:<24}  listed by the manifest and missing")?;
    }
    writeln!(out, "\nlog                               first         end     records  health")?;
    for log in &report.logs {
        let SalvagedLog { name, first, end, records, health, missing, .. } = log;
        let name = name.to_string();
        writeln!(out, "{name:<28} {first:>10}  {end:>10}  {records:>10}  {health:?}")?;
        for range in missing {
            writeln!(out, "    missing: positions {} to {}", range.start, range.end - 1)?;
        }
    }
    for range in &report.missing_lsns {
        writeln!(out, "missing: LSN {} to {}", range.start, range.end - 1)?;
    }
    if report.names_missing {
        writeln!(out, "the creation of logs may be missing")?;
    }
    if !report.end_is_proven {
        writeln!(out, "nothing proves that the newest segments are there")?;
    }
    Ok(())
}
