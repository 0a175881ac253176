//! Digests of states: what a read compares where it would be sent the same state again.

use bytes::Bytes;

use crate::merkle::HashKey;
use crate::version::{Siblings, codec};

/// How the states of a read are digested. The coordinator hands it to the replicas, so that one
/// rule holds at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digester {
    /// Whoever does not know it cannot make two states of one digest.
    pub key: HashKey,
    /// States of fewer bytes, in the form of
    /// [`encode_siblings`](crate::version::codec::encode_siblings), have no digest.
    pub min_bytes: u32,
}

impl Digester {
    /// The digest of a state, over its canonical bytes: equal states have equal digests, in
    /// whatever order they were merged. None: the state itself is as short.
    pub fn digest(&self, state: &Siblings<Bytes>) -> Option<u128> {
        if codec::siblings_bytes(state) < self.min_bytes as usize {
            return None;
        }
        Some(self.key.digest(&codec::encode_siblings(state)))
    }
}
