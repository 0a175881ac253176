//! A counter that belongs to one bucket of one generation, in one word.

use std::sync::atomic::Ordering::Relaxed;

use crate::sync::AtomicU64;

const COUNT_BITS: u32 = 24;
/// The highest count. A counter saturates here instead of wrapping.
pub(crate) const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;
/// A recorder whose clock reading is older than what a counter holds is late by less than this
/// many buckets. Anything further apart is a counter that nobody has touched for ages.
const MAX_LATE_EPOCHS: u32 = 1 << 16;

/// Which bucket of which generation a count belongs to.
///
/// The generation keeps 8 bits: a counter is cleared at each change of generation, so that the
/// tag only has to tell apart recorders that were asleep while it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) generation: u8,
    pub(crate) epoch: u32,
}

impl Tag {
    const fn word(self, count: u64) -> u64 {
        (self.generation as u64) << 56 | (self.epoch as u64) << COUNT_BITS | count
    }

    const fn of(word: u64) -> Self {
        Self { generation: (word >> 56) as u8, epoch: (word >> COUNT_BITS) as u32 }
    }

    /// Whether `self` is a later bucket or generation than `other`.
    const fn is_past(self, other: Self) -> bool {
        if self.generation != other.generation {
            return self.generation.wrapping_sub(other.generation) < 128;
        }
        let ahead = self.epoch.wrapping_sub(other.epoch);
        ahead != 0 && ahead < MAX_LATE_EPOCHS
    }
}

/// Result of an addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// Counted; the value is the new count.
    Now(u64),
    /// Counted as the first of a new bucket; the old bucket had held so many.
    Fresh { retired: u64 },
    /// The counter belongs to a later bucket or generation: not counted.
    Late,
}

/// `[generation 8 | epoch 32 | count 24]`, changed by compare-and-swap only.
#[derive(Debug)]
pub(crate) struct Tagged(AtomicU64);

impl Tagged {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// [`add`](Self::add) in the usual case: false, and nothing done, if the counter is of another
    /// tag, full, or changed by another thread just now.
    #[inline]
    pub(crate) fn step(&self, tag: Tag) -> bool {
        let word = self.0.load(Relaxed);
        let count = word & MAX_COUNT;
        word == tag.word(count)
            && count < MAX_COUNT
            && self.0.compare_exchange(word, word + 1, Relaxed, Relaxed).is_ok()
    }

    /// Adds one to the count of `tag`.
    pub(crate) fn add(&self, tag: Tag) -> Added {
        let mut word = self.0.load(Relaxed);
        // Ends: lock-free. An exchange fails spuriously, or because another thread's succeeded, and
        // each thread makes one for each call that it records.
        loop {
            let held = Tag::of(word);
            let count = word & MAX_COUNT;
            let (next, added) = if held == tag {
                if count == MAX_COUNT {
                    return Added::Now(count);
                }
                (word + 1, Added::Now(count + 1))
            } else if held.is_past(tag) {
                return Added::Late;
            } else {
                (tag.word(1), Added::Fresh { retired: count })
            };
            match self.0.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return added,
                Err(seen) => word = seen,
            }
        }
    }

    /// The count under `tag`; 0 if the counter holds another tag.
    pub(crate) fn count(&self, tag: Tag) -> u64 {
        let word = self.0.load(Relaxed);
        if Tag::of(word) == tag { word & MAX_COUNT } else { 0 }
    }

    /// The count under any tag.
    pub(crate) fn raw(&self) -> u64 {
        self.0.load(Relaxed) & MAX_COUNT
    }

    /// Sets the count of `tag` to zero if the counter holds it and it is not zero already.
    pub(crate) fn zero(&self, tag: Tag) {
        let mut word = self.0.load(Relaxed);
        // Ends: as in `add`; a counter that another thread has zeroed needs no further round.
        while Tag::of(word) == tag && word & MAX_COUNT != 0 {
            match self.0.compare_exchange_weak(word, tag.word(0), Relaxed, Relaxed) {
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }

    /// Replaces the counter with (`tag`, `count`) and returns the old count. The caller must hold
    /// the lock of the transitions.
    pub(crate) fn set(&self, tag: Tag, count: u64) -> u64 {
        self.0.swap(tag.word(count.min(MAX_COUNT)), Relaxed) & MAX_COUNT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(generation: u8, epoch: u32) -> Tag {
        Tag { generation, epoch }
    }

    #[test]
    fn counts_of_other_buckets_do_not_show() {
        let counter = Tagged::new();
        assert_eq!(counter.add(tag(1, 5)), Added::Fresh { retired: 0 });
        assert_eq!(counter.add(tag(1, 5)), Added::Now(2));
        assert_eq!(counter.count(tag(1, 5)), 2);
        assert_eq!(counter.count(tag(1, 6)), 0);
        assert_eq!(counter.count(tag(2, 5)), 0);
        assert_eq!(counter.add(tag(1, 13)), Added::Fresh { retired: 2 });
        assert_eq!(counter.count(tag(1, 5)), 0);
    }

    #[test]
    fn late_recorders_are_not_counted() {
        let counter = Tagged::new();
        counter.add(tag(2, 9));
        assert_eq!(counter.add(tag(2, 8)), Added::Late);
        assert_eq!(counter.add(tag(1, 9)), Added::Late);
        assert_eq!(counter.add(tag(1, 10)), Added::Late);
        assert_eq!(counter.count(tag(2, 9)), 1);
    }

    #[test]
    fn generations_and_epochs_wrap() {
        let counter = Tagged::new();
        counter.set(tag(255, u32::MAX), 3);
        assert_eq!(counter.add(tag(255, 0)), Added::Fresh { retired: 3 });
        assert_eq!(counter.add(tag(0, 0)), Added::Fresh { retired: 1 });
        assert_eq!(counter.add(tag(255, 0)), Added::Late);
    }

    #[test]
    fn a_counter_asleep_for_half_the_epochs_still_counts() {
        let counter = Tagged::new();
        counter.add(tag(1, 10));
        assert_eq!(counter.add(tag(1, 10 + (1 << 31) + 7)), Added::Fresh { retired: 1 });
    }

    #[test]
    fn a_full_counter_stays_full() {
        let counter = Tagged::new();
        counter.set(tag(1, 1), u64::MAX);
        assert_eq!(counter.add(tag(1, 1)), Added::Now(MAX_COUNT));
        assert_eq!(counter.count(tag(1, 1)), MAX_COUNT);
    }
}
