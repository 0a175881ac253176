//! A replicated key-value store over HTTP: raft on a journal, over TCP. Copy this folder and change
//! [`kv`] to make it your own service; `demo` is only there to show and to test it.
//!
//! | file | what it is | you will change |
//! |---|---|---|
//! | `kv.rs` | the data, the commands, their bytes | all of it |
//! | `machine.rs` | hands committed commands to the data; snapshots | little |
//! | `http.rs` | the interface | the routes |
//! | `node.rs` | wires journal, network and raft together | limits, addresses |
//! | `metrics.rs` | Prometheus text | what you count |
//! | `observe.rs`, `disk.rs`, `log.rs` | the log: peers, elections, slow disks | |
//! | `traffic.rs` | requests under way, and the end of a node | |
//! | `args.rs`, `main.rs` | the command line | |
//! | `demo/` | cluster, load, checks, soak | leave it out |

pub mod args;
pub mod demo;
pub mod disk;
pub mod http;
pub mod kv;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod node;
pub mod observe;
pub mod traffic;
