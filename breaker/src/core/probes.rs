//! Which calls a half-open breaker admits, and what they found.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::sync::AtomicU64;

const FIELD_BITS: u32 = 16;
const FIELD_MASK: u64 = (1 << FIELD_BITS) - 1;
const ADMITTED: u64 = 1 << (2 * FIELD_BITS);
const ANSWERED: u64 = 1 << FIELD_BITS;
const BAD: u64 = 1;

/// Answer to a request for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Admitted,
    /// All probes are taken. The patience with them ends at `patient_until`, in ns.
    Full {
        patient_until: u64,
    },
    /// The probes belong to another generation: the caller must read the state again.
    Stale,
}

/// Conclusion from the answers so far.
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
    /// Time at which patience with a full set of probes ends, in ns; `u64::MAX`: never. Raised
    /// before `word` shows the set as full, so whoever sees it full sees this time or a later one.
    patient_until: AtomicU64,
    max_admitted: u64,
    max_bad: u64,
}

impl Probes {
    pub(crate) fn new(max_admitted: u16, max_bad: u16) -> Self {
        debug_assert!(max_bad < max_admitted, "validated by the configuration");
        Self {
            word: AtomicU64::new(0),
            patient_until: AtomicU64::new(0),
            max_admitted: u64::from(max_admitted),
            max_bad: u64::from(max_bad),
        }
    }

    /// Starts a half-open period. Only under the lock of the transitions.
    pub(crate) fn reset(&self, generation: u16) {
        self.patient_until.store(0, Relaxed);
        self.word.store(u64::from(generation) << (3 * FIELD_BITS), Release);
    }

    /// Takes a probe, if one is left. `patient_until` is the time at which patience ends if this
    /// call takes the last probe.
    pub(crate) fn admit(&self, generation: u16, patient_until: u64) -> Admission {
        let max = self.max_admitted;
        let mut full = false;
        let admitted = self.update(generation, |word| {
            let taken = field(word, ADMITTED);
            full = taken >= max;
            if taken + 1 == max {
                // Before the exchange that fills the set. If that fails, another call filled it at
                // about the same time, and patience ends at the later of both.
                self.patient_until.fetch_max(patient_until, Relaxed);
            }
            (!full).then(|| word + ADMITTED)
        });
        match admitted {
            Some(_) => Admission::Admitted,
            None if full => Admission::Full { patient_until: self.patient_until.load(Relaxed) },
            None => Admission::Stale,
        }
    }

    /// Returns what [`admit`](Self::admit) would, without taking a probe.
    pub(crate) fn look(&self, generation: u16) -> Admission {
        let word = self.word.load(Acquire);
        if (word >> (3 * FIELD_BITS)) as u16 != generation {
            Admission::Stale
        } else if field(word, ADMITTED) < self.max_admitted {
            Admission::Admitted
        } else {
            Admission::Full { patient_until: self.patient_until.load(Relaxed) }
        }
    }

    /// Gives a probe back whose call said nothing about the dependency.
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
        if bad > self.max_bad {
            Finding::Sick
        } else if good >= self.max_admitted - self.max_bad {
            Finding::Healthy
        } else {
            Finding::Open
        }
    }

    /// Replaces the word by `change` of it while it belongs to `generation`. Returns the new word.
    fn update(&self, generation: u16, mut change: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        let mut word = self.word.load(Acquire);
        // Ends: a failed exchange means that another call was admitted, answered or given back,
        // and a half-open period has few of them: at most two for each of its probes in flight.
        loop {
            if (word >> (3 * FIELD_BITS)) as u16 != generation {
                return None;
            }
            let next = change(word)?;
            match self.word.compare_exchange_weak(word, next, AcqRel, Acquire) {
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
        assert_eq!(probes.admit(7, 100), Admission::Admitted);
        assert_eq!(probes.admit(7, 200), Admission::Admitted);
        assert_eq!(probes.admit(7, 300), Admission::Full { patient_until: 200 });
        assert_eq!(probes.admit(6, 300), Admission::Stale);
        probes.give_back(7);
        probes.give_back(6);
        assert_eq!(probes.look(7), Admission::Admitted);
        assert_eq!(probes.admit(7, 400), Admission::Admitted);
        assert_eq!(probes.admit(7, 500), Admission::Full { patient_until: 400 });
        assert_eq!(probes.look(7), Admission::Full { patient_until: 400 });
        assert_eq!(probes.look(6), Admission::Stale);
    }

    #[test]
    fn says_so_as_soon_as_it_is_certain() {
        let probes = Probes::new(3, 1);
        probes.reset(1);
        for _ in 0..3 {
            probes.admit(1, 0);
        }
        assert_eq!(probes.answer(1, false), Finding::Open);
        assert_eq!(probes.answer(1, false), Finding::Healthy);
        probes.reset(2);
        for _ in 0..3 {
            probes.admit(2, 0);
        }
        assert_eq!(probes.answer(2, true), Finding::Open);
        assert_eq!(probes.answer(1, true), Finding::Open);
        assert_eq!(probes.answer(2, true), Finding::Sick);
    }
}
