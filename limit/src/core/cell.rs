//! The state of one quota, whatever its algorithm, for use under a lock.

use super::log::Log;
use super::pair::Pair;
use super::rules::{Kind, Rules};
use super::verdict::{Receipt, Verdict};
use super::word;

#[derive(Clone, Debug)]
pub(crate) enum Cell {
    Word(u64),
    Pair(Pair),
    Log(Log),
}

impl Cell {
    pub(crate) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Gcra | Kind::TokenBucket | Kind::FixedWindow => Self::Word(0),
            Kind::SlidingCounter => Self::Pair(Pair::default()),
            Kind::SlidingLog => Self::Log(Log::default()),
        }
    }

    /// Decides without taking.
    pub(crate) fn judge(&mut self, rules: &Rules, now: u64, cost: u64) -> Verdict {
        match self {
            Self::Word(word) => word::step(rules, *word, now, cost).0,
            Self::Pair(pair) => pair.judge(rules, now, cost),
            Self::Log(log) => log.judge(rules, now, cost),
        }
    }

    /// Takes what `judge` admitted, at the same time or later.
    pub(crate) fn charge(&mut self, rules: &Rules, now: u64, cost: u64) {
        match self {
            Self::Word(word) => *word = word::step(rules, *word, now, cost).1,
            Self::Pair(pair) => {
                pair.judge(rules, now, 0);
                pair.charge(cost);
            }
            Self::Log(log) => {
                let at = log.judge(rules, now, 0).at;
                log.charge(at, cost);
            }
        }
    }

    pub(crate) fn refund(&mut self, rules: &Rules, receipt: &Receipt, now: u64) {
        match self {
            Self::Word(word) => *word = word::refund(rules, *word, receipt, now),
            Self::Pair(_) if receipt.at < rules.receipts_from => {}
            Self::Pair(pair) => pair.refund(rules, receipt.at, receipt.cost),
            Self::Log(log) => log.refund(receipt.at, receipt.cost),
        }
    }

    /// When the cell is as good as new.
    pub(crate) fn idle_at(&self, rules: &Rules) -> u64 {
        match self {
            Self::Word(word) => word::idle_at(rules, *word),
            Self::Pair(pair) => pair.idle_at(rules),
            Self::Log(log) => log.idle_at(rules),
        }
    }

    /// Carries what is used over to another quota of the same algorithm.
    pub(crate) fn convert(&mut self, old: &Rules, new: &Rules, now: u64) {
        match self {
            Self::Word(word) => *word = word::convert(old, new, *word, now),
            Self::Pair(pair) => pair.convert(old, new, now),
            Self::Log(_) => {}
        }
    }
}

/// Carries what is used over to other quotas of the same algorithms.
pub(crate) fn convert_all(cells: &mut [Cell], old: &[Rules], new: &[Rules], now: u64) {
    for ((cell, old), new) in cells.iter_mut().zip(old).zip(new) {
        cell.convert(old, new, now);
    }
}

/// Decides over all of them: takes from each or from none.
pub(crate) fn step_all(cells: &mut [Cell], rules: &[Rules], now: u64, cost: u64) -> Verdict {
    let mut worst: Option<Verdict> = None;
    let mut at = 0;
    for (tier, (cell, rules)) in cells.iter_mut().zip(rules).enumerate() {
        let mut verdict = cell.judge(rules, now, cost);
        verdict.standing = verdict.standing.in_tier(tier);
        at = at.max(verdict.at);
        let tighter = |worst: &Verdict| {
            let left = |verdict: &Verdict| verdict.standing.remaining();
            verdict.wait > worst.wait
                || (verdict.wait == worst.wait && left(&verdict) < left(worst))
        };
        if worst.as_ref().is_none_or(tighter) {
            worst = Some(verdict);
        }
    }
    let mut worst = worst.expect("a limiter has at least one quota");
    if worst.admitted() {
        for (cell, rules) in cells.iter_mut().zip(rules) {
            cell.charge(rules, at, cost);
        }
    }
    worst.at = at;
    worst
}
