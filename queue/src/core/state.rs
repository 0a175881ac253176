//! The state of a partition. Replay and live appends apply the same function to it.

use std::collections::HashMap;

use super::clean::{Clean, Replacement};
use super::index::{Entry, Index};
use super::producers::{Admission, Producer, Producers};
use crate::format::Header;

/// Bounds of the state's size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_producers: usize,
    pub(crate) max_index_entries: usize,
}

/// What is known of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Offset that the next record gets.
    pub(crate) next_offset: u64,
    /// Position that the next batch gets. Invariant: all batches before it have been applied.
    pub(crate) next_position: u64,
    /// First offset that can be read. Invariant: at most `next_offset`.
    pub(crate) start_offset: u64,
    /// Position of the first batch that can be read. Invariant: at most `next_position`.
    pub(crate) first_position: u64,
    /// Largest timestamp of a record so far.
    pub(crate) max_timestamp: i64,
    pub(crate) index: Index,
    pub(crate) producers: Producers,
    pub(crate) clean: Clean,
}

/// Batches that have been admitted and not been acknowledged by the store yet, in order.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// What each of their producers will be. Invariant: one for each producer of a batch.
    producers: HashMap<i64, StagedProducer>,
    /// How many of `producers` are new to the partition.
    fresh: usize,
    records: u64,
    batches: u64,
}

/// Producers for which an empty [`Staged`] keeps its memory.
const KEPT_PRODUCERS: usize = 16;

#[derive(Debug)]
pub(super) struct StagedProducer {
    pub(super) producer: Producer,
    /// Batches of it among those staged.
    batches: u64,
}

impl Staged {
    /// How many batches there are.
    pub(crate) fn batches(&self) -> u64 {
        self.batches
    }

    /// Whether what is decided about a batch of this producer depends on them.
    pub(crate) fn concerns(&self, header: &Header) -> bool {
        header.is_idempotent() && self.producers.contains_key(&header.producer_id)
    }

    /// Gives up all batches.
    pub(crate) fn clear(&mut self) {
        (self.fresh, self.records, self.batches) = (0, 0, 0);
        self.producers.clear();
        self.producers.shrink_to(KEPT_PRODUCERS);
    }

    /// Takes off the first batch, which has been acknowledged; its producer was known before or
    /// not.
    fn pop(&mut self, header: &Header, was_known: bool) {
        self.records -= header.last_offset_delta as u64 + 1;
        self.batches -= 1;
        if !header.is_idempotent() {
            return;
        }
        self.fresh -= usize::from(!was_known);
        if let Some(staged) = self.producers.get_mut(&header.producer_id) {
            staged.batches -= 1;
            if staged.batches == 0 {
                self.producers.remove(&header.producer_id);
            }
        }
    }
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            next_offset: 0,
            next_position: 0,
            start_offset: 0,
            first_position: 0,
            max_timestamp: crate::format::NO_TIMESTAMP,
            index: Index::new(),
            producers: Producers::new(),
            clean: Clean::default(),
        }
    }

    /// What to do with a batch that comes after those in `staged`.
    pub(crate) fn admit(&self, staged: &Staged, header: &Header) -> Admission {
        if header.is_idempotent() {
            self.producers.admit(&staged.producers, header)
        } else {
            Admission::Append
        }
    }

    /// Offset that a batch gets behind `staged`.
    pub(crate) fn offset_behind(&self, staged: &Staged) -> u64 {
        self.next_offset + staged.records
    }

    /// Adds an admitted batch to `staged`. Returns whether a producer will be forgotten for it:
    /// then nothing may be staged behind it, because what is admitted next depends on which.
    #[must_use]
    pub(crate) fn stage(&self, staged: &mut Staged, header: &Header, limits: Limits) -> bool {
        let mut forgets = false;
        if header.is_idempotent() {
            let id = header.producer_id;
            if !self.producers.known.contains_key(&id) && !staged.producers.contains_key(&id) {
                staged.fresh += 1;
                forgets = self.producers.len() + staged.fresh > limits.max_producers;
            }
            let offset = self.offset_behind(staged);
            let known = || self.producers.known_or_fresh(header);
            let of_batch = staged
                .producers
                .entry(id)
                .or_insert_with(|| StagedProducer { producer: known(), batches: 0 });
            of_batch.producer.note(header, offset);
            of_batch.batches += 1;
        }
        staged.records += header.last_offset_delta as u64 + 1;
        staged.batches += 1;
        forgets
    }

    /// Applies the first batch of `staged`, which is in the store now.
    ///
    /// # Errors
    /// It cannot follow those before it.
    pub(crate) fn apply_staged(
        &mut self,
        staged: &mut Staged,
        header: &Header,
        limits: Limits,
    ) -> Result<(), &'static str> {
        let was_known =
            header.is_idempotent() && self.producers.known.contains_key(&header.producer_id);
        staged.pop(header, was_known);
        self.apply(header, limits)
    }

    /// Applies the batch at `next_position` of the store.
    ///
    /// # Errors
    /// The batch cannot follow those before it.
    pub(crate) fn apply(&mut self, header: &Header, limits: Limits) -> Result<(), &'static str> {
        let offset = header.base_offset as u64;
        if offset < self.next_offset {
            return Err("the base offset is below the end of the batch before");
        }
        let timestamp_before = self.max_timestamp;
        let entry = Entry { position: self.next_position, offset, timestamp_before };
        self.index.add(entry, limits.max_index_entries);
        if header.is_idempotent() {
            self.producers.apply(header, limits.max_producers);
        }
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
        self.next_offset = header.last_offset() as u64 + 1;
        self.next_position += 1;
        self.clean.dirty_bytes = self.clean.dirty_bytes.saturating_add(header.bytes as u64);
        Ok(())
    }

    /// Forgets what is above limits that have been lowered.
    pub(crate) fn fit(&mut self, limits: Limits) {
        self.producers.fit(limits.max_producers);
        self.index.fit(limits.max_index_entries);
    }

    /// Lets go of the batches before `first_position`, where `start_offset` begins.
    pub(crate) fn release(&mut self, first_position: u64, start_offset: u64) {
        self.first_position = self.first_position.max(first_position);
        self.start_offset = self.start_offset.max(start_offset);
        self.index.release(self.first_position);
    }

    /// Lets a copy take the place of the batches before `replacement.end`. Offsets stay, and so
    /// does what is known of producers.
    pub(crate) fn replace(&mut self, replacement: &Replacement, limits: Limits) {
        let Replacement { end, batches, index, clean, taken_bytes } = replacement;
        let first = end - batches;
        let copied = index.entries.iter();
        let copied = copied.map(|entry| Entry { position: entry.position + first, ..*entry });
        let later = self.index.entries.iter().filter(|entry| entry.position >= *end);
        let entries = copied.chain(later.copied()).collect();
        self.index = Index { entries, stride: self.index.stride.max(index.stride) };
        self.index.fit(limits.max_index_entries);
        self.first_position = first;
        let dirty_bytes = self.clean.dirty_bytes.saturating_sub(*taken_bytes);
        self.clean = Clean { dirty_bytes, ..*clean };
    }

    /// Positions between which the batch with `offset` begins: it is the last one in the range
    /// whose base offset is not above `offset`. That one may end before `offset`, and the first one
    /// of all may begin behind it, where compaction has removed records.
    pub(crate) fn search_range(&self, offset: u64) -> std::ops::Range<u64> {
        let (before, after) = self.index.around(offset);
        let first = before.map_or(self.first_position, |entry| entry.position);
        first..after.map_or(self.next_position, |entry| entry.position)
    }

    /// The position from which on to look for the first batch with a record of at least
    /// `timestamp`.
    pub(crate) fn search_from_timestamp(&self, timestamp: i64) -> u64 {
        let before = self.index.before_timestamp(timestamp);
        before.map_or(self.first_position, |entry| entry.position)
    }
}
