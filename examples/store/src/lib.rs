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
//! | `args.rs`, `main.rs` | the command line | |
//! | `demo/` | cluster, load, checks | leave it out |

pub mod args;
pub mod demo;
pub mod http;
pub mod kv;
pub mod machine;
pub mod metrics;
pub mod node;
