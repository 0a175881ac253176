//! MementoHash: jump hashing with removals in any order.

use std::collections::HashMap;
use std::num::NonZeroU32;

use super::equal_weights;
use super::jump::jump;
use super::probe::Probes;
use crate::error::BuildError;
use crate::hash;
use crate::owners::Owners;
use crate::partitioner::Partitioner;
use crate::spread;
use crate::topology::{Node, Topology};

/// Jump hash that lets any node leave: memory only for the nodes that are gone, and the least
/// movement on every change, for nodes of one weight.
///
/// The placement depends on the order in which nodes left, so every process must apply the same
/// changes in the same order, or start from [`buckets`](Memento::buckets) and
/// [`removals`](Memento::removals) of one that did. A node that joins takes the place of the one
/// that left last.
///
/// Source: Coluzzi, Brocco, Leidi, Antonucci, "MementoHash: a stateful, minimal memory, best
/// performing consistent hash algorithm" (2023), algorithms 1 to 4.
#[derive(Clone, Debug)]
pub struct Memento {
    topology: Topology,
    /// Node of each bucket; for a bucket that was removed, the node that was there.
    buckets: Vec<u64>,
    /// Index of each bucket's node among the members; meaningless for a removed bucket.
    indices: Vec<u16>,
    /// For each removed bucket the number of buckets that were left after it.
    replaced: HashMap<u32, u32>,
    /// Removed buckets, oldest first.
    removed: Vec<u32>,
}

impl Memento {
    /// Memento over these nodes, none of them removed.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`], [`BuildError::UnequalWeights`].
    pub fn new(topology: &Topology) -> Result<Self, BuildError> {
        let ids: Vec<u64> = topology.nodes().iter().map(|node| node.id).collect();
        Self::restore(topology, &ids, &[])
    }

    /// The state of another process: `buckets` and `removals` as it reports them, and its topology.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`], [`BuildError::UnequalWeights`]; [`BuildError::UnknownNode`],
    /// [`BuildError::Duplicate`] or [`BuildError::Unassigned`] when the parts do not fit together.
    pub fn restore(
        topology: &Topology,
        buckets: &[u64],
        removals: &[u32],
    ) -> Result<Self, BuildError> {
        super::not_empty(topology)?;
        equal_weights(topology, "Memento")?;
        let mut memento = Self {
            topology: topology.clone(),
            buckets: buckets.to_vec(),
            indices: Vec::new(),
            replaced: HashMap::new(),
            removed: Vec::new(),
        };
        for &bucket in removals {
            if bucket as usize >= buckets.len() {
                return Err(BuildError::Unassigned(bucket));
            }
            let left = memento.working().saturating_sub(1);
            if memento.replaced.insert(bucket, left).is_some() {
                return Err(BuildError::Duplicate(format!("bucket {bucket}")));
            }
            memento.removed.push(bucket);
        }
        memento.check()?;
        memento.reindex();
        Ok(memento)
    }

    /// Every member must stand at one working bucket and every working bucket be a member's.
    fn check(&self) -> Result<(), BuildError> {
        let mut seen = Vec::with_capacity(self.topology.len());
        for (bucket, &id) in self.buckets.iter().enumerate() {
            if self.replaced.contains_key(&(bucket as u32)) {
                continue;
            }
            if self.topology.get(id).is_none() {
                return Err(BuildError::UnknownNode(id));
            }
            seen.push(id);
        }
        seen.sort_unstable();
        if let Some([id, ..]) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(BuildError::Duplicate(format!("node {id}")));
        }
        match self.topology.nodes().iter().find(|node| seen.binary_search(&node.id).is_err()) {
            Some(node) => Err(BuildError::UnknownNode(node.id)),
            None => Ok(()),
        }
    }

    /// Takes a node out.
    ///
    /// # Errors
    /// [`BuildError::UnknownNode`], [`BuildError::LastNode`]; nothing is changed then.
    pub fn remove(&mut self, id: u64) -> Result<(), BuildError> {
        if self.topology.len() == 1 && self.topology.get(id).is_some() {
            return Err(BuildError::LastNode);
        }
        let topology = self.topology.without(id).map_err(|_| BuildError::UnknownNode(id))?;
        let bucket = (0..self.buckets.len() as u32)
            .find(|bucket| {
                self.buckets[*bucket as usize] == id && !self.replaced.contains_key(bucket)
            })
            .ok_or(BuildError::UnknownNode(id))?;
        if self.removed.is_empty() && bucket as usize + 1 == self.buckets.len() {
            self.buckets.pop();
        } else {
            self.replaced.insert(bucket, self.working() - 1);
            self.removed.push(bucket);
        }
        self.topology = topology;
        self.reindex();
        Ok(())
    }

    /// Puts a node in: at the bucket that was removed last, or at a new one.
    ///
    /// # Errors
    /// [`BuildError::Duplicate`] for a node that is a member already,
    /// [`BuildError::UnequalWeights`], [`BuildError::TooLarge`]; nothing is changed then.
    pub fn add(&mut self, node: Node) -> Result<(), BuildError> {
        let id = node.id;
        if self.topology.get(id).is_some() {
            return Err(BuildError::Duplicate(format!("node {id}")));
        }
        let topology = self.topology.with(node).map_err(|_| BuildError::TooLarge {
            what: "the topology",
            wanted: self.topology.len() as u64 + 1,
            max: crate::MAX_NODES as u64,
        })?;
        equal_weights(&topology, "Memento")?;
        if let Some(bucket) = self.removed.pop() {
            self.replaced.remove(&bucket);
            self.buckets[bucket as usize] = id;
        } else {
            self.buckets.push(id);
        }
        self.topology = topology;
        self.reindex();
        Ok(())
    }

    /// The node of each bucket; for a removed bucket, the node that was there.
    pub fn buckets(&self) -> &[u64] {
        &self.buckets
    }

    /// The removed buckets, oldest first.
    pub fn removals(&self) -> &[u32] {
        &self.removed
    }

    /// The nodes as they are now.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    fn working(&self) -> u32 {
        (self.buckets.len() - self.removed.len()) as u32
    }

    fn reindex(&mut self) {
        let ids = &self.topology.members().ids;
        let index = |id: &u64| ids.binary_search(id).map_or(u16::MAX, |index| index as u16);
        self.indices = self.buckets.iter().map(index).collect();
    }

    fn locate(&self, hash: u64) -> u16 {
        let buckets = NonZeroU32::new(self.buckets.len() as u32).unwrap_or(NonZeroU32::MIN);
        let mut bucket = jump(hash, buckets);
        if self.removed.is_empty() {
            return self.indices[bucket as usize];
        }
        // Ends: `next` is below `left`, and the bucket it leads to is working or was removed when
        // fewer than `left` were left, so `left` falls in each turn.
        while let Some(&left) = self.replaced.get(&bucket) {
            // Where the key goes among those that were left when its bucket was removed; one of
            // these that had been removed before stands for the bucket that replaced it.
            let mut next = hash::scale(hash::retry(hash, u64::from(bucket)), left.into()) as u32;
            // Ends: no two removals left the same number of buckets, so no bucket is met twice; the
            // first one is below `left`, and none that follows is.
            while let Some(&earlier) = self.replaced.get(&next).filter(|&&after| after >= left) {
                next = earlier;
            }
            bucket = next;
        }
        self.indices[bucket as usize]
    }
}

impl Partitioner for Memento {
    fn owner(&self, key: &[u8]) -> u64 {
        self.topology.members().ids[usize::from(self.locate(hash::key(key)))]
    }

    fn owners(&self, key: &[u8], n: usize) -> Owners {
        let members = self.topology.members();
        let locate = |hash| self.locate(hash);
        spread::select(members, n, &Probes { members, hash: hash::key(key), locate })
    }
}
