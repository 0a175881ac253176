//! Writes that make needless what waits for room, and do not wait behind it.

use super::{Queue, Step};
use crate::journal::state::State;
use crate::store::LogWrite;

impl LogWrite {
    /// Whether it does nothing but make a snapshot current.
    pub(super) fn has_only_snapshot(&self) -> bool {
        let leaves_entries = self.truncate_from.is_none() && self.release.is_none();
        let is_bare = self.entries.is_empty() && self.hard_state.is_none();
        leaves_entries && is_bare && !self.condemned && !self.repaired
    }
}

impl Step {
    /// Whether it changes the end of the log.
    fn moves_end(&self) -> bool {
        self.from != u64::MAX
    }

    /// Whether `later` makes it needless, but for its state record: the entries that it appends or
    /// cuts go all the same. `end`: that of the log.
    fn is_overtaken_by(&self, later: &Self, end: u64) -> bool {
        let is_cut = later.cuts.is_some_and(|from| from <= self.from);
        let is_released =
            |upto| self.from.max(self.behind) <= upto && (self.appends || end <= upto);
        let is_moot = is_cut || later.releases.is_some_and(is_released);
        self.moves_end() && self.releases.is_none() && is_moot
    }
}

impl Queue {
    /// What cuts entries that wait for room, or takes their place, does not wait behind them: such
    /// as a snapshot that a follower gets because it has no room.
    pub(super) fn drop_overtaken(&mut self) {
        if !self.account.is_waiting() || !self.flying.is_empty() {
            return;
        }
        // The last one overtakes the most.
        for at in (0..self.backlog.len()).rev() {
            let (later, end) = (&self.backlog[at], self.entries.end());
            let mut before = self.backlog.range(..at).filter(|step| step.moves_end()).peekable();
            // What stayed would stand behind a gap.
            if before.peek().is_some() && before.all(|step| step.is_overtaken_by(later, end)) {
                self.drop_first(at, at);
                return;
            }
        }
    }

    /// Takes those that move the end of the log out of the first `count` steps of the backlog. The
    /// one at place `at` stands for what else they say. What they say of the state goes with the
    /// next step that stays, or a later one is durable before a vote of an earlier one; and never
    /// behind a later state, which has it already.
    fn drop_first(&mut self, count: usize, at: usize) {
        let later = self.backlog.split_off(count);
        let (mut overtaken, mut state, mut waits) = (Vec::new(), None, false);
        for step in std::mem::take(&mut self.backlog) {
            waits |= step.is_first;
            let is_last = step.done.is_some();
            if step.moves_end() {
                // Where the write has begun all of it is on its way.
                self.account.landed(if waits { 0 } else { step.lands });
                overtaken.extend(step.overtaken.into_iter().chain(step.done));
                state = step.state.or(state);
            } else {
                let state = state.take();
                self.backlog.push_back(Step { state: step.state.or(state), ..step });
            }
            waits &= !is_last;
        }
        let at = self.backlog.len() + at - count;
        self.backlog.extend(later);
        let later = &mut self.backlog[at];
        later.state = later.state.take().or(state);
        later.overtaken.splice(0..0, overtaken);
    }

    /// How many of the first steps of the backlog, before place `at`, are whole writes that the
    /// step there overtakes.
    fn count_overtaken(&self, at: usize) -> usize {
        let (later, end) = (&self.backlog[at], self.entries.end());
        let before = self.backlog.range(..at);
        let overtaken = before.take_while(|step| step.is_overtaken_by(later, end)).count();
        let is_last = |step: &Step| step.done.is_some();
        self.backlog.range(..overtaken).rposition(is_last).map_or(0, |last| last + 1)
    }

    /// A snapshot that becomes current makes room: it does not wait behind what has none. What it
    /// covers goes with it, as far as nothing that waits cuts or appends it. It may be of a later
    /// term than the disk knows, so the latest term and vote go with it too.
    pub(super) fn prefer_snapshot(&mut self) {
        if !self.account.is_waiting() || !self.flying.is_empty() {
            return;
        }
        let Some(at) = self.backlog.iter().position(|step| step.adopts.is_some()) else { return };
        let (before, current) = (self.landed_state.snapshot, self.backlog[at].adopts);
        let others = |step: &Step| step.state.as_ref().is_some_and(|s| s.snapshot != before);
        if at == 0 || self.backlog.range(..at).any(others) {
            return;
        }
        let Some(current) = current else { return };
        // It may cover entries that are written behind it: they were applied from memory.
        let later = self.backlog.range(at..).map(|step| step.from).min().unwrap_or(u64::MAX);
        let covered = current.index.saturating_add(1).min(later).min(self.end);
        self.backlog[at].releases = Some(covered);
        let count = self.count_overtaken(at);
        self.drop_first(count, at);
        let at = at - count;
        let Some(mut step) = self.backlog.remove(at) else { return };
        let from = self.backlog.range(..at).map(|step| step.from).min().unwrap_or(u64::MAX);
        if at > 0 {
            let State { hard_state, voters, .. } = self.stored.clone();
            let catch_up = |state: &mut State| {
                (state.snapshot, state.hard_state) = (Some(current), hard_state);
                state.voters.clone_from(&voters);
            };
            let waiting = self.backlog.range_mut(..at);
            waiting.filter_map(|step| step.state.as_mut()).for_each(&catch_up);
            let mut state = self.landed_state.clone();
            catch_up(&mut state);
            step.state = Some(state);
        }
        let upto = from.min(covered);
        step.commit = step.commit.release(&self.entries, upto);
        self.first = self.first.max(upto);
        self.backlog.push_front(step);
    }
}
