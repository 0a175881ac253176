//! The dots that a replica has seen.

use std::collections::BTreeSet;

use crate::version::{Actor, Dot, VersionVector};

/// A set of dots: for each actor all up to a counter, and single ones above it, which arrived
/// before their predecessors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DotContext {
    pub(super) vector: VersionVector,
    /// Invariant: of each actor, every dot lies at least two above its counter in `vector`.
    pub(super) cloud: BTreeSet<Dot>,
}

impl DotContext {
    /// No dots.
    pub const fn new() -> Self {
        Self { vector: VersionVector::new(), cloud: BTreeSet::new() }
    }

    /// Whether the dot is in the set.
    pub fn contains(&self, dot: Dot) -> bool {
        self.vector.contains(dot) || self.cloud.contains(&dot)
    }

    /// Adds a dot. One with an invalid counter ([`Dot::is_valid`]) is not added.
    pub fn insert(&mut self, dot: Dot) {
        if !dot.is_valid() || self.contains(dot) {
            return;
        }
        if dot.counter > self.vector.get(dot.actor) + 1 {
            self.cloud.insert(dot);
            return;
        }
        self.vector.insert(dot);
        self.absorb(dot.actor);
    }

    /// Adds all dots of `other`.
    pub fn merge(&mut self, other: &Self) {
        for dot in other.vector.iter() {
            if !self.vector.contains(dot) {
                self.vector.insert(dot);
                self.absorb(dot.actor);
            }
        }
        other.cloud.iter().for_each(|dot| self.insert(*dot));
    }

    /// The dot after the greatest of `actor`.
    pub fn next(&self, actor: Actor) -> Dot {
        let of_actor = Dot::new(actor, 0)..=Dot::new(actor, u64::MAX);
        let single = self.cloud.range(of_actor).next_back().map_or(0, |dot| dot.counter);
        Dot::new(actor, self.vector.get(actor).max(single) + 1)
    }

    /// How many dots are held singly: changes that arrived before an earlier one of their actor.
    pub fn gaps(&self) -> usize {
        self.cloud.len()
    }

    /// Moves the dots that the vector reaches or covers out of the cloud.
    fn absorb(&mut self, actor: Actor) {
        let of_actor = Dot::new(actor, 0)..=Dot::new(actor, u64::MAX);
        // Ends: each turn removes a dot from the cloud.
        while let Some(first) = self.cloud.range(of_actor.clone()).next().copied() {
            if first.counter > self.vector.get(actor) + 1 {
                return;
            }
            self.cloud.remove(&first);
            self.vector.insert(first);
        }
    }
}

impl FromIterator<Dot> for DotContext {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut context = Self::new();
        dots.into_iter().for_each(|dot| context.insert(dot));
        context
    }
}
