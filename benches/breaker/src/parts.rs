//! The parts of the run: admitted, rejected and failed calls, and a half-open breaker.

use tower_resilience_circuitbreaker::SlidingWindowType;
use voussoir_breaker::{BreakerConfig, Window};

use crate::measure::{Subject, figures};
use crate::report::Report;
use crate::rivals::{
    Ours, default_clock_reading, failsafe, failures, one_swap, ours, recloser, tower,
};
use crate::{Error, half_open};

const RIVALS: [&str; 4] =
    ["recloser 1.4", "failsafe 1.3", "tower-resilience 0.13", "the same, over time"];

/// An admitted call whose answer is recorded: all of ours with a time window and slow-call rate
/// on, unless said otherwise.
pub fn closed(threads: usize, report: &mut Report) {
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
    compare("closed", threads, own, rivals, report);
}

pub fn rejected(threads: usize, report: &mut Report) {
    let own = vec![
        ("now passed in", ours(Ours::NowPassedIn, true)),
        ("default clock", ours(Ours::DefaultClock, true)),
    ];
    let mut rivals = vec![recloser(true), failsafe(true)];
    if threads == 1 {
        rivals.push(tower(SlidingWindowType::CountBased, true));
    }
    compare("rejected", threads, own, rivals, report);
}

/// An admitted call whose answer is a failure, which is judged over the whole window.
pub fn failed(report: &mut Report) {
    let own = vec![
        ("time window, 10 buckets", failures(BreakerConfig::default().window)),
        ("count window, 100", failures(Window::Count { calls: 100 })),
        ("count window, 65536", failures(Window::Count { calls: 65_536 })),
    ];
    compare("failed", 1, own, Vec::new(), report);
}

fn compare(
    what: &str,
    threads: usize,
    own: Vec<(&'static str, Subject)>,
    rivals: Vec<Subject>,
    report: &mut Report,
) {
    let (names, mut subjects): (Vec<_>, Vec<_>) = own.into_iter().unzip();
    subjects.extend(rivals);
    let figures = figures(threads, &subjects);
    let (own, theirs) = figures.split_at(names.len());
    for (of, ours) in names.into_iter().zip(own) {
        let name = format!("{what}, {of}, {threads} thread(s)");
        if theirs.is_empty() || of.starts_with("floor") {
            report.alone(&name, *ours, "ns");
            continue;
        }
        for (rival, theirs) in RIVALS.into_iter().zip(theirs) {
            report.beside(&name, *ours, rival, *theirs, "ns");
        }
    }
}

/// 64 callers released together on a half-open breaker of 3 probes.
pub fn probes(report: &mut Report) -> Result<(), Error> {
    let rounds = 5;
    let ours = half_open::admitted(rounds, half_open::ours)?;
    for (rival, theirs) in [
        ("recloser 1.4", half_open::admitted(rounds, half_open::recloser)?),
        ("failsafe 1.3", half_open::admitted(rounds, half_open::failsafe)?),
        ("tower-resilience 0.13", half_open::admitted(rounds, half_open::tower)?),
    ] {
        report.beside("half-open, 64 callers, 3 probes", ours, rival, theirs, "calls");
    }
    Ok(())
}
