//! Ours and the rivals, in turn, in one process.
//!
//! `cargo run --release` prints a table of `name ours rival ratio` and writes the same rows as
//! JSON lines to `target/breaker.jsonl`; `-- closed`, or `rejected`, `failed`, `half-open`, runs
//! a part.
//!
//! Times are the median, the lower quartile and the range of 101 rounds of about 2 ms that
//! alternate between the subjects, on threads that stay on their processors; with two threads they
//! are wall time for each call of each thread. The floors say what the machine charged for the
//! least that a call can do, in the same rounds.

mod herd;
mod measure;
mod subjects;

use std::fs::File;
use std::io::{BufWriter, Write};

use measure::{Figure, Subject, figures};
use subjects::{Ours, default_clock_reading, failsafe, failures, one_swap, ours, recloser, tower};
use tower_resilience_circuitbreaker::SlidingWindowType;
use voussoir_breaker::{BreakerConfig, Window};

type Error = Box<dyn std::error::Error>;

const RIVALS: [&str; 4] =
    ["recloser 1.4", "failsafe 1.3", "tower-resilience 0.13", "the same, over time"];

struct Row {
    name: String,
    unit: &'static str,
    ours: Figure,
    rival: Option<(&'static str, Figure)>,
}

fn main() -> Result<(), Error> {
    let only = std::env::args().nth(1);
    let is_wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let mut rows = Vec::new();
    for threads in [1, 2] {
        if is_wanted("closed") {
            closed(threads, &mut rows);
        }
        if is_wanted("rejected") {
            rejected(threads, &mut rows);
        }
    }
    if is_wanted("failed") {
        failed(&mut rows);
    }
    if is_wanted("half-open") {
        probes(&mut rows)?;
    }
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
    let floors = [
        ("floor: one compare-and-swap", one_swap()),
        ("floor: one default clock", default_clock_reading()),
    ];
    let own = kinds.map(|(what, kind)| (what, ours(kind, false)));
    let own = own.into_iter().chain(floors).collect();
    let mut rivals = vec![recloser(false), failsafe(false)];
    if threads == 1 {
        rivals.push(tower(SlidingWindowType::CountBased, false));
        rivals.push(tower(SlidingWindowType::TimeBased, false));
    }
    compare("closed", threads, own, rivals, rows);
}

fn rejected(threads: usize, rows: &mut Vec<Row>) {
    let own = vec![
        ("now passed in", ours(Ours::NowPassedIn, true)),
        ("default clock", ours(Ours::DefaultClock, true)),
    ];
    let mut rivals = vec![recloser(true), failsafe(true)];
    if threads == 1 {
        rivals.push(tower(SlidingWindowType::CountBased, true));
    }
    compare("rejected", threads, own, rivals, rows);
}

/// An admitted call whose answer is a failure, which is judged over the whole window.
fn failed(rows: &mut Vec<Row>) {
    let own = vec![
        ("time window, 10 buckets", failures(BreakerConfig::default().window)),
        ("count window, 100", failures(Window::Count { calls: 100 })),
        ("count window, 65536", failures(Window::Count { calls: 65_536 })),
    ];
    compare("failed", 1, own, Vec::new(), rows);
}

fn compare(
    what: &str,
    threads: usize,
    own: Vec<(&'static str, Subject)>,
    rivals: Vec<Subject>,
    rows: &mut Vec<Row>,
) {
    let (names, mut subjects): (Vec<_>, Vec<_>) = own.into_iter().unzip();
    subjects.extend(rivals);
    let figures = figures(threads, &subjects);
    let (own, theirs) = figures.split_at(names.len());
    for (of, ours) in names.into_iter().zip(own) {
        let mut row = |name, rival| rows.push(Row { name, unit: "ns", ours: *ours, rival });
        if theirs.is_empty() || of.starts_with("floor") {
            row(format!("{what}, {of}, {threads} thread(s)"), None);
            continue;
        }
        for rival in RIVALS.into_iter().zip(theirs.iter().copied()) {
            row(format!("{what}, {of}, {threads} thread(s)"), Some(rival));
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
        rows.push(Row { name, unit: "calls", ours, rival: Some((rival, theirs)) });
    }
    Ok(())
}

fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    println!("median (lower quartile) [lowest-highest]");
    println!("{:width$}  {:>32}  {:>36}  rival", "name", "ours", "rival's");
    for row in rows {
        let ours = row.ours.show(row.unit);
        let Some((rival, theirs)) = row.rival else {
            println!("{:width$}  {ours:>32}", row.name);
            continue;
        };
        let (ratio, theirs) = (theirs.median / row.ours.median, theirs.show(row.unit));
        println!("{:width$}  {ours:>32}  {theirs:>36}  {rival}, {ratio:.1}x", row.name);
    }
}

fn write(rows: &[Row]) -> Result<(), Error> {
    let figure = |figure: Figure| {
        serde_json::json!({
            "median": figure.median,
            "quartile": figure.quartile,
            "min": figure.min,
            "max": figure.max,
        })
    };
    std::fs::create_dir_all("target")?;
    let mut out = BufWriter::new(File::create("target/breaker.jsonl")?);
    for row in rows {
        let line = serde_json::json!({
            "name": row.name,
            "unit": row.unit,
            "ours": figure(row.ours),
            "rival": row.rival.map(|(rival, _)| rival),
            "theirs": row.rival.map(|(_, theirs)| figure(theirs)),
            "ratio": row.rival.map(|(_, theirs)| theirs.median / row.ours.median),
        });
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(())
}
