//! Rules that can change while threads decide by them, each on a word of its own choosing.
//!
//! The rules are read under a sequence number that is odd while they change. A decision reads the
//! word within the same sequence, so that word and rules belong together, and takes by exchanging
//! the word it read: a change converts every word, to a different one, so that a decision by the
//! old rules fails and is made again. What remains is a word that comes back to the very nanosecond
//! between a decision's reading and its exchange: for that to admit too much, a change and a refund
//! or a second change must come in between; then one request is counted by the rules it was
//! decided by.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::sync::{AtomicU64, fence};

use super::rules::{Kind, MAX_NOW, Rules};
use super::verdict::{Standing, Verdict};
use super::word;

/// Ordered so that what a decision by rate reads is together.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct LiveRules {
    kind: Kind,
    sequence: AtomicU64,
    interval: AtomicU64,
    span: AtomicU64,
    count: AtomicU64,
    per: AtomicU64,
    limit: AtomicU64,
    unit_bits: AtomicU64,
    receipts_from: AtomicU64,
}

impl LiveRules {
    pub(crate) fn new(rules: &Rules) -> Self {
        Self {
            kind: rules.kind,
            sequence: AtomicU64::new(0),
            interval: AtomicU64::new(rules.interval),
            span: AtomicU64::new(rules.span),
            count: AtomicU64::new(rules.count),
            per: AtomicU64::new(rules.per),
            limit: AtomicU64::new(rules.limit),
            unit_bits: AtomicU64::new(u64::from(rules.unit_bits)),
            receipts_from: AtomicU64::new(rules.receipts_from),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The short way through [`Self::step`], for quotas by rate; a rejection comes with the wait.
    /// `None` says nothing about the request: the caller takes the long way.
    #[inline]
    pub(crate) fn take(
        &self,
        word: &AtomicU64,
        mine: impl Fn(u64) -> bool,
        now: u64,
        cost: u64,
    ) -> Option<Result<Standing, (Standing, u64)>> {
        if self.kind != Kind::Gcra || now > MAX_NOW {
            return None;
        }
        let sequence = self.sequence.load(Acquire);
        let (interval, span) = (self.interval.load(Relaxed), self.span.load(Relaxed));
        let mut seen = word.load(Acquire);
        // A turn fails only because another thread has exchanged the word, and so got on itself.
        loop {
            if !self.unchanged(sequence) || !mine(seen) {
                return None;
            }
            let (standing, next) = match word::gcra(interval, span, seen, now, cost) {
                Ok(taken) => taken,
                Err(rejected) => return Some(Err(rejected)),
            };
            match word.compare_exchange_weak(seen, next, AcqRel, Acquire) {
                Ok(_) => return Some(Ok(standing)),
                Err(other) => seen = other,
            }
        }
    }

    /// Decides, and takes if admitted. `None` if the word read is not `mine`.
    pub(crate) fn step(
        &self,
        word: &AtomicU64,
        mine: impl Fn(u64) -> bool,
        now: u64,
        cost: u64,
    ) -> Option<Verdict> {
        self.update(word, mine, |rules, word| {
            let (verdict, next) = word::step(rules, word, now, cost);
            (verdict, verdict.admitted().then_some(next))
        })
    }

    /// Replaces the word by what `decide` makes of it, if anything. `None` if the word read is not
    /// `mine`.
    pub(crate) fn update<T>(
        &self,
        word: &AtomicU64,
        mine: impl Fn(u64) -> bool,
        decide: impl Fn(&Rules, u64) -> (T, Option<u64>),
    ) -> Option<T> {
        // A turn fails only because another thread has exchanged the word, and so got on itself.
        loop {
            let (rules, seen) = self.read_with(|| word.load(Acquire));
            if !mine(seen) {
                return None;
            }
            let (answer, next) = decide(&rules, seen);
            let Some(next) = next else { return Some(answer) };
            if word.compare_exchange(seen, next, AcqRel, Relaxed).is_ok() {
                return Some(answer);
            }
        }
    }

    pub(crate) fn read(&self) -> Rules {
        self.read_with(|| ()).0
    }

    /// The rules, and something read while they held.
    fn read_with<T>(&self, also: impl Fn() -> T) -> (Rules, T) {
        // A turn fails only because of a change of the rules: an administrator's act, whose stores
        // and conversions are finite.
        loop {
            let sequence = self.sequence.load(Acquire);
            let rules = Rules {
                kind: self.kind,
                count: self.count.load(Relaxed),
                per: self.per.load(Relaxed),
                limit: self.limit.load(Relaxed),
                interval: self.interval.load(Relaxed),
                span: self.span.load(Relaxed),
                unit_bits: self.unit_bits.load(Relaxed) as u32,
                receipts_from: self.receipts_from.load(Relaxed),
            };
            let also = also();
            if self.unchanged(sequence) {
                return (rules, also);
            }
            crate::sync::pause();
        }
    }

    /// Whether all that was read since `sequence` belongs together.
    #[inline]
    fn unchanged(&self, sequence: u64) -> bool {
        fence(Acquire);
        sequence & 1 == 0 && self.sequence.load(Relaxed) == sequence
    }

    /// Changes the rules and converts the words. Decisions wait while it lasts. The caller lets one
    /// change go on at a time.
    pub(crate) fn change<'a>(
        &self,
        new: &Rules,
        now: u64,
        words: impl Iterator<Item = &'a AtomicU64>,
    ) {
        let old = self.read();
        let new = &new.succeeding(&old, now);
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence + 1, Relaxed);
        fence(Release);
        self.interval.store(new.interval, Relaxed);
        self.span.store(new.span, Relaxed);
        self.count.store(new.count, Relaxed);
        self.per.store(new.per, Relaxed);
        self.limit.store(new.limit, Relaxed);
        self.unit_bits.store(u64::from(new.unit_bits), Relaxed);
        self.receipts_from.store(new.receipts_from, Relaxed);
        for word in words {
            let mut seen = word.load(Acquire);
            // Fails only for decisions that had read the rules before the sequence became odd, and
            // for slots that are handed on: at most one exchange for each thread.
            while let Err(other) =
                word.compare_exchange(seen, converted(&old, new, seen, now), AcqRel, Acquire)
            {
                seen = other;
            }
        }
        self.sequence.store(sequence + 2, Release);
    }
}

/// The converted word, and never the same one where a unit is worth another time now. Counted units
/// are worth the same before and after, so that a decision may fall on either side.
fn converted(old: &Rules, new: &Rules, word: u64, now: u64) -> u64 {
    let next = word::convert(old, new, word, now);
    if next != word || old.interval == new.interval || new.kind != Kind::Gcra {
        return next;
    }
    if next > now { next + 1 } else { next.checked_sub(1).unwrap_or(1) }
}
