//! Anti-entropy: finds the keys on which two replicas disagree, by a Merkle tree that is kept up to
//! date with each write (Dynamo §4.7).
//!
//! - [`MerkleTree`] holds the digests of a store's keys. [`MerkleTree::set`] belongs to the write.
//! - [`Exchange`] compares the own tree with that of a peer, question by question, and lists the
//!   keys that differ. The peer answers out of its tree ([`MerkleTree::answer`]) and keeps nothing.
//! - The caller then reads each of these keys on both sides, merges, and writes to both. A key that
//!   changed in between is merged as well as any other; nothing is deleted by repair.
//! - [`codec`] has the bytes of questions and answers.
//!
//! Equal replicas exchange one question. Repairing twice transfers nothing the second time.

pub mod codec;
mod exchange;
mod hash;
mod message;
mod tree;

pub use exchange::{Exchange, ExchangeError};
pub use hash::HashKey;
pub use message::{Answer, Entry, MerkleConfig, NodeId, Question};
pub use tree::MerkleTree;
