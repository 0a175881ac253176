//! Keys whose quota is one word: a table of fixed size in which a check touches one cache line and
//! takes no lock.
//!
//! A key's slot is within `WINDOW` lines from its home line, before the first slot never used. A
//! slot changes hands only when its word is as good as new, so nothing is ever swept. Shards are
//! ranges of lines with rules and a lock for newcomers of their own; no window leaves its shard.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use super::{Totals, WhenFull};
use crate::core::{
    Cell, LiveRules, MAX_NOW, Receipt, Rules, Slot, SlotRef, Standing, Verdict, step_all, word,
};
use crate::error::ConfigError;

/// Slots in a cache line.
const LINE: usize = 4;

/// Lines in which a key may have its slot. In a table that is half full 96 % of the keys have it
/// in the first, and of those beyond a line about four in ten are beyond the next one too. With 16
/// lines one table of 100,000 in some thousands had no slot for a key, though it had room.
const WINDOW: usize = 32;

pub(super) struct Words {
    slots: Box<[Slot]>,
    /// The slot that begins the first whole cache line.
    first: usize,
    /// Lines of each shard.
    lines: usize,
    shards: Box<[CachePadded<Shard>]>,
    when_full: WhenFull,
}

struct Shard {
    rules: LiveRules,
    newcomers: Mutex<Newcomers>,
}

/// State that only a key without a slot touches.
struct Newcomers {
    keys: usize,
    reclaimed: u64,
    overflowed: u64,
    /// The latest time at which a forgotten key became as good as new. Newcomers are decided at
    /// this time or later, because a newcomer may be such a key. Not the time at which keys are
    /// forgotten: a caller whose clock is far ahead would set it for the newcomers of all others.
    forgotten_until: u64,
    /// Cell shared by all keys without a slot.
    overflow: Cell,
}

/// Where a newcomer ends up.
enum Entry<'a> {
    /// Another thread inserted the key first.
    Known,
    Free(SlotRef<'a>),
    /// Slot of a key whose state equals that of an unused key, with its word; it can be reused.
    Idle(SlotRef<'a>, u64),
    Full,
}

/// The rule of `max_keys` that a table breaks for which there is no memory.
const NO_MEMORY: &str = "must be lower: the system refused the memory for the table";

impl Words {
    /// A table that is half full with `max_keys` keys.
    pub(super) fn new(
        rules: &Rules,
        max_keys: usize,
        when_full: WhenFull,
    ) -> Result<Self, ConfigError> {
        let count = super::shard_count(max_keys);
        let lines = max_keys.div_ceil(count * LINE / 2).max(1);
        let room = lines * count * LINE + LINE - 1;
        // Taken zeroed from the system, which gives memory only to pages that are written.
        let slots: Box<[Slot]> = bytemuck::allocation::try_zeroed_slice_box(room)
            .map_err(|()| ConfigError::new("max_keys", NO_MEMORY))?;
        let first = slots.as_ptr().align_offset(64).min(LINE - 1);
        let newcomers = || Newcomers {
            keys: 0,
            reclaimed: 0,
            overflowed: 0,
            forgotten_until: 0,
            overflow: Cell::new(rules.kind),
        };
        let shard = |_| Shard { rules: LiveRules::new(rules), newcomers: Mutex::new(newcomers()) };
        let shards = (0..count).map(shard).map(CachePadded::new).collect();
        Ok(Self { slots, first, lines, shards, when_full })
    }

    /// The short way: decides if the key has a slot and its quota is by rate. `None` means
    /// nothing.
    #[inline]
    pub(super) fn take(
        &self,
        hash: u64,
        now: u64,
        cost: u64,
    ) -> Option<Result<Standing, (Standing, u64)>> {
        let hash = named(hash);
        let slot = self.find(hash)?;
        self.shard(hash).rules.take(slot.word, slot.of(hash), now, cost)
    }

    /// Decides, and says how many units the key itself can give back later.
    pub(super) fn step(&self, hash: u64, now: u64, cost: u64) -> (Verdict, u64) {
        let hash = named(hash);
        let rules = &self.shard(hash).rules;
        // A turn fails only because another thread has changed the slot or its word meanwhile:
        // brought the key in, taken or given back units of it, or given its slot away.
        loop {
            let Some(slot) = self.find(hash) else {
                match self.step_new(hash, now, cost) {
                    Some(answer) => return answer,
                    None => continue,
                }
            };
            if let Some(verdict) = rules.step(slot.word, slot.of(hash), now, cost) {
                return (verdict, cost);
            }
            std::hint::spin_loop();
        }
    }

    /// By the lowest bits of the hash; the line is by the highest.
    #[inline]
    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[hash as usize & (self.shards.len() - 1)]
    }

    /// Asks for the cache line of a key without waiting for it.
    #[inline]
    pub(super) fn touch(&self, hash: u64) {
        let (slots, home) = self.range(named(hash));
        std::hint::black_box(SlotRef::at(&slots[home * LINE]).word.load(Relaxed));
    }

    /// Looks at a whole line before it branches: which of its slots it is cannot be predicted,
    /// that it is in the first line can.
    #[inline]
    fn find(&self, hash: u64) -> Option<SlotRef<'_>> {
        let (slots, home) = self.range(hash);
        let (before, from) = slots.split_at(home * LINE);
        let lines = from.chunks_exact(LINE).chain(before.chunks_exact(LINE)).take(WINDOW);
        for line in lines {
            let (mut at, mut free) = (LINE, false);
            for (index, slot) in line.iter().enumerate() {
                let other = SlotRef::at(slot).hash();
                at = if other == hash { index } else { at };
                free |= other == 0;
            }
            if let Some(slot) = line.get(at) {
                return Some(SlotRef::at(slot));
            }
            if free {
                return None;
            }
        }
        None
    }

    /// The slots of a key's shard and the line where it is at home.
    #[inline]
    fn range(&self, hash: u64) -> (&[Slot], usize) {
        let shard = hash as usize & (self.shards.len() - 1);
        let home = ((hash >> 32) * self.lines as u64) >> 32;
        let slots = &self.slots[self.first + shard * self.lines * LINE..][..self.lines * LINE];
        (slots, home as usize)
    }

    /// A key that has no slot. `None` if it has one after all.
    pub(super) fn step_new(&self, hash: u64, now: u64, cost: u64) -> Option<(Verdict, u64)> {
        let shard = self.shard(hash);
        let mut newcomers = shard.newcomers.lock();
        // They do not change under the lock.
        let rules = shard.rules.read();
        let now = now.min(MAX_NOW).max(newcomers.forgotten_until);
        let (verdict, next) = word::step(&rules, 0, now, cost);
        if !verdict.admitted() || cost == 0 {
            return Some((verdict, cost));
        }
        // A turn fails only because the key of an idle slot took units, which makes that slot no
        // longer idle for this `now`; there are as many slots as a window has.
        loop {
            let (slot, old) = match self.entry(&rules, hash, now) {
                Entry::Known => return None,
                Entry::Full => {
                    newcomers.overflowed += 1;
                    let shared = &mut newcomers.overflow;
                    let share = || step_all(std::slice::from_mut(shared), &[rules], now, cost);
                    return Some((self.when_full.decide(&rules, now, share), 0));
                }
                Entry::Free(slot) => (slot, 0),
                Entry::Idle(slot, old) => (slot, old),
            };
            match slot.hand_on(old, hash, next) {
                // The key that had it is back.
                None => continue,
                Some(0) => newcomers.keys += 1,
                Some(_) => {
                    newcomers.reclaimed += 1;
                    let idle_at = word::idle_at(&rules, old);
                    newcomers.forgotten_until = newcomers.forgotten_until.max(idle_at);
                }
            }
            return Some((verdict, cost));
        }
    }

    fn entry(&self, rules: &Rules, hash: u64, now: u64) -> Entry<'_> {
        let mut idle = Entry::Full;
        let (slots, home) = self.range(hash);
        for slot in window(slots, home) {
            let other = slot.hash();
            if other == hash {
                return Entry::Known;
            }
            if other == 0 {
                return if matches!(idle, Entry::Full) { Entry::Free(slot) } else { idle };
            }
            let word = slot.word.load(Acquire);
            if matches!(idle, Entry::Full) && word::idle_at(rules, word) < now {
                idle = Entry::Idle(slot, word);
            }
        }
        idle
    }

    pub(super) fn refund(&self, hash: u64, receipt: &Receipt, now: u64) {
        let hash = named(hash);
        let rules = &self.shard(hash).rules;
        // A turn fails only because another thread has changed the word or given the slot away.
        while let Some(slot) = self.find(hash) {
            let back = |rules: &Rules, word| ((), Some(word::refund(rules, word, receipt, now)));
            if rules.update(slot.word, slot.of(hash), back).is_some() {
                return;
            }
        }
    }

    pub(super) fn rules(&self) -> Rules {
        self.shards[0].rules.read()
    }

    pub(super) fn set_rules(&self, new: &Rules, now: u64) {
        for (shard, slots) in
            self.shards.iter().zip(self.slots[self.first..].chunks(self.lines * LINE))
        {
            let mut newcomers = shard.newcomers.lock();
            let old = shard.rules.read();
            newcomers.overflow.convert(&old, new, now);
            let used = slots.iter().map(SlotRef::at).filter(|slot| slot.hash() != 0);
            shard.rules.change(new, now, used.map(|slot| slot.word));
        }
    }

    pub(super) fn totals(&self) -> Totals {
        self.shards.iter().fold(Totals::default(), |totals, shard| {
            let newcomers = shard.newcomers.lock();
            Totals {
                keys: totals.keys + newcomers.keys,
                reclaimed: totals.reclaimed + newcomers.reclaimed,
                overflowed: totals.overflowed + newcomers.overflowed,
            }
        })
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.slots) + size_of_val(&*self.shards)
    }
}

fn window(slots: &[Slot], home: usize) -> impl Iterator<Item = SlotRef<'_>> {
    let (before, from) = slots.split_at(home * LINE);
    from.iter().chain(before).take(WINDOW * LINE).map(SlotRef::at)
}

/// 0 means that a slot was never used.
#[inline]
fn named(hash: u64) -> u64 {
    hash | u64::from(hash == 0) << 63
}
