//! The records in memory: which are ready, leased, delayed, or behind another of their key.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::ledger::Slot;

/// Where a record in memory stands. Each is in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Behind an unsettled record of its key.
    Held,
    /// To be delivered. Invariant: in `ready`.
    Ready,
    /// To be delivered later. Invariant: in `timers`.
    Delayed,
    /// Handed out under this lease. Invariant: the lease exists and has it as a member.
    Leased(u64),
    /// A write about it is on its way, or about to be.
    Writing,
    /// Out of deliveries, to become a dead letter. Invariant: in `dying`.
    Dying,
}

/// A record in memory.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) payload: T,
    /// What it counts against the limit of bytes.
    pub(crate) bytes: usize,
    /// Hash of its key, when the order of its key is kept.
    pub(crate) key: Option<u64>,
    /// Deliveries so far.
    pub(crate) count: u32,
    /// Not delivered before this time.
    pub(crate) until: u64,
    /// Lower ranks are delivered first.
    pub(crate) rank: u64,
    /// A dead letter whatever its count: its time of delivery is beyond `max_delay`.
    pub(crate) is_doomed: bool,
    /// Whether a copy of it fits into a write; otherwise it is delivered for ever.
    pub(crate) can_die: bool,
    pub(crate) state: State,
}

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) until: u64,
    pub(crate) members: Vec<Slot>,
    /// Members whose settlement is not durable yet.
    open: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The lease ends.
    Lease(u64),
    /// The record is due.
    Record(Slot),
}

#[derive(Debug)]
pub(crate) struct Window<T> {
    pub(crate) max_deliveries: u32,
    pub(crate) entries: BTreeMap<Slot, Entry<T>>,
    pub(crate) bytes: usize,
    /// By rank.
    ready: BTreeSet<(u64, Slot)>,
    timers: BTreeSet<(u64, Timer)>,
    /// Unsettled records of each key, in order. Invariant: only the first of a key is in a state
    /// other than `Held`.
    keys: HashMap<u64, VecDeque<Slot>>,
    pub(crate) leases: HashMap<u64, Lease>,
    pub(crate) dying: BTreeSet<Slot>,
}

impl<T> Window<T> {
    pub(crate) fn new(max_deliveries: u32) -> Self {
        Self {
            max_deliveries,
            entries: BTreeMap::new(),
            bytes: 0,
            ready: BTreeSet::new(),
            timers: BTreeSet::new(),
            keys: HashMap::new(),
            leases: HashMap::new(),
            dying: BTreeSet::new(),
        }
    }

    /// Takes a record up. It must not be there.
    pub(crate) fn insert(&mut self, now: u64, slot: Slot, entry: Entry<T>) {
        self.bytes += entry.bytes;
        if let Some(key) = entry.key {
            self.keys.entry(key).or_default().push_back(slot);
        }
        let replaced = self.entries.insert(slot, entry);
        debug_assert!(replaced.is_none(), "{slot:?} is there twice");
        self.place(now, slot);
    }

    /// Gives a record that is in no set its state.
    fn place(&mut self, now: u64, slot: Slot) {
        let Some(entry) = self.entries.get_mut(&slot) else { return };
        let first = entry.key.and_then(|key| self.keys.get(&key)?.front());
        entry.state = if first.is_some_and(|first| *first != slot) {
            State::Held
        } else if entry.can_die && (entry.is_doomed || entry.count >= self.max_deliveries) {
            self.dying.insert(slot);
            State::Dying
        } else if entry.until > now {
            self.timers.insert((entry.until, Timer::Record(slot)));
            State::Delayed
        } else {
            self.ready.insert((entry.rank, slot));
            State::Ready
        };
    }

    /// Makes a record that was being written deliverable again, from `until` on.
    pub(crate) fn requeue(&mut self, now: u64, slot: Slot, until: u64) {
        if let Some(entry) = self.entries.get_mut(&slot) {
            entry.until = until;
        }
        self.place(now, slot);
    }

    /// Lets go of a record that is settled. The next one of its key has its turn.
    pub(crate) fn remove(&mut self, now: u64, slot: Slot) {
        let Some(entry) = self.entries.remove(&slot) else { return };
        self.bytes -= entry.bytes;
        let Some(key) = entry.key else { return };
        let Some(queue) = self.keys.get_mut(&key) else { return };
        debug_assert_eq!(queue.front(), Some(&slot), "only the first of a key is settled");
        queue.pop_front();
        match queue.front().copied() {
            Some(next) => self.place(now, next),
            None => drop(self.keys.remove(&key)),
        }
    }

    /// Takes up to `max` records that are ready. They are being written.
    pub(crate) fn take_ready(&mut self, max: usize) -> Vec<Slot> {
        let mut taken = Vec::new();
        // Ends: each round takes a record off `ready`.
        while taken.len() < max {
            let Some((_, slot)) = self.ready.pop_first() else { break };
            self.set_writing(slot);
            taken.push(slot);
        }
        taken
    }

    /// Marks a record as being written. It must be in no set.
    pub(crate) fn set_writing(&mut self, slot: Slot) {
        if let Some(entry) = self.entries.get_mut(&slot) {
            entry.state = State::Writing;
        }
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Hands `members` out under `lease`. They were being written.
    pub(crate) fn grant(&mut self, lease: u64, until: u64, members: Vec<Slot>) {
        for slot in &members {
            if let Some(entry) = self.entries.get_mut(slot) {
                entry.count += 1;
                entry.state = State::Leased(lease);
            }
        }
        self.timers.insert((until, Timer::Lease(lease)));
        let open = members.len();
        self.leases.insert(lease, Lease { until, members, open });
    }

    /// Whether `slot` is handed out under `lease`.
    pub(crate) fn is_leased(&self, slot: Slot, lease: u64) -> bool {
        self.entries.get(&slot).is_some_and(|entry| entry.state == State::Leased(lease))
    }

    /// Changes the end of a lease. Returns whether there is one.
    pub(crate) fn extend(&mut self, lease: u64, until: u64) -> bool {
        let Some(held) = self.leases.get_mut(&lease) else { return false };
        self.timers.remove(&(held.until, Timer::Lease(lease)));
        held.until = until;
        self.timers.insert((until, Timer::Lease(lease)));
        true
    }

    /// A member of the lease is settled. A lease without members ends.
    pub(crate) fn settle_member(&mut self, lease: u64) {
        let Some(held) = self.leases.get_mut(&lease) else { return };
        held.open -= 1;
        if held.open == 0 {
            let until = held.until;
            self.timers.remove(&(until, Timer::Lease(lease)));
            self.leases.remove(&lease);
        }
    }

    /// Puts a record whose settlement failed back under its lease. Returns whether that still runs.
    pub(crate) fn restore_lease(&mut self, slot: Slot, lease: u64) -> bool {
        let is_held = self.leases.contains_key(&lease);
        if let Some(entry) = self.entries.get_mut(&slot).filter(|_| is_held) {
            entry.state = State::Leased(lease);
        }
        is_held
    }

    /// Ends a lease. Returns the records that are still handed out under it: they are being
    /// written.
    pub(crate) fn end_lease(&mut self, lease: u64) -> Vec<Slot> {
        let Some(held) = self.leases.remove(&lease) else { return Vec::new() };
        self.timers.remove(&(held.until, Timer::Lease(lease)));
        let mut members = held.members;
        members.retain(|slot| self.is_leased(*slot, lease));
        for slot in &members {
            self.set_writing(*slot);
        }
        members
    }

    /// Time of the next lease that ends or record that is due.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes a timer that is due off, and makes a delayed record ready.
    pub(crate) fn pop_due(&mut self, now: u64) -> Option<Timer> {
        if self.next_deadline()? > now {
            return None;
        }
        let (_, timer) = self.timers.pop_first()?;
        if let Timer::Record(slot) = timer {
            self.place(now, slot);
        }
        Some(timer)
    }
}
