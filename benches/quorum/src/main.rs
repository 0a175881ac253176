//! voussoir-quorum and etcd's key-value service, in turn, in one run on one disk.
//!
//! `cargo xtask bench quorum [-- PART…]` with the parts `cas`, `reads`, `puts`, `slow` and
//! `repair`; all of them without arguments. Three nodes each, a process a node, on loopback; the
//! clients are processes, too, on both sides. Everything that is acknowledged is synced on a
//! majority. etcd is taken from `VOUSSOIR_ETCD` or the path (`cargo xtask services fetch etcd` says
//! where it is), and called over gRPC at its leader. A bar stands in the name of its row.
//!
//! The work is equal: each client has a key of its own, with a value of 100 bytes. A
//! compare-and-set is a transaction of etcd that compares the revision of the last change and puts;
//! a read is one of etcd that is not serializable, and of ours one of a register; a put is one of
//! etcd, and of ours one of a table with W = 2 whose context covers the value before it. Each read,
//! and each key after a round, is compared with what its client has counted.

mod clients;
#[path = "../../etcd.rs"]
mod etcd;
mod etcd_cas;
#[path = "../../etcd_keys.rs"]
mod etcd_keys;
mod ours;
mod parts;
#[path = "../../process.rs"]
mod process;
mod repair;
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
    let mut report = Report::begin("quorum");
    if wants("repair") {
        runtime.block_on(repair::all(&mut report))?;
    }
    if wants("slow") {
        parts::slow(&mut report)?;
    }
    if ["cas", "reads", "puts"].iter().any(|part| wants(part)) {
        runtime.block_on(parts::beside_etcd(&mut report, wants))?;
    }
    Ok(report.end()?)
}
