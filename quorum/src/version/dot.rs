//! Names of writes.

use std::fmt;

/// Whoever gives out dots: a node, and the incarnation of its store.
///
/// A store that is empty, restored from a backup or damaged gets a new incarnation, durably,
/// before its first dot. Otherwise it would give out dots that other replicas have already seen,
/// and they would discard the new writes as old ones (riak_kv #679).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor {
    /// The node's id.
    pub node: u64,
    /// The incarnation of the node's store.
    pub incarnation: u64,
}

impl Actor {
    /// The actor of a node's store.
    pub const fn new(node: u64, incarnation: u64) -> Self {
        Self { node, incarnation }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.incarnation)
    }
}

/// The name of one write: the `counter`-th of its actor.
///
/// Counters run over all keys of the actor's store, not over one key: a key that was deleted,
/// collected and written again gets a counter that no old tombstone covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// Whose write it is.
    pub actor: Actor,
    /// 1 for the actor's first write. Range: 1 to [`Dot::MAX_COUNTER`].
    pub counter: u64,
}

impl Dot {
    /// The greatest counter: 2^62 - 1. What lies above it is refused wherever it arrives.
    pub const MAX_COUNTER: u64 = (1 << 62) - 1;

    /// The `counter`-th write of `actor`.
    pub const fn new(actor: Actor, counter: u64) -> Self {
        Self { actor, counter }
    }

    /// Whether the counter lies in its range.
    pub const fn is_valid(&self) -> bool {
        self.counter >= 1 && self.counter <= Self::MAX_COUNTER
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.actor, self.counter)
    }
}

/// Why a [`DotSource`] gives no dot. No state has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DotError {
    /// The next counter is not below the durable mark. Persist `mark`, report it with
    /// [`DotSource::mark_persisted`], and try again.
    #[error("no dot before the mark {mark} is durable")]
    MarkNeeded {
        /// The mark to persist.
        mark: u64,
    },
    /// The actor has used all of its counters. A new incarnation of the store begins at 1.
    #[error("the actor has given out all of its dots; it needs a new incarnation")]
    Exhausted,
}

/// Gives out the dots of one actor, each once, also after a crash.
///
/// The source keeps a durable mark ahead of the counters that it gives out: no counter at or above
/// the mark is given out before a higher mark is durable. After a restart it goes on at the mark,
/// so a dot that left the process before its write was synced is not given out again.
///
/// # Example
/// ```
/// use voussoir_quorum::version::{Actor, DotError, DotSource};
/// let mut source = DotSource::recover(Actor::new(1, 1), 0, []);
/// let Err(DotError::MarkNeeded { mark }) = source.draw() else { panic!() };
/// // … write `mark` to the store and sync it …
/// source.mark_persisted(mark);
/// assert_eq!(source.draw().unwrap().counter, 1);
/// ```
#[derive(Clone, Debug)]
pub struct DotSource {
    actor: Actor,
    /// The next counter. Invariant: at least 1.
    next: u64,
    /// Every counter below it may be given out.
    mark: u64,
}

impl DotSource {
    /// How many dots one mark allows.
    pub const MARK_STEP: u64 = 1 << 16;

    /// A source that goes on after the durable `mark` (0 for none) and after every replayed
    /// counter of this actor. The order of the counters does not matter.
    pub fn recover(actor: Actor, mark: u64, replayed: impl IntoIterator<Item = u64>) -> Self {
        let above = |counter: u64| counter.saturating_add(1);
        let next = replayed.into_iter().map(above).fold(mark.max(1), u64::max);
        Self { actor, next, mark }
    }

    /// Whose dots these are.
    pub fn actor(&self) -> Actor {
        self.actor
    }

    /// The counter of the next dot: every smaller one was given out or is skipped.
    pub fn next_counter(&self) -> u64 {
        self.next
    }

    /// Gives out no dot up to `counter`: it has been seen.
    pub fn skip_to(&mut self, counter: u64) {
        self.next = self.next.max(counter.saturating_add(1));
    }

    /// The next dot. One operation draws one dot before its first attempt and uses it in all
    /// attempts.
    ///
    /// # Errors
    /// [`DotError::MarkNeeded`] until a higher mark is durable; [`DotError::Exhausted`] for good.
    pub fn draw(&mut self) -> Result<Dot, DotError> {
        if self.next > Dot::MAX_COUNTER {
            return Err(DotError::Exhausted);
        }
        if self.next >= self.mark {
            return Err(DotError::MarkNeeded { mark: self.next + Self::MARK_STEP });
        }
        let dot = Dot::new(self.actor, self.next);
        self.next += 1;
        Ok(dot)
    }

    /// The mark that should be persisted ahead of need: half of the current one is used up.
    pub fn next_mark(&self) -> Option<u64> {
        let is_low = self.mark.saturating_sub(self.next) < Self::MARK_STEP / 2;
        (is_low && self.next <= Dot::MAX_COUNTER).then(|| self.next + Self::MARK_STEP)
    }

    /// Records that `mark` is durable. An older mark than the current one changes nothing.
    pub fn mark_persisted(&mut self, mark: u64) {
        self.mark = self.mark.max(mark);
    }
}
