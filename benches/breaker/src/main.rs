//! Ours and the rivals, in turn, in one process.
//!
//! `cargo run --release` prints a table of `name ours rival ratio` and writes the same rows as
//! JSON lines to `target/breaker.jsonl`. Times are medians of rounds that alternate between the
//! subjects; with two threads they are wall time for each call of each thread.

mod herd;
mod measure;
mod subjects;

use std::fs::File;
use std::io::{BufWriter, Write};

use measure::{Figure, medians};
use subjects::{Ours, failsafe_calls, ours_calls, recloser_calls, tower_calls};
use tower_resilience_circuitbreaker::SlidingWindowType;

type Error = Box<dyn std::error::Error>;

const RIVALS: [&str; 4] =
    ["recloser 1.4", "failsafe 1.3", "tower-resilience 0.13", "the same, over time"];

struct Row {
    name: String,
    rival: &'static str,
    unit: &'static str,
    ours: Figure,
    theirs: Figure,
}

fn main() -> Result<(), Error> {
    let mut rows = Vec::new();
    for threads in [1, 2] {
        closed(threads, &mut rows);
    }
    rejected(&mut rows);
    probes(&mut rows)?;
    print(&rows);
    write(&rows)
}

/// An admitted call whose answer is recorded: all of ours with a time window and slow-call rate
/// on, unless said otherwise.
fn closed(threads: usize, rows: &mut Vec<Row>) {
    let kinds = [
        ("now passed in", Ours::NowPassedIn),
        ("default clock", Ours::DefaultClock),
        ("Instant clock", Ours::FineClock),
        ("default clock, no slow calls", Ours::NotSlow),
        ("count window, now passed in", Ours::CountWindow),
    ];
    let mut subjects: Vec<Box<dyn FnMut() -> f64>> = Vec::new();
    for (_, kind) in kinds {
        subjects.push(Box::new(move || ours_calls(kind, false, threads)));
    }
    subjects.push(Box::new(move || recloser_calls(false, threads)));
    subjects.push(Box::new(move || failsafe_calls(false, threads)));
    if threads == 1 {
        subjects.push(Box::new(|| tower_calls(SlidingWindowType::CountBased, false)));
        subjects.push(Box::new(|| tower_calls(SlidingWindowType::TimeBased, false)));
    }
    let figures = medians(&mut subjects);
    let (ours, theirs) = figures.split_at(kinds.len());
    for ((what, _), ours) in kinds.iter().zip(ours) {
        for (rival, theirs) in RIVALS.into_iter().zip(theirs) {
            let name = format!("closed, {what}, {threads} thread(s)");
            rows.push(Row { name, rival, unit: "ns", ours: *ours, theirs: *theirs });
        }
    }
}

fn rejected(rows: &mut Vec<Row>) {
    let kinds = [("now passed in", Ours::NowPassedIn), ("default clock", Ours::DefaultClock)];
    let mut subjects: Vec<Box<dyn FnMut() -> f64>> = Vec::new();
    for (_, kind) in kinds {
        subjects.push(Box::new(move || ours_calls(kind, true, 1)));
    }
    subjects.push(Box::new(|| recloser_calls(true, 1)));
    subjects.push(Box::new(|| failsafe_calls(true, 1)));
    subjects.push(Box::new(|| tower_calls(SlidingWindowType::CountBased, true)));
    let figures = medians(&mut subjects);
    let (ours, theirs) = figures.split_at(kinds.len());
    for ((what, _), ours) in kinds.iter().zip(ours) {
        for (rival, theirs) in RIVALS.into_iter().zip(theirs) {
            let name = format!("rejected, {what}, 1 thread(s)");
            rows.push(Row { name, rival, unit: "ns", ours: *ours, theirs: *theirs });
        }
    }
}

/// 64 callers released together on a half-open breaker of 3 probes.
fn probes(rows: &mut Vec<Row>) -> Result<(), Error> {
    let rounds = 5;
    let ours = herd::admitted(rounds, herd::ours)?;
    for (rival, theirs) in [
        ("recloser 1.4", herd::admitted(rounds, herd::recloser)?),
        ("failsafe 1.3", herd::admitted(rounds, herd::failsafe)?),
        ("tower-resilience 0.13", herd::admitted(rounds, herd::tower)?),
    ] {
        let name = "half-open, 64 callers, 3 probes".to_owned();
        rows.push(Row { name, rival, unit: "calls", ours, theirs });
    }
    Ok(())
}

fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    println!("{:width$}  {:>22}  {:>22}  {:22}  ratio", "name", "ours", "rival", "");
    for row in rows {
        let (ours, theirs) = (row.ours.show(row.unit), row.theirs.show(row.unit));
        let ratio = row.theirs.median / row.ours.median;
        println!("{:width$}  {ours:>22}  {theirs:>22}  {:22}  {ratio:.1}x", row.name, row.rival);
    }
}

fn write(rows: &[Row]) -> Result<(), Error> {
    std::fs::create_dir_all("target")?;
    let mut out = BufWriter::new(File::create("target/breaker.jsonl")?);
    for row in rows {
        let line = serde_json::json!({
            "name": row.name,
            "rival": row.rival,
            "unit": row.unit,
            "ours": row.ours.median,
            "ours_min": row.ours.min,
            "ours_max": row.ours.max,
            "theirs": row.theirs.median,
            "theirs_min": row.theirs.min,
            "theirs_max": row.theirs.max,
            "ratio": row.theirs.median / row.ours.median,
        });
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(())
}
