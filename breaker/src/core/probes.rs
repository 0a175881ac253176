//! Which calls a half-open breaker admits, and what they found.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::mutant::Mutant;
use crate::sync::AtomicU64;

const FIELD_BITS: u32 = 16;
const FIELD_MASK: u64 = (1 << FIELD_BITS) - 1;
const ADMITTED: u64 = 1 << (2 * FIELD_BITS);
const ANSWERED: u64 = 1 << FIELD_BITS;
const BAD: u64 = 1;

/// What became of a request for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Admitted,
    Full,
    /// Another generation: look at the state again.
    Stale,
}

/// What the answers say so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Open,
    Healthy,
    Sick,
}

/// `[generation 16 | admitted 16 | answered 16 | bad 16]`: one word, so that a verdict is taken
/// over one consistent set of answers.
#[derive(Debug)]
pub(crate) struct Probes {
    word: AtomicU64,
    admitted_max: u64,
    bad_max: u64,
}

impl Probes {
    pub(crate) fn new(admitted_max: u16, bad_max: u16) -> Self {
        debug_assert!(bad_max < admitted_max, "validated by the configuration");
        let word = AtomicU64::new(0);
        Self { word, admitted_max: u64::from(admitted_max), bad_max: u64::from(bad_max) }
    }

    /// Starts a half-open period. Only under the lock of the transitions.
    pub(crate) fn reset(&self, generation: u16) {
        self.word.store(u64::from(generation) << (3 * FIELD_BITS), Release);
    }

    /// Takes one of the places, if there is one left.
    pub(crate) fn admit(&self, generation: u16) -> Admission {
        let max = self.admitted_max + u64::from(Mutant::OneProbeTooMany.is_on());
        let mut full = false;
        let admitted = self.update(generation, |word| {
            full = field(word, ADMITTED) >= max;
            (!full).then(|| word + ADMITTED)
        });
        match admitted {
            Some(_) => Admission::Admitted,
            None if full => Admission::Full,
            None => Admission::Stale,
        }
    }

    /// Gives a place back: the call said nothing about the dependency.
    pub(crate) fn give_back(&self, generation: u16) {
        self.update(generation, |word| {
            debug_assert!(field(word, ADMITTED) > field(word, ANSWERED), "returned twice");
            Some(word - ADMITTED)
        });
    }

    /// Counts an answer.
    pub(crate) fn answer(&self, generation: u16, is_bad: bool) -> Finding {
        let step = ANSWERED + u64::from(is_bad) * BAD;
        let Some(word) = self.update(generation, |word| Some(word + step)) else {
            return Finding::Open;
        };
        debug_assert!(field(word, ANSWERED) <= field(word, ADMITTED), "answered unasked");
        let bad = field(word, BAD);
        let good = field(word, ANSWERED) - bad;
        if bad > self.bad_max {
            Finding::Sick
        } else if good >= self.admitted_max - self.bad_max {
            Finding::Healthy
        } else {
            Finding::Open
        }
    }

    /// Changes the word as long as it is of `generation`; returns what it became.
    fn update(&self, generation: u16, mut change: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        let mut word = self.word.load(Acquire);
        loop {
            if (word >> (3 * FIELD_BITS)) as u16 != generation {
                return None;
            }
            let next = change(word)?;
            match self.word.compare_exchange_weak(word, next, AcqRel, Relaxed) {
                Ok(_) => return Some(next),
                Err(seen) => word = seen,
            }
        }
    }
}

fn field(word: u64, unit: u64) -> u64 {
    (word / unit) & FIELD_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_exactly_its_number() {
        let probes = Probes::new(2, 0);
        probes.reset(7);
        assert_eq!(probes.admit(7), Admission::Admitted);
        assert_eq!(probes.admit(7), Admission::Admitted);
        assert_eq!(probes.admit(7), Admission::Full);
        assert_eq!(probes.admit(6), Admission::Stale);
        probes.give_back(7);
        probes.give_back(6);
        assert_eq!(probes.admit(7), Admission::Admitted);
        assert_eq!(probes.admit(7), Admission::Full);
    }

    #[test]
    fn says_so_as_soon_as_it_is_certain() {
        let probes = Probes::new(3, 1);
        probes.reset(1);
        for _ in 0..3 {
            probes.admit(1);
        }
        assert_eq!(probes.answer(1, false), Finding::Open);
        assert_eq!(probes.answer(1, false), Finding::Healthy);
        probes.reset(2);
        for _ in 0..3 {
            probes.admit(2);
        }
        assert_eq!(probes.answer(2, true), Finding::Open);
        assert_eq!(probes.answer(1, true), Finding::Open);
        assert_eq!(probes.answer(2, true), Finding::Sick);
    }
}
