//! Maglev hashing (Eisenbud et al., NSDI 2016).

use std::sync::Arc;

use super::not_empty;
use super::probe::Probes;
use crate::error::BuildError;
use crate::hash;
use crate::owners::Owners;
use crate::partitioner::Partitioner;
use crate::spread;
use crate::topology::Topology;

/// The largest Maglev table, in entries of two bytes.
pub const MAX_MAGLEV_TABLE: u32 = 1 << 26;

/// Table sizes that [`Maglev::new`] chooses from: the paper's two, and one more for large fleets.
const SIZES: [u32; 3] = [65_537, 655_373, 6_553_621];

/// A lookup table that nodes fill in turns, each in an order of its own: a near-perfectly even
/// load and the cheapest lookup, for a little more movement than the minimum.
///
/// Node `id` visits slots `(offset + j * skip) mod M`, where `offset` is the XXH3-64 of `id` and 0
/// modulo `M` and `skip` that of `id` and 1 modulo `M - 1`, plus 1. With weights, a node takes
/// `weight / largest weight` slots a turn. A key uses the slot `floor(hash * M / 2^64)`.
///
/// Source: Eisenbud et al., "Maglev: a fast and reliable software network load balancer" (NSDI
/// 2016), §3.4.
#[derive(Clone, Debug)]
pub struct Maglev {
    topology: Topology,
    table: Arc<[u16]>,
}

impl Maglev {
    /// A table of the smallest of 65,537, 655,373 and 6,553,621 entries that has at least 100 for
    /// each node. The size is part of the placement: a fleet that grows past 655 or 6,553 nodes
    /// should fix it with [`with_table`](Maglev::with_table) before it gets there.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`].
    pub fn new(topology: &Topology) -> Result<Self, BuildError> {
        let wanted = topology.len() as u64 * 100;
        let size = SIZES.into_iter().find(|&size| u64::from(size) >= wanted);
        Self::with_table(topology, size.unwrap_or(SIZES[2]))
    }

    /// A table of `size` entries, which must be a prime larger than the number of nodes.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`], [`BuildError::NotPrime`], [`BuildError::OutOfRange`] for a size
    /// not above the number of nodes or above [`MAX_MAGLEV_TABLE`].
    pub fn with_table(topology: &Topology, size: u32) -> Result<Self, BuildError> {
        not_empty(topology)?;
        let least = topology.len() as u64 + 1;
        if u64::from(size) < least || size > MAX_MAGLEV_TABLE {
            return Err(BuildError::OutOfRange {
                field: "table size",
                value: size.into(),
                min: least,
                max: MAX_MAGLEV_TABLE.into(),
            });
        }
        if !is_prime(size) {
            return Err(BuildError::NotPrime(size));
        }
        Ok(Self { topology: topology.clone(), table: fill(topology, size).into() })
    }

    /// The owner of a position, for callers that have hashed the key with [`hash::key`] already.
    #[inline]
    pub fn owner_at(&self, position: u64) -> u64 {
        self.topology.members().ids[usize::from(self.locate(position))]
    }

    /// The nodes that own no slot and so get no key, in the order of ids: a warning to report.
    ///
    /// A node gets about `size * weight / all weights` slots, so one whose share is less than one
    /// slot may get none. A larger table or a larger weight gives it keys.
    pub fn without_keys(&self) -> Vec<u64> {
        let ids = &self.topology.members().ids;
        let mut owns = vec![false; ids.len()];
        self.table.iter().for_each(|&node| owns[usize::from(node)] = true);
        ids.iter().zip(owns).filter(|(_, owns)| !owns).map(|(&id, _)| id).collect()
    }

    /// The memory of the table, in bytes.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.table)
    }

    #[inline]
    fn locate(&self, hash: u64) -> u16 {
        self.table[hash::scale(hash, self.table.len() as u64) as usize]
    }
}

fn is_prime(n: u32) -> bool {
    n >= 2 && (2..=n.isqrt()).all(|divisor| !n.is_multiple_of(divisor))
}

fn fill(topology: &Topology, size: u32) -> Vec<u16> {
    struct Turn {
        next: u32,
        skip: u32,
        /// Slots that the node may have by now, in units of a slot times the largest weight.
        credit: u64,
        weight: u64,
    }
    let m = u64::from(size);
    let mut turns: Vec<Turn> = topology
        .nodes()
        .iter()
        .map(|node| Turn {
            next: (hash::pair(node.id, 0) % m) as u32,
            skip: (hash::pair(node.id, 1) % (m - 1) + 1) as u32,
            credit: 0,
            weight: node.weight.as_milli().into(),
        })
        .collect();
    let slot_cost = turns.iter().map(|turn| turn.weight).max().unwrap_or(1);
    let mut table = vec![u16::MAX; size as usize];
    let mut free = size;
    // Ends: the node of the largest weight takes a slot in each turn, so `free` falls.
    loop {
        for (index, turn) in turns.iter_mut().enumerate() {
            turn.credit += turn.weight;
            if turn.credit < slot_cost {
                continue;
            }
            turn.credit -= slot_cost;
            // Ends: the size is prime, so `skip` visits every slot, and one is free.
            while table[turn.next as usize] != u16::MAX {
                turn.next = advance(turn.next, turn.skip, size);
            }
            table[turn.next as usize] = index as u16;
            free -= 1;
            if free == 0 {
                return table;
            }
        }
    }
}

const fn advance(at: u32, skip: u32, size: u32) -> u32 {
    let next = at + skip;
    if next >= size { next - size } else { next }
}

impl Partitioner for Maglev {
    fn owner(&self, key: &[u8]) -> u64 {
        self.owner_at(hash::key(key))
    }

    fn owners(&self, key: &[u8], n: usize) -> Owners {
        let members = self.topology.members();
        let locate = |hash| self.locate(hash);
        spread::select(members, n, &Probes { members, hash: hash::key(key), locate })
    }
}
