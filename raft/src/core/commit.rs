//! What is committed, and what becomes of proposals and of the state machine with it.

use std::collections::VecDeque;

use super::Core;
use super::io::{FetchError, Output};
use super::log::Log;
use crate::types::{Entry, HaltReason};

/// Proposals with consecutive tokens and indexes, of one term.
#[derive(Clone, Copy, Debug)]
struct Run {
    token: u64,
    count: u64,
    index: u64,
    term: u64,
}

impl Run {
    fn end(&self) -> u64 {
        self.index + self.count
    }

    /// Takes the first `count` proposals off.
    fn split(&mut self, count: u64) -> Self {
        let first = Self { count, ..*self };
        self.token = self.token.wrapping_add(count);
        self.index += count;
        self.count -= count;
        first
    }

    fn lost(self, superseded: bool) -> Output {
        Output::Lost { token: self.token, count: self.count, superseded }
    }
}

/// The weight of what the state machine has been handed and not reported as applied.
#[derive(Debug, Default)]
pub(super) struct Handed {
    /// Last index and weight of each range.
    ranges: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Handed {
    fn push(&mut self, last: u64, weight: u64) {
        if weight > 0 {
            self.ranges.push_back((last, weight));
            self.bytes += weight;
        }
    }

    /// Gives back memory that only a group at work needs.
    pub(super) fn shrink(&mut self) {
        self.ranges.shrink_to_fit();
    }

    fn applied(&mut self, index: u64) {
        while let Some((last, weight)) = self.ranges.front().copied() {
            if last > index {
                return;
            }
            self.ranges.pop_front();
            self.bytes -= weight;
        }
    }
}

/// Proposals of this node, from their place in the log until their fate is known.
///
/// They outlive the loss of leadership: the next leader may still commit them. Only the entry
/// that is committed at their index decides.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    runs: VecDeque<Run>,
    /// How many of the last run's proposals have been told their place.
    told: u64,
}

impl Proposals {
    /// Gives back memory that only a group at work needs.
    pub(super) fn shrink(&mut self) {
        self.runs.shrink_to_fit();
    }

    pub(super) fn push(&mut self, token: u64, index: u64, term: u64, out: &mut VecDeque<Output>) {
        if let Some(run) = self.runs.back_mut()
            && run.token.wrapping_add(run.count) == token
            && run.end() == index
            && run.term == term
        {
            run.count += 1;
            return;
        }
        self.tell(out);
        self.runs.push_back(Run { token, count: 1, index, term });
        self.told = 0;
    }

    /// How many runs of proposals wait for their fate.
    pub(super) fn undecided(&self) -> usize {
        self.runs.len()
    }

    /// Reports the place of the latest proposals.
    pub(super) fn tell(&mut self, out: &mut VecDeque<Output>) {
        let Some(run) = self.runs.back() else { return };
        let mut news = *run;
        news.split(self.told);
        if news.count > 0 {
            let Run { token, count, index, term } = news;
            out.push_back(Output::Proposed { token, count, index, term });
        }
        self.told = run.count;
    }

    /// Takes off the first ones that stand at `index` or before, of one run.
    fn take(&mut self, index: u64) -> Option<Run> {
        let is_last = self.runs.len() == 1;
        let run = self.runs.front_mut().filter(|run| run.index <= index)?;
        let taken = run.split(run.end().min(index + 1) - run.index);
        if run.count == 0 {
            self.runs.pop_front();
        }
        if is_last {
            self.told = self.told.saturating_sub(taken.count);
        }
        Some(taken)
    }

    /// Everything up to `commit` is committed as it stands in `log`. That decides the proposals up
    /// to there, and all those of earlier terms than the entry at `commit`: terms never fall along
    /// a log, so no log that holds this entry has one of an earlier term behind it.
    fn committed(&mut self, commit: u64, log: &Log, out: &mut VecDeque<Output>) {
        let term = log.term_at(commit).unwrap_or(0);
        // Each turn takes a proposal off, or ends the loop.
        loop {
            if let Some(decided) = self.take(commit) {
                // Where the terms agree the entries do, and all before them: what agrees is a
                // prefix of the run.
                let agree = match log.last_at_most(decided.end() - 1, decided.term) {
                    Some(at) if log.term_at(at) == Some(decided.term) => {
                        (at + 1).saturating_sub(decided.index)
                    }
                    _ => 0,
                };
                let mut superseded = decided;
                superseded.split(agree.min(decided.count));
                if superseded.count > 0 {
                    out.push_back(superseded.lost(true));
                }
            } else if let Some(run) = self.runs.front().copied().filter(|run| run.term < term)
                && let Some(superseded) = self.take(run.end() - 1)
            {
                out.push_back(superseded.lost(true));
            } else {
                return;
            }
        }
    }

    /// A snapshot hides what was committed up to `index`.
    pub(super) fn hidden(&mut self, index: u64, out: &mut VecDeque<Output>) {
        while let Some(hidden) = self.take(index) {
            out.push_back(hidden.lost(false));
        }
    }

    /// The node stops: nobody here will learn what becomes of them.
    pub(super) fn lose_all(&mut self, out: &mut VecDeque<Output>) {
        self.tell(out);
        out.extend(self.runs.drain(..).map(|run| run.lost(false)));
    }
}

impl Core {
    /// Moves the commit index, never back and never past the end.
    pub(super) fn commit_to(&mut self, index: u64) {
        let index = index.min(self.log.last());
        if index <= self.commit {
            return;
        }
        self.proposals.tell(&mut self.out);
        self.commit = index;
        self.verified = self.verified.max(index);
        self.proposals.committed(index, &self.log, &mut self.out);
        self.commit_members();
    }

    pub(super) fn flush_apply(&mut self) {
        if self.installing.is_some() {
            return;
        }
        while self.applying < self.commit {
            let room = self.config.max_applying.saturating_sub(self.applying - self.applied);
            let room_bytes = self.config.max_applying_bytes.saturating_sub(self.handed.bytes);
            if room == 0 || room_bytes == 0 {
                return;
            }
            let first = self.applying + 1;
            let mut end = (self.commit + 1).min(first.saturating_add(room));
            // Never partly from the store: it may still hold what a write under way replaces.
            let window_first = self.log.window_first();
            let mut weight = 0;
            if first < window_first {
                // These are read back batch by batch, and take memory only then.
                end = end.min(window_first);
            } else {
                end = end.min(self.log.batch_end(first, room, room_bytes));
                weight = self.log.weight_upto(end - 1) - self.log.weight_upto(first - 1);
            }
            self.handed.push(end - 1, weight);
            self.out.push_back(Output::Apply { range: first..end });
            self.applying = end - 1;
        }
    }

    pub(super) fn on_applied(&mut self, index: u64) {
        if index <= self.applied || index > self.applying {
            return;
        }
        self.applied = index;
        self.handed.applied(index);
        self.ask_for_snapshot();
    }

    fn ask_for_snapshot(&mut self) {
        if self.taking_snapshot || self.installing.is_some() {
            return;
        }
        let (mark, weight) = self.snapshot_mark;
        let (entries, bytes) =
            (self.config.snapshot_after_entries, self.config.snapshot_after_bytes);
        let weighs = self.log.weight_upto(self.applied);
        let (applied, more) = (self.applied.saturating_sub(mark), weighs.saturating_sub(weight));
        let is_due = |times: u64| {
            let by_count = entries > 0 && applied >= entries.saturating_mul(times);
            by_count || (bytes > 0 && more >= bytes.saturating_mul(times))
        };
        if is_due(1) && is_due(self.snapshot_delay()) {
            self.take_snapshot();
        }
    }

    pub(super) fn on_fetched(&mut self, id: u64, result: Result<Vec<Entry>, FetchError>) {
        match result {
            Ok(entries) => self.on_fetched_entries(id, entries),
            Err(FetchError::Released) => self.on_fetch_released(id),
            // A log that cannot be read is a damaged log: never the end of a stream. Only the
            // entries of an earlier leadership may be gone: the next leader may have cut them.
            Err(FetchError::Failed) if self.awaiting_fetch(id).is_some() => {
                self.halt(HaltReason::ReadFailed);
            }
            Err(FetchError::Failed) => {}
        }
    }
}
