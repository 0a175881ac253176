//! The Merkle tree of a node: what its store holds, for comparisons with other replicas.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::merkle::{Answer, Exchange, ExchangeError, HashKey, MerkleTree, Question};
use crate::paxos::Record;
use crate::store::Change;
use crate::version::codec;
use crate::wire::{Space, compare_limits, decode_record, encode_record};

/// The digests of all durable records of a table and its registers, by their keys in the store.
pub(super) struct Tree {
    key: HashKey,
    state: Mutex<State>,
}

struct State {
    tree: MerkleTree,
    /// The keys of the table alone, for comparisons with other regions: registers are each
    /// region's own.
    table: Option<MerkleTree>,
    /// The keys of the table whose record is a tombstone, for their collection. Invariant: `tree`
    /// has each of them.
    tombstones: BTreeSet<Bytes>,
    /// Keys that were removed while the records of the store are being read. None: all were read.
    removed: Option<HashSet<Bytes>>,
}

/// What a change of the store makes of a key's digest.
pub(super) struct Digest {
    key: Bytes,
    /// None: the key has none.
    value: Option<u128>,
    /// The record is a tombstone of the table.
    is_tombstone: bool,
}

impl Tree {
    /// The tree of an empty store, or of one whose records are given to [`Tree::fill`].
    /// With a second one of the table alone if it is compared with other regions.
    pub(super) fn new(key: HashKey, is_filled: bool, is_regional: bool) -> Self {
        let tree = || MerkleTree::new(key, compare_limits()).expect("the limits are within range");
        let table = is_regional.then(tree);
        let removed = (!is_filled).then(HashSet::new);
        Self {
            key,
            state: Mutex::new(State { tree: tree(), table, tombstones: BTreeSet::new(), removed }),
        }
    }

    /// The digest of a change, to be recorded when the change is durable. None: it is of the node
    /// itself.
    pub(super) fn digest(&self, change: &Change) -> Option<Digest> {
        let digest = change.record.as_ref().map(|record| self.digest_of(&change.key, record));
        let is_compared = [Space::Table, Space::Registers]
            .iter()
            .any(|space| change.key.first() == Some(&space.prefix()));
        let is_tombstone = is_of_table(&change.key)
            && change.record.as_ref().is_some_and(|record| codec::is_tombstone(record));
        let key = change.key.clone();
        is_compared.then(|| Digest { key, value: digest.flatten(), is_tombstone })
    }

    /// Of a register only what was accepted counts: acceptors that agree on it have promised
    /// different ballots.
    fn digest_of(&self, key: &[u8], record: &Bytes) -> Option<u128> {
        if key.first() == Some(&Space::Registers.prefix())
            && let Ok(record) = decode_record(record.clone())
        {
            let (promised, state) = record.accepted?;
            let accepted = Record { promised, accepted: Some((promised, state)) };
            return Some(self.key.digest(&encode_record(&accepted)));
        }
        Some(self.key.digest(record))
    }

    /// Records what has become durable, in the order of the changes.
    pub(super) fn written(&self, digests: Vec<Digest>) {
        let mut state = self.state.lock();
        for Digest { key, value: digest, is_tombstone } in digests {
            if let Some(digest) = digest {
                state.set(key, digest, is_tombstone);
                continue;
            }
            state.remove(&key);
            if let Some(removed) = &mut state.removed {
                removed.insert(key);
            }
        }
    }

    /// Adds records that were read from the store: those that no write has changed meanwhile.
    pub(super) fn fill(&self, records: Vec<(Bytes, Bytes)>) {
        let digest = |(key, record)| self.digest(&Change { key, record: Some(record) });
        let digests: Vec<Digest> = records.into_iter().filter_map(digest).collect();
        let mut state = self.state.lock();
        for Digest { key, value: digest, is_tombstone } in digests {
            let is_removed = state.removed.as_ref().is_none_or(|removed| removed.contains(&key));
            if let Some(digest) = digest
                && !is_removed
                && state.tree.get(&key).is_none()
            {
                state.set(key, digest, is_tombstone);
            }
        }
    }

    /// How many tombstones of the table the store holds; of those that were read, while it is
    /// still being read.
    pub(super) fn tombstones(&self) -> usize {
        self.state.lock().tombstones.len()
    }

    /// Up to `max` keys of tombstones behind a key, in ascending order.
    pub(super) fn tombstones_after(&self, key: &Bytes, max: usize) -> Vec<Bytes> {
        let behind = (Bound::Excluded(key.clone()), Bound::Unbounded);
        self.state.lock().tombstones.range(behind).take(max).cloned().collect()
    }

    /// All records of the store were given to [`Tree::fill`].
    pub(super) fn filled(&self) {
        self.state.lock().removed = None;
    }

    /// How many keys it has. None: the store is still being read.
    pub(super) fn len(&self) -> Option<usize> {
        let state = self.state.lock();
        state.removed.is_none().then(|| state.tree.len())
    }

    /// Answers a question of another replica. None: the store is still being read.
    pub(super) fn answer(&self, question: &Question) -> Option<Answer> {
        let state = self.state.lock();
        state.removed.is_none().then(|| state.tree.answer(question))
    }

    /// Begins a comparison. None: the store is still being read.
    pub(super) fn compare(&self) -> Option<Exchange> {
        let state = self.state.lock();
        state.removed.is_none().then(|| Exchange::new(&state.tree))
    }

    /// Takes the answer of the other replica.
    pub(super) fn go_on(
        &self,
        exchange: &mut Exchange,
        answer: Answer,
    ) -> Result<(), ExchangeError> {
        exchange.answer(&self.state.lock().tree, answer)
    }

    /// As [`Tree::answer`], of the keys of the table alone.
    pub(super) fn answer_table(&self, question: &Question) -> Option<Answer> {
        let state = self.state.lock();
        let table = state.table.as_ref().filter(|_| state.removed.is_none());
        table.map(|table| table.answer(question))
    }

    /// As [`Tree::compare`], of the keys of the table alone.
    pub(super) fn compare_table(&self) -> Option<Exchange> {
        let state = self.state.lock();
        state.table.as_ref().filter(|_| state.removed.is_none()).map(Exchange::new)
    }

    /// Takes the answer of another region.
    pub(super) fn go_on_table(
        &self,
        exchange: &mut Exchange,
        answer: Answer,
    ) -> Result<(), ExchangeError> {
        match &self.state.lock().table {
            Some(table) => exchange.answer(table, answer),
            None => Ok(()),
        }
    }
}

impl State {
    fn set(&mut self, key: Bytes, digest: u128, is_tombstone: bool) {
        if is_tombstone {
            self.tombstones.insert(key.clone());
        } else {
            self.tombstones.remove(&key);
        }
        if let Some(table) = self.table.as_mut().filter(|_| is_of_table(&key)) {
            table.set(key.clone(), digest);
        }
        self.tree.set(key, digest);
    }

    fn remove(&mut self, key: &Bytes) {
        self.tombstones.remove(key);
        if let Some(table) = self.table.as_mut().filter(|_| is_of_table(key)) {
            table.remove(key);
        }
        self.tree.remove(key);
    }
}

fn is_of_table(key: &[u8]) -> bool {
    key.first() == Some(&Space::Table.prefix())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &'static [u8], record: Option<&'static [u8]>) -> Change {
        Change { key: Bytes::from_static(key), record: record.map(Bytes::from_static) }
    }

    /// The page was read before the record was removed, and arrives after it.
    #[test]
    fn a_record_that_was_removed_while_the_store_was_read_stays_removed() {
        let tree = Tree::new(HashKey::new([1; 16]), false, true);
        let write = |change| tree.written(tree.digest(&change).into_iter().collect());
        write(change(b"ta", Some(b"new")));
        write(change(b"tb", None));
        write(change(b"m", Some(b"of the node itself")));
        let page = [(&b"ta"[..], &b"old"[..]), (b"tb", b"old"), (b"tc", b"old")];
        let page = page.map(|(key, record)| (Bytes::from_static(key), Bytes::from_static(record)));
        tree.fill(page.to_vec());
        assert_eq!(tree.len(), None, "not all was read");
        tree.filled();
        assert_eq!(tree.len(), Some(2));
        let expected = Tree::new(HashKey::new([1; 16]), true, true);
        for change in [change(b"tc", Some(b"old")), change(b"ta", Some(b"new"))] {
            expected.written(expected.digest(&change).into_iter().collect());
        }
        assert_eq!(tree.state.lock().tree.root(), expected.state.lock().tree.root());
        // Of registers the tree of the table knows nothing, and of the table everything.
        let root = |tree: &Tree| tree.state.lock().table.as_ref().unwrap().root();
        assert_eq!(root(&tree), tree.state.lock().tree.root());
        write(change(b"pa", Some(b"a register")));
        assert_eq!(root(&tree), root(&expected));
        write(change(b"ta", None));
        assert_ne!(root(&tree), root(&expected));
    }
}
