//! The value of one key, as a dotted version vector set.

use std::collections::BTreeMap;

use super::{Dot, VersionVector};

/// Why a write was not made. The siblings have not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The dot has been used for this key, or a later one of its actor has. The actor lost a part
    /// of its store without a new incarnation, or reordered its own writes to one key.
    #[error("dot {dot} is not newer than what has been seen of its actor")]
    DotUsed {
        /// The dot of the write.
        dot: Dot,
    },
    /// The dot's counter is 0 or above [`Dot::MAX_COUNTER`].
    #[error("dot {dot} has no valid counter")]
    InvalidDot {
        /// The dot of the write.
        dot: Dot,
    },
}

/// The value of one key: the writes that no later write has replaced, and what has been seen.
///
/// A write carries the causal context of the read that it is based on. It replaces the values that
/// the context covers and stands beside all others, which become its siblings. Two writes through
/// one replica from the same context are siblings too: each has a dot of its own, which a plain
/// version vector could not tell apart (dotted version vectors, Preguiça et al. 2012; a server's
/// plain vectors gave Riak its sibling explosions).
///
/// No values and a context that is not empty: the key was deleted, and this is its tombstone.
///
/// # Example
/// ```
/// use voussoir_quorum::version::{Actor, Dot, Siblings};
/// let a = Actor::new(1, 1);
/// let mut cart = Siblings::new();
/// cart.put_blind(Dot::new(a, 1), "milk").unwrap();
/// let seen = cart.context().clone();
/// cart.put(&seen, Dot::new(a, 2), "milk, bread").unwrap();
/// // A second client wrote after the same read:
/// cart.put(&seen, Dot::new(a, 3), "milk, beer").unwrap();
/// assert_eq!(cart.values().collect::<Vec<_>>(), [&"milk, bread", &"milk, beer"]);
/// // A client that has read both resolves the conflict:
/// let seen = cart.context().clone();
/// cart.put(&seen, Dot::new(a, 4), "milk, bread, beer").unwrap();
/// assert_eq!(cart.len(), 1);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Siblings<V> {
    /// Invariant: covers every dot of `values`.
    context: VersionVector,
    values: BTreeMap<Dot, V>,
}

impl<V> Default for Siblings<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> Siblings<V> {
    /// A key that was never written.
    pub const fn new() -> Self {
        Self { context: VersionVector::new(), values: BTreeMap::new() }
    }

    /// Siblings out of their parts. Values that the context does not cover are added to it.
    pub fn from_parts(context: VersionVector, values: BTreeMap<Dot, V>) -> Self {
        let mut siblings = Self { context, values };
        siblings.values.keys().for_each(|dot| siblings.context.insert(*dot));
        siblings
    }

    /// What has been seen of this key. A client that has read the values passes it to its write.
    pub fn context(&self) -> &VersionVector {
        &self.context
    }

    /// The values, in ascending order of their dots. None for a key that is absent or deleted.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.values.values()
    }

    /// The values and the dots of their writes, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (Dot, &V)> {
        self.values.iter().map(|(dot, value)| (*dot, value))
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is no value: the key was never written, or it was deleted.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Whether the key was written and then deleted.
    pub fn is_tombstone(&self) -> bool {
        self.values.is_empty() && !self.context.is_empty()
    }

    /// Writes a value that replaces what `seen` covers.
    ///
    /// # Errors
    /// [`PutError`]: the dot is not a new one.
    pub fn put(&mut self, seen: &VersionVector, dot: Dot, value: V) -> Result<(), PutError> {
        if !dot.is_valid() {
            return Err(PutError::InvalidDot { dot });
        }
        if self.context.contains(dot) || seen.contains(dot) {
            return Err(PutError::DotUsed { dot });
        }
        self.delete(seen);
        self.context.insert(dot);
        self.values.insert(dot, value);
        Ok(())
    }

    /// Writes a value without having read the key: it replaces nothing and becomes a sibling of
    /// whatever is there.
    ///
    /// # Errors
    /// [`PutError`]: the dot is not a new one.
    pub fn put_blind(&mut self, dot: Dot, value: V) -> Result<(), PutError> {
        self.put(&VersionVector::new(), dot, value)
    }

    /// Deletes what `seen` covers. A value that the deleter has not seen stays.
    pub fn delete(&mut self, seen: &VersionVector) {
        self.values.retain(|dot, _| !seen.contains(*dot));
        self.context.merge(seen);
    }

    /// Adds the state of another replica of the key. Commutative, associative, idempotent: a value
    /// stays if both have it, or if one has it and the other has not seen it.
    pub fn merge(&mut self, other: Self) {
        self.values
            .retain(|dot, _| other.values.contains_key(dot) || !other.context.contains(*dot));
        for (dot, value) in other.values {
            if !self.context.contains(dot) {
                self.values.insert(dot, value);
            }
        }
        self.context.merge(&other.context);
    }

    /// Whether merging `other` would change nothing.
    pub fn includes(&self, other: &Self) -> bool {
        let keeps = |dot: &Dot| other.values.contains_key(dot) || !other.context.contains(*dot);
        self.context.covers(&other.context) && self.values.keys().all(keeps)
    }
}
