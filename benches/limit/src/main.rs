//! voussoir-limit and its rivals, in turn, in one process and one run.
//!
//! `cargo xtask bench limit [-- PART…]` with the parts `check`, `keyed` and `memory`; all of them
//! without arguments. Beside the rivals stand floors: what any limiter pays on this machine in
//! this run.

mod measure;
mod parts;
#[path = "../../report.rs"]
mod report;
mod rivals;

use report::Report;

/// A part of the run: its name, and what adds its rows.
type Part = (&'static str, fn(&mut Report));

fn main() -> std::io::Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let parts: [Part; 3] =
        [("check", parts::plain), ("memory", parts::memory), ("keyed", parts::keyed)];
    let mut report = Report::begin("limit");
    for (name, run) in parts {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            run(&mut report);
        }
    }
    report.end()
}
