//! voussoir-ring beside the crates that do parts of its work, in one process and one run.
//!
//! Prints a table `name ours rival ratio` and the same rows as JSON lines after it.
//! `cargo run --release [lookup|replicas|build|cold|swap]...`, all of them without arguments.

mod cold;
mod lookup;
mod report;
mod rivals;
mod swap;

use report::Report;

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| asked.is_empty() || asked.iter().any(|arg| arg == name);
    let mut report = Report::default();
    report.head();
    if wanted("lookup") {
        lookup::lookups(&mut report);
    }
    if wanted("replicas") {
        lookup::replicas(&mut report);
    }
    if wanted("build") {
        lookup::builds(&mut report);
    }
    if wanted("cold") {
        cold::cold(&mut report);
    }
    if wanted("swap") {
        swap::swap(&mut report);
    }
    report.print();
}
