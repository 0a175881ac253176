//! voussoir-lb beside the crates that do parts of its work, in one process and one run.
//!
//! `cargo xtask bench lb [-- PART…]` with the part `picks`; all without arguments.

mod measure;
mod ours;
mod picks;
#[path = "../../report.rs"]
mod report;
mod rivals;

use report::Report;

/// A part of the run: its name, and what adds its rows.
type Part = (&'static str, fn(&mut Report));

fn main() -> std::io::Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let parts: [Part; 1] = [("picks", picks::picks)];
    let mut report = Report::begin("lb");
    for (name, run) in parts {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            run(&mut report);
        }
    }
    report.end()
}
