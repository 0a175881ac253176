//! What replicas have answered to a read.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Digester;
use crate::version::Siblings;

/// The answers to one read, in which a digest stands for the state that it is the digest of.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    /// None: no replica is asked for a digest.
    digester: Option<Digester>,
    /// By replica: the states that came, and those whose digest is that of one that came.
    states: BTreeMap<u64, Siblings<Bytes>>,
    /// The states that came, by their digests.
    known: BTreeMap<u128, Siblings<Bytes>>,
    /// Digests that are those of no state that came, by replica.
    unmatched: BTreeMap<u64, u128>,
}

impl Answers {
    pub(super) fn new(digester: Option<Digester>) -> Self {
        let (states, known, unmatched) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { digester, states, known, unmatched }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.digester);
    }

    /// The state of each replica of which it is known.
    pub(super) fn states(&self) -> &BTreeMap<u64, Siblings<Bytes>> {
        &self.states
    }

    /// How the states are digested that replicas are asked to compare.
    pub(super) fn digester(&self) -> Option<Digester> {
        self.digester
    }

    /// A replica has sent its state: it stands for every digest that is equal to its own.
    pub(super) fn add_state(&mut self, from: u64, state: Siblings<Bytes>) {
        if let Some(digest) = self.digester.and_then(|digester| digester.digest(&state)) {
            let equal = self.unmatched.iter().filter(|(_, unmatched)| **unmatched == digest);
            self.states.extend(equal.map(|(replica, _)| (*replica, state.clone())));
            self.unmatched.retain(|_, unmatched| *unmatched != digest);
            self.known.insert(digest, state.clone());
        }
        self.states.insert(from, state);
    }

    /// A replica has sent the digest of its state.
    pub(super) fn add_digest(&mut self, from: u64, digest: u128) {
        match self.known.get(&digest) {
            Some(state) => drop(self.states.insert(from, state.clone())),
            None => drop(self.unmatched.insert(from, digest)),
        }
    }

    /// The replicas whose digests are those of no state that came, each of them once. None before
    /// the first state has come.
    pub(super) fn take_unmatched(&mut self) -> Vec<u64> {
        if self.states.is_empty() {
            return Vec::new();
        }
        std::mem::take(&mut self.unmatched).into_keys().collect()
    }
}
