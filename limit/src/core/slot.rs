//! A slot in a table of words: whose word it is, and how it changes hands without a lock.
//!
//! A slot changes hands only when its word is as good as new, and the new word is greater than the
//! old. So a decision of the key that had it, having read the old word, fails at its exchange, and
//! one that reads the new word reads the new key with it. (A word that a refund lowered after it
//! was read is the exception: it would have to come back, for another key, to the very nanosecond.)

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::sync::AtomicU64;

/// The word of a slot that changes hands.
const HANDED_ON: u64 = u64::MAX;

/// The memory of a slot: the hash of a key, which stands for the key, and its word. A hash of 0:
/// never used. Zeroed memory is an empty table.
pub(crate) type Slot = [AtomicU64; 2];

/// One slot of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotRef<'a> {
    hash: &'a AtomicU64,
    pub(crate) word: &'a AtomicU64,
}

impl<'a> SlotRef<'a> {
    #[inline]
    pub(crate) fn at(slot: &'a Slot) -> Self {
        let [hash, word] = slot;
        Self { hash, word }
    }

    /// The hash of the key that has the slot. Another thread may be changing it.
    #[inline]
    pub(crate) fn hash(self) -> u64 {
        self.hash.load(Relaxed)
    }

    /// Returns a predicate: whether a word that was read belongs to the key of this hash.
    #[inline]
    pub(crate) fn of(self, hash: u64) -> impl Fn(u64) -> bool {
        move |word| {
            let held = self.hash.load(Acquire) == hash && self.word.load(Relaxed) == word;
            word != HANDED_ON && held
        }
    }

    /// Gives the slot, whose word is `old`, to another key, and returns the hash of the key that
    /// had it. `None` if the word is another by now. The caller holds the shard's newcomer lock.
    pub(crate) fn hand_on(self, old: u64, hash: u64, next: u64) -> Option<u64> {
        debug_assert!(next > old, "a decision by the old word could be exchanged into the new");
        self.word.compare_exchange(old, HANDED_ON, AcqRel, Relaxed).ok()?;
        let before = self.hash.swap(hash, AcqRel);
        self.word.store(next, Release);
        Some(before)
    }
}
