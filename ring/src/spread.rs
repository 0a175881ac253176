//! Choosing replicas from an order of candidates so that they share as little fate as possible.
//!
//! In rounds: in round r every zone may give its r-th replica, in the candidates' order; first
//! the zones that have a rack without a replica, from such a rack, then the others. Each pass is a
//! greedy choice under limits that only loosen, so a node that joins, leaves or changes weight
//! displaces at most one other in a list: that is what keeps movement at its minimum with zones and
//! racks, and a property test holds it to that. (Choosing a rack inside a zone whose turn it is,
//! instead of a pass of its own, moves up to an eighth more.)

use std::ops::ControlFlow;

use crate::owners::{Degraded, MAX_REPLICAS, Owners};
use crate::topology::Members;

/// Offers candidates (node indices, possibly repeated) in order of preference until told to stop.
pub(crate) trait Candidates {
    fn offer(&self, take: &mut impl FnMut(u16) -> ControlFlow<()>);
}

struct Picks<'m> {
    members: &'m Members,
    picked: [u16; MAX_REPLICAS],
    len: usize,
}

/// The preference list of `wanted` replicas.
#[inline]
pub(crate) fn select(members: &Members, wanted: usize, candidates: &impl Candidates) -> Owners {
    let size = wanted.min(members.len()).min(MAX_REPLICAS);
    let mut picks = Picks { members, picked: [0; MAX_REPLICAS], len: 0 };
    if members.zone_nodes.len() >= size {
        picks.one_per_zone(size, candidates);
    } else if members.racks == 1 {
        picks.any(size, candidates);
    } else {
        picks.rounds(size, candidates);
    }
    picks.finish(wanted)
}

impl Picks<'_> {
    fn chosen(&self) -> &[u16] {
        &self.picked[..self.len]
    }

    fn take(&mut self, node: u16, size: usize) -> ControlFlow<()> {
        self.picked[self.len] = node;
        self.len += 1;
        if self.len == size { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// There are enough zones for every replica to have its own.
    #[inline]
    fn one_per_zone(&mut self, size: usize, candidates: &impl Candidates) {
        if size == 0 {
            return;
        }
        let zone = &*self.members.zone;
        if self.members.zone_nodes.len() <= 64 {
            // Whether a candidate is new to its zone cannot be predicted: no branch on it.
            let (mut seen, mut len) = (0_u64, 0);
            candidates.offer(&mut |node| {
                let bit = 1 << (zone[usize::from(node)] % 64);
                self.picked[len % MAX_REPLICAS] = node;
                len += usize::from(seen & bit == 0);
                seen |= bit;
                if len == size { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            self.len = len;
            return;
        }
        let mut zones = [0_u16; MAX_REPLICAS];
        candidates.offer(&mut |node| {
            let of_node = zone[usize::from(node)];
            if zones[..self.len].contains(&of_node) {
                return ControlFlow::Continue(());
            }
            zones[self.len] = of_node;
            self.take(node, size)
        });
    }

    /// No zones and no racks: the first `size` different nodes.
    fn any(&mut self, size: usize, candidates: &impl Candidates) {
        candidates.offer(&mut |node| {
            if self.chosen().contains(&node) {
                return ControlFlow::Continue(());
            }
            self.take(node, size)
        });
    }

    fn rounds(&mut self, size: usize, candidates: &impl Candidates) {
        let mut round = 0;
        // Ends: `round` grows to the number of nodes.
        while self.len < size && usize::from(round) < self.members.len() {
            round += 1;
            for fresh_only in [true, false] {
                let mut open = self.open(round, fresh_only);
                if open == 0 || self.len == size {
                    continue;
                }
                candidates.offer(&mut |node| {
                    if !self.fits(node, round, fresh_only) {
                        return ControlFlow::Continue(());
                    }
                    open -= 1;
                    match self.take(node, size) {
                        ControlFlow::Continue(()) if open > 0 => ControlFlow::Continue(()),
                        _ => ControlFlow::Break(()),
                    }
                });
            }
        }
    }

    /// How many zones can give a node in this pass.
    fn open(&self, round: u16, fresh_only: bool) -> usize {
        let zones = 0..self.members.zone_nodes.len() as u16;
        let can_give = |zone: &u16| {
            let (nodes, racks) = self.taken(*zone);
            let at = usize::from(*zone);
            nodes < round.min(self.members.zone_nodes[at])
                && !(fresh_only && racks == self.members.zone_racks[at])
        };
        zones.filter(can_give).count()
    }

    /// Nodes chosen in a zone, and different racks among them.
    fn taken(&self, zone: u16) -> (u16, u16) {
        let (mut nodes, mut racks) = (0, 0);
        for (nth, &node) in self.chosen().iter().enumerate() {
            if self.members.zone[usize::from(node)] == zone {
                nodes += 1;
                let seen = self.chosen()[..nth].iter().any(|&other| self.share_rack(other, node));
                racks += u16::from(!seen);
            }
        }
        (nodes, racks)
    }

    fn share_rack(&self, a: u16, b: u16) -> bool {
        self.members.rack[usize::from(a)] == self.members.rack[usize::from(b)]
    }

    fn fits(&self, node: u16, round: u16, fresh_only: bool) -> bool {
        let (nodes, _) = self.taken(self.members.zone[usize::from(node)]);
        let clash = |&other: &u16| other == node || (fresh_only && self.share_rack(other, node));
        nodes < round && !self.chosen().iter().any(clash)
    }

    #[inline]
    fn finish(&self, wanted: usize) -> Owners {
        let mut owners = Owners::empty();
        for &node in self.chosen() {
            owners.push(self.members.ids[usize::from(node)]);
        }
        if self.len < wanted {
            owners.warn(Degraded::FewerNodes { wanted, found: self.len });
        } else if self.members.zone_nodes.len() < self.len {
            self.warn_shared(&mut owners);
        }
        owners
    }

    /// Zones and racks are asked for by naming them.
    fn warn_shared(&self, owners: &mut Owners) {
        let count = |of: &[u16]| {
            let mut seen = [0_u16; MAX_REPLICAS];
            let mut different = 0;
            for &node in self.chosen() {
                let value = of[usize::from(node)];
                if !seen[..different].contains(&value) {
                    seen[different] = value;
                    different += 1;
                }
            }
            different
        };
        let (zones, racks) = (count(&self.members.zone), count(&self.members.rack));
        let replicas = self.len;
        if self.members.names_racks && racks < replicas {
            owners.warn(Degraded::SharedRack { replicas, racks });
        } else if self.members.names_zones && zones < replicas {
            owners.warn(Degraded::SharedZone { replicas, zones });
        }
    }
}
