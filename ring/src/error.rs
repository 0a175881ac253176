//! One small error per surface. Everything in this crate is local and all-or-nothing: an error
//! always means that nothing was changed.

use thiserror::Error;

/// Why a set of nodes is not a topology. The topology it was asked of is unchanged; the same call
/// fails again until its input is put right.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// Two nodes have the same id.
    #[error("node {0} is listed twice")]
    DuplicateNode(u64),
    /// The node to remove or to change is not a member.
    #[error("node {0} is not a member")]
    UnknownNode(u64),
    /// More nodes than [`MAX_NODES`](crate::MAX_NODES).
    #[error("{0} nodes are more than the {max} supported", max = crate::MAX_NODES)]
    TooManyNodes(usize),
    /// The epoch counter is at its end, so the next topology could not be told from this one.
    #[error("the epoch counter is exhausted")]
    EpochExhausted,
    /// The weight is outside [`Weight::MIN`](crate::Weight::MIN) to
    /// [`Weight::MAX`](crate::Weight::MAX).
    #[error(transparent)]
    Weight(#[from] WeightError),
}

/// A weight that cannot be one: zero, negative, not a number, or absurdly small or large.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error("weight {ratio} is outside 0.001..=1000")]
pub struct WeightError {
    /// The requested weight, as a multiple of a node of weight one.
    pub ratio: f64,
}

/// Why a partitioner could not be built. Nothing was built; the same call fails again until the
/// topology or the configuration is changed.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no node to own anything.
    #[error("a partitioner needs at least one node")]
    NoNodes,
    /// The algorithm has no notion of weight and the nodes' weights differ.
    #[error("{algorithm} treats all nodes alike, but their weights differ")]
    UnequalWeights {
        /// The algorithm's name.
        algorithm: &'static str,
    },
    /// A configured number is outside its documented range.
    #[error("{field} is {value}, outside {min}..={max}")]
    OutOfRange {
        /// The configuration field.
        field: &'static str,
        /// The rejected value.
        value: u64,
        /// The least that is accepted.
        min: u64,
        /// The most that is accepted.
        max: u64,
    },
    /// The Maglev table size is not a prime, without which a node's preferences do not visit every
    /// slot.
    #[error("a Maglev table needs a prime size, and {0} is not one")]
    NotPrime(u32),
    /// Virtual nodes or table entries beyond the named limit.
    #[error("{what} needs {wanted} entries, more than {max}")]
    TooLarge {
        /// The table that would grow too large.
        what: &'static str,
        /// How many entries it would take.
        wanted: u64,
        /// The limit.
        max: u64,
    },
    /// The bound on load is not a number above one.
    #[error("a load bound must be above 1 and at most 100, not {0}")]
    LoadBound(f64),
    /// Two points, slots or servers claim the same place.
    #[error("{0} is given twice")]
    Duplicate(String),
    /// A slot or token that belongs to no node.
    #[error("slot {0} belongs to no node")]
    Unassigned(u32),
    /// A node id that was used is not part of the membership.
    #[error("node {0} is not a member")]
    UnknownNode(u64),
    /// The last node cannot be removed: something must own the keys.
    #[error("the last node cannot be removed")]
    LastNode,
}

/// Why a range map could not be changed. The map is unchanged; retrying needs other arguments or a
/// newer map.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum RangeError {
    /// No range has this id (it may have been split or merged away).
    #[error("no range has id {0}")]
    UnknownRange(u64),
    /// A split at the start of a range would leave an empty range.
    #[error("range {0} already starts at this key")]
    SplitAtStart(u64),
    /// The key is longer than [`MAX_KEY_BYTES`](crate::range::MAX_KEY_BYTES).
    #[error("a boundary of {0} bytes is longer than {max}", max = crate::range::MAX_KEY_BYTES)]
    KeyTooLong(usize),
    /// The map has [`MAX_RANGES`](crate::range::MAX_RANGES) ranges.
    #[error("the map already has {max} ranges", max = crate::range::MAX_RANGES)]
    TooManyRanges,
    /// Only ranges held by the same nodes in the same order can be merged: move one first.
    #[error("ranges {left} and {right} are held by different nodes")]
    OwnersDiffer {
        /// The range on the left.
        left: u64,
        /// The range on the right.
        right: u64,
    },
    /// The range is the last one, so there is nothing to its right to merge with.
    #[error("range {0} has no right neighbour")]
    NoNeighbour(u64),
    /// A range needs at least one owner, each named once.
    #[error("a range needs at least one owner, each named once")]
    BadOwners,
    /// The epoch counter is at its end, so the next map could not be told from this one.
    #[error("the epoch counter is exhausted")]
    EpochExhausted,
}

/// Why a geographic map could not be built. Nothing was built.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GeoError {
    /// No region was given.
    #[error("a geographic map needs at least one region")]
    NoRegions,
    /// Two regions have the same name.
    #[error("region {0:?} is given twice")]
    DuplicateRegion(String),
    /// A fallback, a default or a lookup names a region that does not exist.
    #[error("there is no region {0:?}")]
    UnknownRegion(String),
    /// More regions than [`MAX_REGIONS`](crate::geo::MAX_REGIONS).
    #[error("{0} regions are more than {max}", max = crate::geo::MAX_REGIONS)]
    TooManyRegions(usize),
    /// The region and all of its fallbacks are marked as down.
    #[error("region {0:?} and all its fallbacks are down")]
    AllDown(String),
}

/// Why a plan could not be made. Nothing was started.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The two placements were asked for different numbers of replicas; change the number and the
    /// topology in two plans.
    #[error("the placements keep {from} and {to} replicas")]
    ReplicasDiffer {
        /// Replicas before.
        from: usize,
        /// Replicas after.
        to: usize,
    },
    /// More changed ranges than [`MAX_CHANGES`](crate::MAX_CHANGES).
    #[error("the plan has {0} changed ranges, more than {max}", max = crate::MAX_CHANGES)]
    TooManyChanges(usize),
    /// A field of the configuration is out of its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Slots or replicas outside their documented range.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// A topology that is not newer than the one in use. Nothing was published; read the current one
/// and build on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("epoch {offered} is not newer than the current epoch {current}")]
pub struct StaleEpoch {
    /// The epoch in use.
    pub current: u64,
    /// The epoch that was offered.
    pub offered: u64,
}

/// A field of a configuration is out of its range. Nothing was built; mend the field.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The name of the field.
    pub field: &'static str,
    /// The rule that the field violates.
    pub rule: &'static str,
}

impl ConfigError {
    pub(crate) const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }
}

/// Only sketches of the same configuration can be merged. Neither was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the sketches are configured differently")]
pub struct SketchesDiffer;
