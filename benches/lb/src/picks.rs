//! A pick and the end of its request, by strategy, number of endpoints, and number of threads.

use crate::measure::{Subject, compare};
use crate::ours::{STRATEGIES, subject};
use crate::report::{Figure, Report};
use crate::rivals::{pingora, tower};

/// A strategy of ours, and the rivals that it is compared with.
const PAIRS: [(&str, &[&str]); 6] = [
    ("power of two", &["tower p2c, pending requests"]),
    ("peak EWMA", &["tower p2c, peak EWMA"]),
    ("round robin", &["pingora round robin"]),
    ("random", &["pingora random"]),
    ("key hash", &["pingora FNV hash"]),
    ("Maglev", &["pingora ketama"]),
];

pub fn picks(report: &mut Report) {
    for threads in [1, 2] {
        for endpoints in [10, 100, 1_000] {
            let mut subjects: Vec<Subject> = STRATEGIES
                .iter()
                .map(|&(name, is_weighted, make)| subject(name, is_weighted, make, endpoints))
                .collect();
            let ours = subjects.len();
            subjects.extend(pingora(endpoints));
            subjects.extend(tower(endpoints));
            let figures = compare(&subjects, threads);
            let of = |name: &str| -> Figure {
                let at = subjects.iter().position(|subject| subject.name == name);
                figures[at.expect("a subject")]
            };
            let plural = if threads == 1 { "" } else { "s" };
            for (subject, figure) in subjects[..ours].iter().zip(&figures) {
                let name = &subject.name;
                let row = format!("{name}, {endpoints} endpoints, {threads} thread{plural}");
                let rivals =
                    PAIRS.iter().find(|(ours, _)| ours == name).map_or(&[][..], |pair| pair.1);
                if rivals.is_empty() {
                    report.alone(&row, *figure, "ns");
                }
                for rival in rivals {
                    report.beside(&row, *figure, rival, of(rival), "ns");
                }
            }
        }
    }
}
