//! voussoir-breaker and its rivals, in turn, in one process.
//!
//! `cargo xtask bench breaker [-- PART…]` with the parts `closed`, `rejected`, `failed` and
//! `half-open`; all of them without arguments.
//!
//! Times are the median and the range of 101 rounds of about 2 ms that alternate between the
//! subjects, on threads that stay on their processors; with two threads they are wall time for
//! each call of each thread. The floors say what the machine charged for the least that a call can
//! do, in the same rounds.

mod half_open;
mod measure;
mod parts;
#[path = "../../report.rs"]
mod report;
mod rivals;

use report::Report;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |part: &str| asked.is_empty() || asked.iter().any(|asked| asked == part);
    let mut report = Report::begin("breaker");
    for threads in [1, 2] {
        if is_wanted("closed") {
            parts::closed(threads, &mut report);
        }
        if is_wanted("rejected") {
            parts::rejected(threads, &mut report);
        }
    }
    if is_wanted("failed") {
        parts::failed(&mut report);
    }
    if is_wanted("half-open") {
        parts::probes(&mut report)?;
    }
    Ok(report.end()?)
}
