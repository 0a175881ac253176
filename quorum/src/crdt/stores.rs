//! The stores: flag, values, set, and the map that nests them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, DotContext, DotStore};
use crate::version::Dot;

/// On while a dot is live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flag {
    pub(super) dots: BTreeSet<Dot>,
}

impl Flag {
    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        !self.dots.is_empty()
    }

    /// Turns it on. Wins over a concurrent [`Flag::disable`].
    pub fn enable(&self, dot: Dot) -> Change<Self> {
        Change { store: Self { dots: BTreeSet::from([dot]) }, replaced: self.live() }
    }

    /// Turns it off, as far as this replica has seen it turned on.
    pub fn disable(&self) -> Change<Self> {
        Change { store: Self::default(), replaced: self.live() }
    }

    fn live(&self) -> Vec<Dot> {
        self.dots.iter().copied().collect()
    }
}

impl DotStore for Flag {
    fn is_empty(&self) -> bool {
        self.dots.is_empty()
    }

    fn for_each_dot(&self, visit: &mut dyn FnMut(Dot)) {
        self.dots.iter().for_each(|dot| visit(*dot));
    }

    fn join(&mut self, context: &DotContext, other: &Self, other_context: &DotContext) {
        self.dots.retain(|dot| other.dots.contains(dot) || !other_context.contains(*dot));
        self.dots.extend(other.dots.iter().filter(|dot| !context.contains(**dot)));
    }
}

/// The values that no write has replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values<V> {
    pub(super) values: BTreeMap<Dot, V>,
}

impl<V> Default for Values<V> {
    fn default() -> Self {
        Self { values: BTreeMap::new() }
    }
}

impl<V: Clone> Values<V> {
    /// The values, in ascending order of their dots: one, or several that were written
    /// concurrently; none before the first write.
    pub fn iter(&self) -> impl Iterator<Item = &V> {
        self.values.values()
    }

    /// Writes a value that replaces those that this replica has seen.
    pub fn write(&self, value: V, dot: Dot) -> Change<Self> {
        Change { store: Self { values: BTreeMap::from([(dot, value)]) }, replaced: self.live() }
    }

    /// Removes the values that this replica has seen.
    pub fn clear(&self) -> Change<Self> {
        Change { store: Self::default(), replaced: self.live() }
    }

    fn live(&self) -> Vec<Dot> {
        self.values.keys().copied().collect()
    }
}

impl<V: Clone> DotStore for Values<V> {
    fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn for_each_dot(&self, visit: &mut dyn FnMut(Dot)) {
        self.values.keys().for_each(|dot| visit(*dot));
    }

    fn join(&mut self, context: &DotContext, other: &Self, other_context: &DotContext) {
        self.values
            .retain(|dot, _| other.values.contains_key(dot) || !other_context.contains(*dot));
        for (dot, value) in &other.values {
            if !context.contains(*dot) {
                self.values.insert(*dot, value.clone());
            }
        }
    }
}

/// Elements, each present while one of its adds is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set<E> {
    /// Invariant: no element without a live dot.
    pub(super) elements: BTreeMap<E, Flag>,
}

impl<E> Default for Set<E> {
    fn default() -> Self {
        Self { elements: BTreeMap::new() }
    }
}

impl<E: Clone + Ord> Set<E> {
    /// Whether the element is present.
    pub fn contains(&self, element: &E) -> bool {
        self.elements.contains_key(element)
    }

    /// The elements, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = &E> {
        self.elements.keys()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Adds an element. Wins over a concurrent [`Set::remove`].
    pub fn add(&self, element: E, dot: Dot) -> Change<Self> {
        let replaced = self.elements.get(&element).map(Flag::live).unwrap_or_default();
        let flag = Flag { dots: BTreeSet::from([dot]) };
        Change { store: Self { elements: BTreeMap::from([(element, flag)]) }, replaced }
    }

    /// Removes an element, as far as this replica has seen it added.
    pub fn remove(&self, element: &E) -> Change<Self> {
        let replaced = self.elements.get(element).map(Flag::live).unwrap_or_default();
        Change { store: Self::default(), replaced }
    }

    /// Removes all elements that this replica has seen.
    pub fn clear(&self) -> Change<Self> {
        let replaced = self.elements.values().flat_map(Flag::live).collect();
        Change { store: Self::default(), replaced }
    }
}

impl<E: Clone + Ord> DotStore for Set<E> {
    fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    fn for_each_dot(&self, visit: &mut dyn FnMut(Dot)) {
        self.elements.values().for_each(|flag| flag.for_each_dot(visit));
    }

    fn join(&mut self, context: &DotContext, other: &Self, other_context: &DotContext) {
        join_entries(&mut self.elements, context, &other.elements, other_context);
    }
}

/// Keys, each present while a dot under it is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map<K, S> {
    /// Invariant: no key without a live dot.
    pub(super) entries: BTreeMap<K, S>,
}

impl<K, S> Default for Map<K, S> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<K: Clone + Ord, S: DotStore> Map<K, S> {
    /// What is under the key.
    pub fn get(&self, key: &K) -> Option<&S> {
        self.entries.get(key)
    }

    /// The keys and what is under them, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &S)> {
        self.entries.iter()
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Changes what is under the key, which is empty if the key is absent.
    pub fn update(&self, key: K, change: impl FnOnce(&S) -> Change<S>) -> Change<Self> {
        let absent = S::default();
        change(self.entries.get(&key).unwrap_or(&absent)).map(|store| {
            let entries = if store.is_empty() { BTreeMap::new() } else { [(key, store)].into() };
            Self { entries }
        })
    }

    /// Removes the key: resets what this replica has seen under it. A concurrent change under the
    /// key survives, without what it was based on.
    pub fn remove(&self, key: &K) -> Change<Self> {
        let mut replaced = Vec::new();
        if let Some(store) = self.entries.get(key) {
            store.for_each_dot(&mut |dot| replaced.push(dot));
        }
        Change { store: Self::default(), replaced }
    }
}

impl<K: Clone + Ord, S: DotStore> DotStore for Map<K, S> {
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn for_each_dot(&self, visit: &mut dyn FnMut(Dot)) {
        self.entries.values().for_each(|store| store.for_each_dot(visit));
    }

    fn join(&mut self, context: &DotContext, other: &Self, other_context: &DotContext) {
        join_entries(&mut self.entries, context, &other.entries, other_context);
    }
}

fn join_entries<K: Clone + Ord, S: DotStore>(
    entries: &mut BTreeMap<K, S>,
    context: &DotContext,
    others: &BTreeMap<K, S>,
    other_context: &DotContext,
) {
    let absent = S::default();
    entries.retain(|key, store| {
        store.join(context, others.get(key).unwrap_or(&absent), other_context);
        !store.is_empty()
    });
    for (key, other) in others {
        // A key that was present has been joined above. If nothing of it was left there, joining
        // the other side's dots into an empty store again keeps none of them either: the context
        // contains those that were live here, and it decides over the rest in the same way.
        if !entries.contains_key(key) {
            let mut store = S::default();
            store.join(context, other, other_context);
            if !store.is_empty() {
                entries.insert(key.clone(), store);
            }
        }
    }
}
