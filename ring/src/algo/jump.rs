//! Jump consistent hashing (Lamping & Veach 2014).

use std::num::NonZeroU32;

use super::equal_weights;
use super::probe::Probes;
use crate::error::BuildError;
use crate::hash;
use crate::owners::Owners;
use crate::partitioner::Partitioner;
use crate::spread;
use crate::topology::Topology;

/// The bucket of a key among `buckets`, exactly as published.
///
/// Source: Lamping, Veach, "A fast, minimal memory, consistent hash algorithm" (2014), figure 1.
///
/// # Example
/// ```
/// let buckets = std::num::NonZeroU32::new(57).unwrap();
/// assert_eq!(voussoir_ring::jump(42, buckets), 43);
/// ```
#[inline]
pub fn jump(mut key: u64, buckets: NonZeroU32) -> u32 {
    let (mut bucket, mut next) = (0_u64, 0_u64);
    // Ends: `scale` is at least 1, so `next` is above `bucket` in each turn.
    while next < u64::from(buckets.get()) {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let scale = f64::from(1_u32 << 31) / ((key >> 33) + 1) as f64;
        next = ((bucket + 1) as f64 * scale) as u64;
    }
    bucket as u32
}

/// Jump hash over the nodes, sorted by id. It needs no table and has the most even load of all
/// algorithms here, for nodes of one weight that join and leave only at the end of that order.
///
/// A node that leaves from the middle renumbers all after it and moves most keys: use
/// [`Memento`](crate::Memento) or [`HashRing`](crate::HashRing) where that can happen.
#[derive(Clone, Debug)]
pub struct Jump {
    topology: Topology,
    buckets: NonZeroU32,
}

impl Jump {
    /// Jump hash over these nodes.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`], [`BuildError::UnequalWeights`].
    pub fn new(topology: &Topology) -> Result<Self, BuildError> {
        equal_weights(topology, "jump hash")?;
        let buckets = NonZeroU32::new(topology.len() as u32).ok_or(BuildError::NoNodes)?;
        Ok(Self { topology: topology.clone(), buckets })
    }
}

impl Partitioner for Jump {
    fn owner(&self, key: &[u8]) -> u64 {
        self.topology.members().ids[jump(hash::key(key), self.buckets) as usize]
    }

    fn owners(&self, key: &[u8], n: usize) -> Owners {
        let members = self.topology.members();
        // A topology has at most 65,536 nodes, so a bucket fits.
        let locate = |hash| jump(hash, self.buckets) as u16;
        spread::select(members, n, &Probes { members, hash: hash::key(key), locate })
    }
}
