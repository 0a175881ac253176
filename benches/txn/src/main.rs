//! voussoir-txn, its floors and its rivals, in turn, in one process and one run.
//!
//! `cargo xtask bench txn [-- PART…]` with the parts `memory`, `durable`, `flight`, `recovery` and
//! `outbox`; all of them without arguments. What needs PostgreSQL is left out unless `DATABASE_URL`
//! names a server. Each figure is the median of rounds in which ours and the rival take turns.

mod outbox;
#[path = "../../report.rs"]
mod report;
mod sagas;
mod steno_rival;

use report::{Figure, Report};

type Part = (&'static str, fn(&mut Report));

/// The median of the rounds, with the lowest and the highest.
pub fn figure(mut rounds: Vec<f64>) -> Figure {
    rounds.sort_by(f64::total_cmp);
    let range = rounds.first().copied().zip(rounds.last().copied());
    Figure { value: rounds[rounds.len() / 2], range }
}

/// The middle of many times.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A server, if one is named.
pub fn database() -> Option<tokio_postgres::Config> {
    let url = std::env::var("DATABASE_URL").ok()?;
    Some(url.parse().expect("DATABASE_URL names a server"))
}

/// Runs a future on two threads.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

fn main() -> std::io::Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let parts: [Part; 5] = [
        ("memory", sagas::memory),
        ("durable", sagas::durable),
        ("flight", sagas::flight),
        ("recovery", sagas::recovery),
        ("outbox", outbox::outbox),
    ];
    let mut report = Report::begin("txn");
    for (name, run) in parts {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            run(&mut report);
        }
    }
    report.end()
}
