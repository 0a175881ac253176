//! The sliding-window log: every admitted unit with its time, so that no window of the period,
//! wherever it begins, holds more than the limit.

use std::collections::VecDeque;

use super::rules::{MAX_NOW, Rules};
use super::verdict::{NEVER, Standing, Verdict};

/// Grows with what was admitted in the last period: at most `limit` entries of 16 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Log {
    /// Time and units, times ascending.
    entries: VecDeque<(u64, u64)>,
    units: u64,
    /// The latest time judged at: what had left the window then is forgotten.
    seen: u64,
}

impl Log {
    pub(crate) fn judge(&mut self, rules: &Rules, now: u64, cost: u64) -> Verdict {
        let now = now.min(MAX_NOW);
        // Threads may come with times out of order: the log does not go back.
        let at = now.max(self.seen);
        self.seen = at;
        let last = self.entries.back().map_or(0, |(at, _)| *at);
        self.expire(rules, at);
        let room = rules.limit.saturating_sub(self.units);
        let wait = match cost {
            _ if cost > rules.limit => NEVER,
            _ if cost <= room => 0,
            _ => self.free_at(rules, cost - room).saturating_sub(now),
        };
        let (left, newest) = if wait == 0 { (room - cost, cost > 0) } else { (room, false) };
        let reset = match (newest, self.units) {
            (true, _) => rules.per + (at - now),
            (false, 0) => 0,
            (false, _) => (last + rules.per).saturating_sub(now),
        };
        Verdict { standing: Standing::new(rules.limit, left, 1, reset), wait, at }
    }

    /// Counts units that a verdict admitted `at`.
    pub(crate) fn charge(&mut self, at: u64, cost: u64) {
        self.units += cost;
        match self.entries.back_mut() {
            _ if cost == 0 => {}
            Some((last, units)) if *last == at => *units += cost,
            _ => self.entries.push_back((at, cost)),
        }
    }

    fn expire(&mut self, rules: &Rules, now: u64) {
        while let Some((at, units)) = self.entries.front().copied() {
            if at + rules.per > now {
                break;
            }
            self.units -= units;
            self.entries.pop_front();
        }
    }

    /// When `units` of those logged have left the window.
    fn free_at(&self, rules: &Rules, units: u64) -> u64 {
        let mut freed = 0;
        for (at, more) in &self.entries {
            freed += more;
            if freed >= units {
                return at + rules.per;
            }
        }
        NEVER
    }

    pub(crate) fn refund(&mut self, at: u64, cost: u64) {
        let Ok(place) = self.entries.binary_search_by_key(&at, |(at, _)| *at) else { return };
        let (_, units) = &mut self.entries[place];
        let back = cost.min(*units);
        *units -= back;
        self.units -= back;
        if *units == 0 {
            self.entries.remove(place);
        }
    }

    pub(crate) fn idle_at(&self, rules: &Rules) -> u64 {
        self.entries.back().map_or(0, |(at, _)| at + rules.per)
    }
}
