//! Counters.

use std::collections::BTreeMap;

use super::Crdt;
use crate::version::Actor;

/// An actor's share of a counter does not fit into 64 bits. The counter has not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the share of actor {actor} exceeds 2^64 - 1")]
pub struct CounterError {
    /// Whose share it is.
    pub actor: Actor,
}

/// A counter that only grows: for each actor the sum of what it has added.
///
/// # Example
/// ```
/// use voussoir_quorum::crdt::{Crdt, GCounter};
/// use voussoir_quorum::version::Actor;
/// let (mut left, mut right) = (GCounter::new(), GCounter::new());
/// let delta = left.add(Actor::new(1, 1), 5)?;
/// right.add(Actor::new(2, 1), 2)?;
/// right.merge(&delta);
/// right.merge(&delta); // a repeated delta counts once
/// assert_eq!(right.value(), 7);
/// # Ok::<(), voussoir_quorum::crdt::CounterError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GCounter {
    /// Invariant: no share is 0.
    pub(super) shares: BTreeMap<Actor, u64>,
}

impl GCounter {
    /// A counter at 0.
    pub const fn new() -> Self {
        Self { shares: BTreeMap::new() }
    }

    /// The sum of all shares.
    pub fn value(&self) -> u128 {
        self.shares.values().copied().map(u128::from).sum()
    }

    /// Adds `n` to the share of `actor`, and returns the delta. The share must be durable at its
    /// actor before the delta is sent.
    ///
    /// # Errors
    /// [`CounterError`]: the share would not fit.
    pub fn add(&mut self, actor: Actor, n: u64) -> Result<Self, CounterError> {
        let share = self.shares.get(&actor).copied().unwrap_or(0);
        let share = share.checked_add(n).ok_or(CounterError { actor })?;
        let delta = Self { shares: (share > 0).then_some((actor, share)).into_iter().collect() };
        self.merge(&delta);
        Ok(delta)
    }
}

impl Crdt for GCounter {
    fn merge(&mut self, other: &Self) {
        for (actor, share) in &other.shares {
            let own = self.shares.entry(*actor).or_default();
            *own = (*own).max(*share);
        }
    }
}

/// A counter that goes up and down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PnCounter {
    pub(super) added: GCounter,
    pub(super) subtracted: GCounter,
}

impl PnCounter {
    /// A counter at 0.
    pub const fn new() -> Self {
        Self { added: GCounter::new(), subtracted: GCounter::new() }
    }

    /// What was added less what was subtracted. Bounded by 2^64 times the number of actors.
    pub fn value(&self) -> i128 {
        self.added.value().cast_signed() - self.subtracted.value().cast_signed()
    }

    /// Adds `n`, which may be negative, and returns the delta.
    ///
    /// # Errors
    /// [`CounterError`]: all that the actor has ever added, or subtracted, would not fit.
    pub fn add(&mut self, actor: Actor, n: i64) -> Result<Self, CounterError> {
        let mut delta = Self::new();
        let (own, change) = if n >= 0 {
            (&mut self.added, &mut delta.added)
        } else {
            (&mut self.subtracted, &mut delta.subtracted)
        };
        *change = own.add(actor, n.unsigned_abs())?;
        Ok(delta)
    }
}

impl Crdt for PnCounter {
    fn merge(&mut self, other: &Self) {
        self.added.merge(&other.added);
        self.subtracted.merge(&other.subtracted);
    }
}
