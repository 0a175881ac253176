//! The sequential specification of the store, listings included: what a history is checked against.

use std::collections::BTreeMap;

use voussoir_sim::Model;

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StoreOp {
    Get {
        key: String,
    },
    Put {
        key: String,
        value: String,
    },
    /// Write if the key holds `expect`.
    Cas {
        key: String,
        expect: String,
        value: String,
    },
    Delete {
        key: String,
    },
    /// All keys of a group: the prefix of these keys, with its last `/`.
    List {
        group: String,
    },
}

/// The answer to an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreRet {
    /// Value and version, if the key exists.
    Value(Option<(String, u64)>),
    /// Written, as this version.
    Written(u64),
    /// Whether anything was deleted.
    Deleted(bool),
    /// The condition did not hold.
    Conflict,
    /// Each key with its version.
    Listed(Vec<(String, u64)>),
}

/// The store, as its listings are: they show versions. ([`voussoir_sim::Store`] is the same for
/// listings that show values.) Calls of different groups have nothing to do with each other,
/// because a listing covers exactly one group; so groups are checked apart. A key that is never
/// listed is a group of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct StoreModel;

/// The keys of a group: the value of each, and its version if an answer named it.
pub type Group = BTreeMap<String, (String, Option<u64>)>;

/// Keys below this are never listed by a client of the load.
pub const OWN: &str = "own/";

/// The group that a key belongs to.
pub fn group_of(key: &str) -> &str {
    match key.rfind('/') {
        Some(at) if !key.starts_with(OWN) => &key[..=at],
        _ => key,
    }
}

impl StoreOp {
    /// The key or prefix of the operation.
    pub fn target(&self) -> &str {
        match self {
            Self::Get { key }
            | Self::Put { key, .. }
            | Self::Cas { key, .. }
            | Self::Delete { key } => key,
            Self::List { group } => group,
        }
    }
}

impl Model for StoreModel {
    type Op = StoreOp;
    type Ret = StoreRet;
    type Key = String;
    type State = Group;

    fn key(&self, op: &StoreOp) -> String {
        match op {
            StoreOp::List { group } => group.clone(),
            op => group_of(op.target()).to_owned(),
        }
    }

    fn init(&self, _key: &String) -> Group {
        Group::new()
    }

    fn step(&self, state: &Group, op: &StoreOp, ret: Option<&StoreRet>) -> Option<Group> {
        let held = state.get(op.target());
        let put = |key: &String, value: &String, version: Option<u64>| {
            let mut state = state.clone();
            state.insert(key.clone(), (value.clone(), version));
            Some(state)
        };
        match (op, ret) {
            (StoreOp::Put { key, value }, None) => put(key, value, None),
            (StoreOp::Put { key, value }, Some(StoreRet::Written(version))) => {
                put(key, value, Some(*version))
            }
            (StoreOp::Cas { key, expect, value }, ret) => {
                let holds = held.is_some_and(|(value, _)| value == expect);
                match ret {
                    None if holds => put(key, value, None),
                    None => Some(state.clone()),
                    Some(StoreRet::Written(version)) if holds => put(key, value, Some(*version)),
                    Some(StoreRet::Conflict) if !holds => Some(state.clone()),
                    Some(_) => None,
                }
            }
            (StoreOp::Delete { key }, ret) => {
                let answered = match ret {
                    None => true,
                    Some(ret) => *ret == StoreRet::Deleted(held.is_some()),
                };
                let mut state = state.clone();
                state.remove(key);
                answered.then_some(state)
            }
            (StoreOp::Get { .. }, Some(StoreRet::Value(seen))) => {
                let fits = match (held, seen) {
                    (None, None) => true,
                    (Some((value, version)), Some((seen, at))) => {
                        value == seen && version.is_none_or(|version| version == *at)
                    }
                    _ => false,
                };
                fits.then(|| state.clone())
            }
            (StoreOp::List { .. }, Some(StoreRet::Listed(seen))) => {
                let mut shown = state.iter().zip(seen);
                let fits = state.len() == seen.len()
                    && shown.all(|((key, (_, version)), (seen, at))| {
                        key == seen && version.is_none_or(|version| version == *at)
                    });
                fits.then(|| state.clone())
            }
            (StoreOp::Get { .. } | StoreOp::List { .. }, None) => Some(state.clone()),
            _ => None,
        }
    }

    fn is_read(&self, op: &StoreOp, _ret: &StoreRet) -> bool {
        matches!(op, StoreOp::Get { .. } | StoreOp::List { .. })
    }

    fn state_bytes(&self, state: &Group) -> usize {
        let pair = size_of::<(String, (String, Option<u64>))>();
        state.iter().map(|(key, (value, _))| pair + key.len() + value.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use voussoir_sim::{History, check};

    use super::*;

    type Call = (StoreOp, StoreRet);

    fn put(key: &str, version: u64) -> Call {
        let value = version.to_string();
        (StoreOp::Put { key: key.to_owned(), value }, StoreRet::Written(version))
    }

    fn list(group: &str, seen: &[(&str, u64)]) -> Call {
        let seen = seen.iter().map(|(key, version)| ((*key).to_owned(), *version)).collect();
        (StoreOp::List { group: group.to_owned() }, StoreRet::Listed(seen))
    }

    /// One call after the other.
    fn is_linearizable(calls: &[Call]) -> bool {
        let mut history = History::new();
        for (time, (op, ret)) in (0..).zip(calls.iter().cloned()) {
            let call = history.invoke(1, op, time * 10);
            history.ok(call, ret, time * 10 + 5);
        }
        check(&StoreModel, &history, 10_000).is_ok()
    }

    #[test]
    fn a_listing_shows_every_key_of_its_group_at_one_time() {
        let written = [put("g/a", 1), put("g/b", 2), put("h/c", 3), put("g/a", 4)];
        let after =
            |seen: &[(&str, u64)]| is_linearizable(&[&written[..], &[list("g/", seen)]].concat());
        assert!(after(&[("g/a", 4), ("g/b", 2)]));
        assert!(!after(&[("g/a", 4)]), "a key is missing");
        assert!(!after(&[("g/a", 1), ("g/b", 2)]), "an old version is shown");
        assert!(!after(&[("g/a", 4), ("g/b", 2), ("g/c", 3)]), "a key was never written");
    }

    #[test]
    fn a_listing_is_one_moment_and_not_two() {
        // Both writes are under way while a listing sees the second and not the first, and a later
        // one the first and not the second.
        let mut history = History::new();
        let first = history.invoke(1, put("g/a", 1).0, 0);
        let second = history.invoke(2, put("g/b", 2).0, 1);
        for (time, seen) in [(2, &[("g/b", 2)][..]), (4, &[("g/a", 1)])] {
            let (op, ret) = list("g/", seen);
            let call = history.invoke(3, op, time);
            history.ok(call, ret, time + 1);
        }
        history.ok(first, StoreRet::Written(1), 8);
        history.ok(second, StoreRet::Written(2), 9);
        assert!(check(&StoreModel, &history, 10_000).is_err());
    }

    #[test]
    fn conditions_and_deletes_are_checked() {
        let key = || "g/a".to_owned();
        let cas = |expect: &str, ret| {
            (StoreOp::Cas { key: key(), expect: expect.to_owned(), value: "new".to_owned() }, ret)
        };
        let delete = |found| (StoreOp::Delete { key: key() }, StoreRet::Deleted(found));
        let get = |seen: Option<(&str, u64)>| {
            let seen = seen.map(|(value, version)| (value.to_owned(), version));
            (StoreOp::Get { key: key() }, StoreRet::Value(seen))
        };
        assert!(is_linearizable(&[put("g/a", 1), cas("1", StoreRet::Written(2)), delete(true)]));
        assert!(!is_linearizable(&[put("g/a", 1), cas("0", StoreRet::Written(2))]));
        assert!(!is_linearizable(&[put("g/a", 1), cas("1", StoreRet::Conflict)]));
        assert!(!is_linearizable(&[delete(true)]));
        assert!(is_linearizable(&[put("g/a", 1), get(Some(("1", 1))), delete(true), get(None)]));
        assert!(!is_linearizable(&[put("g/a", 1), get(Some(("1", 2)))]), "another version");
    }
}
