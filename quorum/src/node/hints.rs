//! Hinted handoff: which replica has missed which key.
//!
//! A hint is a key, and not a value: what is handed over is what the replicas hold by then.
//! Hints live in memory. One that is lost, with its process or because there are too many, delays
//! convergence and costs nothing else: [`Node::repair`](super::Node::repair) finds the key.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use parking_lot::Mutex;

/// What a node has to hand over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HintStats {
    /// Keys that other replicas have missed.
    pub waiting: usize,
    /// Keys that were left to read repair and [`Node::repair`](super::Node::repair), because there
    /// were more than `max_hints`.
    pub dropped: u64,
    /// Keys that the replica refused: together with what it holds they are too long. It differs
    /// until a client has merged the key's siblings.
    pub refused: u64,
}

/// The keys that replicas have missed, this node's own among them.
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
    refused: u64,
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

    /// Forgets the hints of nodes that are no replicas any more.
    pub(super) fn retain(&self, is_replica: impl Fn(u64) -> bool) {
        let mut state = self.state.lock();
        state.keys.retain(|replica, _| is_replica(*replica));
        state.count = state.keys.values().map(BTreeSet::len).sum();
    }

    /// Counts a key that its replica refused.
    pub(super) fn refused(&self) {
        self.state.lock().refused += 1;
    }

    pub(super) fn stats(&self) -> HintStats {
        let state = self.state.lock();
        HintStats { waiting: state.count, dropped: state.dropped, refused: state.refused }
    }
}
