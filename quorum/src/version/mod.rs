//! Versions: who wrote a value, what it was written after, and when.
//!
//! - [`Actor`], [`Dot`] and [`DotSource`] name writes. A name is never used twice, also when the
//!   store of a node was lost and the node takes a new incarnation.
//! - [`VersionVector`] is what a client or a replica has seen of one key.
//! - [`Siblings`] is the value of one key: a dotted version vector set. Concurrent writes are kept
//!   side by side until a write that has seen them replaces them.
//! - [`Hlc`] gives [`Timestamp`]s: a hybrid logical clock that refuses peers from the future.
//! - [`codec`] encodes dots, timestamps, vectors, siblings and contexts.

pub mod codec;
mod dot;
mod hlc;
mod siblings;
mod vector;

pub use dot::{Actor, Dot, DotError, DotSource};
pub use hlc::{Hlc, HlcConfig, ObserveError, TickError, Timestamp};
pub use siblings::{PutError, Siblings};
pub use vector::VersionVector;
