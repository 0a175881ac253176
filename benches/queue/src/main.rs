//! voussoir-queue beside a bare journal, other logs, Redis Streams and NATS JetStream, in one run.
//!
//! `cargo xtask bench queue [-- PART…]` with the parts `batches`, `producers`, `partitions`,
//! `latency`, `reads`, `walrus` and `unsynced`; all of them without arguments. The last one is a
//! process of its own: in walrus-rust one process syncs each batch or none. It starts a Redis and a
//! NATS server, unless `REDIS_URL` and `NATS_URL` name some. Redis is told to sync before it
//! answers (`appendfsync always`); JetStream is at its default and answers before it syncs, so its
//! rows are labelled `unsynced`. Each figure is the median of rounds in which all take turns; times
//! are for each batch, record or way, so that a ratio above 1 says that ours is quicker. At the end
//! stands each ratio beside its target.

#[path = "../../txn/src/bars.rs"]
#[allow(dead_code, reason = "every target here is a lower bound")]
mod bars;
mod logs;
mod parts;
mod redis;
#[path = "../../report.rs"]
mod report;
mod subjects;

use bars::Bars;
use report::Report;
use subjects::Subjects;

/// The middle of many times.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> std::io::Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let known = ["batches", "producers", "partitions", "latency", "reads", "walrus", "unsynced"];
    if let Some(unknown) = asked.iter().find(|asked| !known.contains(&asked.as_str())) {
        let names = known.join(", ");
        return Err(std::io::Error::other(format!("no part {unknown}; there are {names}")));
    }
    let wants = |part: &str| asked.is_empty() || asked.iter().any(|asked| asked == part);
    let is_unsynced = asked == ["unsynced"];
    if wants("unsynced") && !is_unsynced {
        let part = std::process::Command::new(std::env::current_exe()?).arg("unsynced").status()?;
        if !part.success() {
            return Err(std::io::Error::other("the part `unsynced` has failed"));
        }
    }
    std::fs::create_dir_all("target")?;
    let name = if is_unsynced { "queue-unsynced" } else { "queue" };
    let (mut report, mut bars) = (Report::begin(name), Bars::default());
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let subjects = Subjects::open().await;
        if is_unsynced {
            return logs::unsynced(&subjects, &mut report, &mut bars).await;
        }
        if wants("batches") {
            parts::batches(&subjects, &mut report, &mut bars).await;
        }
        if wants("producers") {
            parts::producers(&subjects, &mut report, &mut bars).await;
        }
        if wants("partitions") {
            parts::partitions(&subjects, &mut report, &mut bars).await;
        }
        if wants("latency") {
            parts::latency(&subjects, &mut report).await;
        }
        if wants("reads") {
            logs::reads(&subjects, &mut report, &mut bars).await;
        }
        if wants("walrus") {
            logs::synced(&subjects, &mut report, &mut bars).await;
        }
    });
    report.end()?;
    bars.print();
    Ok(())
}
