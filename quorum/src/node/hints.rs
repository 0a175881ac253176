//! Hinted handoff: which replica has missed which key.
//!
//! A hint is a key, and not a value: what is handed over is the state that the node holds by then.
//! Hints live in memory. One that is lost, with its process or because there are too many, delays
//! convergence and costs nothing else.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use parking_lot::Mutex;

/// The keys that other replicas have missed.
pub(super) struct Hints {
    max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: BTreeMap<u64, BTreeSet<Bytes>>,
    /// Invariant: how many they are, at most `max`.
    count: usize,
    dropped: u64,
}

impl Hints {
    pub(super) fn new(max: usize) -> Self {
        Self { max, state: Mutex::default() }
    }

    /// Records that a replica has missed a key.
    pub(super) fn add(&self, replica: u64, key: Bytes) {
        let mut state = self.state.lock();
        let is_known = state.keys.get(&replica).is_some_and(|keys| keys.contains(&key));
        if is_known {
            return;
        }
        if state.count >= self.max {
            state.dropped += 1;
            return;
        }
        state.count += 1;
        state.keys.entry(replica).or_default().insert(key);
    }

    /// Up to `max` keys that the replica has missed. They stay until they are removed.
    pub(super) fn of(&self, replica: u64, max: usize) -> Vec<Bytes> {
        let state = self.state.lock();
        state.keys.get(&replica).into_iter().flatten().take(max).cloned().collect()
    }

    /// Takes a key before its state is read: a write that is missed meanwhile adds it again.
    pub(super) fn remove(&self, replica: u64, key: &Bytes) {
        let mut state = self.state.lock();
        if state.keys.get_mut(&replica).is_some_and(|keys| keys.remove(key)) {
            state.count -= 1;
        }
    }

    /// How many keys there are, and how many were dropped.
    pub(super) fn counts(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.count, state.dropped)
    }
}
