//! Linearizable registers without consensus: the algorithm of Attiya, Bar-Noy and Dolev (1995), for
//! many writers (Lynch, Shvartsman 1997), as pure state machines.
//!
//! - **A write** asks a majority for the greatest tag, and stores its value under a greater one at
//!   a majority.
//! - **A read** asks a majority, and writes the greatest tag that it found back to a majority
//!   before it answers, unless a majority holds it already. Without the write-back a later read
//!   could miss what this one saw.
//! - Every request may be lost, repeated and reordered: a replica keeps the greatest tag. The
//!   [`Coordinator`] sends again.
//! - A replica answers when its record is durable. One that was lost, restored or damaged answers
//!   [`Reply::NotWhole`] and counts in no majority until it has been rebuilt.
//!
//! There is no compare-and-set: a write replaces whatever is there. Take
//! [`paxos`](crate::paxos) where the new value depends on the old one, and
//! [`table`](crate::table) where concurrent writes must both survive. A key belongs to one of them.

mod config;
mod coordinator;
mod replica;
mod types;

pub use config::AbdConfig;
pub use coordinator::{Coordinator, CoordinatorInput, CoordinatorOutput, OperationError, Rejected};
pub use replica::{Replica, ReplicaInput, ReplicaOutput, ReplicaRejected};
pub use types::{Reply, Request, Tag, Versioned};
