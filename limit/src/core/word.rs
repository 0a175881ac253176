//! Decisions whose whole state is one word. A word of 0 is a quota never used.

use super::rules::{Kind, MAX_NOW, Rules};
use super::verdict::{NEVER, Receipt, Standing, Verdict};

/// Decides about `cost` units at `now`; the second value is the word to store if admitted.
pub(crate) fn step(rules: &Rules, word: u64, now: u64, cost: u64) -> (Verdict, u64) {
    let now = now.min(MAX_NOW);
    if rules.kind != Kind::Gcra {
        return counted(rules, word, now, cost);
    }
    match gcra(rules.interval, rules.span, word, now, cost) {
        Ok((standing, next)) => (Verdict { standing, wait: 0, at: now }, next),
        Err((standing, wait)) => (Verdict { standing, wait, at: now }, word),
    }
}

/// The generic cell rate algorithm, in its virtual-scheduling form (ITU-T I.371, annex A): the word
/// is the theoretical arrival time, and may run ahead of now by `span`. Says where the quota stands
/// and the next word, or how long to wait.
#[inline]
pub(crate) fn gcra(
    interval: u64,
    span: u64,
    word: u64,
    now: u64,
    cost: u64,
) -> Result<(Standing, u64), (Standing, u64)> {
    let ahead = word.saturating_sub(now);
    let worth = cost.checked_mul(interval).filter(|worth| *worth <= span);
    if let Some(worth) = worth
        && let Some(left) = (span - worth).checked_sub(ahead)
    {
        let used = ahead + worth;
        return Ok((Standing::new(span, left, interval, used), now + used));
    }
    let standing = Standing::new(span, span.saturating_sub(ahead), interval, ahead);
    if cost == 0 {
        // Nothing is asked for, so nothing is missing, also of a quota in debt.
        return Ok((standing, word));
    }
    Err((standing, worth.map_or(NEVER, |worth| ahead - (span - worth))))
}

/// Token bucket and fixed window: a count that is lowered when an index moves on.
fn counted(rules: &Rules, word: u64, now: u64, cost: u64) -> (Verdict, u64) {
    let (index, used) = advanced(rules, word, now);
    // A caller whose `now` is from before the stored window is counted in the stored one.
    let at = now.max(index.saturating_mul(rules.per));
    let reset = |used: u64| match used {
        0 => 0,
        used => start_of(rules, index, ticks_for(rules, used)) - now,
    };
    let room = rules.limit.saturating_sub(used);
    if cost <= room {
        let used = used + cost;
        let standing = Standing::new(rules.limit, room - cost, 1, reset(used));
        return (Verdict { standing, wait: 0, at }, pack(rules, index, used));
    }
    let wait = if cost > rules.limit {
        NEVER
    } else {
        start_of(rules, index, ticks_for(rules, cost - room)) - now
    };
    let standing = Standing::new(rules.limit, room, 1, reset(used));
    (Verdict { standing, wait, at }, word)
}

/// After how many moves of the index `units` used have gone.
fn ticks_for(rules: &Rules, units: u64) -> u64 {
    if rules.kind == Kind::FixedWindow { 1 } else { units.div_ceil(rules.count) }
}

fn start_of(rules: &Rules, index: u64, later: u64) -> u64 {
    index.saturating_add(later).saturating_mul(rules.per)
}

/// The index and the units used as of `now`.
fn advanced(rules: &Rules, word: u64, now: u64) -> (u64, u64) {
    let (stored, used) = unpack(rules, word);
    let index = rules.index(now);
    if index <= stored {
        return (stored, used);
    }
    let gone = match rules.kind {
        Kind::FixedWindow => used,
        _ => (index - stored).saturating_mul(rules.count),
    };
    (index, used.saturating_sub(gone))
}

fn unpack(rules: &Rules, word: u64) -> (u64, u64) {
    (word >> rules.unit_bits, word & ((1 << rules.unit_bits) - 1))
}

fn pack(rules: &Rules, index: u64, used: u64) -> u64 {
    (index << rules.unit_bits) | used
}

/// Decision about a reservation of more units than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    Refused,
    /// The quota owes the rest: the wait is until the rest has flowed in too.
    Owed,
}

/// The farthest that reservations may bring the theoretical arrival time ahead of now, ns: 73
/// years. Twice as much still fits into a word at any time.
const MAX_AHEAD: u64 = MAX_NOW / 4;

/// Takes `cost` units now; returns from when on they may be used and the next word. `None` if the
/// quota never gives as much. GCRA only. The caller lets one reservation be outstanding at a time.
pub(crate) fn reserve(
    rules: &Rules,
    word: u64,
    now: u64,
    cost: u64,
    beyond: Beyond,
) -> Option<(u64, u64)> {
    let now = now.min(MAX_NOW);
    let worth = cost.checked_mul(rules.interval)?;
    if worth > rules.span && beyond == Beyond::Refused {
        return None;
    }
    let next = word.max(now).checked_add(worth)?;
    if next - now > rules.span.saturating_add(MAX_AHEAD) {
        return None;
    }
    Some(((next - now).saturating_sub(rules.span), next))
}

/// The word after units that were taken and not used come back.
///
/// Under GCRA they come back less by the time they were out, which has flowed back already: the
/// word never falls behind where it would be had they not been taken.
pub(crate) fn refund(rules: &Rules, word: u64, receipt: &Receipt, now: u64) -> u64 {
    if receipt.at < rules.receipts_from {
        return word;
    }
    if rules.kind == Kind::Gcra {
        let worth = receipt.cost.saturating_mul(rules.interval);
        let out = now.min(MAX_NOW).saturating_sub(receipt.at);
        return word.saturating_sub(worth.saturating_sub(out));
    }
    let (stored, used) = unpack(rules, word);
    if rules.index(receipt.at) != stored || rules.index(now.min(MAX_NOW)) > stored {
        return word;
    }
    pack(rules, stored, used.saturating_sub(receipt.cost))
}

/// From when on a word means the same as 0. A word without units used still counts a late caller in
/// its window or tick, so it is idle from the beginning of that.
pub(crate) fn idle_at(rules: &Rules, word: u64) -> u64 {
    if rules.kind == Kind::Gcra {
        return word;
    }
    let (index, used) = unpack(rules, word);
    let later = if used == 0 { 0 } else { ticks_for(rules, used) };
    start_of(rules, index, later)
}

/// The word for `new` that has as many units used as `word` has for `old`, at most all of them.
pub(crate) fn convert(old: &Rules, new: &Rules, word: u64, now: u64) -> u64 {
    let now = now.min(MAX_NOW);
    if new.kind == Kind::Gcra {
        let ahead = word.saturating_sub(now);
        let scaled = |ahead: u64| {
            let new =
                (u128::from(ahead) * u128::from(new.interval)).div_ceil(u128::from(old.interval));
            new.min(u128::from(MAX_NOW / 4)) as u64
        };
        // Units that were reserved beyond the burst stay reserved.
        let beyond = ahead.saturating_sub(old.span);
        return now + scaled(ahead - beyond).min(new.span) + scaled(beyond);
    }
    let (index, used) = advanced(old, word, now);
    let index = if old.per == new.per { index } else { new.index(now) };
    pack(new, index, used.min(new.limit))
}
