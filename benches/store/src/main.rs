//! The store of `examples/store` and etcd's key-value service, in turn, in one run on one disk.
//!
//! `cargo xtask bench store [-- PART…]` with the parts `puts` and `floor`; both without arguments.
//! Three nodes each, a process a node, on loopback, both synced on a majority before they answer.
//! The clients are processes, too, on both sides, and call the leader: ours by HTTP/1.1 with the
//! store's own client, etcd by gRPC. etcd is taken from `VOUSSOIR_ETCD` or the path (`cargo xtask
//! services fetch etcd` says where it is). A bar stands in the name of its row.
//!
//! The work is equal: each client has a key of its own and puts 128 bytes. After each round it
//! reads the key and compares it with what it was told.

mod clients;
#[path = "../../etcd.rs"]
mod etcd;
#[path = "../../etcd_keys.rs"]
mod etcd_keys;
mod ours;
mod parts;
#[allow(dead_code, reason = "what other workspaces ask of their processes")]
#[path = "../../process.rs"]
mod process;
#[allow(dead_code, reason = "rows that other workspaces have")]
#[path = "../../report.rs"]
mod report;

use report::Report;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if asked.first().is_some_and(|mode| mode == "node") {
        return ours::node(&asked[1..]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if asked.first().is_some_and(|mode| mode == "clients") {
        return runtime.block_on(clients::process(&asked[1..]));
    }
    let wants = |part: &str| asked.is_empty() || asked.iter().any(|asked| asked == part);
    let mut report = Report::begin("store");
    if wants("puts") {
        runtime.block_on(parts::puts(&mut report))?;
    }
    if wants("floor") {
        runtime.block_on(parts::floor(&mut report))?;
    }
    Ok(report.end()?)
}
