//! The remainder of a division, to compare the others with.

use super::probe::Probes;
use super::{equal_weights, not_empty};
use crate::error::BuildError;
use crate::hash;
use crate::owners::Owners;
use crate::partitioner::Partitioner;
use crate::spread;
use crate::topology::Topology;

/// `hash % n`: what not to do with data, since nearly every key moves when `n` changes. It is here
/// to compare the others with, and for work that may land anywhere.
#[derive(Clone, Debug)]
pub struct Modulo {
    topology: Topology,
}

impl Modulo {
    /// Modulo over the nodes in the order of their ids.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`], [`BuildError::UnequalWeights`].
    pub fn new(topology: &Topology) -> Result<Self, BuildError> {
        not_empty(topology)?;
        equal_weights(topology, "modulo")?;
        Ok(Self { topology: topology.clone() })
    }

    fn locate(&self, hash: u64) -> u16 {
        (hash % self.topology.len() as u64) as u16
    }
}

impl Partitioner for Modulo {
    fn owner(&self, key: &[u8]) -> u64 {
        self.topology.members().ids[usize::from(self.locate(hash::key(key)))]
    }

    fn owners(&self, key: &[u8], n: usize) -> Owners {
        let members = self.topology.members();
        let locate = |hash| self.locate(hash);
        spread::select(members, n, &Probes { members, hash: hash::key(key), locate })
    }
}
