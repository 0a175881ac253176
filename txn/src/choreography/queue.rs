//! A `voussoir-queue` as the bus: one commit of the journal for what was read, what a participant
//! remembers, and what it publishes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_queue::{
    CommitError, Committed, Consumer, ConsumerConfig, Durability, Guarantee, Murmur2, Outcome,
    Partitioner, Polled, Producer, ProducerConfig, Queue, Record, Retention, Seek, Topic,
    TopicConfig, TopicError, TopicPartition, Transaction, TransactionalProducer,
};

use super::bus::{Bus, BusError, Commit, Delivery, Observed, Subscription, Tail, state_bytes};
use super::event::{DeadLetter, Event};

/// Bytes of the largest commit, if the journal takes so many.
const MAX_COMMIT_BYTES: usize = 4 << 20;
/// Bytes of the largest commit, at least: see [`Subscription::max_commit_bytes`].
const MIN_COMMIT_BYTES: usize = 13 << 18;
/// Bytes of a transaction beside its commit: what is written again, and heads.
const RESERVED_BYTES: usize = 492 << 10;
/// Bytes of a transaction for each partition: its offset, and heads of a batch of events and state.
const PARTITION_BYTES: usize = 700;
/// Bytes of events that a poll returns, beyond which it returns no further one.
const POLL_BYTES: usize = 128 << 10;
/// Records of the state that are read at once, in bytes.
const FETCH_BYTES: usize = 1 << 20;
/// Records behind the first that is needed, beyond twice those that are, before old ones are
/// written again.
const SLACK: u64 = 1000;
/// As [`SLACK`], in bytes.
const SLACK_BYTES: u64 = 1 << 20;
/// Bytes of old records at which a commit takes no further one.
const REWRITE_BYTES: usize = 128 << 10;
/// How long a commit waits for a rebalance of the group to end.
const REBALANCE: Duration = Duration::from_secs(10);

/// How events are kept. Start from [`Default`] and change fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueBusConfig {
    /// Partitions of the events: members of a group that share the work. 1 to 400; with
    /// `segment_bytes` of the journal of 64 MiB, its default, to 6,000. It stays as it is when the
    /// bus was created. Default 8.
    pub partitions: u32,
    /// What `Queue::apply_retention` keeps of events and dead letters: longer than any participant
    /// is away. Default all.
    pub retention: Retention,
}

impl Default for QueueBusConfig {
    fn default() -> Self {
        Self { partitions: 8, retention: Retention::default() }
    }
}

/// Events in a queue, whose journal has `segment_bytes` of at least 32 MiB. Clones are the same
/// bus.
///
/// Topics: `NAME.events` with the events, by key; `NAME.dead` with dead letters;
/// `NAME.PARTICIPANT.state` with what each participant remembers, in as many partitions.
/// Participants are consumer groups of the same names: a participant that runs several times shares
/// the partitions.
#[derive(Clone)]
pub struct QueueBus {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Queue,
    name: String,
    events: Topic,
    dead: Topic,
    producer: Producer,
    /// Numbers of the subscriptions of each participant: a part of their transactional ids.
    numbers: Mutex<HashMap<String, HashSet<u32>>>,
}

impl QueueBus {
    /// Opens the bus `name`, and creates its topics unless they exist. One bus of a name at a time.
    ///
    /// # Errors
    /// [`BusError`]; [`BusError::Segments`] when the journal's segments are too small for so many
    /// partitions.
    ///
    /// # Cancel safety
    /// Dropped, topics may be created.
    pub async fn open(queue: &Queue, name: &str, config: QueueBusConfig) -> Result<Self, BusError> {
        check_segments(queue, config.partitions)?;
        let mut topic = TopicConfig::partitions(config.partitions);
        topic.retention = config.retention;
        let events = open_topic(queue, &format!("{name}.events"), topic).await?;
        let mut one = TopicConfig::partitions(1);
        one.retention = config.retention;
        let dead = open_topic(queue, &format!("{name}.dead"), one).await?;
        let producer = queue.producer(ProducerConfig::default()).await.map_err(not_applied)?;
        // It may have been created with more.
        check_segments(queue, events.partitions())?;
        let (queue, name) = (queue.clone(), name.to_owned());
        let shared = Shared { queue, name, events, dead, producer, numbers: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl fmt::Debug for QueueBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueBus").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

async fn open_topic(queue: &Queue, name: &str, config: TopicConfig) -> Result<Topic, BusError> {
    match queue.create_topic(name, config).await {
        Err(TopicError::Exists { .. }) => queue.topic(name).map_err(not_applied),
        other => other.map_err(not_applied),
    }
}

/// Bytes of a transaction beside its commit.
fn reserved_bytes(partitions: u32) -> usize {
    RESERVED_BYTES + PARTITION_BYTES * partitions as usize
}

fn check_segments(queue: &Queue, partitions: u32) -> Result<(), BusError> {
    let found_bytes = queue.max_transaction_bytes();
    let needed_bytes = MIN_COMMIT_BYTES + reserved_bytes(partitions);
    if found_bytes < needed_bytes {
        return Err(BusError::Segments { found_bytes, needed_bytes });
    }
    Ok(())
}

/// Bytes of a commit, of which a transaction of the queue has more.
fn max_commit_bytes(queue: &Queue, events: &Topic) -> usize {
    let reserved = reserved_bytes(events.partitions());
    queue.max_transaction_bytes().saturating_sub(reserved).min(MAX_COMMIT_BYTES)
}

fn not_applied(error: impl ToString) -> BusError {
    BusError::NotApplied(error.to_string())
}

fn failed(error: &CommitError) -> BusError {
    match error {
        CommitError::Fenced { .. } | CommitError::StaleGeneration { .. } => BusError::Fenced,
        _ if error.outcome() == Outcome::Unknown => BusError::Unknown(error.to_string()),
        _ => BusError::NotApplied(error.to_string()),
    }
}

fn record_of(event: &Event) -> Record {
    Record::new(event.encode()).key(event.key.clone())
}

/// What a record of the events or dead letters holds. A record that this crate has not written is
/// left out.
fn read<T>(record: &Record, decode: impl Fn(Bytes) -> Option<T>) -> Option<T> {
    let read = record.value.clone().and_then(decode);
    if read.is_none() {
        let offset = record.offset;
        tracing::warn!(target: "voussoir::txn", offset, "a record of the bus is no event");
    }
    read
}

#[async_trait]
impl Bus for QueueBus {
    async fn publish(&self, events: &[Event]) -> Result<(), BusError> {
        if let Some(field) = events.iter().find_map(Event::misfit) {
            return Err(BusError::Misfit(field));
        }
        let Shared { producer, events: topic, .. } = &*self.shared;
        let mut answers = Vec::with_capacity(events.len());
        for event in events {
            let sent = producer.enqueue(topic, record_of(event), Durability::Synced).await;
            // Some may be published: they are told by their ids.
            answers.push(sent.map_err(|error| BusError::Unknown(error.to_string()))?);
        }
        for answer in answers {
            answer.await.map_err(|error| BusError::Unknown(error.to_string()))?;
        }
        Ok(())
    }

    async fn subscribe(&self, participant: &str) -> Result<Box<dyn Subscription>, BusError> {
        Ok(Box::new(QueueSubscription::open(&self.shared, participant).await?))
    }

    async fn tail(&self) -> Result<Box<dyn Tail>, BusError> {
        let Shared { queue, events, dead, .. } = &*self.shared;
        let mut consumer = queue.consumer(ConsumerConfig::default()).map_err(not_applied)?;
        let all = [events, dead].into_iter().flat_map(|topic| {
            (0..topic.partitions()).map(|partition| TopicPartition::new(topic.name(), partition))
        });
        let all: Vec<TopicPartition> = all.collect();
        consumer.assign(&all).map_err(not_applied)?;
        Ok(Box::new(QueueTail { consumer, dead: dead.name().to_owned() }))
    }
}

/// A number that no other subscription of the participant has. Given back when it is dropped: the
/// next that takes it fences what this one has left behind.
struct Slot {
    shared: Arc<Shared>,
    participant: String,
    number: u32,
}

impl Slot {
    fn take(shared: &Arc<Shared>, participant: &str) -> Self {
        let mut numbers = shared.numbers.lock();
        let taken = numbers.entry(participant.to_owned()).or_default();
        // Ends: finitely many are taken.
        let number = (0..=u32::MAX).find(|number| !taken.contains(number)).unwrap_or(u32::MAX);
        taken.insert(number);
        drop(numbers);
        Self { shared: Arc::clone(shared), participant: participant.to_owned(), number }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut numbers = self.shared.numbers.lock();
        if let Some(taken) = numbers.get_mut(&self.participant) {
            taken.remove(&self.number);
        }
    }
}

struct QueueSubscription {
    shared: Arc<Shared>,
    consumer: Consumer,
    producer: TransactionalProducer,
    state: Topic,
    /// One for each partition that it reads.
    logs: BTreeMap<u32, StateLog>,
    /// Invariant: the partitions that the consumer has and does not read.
    paused: BTreeSet<u32>,
    /// Partitions and offsets of the events of the latest poll.
    polled: Vec<(TopicPartition, u64)>,
    /// The partition whose log is next to be made shorter.
    rewrite_from: u32,
    _slot: Slot,
}

/// Changes of the state, by partition.
type Changes = BTreeMap<u32, Vec<(Bytes, Option<Bytes>)>>;

/// The state of one partition, and where it is in the log.
#[derive(Default)]
struct StateLog {
    /// With the offset of the record that has it.
    live: HashMap<Bytes, (u64, Bytes)>,
    /// Invariant: the offsets of `live`, with the bytes of all records before each.
    by_offset: BTreeMap<u64, (Bytes, u64)>,
    /// Invariant: the bytes of `live`.
    live_bytes: u64,
    /// Behind the last record.
    end: u64,
    /// Bytes of all records that were read or written.
    end_bytes: u64,
    released: u64,
    released_bytes: u64,
}

impl StateLog {
    fn read(topic: &Topic, partition: u32) -> Result<Self, BusError> {
        let partition = topic.partition(partition).map_err(not_applied)?;
        let mut log = Self { released: partition.offsets().start, ..Self::default() };
        let mut offset = log.released;
        // Ends: each round reads on, up to the end.
        while offset < partition.offsets().end {
            let fetched = partition.fetch(offset, FETCH_BYTES).map_err(not_applied)?;
            for record in fetched.records(usize::MAX) {
                let record = record.map_err(not_applied)?;
                // One without a key is of somebody else: an empty key is garbled, as its value is.
                log.apply(record.offset, record.key.unwrap_or_default(), record.value);
            }
            if fetched.next_offset <= offset {
                break;
            }
            offset = fetched.next_offset;
        }
        Ok(log)
    }

    fn apply(&mut self, offset: u64, key: Bytes, value: Option<Bytes>) {
        let bytes = |value: &Bytes| (key.len() + value.len()) as u64;
        if let Some((old, value)) = self.live.remove(&key) {
            self.by_offset.remove(&old);
            self.live_bytes -= bytes(&value);
        }
        let before = self.end_bytes;
        self.end_bytes += value.as_ref().map_or(key.len() as u64, bytes);
        if let Some(value) = value {
            self.live_bytes += bytes(&value);
            self.by_offset.insert(offset, (key.clone(), before));
            self.live.insert(key, (offset, value));
        }
        self.end = offset + 1;
    }

    /// The offset of the first record that is needed, and the bytes before it.
    fn first_needed(&self) -> (u64, u64) {
        let first = self.by_offset.first_key_value();
        first.map_or((self.end, self.end_bytes), |(offset, (_, before))| (*offset, *before))
    }

    /// Whether it has grown too long for what it holds.
    fn is_long(&self) -> bool {
        let (offset, before) = self.first_needed();
        self.end - offset > 2 * self.live.len() as u64 + SLACK
            || self.end_bytes - before > 2 * self.live_bytes + SLACK_BYTES
    }

    /// The oldest entries, to be written again: more than `changes` of them, so that it becomes
    /// shorter, but no further one behind `max_bytes`.
    fn oldest(&self, changes: usize, max_bytes: usize) -> Vec<(Bytes, Bytes)> {
        let mut bytes = 0;
        let oldest = self.by_offset.values().take(2 * changes + 16);
        let entries =
            oldest.filter_map(|(key, _)| Some((key.clone(), self.live.get(key)?.1.clone())));
        let fits = entries.take_while(|(key, value)| {
            let has_room = bytes < max_bytes;
            bytes += state_bytes(key, Some(value));
            has_room
        });
        fits.collect()
    }
}

impl QueueSubscription {
    async fn open(shared: &Arc<Shared>, participant: &str) -> Result<Self, BusError> {
        let shared = Arc::clone(shared);
        let id = format!("{}.{participant}", shared.name);
        let partitions = TopicConfig::partitions(shared.events.partitions());
        let state = open_topic(&shared.queue, &format!("{id}.state"), partitions).await?;
        let slot = Slot::take(&shared, participant);
        let transactional = format!("{id}.{}", slot.number);
        let producer = shared.queue.transactional(&transactional).await.map_err(not_applied)?;
        let mut config = ConsumerConfig::group(&id, [shared.events.name()]);
        config.guarantee = Guarantee::ExactlyOnce;
        let consumer = shared.queue.consumer(config).map_err(not_applied)?;
        Ok(Self {
            shared,
            consumer,
            producer,
            state,
            logs: BTreeMap::new(),
            paused: BTreeSet::new(),
            polled: Vec::new(),
            rewrite_from: 0,
            _slot: slot,
        })
    }

    fn take(&mut self, polled: Polled) -> Result<Vec<Delivery>, BusError> {
        let mut deliveries = Vec::new();
        for lost in polled.lost.iter().chain(&polled.revoking) {
            self.logs.remove(&lost.partition);
            // It may be assigned again below, and is read then.
            self.paused.remove(&lost.partition);
            deliveries.push(Delivery::Lost { partition: lost.partition });
        }
        for assigned in &polled.assigned {
            let partition = assigned.partition;
            let log = StateLog::read(&self.state, partition)?;
            let state = log.live.iter().map(|(key, (_, value))| (key.clone(), value.clone()));
            deliveries.push(Delivery::Assigned { partition, state: state.collect() });
            self.logs.insert(partition, log);
        }
        deliveries.extend(self.take_events(polled.records)?);
        Ok(deliveries)
    }

    /// Keeps the events that fit, and has the consumer read the others again.
    fn take_events(
        &mut self,
        records: Vec<voussoir_queue::ConsumerRecord>,
    ) -> Result<Vec<Delivery>, BusError> {
        let mut deliveries = Vec::new();
        let mut again: BTreeMap<TopicPartition, u64> = BTreeMap::new();
        let mut bytes = 0;
        for one in records {
            if bytes >= POLL_BYTES {
                again.entry(one.partition).or_insert(one.record.offset);
                continue;
            }
            bytes += one.record.value.as_ref().map_or(0, Bytes::len);
            if let Some(event) = read(&one.record, Event::decode) {
                deliveries.push(Delivery::Event { partition: one.partition.partition, event });
                self.polled.push((one.partition, one.record.offset));
            }
        }
        self.read_again(again)?;
        Ok(deliveries)
    }

    fn read_again(&mut self, from: BTreeMap<TopicPartition, u64>) -> Result<(), BusError> {
        for (partition, offset) in from {
            self.consumer.seek(&partition, Seek::Offset(offset)).map_err(not_applied)?;
        }
        Ok(())
    }

    /// Has the consumer read those partitions that are not full.
    fn pause(&mut self, full: &BTreeSet<u32>) {
        for partition in full.symmetric_difference(&self.paused) {
            let at = TopicPartition::new(self.shared.events.name(), *partition);
            // An error: it is not read any more, by the end of this poll or of an earlier one.
            let _ = if full.contains(partition) {
                self.consumer.pause(&at)
            } else {
                self.consumer.resume(&at)
            };
        }
        self.paused.clone_from(full);
    }

    /// Adds old entries to what a commit changes, until the logs are as short as they should be:
    /// those of partitions that have not changed too, whose logs nothing else makes shorter.
    fn shorten(&mut self, changes: &mut Changes) {
        let mut room = REWRITE_BYTES;
        let from = self.rewrite_from;
        let logs = self.logs.range(from..).chain(self.logs.range(..from));
        for (partition, log) in logs.filter(|(_, log)| log.is_long()) {
            if room == 0 {
                self.rewrite_from = *partition;
                return;
            }
            let fresh = changes.entry(*partition).or_default();
            let again = log.oldest(fresh.len(), room);
            let bytes = again.iter().map(|(key, value)| state_bytes(key, Some(value)));
            room = room.saturating_sub(bytes.sum());
            let changed: HashSet<Bytes> = fresh.iter().map(|(key, _)| key.clone()).collect();
            let again = again.into_iter().filter(|(key, _)| !changed.contains(key));
            fresh.extend(again.map(|(key, value)| (key, Some(value))));
        }
    }

    async fn write(
        &mut self,
        commit: &Commit,
        changes: &Changes,
    ) -> Result<Committed, CommitError> {
        let Shared { events, dead, .. } = &*self.shared;
        let mut transaction = self.producer.begin();
        send_all(&mut transaction, events, dead, &commit.publish, &commit.dead)?;
        send_state(&mut transaction, &self.state, changes)?;
        transaction.offsets(&self.consumer)?;
        transaction.commit().await
    }

    async fn release(&mut self) {
        for (partition, log) in &mut self.logs {
            let (first, before) = log.first_needed();
            if first < log.released + SLACK && before < log.released_bytes + SLACK_BYTES {
                continue;
            }
            if let Ok(partition) = self.state.partition(*partition) {
                // An error: the next commit tries again.
                if partition.release_before(first).await.is_ok() {
                    (log.released, log.released_bytes) = (first, before);
                }
            }
        }
    }
}

#[async_trait]
impl Subscription for QueueSubscription {
    async fn poll(
        &mut self,
        max_wait: Duration,
        full: &BTreeSet<u32>,
    ) -> Result<Vec<Delivery>, BusError> {
        self.polled.clear();
        self.pause(full);
        let polled = self.consumer.poll(max_wait).await.map_err(not_applied)?;
        // From here on nothing waits: what the consumer has said is not lost.
        self.take(polled)
    }

    fn give_back(&mut self, count: usize) -> Result<(), BusError> {
        let first = self.polled.len().saturating_sub(count);
        let mut again = BTreeMap::new();
        for (partition, offset) in self.polled.drain(first..) {
            again.entry(partition).or_insert(offset);
        }
        self.read_again(again)
    }

    async fn commit(&mut self, commit: Commit) -> Result<(), BusError> {
        let (bytes, max) = (commit.len_bytes(), self.max_commit_bytes());
        if bytes > max {
            return Err(not_applied(format!("a commit has {bytes} bytes, and at most {max}")));
        }
        let mut changes = Changes::new();
        for (partition, key, value) in &commit.state {
            if !self.logs.contains_key(partition) {
                return Err(BusError::Fenced);
            }
            changes.entry(*partition).or_default().push((key.clone(), value.clone()));
        }
        self.shorten(&mut changes);
        let mut written = self.write(&commit, &changes).await;
        // Not applied: the group has been rebalanced. What this member goes on reading is still
        // its own, and a member that came back as a new one would rebalance the group again.
        if matches!(written, Err(CommitError::StaleGeneration { .. }))
            && self.consumer.still_holds(REBALANCE).await
        {
            written = self.write(&commit, &changes).await;
        }
        let committed = written.map_err(|error| failed(&error))?;
        for (partition, changes) in changes {
            let at = TopicPartition::new(self.state.name(), partition);
            let first = committed.appended.iter().find(|(place, _)| *place == at);
            let (Some((_, first)), Some(log)) = (first, self.logs.get_mut(&partition)) else {
                continue;
            };
            for ((key, value), offset) in changes.into_iter().zip(first.base_offset..) {
                log.apply(offset, key, value);
            }
        }
        self.release().await;
        Ok(())
    }

    fn max_commit_bytes(&self) -> usize {
        max_commit_bytes(&self.shared.queue, &self.shared.events)
    }
}

fn send_all(
    transaction: &mut Transaction<'_>,
    events: &Topic,
    dead: &Topic,
    publish: &[Event],
    letters: &[DeadLetter],
) -> Result<(), CommitError> {
    for event in publish {
        let record = record_of(event);
        let partition = Murmur2.partition(events.name(), &record, events.partitions());
        transaction.send(events, partition.unwrap_or(0), &record)?;
    }
    for letter in letters {
        let record = Record::new(letter.encode()).key(letter.event.key.clone());
        transaction.send(dead, 0, &record)?;
    }
    Ok(())
}

fn send_state(
    transaction: &mut Transaction<'_>,
    topic: &Topic,
    changes: &BTreeMap<u32, Vec<(Bytes, Option<Bytes>)>>,
) -> Result<(), CommitError> {
    for (partition, changes) in changes {
        for (key, value) in changes {
            let record = match value {
                Some(value) => Record::new(value.clone()).key(key.clone()),
                None => Record::tombstone(key.clone()),
            };
            transaction.send(topic, *partition, &record)?;
        }
    }
    Ok(())
}

struct QueueTail {
    consumer: Consumer,
    dead: String,
}

#[async_trait]
impl Tail for QueueTail {
    async fn next(&mut self, max_wait: Duration) -> Result<Vec<Observed>, BusError> {
        let polled = self.consumer.poll(max_wait).await.map_err(not_applied)?;
        let observed = polled.records.iter().filter_map(|one| {
            if *one.partition.topic == *self.dead {
                read(&one.record, DeadLetter::decode).map(Observed::Dead)
            } else {
                read(&one.record, Event::decode).map(Observed::Event)
            }
        });
        Ok(observed.collect())
    }
}

#[cfg(test)]
mod tests {
    use voussoir_journal::{Config, Journal, MemoryFiles};
    use voussoir_queue::QueueConfig;

    use super::*;

    const WAIT: Duration = Duration::from_millis(20);

    /// After a process stood still for longer than its session.
    #[tokio::test]
    async fn a_full_partition_that_is_lost_and_assigned_in_one_poll_is_not_read() {
        let mut config = Config::default();
        (config.segment_bytes, config.max_bytes) = (32 << 20, 256 << 20);
        let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).unwrap();
        let queue = Queue::open(&journal, "q", QueueConfig::default()).unwrap();
        let bus =
            QueueBus::open(&queue, "shop", QueueBusConfig { partitions: 1, ..<_>::default() });
        let bus = bus.await.unwrap();
        let mut subscription = QueueSubscription::open(&bus.shared, "p").await.unwrap();
        // Ends: it is the only member.
        while subscription.poll(WAIT, &BTreeSet::new()).await.unwrap().is_empty() {}
        bus.publish(&[Event::first("1", "a", "k", "")]).await.unwrap();
        let full = BTreeSet::from([0]);
        assert_eq!(subscription.poll(WAIT, &full).await.unwrap(), [], "it is full");
        let at = TopicPartition::new("shop.events", 0);
        let mut polled = Polled::default();
        (polled.lost, polled.assigned) = (vec![at.clone()], vec![at.clone()]);
        // As the consumer has begun to read it anew.
        subscription.consumer.resume(&at).unwrap();
        let state = Vec::new();
        let told = [Delivery::Lost { partition: 0 }, Delivery::Assigned { partition: 0, state }];
        assert_eq!(subscription.take(polled).unwrap(), told);
        assert_eq!(subscription.poll(WAIT, &full).await.unwrap(), [], "it is full");
        let read = subscription.poll(WAIT, &BTreeSet::new()).await.unwrap();
        assert!(matches!(read[..], [Delivery::Event { partition: 0, .. }]), "{read:?}");
    }
}
