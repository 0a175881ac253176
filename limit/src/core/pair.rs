//! The sliding-window counter: two counts, the older weighed by what the window still covers of
//! it (Cloudflare, "How we built rate limiting capable of scaling to millions of domains").

use super::rules::{MAX_NOW, Rules};
use super::verdict::{NEVER, Standing, Verdict};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pair {
    index: u64,
    previous: u64,
    current: u64,
}

impl Pair {
    pub(crate) fn judge(&mut self, rules: &Rules, now: u64, cost: u64) -> Verdict {
        let now = now.min(MAX_NOW);
        self.advance(rules.index(now));
        let at = now.max(self.index.saturating_mul(rules.per));
        let gone = at - self.index * rules.per;
        // A late caller sees more of the previous window than those that `current` counts.
        let used = self.carried(rules, gone).saturating_add(self.current);
        let room = rules.limit.saturating_sub(used);
        let wait = match cost {
            _ if cost > rules.limit => NEVER,
            _ if cost <= room => 0,
            _ => self.wait(rules, gone, cost) + (at - now),
        };
        let left = if wait == 0 { room - cost } else { room };
        let taken = if wait == 0 { cost } else { 0 };
        let reset = match (self.previous, self.current + taken) {
            (0, 0) => 0,
            (_, 0) => rules.per - gone,
            _ => 2 * rules.per - gone,
        };
        let standing = Standing::new(rules.limit, left, 1, reset.saturating_add(at - now));
        Verdict { standing, wait, at }
    }

    /// Counts units admitted, in the window that was judged last.
    pub(crate) fn charge(&mut self, cost: u64) {
        self.current += cost;
    }

    /// Weight of the previous window, rounded up, when `gone` ns of the current one have passed.
    fn carried(&self, rules: &Rules, gone: u64) -> u64 {
        let covered = u128::from(rules.per - gone);
        (u128::from(self.previous) * covered).div_ceil(u128::from(rules.per)) as u64
    }

    fn wait(&self, rules: &Rules, gone: u64, cost: u64) -> u64 {
        let until_next = rules.per - gone;
        let room = rules.limit - cost;
        if self.current <= room {
            let covered = covered_at_most(rules, room - self.current, self.previous);
            return until_next - covered.min(until_next);
        }
        until_next + rules.per - covered_at_most(rules, room, self.current)
    }

    fn advance(&mut self, index: u64) {
        if index > self.index {
            self.previous = if index == self.index + 1 { self.current } else { 0 };
            self.current = 0;
            self.index = index;
        }
    }

    pub(crate) fn refund(&mut self, rules: &Rules, at: u64, cost: u64) {
        let index = rules.index(at);
        if index == self.index {
            self.current = self.current.saturating_sub(cost);
        } else if index + 1 == self.index {
            self.previous = self.previous.saturating_sub(cost);
        }
    }

    pub(crate) fn idle_at(&self, rules: &Rules) -> u64 {
        match (self.previous, self.current) {
            (0, 0) => 0,
            (_, 0) => (self.index + 1).saturating_mul(rules.per),
            _ => (self.index + 2).saturating_mul(rules.per),
        }
    }

    /// Takes over the counts; with another period, all that is still carried counts as taken now.
    pub(crate) fn convert(&mut self, old: &Rules, new: &Rules, now: u64) {
        let now = now.min(MAX_NOW);
        self.advance(old.index(now));
        if old.per != new.per {
            let gone = now.saturating_sub(self.index * old.per);
            let used = self.carried(old, gone).saturating_add(self.current);
            *self = Self { index: new.index(now), previous: 0, current: used };
        }
    }
}

/// The longest part of the previous window in which `previous` weighs at most `room`.
fn covered_at_most(rules: &Rules, room: u64, previous: u64) -> u64 {
    if previous == 0 {
        return rules.per;
    }
    let covered = u128::from(room) * u128::from(rules.per) / u128::from(previous);
    covered.min(u128::from(rules.per)) as u64
}
