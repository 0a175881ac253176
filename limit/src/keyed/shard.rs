//! The keys of one shard, behind its lock.

use std::borrow::Borrow;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::WhenFull;
use crate::core::{Cell, Receipt, Rules, Standing, Verdict, step_all, word};

/// A table is not swept below this many keys.
const SWEEP_MIN: usize = 32;

/// A full table is swept again after so long, however few keys came by.
const SWEEP_PAUSE_NS: u64 = 100_000_000;

/// What a lookup finds.
pub(super) enum Found {
    Decided(Verdict),
    Missing,
}

pub(super) struct Shard<K> {
    /// The only quota, of a word, or the first of several.
    first: Rules,
    rules: Box<[Rules]>,
    table: Table<K>,
    /// What the keys without a place share.
    overflow: Box<[Cell]>,
    /// With so many keys the table is swept before it grows.
    sweep_at: usize,
    /// Before this nothing that the last sweep left can go.
    next_idle: u64,
    /// Insertions refused since the last sweep: a sweep is paid for by as many.
    refused: usize,
    swept: u64,
}

enum Table<K> {
    Words(HashTable<(K, u64)>),
    Cells(HashTable<(K, Box<[Cell]>)>),
}

impl<K> Shard<K> {
    pub(super) fn new(rules: &[Rules]) -> Self {
        let table = if rules.len() == 1 && rules[0].kind.is_word() {
            Table::Words(HashTable::new())
        } else {
            Table::Cells(HashTable::new())
        };
        Self {
            first: rules[0],
            rules: rules.into(),
            table,
            overflow: fresh(rules),
            sweep_at: SWEEP_MIN,
            next_idle: 0,
            refused: 0,
            swept: 0,
        }
    }

    pub(super) fn rules(&self) -> &[Rules] {
        &self.rules
    }

    fn len(&self) -> usize {
        match &self.table {
            Table::Words(table) => table.len(),
            Table::Cells(table) => table.len(),
        }
    }

    pub(super) fn table_bytes(&self) -> usize {
        match &self.table {
            Table::Words(table) => table.allocation_size(),
            Table::Cells(table) => {
                table.allocation_size() + table.len() * self.rules.len() * size_of::<Cell>()
            }
        }
    }

    /// Decides for a key that has a place.
    #[inline]
    pub(super) fn step<Q>(&mut self, hash: u64, key: &Q, now: u64, cost: u64) -> Found
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        match &mut self.table {
            Table::Words(table) => match table.find_mut(hash, |(k, _)| k.borrow() == key) {
                Some((_, state)) => {
                    let (verdict, next) = word::step(&self.first, *state, now, cost);
                    if verdict.admitted() {
                        *state = next;
                    }
                    Found::Decided(verdict)
                }
                None => Found::Missing,
            },
            Table::Cells(table) => match table.find_mut(hash, |(k, _)| k.borrow() == key) {
                Some((_, cells)) => Found::Decided(step_all(cells, &self.rules, now, cost)),
                None => Found::Missing,
            },
        }
    }

    /// Decides for a new key, and gives it a place if it took something.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        key: K,
        now: u64,
        cost: u64,
        rehash: impl Fn(&K) -> u64,
    ) -> (Verdict, bool)
    where
        K: Eq,
    {
        let mut cells = fresh(&self.rules);
        let verdict = step_all(&mut cells, &self.rules, now, cost);
        if !verdict.admitted() || cost == 0 {
            return (verdict, false);
        }
        match &mut self.table {
            Table::Words(table) => {
                let (_, word) = word::step(&self.first, 0, now, cost);
                table.insert_unique(hash, (key, word), |(key, _)| rehash(key));
            }
            Table::Cells(table) => {
                if let Entry::Vacant(place) =
                    table.entry(hash, |(k, _)| *k == key, |(key, _)| rehash(key))
                {
                    place.insert((key, cells));
                }
            }
        }
        (verdict, true)
    }

    /// Whether to look for keys to forget, before another comes in.
    pub(super) fn sweep_is_due(&mut self, now: u64, full: bool) -> bool {
        if full {
            self.refused += 1;
            let paid = self.refused > self.len() / 8 || now >= self.swept + SWEEP_PAUSE_NS;
            return now >= self.next_idle && paid;
        }
        self.len() >= self.sweep_at && now >= self.next_idle
    }

    /// Forgets what is as good as new, and says how many that were.
    pub(super) fn sweep(&mut self, now: u64, rehash: impl Fn(&K) -> u64) -> usize {
        let before = self.len();
        let (first, rules) = (&self.first, &self.rules);
        let mut next = u64::MAX;
        let mut stays = |idle_at: u64| {
            let stays = idle_at > now;
            if stays {
                next = next.min(idle_at);
            }
            stays
        };
        match &mut self.table {
            Table::Words(table) => {
                table.retain(|(_, word)| stays(word::idle_at(first, *word)));
                shrink(table, |(key, _)| rehash(key));
            }
            Table::Cells(table) => {
                table.retain(|(_, cells)| stays(idle_at(cells, rules)));
                shrink(table, |(key, _)| rehash(key));
            }
        }
        let left = self.len();
        self.next_idle = if left == 0 { 0 } else { next };
        self.sweep_at = (left * 2).max(SWEEP_MIN);
        self.refused = 0;
        self.swept = now;
        before - left
    }

    /// Decides for a key without a place.
    pub(super) fn overflow(&mut self, when_full: WhenFull, now: u64, cost: u64) -> Verdict {
        let limit = self.first.limit;
        match when_full {
            WhenFull::Share => step_all(&mut self.overflow, &self.rules, now, cost),
            WhenFull::Deny => {
                let standing = Standing::new(limit, 0, 1, self.first.per);
                Verdict { standing, wait: self.first.per, at: now }
            }
            WhenFull::Admit => {
                Verdict { standing: Standing::new(limit, 0, 1, 0), wait: 0, at: now }
            }
        }
    }

    pub(super) fn refund<Q>(&mut self, hash: u64, key: &Q, receipt: &Receipt, now: u64)
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        match &mut self.table {
            Table::Words(table) => {
                if let Some((_, state)) = table.find_mut(hash, |(k, _)| k.borrow() == key) {
                    *state = word::refund(&self.first, *state, receipt, now);
                }
            }
            Table::Cells(table) => {
                if let Some((_, cells)) = table.find_mut(hash, |(k, _)| k.borrow() == key) {
                    for (cell, rules) in cells.iter_mut().zip(&self.rules) {
                        cell.refund(rules, receipt, now);
                    }
                }
            }
        }
        self.next_idle = 0;
    }

    pub(super) fn set_rules(&mut self, new: &[Rules], now: u64) {
        let convert = |cells: &mut [Cell], old: &[Rules]| {
            for (tier, cell) in cells.iter_mut().enumerate() {
                cell.convert(&old[tier], &new[tier], now);
            }
        };
        match &mut self.table {
            Table::Words(table) => {
                for (_, state) in table.iter_mut() {
                    *state = word::convert(&self.first, &new[0], *state, now);
                }
            }
            Table::Cells(table) => {
                table.iter_mut().for_each(|(_, cells)| convert(cells, &self.rules));
            }
        }
        convert(&mut self.overflow, &self.rules);
        self.first = new[0];
        self.rules = new.into();
        self.next_idle = 0;
    }
}

fn fresh(rules: &[Rules]) -> Box<[Cell]> {
    rules.iter().map(|rules| Cell::new(rules.kind)).collect()
}

fn idle_at(cells: &[Cell], rules: &[Rules]) -> u64 {
    cells.iter().zip(rules).map(|(cell, rules)| cell.idle_at(rules)).max().unwrap_or(0)
}

/// Gives memory back once three quarters of a table are free.
fn shrink<T>(table: &mut HashTable<T>, rehash: impl Fn(&T) -> u64) {
    if table.len() < table.capacity() / 4 {
        table.shrink_to(table.len() * 2, rehash);
    }
}
