//! Bounded loads: a ring whose nodes take no more than their share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ring::HashRing;
use crate::error::BuildError;
use crate::hash;
use crate::topology::Node;

/// Set in a node's count when the node has left: its count no longer belongs to the total. Never
/// cleared: a node that returns gets a count of its own.
const GONE: u64 = 1 << 63;

fn is_gone(load: &AtomicU64) -> bool {
    load.load(Ordering::Acquire) & GONE != 0
}

/// Consistent hashing with bounded loads: a key goes to the first node from its point on that is
/// not full, and no node ever takes more than `bound` times its fair share, rounded up.
///
/// This counts what is in flight (connections, requests, leases): [`assign`](Bounded::assign)
/// counts one until the returned [`Assignment`] is dropped. A node's capacity is
/// `ceil(bound * total * weight / all weights)`, where `total` counts all that is assigned, the new
/// one included, and all weights are those of present nodes; it holds at every assignment. What was
/// assigned before others ended is not moved.
/// Safe to share between threads; nothing is locked.
///
/// Source: Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads" (SODA 2018).
///
/// # Example
/// ```
/// use voussoir_ring::{Bounded, HashRing, Node, Topology};
/// let ring = HashRing::new(&Topology::new(1, (1..=4).map(Node::new))?)?;
/// let bounded = Bounded::new(ring, 1.25)?;
/// let held: Vec<_> = (0..100).map(|_| bounded.assign(b"one hot key")).collect();
/// assert!(bounded.stats().loads.iter().all(|&(_, load)| load <= 32)); // ceil(1.25 * 100 / 4)
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Bounded {
    ring: HashRing,
    /// The bound in thousandths.
    bound_milli: u64,
    total: Arc<AtomicU64>,
    loads: Box<[Arc<AtomicU64>]>,
    /// Weight of each node in thousandths; 0 for a node without a point, which no walk offers.
    weights: Box<[u64]>,
    /// Sum of `weights`. Invariant: above 0.
    weight_total: u64,
}

/// Assigned load per node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoundedStats {
    /// What is assigned to the present nodes of all views, and what is being placed.
    pub total: u64,
    /// Each node of this view and what is assigned to it, in the order of ids; a node that has left
    /// keeps what it has.
    pub loads: Vec<(u64, u64)>,
}

/// One unit of load on a node. Dropping the value gives the unit back.
#[must_use = "the load is given back when the assignment is dropped"]
pub struct Assignment {
    node: u64,
    /// `None` when every node of the ring it came from had left.
    counted: Option<(Arc<AtomicU64>, Arc<AtomicU64>)>,
}

impl Bounded {
    /// Bounds the loads on a ring: `bound` is above 1 and at most 100, in steps of a thousandth.
    /// Close to 1 is even but moves more keys; 1.25 is a usual choice.
    ///
    /// # Errors
    /// [`BuildError::LoadBound`].
    pub fn new(ring: HashRing, bound: f64) -> Result<Self, BuildError> {
        let milli = (bound * 1000.0).round();
        if !(1001.0..=100_000.0).contains(&milli) {
            return Err(BuildError::LoadBound(bound));
        }
        let loads = (0..ring.topology().len()).map(|_| Arc::default()).collect();
        Ok(Self::with_loads(ring, milli as u64, Arc::default(), loads))
    }

    /// The same loads over another ring. Nodes that stay keep their counts; nodes that left drop
    /// out of the total; a node that returns after it had left starts at zero. Assignments that
    /// were made before are still given back to the counts they were taken from.
    ///
    /// The view that this was called on stays usable: it assigns to those of its nodes that have
    /// not left.
    #[must_use]
    pub fn over(&self, ring: HashRing) -> Self {
        let old = self.ring.topology().members();
        let ids = &ring.topology().members().ids;
        for (id, load) in old.ids.iter().zip(&self.loads) {
            if ids.binary_search(id).is_err() {
                let before = load.fetch_or(GONE, Ordering::AcqRel);
                if before & GONE == 0 {
                    self.total.fetch_sub(before, Ordering::AcqRel);
                }
            }
        }
        let keep = |id: &u64| {
            let load = old.ids.binary_search(id).ok().map(|at| &self.loads[at]);
            load.filter(|load| !is_gone(load)).map_or_else(Arc::default, Arc::clone)
        };
        let loads = ids.iter().map(keep).collect();
        Self::with_loads(ring, self.bound_milli, self.total.clone(), loads)
    }

    fn with_loads(
        ring: HashRing,
        bound_milli: u64,
        total: Arc<AtomicU64>,
        loads: Box<[Arc<AtomicU64>]>,
    ) -> Self {
        let nodes = ring.topology().nodes().iter().zip(ring.has_points());
        let weight =
            |(node, owns): (&Node, bool)| u64::from(node.weight.as_milli()) * u64::from(owns);
        let weights: Box<[u64]> = nodes.map(weight).collect();
        let weight_total = weights.iter().sum();
        Self { ring, bound_milli, total, loads, weights, weight_total }
    }

    /// The node for one more unit of work on this key.
    ///
    /// Lock-free: it ends after at most one pass over the ring more than the number of assignments
    /// and calls of [`over`](Bounded::over) that other threads complete meanwhile. When every node
    /// of this view has left, the assignment names the key's owner and counts nothing.
    pub fn assign(&self, key: &[u8]) -> Assignment {
        let position = hash::key(key);
        let uncounted = || Assignment { node: self.ring.owner_at(position), counted: None };
        self.assign_at(position, |_| true).unwrap_or_else(uncounted)
    }

    /// The node for one more unit of work on this key, among those that `admits` lets have it: the
    /// first of them from the key's point on that is not full. `None` if it admits no node that is
    /// present.
    ///
    /// The bound counts all nodes. Only if it leaves no room at those admitted, each of them takes
    /// up to `bound` times its share of the total as if there were no others. `admits` is asked
    /// once for each node of the ring, without a lock.
    pub fn assign_where(&self, key: &[u8], admits: impl Fn(u64) -> bool) -> Option<Assignment> {
        let ids = &self.ring.topology().members().ids;
        // Asked before the rest: what it answers may change, and it may panic.
        let is_admitted: Box<[bool]> = ids.iter().map(|&id| admits(id)).collect();
        self.assign_at(hash::key(key), |at| is_admitted[at])
    }

    /// Assigns to one of the nodes that `admits` accepts; the answer for a node must not change.
    fn assign_at(&self, position: u64, admits: impl Fn(usize) -> bool) -> Option<Assignment> {
        let members = self.ring.topology().members();
        // Counted before it is placed, so that at any time the loads of present nodes and the
        // assignments being placed add up to at most `total`.
        self.total.fetch_add(1, Ordering::AcqRel);
        // The weight of all nodes of this view, gone ones too, makes capacities too small rather
        // than too large, and the common case asks for no node whether it has gone.
        let mut weight = self.weight_total;
        // Ends: from the second pass on, `weight` is that of present admitted nodes alone. Their
        // capacities then add up to more than `total`, and their loads to less, so at least one
        // node has room when the pass begins. The pass misses it only if another thread took that
        // room or marked a node as gone: each failed pass is another thread's completed step.
        loop {
            let total = self.total.load(Ordering::Acquire);
            for node in self.ring.walk(position) {
                let at = usize::from(node);
                if admits(at) && self.try_place(at, self.capacity(at, total, weight)) {
                    let counted = Some((self.loads[at].clone(), self.total.clone()));
                    return Some(Assignment { node: members.ids[at], counted });
                }
            }
            weight = self.present_weight(&admits);
            if weight == 0 {
                self.total.fetch_sub(1, Ordering::AcqRel);
                return None;
            }
        }
    }

    /// The weight of the admitted nodes of this view that have not left, in thousandths.
    fn present_weight(&self, admits: impl Fn(usize) -> bool) -> u64 {
        let nodes = self.weights.iter().zip(&self.loads).enumerate();
        let present = nodes.filter(|(at, (_, load))| admits(*at) && !is_gone(load));
        present.map(|(_, (weight, _))| weight).sum()
    }

    /// Capacity of `node` when the nodes that share a load of `total` weigh `all` thousandths.
    fn capacity(&self, node: usize, total: u64, all: u64) -> u64 {
        let weight = u128::from(self.weights[node]);
        let share = u128::from(self.bound_milli) * u128::from(total) * weight;
        share.div_ceil(1000 * u128::from(all)) as u64
    }

    fn try_place(&self, node: usize, capacity: u64) -> bool {
        let below = |load| (load < capacity).then_some(load + 1);
        self.loads[node].fetch_update(Ordering::AcqRel, Ordering::Relaxed, below).is_ok()
    }

    /// Assigned load per node, now. Counts that change during the call may not add up to the total.
    pub fn stats(&self) -> BoundedStats {
        let loads = self.loads.iter().map(|load| load.load(Ordering::Acquire) & !GONE);
        let ids = self.ring.topology().members().ids.iter().copied();
        BoundedStats { total: self.total.load(Ordering::Acquire), loads: ids.zip(loads).collect() }
    }

    /// The ring underneath.
    pub fn ring(&self) -> &HashRing {
        &self.ring
    }
}

impl fmt::Debug for Bounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded")
            .field("ring", &self.ring)
            .field("bound_milli", &self.bound_milli)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Assignment {
    /// The node that took the work.
    pub fn node(&self) -> u64 {
        self.node
    }
}

impl Drop for Assignment {
    fn drop(&mut self) {
        if let Some((load, total)) = &self.counted
            && load.fetch_sub(1, Ordering::AcqRel) & GONE == 0
        {
            total.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl fmt::Debug for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assignment").field("node", &self.node).finish_non_exhaustive()
    }
}
