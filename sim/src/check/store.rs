//! The specification of a key-value store whose reads may cover several keys.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use super::cache::Mix;
use super::{Kv, KvOp, KvRet, Model};
use crate::{Ended, History};

/// A key-value store with calls of one key, as [`Kv`] has them, and reads of several keys at one
/// moment: by prefix, and by name.
///
/// A read of several keys cannot be checked key by key: each of its values may be right at some
/// moment, and the whole at none. So keys that some read covers together form a *group* that is
/// checked as one object; keys that no such read connects are still checked apart. The groups come
/// from the history, which is why [`Store::of`] takes it. A read by prefix covers every key of the
/// history in its range, also keys that it did not return.
///
/// The verdict is exact. The price: the calls of a group are searched together, so a group costs
/// as much as one register with all these calls and states as large as the group. See the README
/// for measured sizes; keep groups to some dozens of keys, and the calls of a group that run at
/// the same time to some eight.
///
/// # Example
/// ```
/// use voussoir_sim::{History, KvOp, KvRet, Store, StoreOp, StoreRet, check};
/// let mut history = History::new();
/// for key in ["a/1", "a/2"] {
///     let put = history.invoke(1, StoreOp::One(KvOp::Put { key, value: 7 }), 0);
///     history.ok(put, StoreRet::One(KvRet::Done), 1);
/// }
/// let list = history.invoke(2, StoreOp::List { prefix: "a/", after: None, limit: None }, 2);
/// history.ok(list, StoreRet::Listed(vec![("a/2", 7)]), 3); // a/1 is missing
/// assert!(check(&Store::of(&history), &history, 1_000).is_err());
/// ```
#[derive(Clone, Debug)]
pub struct Store<K, V> {
    /// All keys, in order of their bytes.
    keys: Vec<K>,
    groups: Vec<Group<K>>,
    /// For each key its group, and its place there.
    places: HashMap<K, (usize, usize)>,
    values: PhantomData<fn(V)>,
}

/// Keys that are checked together, in order of their bytes.
#[derive(Clone, Debug)]
struct Group<K> {
    keys: Vec<K>,
    name: StoreGroup,
}

/// The group of keys that a call of a [`Store`] belongs to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StoreGroup {
    /// `None`: reads that no key of the history is in range of.
    number: Option<usize>,
    name: Arc<str>,
}

impl fmt::Debug for StoreGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a client of a [`Store`] asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "f", rename_all = "snake_case")]
#[non_exhaustive]
pub enum StoreOp<K, V> {
    /// Read a page of all keys with a prefix, in order of their bytes. Answered by
    /// [`StoreRet::Listed`] or [`StoreRet::Keys`].
    List {
        /// The prefix.
        prefix: K,
        /// Only keys greater than this one.
        after: Option<K>,
        /// The most keys to return; `None` for all.
        limit: Option<usize>,
    },
    /// Read these keys at one moment. Answered by [`StoreRet::Many`].
    GetMany {
        /// The keys.
        keys: Vec<K>,
    },
    /// A call of one key. Answered by [`StoreRet::One`].
    #[serde(untagged)]
    One(KvOp<K, V>),
}

/// What a client of a [`Store`] is answered. In JSON as [`KvRet`]; pairs are arrays of two.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum StoreRet<K, V> {
    /// The answer to a call of one key.
    One(KvRet<V>),
    /// The pairs of a page, in order.
    Listed(Vec<(K, V)>),
    /// The keys of a page, in order, without their values.
    Keys(Vec<K>),
    /// The value of each key asked for, in the order of asking.
    Many(Vec<Option<V>>),
}

/// The values of a group, by the places of its keys. Clones share them.
#[derive(Clone, Debug)]
pub struct StoreState<V> {
    values: Arc<Vec<Option<V>>>,
    /// Of all values: kept up with each write, so that hashing a state takes constant time.
    hash: u64,
}

impl<V: PartialEq> PartialEq for StoreState<V> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && (Arc::ptr_eq(&self.values, &other.values) || self.values == other.values)
    }
}

impl<V: Eq> Eq for StoreState<V> {}

impl<V> Hash for StoreState<V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<V: Clone + Hash> StoreState<V> {
    fn with(&self, place: usize, value: Option<V>) -> Self {
        let word = |value: &Option<V>| {
            let mut mix = Mix::default();
            (place, value).hash(&mut mix);
            if value.is_some() { mix.finish() } else { 0 }
        };
        let hash = self.hash ^ word(&self.values[place]) ^ word(&value);
        let mut values = Vec::clone(&self.values);
        values[place] = value;
        Self { values: Arc::new(values), hash }
    }
}

impl<K: Clone + Eq + Hash + AsRef<[u8]> + fmt::Debug, V> Store<K, V> {
    /// The model for this history.
    pub fn of<R>(history: &History<StoreOp<K, V>, R>) -> Self {
        let calls = || {
            let calls = history.calls().iter();
            calls.filter(|call| !matches!(call.ended, Ended::Failed)).map(|call| &call.op)
        };
        let mut keys: Vec<K> = calls()
            .flat_map(|op| match op {
                StoreOp::One(op) => std::slice::from_ref(op.key()),
                StoreOp::GetMany { keys } => keys,
                StoreOp::List { .. } => &[],
            })
            .cloned()
            .collect();
        keys.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        keys.dedup();
        let place: HashMap<&K, usize> = keys.iter().zip(0..).collect();
        let mut sets = Sets::new(keys.len());
        for op in calls() {
            match op {
                StoreOp::One(_) => {}
                StoreOp::List { prefix, after, .. } => {
                    let mut range = range(&keys, prefix, after.as_ref());
                    let first = range.next();
                    range.for_each(|at| sets.join(first.unwrap_or(at), at));
                }
                StoreOp::GetMany { keys } => {
                    for key in keys {
                        sets.join(place[&keys[0]], place[key]);
                    }
                }
            }
        }
        drop(place);
        Self::grouped(keys, sets)
    }

    fn grouped(keys: Vec<K>, mut sets: Sets) -> Self {
        let (mut groups, mut places) = (Vec::<Group<K>>::new(), HashMap::new());
        let mut number_of: HashMap<usize, usize> = HashMap::new();
        for (at, key) in keys.iter().enumerate() {
            let number = *number_of.entry(sets.root(at)).or_insert_with(|| {
                let name = StoreGroup { number: Some(groups.len()), name: Arc::from("") };
                groups.push(Group { keys: Vec::new(), name });
                groups.len() - 1
            });
            places.insert(key.clone(), (number, groups[number].keys.len()));
            groups[number].keys.push(key.clone());
        }
        for group in &mut groups {
            let name = match &group.keys[..] {
                [one] => format!("{one:?}"),
                [first, .., last] => {
                    format!("{} keys, {first:?} to {last:?}", group.keys.len())
                }
                [] => String::new(),
            };
            group.name.name = Arc::from(name);
        }
        Self { keys, groups, places, values: PhantomData }
    }

    /// How many keys each group has.
    pub fn group_sizes(&self) -> Vec<usize> {
        self.groups.iter().map(|group| group.keys.len()).collect()
    }

    /// The group of a page and the places of its keys there; `None` if no key is in its range.
    fn page(&self, prefix: &K, after: Option<&K>) -> Option<(&Group<K>, Range<usize>)> {
        let first = self.keys.get(range(&self.keys, prefix, after))?.first()?;
        // All keys of the range are in the group of the first: `of` has joined them.
        let group = &self.groups[self.place(first).0];
        Some((group, range(&group.keys, prefix, after)))
    }

    /// # Panics
    /// If the history has no such key.
    fn place(&self, key: &K) -> (usize, usize) {
        let place = self.places.get(key);
        *place.unwrap_or_else(|| panic!("{key:?} is not in the history of this model"))
    }

    fn lists(
        &self,
        state: &StoreState<V>,
        (prefix, after, limit): (&K, Option<&K>, Option<usize>),
        ret: &StoreRet<K, V>,
    ) -> bool
    where
        V: PartialEq,
    {
        let found = self.page(prefix, after).into_iter().flat_map(|(group, range)| {
            range.filter_map(|at| Some((&group.keys[at], state.values[at].as_ref()?)))
        });
        let mut found = found.take(limit.unwrap_or(usize::MAX));
        match ret {
            StoreRet::Listed(pairs) => {
                pairs.iter().all(|(key, value)| found.next() == Some((key, value)))
                    && found.next().is_none()
            }
            StoreRet::Keys(keys) => {
                keys.iter().all(|key| found.next().is_some_and(|(found, _)| found == key))
                    && found.next().is_none()
            }
            _ => false,
        }
    }
}

/// The places of the keys with a prefix that come after a key. They lie together, since keys are
/// in order of their bytes.
fn range<K: AsRef<[u8]>>(keys: &[K], prefix: &K, after: Option<&K>) -> Range<usize> {
    let prefix = prefix.as_ref();
    let from = keys.partition_point(|key| {
        key.as_ref() < prefix || after.is_some_and(|after| key.as_ref() <= after.as_ref())
    });
    let count = keys[from..].partition_point(|key| key.as_ref().starts_with(prefix));
    from..from + count
}

impl<K, V> Model for Store<K, V>
where
    K: Clone + Eq + Hash + AsRef<[u8]> + fmt::Debug,
    V: Clone + Eq + Hash + fmt::Debug,
{
    type Op = StoreOp<K, V>;
    type Ret = StoreRet<K, V>;
    type Key = StoreGroup;
    type State = StoreState<V>;

    /// # Panics
    /// If the model was made from a history without this call.
    fn key(&self, op: &Self::Op) -> StoreGroup {
        let group = match op {
            StoreOp::One(op) => Some(self.place(op.key()).0),
            StoreOp::GetMany { keys } => keys.first().map(|key| self.place(key).0),
            StoreOp::List { prefix, after, .. } => {
                self.page(prefix, after.as_ref()).and_then(|(group, _)| group.name.number)
            }
        };
        match group {
            Some(number) => self.groups[number].name.clone(),
            None => StoreGroup { number: None, name: Arc::from("no key") },
        }
    }

    fn init(&self, group: &StoreGroup) -> StoreState<V> {
        let keys = group.number.map_or(0, |number| self.groups[number].keys.len());
        StoreState { values: Arc::new(vec![None; keys]), hash: 0 }
    }

    fn step(
        &self,
        state: &StoreState<V>,
        op: &Self::Op,
        ret: Option<&Self::Ret>,
    ) -> Option<StoreState<V>> {
        match (op, ret) {
            (StoreOp::One(op), None | Some(StoreRet::One(_))) => {
                let place = self.place(op.key()).1;
                let ret = match ret {
                    Some(StoreRet::One(ret)) => Some(ret),
                    _ => None,
                };
                let old = &state.values[place];
                let new = Kv::<K, V>::new().step(old, op, ret)?;
                Some(if new == *old { state.clone() } else { state.with(place, new) })
            }
            (StoreOp::One(_), Some(_)) => None,
            (_, None) => Some(state.clone()),
            (StoreOp::List { prefix, after, limit }, Some(ret)) => {
                let page = (prefix, after.as_ref(), *limit);
                self.lists(state, page, ret).then(|| state.clone())
            }
            (StoreOp::GetMany { keys }, Some(StoreRet::Many(values))) => {
                let found = keys.iter().map(|key| &state.values[self.place(key).1]);
                found.eq(values).then(|| state.clone())
            }
            (StoreOp::GetMany { .. }, Some(_)) => None,
        }
    }

    fn is_read(&self, op: &Self::Op, ret: &Self::Ret) -> bool {
        match (op, ret) {
            (StoreOp::One(op), StoreRet::One(ret)) => Kv::<K, V>::new().is_read(op, ret),
            (StoreOp::One(_), _) => false,
            _ => true,
        }
    }

    fn state_bytes(&self, state: &StoreState<V>) -> usize {
        state.values.len() * size_of::<Option<V>>()
    }
}

/// Sets of numbers that are joined (union-find with path halving).
struct Sets {
    parents: Vec<usize>,
}

impl Sets {
    fn new(count: usize) -> Self {
        Self { parents: (0..count).collect() }
    }

    fn root(&mut self, mut at: usize) -> usize {
        // Ends: each parent lies below its child, as `join` makes it.
        while self.parents[at] != at {
            self.parents[at] = self.parents[self.parents[at]];
            at = self.parents[at];
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a.max(b)] = a.min(b);
    }
}
