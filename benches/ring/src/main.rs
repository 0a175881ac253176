//! voussoir-ring beside the crates that do parts of its work, in one process and one run.
//!
//! `cargo xtask bench ring [-- PART…]` with the parts `lookup`, `replicas`, `build`, `cold` and
//! `swap`; all of them without arguments.

mod cold;
mod measure;
mod parts;
#[path = "../../report.rs"]
mod report;
mod rivals;
mod swap;

use report::Report;

/// A part of the run: its name, and what adds its rows.
type Part = (&'static str, fn(&mut Report));

fn main() -> std::io::Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let parts: [Part; 5] = [
        ("lookup", parts::lookups),
        ("replicas", parts::replicas),
        ("build", parts::builds),
        ("cold", cold::cold),
        ("swap", swap::swap),
    ];
    let mut report = Report::begin("ring");
    for (name, run) in parts {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            run(&mut report);
        }
    }
    report.end()
}
