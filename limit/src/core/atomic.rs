//! An atomic word with the rules that interpret it, shared by threads without a lock.

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Mutex};

use super::live::LiveRules;
use super::rules::{Kind, Rules};
use super::verdict::{Receipt, Standing, Verdict};
use super::word::{self, Beyond};

#[derive(Debug)]
pub(crate) struct AtomicCell {
    /// Apart from the rules, which all threads read and hardly anybody writes.
    word: CachePadded<AtomicU64>,
    rules: LiveRules,
    change: Mutex<()>,
}

impl AtomicCell {
    pub(crate) fn new(rules: &Rules) -> Self {
        Self {
            word: CachePadded::new(AtomicU64::new(0)),
            rules: LiveRules::new(rules),
            change: Mutex::new(()),
        }
    }

    /// The short way: decides if the quota is by rate. `None` means nothing.
    #[inline]
    pub(crate) fn take(&self, now: u64, cost: u64) -> Option<Result<Standing, (Standing, u64)>> {
        self.rules.take(&self.word, |_| true, now, cost)
    }

    /// Decides, and takes if admitted.
    pub(crate) fn step(&self, now: u64, cost: u64) -> Verdict {
        // Ends in the first turn: every word belongs to the cell, so that `step` has an answer.
        loop {
            if let Some(verdict) = self.rules.step(&self.word, |_| true, now, cost) {
                return verdict;
            }
        }
    }

    /// Reserves `cost` units: takes them now and returns how long to wait before their use, and
    /// their receipt. An `earlier` reservation of the same caller is given back in the same
    /// exchange, so that no other caller can come in between. GCRA only; one reservation is
    /// outstanding at a time.
    ///
    /// `None` if the quota never gives as much: nothing is reserved then, and `earlier` is given
    /// back.
    pub(crate) fn reserve(
        &self,
        now: u64,
        cost: u64,
        beyond: Beyond,
        earlier: Option<&Receipt>,
    ) -> Option<(u64, Receipt)> {
        self.update(|rules, word| {
            let word = earlier.map_or(word, |receipt| word::refund(rules, word, receipt, now));
            match word::reserve(rules, word, now, cost, beyond) {
                Some((wait, next)) => {
                    (Some((wait, Receipt { at: now.saturating_add(wait), cost })), next)
                }
                None => (None, word),
            }
        })
    }

    pub(crate) fn refund(&self, receipt: &Receipt, now: u64) {
        self.update(|rules, word| ((), word::refund(rules, word, receipt, now)));
    }

    fn update<T>(&self, decide: impl Fn(&Rules, u64) -> (T, u64)) -> T {
        let decide = |rules: &Rules, word| {
            let (answer, next) = decide(rules, word);
            (answer, Some(next))
        };
        // Ends in the first turn, as in `step`.
        loop {
            if let Some(answer) = self.rules.update(&self.word, |_| true, decide) {
                return answer;
            }
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.rules.kind()
    }

    pub(crate) fn rules(&self) -> Rules {
        self.rules.read()
    }

    /// Changes the rules, keeping what is used, counted in units. Decisions wait while it lasts.
    pub(crate) fn set_rules(&self, new: &Rules, now: u64) {
        let _one = self.change.lock();
        self.rules.change(new, now, std::iter::once(&*self.word));
    }
}
