//! One word and its rules, shared by threads without a lock.
//!
//! The rules are read under a sequence number that is odd while they change. A decision loads the
//! word first and the rules after it: if the rules change in between, the word has been converted,
//! and the exchange at the end fails. So no decision mixes an old quota with a new word.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::sync::{AtomicU64, Mutex, fence};

use super::rules::{Kind, Rules};
use super::verdict::{Receipt, Verdict};
use super::word;

#[derive(Debug)]
pub(crate) struct AtomicCell {
    word: AtomicU64,
    sequence: AtomicU64,
    kind: Kind,
    count: AtomicU64,
    per: AtomicU64,
    limit: AtomicU64,
    interval: AtomicU64,
    span: AtomicU64,
    unit_bits: AtomicU64,
    change: Mutex<()>,
}

impl AtomicCell {
    pub(crate) fn new(rules: &Rules) -> Self {
        Self {
            word: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            kind: rules.kind,
            count: AtomicU64::new(rules.count),
            per: AtomicU64::new(rules.per),
            limit: AtomicU64::new(rules.limit),
            interval: AtomicU64::new(rules.interval),
            span: AtomicU64::new(rules.span),
            unit_bits: AtomicU64::new(u64::from(rules.unit_bits)),
            change: Mutex::new(()),
        }
    }

    /// Decides, and takes if admitted.
    #[inline]
    pub(crate) fn step(&self, now: u64, cost: u64) -> Verdict {
        self.update(|rules, word| {
            let (verdict, next) = word::step(rules, word, now, cost);
            (verdict, verdict.admitted().then_some(next))
        })
    }

    /// Takes `cost` at most `limit` units now and says how long to wait before using them. GCRA
    /// only.
    pub(crate) fn reserve(&self, now: u64, cost: u64) -> (u64, Receipt) {
        self.update(|rules, word| {
            let (wait, next) = word::reserve(rules, word, now, cost);
            ((wait, Receipt { at: now.saturating_add(wait), cost }), Some(next))
        })
    }

    pub(crate) fn refund(&self, receipt: &Receipt, now: u64) {
        self.update(|rules, word| ((), Some(word::refund(rules, word, receipt, now))));
    }

    #[inline]
    fn update<T>(&self, mut decide: impl FnMut(&Rules, u64) -> (T, Option<u64>)) -> T {
        let mut word = self.word.load(Acquire);
        loop {
            let rules = self.rules();
            let (answer, next) = decide(&rules, word);
            let Some(next) = next else { return answer };
            match self.word.compare_exchange(word, next, AcqRel, Acquire) {
                Ok(_) => return answer,
                Err(seen) => word = seen,
            }
        }
    }

    #[inline]
    pub(crate) fn rules(&self) -> Rules {
        loop {
            let before = self.sequence.load(Acquire);
            let rules = Rules {
                kind: self.kind,
                count: self.count.load(Relaxed),
                per: self.per.load(Relaxed),
                limit: self.limit.load(Relaxed),
                interval: self.interval.load(Relaxed),
                span: self.span.load(Relaxed),
                unit_bits: self.unit_bits.load(Relaxed) as u32,
            };
            fence(Acquire);
            if before & 1 == 0 && self.sequence.load(Relaxed) == before {
                return rules;
            }
            crate::sync::pause();
        }
    }

    /// Changes the rules, keeping what is used, counted in units. Decisions wait while it lasts.
    pub(crate) fn set_rules(&self, new: &Rules, now: u64) {
        let _one = self.change.lock();
        let old = self.rules();
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence + 1, Relaxed);
        fence(Release);
        self.count.store(new.count, Relaxed);
        self.per.store(new.per, Relaxed);
        self.limit.store(new.limit, Relaxed);
        self.interval.store(new.interval, Relaxed);
        self.span.store(new.span, Relaxed);
        self.unit_bits.store(u64::from(new.unit_bits), Relaxed);
        let mut word = self.word.load(Acquire);
        while let Err(seen) =
            self.word.compare_exchange(word, word::convert(&old, new, word, now), AcqRel, Acquire)
        {
            word = seen;
        }
        self.sequence.store(sequence + 2, Release);
    }
}
