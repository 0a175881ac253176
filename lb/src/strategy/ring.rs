//! Consistent hashing, from `voussoir-ring`.

use std::sync::Arc;

use voussoir_ring::{Bounded, HashRing, Maglev, Node, Partitioner, Topology, Weight};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::sampler::Sampler;
use super::{Group, Member, Select, Selection, Strategy, previous_as};
use crate::context::Context;
use crate::random::Random;

/// Maglev hashing of [`Context::key`]: even loads, and few keys move when the set changes.
///
/// Endpoints are placed by the hash of their names, so every process has the same table. Without a
/// key the choice is random.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct MaglevHash;

/// Consistent hashing of [`Context::key`] with bounded loads: an endpoint that holds `bound` times
/// its fair share of the picks in flight passes further ones on to the next on the ring.
///
/// Without a key the choice is random, and its load is not counted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BoundedHash {
    /// Multiple of the fair share. Values below 1.001 or above 100 are cut to these. Default 1.25.
    pub bound: f64,
}

impl Default for BoundedHash {
    fn default() -> Self {
        Self { bound: 1.25 }
    }
}

impl BoundedHash {
    /// Bounds the load to `bound` times the fair share.
    pub fn new(bound: f64) -> Self {
        Self { bound }
    }
}

/// Further hashes of a key that Maglev looks up to find an endpoint that is open.
const MAX_TRIES: u64 = 20;

#[derive(Debug)]
struct Placed {
    /// `None` if the weights cannot be placed; then the choice is random.
    table: Option<Table>,
    /// Name hash and position of each member, in the order of hashes.
    positions: Box<[(u64, usize)]>,
    fallback: Sampler,
}

#[derive(Debug)]
enum Table {
    Maglev(Maglev),
    Bounded(Bounded),
}

fn topology(members: &[Member]) -> Option<Topology> {
    let largest = members.iter().map(|member| member.weight).max()?;
    let node = |member: &Member| {
        // Ratios matter only. The heaviest weighs 1, and nobody less than a thousandth.
        let milli = u64::from(member.weight) * 1_000 / u64::from(largest);
        let weight = Weight::milli(milli.max(1) as u32).ok()?;
        Some(Node::new(member.endpoint.name_hash()).weighing(weight))
    };
    let nodes: Option<Vec<Node>> = members.iter().map(node).collect();
    Topology::new(1, nodes?).ok()
}

impl Placed {
    fn new(members: &[Member], table: Option<Table>) -> Self {
        let hash = |(at, member): (usize, &Member)| (member.endpoint.name_hash(), at);
        let mut positions: Box<[_]> = members.iter().enumerate().map(hash).collect();
        positions.sort_unstable();
        Self { table, positions, fallback: Sampler::new(members) }
    }

    fn position(&self, node: u64) -> Option<usize> {
        let at = self.positions.binary_search_by_key(&node, |&(hash, _)| hash).ok()?;
        Some(self.positions[at].1)
    }
}

impl Strategy for MaglevHash {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        let maglev = topology(group.members).and_then(|topology| Maglev::new(&topology).ok());
        Arc::new(Placed::new(group.members, maglev.map(Table::Maglev)))
    }

    fn is_keyed(&self) -> bool {
        true
    }
}

impl Strategy for BoundedHash {
    fn compile(
        &self,
        group: Group<'_>,
        previous: Option<&dyn Select>,
        _: &Random,
    ) -> Arc<dyn Select> {
        let ring = topology(group.members).and_then(|topology| HashRing::new(&topology).ok());
        let before = previous_as::<Placed>(previous).and_then(|placed| match &placed.table {
            Some(Table::Bounded(bounded)) => Some(bounded),
            _ => None,
        });
        let bounded = ring.and_then(|ring| match before {
            // The loads go on.
            Some(before) => Some(before.over(ring)),
            None => Bounded::new(ring, self.bound.clamp(1.001, 100.0)).ok(),
        });
        Arc::new(Placed::new(group.members, bounded.map(Table::Bounded)))
    }

    fn is_keyed(&self) -> bool {
        true
    }
}

impl Select for Placed {
    fn select(&self, _: &[Member], ctx: &Context<'_>, _: u64, random: &Random) -> Selection {
        let placed = match (&self.table, ctx.key) {
            (Some(Table::Maglev(maglev)), Some(key)) => {
                self.position(maglev.owner(key)).map(Selection::new)
            }
            (Some(Table::Bounded(bounded)), Some(key)) => {
                let assignment = bounded.assign(key);
                let index = self.position(assignment.node());
                index.map(|index| Selection::assigned(index, assignment))
            }
            _ => None,
        };
        let draw = || Selection::new(self.fallback.draw(random.u64() as u32, random));
        placed.unwrap_or_else(draw)
    }

    /// Maglev looks up further hashes of the key. The bounded hash goes on along its ring, and
    /// counts what it finds there: the bound holds while an endpoint refuses.
    fn select_other(
        &self,
        _: &[Member],
        ctx: &Context<'_>,
        _: u64,
        _: &Random,
        is_open: &dyn Fn(usize) -> bool,
    ) -> Option<Selection> {
        let open = |node: u64| self.position(node).filter(|&index| is_open(index));
        match (self.table.as_ref()?, ctx.key?) {
            (Table::Maglev(maglev), key) => {
                // The seed 0 is the hash that chose first.
                let found = |seed| open(maglev.owner_at(xxh3_64_with_seed(key, seed)));
                (1..=MAX_TRIES).find_map(found).map(Selection::new)
            }
            (Table::Bounded(bounded), key) => {
                let assignment = bounded.assign_where(key, |node| open(node).is_some())?;
                let index = self.position(assignment.node())?;
                Some(Selection::assigned(index, assignment))
            }
        }
    }
}
