//! A window over the last so many calls.
//!
//! The calls counted so far number the calls, and only a bad call leaves a mark at its number. So a
//! success changes one word of its thread's own stripe, and nothing that other threads write.

use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::{Counts, Export, Sample};
use crate::core::striped::Striped;
use crate::sync::{AtomicU64, fence};

const GENERATION_SHIFT: u32 = 56;
const COUNT_MASK: u64 = (1 << GENERATION_SHIFT) - 1;

/// Calls that share a word of marks.
const CHUNK: u64 = 8;
const CHUNK_SHIFT: u32 = 16;
const FAILED: u64 = 1;
const SLOW: u64 = 1 << CHUNK;
const MARKS_MASK: u64 = (1 << CHUNK_SHIFT) - 1;

/// The last `span` calls.
#[derive(Debug)]
pub(crate) struct CountWindow {
    span: u64,
    /// `[generation 8 | calls 56]` each. Calls are counted on from generation to generation.
    stripes: Striped,
    /// The number of the present generation's first call.
    base: AtomicU64,
    /// A ring of `[chunk 48 | slow 8 | failed 8]`: the marks of eight calls in a row.
    marks: Box<[AtomicU64]>,
    failures: AtomicU64,
    slow: AtomicU64,
}

impl CountWindow {
    pub(super) fn new(calls: u32, stripes: u32) -> Self {
        debug_assert!(calls > 0, "validated by the configuration");
        let span = u64::from(calls);
        // A window may begin and end within a chunk.
        let chunks = span / CHUNK + 2;
        Self {
            span,
            stripes: Striped::new(stripes),
            base: AtomicU64::new(0),
            marks: (0..chunks).map(|_| AtomicU64::new(0)).collect(),
            failures: AtomicU64::new(0),
            slow: AtomicU64::new(0),
        }
    }

    /// Counts a call that was neither failed nor slow; false if the generation is over.
    #[inline]
    pub(super) fn add_good(&self, generation: u8) -> bool {
        count(self.stripes.own(), generation)
    }

    pub(super) fn add(&self, generation: u8, sample: Sample) {
        // The call before its badness, so that no reader sees more bad calls than calls.
        if self.add_good(generation) && (sample.failed || sample.slow) {
            self.mark(generation, sample);
        }
    }

    /// Marks a call that was just counted: at the last number, or at the nearest one before it that
    /// another bad call has not taken.
    ///
    /// There is one. Take all bad calls that start their search at or below some number: the last
    /// of them to be counted has seen all of them counted, so they are no more than there are
    /// numbers up to there. And none that starts above it comes down past a free one.
    fn mark(&self, generation: u8, sample: Sample) {
        self.failures.fetch_add(u64::from(sample.failed), Relaxed);
        self.slow.fetch_add(u64::from(sample.slow), Relaxed);
        // Of two that were counted in different stripes, at least one sees the other.
        fence(SeqCst);
        let Some(mut number) = self.calls(generation) else { return };
        let base = self.base.load(Relaxed);
        let marks = u64::from(sample.failed) * FAILED + u64::from(sample.slow) * SLOW;
        // Ends: the number falls to `base`, which does not change within a generation.
        while number > base {
            number -= 1;
            if self.put(number, marks) {
                return;
            }
        }
    }

    /// Puts marks at a number; false if it is taken. A call that was overtaken by a whole window
    /// is out of it.
    fn put(&self, number: u64, marks: u64) -> bool {
        let (chunk, bit) = (number / CHUNK, number % CHUNK);
        let place = self.place(chunk);
        let mut word = place.load(Relaxed);
        // Ends: lock-free. Another thread's exchange sets one more of a chunk's 16 marks or moves
        // the place on to a later chunk, which ends this search.
        loop {
            let held = word >> CHUNK_SHIFT;
            if held > chunk {
                return true;
            }
            let others = if held == chunk { word & MARKS_MASK } else { 0 };
            if others & ((FAILED | SLOW) << bit) != 0 {
                return false;
            }
            let next = chunk << CHUNK_SHIFT | others | marks << bit;
            match place.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(seen) => word = seen,
            }
        }
    }

    fn place(&self, chunk: u64) -> &AtomicU64 {
        &self.marks[(chunk % self.marks.len() as u64) as usize]
    }

    /// The chunks that hold some numbers, each with its marks.
    fn chunks(&self, numbers: &Range<u64>) -> impl Iterator<Item = (u64, u64)> {
        let chunks = numbers.start / CHUNK..numbers.end.div_ceil(CHUNK);
        // Once round the ring, without a division for each word.
        let first = (chunks.start % self.marks.len() as u64) as usize;
        let (before, from) = self.marks.split_at(first);
        chunks.zip(from.iter().chain(before)).map(|(chunk, place)| {
            let word = place.load(Relaxed);
            (chunk, if word >> CHUNK_SHIFT == chunk { word & MARKS_MASK } else { 0 })
        })
    }

    /// Calls counted so far, by this generation and those before it; `None` if that is over.
    fn calls(&self, generation: u8) -> Option<u64> {
        let count = |word: u64| (self::generation(word) == generation).then_some(word & COUNT_MASK);
        self.stripes.iter().map(|stripe| count(stripe.load(Relaxed))).sum()
    }

    /// The numbers that the window holds.
    fn numbers(&self, generation: u8) -> Range<u64> {
        let end = self.calls(generation).unwrap_or(0);
        let start = end.saturating_sub(self.span).max(self.base.load(Relaxed));
        start.min(end)..end
    }

    pub(super) fn sum(&self, generation: u8) -> Counts {
        let numbers = self.numbers(generation);
        let mut counts = Counts { calls: numbers.end - numbers.start, failures: 0, slow: 0 };
        for (chunk, marks) in self.chunks(&numbers).filter(|(_, marks)| *marks != 0) {
            let bit = |number: u64| number.saturating_sub(chunk * CHUNK).min(CHUNK);
            let held = (1 << bit(numbers.end)) - (1 << bit(numbers.start));
            counts.failures += u64::from((marks & held).count_ones());
            counts.slow += u64::from((marks >> CHUNK & held).count_ones());
        }
        counts
    }

    pub(super) fn reset(&self, generation: u8) {
        let next = |word| Some(start(generation) | word & COUNT_MASK);
        let retag = |stripe: &AtomicU64| match stripe.fetch_update(Relaxed, Relaxed, next) {
            Ok(word) | Err(word) => word & COUNT_MASK,
        };
        self.base.store(self.stripes.iter().map(retag).sum(), Relaxed);
    }

    pub(super) fn lifetime(&self) -> Counts {
        let calls = |stripe: &AtomicU64| stripe.load(Relaxed) & COUNT_MASK;
        Counts {
            calls: self.stripes.iter().map(calls).sum(),
            failures: self.failures.load(Relaxed),
            slow: self.slow.load(Relaxed),
        }
    }

    pub(super) fn export(&self, generation: u8) -> Export {
        let numbers = self.numbers(generation);
        let calls = self.chunks(&numbers).flat_map(|(chunk, marks)| {
            let bit = move |bit| {
                let is = |mark: u64| u64::from(marks & mark << bit != 0);
                (chunk * CHUNK + bit, Counts { calls: 1, failures: is(FAILED), slow: is(SLOW) })
            };
            (0..CHUNK).map(bit)
        });
        let age = |number| u32::try_from(numbers.end - 1 - number).unwrap_or(u32::MAX);
        calls
            .filter(|(number, _)| numbers.contains(number))
            .map(|(number, counts)| (age(number), counts))
            .collect()
    }

    pub(super) fn import(&self, generation: u8, export: &[(u32, Counts)]) {
        for (_, counts) in export {
            // A part of several is taken as that many alike.
            for _ in 0..counts.calls.min(self.span) {
                let (failed, slow) = (counts.failures > 0, counts.slow > 0);
                self.add(generation, Sample { failed, slow });
            }
        }
    }
}

fn generation(word: u64) -> u8 {
    (word >> GENERATION_SHIFT) as u8
}

fn start(generation: u8) -> u64 {
    u64::from(generation) << GENERATION_SHIFT
}

/// Adds a call to a stripe as long as that is of `generation`.
#[inline]
fn count(stripe: &AtomicU64, generation: u8) -> bool {
    let mut word = stripe.load(Relaxed);
    // Ends: lock-free. An exchange fails spuriously, or because another call was counted.
    while self::generation(word) == generation {
        match stripe.compare_exchange_weak(word, word + 1, Relaxed, Relaxed) {
            Ok(_) => return true,
            Err(seen) => word = seen,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const OK: Sample = Sample { failed: false, slow: false };
    const BAD: Sample = Sample { failed: true, slow: true };

    fn sample(failed: bool, slow: bool) -> Sample {
        Sample { failed, slow }
    }

    #[test]
    fn the_oldest_call_leaves_first() {
        let window = CountWindow::new(3, 2);
        window.reset(1);
        window.add(1, sample(true, false));
        window.add(1, sample(false, true));
        window.add(1, sample(true, true));
        assert_eq!(window.sum(1), Counts { calls: 3, failures: 2, slow: 2 });
        window.add(1, OK);
        assert_eq!(window.sum(1), Counts { calls: 3, failures: 1, slow: 2 });
        window.add(1, OK);
        assert_eq!(window.sum(1), Counts { calls: 3, failures: 1, slow: 1 });
        assert_eq!(window.lifetime(), Counts { calls: 5, failures: 2, slow: 2 });
    }

    #[test]
    fn bad_calls_that_saw_the_same_count_are_all_marked() {
        let window = CountWindow::new(20, 2);
        window.reset(1);
        for _ in 0..12 {
            window.add(1, OK);
        }
        // All twelve were counted before the first of them looked at the count.
        for marked in 1..=12 {
            window.mark(1, BAD);
            assert_eq!(window.sum(1), Counts { calls: 12, failures: marked, slow: marked });
        }
    }

    #[test]
    fn an_overtaken_call_is_out_of_the_window() {
        let window = CountWindow::new(2, 1);
        window.reset(1);
        for _ in 0..100 {
            window.add(1, BAD);
        }
        assert!(window.put(0, FAILED), "nothing to do for it");
        assert_eq!(window.sum(1), Counts { calls: 2, failures: 2, slow: 2 });
    }

    #[test]
    fn another_generation_starts_empty_and_hears_nothing_of_the_old_one() {
        let window = CountWindow::new(2, 2);
        window.reset(1);
        window.add(1, OK);
        window.reset(2);
        // One that was counted in time and asleep when it was to be marked, and one too late.
        window.mark(1, BAD);
        window.add(1, BAD);
        assert_eq!(window.sum(2), Counts::default());
        assert_eq!(window.lifetime(), Counts { calls: 1, failures: 1, slow: 1 });
        window.add(2, OK);
        assert_eq!(window.sum(2), Counts { calls: 1, failures: 0, slow: 0 });
    }

    #[test]
    fn an_export_keeps_order() {
        let window = CountWindow::new(3, 1);
        window.reset(1);
        for failed in [true, true, false, false, true] {
            window.add(1, sample(failed, false));
        }
        let other = CountWindow::new(3, 4);
        other.reset(4);
        other.import(4, &window.export(1));
        assert_eq!(other.export(4), window.export(1));
        other.add(4, OK);
        other.add(4, OK);
        assert_eq!(other.sum(4).failures, 1);
    }

    proptest! {
        #[test]
        fn it_holds_the_last_calls(
            span in 1..70_u32,
            resets in 0..3_u8,
            calls in prop::collection::vec(
                (prop::bool::weighted(0.3), prop::bool::weighted(0.2)),
                1..400,
            ),
        ) {
            let window = CountWindow::new(span, 2);
            for generation in 0..=resets {
                window.reset(generation);
                let mut last = VecDeque::new();
                for (failed, slow) in &calls {
                    window.add(generation, sample(*failed, *slow));
                    last.push_back((*failed, *slow));
                    if last.len() > span as usize {
                        last.pop_front();
                    }
                    let count = |is: fn(&(bool, bool)) -> bool| {
                        last.iter().filter(|call| is(call)).count() as u64
                    };
                    prop_assert_eq!(window.sum(generation), Counts {
                        calls: last.len() as u64,
                        failures: count(|call| call.0),
                        slow: count(|call| call.1),
                    });
                }
            }
        }
    }
}
