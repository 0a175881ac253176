//! Keys with several quotas, or with windows that slide: tables behind locks, which hold the keys
//! themselves and grow and shrink with them.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use hashbrown::HashTable;
use parking_lot::Mutex;

use super::{Totals, WhenFull};
use crate::core::{Cell, Receipt, Rules, Verdict, convert_all, step_all};

/// A table is not swept below this many keys.
const MIN_SWEEP: usize = 32;

/// A full table is swept again after so long, however few keys came by.
const SWEEP_PAUSE_NS: u64 = 100_000_000;

pub(super) struct Cells<K> {
    shards: Box<[CachePadded<Mutex<Shard<K>>>]>,
    when_full: WhenFull,
    max_keys: usize,
    keys: AtomicUsize,
    reclaimed: AtomicU64,
    overflowed: AtomicU64,
}

struct Shard<K> {
    rules: Box<[Rules]>,
    table: HashTable<Known<K>>,
    /// Cells shared by all keys without a slot of their own.
    overflow: Box<[Cell]>,
    /// Number of keys at which the table is swept before it grows.
    sweep_at: usize,
    /// Invariant: no key in the table is idle before this time.
    next_idle: u64,
    /// Insertions refused since the last sweep: a sweep is paid for by as many.
    refused: usize,
    /// Time of the last sweep, or of a later newcomer whose caller's clock is behind that.
    swept_at: u64,
    /// The latest time at which a forgotten key became as good as new. Newcomers are decided at
    /// this time or later, because a newcomer may be such a key. Not the time of the sweep: a
    /// caller whose clock is far ahead would set it for the newcomers of all others.
    forgotten_until: u64,
}

/// A key with its hash, so that the table never hashes a key under its lock.
struct Known<K> {
    hash: u64,
    key: K,
    cells: Box<[Cell]>,
}

impl<K: Hash + Eq> Cells<K> {
    pub(super) fn new(rules: &[Rules], max_keys: usize, when_full: WhenFull) -> Self {
        let shard = |_| CachePadded::new(Mutex::new(Shard::new(rules)));
        Self {
            shards: (0..super::shard_count(max_keys)).map(shard).collect(),
            when_full,
            max_keys,
            keys: AtomicUsize::new(0),
            reclaimed: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
        }
    }

    /// The tables take the lowest and the highest bits of the hash; these are others.
    fn shard(&self, hash: u64) -> &Mutex<Shard<K>> {
        &self.shards[(hash >> 40) as usize & (self.shards.len() - 1)]
    }

    /// Decides, and returns how many units the key itself can give back later.
    ///
    /// Of the key's own code only `Eq` runs under the lock of a shard: keys are made before it is
    /// taken and dropped after it is released.
    pub(super) fn step<Q>(&self, hash: u64, key: &Q, now: u64, cost: u64) -> (Verdict, u64)
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        let (answer, _forgotten) = self.look(hash, key, now, cost);
        if let Some(answer) = answer {
            return answer;
        }
        let owned = key.to_owned();
        let shard = &mut *self.shard(hash).lock();
        if let Some(known) = shard.table.find_mut(hash, |known| known.key.borrow() == key) {
            return (step_all(&mut known.cells, &shard.rules, now, cost), cost);
        }
        let one_more = |n: usize| (n < self.max_keys).then_some(n + 1);
        if self.keys.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return self.without_room(shard, now, cost);
        }
        let (verdict, cells) = shard.decide_new(now, cost);
        if verdict.admitted() && cost > 0 {
            shard.next_idle = shard.next_idle.min(idle_at(&cells, &shard.rules));
            let known = Known { hash, key: owned, cells };
            shard.table.insert_unique(hash, known, |known| known.hash);
        } else {
            self.keys.fetch_sub(1, Ordering::Relaxed);
        }
        (verdict, cost)
    }

    /// Decides if that needs no new place. Returns the keys forgotten on the way too.
    fn look<Q>(
        &self,
        hash: u64,
        key: &Q,
        now: u64,
        cost: u64,
    ) -> (Option<(Verdict, u64)>, Vec<Known<K>>)
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let shard = &mut *self.shard(hash).lock();
        if let Some(known) = shard.table.find_mut(hash, |known| known.key.borrow() == key) {
            let verdict = step_all(&mut known.cells, &shard.rules, now, cost);
            return (Some((verdict, cost)), Vec::new());
        }
        let full = || self.keys.load(Ordering::Relaxed) >= self.max_keys;
        let mut forgotten = Vec::new();
        if shard.sweep_is_due(now, full()) {
            forgotten = shard.sweep(now);
            self.forgot(forgotten.len());
        }
        if full() {
            return (Some(self.without_room(shard, now, cost)), forgotten);
        }
        let verdict = shard.decide_new(now, cost).0;
        let takes_place = verdict.admitted() && cost > 0;
        ((!takes_place).then_some((verdict, cost)), forgotten)
    }

    fn without_room(&self, shard: &mut Shard<K>, now: u64, cost: u64) -> (Verdict, u64) {
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        let Shard { rules, overflow, .. } = shard;
        let share = || step_all(overflow, rules, now, cost);
        (self.when_full.decide(&rules[0], now, share), 0)
    }

    fn forgot(&self, keys: usize) {
        self.keys.fetch_sub(keys, Ordering::Relaxed);
        self.reclaimed.fetch_add(keys as u64, Ordering::Relaxed);
    }

    pub(super) fn refund<Q>(&self, hash: u64, key: &Q, receipt: &Receipt, now: u64)
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let shard = &mut *self.shard(hash).lock();
        if let Some(known) = shard.table.find_mut(hash, |known| known.key.borrow() == key) {
            for (cell, rules) in known.cells.iter_mut().zip(&shard.rules) {
                cell.refund(rules, receipt, now);
            }
        }
        shard.next_idle = 0;
    }

    pub(super) fn rules(&self) -> Box<[Rules]> {
        self.shards[0].lock().rules.clone()
    }

    pub(super) fn set_rules(&self, new: &[Rules], now: u64) {
        for shard in &self.shards {
            shard.lock().set_rules(new, now);
        }
    }

    pub(super) fn reclaim(&self, now: u64) {
        for shard in &self.shards {
            let forgotten = shard.lock().sweep(now);
            self.forgot(forgotten.len());
        }
    }
}

impl<K> Cells<K> {
    pub(super) fn totals(&self) -> Totals {
        Totals {
            keys: self.keys.load(Ordering::Relaxed),
            reclaimed: self.reclaimed.load(Ordering::Relaxed),
            overflowed: self.overflowed.load(Ordering::Relaxed),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let of = |shard: &Shard<K>| {
            let cells = shard.table.len() * shard.rules.len() * size_of::<Cell>();
            shard.table.allocation_size() + cells
        };
        self.shards.iter().map(|shard| of(&shard.lock())).sum()
    }
}

impl<K> Shard<K> {
    fn new(rules: &[Rules]) -> Self {
        Self {
            rules: rules.into(),
            table: HashTable::new(),
            overflow: fresh(rules),
            sweep_at: MIN_SWEEP,
            next_idle: 0,
            refused: 0,
            swept_at: 0,
            forgotten_until: 0,
        }
    }

    /// Decides for a key without a place; returns its cells too.
    fn decide_new(&self, now: u64, cost: u64) -> (Verdict, Box<[Cell]>) {
        // The key may have been forgotten, and the caller be late.
        let now = now.max(self.forgotten_until);
        let mut cells = fresh(&self.rules);
        (step_all(&mut cells, &self.rules, now, cost), cells)
    }

    /// Whether to look for keys to forget, before another comes in.
    fn sweep_is_due(&mut self, now: u64, full: bool) -> bool {
        // A caller behind the last sweep: the pause after that is counted by the earlier clock.
        self.swept_at = self.swept_at.min(now);
        if full {
            self.refused += 1;
            let paid = self.refused > self.table.len() / 8
                || now >= self.swept_at.saturating_add(SWEEP_PAUSE_NS);
            return now >= self.next_idle && paid;
        }
        self.table.len() >= self.sweep_at && now >= self.next_idle
    }

    /// Forgets the keys that are as good as new, and returns them for the caller to drop once the
    /// lock is released.
    fn sweep(&mut self, now: u64) -> Vec<Known<K>> {
        let rules = &self.rules;
        let (mut next, mut until) = (u64::MAX, self.forgotten_until);
        let is_idle = |known: &mut Known<K>| {
            let idle_at = idle_at(&known.cells, rules);
            if idle_at > now {
                next = next.min(idle_at);
            } else {
                until = until.max(idle_at);
            }
            idle_at <= now
        };
        let forgotten: Vec<Known<K>> = self.table.extract_if(is_idle).collect();
        let left = self.table.len();
        // Gives memory back once three quarters are free.
        if left < self.table.capacity() / 4 {
            self.table.shrink_to(left * 2, |known| known.hash);
        }
        self.next_idle = next;
        self.forgotten_until = until;
        self.sweep_at = (left * 2).max(MIN_SWEEP);
        self.refused = 0;
        self.swept_at = now;
        forgotten
    }

    fn set_rules(&mut self, new: &[Rules], now: u64) {
        for known in &mut self.table {
            convert_all(&mut known.cells, &self.rules, new, now);
        }
        convert_all(&mut self.overflow, &self.rules, new, now);
        self.rules = Rules::all_succeeding(new, &self.rules, now);
        self.next_idle = 0;
    }
}

fn fresh(rules: &[Rules]) -> Box<[Cell]> {
    rules.iter().map(|rules| Cell::new(rules.kind)).collect()
}

fn idle_at(cells: &[Cell], rules: &[Rules]) -> u64 {
    cells.iter().zip(rules).map(|(cell, rules)| cell.idle_at(rules)).max().unwrap_or(0)
}
