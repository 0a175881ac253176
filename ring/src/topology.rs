//! Who is there: nodes with weight, zone and rack, as an immutable value with an epoch.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{TopologyError, WeightError};

/// The most nodes of one topology: node indices are kept in 16 bits, which is what makes a lookup
/// one cache line.
pub const MAX_NODES: usize = 65_535;

/// How much a node takes, as a multiple of a node of weight one: 0.001 to 1000.
///
/// Kept as an integer number of thousandths, so that every process and architecture derives the
/// same placement from it.
///
/// # Example
/// ```
/// use voussoir_ring::Weight;
/// assert_eq!(Weight::ratio(1.5).unwrap().as_milli(), 1500);
/// assert!(Weight::ratio(0.0).is_err());
/// assert!(Weight::ratio(-1.0).is_err());
/// assert!(Weight::ratio(f64::NAN).is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

impl Weight {
    /// The least weight: a thousandth of a normal node.
    pub const MIN: Weight = Weight(1);
    /// A normal node.
    pub const ONE: Weight = Weight(1000);
    /// The largest weight: a thousand normal nodes.
    pub const MAX: Weight = Weight(1_000_000);

    /// A weight in thousandths of a normal node.
    ///
    /// # Errors
    /// [`WeightError`] for zero and for more than [`Weight::MAX`].
    pub fn milli(milli: u32) -> Result<Self, WeightError> {
        if (Self::MIN.0..=Self::MAX.0).contains(&milli) {
            Ok(Self(milli))
        } else {
            Err(WeightError { ratio: f64::from(milli) / 1000.0 })
        }
    }

    /// A weight as a multiple of a normal node, rounded to thousandths.
    ///
    /// # Errors
    /// [`WeightError`] for zero, negative, infinite, not-a-number, and anything that rounds to
    /// less than [`Weight::MIN`] or more than [`Weight::MAX`].
    pub fn ratio(ratio: f64) -> Result<Self, WeightError> {
        let milli = (ratio * 1000.0).round();
        if milli >= f64::from(Self::MIN.0) && milli <= f64::from(Self::MAX.0) {
            Ok(Self(milli as u32))
        } else {
            Err(WeightError { ratio })
        }
    }

    /// The weight in thousandths of a normal node.
    pub const fn as_milli(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

/// A member: an id that is never reused for another node, its weight, and its location.
///
/// # Example
/// ```
/// use voussoir_ring::{Node, Weight};
/// let node = Node::new(7).in_zone("eu-1a").in_rack("r12").weighing(Weight::ratio(2.0).unwrap());
/// assert_eq!(node.zone, "eu-1a");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Node {
    /// The id that lookups answer.
    pub id: u64,
    /// The share of keys relative to the other nodes. Default: one.
    pub weight: Weight,
    /// Large failure domain, such as an availability zone. Empty: zones are not used.
    pub zone: String,
    /// Failure domain inside a zone, such as a rack or a power feed. Empty: racks are not used.
    /// Racks of the same name in different zones are different racks.
    pub rack: String,
}

impl Node {
    /// A node of weight one, in no zone and no rack.
    pub fn new(id: u64) -> Self {
        Self { id, weight: Weight::ONE, zone: String::new(), rack: String::new() }
    }

    /// Sets the weight.
    #[must_use]
    pub fn weighing(mut self, weight: Weight) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the zone.
    #[must_use]
    pub fn in_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = zone.into();
        self
    }

    /// Sets the rack.
    #[must_use]
    pub fn in_rack(mut self, rack: impl Into<String>) -> Self {
        self.rack = rack.into();
        self
    }
}

/// An immutable set of nodes with an epoch. Cloning costs one reference count.
///
/// Nodes are kept in the order of their ids, so the order in which they were listed never matters
/// and two processes with the same set place every key alike. Each change makes a new topology
/// with the next epoch.
///
/// # Example
/// ```
/// use voussoir_ring::{Node, Topology};
/// let before = Topology::new(1, [Node::new(10), Node::new(20)])?;
/// let after = before.with(Node::new(30))?;
/// assert_eq!((after.epoch(), after.len()), (2, 3));
/// # Ok::<(), voussoir_ring::TopologyError>(())
/// ```
#[derive(Clone)]
pub struct Topology {
    epoch: u64,
    members: Arc<Members>,
}

/// The nodes, and their places as small integers for the hot paths.
#[derive(Debug)]
pub(crate) struct Members {
    pub(crate) nodes: Box<[Node]>,
    /// Id of each node, in the order of `nodes`. Invariant: strictly ascending; searched by halves
    /// here and by bounded loads.
    pub(crate) ids: Box<[u64]>,
    /// Zone number of each node.
    pub(crate) zone: Box<[u16]>,
    /// Rack number of each node, unique over all zones.
    pub(crate) rack: Box<[u16]>,
    /// Nodes in each zone.
    pub(crate) zone_nodes: Box<[u16]>,
    /// Racks in each zone.
    pub(crate) zone_racks: Box<[u16]>,
    pub(crate) racks: usize,
    pub(crate) weight_total: u64,
    pub(crate) weights_equal: bool,
    pub(crate) names_zones: bool,
    pub(crate) names_racks: bool,
}

impl Topology {
    /// A topology of these nodes. An empty one is legal; no partitioner can be built from it.
    ///
    /// # Errors
    /// [`TopologyError::DuplicateNode`], [`TopologyError::TooManyNodes`].
    pub fn new(epoch: u64, nodes: impl IntoIterator<Item = Node>) -> Result<Self, TopologyError> {
        let mut nodes: Vec<Node> = nodes.into_iter().take(MAX_NODES + 1).collect();
        if nodes.len() > MAX_NODES {
            return Err(TopologyError::TooManyNodes(nodes.len()));
        }
        nodes.sort_by_key(|node| node.id);
        if let Some(pair) = nodes.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(TopologyError::DuplicateNode(pair[0].id));
        }
        Ok(Self { epoch, members: Arc::new(Members::new(nodes)) })
    }

    /// The number of this version: larger is newer.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The nodes in the order of their ids.
    pub fn nodes(&self) -> &[Node] {
        &self.members.nodes
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.members.nodes.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.members.nodes.is_empty()
    }

    /// How many zones the nodes stand in (nodes without a zone count as one zone together).
    pub fn zones(&self) -> usize {
        self.members.zone_nodes.len()
    }

    /// The node with this id.
    pub fn get(&self, id: u64) -> Option<&Node> {
        self.index(id).map(|index| &self.members.nodes[index])
    }

    /// The share of the keys that weights alone would give to this node, 0 to 1.
    pub fn target_share(&self, id: u64) -> f64 {
        self.get(id).map_or(0.0, |node| {
            f64::from(node.weight.as_milli()) / self.members.weight_total as f64
        })
    }

    /// This topology and one more node, with the next epoch.
    ///
    /// # Errors
    /// [`TopologyError::DuplicateNode`], [`TopologyError::TooManyNodes`],
    /// [`TopologyError::EpochExhausted`].
    pub fn with(&self, node: Node) -> Result<Self, TopologyError> {
        Self::new(self.next_epoch()?, self.nodes().iter().cloned().chain([node]))
    }

    /// This topology less one node, with the next epoch.
    ///
    /// # Errors
    /// [`TopologyError::UnknownNode`], [`TopologyError::EpochExhausted`].
    pub fn without(&self, id: u64) -> Result<Self, TopologyError> {
        self.index(id).ok_or(TopologyError::UnknownNode(id))?;
        let rest = self.nodes().iter().filter(|node| node.id != id).cloned();
        Self::new(self.next_epoch()?, rest)
    }

    /// This topology with the node of the same id replaced (its weight, zone or rack changed),
    /// with the next epoch.
    ///
    /// # Errors
    /// [`TopologyError::UnknownNode`], [`TopologyError::EpochExhausted`].
    pub fn replacing(&self, node: Node) -> Result<Self, TopologyError> {
        let index = self.index(node.id).ok_or(TopologyError::UnknownNode(node.id))?;
        let mut nodes = self.nodes().to_vec();
        nodes[index] = node;
        Self::new(self.next_epoch()?, nodes)
    }

    fn next_epoch(&self) -> Result<u64, TopologyError> {
        self.epoch.checked_add(1).ok_or(TopologyError::EpochExhausted)
    }

    /// Where the node with this id stands in `nodes`, and in all that goes by node.
    fn index(&self, id: u64) -> Option<usize> {
        self.members.ids.binary_search(&id).ok()
    }

    /// For the algorithms, which read it at each lookup.
    pub(crate) fn members(&self) -> &Arc<Members> {
        &self.members
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topology")
            .field("epoch", &self.epoch)
            .field("nodes", &self.nodes())
            .finish_non_exhaustive()
    }
}

impl PartialEq for Topology {
    fn eq(&self, other: &Self) -> bool {
        self.epoch == other.epoch && self.nodes() == other.nodes()
    }
}

impl Members {
    fn new(nodes: Vec<Node>) -> Self {
        let mut zones: HashMap<&str, u16> = HashMap::new();
        let mut racks: HashMap<(u16, &str), u16> = HashMap::new();
        let (mut zone, mut rack) = (Vec::new(), Vec::new());
        let (mut zone_nodes, mut zone_racks) = (Vec::new(), Vec::new());
        for node in &nodes {
            let next = zones.len() as u16;
            let z = *zones.entry(&node.zone).or_insert(next);
            if z == next && usize::from(z) == zone_nodes.len() {
                zone_nodes.push(0);
                zone_racks.push(0);
            }
            let next = racks.len() as u16;
            let r = *racks.entry((z, &node.rack)).or_insert_with(|| {
                zone_racks[usize::from(z)] += 1;
                next
            });
            zone_nodes[usize::from(z)] += 1;
            zone.push(z);
            rack.push(r);
        }
        let racks = racks.len();
        Self {
            ids: nodes.iter().map(|node| node.id).collect(),
            zone: zone.into(),
            rack: rack.into(),
            zone_nodes: zone_nodes.into(),
            zone_racks: zone_racks.into(),
            racks,
            weight_total: nodes.iter().map(|node| u64::from(node.weight.as_milli())).sum(),
            weights_equal: nodes.windows(2).all(|pair| pair[0].weight == pair[1].weight),
            names_zones: nodes.iter().any(|node| !node.zone.is_empty()),
            names_racks: nodes.iter().any(|node| !node.rack.is_empty()),
            nodes: nodes.into(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }
}
