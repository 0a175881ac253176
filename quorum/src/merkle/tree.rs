//! The tree: sums of digests over ranges of hashed keys.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Answer, Entry, HashKey, MerkleConfig, NodeId, Question};
use crate::ConfigError;

/// Children of a node.
pub(super) const FAN_OUT: usize = 16;

/// A Merkle tree over the keys of a store and the digests of their states, for tables and Paxos
/// registers alike: what two replicas disagree on is found by comparing a few sums.
///
/// A write costs one hash, one insertion into an ordered map and one addition for each level; the
/// tree is never rebuilt. Sums are modulo 2^128 over a keyed hash of (key, digest), so they do not
/// depend on the order of writes, and an entry is taken out by subtracting it.
///
/// Memory: 16 bytes for each node (1.1 MiB with the default depth of 4), and for each key 48 bytes
/// and its entry in an ordered map; key bytes are shared with the store.
///
/// # Example
/// ```
/// use voussoir_quorum::Bytes;
/// use voussoir_quorum::merkle::{Exchange, HashKey, MerkleConfig, MerkleTree};
/// let key = HashKey::new(*b"one secret/table");
/// let mut here = MerkleTree::new(key, MerkleConfig::default())?;
/// let mut there = MerkleTree::new(key, MerkleConfig::default())?;
/// here.set(Bytes::from_static(b"cart/1"), key.digest(b"milk"));
/// there.set(Bytes::from_static(b"cart/1"), key.digest(b"milk, bread"));
/// let mut exchange = Exchange::new(&here);
/// while let Some(question) = exchange.question() {
///     let answer = there.answer(&question); // at the peer
///     exchange.answer(&here, answer)?;
/// }
/// assert_eq!(exchange.differing().collect::<Vec<_>>(), [&Bytes::from_static(b"cart/1")]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct MerkleTree {
    key: HashKey,
    config: MerkleConfig,
    /// The sums of each level, the root's first. Invariant: a node's sum is that of its children,
    /// and that of a bucket is the sum over its entries.
    levels: Vec<Vec<u128>>,
    /// By the hash of the key, whose first bits are the bucket.
    entries: BTreeMap<u128, Item>,
}

#[derive(Clone, Debug)]
struct Item {
    digest: u128,
    key: Bytes,
}

impl MerkleTree {
    /// A tree without keys.
    ///
    /// # Errors
    /// [`ConfigError`]: a field is out of range.
    pub fn new(key: HashKey, config: MerkleConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let level = |depth| vec![0; FAN_OUT.pow(u32::from(depth))];
        let levels = (0..=config.depth).map(level).collect();
        Ok(Self { key, config, levels, entries: BTreeMap::new() })
    }

    /// The configuration.
    pub fn config(&self) -> &MerkleConfig {
        &self.config
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The sum over all entries: equal at replicas that agree.
    pub fn root(&self) -> u128 {
        self.levels[0][0]
    }

    /// Records the state of a key by its digest, in the same step as the write itself. The digest
    /// covers the canonical state: [`HashKey::digest`] over `version::codec::encode_siblings`, and
    /// for a Paxos register over ballot, version and value of what was accepted.
    ///
    /// A tombstone that every replica has acknowledged is taken out by [`MerkleTree::remove`] at
    /// all replicas alike, whether they still hold it or not; otherwise "collected" and "deleted"
    /// would differ for ever.
    pub fn set(&mut self, key: Bytes, digest: u128) {
        let id = self.key.hash(&[&key]);
        let mut weight = self.weight(id, digest);
        if let Some(before) = self.entries.insert(id, Item { digest, key }) {
            weight = weight.wrapping_sub(self.weight(id, before.digest));
        }
        self.add(id, weight);
    }

    /// Takes a key out of the tree. Returns whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let id = self.key.hash(&[key]);
        self.take_out(id)
    }

    /// The digest of a key.
    pub fn get(&self, key: &[u8]) -> Option<u128> {
        Some(self.entries.get(&self.key.hash(&[key]))?.digest)
    }

    /// Answers a peer's question out of this tree. Questions that are out of range are answered
    /// with nothing; the length of an answer is bounded by the limits of questions.
    pub fn answer(&self, question: &Question) -> Answer {
        match question {
            Question::Sums { nodes } => {
                let nodes = nodes.iter().take(self.config.max_nodes);
                let known = nodes.filter(|node| self.has_children(**node));
                Answer::Sums { sums: known.map(|node| self.children(*node)).collect() }
            }
            Question::Entries { bucket, after } => {
                let limit = self.config.max_entries;
                let mut entries = self.entries_of(*bucket, *after).take(limit + 1);
                let found: Vec<Entry> = entries.by_ref().take(limit).collect();
                Answer::Entries { entries: found, is_last: entries.next().is_none() }
            }
            Question::Keys { ids } => {
                let ids = ids.iter().take(self.config.max_keys);
                let key = |id| self.entries.get(id).map(|item| item.key.clone());
                Answer::Keys { keys: ids.map(key).collect() }
            }
        }
    }

    pub(super) fn has_children(&self, node: NodeId) -> bool {
        let width = self.levels.get(usize::from(node.level)).map_or(0, Vec::len);
        node.level < self.config.depth && (node.at as usize) < width
    }

    /// The sums of a node's children.
    pub(super) fn children(&self, node: NodeId) -> [u128; FAN_OUT] {
        let first = node.at as usize * FAN_OUT;
        let level = &self.levels[usize::from(node.level) + 1];
        std::array::from_fn(|at| level[first + at])
    }

    /// The entries of a bucket behind the id `after`, in ascending order.
    pub(super) fn entries_of(
        &self,
        bucket: u32,
        after: Option<u128>,
    ) -> impl Iterator<Item = Entry> + '_ {
        let bits = 4 * u32::from(self.config.depth);
        // A bucket that does not exist has the range of one that does, and no entry.
        let first = u128::from(bucket) << (128 - bits);
        let last = first | (u128::MAX >> bits);
        let is_known = u64::from(bucket) < 1 << bits && after.is_none_or(|after| after < last);
        let from = after.map_or(first, |after| after.saturating_add(1).clamp(first, last));
        let range = is_known.then(|| self.entries.range(from..=last));
        range.into_iter().flatten().map(|(id, item)| Entry { id: *id, digest: item.digest })
    }

    pub(super) fn key_of(&self, id: u128) -> Option<&Bytes> {
        self.entries.get(&id).map(|item| &item.key)
    }

    pub(super) fn id_of(&self, key: &[u8]) -> u128 {
        self.key.hash(&[key])
    }

    fn take_out(&mut self, id: u128) -> bool {
        let Some(item) = self.entries.remove(&id) else { return false };
        let weight = self.weight(id, item.digest);
        self.add(id, weight.wrapping_neg());
        true
    }

    /// What an entry adds to the sums.
    fn weight(&self, id: u128, digest: u128) -> u128 {
        self.key.hash(&[&id.to_le_bytes(), &digest.to_le_bytes()])
    }

    fn add(&mut self, id: u128, weight: u128) {
        for (depth, level) in self.levels.iter_mut().enumerate() {
            let at = id.checked_shr(128 - 4 * depth as u32).unwrap_or(0) as usize;
            level[at] = level[at].wrapping_add(weight);
        }
    }
}
