//! How large the parts of a partition may grow.

use std::time::Duration;

use crate::core::entry::MAX_NAME_BYTES;
use crate::core::group::Assignor;
use crate::core::{Limits, codec};
use crate::error::ConfigError;
use crate::format::{Compression, Header, MAX_BATCH_BYTES};

/// Limits of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Idempotent producers that are remembered. When there are more, the one that has been silent
    /// for longest is forgotten, and rejected if it sends again. 1 to 8,192, default 1,000.
    pub max_producers: usize,
    /// Entries of the sparse index, each 24 bytes. 2 to 8,192, default 1,024.
    pub max_index_entries: usize,
    /// Bytes of the latest batches that are kept for readers at the end of the log. 0 for none,
    /// default 1 MiB.
    pub tail_cache_bytes: usize,
    /// Bytes of batches that wait to be written, with 512 for the place and the answer of each;
    /// then appends are rejected with [`ProduceError::Busy`](crate::ProduceError::Busy). At least
    /// one batch of the largest size (1,048,572), default 32 MiB.
    pub max_pending_bytes: usize,
    /// Readers that wait for records at once. At least 1, default 10,000.
    pub max_waiters: usize,
    /// Batches between two snapshots of the state, and so the most that opening reads. At least 1,
    /// default 4,096.
    pub snapshot_every: u64,
    /// Bytes of keys, with 64 for each, that a compaction has in memory. When they do not fit, the
    /// log is copied several times. Any number: one key is taken in any case. Default 16 MiB.
    pub max_compaction_map_bytes: usize,
    /// Bytes per second that a compaction reads and writes. At least 1, default 32 MiB.
    pub max_compaction_bytes_per_second: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_producers: 1_000,
            max_index_entries: 1_024,
            tail_cache_bytes: 1 << 20,
            max_pending_bytes: 32 << 20,
            max_waiters: 10_000,
            snapshot_every: 4_096,
            max_compaction_map_bytes: 16 << 20,
            max_compaction_bytes_per_second: 32 << 20,
        }
    }
}

impl Config {
    /// Checks each field.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rules = [
            (
                (1..=8_192).contains(&self.max_producers),
                "max_producers",
                "must be between 1 and 8192",
            ),
            (
                (2..=8_192).contains(&self.max_index_entries),
                "max_index_entries",
                "must be between 2 and 8192",
            ),
            (
                self.max_pending_bytes >= MAX_BATCH_BYTES,
                "max_pending_bytes",
                "must be at least 1048572, the size of the largest batch",
            ),
            (self.max_waiters >= 1, "max_waiters", "must be at least 1"),
            (self.snapshot_every >= 1, "snapshot_every", "must be at least 1"),
            (
                self.max_compaction_bytes_per_second >= 1,
                "max_compaction_bytes_per_second",
                "must be at least 1",
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, field, rule)) => Err(ConfigError { field, rule }),
            // A snapshot is one record of a log, so it must fit where the largest batch does.
            None => {
                debug_assert!(codec::max_bytes(self.limits()) <= MAX_BATCH_BYTES);
                Ok(())
            }
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        let Self { max_producers, max_index_entries, .. } = *self;
        Limits { max_producers, max_index_entries }
    }
}

/// How much of a partition is kept. Each limit by itself lets batches go; without any, all are
/// kept. What groups have read is no limit of time or size: pass the smallest offset that a group
/// still needs to [`Partition::release_before`](crate::Partition::release_before).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Bytes that are kept at least. What the store gives back as a whole (a part of a journal
    /// segment) goes when the rest still has this many.
    pub max_bytes: Option<u64>,
    /// Batches whose records are all older go. As in Kafka, a batch of which a later record is
    /// younger goes only with those before it. A record without a timestamp has no age: its batch,
    /// and what is behind it, goes by `max_bytes` only. A timestamp that is further in the future
    /// than `max_age`, of a clock that is wrong, is none: the batch goes with the next one behind
    /// it that is too old. All that goes is read once before it does.
    pub max_age: Option<Duration>,
}

/// What a topic does about records that later ones of the same key replace: they are removed, and
/// the last record of each key stays. One with a key and no value is a tombstone: it removes the
/// key, and goes itself some time later.
///
/// As Kafka's `cleanup.policy=compact`; together with a [`Retention`], `compact,delete`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compaction {
    /// How old a record is at least before it may be removed, by its timestamp. A record that is at
    /// least this far in the future, or has no timestamp, counts as old. Default 0.
    pub min_lag: Duration,
    /// How long a tombstone stays once it has been compacted, so that whoever reads the topic from
    /// its beginning within this time sees it. Default 1 day, as Kafka's `delete.retention.ms`.
    pub min_tombstone_age: Duration,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { min_lag: Duration::ZERO, min_tombstone_age: Duration::from_secs(86_400) }
    }
}

impl Compaction {
    pub(crate) fn min_tombstone_age_ms(&self) -> i64 {
        ms(self.min_tombstone_age)
    }

    /// Whether a batch may be compacted at `now_ms`. One of a transaction may not: the log does not
    /// say what became of it.
    pub(crate) fn takes(&self, header: &Header, now_ms: i64) -> bool {
        let (timestamp, lag) = (header.max_timestamp, ms(self.min_lag));
        let from = now_ms.saturating_sub(lag);
        let is_young = timestamp >= 0 && timestamp > from && timestamp < now_ms.saturating_add(lag);
        !is_young && !header.is_transactional() && !header.is_control()
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Limits of a [`Queue`](crate::Queue).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueConfig {
    /// Limits of each partition.
    pub partition: Config,
    /// Topics that there may be. 1 to 10,000, default 1,000.
    pub max_topics: usize,
    /// Partitions that all topics together may have. Each takes two logs of the journal, one more
    /// when it has been compacted, and another one while it is.
    /// 1 to 32,000, default 10,000.
    pub max_partitions: usize,
    /// Consumer groups that have members at the same time. At least 1, default 10,000.
    pub max_groups: usize,
    /// Members of a group. 1 to 10,000, default 1,000.
    pub max_members: usize,
    /// Commits (of offsets, of transactions, of new topics) that wait to be written; beyond it they
    /// are rejected. At least 1, default 10,000.
    pub max_waiting_commits: usize,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            partition: Config::default(),
            max_topics: 1_000,
            max_partitions: 10_000,
            max_groups: 10_000,
            max_members: 1_000,
            max_waiting_commits: 10_000,
        }
    }
}

impl QueueConfig {
    /// Checks each field.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.partition.validate()?;
        check(&[
            ((1..=10_000).contains(&self.max_topics), "max_topics", "must be between 1 and 10000"),
            (
                (1..=32_000).contains(&self.max_partitions),
                "max_partitions",
                "must be between 1 and 32000",
            ),
            (self.max_groups >= 1, "max_groups", "must be at least 1"),
            (
                (1..=10_000).contains(&self.max_members),
                "max_members",
                "must be between 1 and 10000",
            ),
            (self.max_waiting_commits >= 1, "max_waiting_commits", "must be at least 1"),
        ])
    }
}

/// What a topic is created with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicConfig {
    /// Partitions. 1 to 10,000, default 1. It stays as it is.
    pub partitions: u32,
    /// What [`Queue::apply_retention`](crate::Queue::apply_retention) keeps; all by default.
    pub retention: Retention,
    /// What [`Queue::apply_compaction`](crate::Queue::apply_compaction) removes; nothing by
    /// default.
    pub compaction: Option<Compaction>,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self { partitions: 1, retention: Retention::default(), compaction: None }
    }
}

impl TopicConfig {
    /// A topic of so many partitions, which keeps all records.
    pub fn partitions(partitions: u32) -> Self {
        Self { partitions, ..Self::default() }
    }

    /// Checks each field.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let age_fits = self.retention.max_age.is_none_or(|age| age.as_millis() < u64::MAX.into());
        check(&[
            ((1..=10_000).contains(&self.partitions), "partitions", "must be between 1 and 10000"),
            (
                age_fits && self.retention.max_bytes != Some(u64::MAX),
                "retention",
                "must be below 2^64 - 1",
            ),
            (
                self.compaction.is_none_or(|compaction| {
                    let times = [compaction.min_lag, compaction.min_tombstone_age];
                    times.iter().all(|time| time.as_millis() < u64::MAX.into())
                }),
                "compaction",
                "must be below 2^64 - 1 ms",
            ),
        ])
    }
}

/// What a [`Producer`](crate::Producer) does with the records that it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerConfig {
    /// Bytes of records after which a batch is full, before compression. Batches are smaller while
    /// records come slowly: none waits to become full. 1 to 1,048,572, default 256 KiB. A larger
    /// record is a batch by itself.
    pub max_batch_bytes: usize,
    /// Bytes of records that are on their way, with 512 for the place and the answer of each; more
    /// wait in [`enqueue`](crate::Producer::enqueue). 1 to 2^29 (512 MiB), default 32 MiB. What the
    /// journal has no room for (its `max_pending_bytes`, of all its users together) waits within
    /// this bound.
    pub max_in_flight_bytes: usize,
    /// How long a record may take from the call to its answer, waiting for room included. `None`
    /// waits until the journal answers. Above zero, default 2 minutes, as in Kafka.
    pub delivery_timeout: Option<Duration>,
    /// The codec of the batches. Default none.
    pub compression: Compression,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            max_batch_bytes: 256 << 10,
            max_in_flight_bytes: 32 << 20,
            delivery_timeout: Some(Duration::from_secs(120)),
            compression: Compression::None,
        }
    }
}

impl ProducerConfig {
    /// Checks each field.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check(&[
            (
                (1..=MAX_BATCH_BYTES).contains(&self.max_batch_bytes),
                "max_batch_bytes",
                "must be between 1 and 1048572",
            ),
            (
                (1..=1 << 29).contains(&self.max_in_flight_bytes),
                "max_in_flight_bytes",
                "must be between 1 and 536870912",
            ),
            (
                self.delivery_timeout != Some(Duration::ZERO),
                "delivery_timeout",
                "must be above zero",
            ),
            (self.compression.is_available(), "compression", "must be a codec whose feature is on"),
        ])
    }
}

/// What a consumer promises about records that were being processed when something failed. The
/// promise is about offsets: it holds for what the caller does with the records between two polls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Guarantee {
    /// A poll stores the offsets of the records before it returns them. What was not processed when
    /// the process died is not read again.
    AtMostOnce,
    /// A poll stores the offsets of the records that the poll before has returned: they have been
    /// processed. What was being processed when the process died is read again.
    #[default]
    AtLeastOnce,
    /// Offsets are stored with the results, in one transaction
    /// ([`Transaction::offsets`](crate::Transaction::offsets)). Results that are records of this
    /// queue are there exactly once; what else the caller does is done at least once.
    ExactlyOnce,
    /// Offsets are stored when the caller says so.
    Manual,
}

/// Where a consumer begins in a partition for which its group has stored no offset, or one that can
/// no longer be read. A member of a group that begins at the end stores where that was before it
/// returns records, so that whoever reads the partition next passes over nothing; and a group whose
/// stored offset was released goes on with the first record that is left, also if it began there.
/// The end is that at which a member is given the partition: of a topic that is created while the
/// group lives, the records before that are passed over with `Latest`, as in Kafka. A group that
/// must have them begins with `Earliest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Start {
    /// At the first record that is kept.
    #[default]
    Earliest,
    /// Behind the last record.
    Latest,
    /// Nowhere: it is an error.
    Stored,
}

/// What a [`Consumer`](crate::Consumer) reads, and how. Members of a group have the same assignor
/// and time-outs: those of the first one count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerConfig {
    /// The group, 1 to 249 bytes. Without one no offsets are stored. Default none.
    pub group: Option<String>,
    /// Topics to subscribe to, which share their partitions among the members of the group. Empty
    /// for a consumer that is [assigned](crate::Consumer::assign) its partitions by the caller.
    /// They need not exist yet. At most 1,000.
    pub topics: Vec<String>,
    /// A static member: its name in the group, 1 to 249 bytes. It does not leave when it is
    /// dropped, and one of the same name that comes within `session_timeout` takes its place and
    /// its partitions; the one before is told ([`ConsumeError::Replaced`]). Default none.
    ///
    /// [`ConsumeError::Replaced`]: crate::ConsumeError::Replaced
    pub instance: Option<String>,
    /// How partitions are divided. Default [`Assignor::CooperativeSticky`].
    pub assignor: Assignor,
    /// When offsets are stored. Default [`Guarantee::AtLeastOnce`].
    pub guarantee: Guarantee,
    /// Where to begin without an offset. Default [`Start::Earliest`].
    pub start: Start,
    /// A member that is not polled for this long is removed. It must cover what the caller does
    /// between two polls. 10 ms to 1 day, default 5 minutes, as Kafka's `max.poll.interval.ms`.
    pub session_timeout: Duration,
    /// How long a rebalance waits for members to be polled. 10 ms to 1 day, default 1 minute.
    pub rebalance_timeout: Duration,
    /// Records that a poll returns at most. At least 1, default 500.
    pub max_poll_records: usize,
    /// Bytes of batches that are read from a partition at once; one batch at least. Default 1 MiB.
    pub fetch_bytes: usize,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            group: None,
            topics: Vec::new(),
            instance: None,
            assignor: Assignor::default(),
            guarantee: Guarantee::default(),
            start: Start::default(),
            session_timeout: Duration::from_secs(300),
            rebalance_timeout: Duration::from_secs(60),
            max_poll_records: 500,
            fetch_bytes: 1 << 20,
        }
    }
}

impl ConsumerConfig {
    /// A member of `group` that subscribes to `topics`.
    pub fn group<T: Into<String>>(group: &str, topics: impl IntoIterator<Item = T>) -> Self {
        let topics = topics.into_iter().map(Into::into).collect();
        Self { group: Some(group.to_owned()), topics, ..Self::default() }
    }

    /// Checks each field.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(group) = &self.group {
            check_name("group", group)?;
        }
        if let Some(instance) = &self.instance {
            check_name("instance", instance)?;
        }
        let times = Duration::from_millis(10)..=Duration::from_secs(86_400);
        let needs_group = matches!(self.guarantee, Guarantee::AtMostOnce | Guarantee::ExactlyOnce);
        check(&[
            (
                self.topics.is_empty() || self.group.is_some(),
                "topics",
                "must be empty without a group",
            ),
            (self.topics.len() <= 1_000, "topics", "must be at most 1000"),
            (
                !needs_group || self.group.is_some(),
                "guarantee",
                "must be `AtLeastOnce` or `Manual` without a group",
            ),
            (
                times.contains(&self.session_timeout),
                "session_timeout",
                "must be between 10 ms and 1 day",
            ),
            (
                times.contains(&self.rebalance_timeout),
                "rebalance_timeout",
                "must be between 10 ms and 1 day",
            ),
            (self.max_poll_records >= 1, "max_poll_records", "must be at least 1"),
        ])
    }
}

/// The rule of names of groups and transactional ids.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), ConfigError> {
    check(&[((1..=MAX_NAME_BYTES).contains(&name.len()), field, "must be 1 to 249 bytes")])
}

/// The first rule that does not hold.
pub(crate) fn check(rules: &[(bool, &'static str, &'static str)]) -> Result<(), ConfigError> {
    match rules.iter().find(|(holds, ..)| !holds) {
        Some(&(_, field, rule)) => Err(ConfigError { field, rule }),
        None => Ok(()),
    }
}
