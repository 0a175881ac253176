//! What people were told that they have put into the cart and taken out of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use parking_lot::Mutex;

/// Items. Both regions put all of them into the cart; the east alone takes the first ones out of
/// it, the west the others, so that nothing is taken out twice and the sums are exact.
pub(crate) const ITEMS: [&str; 6] = ["apple", "bread", "cheese", "milk", "pear", "tea"];
/// How many items the east takes out.
const OF_EAST: usize = 3;

/// The items that a region takes out.
pub(crate) fn taken_out_by(is_east: bool) -> &'static [&'static str] {
    if is_east { &ITEMS[..OF_EAST] } else { &ITEMS[OF_EAST..] }
}

#[derive(Default)]
pub(crate) struct Ledger {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    items: BTreeMap<String, i64>,
    changes: u64,
    refused: u64,
    merged: u64,
}

impl Ledger {
    /// What a node has answered to an addition, or to a removal.
    pub(crate) fn record(&self, item: &str, answer: Result<String, String>) {
        let mut state = self.state.lock();
        let Ok(answer) = answer else {
            state.refused += 1;
            return;
        };
        let words: Vec<&str> = answer.split(' ').collect();
        let [verb, n, "merged", merged] = &words[..] else {
            state.refused += 1;
            return;
        };
        let n: i64 = n.parse().unwrap_or(0);
        *state.items.entry(item.to_owned()).or_default() += if *verb == "added" { n } else { -n };
        state.changes += 1;
        state.merged += u64::from(merged.parse().unwrap_or(0_usize) > 1);
    }

    /// What the cart must hold when all has arrived, as a node shows it.
    pub(crate) fn expected(&self) -> String {
        let mut text = String::new();
        for (item, n) in self.state.lock().items.iter().filter(|(_, n)| **n != 0) {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}{item} {n}");
        }
        text
    }

    /// Changes that were made, changes that were refused, and how often siblings were merged.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let state = self.state.lock();
        (state.changes, state.refused, state.merged)
    }
}
