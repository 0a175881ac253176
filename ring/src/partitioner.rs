//! The one trait: who owns this key.

use std::fmt;

use crate::owners::Owners;

/// Maps a key to the nodes that own it.
///
/// An answer depends on the key and on the value it is asked of, and on nothing else: no clock, no
/// randomness, no earlier call. A partitioner that exists has at least one node, so there is always
/// an owner.
///
/// Implement it for a placement of your own; the suite in `voussoir_ring::testing` (feature
/// `testing`) says whether it keeps these rules.
///
/// # Example
/// ```
/// use voussoir_ring::{HashRing, Node, Partitioner, Topology};
/// let nodes = ["a", "b", "c"].iter().zip(1..).map(|(zone, id)| Node::new(id).in_zone(*zone));
/// let ring: Box<dyn Partitioner> = Box::new(HashRing::new(&Topology::new(1, nodes)?)?);
/// let owners = ring.owners(b"user:42", 2);
/// assert_eq!(owners[0], ring.owner(b"user:42"));
/// assert_eq!((owners.len(), owners.degraded()), (2, None));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Partitioner: Send + Sync + fmt::Debug {
    /// The node that owns the key.
    fn owner(&self, key: &[u8]) -> u64;

    /// The preference list: `n` different nodes, the owner first.
    ///
    /// With fewer nodes than `n`, or more than [`MAX_REPLICAS`](crate::MAX_REPLICAS) asked for, the
    /// list is as long as it can be and [`Owners::degraded`] says so.
    fn owners(&self, key: &[u8], n: usize) -> Owners;
}
