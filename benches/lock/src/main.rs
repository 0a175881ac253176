//! voussoir-lock on Raft and etcd's lock service, in turn, in one run on one disk.
//!
//! `cargo xtask bench lock [-- PART…]` with the parts `ids`, `wakes`, `idle`, `latency`,
//! `handover`, `cycles` and `failover`; all of them without arguments. Three nodes each, a process
//! a node, on loopback. The clients of `cycles` are processes, those of the other parts tasks of
//! this process. etcd is taken from `VOUSSOIR_ETCD` or the path (`cargo xtask services fetch etcd`
//! says where it is), and called over gRPC at its leader. A bar stands in the name of its row.

mod clients;
#[path = "../../etcd.rs"]
mod etcd;
mod etcd_locks;
mod ours;
mod parts;
#[path = "../../process.rs"]
mod process;
#[path = "../../report.rs"]
mod report;

use report::Report;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match asked.first().map(String::as_str) {
        Some("node") => return runtime.block_on(ours::node(&asked[1..])),
        Some("clients") => return runtime.block_on(clients::process(&asked[1..])),
        _ => {}
    }
    let wants = |part: &str| asked.is_empty() || asked.iter().any(|asked| asked == part);
    let mut report = Report::begin("lock");
    if wants("ids") {
        parts::ids(&mut report)?;
    }
    let of_clusters = ["wakes", "idle", "latency", "handover", "cycles", "failover"];
    if of_clusters.iter().any(|part| wants(part)) {
        runtime.block_on(parts::clusters(&mut report, wants))?;
    }
    Ok(report.end()?)
}
