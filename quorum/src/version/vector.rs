//! What has been seen.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use super::{Actor, Dot};

/// For each actor, the greatest counter that has been seen of one key; also the **causal context**
/// that a client carries from a read to its next write.
///
/// An entry covers every smaller counter of its actor: whoever has seen a write of an actor to a
/// key has the effect of all earlier writes of that actor to the key, because the actor's own
/// replica held them when it made the write.
///
/// # Example
/// ```
/// use voussoir_quorum::version::{Actor, Dot, VersionVector};
/// let (a, b) = (Actor::new(1, 1), Actor::new(2, 1));
/// let mut left = VersionVector::new();
/// left.insert(Dot::new(a, 3));
/// let mut right = VersionVector::new();
/// right.insert(Dot::new(b, 1));
/// assert_eq!(left.partial_cmp(&right), None); // concurrent
/// right.merge(&left);
/// assert!(left < right && right.contains(Dot::new(a, 2)));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VersionVector {
    /// Invariant: no counter is 0.
    counters: BTreeMap<Actor, u64>,
}

impl VersionVector {
    /// Nothing has been seen.
    pub const fn new() -> Self {
        Self { counters: BTreeMap::new() }
    }

    /// The greatest counter seen of `actor`; 0 for none.
    pub fn get(&self, actor: Actor) -> u64 {
        self.counters.get(&actor).copied().unwrap_or(0)
    }

    /// Whether the write has been seen.
    pub fn contains(&self, dot: Dot) -> bool {
        dot.counter <= self.get(dot.actor)
    }

    /// Records that the write, and all earlier ones of its actor to the key, have been seen.
    /// A counter of 0 changes nothing.
    pub fn insert(&mut self, dot: Dot) {
        if dot.counter > self.get(dot.actor) {
            self.counters.insert(dot.actor, dot.counter);
        }
    }

    /// Adds what `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        for dot in other.iter() {
            self.insert(dot);
        }
    }

    /// Whether this vector has seen all that `other` has seen.
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|dot| self.contains(dot))
    }

    /// Whether nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.counters.is_empty()
    }

    /// The number of actors.
    pub fn len(&self) -> usize {
        self.counters.len()
    }

    /// The greatest dot of each actor, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Dot> + '_ {
        self.counters.iter().map(|(actor, counter)| Dot::new(*actor, *counter))
    }
}

/// Less: happened before. None: concurrent.
impl PartialOrd for VersionVector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self.covers(other), other.covers(self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Greater),
            (false, true) => Some(Ordering::Less),
            (false, false) => None,
        }
    }
}

impl FromIterator<Dot> for VersionVector {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut vector = Self::new();
        dots.into_iter().for_each(|dot| vector.insert(dot));
        vector
    }
}

impl fmt::Display for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (at, dot) in self.iter().enumerate() {
            write!(f, "{}{dot}", if at == 0 { "" } else { ", " })?;
        }
        f.write_str("}")
    }
}
