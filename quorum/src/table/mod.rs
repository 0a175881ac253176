//! Tables of siblings on N replicas, read from R and written to W of them (Dynamo §4.5), as pure
//! state machines.
//!
//! A [`Coordinator`] runs the operations of its clients; a [`Replica`] holds the keys of one node.
//! Both take inputs by `step` and say by `poll_output` what is to be done: the coordinator calls
//! replicas, the replica writes records and answers.
//!
//! - **Writes**: one replica, the primary of the operation, gives the write its dot and applies it;
//!   the coordinator merges the result into the others. The operation draws one dot, whatever
//!   fails: only a call that was certainly not sent is given to another primary.
//! - A write tells its dot when the primary's own record is durable, and not before. The two syncs
//!   of a write with W = 2 can therefore not run at the same time. Were the dot told earlier,
//!   another replica could hold a value that the primary loses in a crash. The durable mark keeps
//!   the dot from being drawn again, but the next dot that the primary draws for the key is higher,
//!   and an entry of a version vector covers all lower ones: the value would be dropped as
//!   replaced, though no write has seen it, and though a read may have returned it. Waiting for the
//!   primary before the client is answered does not help: the value may spread before. A new actor
//!   with each start would, and version vectors would grow with each crash.
//! - **Reads** merge the answers of R replicas: the state of the first one, and of the others a
//!   digest, or their state if it is another one ([`Digester`]). With [`ReadRepair::Blocking`] a
//!   read is answered when W replicas hold what it returns, so that no later read sees less.
//! - An operation is tried until its deadline: a replica whose call has failed is asked again after
//!   a pause that is random and doubles, and one that is busy or not whole after a longer one from
//!   the first time on, until the answers suffice. While most calls to a replica fail, few are made
//!   again in the first half of an operation's time: one for every ten that succeed. A merge may be
//!   repeated, for the state has its dots and is the same each time. A call that may have given a
//!   write its dot is not repeated. What only replicas could still give that have refused for good
//!   ends at once.
//! - What a configuration guarantees is computed ([`TableConfig::guarantee`]), and one that cannot
//!   give what it requires is refused.
//! - A replica that was lost, restored or damaged answers [`Reply::NotWhole`] and counts in no R or
//!   W until it has been rebuilt.

mod answers;
mod config;
mod coordinator;
mod digest;
mod errors;
mod latency;
mod message;
mod operation;
mod replica;
mod retry;
mod stats;

pub use config::{Guarantee, Level, ReadRepair, TableConfig};
pub use coordinator::{Coordinator, CoordinatorInput, CoordinatorOutput, Value};
pub use digest::Digester;
pub use errors::{CallError, OperationError, Outcome, Rejected};
pub use message::{Reply, Request};
pub use replica::{Replica, ReplicaInput, ReplicaOutput, ReplicaRejected};
pub use stats::Stats;
