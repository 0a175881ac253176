//! The log as the core sees it: the term of every index, and the most recent entries.

use std::collections::VecDeque;
use std::ops::Range;

use super::io::NotInMemory;
use crate::types::Entry;

/// Indexes `first` up to the next run (or the end) are of `term`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    term: u64,
}

/// Which index has which term, for the whole log, and a window of its latest entries.
///
/// Terms change only with leaders, so the runs stay few however long the log is: the core can
/// answer every consistency check without reading the store.
#[derive(Clone, Debug)]
pub(super) struct Log {
    /// The index before the first entry. Its term is known, and nothing before it.
    base: u64,
    base_term: u64,
    last: u64,
    runs: VecDeque<Run>,
    /// The entries `last - window.len() + 1 ..= last`.
    window: VecDeque<Entry>,
    /// For each entry of the window, the weight of all entries ever appended up to it.
    ends: VecDeque<u64>,
    /// The same for the entry before the window.
    start: u64,
}

impl Log {
    /// An empty log after `base`.
    pub(super) fn new(base: u64, base_term: u64) -> Self {
        Self {
            base,
            base_term,
            last: base,
            runs: VecDeque::new(),
            window: VecDeque::new(),
            ends: VecDeque::new(),
            start: 0,
        }
    }

    /// The term of the entry before the first one has become known.
    pub(super) fn set_base_term(&mut self, term: u64) {
        self.base_term = term;
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn first(&self) -> u64 {
        self.base + 1
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn last_term(&self) -> u64 {
        self.runs.back().map_or(self.base_term, |run| run.term)
    }

    /// The first index of the window; `last + 1` when it is empty.
    pub(super) fn window_first(&self) -> u64 {
        self.last + 1 - self.window.len() as u64
    }

    /// The term of `index`, for `base <= index <= last`.
    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if index > self.last || index < self.base {
            return None;
        }
        match self.runs.back() {
            Some(run) if run.first <= index => Some(run.term),
            _ => {
                let after = self.runs.partition_point(|run| run.first <= index);
                Some(after.checked_sub(1).map_or(self.base_term, |at| self.runs[at].term))
            }
        }
    }

    /// The last index, at most `index`, whose term is at most `term`.
    ///
    /// Two logs cannot agree at an index whose terms differ, and terms never fall along a log:
    /// so what lies above the answer need not be tried. Source: Raft §5.3.
    pub(super) fn last_at_most(&self, index: u64, term: u64) -> Option<u64> {
        let index = index.min(self.last);
        if index < self.base {
            return None;
        }
        let after = self.runs.partition_point(|run| run.first <= index && run.term <= term);
        if after == 0 && self.base_term > term {
            return None;
        }
        match self.runs.get(after) {
            Some(next) => Some(index.min(next.first - 1)),
            None => Some(index),
        }
    }

    /// Appends the entry after `last`.
    pub(super) fn push(&mut self, entry: Entry) {
        debug_assert_eq!(entry.index, self.last + 1, "the log has no holes");
        debug_assert!(entry.term >= self.last_term(), "terms never fall along a log");
        if entry.term != self.last_term() || self.runs.is_empty() {
            self.runs.push_back(Run { first: entry.index, term: entry.term });
        }
        self.last = entry.index;
        self.ends.push_back(self.total() + entry.weight());
        self.window.push_back(entry);
    }

    /// Drops `from` and all after it.
    pub(super) fn truncate(&mut self, from: u64) {
        debug_assert!(from > self.base, "what a snapshot covers is never truncated");
        if from > self.last {
            return;
        }
        let keep = from.saturating_sub(self.window_first()) as usize;
        self.window.truncate(keep);
        self.ends.truncate(keep);
        self.last = from - 1;
        while self.runs.back().is_some_and(|run| run.first >= from) {
            self.runs.pop_back();
        }
    }

    /// Drops everything before `first`, which becomes the first index. Beyond the end it does
    /// nothing: use [`reset`](Self::reset).
    pub(super) fn release(&mut self, first: u64) {
        let Some(term) = first.checked_sub(1).and_then(|base| self.term_at(base)) else { return };
        self.base = first - 1;
        self.base_term = term;
        while self.window.front().is_some_and(|entry| entry.index < first) {
            self.evict_front();
        }
        while self.runs.get(1).is_some_and(|next| next.first <= first) {
            self.runs.pop_front();
        }
        if self.base == self.last {
            self.runs.clear();
        } else if let Some(run) = self.runs.front_mut() {
            run.first = run.first.max(first);
        }
    }

    /// Forgets everything: the log goes on after `base`.
    pub(super) fn reset(&mut self, base: u64, base_term: u64) {
        *self = Self { start: self.total(), ..Self::new(base, base_term) };
    }

    /// Drops the oldest entries of the window, up to `upto`, while it weighs more than `limit`.
    pub(super) fn evict(&mut self, upto: u64, limit: u64) {
        while self.total() - self.start > limit
            && self.window.front().is_some_and(|entry| entry.index <= upto)
        {
            self.evict_front();
        }
    }

    /// Gives back the memory that only a group at work needs, and that of the entries up to `upto`.
    pub(super) fn shrink(&mut self, upto: u64) {
        self.evict(upto, 0);
        self.runs.shrink_to_fit();
        self.window.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// Apart from those who mostly find that nothing has to go.
    #[inline(never)]
    fn evict_front(&mut self) {
        self.window.pop_front();
        if let Some(end) = self.ends.pop_front() {
            self.start = end;
        }
    }

    /// Lends the entries of `range`, if the window holds all of them. An empty range needs no
    /// entry, so it is lent wherever it lies.
    pub(super) fn entries(
        &self,
        range: Range<u64>,
    ) -> Result<std::collections::vec_deque::Iter<'_, Entry>, NotInMemory> {
        if range.start == range.end {
            return Ok(self.window.range(0..0));
        }
        let window = self.window_first()..self.last + 1;
        if range.start < window.start || range.end > window.end || range.start > range.end {
            return Err(NotInMemory { range, window });
        }
        let from = (range.start - window.start) as usize;
        let to = (range.end - window.start) as usize;
        Ok(self.window.range(from..to))
    }

    /// The end of the longest batch that starts at `from`, holds at most `max_entries` and
    /// weighs at most `max_bytes`, but holds at least one entry when there is one.
    pub(super) fn batch_end(&self, from: u64, max_entries: u64, max_bytes: u64) -> u64 {
        let window_first = self.window_first();
        debug_assert!(from >= window_first, "batches are cut from the window");
        if from > self.last {
            return from;
        }
        let budget = self.weight_upto(from - 1).saturating_add(max_bytes);
        let fitting = if self.total() <= budget {
            self.last + 1
        } else {
            window_first + self.ends.partition_point(|end| *end <= budget) as u64
        };
        fitting.clamp(from + 1, self.last + 1).min(from.saturating_add(max_entries))
    }

    /// The weight of all entries ever appended up to `index`; as far as the window reaches back.
    pub(super) fn weight_upto(&self, index: u64) -> u64 {
        let window_first = self.window_first();
        if index < window_first {
            return self.start;
        }
        self.ends.get((index - window_first) as usize).copied().unwrap_or_else(|| self.total())
    }

    /// The weight of all entries ever appended.
    pub(super) fn total(&self) -> u64 {
        self.ends.back().copied().unwrap_or(self.start)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::EntryKind;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { term, index, kind: EntryKind::Command, data: Bytes::from_static(b"0123456789") }
    }

    fn log(base: u64, base_term: u64, terms: &[u64]) -> Log {
        let mut log = Log::new(base, base_term);
        for (at, term) in terms.iter().enumerate() {
            log.push(entry(base + 1 + at as u64, *term));
        }
        log
    }

    #[test]
    fn terms_survive_eviction_truncation_and_release() {
        let mut log = log(0, 0, &[1, 1, 2, 2, 2, 5]);
        log.evict(4, 0);
        assert_eq!(log.window_first(), 5);
        let terms: Vec<_> = (0..=7).map(|i| log.term_at(i)).collect();
        let some = |t| Some(t);
        assert_eq!(terms, [some(0), some(1), some(1), some(2), some(2), some(2), some(5), None]);
        log.release(4);
        assert_eq!((log.base(), log.term_at(3), log.term_at(2)), (3, Some(2), None));
        log.truncate(5);
        assert_eq!((log.last(), log.last_term(), log.window_first()), (4, 2, 5));
        log.push(entry(5, 7));
        assert_eq!(log.term_at(5), Some(7));
        log.reset(9, 6);
        assert_eq!((log.first(), log.last(), log.last_term()), (10, 9, 6));
    }

    #[test]
    fn conflict_search_agrees_with_a_scan() {
        let log = log(2, 1, &[1, 1, 3, 3, 6, 6, 6, 9]);
        for index in 0..14 {
            for term in 0..11 {
                let scan = (log.base()..=index.min(log.last()))
                    .rev()
                    .find(|i| log.term_at(*i).is_some_and(|t| t <= term));
                assert_eq!(log.last_at_most(index, term), scan, "index {index} term {term}");
            }
        }
    }

    #[test]
    fn batches_respect_both_limits_but_never_starve() {
        let log = log(0, 0, &[1; 10]);
        let weight = entry(1, 1).weight();
        assert_eq!(log.batch_end(1, 100, weight * 3), 4);
        assert_eq!(log.batch_end(4, 2, u64::MAX / 2), 6);
        assert_eq!(log.batch_end(4, 100, 1), 5);
        assert_eq!(log.batch_end(11, 100, 1), 11);
        assert_eq!(log.batch_end(9, 100, weight * 100), 11);
    }

    #[test]
    fn entries_are_lent_only_from_the_window() {
        let mut log = log(0, 0, &[1; 6]);
        log.evict(2, 0);
        let refused = |range: Range<u64>| NotInMemory { range, window: 3..7 };
        assert_eq!(log.entries(2..4).unwrap_err(), refused(2..4));
        assert_eq!(log.entries(3..8).unwrap_err(), refused(3..8));
        #[expect(clippy::reversed_empty_ranges, reason = "what a careless caller might ask for")]
        let reversed = 5..4;
        assert_eq!(log.entries(reversed.clone()).unwrap_err(), refused(reversed));
        let lent: Vec<_> = log.entries(3..6).unwrap().map(|e| e.index).collect();
        assert_eq!(lent, [3, 4, 5]);
        for at in [0, 1, 2, 3, 6, 7, 8, u64::MAX] {
            assert_eq!(log.entries(at..at).map(|lent| lent.len()), Ok(0), "{at}..{at} is empty");
        }
    }
}
