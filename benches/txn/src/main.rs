//! voussoir-txn, its floors and its rivals, in turn, in one process and one run.
//!
//! `cargo xtask bench txn [-- PART…]` with the parts `core`, `durable`, `flight`, `recovery`,
//! `commit` and `outbox`; all of them without arguments. It starts two PostgreSQL servers, unless
//! `DATABASE_URL` and `DATABASE_URL_2` name some. Each figure is the median of rounds in which ours
//! and the rival take turns. At the end stands each ratio beside its target; files lie in a folder
//! below `target`, whose disk should be that of the servers.

mod bars;
mod core_alone;
mod databases;
mod outbox;
#[path = "../../report.rs"]
mod report;
mod sagas;
mod steno_rival;
mod two_phase;

// The library's own source: its state machine is private, and is measured without task or store.
#[path = "../../../txn/src/config.rs"]
#[allow(dead_code, unreachable_pub, reason = "this program uses the state machine alone")]
mod config;
#[path = "../../../txn/src/core/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "as above")]
mod core;
#[path = "../../../txn/src/error.rs"]
#[allow(dead_code, unreachable_pub, reason = "as above")]
mod error;

use bars::Bars;
use report::Report;

type Part = (&'static str, fn(&mut Report, &mut Bars));

/// The middle of many times.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Runs a future on two threads.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

fn main() -> std::io::Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let parts: [Part; 6] = [
        ("core", core_alone::core),
        ("durable", sagas::durable),
        ("flight", sagas::flight),
        ("recovery", sagas::recovery),
        ("commit", two_phase::commit),
        ("outbox", outbox::outbox),
    ];
    if let Some(unknown) = asked.iter().find(|asked| parts.iter().all(|(name, _)| name != asked)) {
        let names = parts.map(|(name, _)| name).join(", ");
        return Err(std::io::Error::other(format!("no part {unknown}; there are {names}")));
    }
    std::fs::create_dir_all("target")?;
    let mut bars = Bars::default();
    let mut report = Report::begin("txn");
    for (name, run) in parts {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            run(&mut report, &mut bars);
        }
    }
    report.end()?;
    bars.print();
    Ok(())
}
