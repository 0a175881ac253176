//! The core in the deterministic world of `voussoir-sim`: real codec, the store that users run on a
//! journal whose disk loses what was not synced, a key-value machine, clients, and an oracle that
//! watches every step.
//!
//! [`run`] plays one seed. What is checked while it runs: election safety, log matching, leader
//! completeness, state machine safety, that what is applied is durable on a majority, that no
//! term, vote or commit index moves back. At the end: that the clients' history is linearizable,
//! that the cluster took up work soon after the last fault, and that all nodes hold the same
//! state.
//!
//! With [`Options::changes`] the membership changes all the time; what a leader commits is then
//! held against the majorities that decide by its membership.
//!
//! With [`Options::leasing`] leaders read under leases, on clocks that drift by as much as the
//! nodes rely on.
//!
//! With [`Options::quiescing`] the node stands in a process of many groups, and its group rests
//! while its clients pause.
//!
//! With [`Options::rotting`] entries rot on the disks of running nodes, which start again and are
//! repaired by the others.
//!
//! Source of the properties: Raft figure 3.

mod churn;
mod disk;
mod host;
mod hunt;
mod machine;
mod members;
mod node;
mod oracle;
mod rot;
mod run;
mod wire;

pub use self::host::QUIESCE_SITUATIONS;
pub use self::machine::{Machine, Reply};
pub use self::members::CHANGE_SITUATIONS;
pub use self::oracle::{LEASE_SITUATIONS, REPAIR_SITUATIONS, SITUATIONS};
pub use self::run::{Options, run, run_on};
