//! Transactions: records to several partitions, and offsets of what they were made from, in one
//! commit of the journal.
//!
//! A transaction is memory until it commits: nothing of it is in a log before, so that no reader
//! sees an open one, none can hang, and a crash aborts it. Its batches carry no producer id and no
//! mark: when they are in the log, they are committed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::config::check_name;
use crate::consumer::Consumer;
use crate::core::entry::{Change, Key, TransactionalEntry, Value};
use crate::core::table::View;
use crate::error::{CommitError, TopicError};
use crate::format::{Batch, BatchBuilder, FormatError, HEADER_BYTES, Record};
use crate::groups::{Groups, now_ms};
use crate::partition::Appended;
use crate::producer::stamp;
use crate::queue::{Queue, SMALL_BYTES, Topic, TopicPartition, counters, gone};
use crate::store::BATCH_OVERHEAD_BYTES;
use crate::writer::{Plan, Slot};

/// The largest epoch; then the id is given up for a new one. 32,767 is no epoch, as in Kafka.
const MAX_EPOCH: i16 = i16::MAX - 1;
/// Bytes of a committed offset in the table, with the longest name of a group.
pub(crate) const OFFSET_BYTES: usize = 300;

/// A producer of transactions, one at a time. A newer one of the same transactional id fences it.
pub struct TransactionalProducer {
    queue: Queue,
    name: Arc<str>,
    entry: TransactionalEntry,
}

impl Queue {
    /// The producer of `transactional_id`. All earlier ones are fenced: what they have not
    /// committed by now they never will.
    ///
    /// # Errors
    /// The name is not 1 to 249 bytes, or the store rejects the write.
    ///
    /// # Cancel safety
    /// Earlier producers may be fenced all the same.
    pub async fn transactional(
        &self,
        transactional_id: &str,
    ) -> Result<TransactionalProducer, CommitError> {
        check_name("transactional_id", transactional_id)?;
        let (answer, answered) = oneshot::channel();
        let key = Key::Transactional(transactional_id.to_owned());
        let plan = move |view: View<'_>| {
            let entry = view.get(&key).and_then(|value| TransactionalEntry::read(value));
            let mut changes = Vec::new();
            let entry = match entry {
                Some(entry) if entry.epoch < MAX_EPOCH => {
                    TransactionalEntry { epoch: entry.epoch + 1, ..entry }
                }
                // The id is new, or its epochs are used up.
                other => {
                    let mut counters = counters(view);
                    let producer_id = counters.next_producer;
                    counters.next_producer += 1;
                    changes.push(Change::put(Key::Counters, &counters));
                    let committed = other.map_or(0, |entry| entry.committed);
                    TransactionalEntry { producer_id, epoch: 0, committed }
                }
            };
            changes.push(Change::put(key, &entry));
            Ok((changes, entry))
        };
        let end = |result: Result<_, CommitError>| drop(answer.send(result));
        self.shared.writer.change(SMALL_BYTES, plan, end);
        let entry = answered.await.map_err(|_| gone())??;
        Ok(TransactionalProducer { queue: self.clone(), name: transactional_id.into(), entry })
    }
}

impl TransactionalProducer {
    /// Begins a transaction. Dropping it aborts it.
    pub fn begin(&mut self) -> Transaction<'_> {
        Transaction::new(self.queue.clone(), Some(self))
    }

    /// Transactions that this transactional id had committed when the producer was made, or has
    /// since, restarts included. After a commit whose outcome is unknown, make a new producer and
    /// compare: it is one more when the commit happened.
    pub fn committed(&self) -> u64 {
        self.entry.committed
    }

    /// The epoch, which rises with each producer of this transactional id.
    pub fn epoch(&self) -> i16 {
        self.entry.epoch
    }
}

/// A transaction that is being put together.
#[must_use = "commit it; dropping it aborts it"]
pub struct Transaction<'a> {
    queue: Queue,
    /// Without one, nothing but the generation of the group's offsets keeps a stale one out.
    producer: Option<&'a mut TransactionalProducer>,
    /// By the number of the partition.
    parts: BTreeMap<u32, Part>,
    offsets: Vec<GroupOffsets>,
    /// Upper bound of what the commit takes.
    bytes: usize,
    limit_bytes: usize,
}

struct Part {
    slot: Arc<Slot>,
    name: TopicPartition,
    full: Vec<Batch>,
    open: BatchBuilder,
}

/// Offsets of a group that go with a commit.
#[derive(Clone, Debug)]
pub(crate) struct GroupOffsets {
    pub(crate) group: Arc<str>,
    /// `None` for a reader that is no member.
    pub(crate) generation: Option<u32>,
    /// The partition's number, and the offset of the next record.
    pub(crate) offsets: Vec<(u32, u64)>,
}

/// What a transaction has written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The number of the transaction, from 1 on: [`TransactionalProducer::committed`].
    pub number: u64,
    /// Where the batches are.
    pub appended: Vec<(TopicPartition, Appended)>,
}

impl Queue {
    /// A transaction that no transactional id fences: it needs the offsets of a group's member,
    /// whose generation does.
    pub(crate) fn transaction(&self) -> Transaction<'static> {
        Transaction::new(self.clone(), None)
    }
}

impl<'a> Transaction<'a> {
    fn new(queue: Queue, producer: Option<&'a mut TransactionalProducer>) -> Self {
        Self {
            limit_bytes: queue.shared.writer.max_item_bytes(),
            queue,
            producer,
            parts: BTreeMap::new(),
            offsets: Vec::new(),
            bytes: SMALL_BYTES,
        }
    }

    /// Adds a record for a partition. A record without a timestamp gets that of now.
    ///
    /// # Errors
    /// There is no such partition in the queue, the record fits into no batch, or the transaction
    /// would fit into no commit of the journal ([`CommitError::TooLarge`]). The transaction is
    /// unchanged.
    pub fn send(
        &mut self,
        topic: &Topic,
        partition: u32,
        record: &Record,
    ) -> Result<(), CommitError> {
        self.queue.check_own(topic)?;
        let slot = topic.slot(partition)?;
        let mut record = record.clone();
        stamp(&mut record);
        let record = &record;
        let empty = || BatchBuilder::new().max_bytes(slot.partition.max_batch_bytes());
        let part = self.parts.get(&slot.number);
        let is_next = part.is_none_or(|part| !part.open.has_room(record));
        if is_next {
            // Before anything is changed: a batch of this record alone must be one.
            empty().push(record)?;
        }
        let overhead = if is_next { HEADER_BYTES + BATCH_OVERHEAD_BYTES } else { 0 };
        self.reserve(record.max_bytes() + overhead)?;
        let part = self.parts.entry(slot.number).or_insert_with(|| Part {
            name: TopicPartition::new(topic.name(), partition),
            full: Vec::new(),
            open: empty(),
            slot: Arc::clone(&slot),
        });
        if is_next && !part.open.is_empty() {
            let full = std::mem::replace(&mut part.open, empty());
            part.full.push(full.finish()?);
        }
        Ok(part.open.push(record)?)
    }

    /// Adds how far `consumer` has read: the offsets are stored if and only if the records of the
    /// transaction are.
    ///
    /// # Errors
    /// The consumer has no group or is of another queue, or the transaction would be too large.
    pub fn offsets(&mut self, consumer: &Consumer) -> Result<(), CommitError> {
        if !Arc::ptr_eq(&consumer.queue.shared, &self.queue.shared) {
            return Err(CommitError::ForeignConsumer);
        }
        self.push_offsets(consumer.group_offsets()?)
    }

    pub(crate) fn push_offsets(&mut self, offsets: GroupOffsets) -> Result<(), CommitError> {
        // And the group.
        self.reserve(OFFSET_BYTES * (offsets.offsets.len() + 1))?;
        self.offsets.push(offsets);
        Ok(())
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), CommitError> {
        let (bytes, limit) = (self.bytes + bytes, self.limit_bytes);
        if bytes > limit {
            return Err(CommitError::TooLarge { bytes, limit });
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Writes everything in one commit of the journal: all of it is in the logs, or nothing.
    ///
    /// # Errors
    /// See [`CommitError`], and [`CommitError::outcome`].
    ///
    /// # Cancel safety
    /// It may be committed all the same.
    pub async fn commit(self) -> Result<Committed, CommitError> {
        let Self { queue, producer, parts, offsets, bytes, .. } = self;
        let (mut slots, mut names, mut appends) = (Vec::new(), Vec::new(), Vec::new());
        for (number, part) in parts {
            let last = part.open.finish()?;
            for batch in part.full.into_iter().chain([last]) {
                appends.push((number, batch));
                names.push(part.name.clone());
            }
            slots.push(part.slot);
        }
        let size = (bytes, appends.len());
        let mine = producer.as_ref().map(|producer| (Arc::clone(&producer.name), producer.entry));
        let (answer, answered) = oneshot::channel();
        let groups = Arc::clone(&queue.shared);
        let plan = move |view: View<'_>| {
            let (mut entry, mut changes) = (None, Vec::new());
            if let Some((name, mine)) = &mine {
                let mut latest = check_epoch(view, name, *mine)?;
                latest.committed += 1;
                changes.push(Change::put(Key::Transactional(name.to_string()), &latest));
                entry = Some(latest);
            }
            for offsets in &offsets {
                changes.extend(plan_offsets(view, &groups.groups, offsets)?);
            }
            Ok((Plan { changes, appends, ..Plan::default() }, entry))
        };
        let end = |result: Result<_, CommitError>| drop(answer.send(result));
        queue.shared.writer.run(slots, size, plan, end);
        let (entry, appended) = answered.await.map_err(|_| gone())??;
        let number = entry.map_or(0, |entry| entry.committed);
        if let (Some(producer), Some(entry)) = (producer, entry) {
            producer.entry = entry;
        }
        let appended = names.into_iter().zip(appended).collect();
        Ok(Committed { number, appended })
    }

    /// Drops everything. Nothing was written.
    pub fn abort(self) {}
}

/// The entry of a transactional id, if the producer that holds `mine` is the latest.
fn check_epoch(
    view: View<'_>,
    name: &str,
    mine: TransactionalEntry,
) -> Result<TransactionalEntry, CommitError> {
    let key = Key::Transactional(name.to_owned());
    let entry = view.get(&key).and_then(|value| TransactionalEntry::read(value));
    let current = entry.map(|entry| (entry.producer_id, entry.epoch));
    match entry {
        Some(entry) if current == Some((mine.producer_id, mine.epoch)) => Ok(entry),
        _ => {
            let current = current.map_or(-1, |(_, epoch)| epoch);
            Err(CommitError::Fenced { transactional_id: name.to_owned(), current })
        }
    }
}

/// The changes that store offsets, if they come from who may store them: a member of the group's
/// present generation, or anybody while the group has no members.
pub(crate) fn plan_offsets(
    view: View<'_>,
    groups: &Groups,
    offsets: &GroupOffsets,
) -> Result<Vec<Change>, CommitError> {
    let group = offsets.group.to_string();
    let current = view.group(&group).generation;
    match offsets.generation {
        None if groups.has_members(&group) => return Err(CommitError::GroupActive { group }),
        // 0 is of no generation.
        Some(generation) if generation == 0 || generation != current => {
            return Err(CommitError::StaleGeneration { group, generation, current });
        }
        _ => {}
    }
    let change =
        |(number, offset): &(u32, u64)| Change::put(Key::Offset(group.clone(), *number), offset);
    // Of a topic that was deleted meanwhile nothing is kept.
    let is_there = |(number, _): &&(u32, u64)| view.has_partition(*number);
    let mut changes: Vec<_> = offsets.offsets.iter().filter(is_there).map(change).collect();
    if !changes.is_empty() {
        changes.extend(view.use_group(&group, now_ms()));
    }
    Ok(changes)
}

impl fmt::Debug for TransactionalProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, entry, .. } = self;
        f.debug_struct("TransactionalProducer").field("id", name).field("entry", entry).finish()
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let partitions = self.parts.values().map(|part| &part.name);
        f.debug_list().entries(partitions).finish()
    }
}

/// So that an unfit record names its error.
impl From<FormatError> for CommitError {
    fn from(error: FormatError) -> Self {
        Self::NotTaken(error.into())
    }
}

/// So that a partition that is not there names its error.
impl From<TopicError> for CommitError {
    fn from(error: TopicError) -> Self {
        Self::Topic(Box::new(error))
    }
}
