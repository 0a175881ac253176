//! How large the parts of a partition may grow.

use std::time::Duration;

use crate::core::{Limits, codec};
use crate::error::ConfigError;
use crate::format::MAX_BATCH_BYTES;

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
    /// Bytes of batches that wait to be written; then appends are rejected with
    /// [`ProduceError::Busy`](crate::ProduceError::Busy). At least one batch of the largest size
    /// (1,048,572), default 32 MiB.
    pub max_pending_bytes: usize,
    /// Readers that wait for records at once. At least 1, default 10,000.
    pub max_waiters: usize,
    /// Batches between two snapshots of the state, and so the most that opening reads. At least 1,
    /// default 4,096.
    pub snapshot_every: u64,
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
    /// and what is behind it, goes by `max_bytes` only.
    pub max_age: Option<Duration>,
}

/// Limits of a [`Queue`](crate::Queue).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueConfig {
    /// Limits of each partition.
    pub partition: Config,
    /// Topics that there may be. 1 to 10,000, default 1,000.
    pub max_topics: usize,
    /// Partitions that all topics together may have, each of which takes two logs of the journal.
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
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self { partitions: 1, retention: Retention::default() }
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
        ])
    }
}

/// The first rule that does not hold.
pub(crate) fn check(rules: &[(bool, &'static str, &'static str)]) -> Result<(), ConfigError> {
    match rules.iter().find(|(holds, ..)| !holds) {
        Some(&(_, field, rule)) => Err(ConfigError { field, rule }),
        None => Ok(()),
    }
}
