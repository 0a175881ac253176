//! Which ranges of positions are held by which nodes.

use crate::error::{BuildError, PlanError};
use crate::hash;
use crate::owners::Owners;
use crate::partitioner::Partitioner;
use crate::topology::Topology;

/// The most fixed slots of [`Placement::slots`].
pub const MAX_SLOTS: u32 = 1 << 20;

/// Positions from `start` to `end`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HashRange {
    /// The first position.
    pub start: u64,
    /// The last position.
    pub end: u64,
}

impl HashRange {
    /// Whether the position lies inside.
    pub const fn contains(self, position: u64) -> bool {
        self.start <= position && position <= self.end
    }

    /// The share of all positions, 0 to 1.
    pub fn share(self) -> f64 {
        (self.end - self.start) as f64 / u64::MAX as f64
    }
}

/// All positions cut into ranges, each with its preference list: what a partitioner says about
/// every key at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    epoch: u64,
    replicas: usize,
    /// The last position of each range, ascending; the last one is `u64::MAX`.
    ends: Vec<u64>,
    owners: Vec<Owners>,
}

impl Placement {
    /// From the last position of each range. Positions after the last one belong to the first
    /// range, as on a ring.
    pub(crate) fn new(epoch: u64, replicas: usize, ranges: Vec<(u64, Owners)>) -> Self {
        let mut placement =
            Self { epoch, replicas, ends: Vec::new(), owners: Vec::with_capacity(ranges.len()) };
        let wrapped = ranges.first().map(|&(_, owners)| (u64::MAX, owners));
        for (end, owners) in ranges.into_iter().chain(wrapped) {
            match (placement.ends.last_mut(), placement.owners.last()) {
                (Some(last), _) if *last == u64::MAX => break,
                (Some(last), Some(held)) if *held == owners => *last = end,
                _ => {
                    placement.ends.push(end);
                    placement.owners.push(owners);
                }
            }
        }
        placement
    }

    /// The keyspace cut into a fixed number of equal slots, each placed by any partitioner: how
    /// algorithms without ranges of their own (jump, Maglev, rendezvous, Memento) carry data. The
    /// slot of a key is [`slot_of`]; slot `s` is placed as the key of its number, 4 little-endian
    /// bytes.
    ///
    /// # Errors
    /// [`BuildError::OutOfRange`] for no slot or more than [`MAX_SLOTS`].
    pub fn slots(
        partitioner: &dyn Partitioner,
        epoch: u64,
        slots: u32,
        replicas: usize,
    ) -> Result<Self, PlanError> {
        if !(1..=MAX_SLOTS).contains(&slots) {
            return Err(PlanError::Build(BuildError::OutOfRange {
                field: "slots",
                value: slots.into(),
                min: 1,
                max: MAX_SLOTS.into(),
            }));
        }
        let end = |slot: u32| {
            let next = (u128::from(slot) + 1) << 64;
            (next.div_ceil(u128::from(slots)) - 1) as u64
        };
        let place = |slot: u32| partitioner.owners(&slot.to_le_bytes(), replicas);
        Ok(Self::new(epoch, replicas, (0..slots).map(|slot| (end(slot), place(slot))).collect()))
    }

    /// The epoch of the topology behind it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many replicas were asked for.
    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// The preference list of a position.
    pub fn owners_at(&self, position: u64) -> Owners {
        let at = self.ends.partition_point(|&end| end < position);
        self.owners.get(at).copied().unwrap_or_default()
    }

    /// The ranges in order, neighbours with the same list joined.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = (HashRange, Owners)> {
        self.ends.iter().enumerate().map(|(at, &end)| {
            let start = if at == 0 { 0 } else { self.ends[at - 1] + 1 };
            (HashRange { start, end }, self.owners[at])
        })
    }

    /// The nodes of `topology` that hold nothing, in the order of ids: a warning to report. They
    /// are more where there are fewer ranges or slots than nodes, or weights differ by much.
    pub fn without_keys(&self, topology: &Topology) -> Vec<u64> {
        let holders: std::collections::HashSet<u64> =
            self.owners.iter().flatten().copied().collect();
        topology.nodes().iter().map(|node| node.id).filter(|id| !holders.contains(id)).collect()
    }

    /// Nodes and the share of all keys that each holds a replica of, in the order of ids.
    pub fn shares(&self) -> Vec<(u64, f64)> {
        let mut shares = std::collections::BTreeMap::new();
        for (range, owners) in self.ranges() {
            for &id in &owners {
                *shares.entry(id).or_insert(0.0) += range.share();
            }
        }
        shares.into_iter().collect()
    }
}

/// The slot of a key among `slots`, as [`Placement::slots`] cuts them.
pub fn slot_of(key: &[u8], slots: u32) -> u32 {
    hash::scale(hash::key(key), slots.into()) as u32
}
