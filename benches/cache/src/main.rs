//! voussoir-cache, the table that it stands on, and its rivals, in turn, in one process.
//!
//! `cargo xtask bench cache [-- PART…]` with the parts `hit`, `load`, `ratio`, `acknowledge`,
//! `throughput` and `instructions`; all of them without arguments. `acknowledge` and `throughput`
//! write to a temporary folder below the present one, whose disk they measure. `instructions`
//! needs valgrind: it runs this program under callgrind.
//!
//! Times of hits are the median and the range of 21 rounds of about 15 ms, those of loads of 11
//! rounds of about 100 ms, which alternate between the subjects, on threads that stay on their
//! processors; with two threads they are wall time for each call of each thread.

mod behind;
mod instructions;
mod measure;
mod parts;
#[path = "../../report.rs"]
mod report;
mod subjects;

use report::Report;

type Error = Box<dyn std::error::Error>;
/// A part of the run: its name, and what adds its rows.
type Part = (&'static str, fn(&mut Report) -> Result<(), Error>);

fn main() -> Result<(), Error> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if let [count, name, calls] = asked.as_slice()
        && count == instructions::COUNT
    {
        return instructions::run(name, calls.parse()?);
    }
    let parts: [Part; 6] = [
        ("hit", |report| Ok(parts::hit(report))),
        ("load", |report| Ok(parts::load(report))),
        ("ratio", |report| Ok(parts::ratio(report))),
        ("acknowledge", behind::acknowledge),
        ("throughput", behind::throughput),
        ("instructions", instructions::count),
    ];
    let mut report = Report::begin("cache");
    for (name, run) in parts {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            run(&mut report)?;
        }
    }
    Ok(report.end()?)
}
