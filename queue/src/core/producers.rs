//! Idempotent producers: what a partition remembers of them, and which batches it takes.

use std::collections::{BTreeSet, HashMap};

use super::state::StagedProducer;
use crate::format::Header;

/// Batches of a producer whose offsets are remembered, as in Kafka: the largest number that a
/// producer may have in flight.
pub(crate) const WINDOW: usize = 5;
/// Sequences are 0 to this, and go on with 0.
const SEQUENCES: i64 = i32::MAX as i64 + 1;

/// A batch that was appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) first: i32,
    pub(crate) last: i32,
    pub(crate) offset: u64,
}

/// One producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Producer {
    pub(crate) epoch: i16,
    /// The latest batches of `epoch`, oldest first. Invariant: 1 to [`WINDOW`] of them.
    pub(crate) window: Window,
}

/// Up to [`WINDOW`] batches, in place: a producer is copied for each write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Window {
    /// Invariant: those from `count` on are default values.
    sent: [Sent; WINDOW],
    count: usize,
}

impl Window {
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Sent> {
        self.sent[..self.count].iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Adds the newest one. The window must not be full.
    pub(crate) fn push_back(&mut self, sent: Sent) {
        self.sent[self.count] = sent;
        self.count += 1;
    }

    fn back(&self) -> Option<&Sent> {
        self.iter().next_back()
    }

    fn pop_front(&mut self) {
        self.sent.copy_within(1.., 0);
        self.sent[WINDOW - 1] = Sent::default();
        self.count -= 1;
    }
}

/// What is to be done with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Append it.
    Append,
    /// It has been appended before, at this offset.
    Duplicate(u64),
    /// Reject it.
    Reject(Fence),
}

/// Why a batch of an idempotent producer is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// A producer with the same id and a later epoch has taken over.
    Epoch { current: i16 },
    /// The sequence does not follow the last one.
    Gap { expected: i32, found: i32 },
    /// The batch is older than the window: it was appended, its offset is forgotten.
    Old { found: i32 },
    /// The id is not known, and may have been in the past.
    Unknown,
}

impl Producer {
    fn admit(&self, header: &Header) -> Admission {
        if header.producer_epoch < self.epoch {
            return Admission::Reject(Fence::Epoch { current: self.epoch });
        }
        let (first, last) = (header.base_sequence, header.last_sequence());
        if header.producer_epoch > self.epoch {
            return match first {
                0 => Admission::Append,
                found => Admission::Reject(Fence::Gap { expected: 0, found }),
            };
        }
        let same = |sent: &&Sent| sent.first == first && sent.last == last;
        if let Some(sent) = self.window.iter().find(same) {
            return Admission::Duplicate(sent.offset);
        }
        let newest = self.window.back().map_or(-1, |sent| sent.last);
        let expected = follows(newest);
        if first == expected {
            return Admission::Append;
        }
        // Behind by less than half of all sequences is old, otherwise it is ahead.
        let behind = (i64::from(expected) - i64::from(first)).rem_euclid(SEQUENCES);
        Admission::Reject(if behind < SEQUENCES / 2 {
            Fence::Old { found: first }
        } else {
            Fence::Gap { expected, found: first }
        })
    }

    pub(super) fn note(&mut self, header: &Header, offset: u64) {
        if header.producer_epoch != self.epoch {
            self.epoch = header.producer_epoch;
            self.window = Window::default();
        }
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        let (first, last) = (header.base_sequence, header.last_sequence());
        self.window.push_back(Sent { first, last, offset });
    }

    pub(crate) fn last_offset(&self) -> u64 {
        self.window.back().map_or(0, |sent| sent.offset)
    }
}

fn follows(sequence: i32) -> i32 {
    sequence.checked_add(1).unwrap_or(0)
}

/// All producers of a partition, at most `max` of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    pub(crate) known: HashMap<i64, Producer>,
    /// (offset of the last batch, id). Invariant: one entry for each of `known`.
    by_age: BTreeSet<(u64, i64)>,
    /// The largest id that was forgotten; -1 for none. Ids up to it that are not known may have
    /// been, so that their first sequence proves nothing.
    pub(crate) forgotten: i64,
}

impl Producers {
    pub(crate) fn new() -> Self {
        Self { forgotten: -1, ..Self::default() }
    }

    /// What to do with a batch. `staged` has the producers of batches that are on their way to the
    /// store.
    pub(super) fn admit(
        &self,
        staged: &HashMap<i64, StagedProducer>,
        header: &Header,
    ) -> Admission {
        let id = header.producer_id;
        let staged = staged.get(&id).map(|staged| &staged.producer);
        match staged.or_else(|| self.known.get(&id)) {
            Some(producer) => producer.admit(header),
            None if id <= self.forgotten => Admission::Reject(Fence::Unknown),
            None if header.base_sequence == 0 => Admission::Append,
            None => {
                let found = header.base_sequence;
                Admission::Reject(Fence::Gap { expected: 0, found })
            }
        }
    }

    /// The producer of a batch, without the batch.
    pub(super) fn known_or_fresh(&self, header: &Header) -> Producer {
        self.known.get(&header.producer_id).cloned().unwrap_or_else(|| Self::fresh(header))
    }

    fn fresh(header: &Header) -> Producer {
        Producer { epoch: header.producer_epoch, window: Window::default() }
    }

    /// Applies a batch that is in the log. Forgets the producer that has been silent for longest
    /// when there are more than `max`.
    pub(crate) fn apply(&mut self, header: &Header, max: usize) {
        let id = header.producer_id;
        let producer = self.known.entry(id).or_insert_with(|| Self::fresh(header));
        self.by_age.remove(&(producer.last_offset(), id));
        producer.note(header, header.base_offset as u64);
        self.by_age.insert((producer.last_offset(), id));
        self.fit(max);
    }

    /// Forgets producers until there are at most `max`.
    pub(crate) fn fit(&mut self, max: usize) {
        // Ends: each round forgets one.
        while self.known.len() > max {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            self.known.remove(&oldest);
            self.forgotten = self.forgotten.max(oldest);
        }
    }

    /// Adds a producer of a snapshot.
    pub(crate) fn restore(&mut self, id: i64, producer: Producer) {
        self.by_age.insert((producer.last_offset(), id));
        self.known.insert(id, producer);
    }

    /// The producers in the order of their last batches.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &Producer)> {
        self.by_age.iter().filter_map(|(_, id)| Some((*id, self.known.get(id)?)))
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}
