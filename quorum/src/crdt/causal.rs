//! A store of dots together with the context that tells a removed dot from one never seen.

use std::fmt;

use super::{Crdt, DotContext, Flag, Map, Set, Values};
use crate::version::{Actor, Dot};

/// A replicated set in which an add wins over a remove that has not seen it.
pub type OrSet<E> = Causal<Set<E>>;
/// A register that keeps every value that no write has replaced.
pub type MvRegister<V> = Causal<Values<V>>;
/// A flag that stays on when it was enabled and disabled concurrently.
pub type EnableWinsFlag = Causal<Flag>;
/// A map of [`Set`], [`Values`], [`Flag`] or [`Map`]. Removing a key resets what the remover has
/// seen under it; a concurrent change under the key survives, without what was there
/// before.
pub type OrMap<K, S> = Causal<Map<K, S>>;

/// What a [`Causal`] keeps: live dots, and what they stand for. A dot names one write; it is live
/// until a later change replaces or removes it. The stores of this module nest in a [`Map`].
pub trait DotStore: Clone + Default {
    /// Whether no dot is live.
    fn is_empty(&self) -> bool;

    /// Calls `visit` with every live dot.
    fn for_each_dot(&self, visit: &mut dyn FnMut(Dot));

    /// Merges `other`: a dot stays live if it is live on both sides, or on one while the context of
    /// the other does not contain it.
    fn join(&mut self, context: &DotContext, other: &Self, other_context: &DotContext);
}

/// A change of a [`DotStore`], made by the store's own methods and applied by [`Causal::update`].
#[derive(Clone, Debug)]
#[must_use = "a change does nothing until `Causal::update` applies it"]
pub struct Change<S> {
    /// What the change adds.
    pub(super) store: S,
    /// The live dots that the change replaces or removes.
    pub(super) replaced: Vec<Dot>,
}

impl<S> Change<S> {
    /// The same change, wrapped into an outer store.
    pub(super) fn map<T>(self, wrap: impl FnOnce(S) -> T) -> Change<T> {
        Change { store: wrap(self.store), replaced: self.replaced }
    }
}

/// A replicated value: a store of live dots and the context of all dots that were ever seen.
///
/// # Example
/// ```
/// use voussoir_quorum::crdt::{Crdt, OrMap, Set};
/// use voussoir_quorum::version::Actor;
/// let (one, two) = (Actor::new(1, 1), Actor::new(2, 1));
/// let mut left: OrMap<&str, Set<&str>> = OrMap::default();
/// let delta = left.update(one, |map, dot| map.update("fruit", |set| set.add("apple", dot)));
/// let mut right = OrMap::default();
/// right.merge(&delta);
/// // One side removes the whole key while the other adds to it.
/// let removed = left.update(one, |map, _| map.remove(&"fruit"));
/// let added = right.update(two, |map, dot| map.update("fruit", |set| set.add("pear", dot)));
/// left.merge(&added);
/// right.merge(&removed);
/// assert_eq!(left, right);
/// let fruit: Vec<_> = left.get().get(&"fruit").unwrap().iter().collect();
/// assert_eq!(fruit, [&"pear"]); // what the remover had seen is gone
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Causal<S> {
    pub(super) store: S,
    /// Invariant: contains every live dot of `store`.
    pub(super) context: DotContext,
}

impl<S: DotStore> Causal<S> {
    /// An empty value.
    pub fn new() -> Self {
        Self::default()
    }

    /// The current value.
    pub fn get(&self) -> &S {
        &self.store
    }

    /// All dots that were ever seen.
    pub fn context(&self) -> &DotContext {
        &self.context
    }

    /// Makes a change as `actor` and returns it as a delta for the other replicas. `change` gets
    /// the current value and the change's dot; a change that only removes does not use the dot,
    /// and the next one gets it.
    ///
    /// The actor's changes must be durable before a delta is sent. After a crash it would give the
    /// same dot to another change, which replicas that have seen the first would discard.
    pub fn update(&mut self, actor: Actor, change: impl FnOnce(&S, Dot) -> Change<S>) -> Self {
        let Change { store, replaced } = change(&self.store, self.context.next(actor));
        let mut context: DotContext = replaced.into_iter().collect();
        store.for_each_dot(&mut |dot| context.insert(dot));
        let delta = Self { store, context };
        self.merge(&delta);
        delta
    }
}

impl<S: DotStore> Crdt for Causal<S> {
    fn merge(&mut self, other: &Self) {
        self.store.join(&self.context, &other.store, &other.context);
        self.context.merge(&other.context);
    }
}

impl<S: fmt::Debug> fmt::Debug for Causal<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Causal");
        out.field("store", &self.store).field("context", &self.context).finish()
    }
}
