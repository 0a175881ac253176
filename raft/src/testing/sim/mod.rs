//! The core in the deterministic world of `voussoir-sim`: real codec, a disk that loses what was
//! not synced, a key-value machine, clients, and an oracle that watches every step.
//!
//! [`run`] plays one seed. What is checked while it runs: election safety, log matching, leader
//! completeness, state machine safety, that what is applied is durable on a majority, that no
//! term, vote or commit index moves back. At the end: that the clients' history is linearizable,
//! that the cluster took up work soon after the last fault, and that all nodes hold the same
//! state.
//!
//! Source of the properties: Raft figure 3.

mod disk;
#[cfg(feature = "journal")]
mod journaled;
mod machine;
mod memory;
mod node;
mod oracle;
mod run;
mod wire;

pub use self::disk::{Disk, Done, Job, OpenError, Opened, Ruin, StoreError, StoreFile};
#[cfg(feature = "journal")]
pub use self::journaled::{JournalDisk, JournaledStore, run_journaled};
pub use self::machine::{Machine, Reply};
pub use self::memory::{MemoryDisk, MemoryStore};
pub use self::node::{RaftNode, Timed};
pub use self::oracle::{Oracle, SITUATIONS};
pub use self::run::{Options, run, run_on};
