//! A window over the last so many calls.

use std::sync::atomic::Ordering::Relaxed;

use super::{Counts, Export, Sample};
use crate::core::padded::Padded;
use crate::sync::AtomicU64;

const GENERATION_SHIFT: u32 = 56;
const INDEX_MASK: u64 = (1 << GENERATION_SHIFT) - 1;

const HELD: u64 = 1;
const FAILED: u64 = 2;
const SLOW: u64 = 4;
const FLAG_BITS: u32 = 3;
const FLAG_MASK: u64 = (1 << FLAG_BITS) - 1;

const FAILURE_SHIFT: u32 = 28;
const FAILURE: u64 = 1 << FAILURE_SHIFT;
const BAD_MASK: u64 = FAILURE - 1;

fn generation(word: u64) -> u8 {
    (word >> GENERATION_SHIFT) as u8
}

fn start(generation: u8) -> u64 {
    u64::from(generation) << GENERATION_SHIFT
}

/// A ring of outcomes. Each place remembers whose call it holds, `[generation 8 | call 53 |
/// flags 3]`, so that a recorder that was overtaken by a whole round finds out.
#[derive(Debug)]
pub(crate) struct CountWindow {
    places: Box<[AtomicU64]>,
    /// `[generation 8 | calls begun 56]`.
    head: Padded<AtomicU64>,
    /// `[generation 8 | failures 28 | slow 28]` over the ring.
    bad: Padded<AtomicU64>,
    retired: Padded<[AtomicU64; 3]>,
}

impl CountWindow {
    pub(super) fn new(calls: u32) -> Self {
        debug_assert!(calls > 0, "validated by the configuration");
        Self {
            places: (0..calls).map(|_| AtomicU64::new(0)).collect(),
            head: Padded(AtomicU64::new(0)),
            bad: Padded(AtomicU64::new(0)),
            retired: Padded([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)]),
        }
    }

    pub(super) fn add(&self, generation: u8, sample: Sample) {
        let Some(call) = update(&self.head, generation, |head| head + 1) else { return };
        let call = call & INDEX_MASK;
        // Counted before it is published: who takes it out of the ring finds it in the count.
        let delta = u64::from(sample.failed) * FAILURE + u64::from(sample.slow);
        if delta > 0 && update(&self.bad, generation, |bad| bad + delta).is_none() {
            return;
        }
        let flags = HELD | (u64::from(sample.failed) * FAILED) | (u64::from(sample.slow) * SLOW);
        let leaving = self.publish(generation, call, flags);
        let delta = u64::from(leaving & FAILED > 0) * FAILURE + u64::from(leaving & SLOW > 0);
        if delta > 0 && update(&self.bad, generation, |bad| bad - delta).is_some() {
            self.retired[1].fetch_add(delta >> FAILURE_SHIFT, Relaxed);
            self.retired[2].fetch_add(delta & BAD_MASK, Relaxed);
        }
    }

    /// Puts a call into its place; returns the flags of the one that leaves the window for it,
    /// which is the call itself if it was overtaken.
    fn publish(&self, generation: u8, call: u64, flags: u64) -> u64 {
        let place = &self.places[(call % self.places.len() as u64) as usize];
        let next = start(generation) | call << FLAG_BITS | flags;
        let mut word = place.load(Relaxed);
        loop {
            let is_same = self::generation(word) == generation;
            if !is_same && is_past(word, generation) {
                return 0;
            }
            if is_same && word & HELD > 0 && (word & INDEX_MASK) >> FLAG_BITS > call {
                return flags;
            }
            match place.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return if is_same { word & FLAG_MASK } else { 0 },
                Err(seen) => word = seen,
            }
        }
    }

    pub(super) fn sum(&self, generation: u8) -> Counts {
        let (head, bad) = (self.head.load(Relaxed), self.bad.load(Relaxed));
        if self::generation(head) != generation || self::generation(bad) != generation {
            return Counts::default();
        }
        Counts {
            calls: (head & INDEX_MASK).min(self.places.len() as u64),
            failures: (bad & INDEX_MASK) >> FAILURE_SHIFT,
            slow: bad & BAD_MASK,
        }
    }

    pub(super) fn reset(&self, generation: u8) {
        let head = self.head.swap(start(generation), Relaxed) & INDEX_MASK;
        let bad = self.bad.swap(start(generation), Relaxed) & INDEX_MASK;
        for place in &self.places {
            place.store(start(generation), Relaxed);
        }
        self.retired[0].fetch_add(head, Relaxed);
        self.retired[1].fetch_add(bad >> FAILURE_SHIFT, Relaxed);
        self.retired[2].fetch_add(bad & BAD_MASK, Relaxed);
    }

    pub(super) fn lifetime(&self) -> Counts {
        let bad = self.bad.load(Relaxed) & INDEX_MASK;
        Counts {
            calls: self.retired[0].load(Relaxed) + (self.head.load(Relaxed) & INDEX_MASK),
            failures: self.retired[1].load(Relaxed) + (bad >> FAILURE_SHIFT),
            slow: self.retired[2].load(Relaxed) + (bad & BAD_MASK),
        }
    }

    pub(super) fn export(&self, generation: u8) -> Export {
        let mut held: Vec<u64> = self.places.iter().map(|place| place.load(Relaxed)).collect();
        held.retain(|word| self::generation(*word) == generation && word & HELD > 0);
        held.sort_unstable();
        let last = held.len();
        let age = |at: usize| u32::try_from(last - 1 - at).unwrap_or(u32::MAX);
        let counts = |word: u64| Counts {
            calls: 1,
            failures: u64::from(word & FAILED > 0),
            slow: u64::from(word & SLOW > 0),
        };
        held.iter().enumerate().map(|(at, word)| (age(at), counts(*word))).collect()
    }

    pub(super) fn import(&self, generation: u8, export: &[(u32, Counts)]) {
        for (_, counts) in export {
            // One entry is one call here; an entry of several is taken as that many alike.
            for _ in 0..counts.calls.min(self.places.len() as u64) {
                let (failed, slow) = (counts.failures > 0, counts.slow > 0);
                self.add(generation, Sample { failed, slow });
            }
        }
    }
}

fn is_past(word: u64, generation: u8) -> bool {
    self::generation(word).wrapping_sub(generation) < 128
}

/// Changes a word as long as it is of `generation`; returns what it was.
fn update(word: &AtomicU64, generation: u8, change: impl Fn(u64) -> u64) -> Option<u64> {
    let mut seen = word.load(Relaxed);
    loop {
        if self::generation(seen) != generation {
            return None;
        }
        match word.compare_exchange_weak(seen, change(seen), Relaxed, Relaxed) {
            Ok(_) => return Some(seen),
            Err(now) => seen = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(failed: bool, slow: bool) -> Sample {
        Sample { failed, slow }
    }

    #[test]
    fn the_oldest_call_leaves_first() {
        let window = CountWindow::new(3);
        window.reset(1);
        window.add(1, sample(true, false));
        window.add(1, sample(false, true));
        window.add(1, sample(true, true));
        assert_eq!(window.sum(1), Counts { calls: 3, failures: 2, slow: 2 });
        window.add(1, sample(false, false));
        assert_eq!(window.sum(1), Counts { calls: 3, failures: 1, slow: 2 });
        window.add(1, sample(false, false));
        assert_eq!(window.sum(1), Counts { calls: 3, failures: 1, slow: 1 });
        assert_eq!(window.lifetime(), Counts { calls: 5, failures: 2, slow: 2 });
    }

    #[test]
    fn an_overtaken_call_takes_itself_out() {
        let window = CountWindow::new(2);
        window.reset(1);
        assert_eq!(window.publish(1, 2, HELD), 0);
        assert_eq!(window.publish(1, 0, HELD | FAILED), HELD | FAILED);
    }

    #[test]
    fn another_generation_starts_empty_and_hears_nothing_of_the_old_one() {
        let window = CountWindow::new(2);
        window.reset(1);
        window.add(1, sample(true, true));
        window.reset(2);
        window.add(1, sample(true, true));
        assert_eq!(window.publish(1, 1, HELD | FAILED), 0);
        assert_eq!(window.sum(2), Counts::default());
        assert_eq!(window.lifetime(), Counts { calls: 1, failures: 1, slow: 1 });
    }

    #[test]
    fn an_export_keeps_order() {
        let window = CountWindow::new(3);
        window.reset(1);
        for failed in [true, true, false, false, true] {
            window.add(1, sample(failed, false));
        }
        let other = CountWindow::new(3);
        other.reset(4);
        other.import(4, &window.export(1));
        assert_eq!(other.sum(4), window.sum(1));
        other.add(4, sample(false, false));
        other.add(4, sample(false, false));
        assert_eq!(other.sum(4).failures, 1);
    }
}
