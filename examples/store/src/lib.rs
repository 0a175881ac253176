//! A replicated key-value store over HTTP: raft on a journal, over TCP. Copy this folder and change
//! [`kv`] to make it a service of your own.
//!
//! | file | what it is | you will change |
//! |---|---|---|
//! | `kv.rs` | the data, the commands, their bytes | all of it |
//! | `machine.rs` | hands committed commands to the data; snapshots | little |
//! | `http.rs` | the routes | what your service offers |
//! | `node.rs` | wires journal, network and raft together | cluster id, limits |
//! | `metrics.rs` | Prometheus text | what you count |
//! | `observe.rs`, `disk.rs`, `log.rs` | the log: peers, elections, slow disks | |
//! | `room.rs` | keeps the data below its limit | |
//! | `listen.rs` | bounds what clients may take: connections, time for a request | |
//! | `tls.rs` | certificates of the node, read again at SIGHUP | |
//! | `traffic.rs` | requests under way, and the end of a node | |
//! | `client.rs` | an HTTP client that finds the leader | |
//! | `cluster.rs`, `up.rs` | a cluster of processes on this machine | |
//! | `shards/` | the store in shards: many raft groups on each node | leave it out |
//! | `args.rs`, `main.rs` | the command line | |
//! | `demo/` | the demo and the soak | leave it out |

pub mod args;
pub mod client;
pub mod cluster;
#[cfg(feature = "demo")]
pub mod demo;
pub mod disk;
pub mod http;
pub mod kv;
mod listen;
#[cfg(test)]
mod listen_tests;
pub mod log;
pub mod machine;
pub mod members;
pub mod metrics;
pub mod node;
pub mod observe;
pub mod room;
pub mod shards;
pub mod tls;
pub mod traffic;
pub mod up;
