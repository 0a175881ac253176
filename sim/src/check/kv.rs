//! The specification of a key-value store.

use std::fmt::Debug;
use std::hash::Hash;
use std::marker::PhantomData;

use serde::Serialize;

use super::Model;

/// A key-value store with compare-and-set and delete; each key is a register on its own.
///
/// Values that occur only once in a history make violations easier to see and faster to find.
#[derive(Clone, Copy, Debug)]
pub struct Kv<K, V>(PhantomData<fn(K, V)>);

/// One register: a [`Kv`] of a single key.
pub type Register<V> = Kv<(), V>;

impl<K, V> Kv<K, V> {
    /// The model; keys have no value at the start.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<K, V> Default for Kv<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

/// What a client of a [`Kv`] asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "f", rename_all = "snake_case")]
#[non_exhaustive]
pub enum KvOp<K, V> {
    /// Read. Answered by [`KvRet::Value`].
    Get {
        /// Of this key.
        key: K,
    },
    /// Write. Answered by [`KvRet::Done`].
    Put {
        /// To this key.
        key: K,
        /// The new value.
        value: V,
    },
    /// Write if the value is as expected. Answered by [`KvRet::Applied`].
    Cas {
        /// To this key.
        key: K,
        /// The value that it must have; `None` for no value.
        expect: Option<V>,
        /// The new value.
        value: V,
    },
    /// Remove. Answered by [`KvRet::Done`], or by [`KvRet::Applied`] if it tells whether there
    /// was a value.
    Delete {
        /// This key.
        key: K,
    },
}

impl<K, V> KvOp<K, V> {
    /// The key that it is about.
    pub fn key(&self) -> &K {
        let (Self::Get { key }
        | Self::Put { key, .. }
        | Self::Cas { key, .. }
        | Self::Delete { key }) = self;
        key
    }
}

/// What a client of a [`Kv`] is answered. In JSON: the value or null, null, or true or false.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum KvRet<V> {
    /// The value, if there is one.
    Value(Option<V>),
    /// It is done.
    Done,
    /// Whether anything was changed.
    Applied(bool),
}

impl<K, V> Model for Kv<K, V>
where
    K: Clone + Eq + Hash + Debug,
    V: Clone + Eq + Hash + Debug,
{
    type Op = KvOp<K, V>;
    type Ret = KvRet<V>;
    type Key = K;
    type State = Option<V>;

    fn key(&self, op: &Self::Op) -> K {
        op.key().clone()
    }

    fn init(&self, _key: &K) -> Option<V> {
        None
    }

    fn step(&self, state: &Option<V>, op: &Self::Op, ret: Option<&KvRet<V>>) -> Option<Option<V>> {
        let (fits, next) = match op {
            KvOp::Get { .. } => {
                let fits = match ret {
                    None => true,
                    Some(KvRet::Value(value)) => value == state,
                    Some(_) => false,
                };
                return fits.then(|| state.clone());
            }
            KvOp::Put { value, .. } => {
                (matches!(ret, None | Some(KvRet::Done)), Some(value.clone()))
            }
            KvOp::Cas { expect, value, .. } => {
                let applies = expect == state;
                let next = if applies { Some(value.clone()) } else { state.clone() };
                (ret.is_none_or(|ret| *ret == KvRet::Applied(applies)), next)
            }
            KvOp::Delete { .. } => {
                let fits = match ret {
                    None | Some(KvRet::Done) => true,
                    Some(KvRet::Applied(applied)) => *applied == state.is_some(),
                    Some(KvRet::Value(_)) => false,
                };
                (fits, None)
            }
        };
        fits.then_some(next)
    }

    fn is_read(&self, op: &Self::Op, ret: &Self::Ret) -> bool {
        matches!(op, KvOp::Get { .. }) || *ret == KvRet::Applied(false)
    }
}
