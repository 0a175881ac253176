//! A queue: topics of partitions, in a namespace of a journal.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::oneshot;
use voussoir_journal::{Journal, Log};

use crate::config::{Compaction, QueueConfig, Retention, TopicConfig};
use crate::core::entry::{Change, Counters, Key, MAX_NAME_BYTES, TopicEntry, Value};
use crate::core::table::View;
use crate::error::{FetchError, OpenError, StoreError, TopicError};
use crate::groups::{DELETED_BYTES, Groups};
use crate::partition::Partition;
use crate::store::{JournalPartition, JournalStore};
use crate::writer::{Plan, Slot, Writer};

/// What a few changes of the table take at most: two names and their values.
pub(crate) const SMALL_BYTES: usize = 1_024;

/// A handle to a queue. Clones are the same queue.
///
/// All that it keeps is in one namespace of a journal: each partition in two logs, and a table of
/// topics, groups, offsets and producers in another one. Whatever belongs together is one commit.
#[derive(Clone)]
pub struct Queue {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) writer: Writer,
    pub(crate) config: QueueConfig,
    topics: RwLock<BTreeMap<String, Topic>>,
    /// Rises with each change of `topics`.
    topics_version: AtomicU64,
    pub(crate) groups: Groups,
    /// Identity of this opening of the queue: each topic has a clone.
    identity: Arc<()>,
}

/// A handle to a topic. Clones are the same topic.
#[derive(Clone)]
pub struct Topic {
    shared: Arc<TopicShared>,
}

struct TopicShared {
    name: String,
    config: TopicConfig,
    first_number: u32,
    slots: Vec<Result<Arc<Slot>, OpenError>>,
    /// That of its queue.
    identity: Arc<()>,
}

impl Queue {
    /// Opens the queue in `namespace` of a journal, which may be empty: finds its topics, and opens
    /// their partitions. A partition that is damaged does not keep the others from opening:
    /// [`Topic::partition`] says what is wrong with it.
    ///
    /// # Errors
    /// Another queue has the namespace, or the table of topics cannot be read.
    pub fn open(
        journal: &Journal,
        namespace: &str,
        config: QueueConfig,
    ) -> Result<Self, OpenError> {
        config.validate()?;
        let store = JournalStore::new(journal, namespace)?;
        Partition::check(&store.partition(0)?, &config.partition)?;
        let writer = Writer::open(store, config.max_waiting_commits)?;
        let entries: Vec<(String, TopicEntry)> =
            writer.read(|table| table.topics().map(|(key, topic)| (name_of(key), topic)).collect());
        let (identity, mut topics) = (Arc::new(()), BTreeMap::new());
        for (name, entry) in entries {
            let numbers = entry.first_number..entry.first_number + entry.partitions;
            let stores = numbers.map(|number| (number, writer.store().partition(number)));
            let topic = Topic::open(name.clone(), entry, stores, (&identity, &config));
            topics.insert(name, topic);
        }
        writer.store().delete_orphans(|number| writer.read(|table| table.has_partition(number)));
        let groups = Groups::new(config.max_groups);
        let (topics, topics_version) = (RwLock::new(topics), AtomicU64::new(1));
        let shared = Shared { writer, config, topics, topics_version, groups, identity };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Creates a topic, durably.
    ///
    /// # Errors
    /// See [`TopicError`].
    ///
    /// # Cancel safety
    /// The topic may be created all the same.
    pub async fn create_topic(&self, name: &str, config: TopicConfig) -> Result<Topic, TopicError> {
        config.validate()?;
        if !is_topic_name(name) {
            return Err(TopicError::InvalidName { name: name.to_owned() });
        }
        let (answer, answered) = oneshot::channel();
        let (planning, ending) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
        let (name, title) = (name.to_owned(), name.to_owned());
        let plan = move |view: View<'_>| planning.plan_topic(view, &name, config);
        self.shared.writer.change(SMALL_BYTES, plan, move |result| {
            let topic = result.map(|(entry, stores): (_, Vec<_>)| {
                let stores = stores.into_iter().map(|(number, store)| (number, Ok(store)));
                let queue = (&ending.identity, &ending.config);
                let topic = Topic::open(title.clone(), entry, stores, queue);
                ending.change_topics(|topics| drop(topics.insert(title, topic.clone())));
                topic
            });
            drop(answer.send(topic));
        });
        answered.await.map_err(|_| gone())?
    }

    /// Deletes a topic with all its records, durably. Its partitions take no more records, readers
    /// that wait get [`FetchError::Closed`], workers [`WorkError::Deleted`]. A topic of the same
    /// name can be created again: it has nothing in common with this one. What groups have stored
    /// about it goes with it, and groups that have stored nothing else and have no members are
    /// deleted.
    ///
    /// [`WorkError::Deleted`]: crate::work::WorkError::Deleted
    ///
    /// # Errors
    /// See [`TopicError`].
    ///
    /// # Cancel safety
    /// The topic may be deleted all the same. One of more than 400 partitions, or of which groups
    /// have stored some hundreds of offsets and more, is deleted in several commits: after an
    /// error, or when the future was dropped, some partitions may be gone and the topic still be
    /// there; delete it again.
    pub async fn delete_topic(&self, name: &str) -> Result<(), TopicError> {
        let topic = self.topic(name)?;
        let numbers: Vec<u32> = (topic.id()..topic.id() + topic.partitions()).collect();
        // The entry goes last: while it is there, the rest can be deleted by another call.
        let mut parts = numbers.chunks(DELETED_PARTITIONS).peekable();
        // Ends: each round takes a part.
        while let Some(part) = parts.next() {
            let is_last = parts.peek().is_none();
            // Ends: each round but the last one removes offsets.
            while !self.delete_partitions(&topic, part, is_last).await? {}
        }
        Ok(())
    }

    /// Deletes the logs of these partitions, damaged ones too, and with the last of them the entry
    /// of the topic and what groups have stored about it, in one commit. Returns whether it is
    /// done: when they have stored too much for one commit, it removes a part of that.
    async fn delete_partitions(
        &self,
        topic: &Topic,
        numbers: &[u32],
        is_last: bool,
    ) -> Result<bool, TopicError> {
        let (answer, answered) = oneshot::channel();
        let slots = topic.slots().filter(|slot| numbers.contains(&slot.number));
        let slots: Vec<_> = slots.cloned().collect();
        let deletes = self.shared.writer.store().logs_of(numbers)?;
        let ending = Arc::clone(&self.shared);
        let (key, title) = (Key::Topic(topic.name().to_owned()), topic.name().to_owned());
        let first_number = topic.id();
        let operations = deletes.len();
        let groups = Arc::clone(&self.shared);
        let bytes = self.shared.writer.max_item_bytes().min(DELETED_BYTES + SMALL_BYTES);
        let plan = move |view: View<'_>| {
            let entry = view.get(&key).and_then(|value| TopicEntry::read(value));
            match entry {
                // It may have been deleted, and created again, since it was looked up.
                Some(entry) if entry.first_number == first_number => {
                    let (mut changes, mut is_done) = (Vec::new(), true);
                    if is_last {
                        let has_members = |group: &str| groups.groups.has_members(group);
                        let bytes = bytes - SMALL_BYTES;
                        (changes, is_done) =
                            view.forget_partitions(&entry.numbers(), bytes, has_members);
                        changes.extend(is_done.then(|| Change::remove(key)));
                    }
                    Ok((Plan { changes, deletes, ..Plan::default() }, is_done))
                }
                _ => Err(TopicError::Unknown { name: name_of(&key) }),
            }
        };
        self.shared.writer.run(slots, (bytes, operations), plan, move |result| {
            let result = result.map(|(is_done, _)| is_done);
            if is_last && result == Ok(true) {
                ending.change_topics(|topics| drop(topics.remove(&title)));
            }
            drop(answer.send(result));
        });
        answered.await.map_err(|_| gone())?
    }

    /// The topic of this name.
    ///
    /// # Errors
    /// [`TopicError::Unknown`].
    pub fn topic(&self, name: &str) -> Result<Topic, TopicError> {
        let topic = self.shared.topics.read().get(name).cloned();
        topic.ok_or_else(|| TopicError::Unknown { name: name.to_owned() })
    }

    /// Refuses a topic of another queue, whose partitions have the numbers of partitions of this
    /// one.
    pub(crate) fn check_own(&self, topic: &Topic) -> Result<(), TopicError> {
        if Arc::ptr_eq(&topic.shared.identity, &self.shared.identity) {
            return Ok(());
        }
        Err(TopicError::Foreign { name: topic.name().to_owned() })
    }

    /// The most bytes of a [`Transaction`](crate::Transaction): half of the journal's largest
    /// commit, of which each record takes its own and up to 48, each batch about 190, and each
    /// offset and each group 300.
    pub fn max_transaction_bytes(&self) -> usize {
        self.shared.writer.max_item_bytes()
    }

    /// All topics, in the order of their names.
    pub fn topics(&self) -> Vec<Topic> {
        self.shared.topics.read().values().cloned().collect()
    }

    /// Lets go of what the retention of each topic does not keep, at `now_ms` (ms since the UNIX
    /// epoch). Returns the partitions that failed, and why: the others are done. Call it from time
    /// to time.
    ///
    /// # Cancel safety
    /// What was done stays done; the next call does the rest.
    pub async fn apply_retention(&self, now_ms: i64) -> Vec<(TopicPartition, FetchError)> {
        let mut failed = Vec::new();
        for topic in self.topics() {
            let retention = topic.config().retention;
            if retention == Retention::default() {
                continue;
            }
            for (number, partition) in topic.opened() {
                let result = match partition.retention_offset_in_task(retention, now_ms).await {
                    Ok(offset) => partition.release_before(offset).await.map(|_| ()),
                    Err(error) => Err(error),
                };
                if let Err(error) = result {
                    failed.push((TopicPartition::new(topic.name(), number), error));
                }
            }
        }
        failed
    }

    /// Compacts the topics that ask for it ([`TopicConfig::compaction`]), at `now_ms` (ms since the
    /// UNIX epoch): each partition of which at least half has not been compacted, or has tombstones
    /// whose time is over. One after the other, so that
    /// [`Config::max_compaction_bytes_per_second`](crate::Config::max_compaction_bytes_per_second)
    /// holds for all of them. Returns the partitions that failed, and why: the others are done.
    /// Call it from time to time.
    ///
    /// # Cancel safety
    /// Partitions that were done stay done. See [`Partition::compact`] for the one under way.
    pub async fn apply_compaction(&self, now_ms: i64) -> Vec<(TopicPartition, FetchError)> {
        let mut failed = Vec::new();
        for topic in self.topics() {
            let Some(compaction) = topic.config().compaction else { continue };
            for (number, partition) in topic.opened() {
                if !partition.is_compaction_due(compaction, now_ms) {
                    continue;
                }
                if let Err(error) = partition.compact(compaction, now_ms).await {
                    failed.push((TopicPartition::new(topic.name(), number), error));
                }
            }
        }
        failed
    }

    /// A log of the same journal and namespace for a part of the queue that keeps its own state:
    /// created by the first call with this name, and found again by later ones.
    #[allow(dead_code, reason = "work queues keep their state there")]
    pub(crate) async fn side_log(&self, name: &str) -> Result<Log, TopicError> {
        let (answer, answered) = oneshot::channel();
        let key = Key::SideLog(name.to_owned());
        let plan = move |view: View<'_>| {
            if let Some(number) = view.get(&key).and_then(|value| u32::read(value)) {
                return Ok((Vec::new(), number));
            }
            let mut counters = counters(view);
            let number = counters.next_number;
            counters.next_number = next_number(number, 1)?;
            let changes = vec![Change::put(Key::Counters, &counters), Change::put(key, &number)];
            Ok((changes, number))
        };
        let end = |result: Result<u32, TopicError>| drop(answer.send(result));
        self.shared.writer.change(SMALL_BYTES, plan, end);
        let number = answered.await.map_err(|_| gone())??;
        Ok(self.shared.writer.store().log(u64::from(number) * 2)?)
    }
}

/// Partitions whose logs one commit deletes: four of each at most.
const DELETED_PARTITIONS: usize = 400;

/// A topic to be created, and the stores of its partitions.
type Planned = (TopicEntry, Vec<(u32, JournalPartition)>);

/// A partition of a topic by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, from 0 on.
    pub partition: u32,
}

impl TopicPartition {
    /// A partition of a topic.
    pub fn new(topic: &str, partition: u32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl Shared {
    fn change_topics(&self, change: impl FnOnce(&mut BTreeMap<String, Topic>)) {
        change(&mut self.topics.write());
        self.topics_version.fetch_add(1, Release);
        self.groups.wake();
    }

    /// How many partitions each topic has, if that has changed since `seen`.
    pub(crate) fn partitions_since(&self, seen: &mut u64) -> Option<BTreeMap<Arc<str>, u32>> {
        // Who sees this version sees the topics of it, and those who see later ones come again.
        let version = self.topics_version.load(Acquire);
        if std::mem::replace(seen, version) == version {
            return None;
        }
        let topics = self.topics.read();
        Some(
            topics.iter().map(|(name, topic)| (name.as_str().into(), topic.partitions())).collect(),
        )
    }

    fn plan_topic(
        &self,
        view: View<'_>,
        name: &str,
        config: TopicConfig,
    ) -> Result<(Vec<Change>, Planned), TopicError> {
        let key = Key::Topic(name.to_owned());
        if view.get(&key).is_some() {
            return Err(TopicError::Exists { name: name.to_owned() });
        }
        let (topics, partitions) = view.topics();
        let too_many = |field, limit| Err(TopicError::TooMany { field, limit });
        if topics >= self.config.max_topics {
            return too_many("max_topics", self.config.max_topics);
        }
        if partitions + config.partitions as usize > self.config.max_partitions {
            return too_many("max_partitions", self.config.max_partitions);
        }
        let mut counters = counters(view);
        let numbers = counters.next_number..next_number(counters.next_number, config.partitions)?;
        counters.next_number = numbers.end;
        let store = |number| Ok((number, self.writer.store().partition(number)?));
        let stores = numbers.clone().map(store).collect::<Result<Vec<_>, StoreError>>()?;
        let (max_bytes, max_age_ms) = TopicEntry::limits(config.retention);
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let entry = TopicEntry {
            first_number: numbers.start,
            partitions: config.partitions,
            max_bytes,
            max_age_ms,
            min_lag_ms: config.compaction.map_or(u64::MAX, |at| ms(at.min_lag)),
            min_tombstone_age_ms: config.compaction.map_or(0, |at| ms(at.min_tombstone_age)),
        };
        let changes = vec![Change::put(Key::Counters, &counters), Change::put(key, &entry)];
        Ok((changes, (entry, stores)))
    }
}

pub(crate) fn counters(view: View<'_>) -> Counters {
    let stored = view.get(&Key::Counters).and_then(|value| Counters::read(value));
    stored.unwrap_or(Counters::FIRST)
}

fn next_number(number: u32, count: u32) -> Result<u32, TopicError> {
    let why = || StoreError::Rejected { why: "all numbers of partitions are used up".into() };
    Ok(number.checked_add(count).ok_or_else(why)?)
}

pub(crate) fn gone() -> StoreError {
    StoreError::Failed { why: "the queue is gone".to_owned() }
}

fn name_of(key: &Key) -> String {
    match key {
        Key::Topic(name) => name.clone(),
        _ => String::new(),
    }
}

pub(crate) fn is_topic_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(is_allowed)
        && name != "."
        && name != ".."
}

impl Topic {
    fn open(
        name: String,
        entry: TopicEntry,
        stores: impl Iterator<Item = (u32, Result<JournalPartition, StoreError>)>,
        (identity, config): (&Arc<()>, &QueueConfig),
    ) -> Self {
        let slot = |(number, store): (u32, Result<JournalPartition, StoreError>)| {
            let store = Arc::new(store?);
            let partition = Partition::open(Arc::clone(&store), config.partition.clone())?;
            Ok(Arc::new(Slot { number, partition, store }))
        };
        let first_number = entry.first_number;
        let slots = stores.map(slot).collect();
        let limit = |limit: u64| (limit != u64::MAX).then_some(limit);
        let compaction = limit(entry.min_lag_ms).map(|min_lag| Compaction {
            min_lag: Duration::from_millis(min_lag),
            min_tombstone_age: Duration::from_millis(entry.min_tombstone_age_ms),
        });
        let retention = entry.retention();
        let config = TopicConfig { partitions: entry.partitions, retention, compaction };
        let identity = Arc::clone(identity);
        Self { shared: Arc::new(TopicShared { name, config, first_number, slots, identity }) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What it was created with.
    pub fn config(&self) -> TopicConfig {
        self.shared.config
    }

    /// How many partitions it has.
    pub fn partitions(&self) -> u32 {
        self.shared.config.partitions
    }

    /// One of its partitions, from 0 on.
    ///
    /// # Errors
    /// There is none of this number, or it did not open.
    pub fn partition(&self, partition: u32) -> Result<Partition, TopicError> {
        self.slot(partition).map(|slot| slot.partition.clone())
    }

    pub(crate) fn slot(&self, partition: u32) -> Result<Arc<Slot>, TopicError> {
        match self.shared.slots.get(partition as usize) {
            Some(Ok(slot)) => Ok(Arc::clone(slot)),
            Some(Err(error)) => Err(error.clone().into()),
            None => {
                let (name, partitions) = (self.name().to_owned(), self.partitions());
                Err(TopicError::UnknownPartition { name, partition, partitions })
            }
        }
    }

    fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.shared.slots.iter().filter_map(|slot| slot.as_ref().ok())
    }

    pub(crate) fn opened_slots(&self) -> impl Iterator<Item = (u32, &Arc<Slot>)> {
        (0..).zip(&self.shared.slots).filter_map(|(at, slot)| Some((at, slot.as_ref().ok()?)))
    }

    fn opened(&self) -> impl Iterator<Item = (u32, &Partition)> {
        let slots = (0..).zip(&self.shared.slots);
        slots.filter_map(|(at, slot)| Some((at, &slot.as_ref().ok()?.partition)))
    }

    /// The number of its first partition, which no other topic ever has.
    pub(crate) fn id(&self) -> u32 {
        self.shared.first_number
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topics = self.shared.topics.read();
        f.debug_struct("Queue").field("topics", &topics.keys()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shared } = self;
        f.debug_struct("Topic").field("name", &shared.name).finish_non_exhaustive()
    }
}
