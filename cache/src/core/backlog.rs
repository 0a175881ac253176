//! Acknowledged writes that the sink does not have yet: a state machine without future or lock.
//!
//! A key has at most one acknowledged value here, the newest one (coalescing), and at most one
//! flush under way. A flush that ends removes exactly the (key, sequence) that it wrote: a value
//! that was acknowledged meanwhile stays. Sequences order the writes of this process; positions are
//! those of the records in the log, which has the records of one key in the order of their
//! sequences.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::insert::Keep;

/// The bounds of a backlog.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_keys: usize,
    pub(crate) max_bytes: u64,
    /// How long a value waits for others of its key, in nanoseconds.
    pub(crate) flush_after: u64,
}

/// A write that was handed to the log and is not yet acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) sequence: u64,
    /// The record's position is at least this.
    position_min: u64,
    bytes: u64,
}

/// Whether a write is accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Admission {
    Admitted(Ticket),
    /// Wait until something has been flushed.
    Full,
}

/// A value that is being written to the sink.
#[derive(Clone, Debug)]
pub(crate) struct Taken<K, V> {
    pub(crate) key: K,
    pub(crate) sequence: u64,
    /// Of the value's record in the log: of two values of a key the newer one has the larger.
    pub(crate) position: u64,
    pub(crate) value: Arc<Option<V>>,
    /// What the cache keeps of the value when the sink has it.
    pub(crate) keep: Keep,
    /// How often it has failed so far.
    pub(crate) attempts: u32,
}

/// How the flush of one value ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// The sink has it, or it was moved to the rejected writes.
    Done,
    /// Try again at this time.
    Retry { at: u64 },
}

#[derive(Debug)]
struct Dirty<V> {
    sequence: u64,
    position: u64,
    bytes: u64,
    value: Arc<Option<V>>,
    keep: Keep,
    /// The lowest sequence of the key that no ended flush covers. Invariant: `first <= sequence`.
    first: u64,
    /// The first sequence that was acknowledged after the flush under way began.
    first_since_take: Option<u64>,
}

#[derive(Debug)]
struct Slot<V> {
    /// Writes of the key that are not yet acknowledged.
    unacknowledged: usize,
    newest: Option<Dirty<V>>,
    /// The sequence that is being flushed. Invariant: `Some` only while `newest` is.
    flushing: Option<u64>,
    attempts: u32,
    /// The highest sequence whose flush has ended, 0 for none. A lower one that is acknowledged
    /// after that is older than what the sink has. The slot lives as long as there may be one.
    flushed: u64,
}

impl<V> Default for Slot<V> {
    fn default() -> Self {
        Self { unacknowledged: 0, newest: None, flushing: None, attempts: 0, flushed: 0 }
    }
}

#[derive(Debug)]
pub(crate) struct Backlog<K, V> {
    limits: Limits,
    slots: HashMap<K, Slot<V>, foldhash::fast::RandomState>,
    /// When each key is flushed next whose last flush has not failed; ties by the lowest sequence.
    due: BTreeMap<(u64, u64), K>,
    /// When each key is flushed next whose last flush has failed.
    retries: BTreeMap<(u64, u64), K>,
    /// What is in `due` up to this time is due now.
    hurried: u64,
    /// `first` of every dirty key.
    firsts: BTreeSet<u64>,
    /// The position of each dirty key's newest record.
    positions: BTreeMap<u64, K>,
    /// Lower bounds of the positions of records that are not yet acknowledged, with their number.
    unacknowledged: BTreeMap<u64, usize>,
    next_sequence: u64,
    /// The position after the last acknowledged record.
    end: u64,
    /// Of dirty values and of writes that are not yet acknowledged. No sum of them overflows.
    bytes: u128,
    dirty: usize,
}

impl<K: Hash + Eq + Clone, V> Backlog<K, V> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            slots: HashMap::default(),
            due: BTreeMap::new(),
            retries: BTreeMap::new(),
            hurried: 0,
            firsts: BTreeSet::new(),
            positions: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
            next_sequence: 1,
            end: 0,
            bytes: 0,
            dirty: 0,
        }
    }

    /// Accepts a write of so many bytes, if there is room. An empty backlog takes any one.
    pub(crate) fn admit(&mut self, key: &K, bytes: u64) -> Admission {
        let has_bytes =
            self.bytes == 0 || self.bytes + u128::from(bytes) <= self.limits.max_bytes.into();
        let has_slot = self.slots.len() < self.limits.max_keys || self.slots.contains_key(key);
        if has_bytes && has_slot {
            Admission::Admitted(self.begin(key, bytes))
        } else {
            Admission::Full
        }
    }

    /// Accepts a write whatever room there is.
    pub(crate) fn begin(&mut self, key: &K, bytes: u64) -> Ticket {
        match self.slots.get_mut(key) {
            Some(slot) => slot.unacknowledged += 1,
            None => {
                let slot = Slot { unacknowledged: 1, ..Slot::default() };
                self.slots.insert(key.clone(), slot);
            }
        }
        self.bytes += u128::from(bytes);
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        *self.unacknowledged.entry(self.end).or_default() += 1;
        Ticket { sequence, position_min: self.end, bytes }
    }

    /// The log has the write at this position. Returns what is to be dropped without the lock, and
    /// whether the next deadline may have come nearer.
    pub(crate) fn acknowledge(
        &mut self,
        now: u64,
        key: &K,
        ticket: Ticket,
        position: u64,
        value: Arc<Option<V>>,
        keep: Keep,
    ) -> (Option<Arc<Option<V>>>, bool) {
        self.settle(ticket);
        self.end = self.end.max(position + 1);
        let Ticket { sequence, bytes, .. } = ticket;
        let Some(slot) = self.slots.get_mut(key) else { return (Some(value), false) };
        slot.unacknowledged -= 1;
        if sequence < slot.flushed {
            self.bytes -= u128::from(bytes);
            self.remove_if_empty(key);
            return (Some(value), false);
        }
        let flushing = slot.flushing;
        let Some(newest) = &mut slot.newest else {
            let dirty = Dirty {
                sequence,
                position,
                bytes,
                value,
                keep,
                first: sequence,
                first_since_take: None,
            };
            slot.newest = Some(dirty);
            self.dirty += 1;
            self.firsts.insert(sequence);
            self.positions.insert(position, key.clone());
            let at = (now.saturating_add(self.limits.flush_after), sequence);
            self.due.insert(at, key.clone());
            return (None, self.due.first_key_value().is_some_and(|(first, _)| *first == at));
        };
        if newest.sequence > sequence {
            self.bytes -= u128::from(bytes);
            return (Some(value), false);
        }
        self.positions.remove(&newest.position);
        self.positions.insert(position, key.clone());
        self.bytes -= u128::from(newest.bytes);
        if flushing.is_some() {
            newest.first_since_take.get_or_insert(sequence);
        }
        (newest.sequence, newest.position, newest.bytes) = (sequence, position, bytes);
        newest.keep = keep;
        (Some(std::mem::replace(&mut newest.value, value)), false)
    }

    /// The log has not taken the write, or it is unknown whether it has.
    pub(crate) fn abandon(&mut self, key: &K, ticket: Ticket) {
        self.settle(ticket);
        self.bytes -= u128::from(ticket.bytes);
        if let Some(slot) = self.slots.get_mut(key) {
            slot.unacknowledged -= 1;
            self.remove_if_empty(key);
        }
    }

    fn settle(&mut self, ticket: Ticket) {
        if let Some(count) = self.unacknowledged.get_mut(&ticket.position_min) {
            *count -= 1;
            if *count == 0 {
                self.unacknowledged.remove(&ticket.position_min);
            }
        }
    }

    fn remove_if_empty(&mut self, key: &K) {
        if self.slots.get(key).is_some_and(|slot| slot.unacknowledged == 0 && slot.newest.is_none())
        {
            self.slots.remove(key);
        }
    }

    /// The newest acknowledged value of a key that the sink does not have yet.
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<Arc<Option<V>>>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let dirty = self.slots.get(key)?.newest.as_ref()?;
        Some(Arc::clone(&dirty.value))
    }

    /// Whether there is an acknowledged or an unacknowledged write of the key.
    pub(crate) fn has(&self, key: &K) -> bool {
        self.slots.contains_key(key)
    }

    /// Takes up to `max` values whose time has come, those that wait longest first.
    pub(crate) fn take(&mut self, now: u64, max: usize) -> Vec<Taken<K, V>> {
        let mut taken = Vec::new();
        let until = now.max(self.hurried);
        while taken.len() < max {
            let first =
                |queue: &BTreeMap<(u64, u64), K>| queue.first_key_value().map(|(due, _)| *due);
            let fresh = first(&self.due).filter(|(at, _)| *at <= until);
            let failed = first(&self.retries).filter(|(at, _)| *at <= now);
            let queue = match (fresh, failed) {
                (None, None) => break,
                (Some(fresh), Some(failed)) if failed < fresh => &mut self.retries,
                (None, Some(_)) => &mut self.retries,
                (Some(_), _) => &mut self.due,
            };
            let Some((_, key)) = queue.pop_first() else { break };
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            let Some(dirty) = &slot.newest else { continue };
            slot.flushing = Some(dirty.sequence);
            taken.push(Taken {
                key,
                sequence: dirty.sequence,
                position: dirty.position,
                value: Arc::clone(&dirty.value),
                keep: dirty.keep.clone(),
                attempts: slot.attempts,
            });
        }
        taken
    }

    /// The flush of this value has ended. Returns what is to be dropped without the lock.
    pub(crate) fn finish(
        &mut self,
        now: u64,
        key: &K,
        sequence: u64,
        how: Flushed,
    ) -> Option<Arc<Option<V>>> {
        let slot = self.slots.get_mut(key)?;
        slot.flushing.take_if(|flushing| *flushing == sequence)?;
        let dirty = slot.newest.as_mut()?;
        if how == Flushed::Done {
            slot.flushed = sequence;
        }
        let (at, dropped) = match how {
            Flushed::Retry { at } => {
                dirty.first_since_take = None;
                slot.attempts = slot.attempts.saturating_add(1);
                (at, None)
            }
            Flushed::Done if dirty.sequence == sequence => {
                self.firsts.remove(&dirty.first);
                self.positions.remove(&dirty.position);
                self.bytes -= u128::from(dirty.bytes);
                self.dirty -= 1;
                let dropped = slot.newest.take().map(|dirty| dirty.value);
                slot.attempts = 0;
                self.remove_if_empty(key);
                return dropped;
            }
            Flushed::Done => {
                self.firsts.remove(&dirty.first);
                dirty.first = dirty.first_since_take.take().unwrap_or(dirty.sequence);
                self.firsts.insert(dirty.first);
                slot.attempts = 0;
                (now.saturating_add(self.limits.flush_after), None)
            }
        };
        let queue = if slot.attempts == 0 { &mut self.due } else { &mut self.retries };
        queue.insert((at, dirty.first), key.clone());
        dropped
    }

    /// Makes every value due now that has not failed, whatever their number: none of them waits for
    /// longer than `flush_after` from now on.
    pub(crate) fn hurry(&mut self, now: u64) {
        self.hurried = now.saturating_add(self.limits.flush_after);
    }

    /// When the next value is due; 0 for one that was hurried.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let fresh = self.due.first_key_value().map(|((at, _), _)| *at);
        let fresh = fresh.map(|at| if at <= self.hurried { 0 } else { at });
        let failed = self.retries.first_key_value().map(|((at, _), _)| *at);
        fresh.into_iter().chain(failed).min()
    }

    /// A mark for [`has_flushed`](Self::has_flushed): everything acknowledged so far lies below it.
    pub(crate) fn mark(&self) -> u64 {
        self.next_sequence
    }

    /// Whether the sink has, for each key, what was acknowledged below the mark, or newer.
    pub(crate) fn has_flushed(&self, mark: u64) -> bool {
        self.firsts.first().is_none_or(|first| *first >= mark)
    }

    /// Records below this position are no longer needed.
    pub(crate) fn release_point(&self) -> u64 {
        self.release_point_without(std::iter::empty())
    }

    /// The release point once the flushes of these keys and sequences have ended.
    pub(crate) fn release_point_without<'a>(
        &self,
        ending: impl Iterator<Item = (&'a K, u64)>,
    ) -> u64
    where
        K: 'a,
    {
        let newest = |key: &K| self.slots.get(key)?.newest.as_ref();
        let ending: BTreeSet<u64> = ending
            .filter_map(|(key, sequence)| newest(key).filter(|dirty| dirty.sequence == sequence))
            .map(|dirty| dirty.position)
            .collect();
        let mut dirty = self.positions.keys().filter(|position| !ending.contains(position));
        let dirty = dirty.next().copied().unwrap_or(self.end);
        let submitted = self.unacknowledged.first_key_value().map_or(self.end, |(least, _)| *least);
        dirty.min(submitted)
    }

    /// Up to `max` keys whose newest record is among the oldest ones, to be appended again so that
    /// what lies before and between them can be released. Never a key with a write that is not yet
    /// acknowledged: that one's record has to stay the last of its key.
    pub(crate) fn oldest(&self, max: usize) -> Vec<(K, u64, Arc<Option<V>>)> {
        let movable = |key: &&K| self.slots.get(*key).is_some_and(|slot| slot.unacknowledged == 0);
        let keys = self.positions.values().filter(movable).take(max);
        let newest = |key: &K| {
            let dirty = self.slots.get(key)?.newest.as_ref()?;
            Some((key.clone(), dirty.sequence, Arc::clone(&dirty.value)))
        };
        keys.filter_map(newest).collect()
    }

    /// Whether the record of this sequence may be appended again: see [`oldest`](Self::oldest).
    pub(crate) fn is_movable(&self, key: &K, sequence: u64) -> bool {
        let newest = |slot: &Slot<V>| slot.newest.as_ref().map(|dirty| dirty.sequence);
        self.slots
            .get(key)
            .is_some_and(|slot| slot.unacknowledged == 0 && newest(slot) == Some(sequence))
    }

    /// The lower bound of a record that is about to be appended again.
    pub(crate) fn begin_move(&mut self) -> u64 {
        *self.unacknowledged.entry(self.end).or_default() += 1;
        self.end
    }

    /// The records of a move are in the log, one after the other from `position` on; without a
    /// position the move has failed.
    pub(crate) fn end_move(&mut self, least: u64, moved: &[(K, u64)], position: Option<u64>) {
        self.settle(Ticket { sequence: 0, position_min: least, bytes: 0 });
        let Some(position) = position else { return };
        self.end = self.end.max(position + moved.len() as u64);
        for ((key, sequence), at) in moved.iter().zip(position..) {
            let Some(slot) = self.slots.get_mut(key) else { continue };
            let Some(dirty) = slot.newest.as_mut().filter(|dirty| dirty.sequence == *sequence)
            else {
                continue;
            };
            self.positions.remove(&dirty.position);
            dirty.position = at;
            self.positions.insert(at, key.clone());
        }
    }

    /// Whether the log has answered everything that was handed to it.
    pub(crate) fn is_answered(&self) -> bool {
        self.unacknowledged.is_empty()
    }

    /// How many writes were handed to the log and are not yet acknowledged. Looks at every slot.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.slots.values().map(|slot| slot.unacknowledged).sum()
    }

    /// The dirty keys.
    pub(crate) fn dirty_keys(&self) -> impl Iterator<Item = &K> {
        self.positions.values()
    }

    /// How many keys are dirty.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty
    }

    pub(crate) fn bytes(&self) -> u64 {
        u64::try_from(self.bytes).unwrap_or(u64::MAX)
    }

    /// What a log holds that is opened again ends here.
    #[cfg(feature = "journal")]
    pub(crate) fn set_end(&mut self, end: u64) {
        self.end = end;
    }
}

#[cfg(test)]
mod tests;
