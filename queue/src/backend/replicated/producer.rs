//! A producer: a batch of each partition on its way, sent again under its number until it is known.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::topics::Topic;
use super::wire::{Request, Response};
use super::{Cluster, NAME, PAUSE, failure, new_producer, unexpected};
use crate::backend::{BackendError, Position, Producer, refuse_message_id};
use crate::error::Outcome;
use crate::format::{Batch, BatchBuilder, Record};
use crate::partitioner::{Murmur2, Partitioner};
use crate::producer::stamp;
use crate::raft::ReplicatedPartition;

/// Sequences are 0 to `i32::MAX`, and go on with 0.
const SEQUENCES: u64 = i32::MAX as u64 + 1;
/// What a record has in memory besides its own bytes.
const PLACE_BYTES: usize = 512;
/// The time-out of those who wait as long as it takes.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);

pub(super) struct ReplicatedProducer {
    cluster: Arc<Cluster>,
    /// The id that lanes begin with.
    id: i64,
    /// Bytes of records that may be sent and not answered.
    room: Arc<Semaphore>,
    /// By the number of the partition.
    lanes: Mutex<HashMap<u32, Arc<Lane>>>,
    /// Where the next call sends records without a key.
    turn: AtomicU32,
}

/// The records that wait for one partition.
struct Lane {
    cluster: Arc<Cluster>,
    number: u32,
    part: ReplicatedPartition,
    inner: Mutex<LaneInner>,
}

struct LaneInner {
    waiting: VecDeque<Pending>,
    /// A task sends what waits.
    is_driven: bool,
    /// Of the producer in this partition; `None`: the partition has forgotten it.
    id: Option<i64>,
    /// Begins anew with each batch that was given up.
    epoch: i16,
    /// Of the next record.
    sequence: i32,
}

struct Pending {
    record: Record,
    deadline: Instant,
    answer: oneshot::Sender<Result<u64, BackendError>>,
    /// Gives the room back when the record is answered.
    _room: OwnedSemaphorePermit,
}

impl ReplicatedProducer {
    pub(super) fn new(cluster: Arc<Cluster>, id: i64) -> Self {
        let room = Arc::new(Semaphore::new(cluster.config.producer.max_in_flight_bytes));
        Self { cluster, id, room, lanes: Mutex::default(), turn: AtomicU32::new(0) }
    }

    fn lane(&self, topic: &Topic, partition: u32) -> Result<Arc<Lane>, BackendError> {
        let number = topic.number(partition);
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get(&number) {
            return Ok(Arc::clone(lane));
        }
        let part = topic.parts.get(partition as usize).cloned().flatten();
        let part = part.ok_or_else(|| BackendError::Unavailable {
            why: "the partition has not started on this node".to_owned(),
        })?;
        let inner = LaneInner {
            waiting: VecDeque::new(),
            is_driven: false,
            id: Some(self.id),
            epoch: 0,
            sequence: 0,
        };
        // Those of topics that were deleted have served their time.
        lanes.retain(|_, lane| lane.part.raft().stopped().is_none());
        let (cluster, inner) = (Arc::clone(&self.cluster), Mutex::new(inner));
        let lane = Arc::new(Lane { cluster, number, part, inner });
        lanes.insert(number, Arc::clone(&lane));
        Ok(lane)
    }

    /// Queues a record, when there is room for it.
    async fn enqueue(
        &self,
        topic: &Topic,
        turn: u32,
        mut record: Record,
        deadline: Instant,
    ) -> Result<(u32, oneshot::Receiver<Result<u64, BackendError>>), BackendError> {
        refuse_message_id(NAME, &record)?;
        let partitions = topic.entry.partitions;
        let partition = Murmur2.partition("", &record, partitions).unwrap_or(turn % partitions);
        let lane = self.lane(topic, partition)?;
        // A record of more than all the room takes all of it, and waits until nothing else does.
        let most = self.cluster.config.producer.max_in_flight_bytes;
        let bytes = (record.max_bytes() + PLACE_BYTES).min(most);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let acquire = Arc::clone(&self.room).acquire_many_owned(bytes);
        let Ok(Ok(room)) = timeout_at(deadline, acquire).await else {
            return Err(late());
        };
        stamp(&mut record);
        let (answer, answered) = oneshot::channel();
        lane.push(Pending { record, deadline, answer, _room: room });
        Ok((partition, answered))
    }
}

/// What becomes of a record that has not left.
fn late() -> BackendError {
    BackendError::Unavailable { why: "not delivered within delivery_timeout".to_owned() }
}

#[async_trait]
impl Producer for ReplicatedProducer {
    async fn send(&self, topic: &str, records: Vec<Record>) -> Vec<Result<Position, BackendError>> {
        let timeout = self.cluster.config.producer.delivery_timeout.unwrap_or(FOREVER);
        let deadline = Instant::now() + timeout.min(FOREVER);
        let topic = match self.cluster.topic(topic, deadline).await {
            Ok(topic) => topic,
            Err(error) => return records.iter().map(|_| Err(error.clone())).collect(),
        };
        let turn = self.turn.fetch_add(1, Relaxed);
        let mut queued = Vec::with_capacity(records.len());
        for record in records {
            queued.push(self.enqueue(&topic, turn, record, deadline).await);
        }
        let mut answers = Vec::with_capacity(queued.len());
        for queued in queued {
            answers.push(match queued {
                Ok((partition, answered)) => match answered.await {
                    Ok(answer) => answer.map(|offset| Position { partition, offset }),
                    Err(_) => Err(BackendError::Unknown { why: "the producer is gone".to_owned() }),
                },
                Err(error) => Err(error),
            });
        }
        answers
    }
}

impl Lane {
    fn push(self: &Arc<Self>, pending: Pending) {
        let is_driven = {
            let mut inner = self.inner.lock();
            inner.waiting.push_back(pending);
            std::mem::replace(&mut inner.is_driven, true)
        };
        if !is_driven {
            tokio::spawn(Arc::clone(self).drive());
        }
    }

    /// Sends what waits, batch by batch.
    async fn drive(self: Arc<Self>) {
        // Ends: each round answers a record, or takes an id for it, until its deadline.
        loop {
            let first = {
                let mut inner = self.inner.lock();
                match inner.waiting.front() {
                    Some(first) => (inner.id.is_some(), first.deadline),
                    None => {
                        inner.is_driven = false;
                        return;
                    }
                }
            };
            if let (false, deadline) = first {
                match new_producer(&self.cluster, deadline).await {
                    Ok(id) => {
                        let mut inner = self.inner.lock();
                        (inner.id, inner.epoch, inner.sequence) = (Some(id), 0, 0);
                    }
                    Err(error) => {
                        let why = error.to_string();
                        let waiting = std::mem::take(&mut self.inner.lock().waiting);
                        answer_all(waiting, &BackendError::Unavailable { why });
                        continue;
                    }
                }
            }
            let built = self.build();
            if let Some((batch, records)) = built {
                self.deliver(batch, records).await;
            }
        }
    }

    /// A batch of what waits. Records that have waited too long, or fit into no batch, are
    /// answered.
    fn build(&self) -> Option<(Batch, VecDeque<Pending>)> {
        let config = &self.cluster.config.producer;
        let mut inner = self.inner.lock();
        let mut builder = BatchBuilder::new()
            .max_bytes(self.part.reader().max_batch_bytes())
            .compression(config.compression)
            .producer(inner.id?, inner.epoch, inner.sequence);
        let (mut records, now) = (VecDeque::new(), Instant::now());
        // Ends: each round takes a record off, or leaves.
        while let Some(pending) = inner.waiting.pop_front() {
            if is_late(&pending, now) {
                drop(pending.answer.send(Err(late())));
                continue;
            }
            let is_full = !builder.is_empty()
                && (builder.len_bytes() >= config.max_batch_bytes
                    || !builder.has_room(&pending.record));
            if is_full {
                inner.waiting.push_front(pending);
                break;
            }
            match builder.push(&pending.record) {
                Ok(()) => records.push_back(pending),
                Err(error) => {
                    let why = error.to_string();
                    drop(pending.answer.send(Err(BackendError::Rejected { why })));
                }
            }
        }
        drop(inner);
        if records.is_empty() {
            return None;
        }
        match builder.finish() {
            Ok(batch) => Some((batch, records)),
            Err(error) => {
                let why = error.to_string();
                answer_all(records, &BackendError::Rejected { why });
                None
            }
        }
    }

    /// Sends a batch until it is known what became of it, or the time of a record is over.
    async fn deliver(&self, batch: Batch, records: VecDeque<Pending>) {
        // What waits is in the order of the calls, and so are the deadlines, but for a call that
        // waited for room.
        let deadlines = records.iter().map(|pending| pending.deadline);
        let deadline = deadlines.min().unwrap_or_else(Instant::now);
        let request = Request::Append { number: self.number, batch: batch.bytes().clone() };
        let (response, is_unknown) = self.cluster.ask(&self.part, &request, deadline).await;
        match (response, is_unknown) {
            (Response::Appended { base_offset }, _) => {
                {
                    let mut inner = self.inner.lock();
                    let next = u64::from(inner.sequence.cast_unsigned()) + records.len() as u64;
                    inner.sequence = (next % SEQUENCES) as i32;
                }
                for (offset, pending) in (base_offset..).zip(records) {
                    drop(pending.answer.send(Ok(offset)));
                }
            }
            // It was never appended under this id, so it may be under another one.
            (Response::Forgotten, false) => {
                let mut inner = self.inner.lock();
                inner.id = None;
                put_back(&mut inner.waiting, records);
            }
            (Response::Forgotten, true) => {
                let why = "the partition has forgotten the producer".to_owned();
                self.give_up(records, &BackendError::Unknown { why });
            }
            // It is nowhere, and its number is free. Who has time left goes on.
            (Response::NotNow { .. } | Response::NotLeader { .. }, false) => {
                let now = Instant::now();
                let (over, rest): (VecDeque<_>, _) =
                    records.into_iter().partition(|pending| is_late(pending, now));
                answer_all(over, &late());
                put_back(&mut self.inner.lock().waiting, rest);
            }
            (Response::Unable { why }, false) => {
                answer_all(records, &BackendError::Unavailable { why });
            }
            (response, is_unknown) => {
                let outcome = if is_unknown { Outcome::Unknown } else { Outcome::NotApplied };
                let error = failure(response, outcome).err().unwrap_or_else(unexpected);
                self.give_up(records, &error);
            }
        }
    }

    /// Goes on without a batch that may be in the log, or come there. What follows is of another
    /// epoch: under the same number it would be taken for that batch, under the next one for a gap.
    fn give_up(&self, records: VecDeque<Pending>, error: &BackendError) {
        {
            let mut inner = self.inner.lock();
            inner.sequence = 0;
            match inner.epoch.checked_add(1) {
                Some(epoch) => inner.epoch = epoch,
                None => inner.id = None,
            }
        }
        answer_all(records, error);
    }
}

fn is_late(pending: &Pending, now: Instant) -> bool {
    pending.deadline <= now + PAUSE
}

fn put_back(waiting: &mut VecDeque<Pending>, records: VecDeque<Pending>) {
    for pending in records.into_iter().rev() {
        waiting.push_front(pending);
    }
}

fn answer_all(records: VecDeque<Pending>, error: &BackendError) {
    for pending in records {
        drop(pending.answer.send(Err(error.clone())));
    }
}

impl fmt::Debug for ReplicatedProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicatedProducer").field("id", &self.id).finish_non_exhaustive()
    }
}
