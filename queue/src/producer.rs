//! A producer: records in, batches out, each record answered.
//!
//! A lane holds the records of one partition that wait. When no batch of it is on its way, a record
//! leaves at once; otherwise it waits for that batch to be answered, with all that come meanwhile.
//! So a batch grows with the load, and nothing lingers. One batch on its way for each partition
//! also keeps the order, and an error is about known records.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, Sleep};

use crate::config::ProducerConfig;
use crate::core::entry::{Change, Key};
use crate::core::table::View;
use crate::error::{Outcome, ProduceError, SendError, StoreError, TopicError};
use crate::format::{Batch, BatchBuilder, NO_TIMESTAMP, Record};
use crate::partition::Appended;
use crate::partitioner::{Murmur2, Partitioner};
use crate::queue::{Queue, SMALL_BYTES, Topic, TopicPartition, counters, gone};
use crate::store::Durability;
use crate::work::time_of_day;
use crate::writer::Slot;

/// Sequences are 0 to `i32::MAX`, and go on with 0.
const SEQUENCES: u64 = i32::MAX as u64 + 1;
/// What a record has in memory besides its own bytes: its place, its answer, what they grow by.
const PLACE_BYTES: usize = 512;
/// How often a batch is sent again with a new producer id because the partition forgot the old one.
const MAX_RENEWALS: u32 = 3;

/// A handle to a producer. Clones are the same producer, with the same limits.
#[derive(Clone)]
pub struct Producer {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Queue,
    config: ProducerConfig,
    partitioner: Arc<dyn Partitioner>,
    /// Bytes of records that may be sent and not answered.
    room: Arc<Semaphore>,
    unanswered: Mutex<Unanswered>,
    /// The id that new lanes begin with.
    id: i64,
    lanes: Mutex<HashMap<u32, Arc<Lane>>>,
    /// By the number of a topic's first partition: where records without a key go.
    sticky: Mutex<HashMap<u32, Arc<AtomicU32>>>,
}

/// Which records have not been answered. Each holds the sender that was `current` when it was
/// queued, and a flush begins another one: a channel whose senders have all gone has no record.
struct Unanswered {
    current: Arc<watch::Sender<()>>,
    /// Of earlier flushes. Bounded by the records that are not answered: the others are forgotten.
    flushed: Vec<watch::Receiver<()>>,
}

/// What a record holds until it is answered.
struct Room {
    _bytes: OwnedSemaphorePermit,
    _unanswered: Arc<watch::Sender<()>>,
}

/// The records that wait for one partition.
struct Lane {
    queue: Queue,
    slot: Arc<Slot>,
    target: TopicPartition,
    config: ProducerConfig,
    inner: Mutex<LaneInner>,
}

struct LaneInner {
    waiting: VecDeque<Pending>,
    /// A batch is on its way. Invariant: then its records are not in `waiting`.
    is_sending: bool,
    /// A thread is in `hand_on`, and looks again before it leaves.
    is_driven: bool,
    /// Of the producer in this partition.
    id: i64,
    /// Of the next record.
    sequence: i32,
    /// Number of the next record, to find it in `waiting`. Invariant: numbers there rise.
    next_number: u64,
}

struct Pending {
    number: u64,
    record: Record,
    durability: Durability,
    /// Moves on when the batch leaves; for records without a key.
    sticky: Option<Arc<AtomicU32>>,
    answer: oneshot::Sender<Result<Delivered, SendError>>,
    /// Is given back when the record is answered.
    _room: Room,
}

/// A batch that is on its way.
struct Sent {
    records: Vec<Pending>,
    durability: Durability,
    renewals: u32,
}

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivered {
    /// The partition.
    pub partition: TopicPartition,
    /// The offset of the record.
    pub offset: u64,
}

impl Queue {
    /// A producer, with an id that no other has had.
    ///
    /// # Errors
    /// The configuration breaks a rule, or the store rejects the write.
    ///
    /// # Cancel safety
    /// At most an id is lost.
    pub async fn producer(&self, config: ProducerConfig) -> Result<Producer, SendError> {
        self.producer_with(config, Arc::new(Murmur2)).await
    }

    /// As [`producer`](Self::producer), with another choice of partitions.
    ///
    /// # Errors
    /// The configuration breaks a rule, or the store rejects the write.
    ///
    /// # Cancel safety
    /// At most an id is lost.
    pub async fn producer_with(
        &self,
        config: ProducerConfig,
        partitioner: Arc<dyn Partitioner>,
    ) -> Result<Producer, SendError> {
        config.validate()?;
        let (answer, answered) = oneshot::channel();
        self.next_producer_id(move |id| drop(answer.send(id)));
        let id = answered.await.map_err(|_| ProduceError::from(gone()))??;
        let room = Arc::new(Semaphore::new(config.max_in_flight_bytes));
        let shared = Shared {
            queue: self.clone(),
            config,
            partitioner,
            room,
            unanswered: Mutex::new(Unanswered::new()),
            id,
            lanes: Mutex::default(),
            sticky: Mutex::default(),
        };
        Ok(Producer { shared: Arc::new(shared) })
    }

    fn next_producer_id(&self, then: impl FnOnce(Result<i64, SendError>) + Send + 'static) {
        let plan = |view: View<'_>| {
            let mut counters = counters(view);
            let id = counters.next_producer;
            counters.next_producer += 1;
            Ok::<_, StoreError>((vec![Change::put(Key::Counters, &counters)], id))
        };
        let end = |result: Result<i64, StoreError>| {
            then(result.map_err(|error| ProduceError::from(error).into()));
        };
        self.shared.writer.change(SMALL_BYTES, plan, end);
    }
}

impl Producer {
    /// Sends a record and waits until it is on stable storage.
    ///
    /// # Errors
    /// See [`SendError`].
    ///
    /// # Cancel safety
    /// A record that has been queued is sent all the same.
    pub async fn send(&self, topic: &Topic, record: Record) -> Result<Delivered, SendError> {
        self.enqueue(topic, record, Durability::Synced).await?.await
    }

    /// Queues a record, waiting until there is room for it, and returns the future of its answer.
    /// Records of one partition are in the log in the order in which they were queued.
    ///
    /// # Errors
    /// See [`SendError`]; the record is not queued then.
    ///
    /// # Cancel safety
    /// Safe: the record has not been queued.
    pub async fn enqueue(
        &self,
        topic: &Topic,
        record: Record,
        durability: Durability,
    ) -> Result<SendFuture, SendError> {
        self.shared.queue.check_own(topic)?;
        let (partition, sticky) = self.shared.choose(topic, &record)?;
        let lane = self.shared.lane(topic, partition)?;
        let deadline = self.shared.config.delivery_timeout.and_then(deadline);
        let bytes = self.shared.bytes_of(&record);
        // A flush that begins while it waits for room waits for it as well.
        let unanswered = self.shared.unanswered();
        let acquire = Arc::clone(&self.shared.room).acquire_many_owned(bytes);
        let room = match deadline {
            None => acquire.await,
            Some(deadline) => match tokio::time::timeout_at(deadline, acquire).await {
                Ok(room) => room,
                Err(_elapsed) => {
                    return Err(SendError::TimedOut { outcome: Outcome::NotApplied });
                }
            },
        };
        let room = room.map_err(|_| ProduceError::from(gone()))?;
        let room = Room { _bytes: room, _unanswered: unanswered };
        Ok(lane.push(record, durability, sticky, room, deadline))
    }

    /// As [`enqueue`](Self::enqueue), to a partition of the caller's choice, and without waiting.
    ///
    /// # Errors
    /// See [`SendError`]; [`SendError::Full`] when there is no room.
    pub fn try_enqueue(
        &self,
        topic: &Topic,
        partition: Option<u32>,
        record: Record,
        durability: Durability,
    ) -> Result<SendFuture, SendError> {
        self.shared.queue.check_own(topic)?;
        let (partition, sticky) = match partition {
            Some(partition) => (partition, None),
            None => self.shared.choose(topic, &record)?,
        };
        let lane = self.shared.lane(topic, partition)?;
        let bytes = self.shared.bytes_of(&record);
        let room = Arc::clone(&self.shared.room).try_acquire_many_owned(bytes);
        let limit = self.shared.config.max_in_flight_bytes;
        let room = room.map_err(|_| SendError::Full { limit })?;
        let room = Room { _bytes: room, _unanswered: self.shared.unanswered() };
        let deadline = self.shared.config.delivery_timeout.and_then(deadline);
        Ok(lane.push(record, durability, sticky, room, deadline))
    }

    /// Waits until all records have been answered that were queued before, or waited for room.
    /// Takes no room: others are queued meanwhile.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn flush(&self) {
        let flushed = self.shared.unanswered.lock().begin_another();
        for mut records in flushed {
            // Ends with the last of them: nothing is ever sent.
            while records.changed().await.is_ok() {}
        }
    }

    /// Bytes of records that have been queued and not answered.
    pub fn in_flight_bytes(&self) -> usize {
        self.shared.config.max_in_flight_bytes - self.shared.room.available_permits()
    }
}

/// Gives a record without a timestamp that of now: retention by age keeps what has none.
pub(crate) fn stamp(record: &mut Record) {
    if record.timestamp == NO_TIMESTAMP {
        record.timestamp = i64::try_from(time_of_day() / 1_000_000).unwrap_or(i64::MAX);
    }
}

/// The end of a time-out that begins now; `None` when it is beyond what the clock can say.
fn deadline(after: Duration) -> Option<Instant> {
    Instant::now().checked_add(after)
}

impl Shared {
    /// What a record takes of the room.
    fn bytes_of(&self, record: &Record) -> u32 {
        // A record of more than all the room takes all of it, and waits until nothing else does.
        let bytes = (record.max_bytes() + PLACE_BYTES).min(self.config.max_in_flight_bytes);
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// What a record holds until it is answered, for a flush.
    fn unanswered(&self) -> Arc<watch::Sender<()>> {
        Arc::clone(&self.unanswered.lock().current)
    }

    fn choose(
        &self,
        topic: &Topic,
        record: &Record,
    ) -> Result<(u32, Option<Arc<AtomicU32>>), SendError> {
        let partitions = topic.partitions();
        match self.partitioner.partition(topic.name(), record, partitions) {
            Some(partition) if partition < partitions => Ok((partition, None)),
            Some(partition) => {
                let name = topic.name().to_owned();
                Err(TopicError::UnknownPartition { name, partition, partitions }.into())
            }
            None => {
                let mut sticky = self.sticky.lock();
                if sticky.len().is_power_of_two() && !sticky.contains_key(&topic.id()) {
                    let topics = self.queue.topics();
                    let ids: HashSet<u32> = topics.iter().map(Topic::id).collect();
                    sticky.retain(|id, _| ids.contains(id));
                }
                let current = Arc::clone(sticky.entry(topic.id()).or_default());
                Ok((current.load(Relaxed) % partitions, Some(current)))
            }
        }
    }

    fn lane(&self, topic: &Topic, partition: u32) -> Result<Arc<Lane>, SendError> {
        let slot = topic.slot(partition)?;
        let mut lanes = self.lanes.lock();
        if lanes.len().is_power_of_two() && !lanes.contains_key(&slot.number) {
            // Those of deleted topics, before they are twice as many.
            lanes.retain(|_, lane| !lane.slot.partition.is_stopped());
        }
        let lane = lanes.entry(slot.number).or_insert_with(|| {
            let inner = LaneInner {
                waiting: VecDeque::new(),
                is_sending: false,
                is_driven: false,
                id: self.id,
                sequence: 0,
                next_number: 0,
            };
            Arc::new(Lane {
                queue: self.queue.clone(),
                slot,
                target: TopicPartition::new(topic.name(), partition),
                config: self.config.clone(),
                inner: Mutex::new(inner),
            })
        });
        Ok(Arc::clone(lane))
    }
}

impl Unanswered {
    fn new() -> Self {
        Self { current: Arc::new(watch::Sender::new(())), flushed: Vec::new() }
    }

    /// Records that are queued from now on are others. Returns the channels of those before.
    fn begin_another(&mut self) -> Vec<watch::Receiver<()>> {
        self.flushed.push(self.current.subscribe());
        self.current = Arc::new(watch::Sender::new(()));
        self.flushed.retain(|records| records.has_changed().is_ok());
        self.flushed.clone()
    }
}

/// Leaves `hand_on`, also when the store panics.
struct Driving<'a>(&'a Lane);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().is_driven = false;
    }
}

impl Lane {
    fn push(
        self: &Arc<Self>,
        mut record: Record,
        durability: Durability,
        sticky: Option<Arc<AtomicU32>>,
        room: Room,
        deadline: Option<Instant>,
    ) -> SendFuture {
        stamp(&mut record);
        let (answer, answered) = oneshot::channel();
        let number = {
            let mut inner = self.inner.lock();
            let number = inner.next_number;
            inner.next_number += 1;
            let pending = Pending { number, record, durability, sticky, answer, _room: room };
            inner.waiting.push_back(pending);
            number
        };
        self.hand_on();
        SendFuture { lane: Arc::clone(self), number, answered, deadline, timer: None }
    }

    /// Sends what waits, unless a batch is on its way.
    ///
    /// A partition may answer before `dispatch` returns: then the batch behind it is sent by the
    /// next round here, not by the answer, however many wait.
    fn hand_on(self: &Arc<Self>) {
        // Ends: each round takes records off, or leaves.
        loop {
            let mut bad = Vec::new();
            let built = {
                let mut inner = self.inner.lock();
                if inner.is_sending || inner.is_driven {
                    return;
                }
                let built = self.build(&mut inner, &mut bad);
                inner.is_sending = built.is_some();
                inner.is_driven = built.is_some();
                built
            };
            for (pending, error) in bad {
                drop(pending.answer.send(Err(error)));
            }
            let Some((batch, sent)) = built else { return };
            let driving = Driving(self);
            let moved = sent.records.iter().find_map(|pending| pending.sticky.as_ref());
            if let Some(sticky) = moved {
                sticky.store(self.target.partition.wrapping_add(1), Relaxed);
            }
            self.dispatch(batch, sent);
            drop(driving);
        }
    }

    fn builder(&self, inner: &LaneInner, bytes: usize) -> BatchBuilder {
        BatchBuilder::with_capacity(bytes)
            .max_bytes(self.slot.partition.max_batch_bytes())
            .compression(self.config.compression)
            .producer(inner.id, 0, inner.sequence)
    }

    /// About the bytes of the records that the next batch takes.
    fn bytes_of_a_batch(&self, inner: &LaneInner) -> usize {
        let max_bytes = self.config.max_batch_bytes;
        let mut bytes = 0;
        for pending in &inner.waiting {
            if bytes >= max_bytes {
                break;
            }
            // Most records have short varints: half of what is reserved for them is enough.
            bytes += pending.record.max_bytes() - 24;
        }
        bytes.min(max_bytes)
    }

    /// A batch of what waits: at least one record that is fit for a batch. Records that are not
    /// go into `bad`.
    fn build(
        &self,
        inner: &mut LaneInner,
        bad: &mut Vec<(Pending, SendError)>,
    ) -> Option<(Batch, Sent)> {
        // Ends: each round takes records off.
        while !inner.waiting.is_empty() {
            let mut builder = self.builder(inner, self.bytes_of_a_batch(inner));
            let mut sent =
                Sent { records: Vec::new(), durability: Durability::Buffered, renewals: 0 };
            // Ends: each round takes a record off, or leaves.
            while let Some(pending) = inner.waiting.pop_front() {
                let is_full = !builder.is_empty()
                    && (builder.len_bytes() >= self.config.max_batch_bytes
                        || !builder.has_room(&pending.record));
                if is_full {
                    inner.waiting.push_front(pending);
                    break;
                }
                match builder.push(&pending.record) {
                    Ok(()) => {
                        sent.durability = sent.durability.max(pending.durability);
                        sent.records.push(pending);
                    }
                    Err(error) => bad.push((pending, ProduceError::from(error).into())),
                }
            }
            if sent.records.is_empty() {
                return None;
            }
            match builder.finish() {
                Ok(batch) => return Some((batch, sent)),
                Err(error) => {
                    let error = SendError::from(ProduceError::from(error));
                    bad.extend(sent.records.into_iter().map(|pending| (pending, error.clone())));
                }
            }
        }
        None
    }

    fn dispatch(self: &Arc<Self>, batch: Batch, sent: Sent) {
        let lane = Arc::clone(self);
        let durability = sent.durability;
        let then = move |result| lane.land(sent, result);
        self.slot.partition.append_then(batch, durability, then);
    }

    fn land(self: &Arc<Self>, sent: Sent, result: Result<Appended, ProduceError>) {
        let is_forgotten = matches!(result, Err(ProduceError::UnknownProducer { .. }));
        if is_forgotten && sent.renewals < MAX_RENEWALS {
            return self.renew(sent);
        }
        {
            let mut inner = self.inner.lock();
            inner.is_sending = false;
            if result.is_ok() {
                // Only what is in the log takes sequences.
                let next = u64::from(inner.sequence.cast_unsigned()) + sent.records.len() as u64;
                inner.sequence = (next % SEQUENCES) as i32;
            }
        }
        for (offset, pending) in (0..).zip(sent.records) {
            let delivered = |appended: Appended| Delivered {
                partition: self.target.clone(),
                offset: appended.base_offset + offset,
            };
            drop(pending.answer.send(result.clone().map(delivered).map_err(SendError::from)));
        }
        self.hand_on();
    }

    /// The partition has forgotten the producer. All its earlier batches have been answered, so
    /// this one was never appended: it is sent with a new id.
    fn renew(self: &Arc<Self>, mut sent: Sent) {
        let lane = Arc::clone(self);
        self.queue.next_producer_id(move |id| {
            let built = id.and_then(|id| {
                let mut inner = lane.inner.lock();
                (inner.id, inner.sequence) = (id, 0);
                let mut builder = lane.builder(&inner, 0);
                for pending in &sent.records {
                    builder.push(&pending.record).map_err(ProduceError::from)?;
                }
                Ok(builder.finish().map_err(ProduceError::from)?)
            });
            sent.renewals += 1;
            match built {
                Ok(batch) => lane.dispatch(batch, sent),
                Err(SendError::Produce(error)) => {
                    sent.renewals = MAX_RENEWALS;
                    lane.land(sent, Err(error));
                }
                Err(error) => {
                    sent.renewals = MAX_RENEWALS;
                    let why = error.to_string();
                    lane.land(sent, Err(StoreError::Rejected { why }.into()));
                }
            }
        });
    }

    /// Takes a record back that has not left. Returns whether it did.
    fn withdraw(&self, number: u64) -> bool {
        let withdrawn = {
            let mut inner = self.inner.lock();
            let at = inner.waiting.partition_point(|pending| pending.number < number);
            let is_there = inner.waiting.get(at).is_some_and(|found| found.number == number);
            if is_there { inner.waiting.remove(at) } else { None }
        };
        withdrawn.is_some()
    }
}

/// The answer to a record that was queued. Dropping it takes nothing back.
#[must_use = "the answer says whether the record is in the log"]
pub struct SendFuture {
    lane: Arc<Lane>,
    number: u64,
    answered: oneshot::Receiver<Result<Delivered, SendError>>,
    /// End of the delivery time-out.
    deadline: Option<Instant>,
    /// Made by the first poll: that is in a runtime, the call that queues need not be.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Future for SendFuture {
    type Output = Result<Delivered, SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready(answer) = Pin::new(&mut this.answered).poll(context) {
            return Poll::Ready(answer.unwrap_or_else(|_| Err(ProduceError::from(gone()).into())));
        }
        let Some(deadline) = this.deadline else { return Poll::Pending };
        let sleep = || Box::pin(tokio::time::sleep_until(deadline));
        let timer = this.timer.get_or_insert_with(sleep);
        if timer.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        (this.deadline, this.timer) = (None, None);
        let is_back = this.lane.withdraw(this.number);
        let outcome = if is_back { Outcome::NotApplied } else { Outcome::Unknown };
        Poll::Ready(Err(SendError::TimedOut { outcome }))
    }
}

impl fmt::Debug for SendFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendFuture").field("to", &self.lane.target).finish_non_exhaustive()
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("id", &self.shared.id).finish_non_exhaustive()
    }
}
