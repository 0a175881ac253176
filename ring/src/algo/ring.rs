//! The hash ring (Karger et al. 1997).

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::not_empty;
use super::ring_table::{RingTable, point};
use crate::config::RingConfig;
use crate::error::BuildError;
use crate::hash;
use crate::owners::Owners;
use crate::partitioner::Partitioner;
use crate::placement::Placement;
use crate::spread::{self, Candidates};
use crate::topology::Topology;

const MAX_VIRTUAL_NODES: u32 = 65_536;

/// Consistent hashing with virtual nodes and weights: the general-purpose choice.
///
/// Each node stands at `virtual_nodes * weight` points (at least one) of a ring of 2^40 positions;
/// a key belongs to the first point at or after its hash. Point `v` of node `id` stands at the
/// leading 40 bits of XXH3-64 of `id` and `v`, 8 little-endian bytes each; when two nodes share a
/// position the lower id has it.
///
/// A join takes keys only for the joining node and a leave gives away only the leaving node's keys.
/// Cloning costs two reference counts.
///
/// Source: Karger et al., "Consistent hashing and random trees" (STOC 1997); virtual nodes as in
/// Dynamo §4.2.
#[derive(Clone)]
pub struct HashRing {
    topology: Topology,
    table: Arc<RingTable>,
}

impl HashRing {
    /// A ring with the default 160 virtual nodes.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`], [`BuildError::TooLarge`].
    pub fn new(topology: &Topology) -> Result<Self, BuildError> {
        Self::with_config(topology, &RingConfig::default())
    }

    /// A ring laid out as configured.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`], [`BuildError::OutOfRange`], [`BuildError::TooLarge`] for more
    /// points in all than [`MAX_POINTS`](crate::MAX_POINTS).
    pub fn with_config(topology: &Topology, config: &RingConfig) -> Result<Self, BuildError> {
        not_empty(topology)?;
        if !(1..=MAX_VIRTUAL_NODES).contains(&config.virtual_nodes) {
            return Err(BuildError::OutOfRange {
                field: "virtual_nodes",
                value: config.virtual_nodes.into(),
                min: 1,
                max: MAX_VIRTUAL_NODES.into(),
            });
        }
        let points_of = |milli: u32| -> u64 {
            ((u64::from(config.virtual_nodes) * u64::from(milli) + 500) / 1000).max(1)
        };
        let nodes = topology.nodes();
        let count = nodes.iter().map(|node| points_of(node.weight.as_milli())).sum();
        let points = nodes.iter().enumerate().flat_map(|(index, node)| {
            (0..points_of(node.weight.as_milli()))
                .map(move |number| point(hash::pair(node.id, number), index as u16))
        });
        let table = RingTable::new(count, points)?;
        Ok(Self { topology: topology.clone(), table: Arc::new(table) })
    }

    /// The owner of a position, for callers that have hashed the key with [`hash::key`] already.
    #[inline]
    pub fn owner_at(&self, position: u64) -> u64 {
        self.topology.members().ids[usize::from(self.table.owner(position))]
    }

    /// The preference list of a position.
    ///
    /// Walks the ring, so its cost grows with the number of points passed: about one for each
    /// replica, more where a zone has few points among many.
    #[inline]
    pub fn owners_at(&self, position: u64, n: usize) -> Owners {
        spread::select(self.topology.members(), n, &Walk { table: &self.table, position })
    }

    /// The nodes that the ring was built from.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// How many points the ring has.
    pub fn points(&self) -> usize {
        self.table.len()
    }

    /// The nodes that own no position and so get no key, in the order of ids: a warning to report.
    ///
    /// Each node has a point of its own, so this happens only where all points of a node stand at
    /// positions of nodes with lower ids: rings of one point a node and tens of thousands of nodes.
    pub fn without_keys(&self) -> Vec<u64> {
        let ids = &self.topology.members().ids;
        let owns = self.has_points();
        ids.iter().zip(owns).filter(|(_, owns)| !owns).map(|(&id, _)| id).collect()
    }

    /// For each node of the topology, whether it owns a position.
    pub(crate) fn has_points(&self) -> Vec<bool> {
        let mut owns = vec![false; self.topology.len()];
        self.table.ends().for_each(|(_, node)| owns[usize::from(node)] = true);
        owns
    }

    /// The memory of points and table, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.table.bytes()
    }

    /// Which ranges of positions are held by which `n` nodes: what plans are made from.
    pub fn placement(&self, n: usize) -> Placement {
        let ranges = self.table.ends().map(|(end, _)| (end, self.owners_at(end, n)));
        Placement::new(self.topology.epoch(), n, ranges.collect())
    }

    /// The points in the order of their positions: the last position that each owns, and its node.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, u64)> {
        let ids = &self.topology.members().ids;
        self.table.ends().map(|(end, node)| (end, ids[usize::from(node)]))
    }

    pub(crate) fn walk(&self, position: u64) -> impl Iterator<Item = u16> {
        self.table.walk(position)
    }
}

struct Walk<'r> {
    table: &'r RingTable,
    position: u64,
}

impl Candidates for Walk<'_> {
    #[inline]
    fn offer(&self, take: &mut impl FnMut(u16) -> ControlFlow<()>) {
        for node in self.table.walk(self.position) {
            if take(node).is_break() {
                return;
            }
        }
    }
}

impl Partitioner for HashRing {
    #[inline]
    fn owner(&self, key: &[u8]) -> u64 {
        self.owner_at(hash::key(key))
    }

    #[inline]
    fn owners(&self, key: &[u8], n: usize) -> Owners {
        self.owners_at(hash::key(key), n)
    }
}

impl fmt::Debug for HashRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashRing")
            .field("epoch", &self.topology.epoch())
            .field("nodes", &self.topology.len())
            .field("points", &self.points())
            .finish_non_exhaustive()
    }
}
