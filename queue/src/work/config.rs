//! How a work queue delivers, and how much it holds.

use std::time::Duration;

use super::core::codec;
use super::core::{Ledger, Limits};
use super::dead;
use crate::error::ConfigError;
use crate::format::MAX_BATCH_BYTES;
use crate::store::BATCH_OVERHEAD_BYTES;

/// Longest time that a work queue counts with.
const MAX_TIME: Duration = Duration::from_secs(366 * 24 * 3_600);

/// How a [`WorkQueue`](super::WorkQueue) delivers, and how much it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkConfig {
    /// How long a record is leased to the worker that receives it, unless it extends the lease.
    /// 1 ms to 366 days, default 30 s.
    pub visibility_timeout: Duration,
    /// Deliveries after which a record becomes a dead letter. 1 to 1,000,000, default 5.
    pub max_deliveries: u32,
    /// Pause after the first failed delivery; it doubles with each further one. Default 1 s.
    pub min_backoff: Duration,
    /// Longest pause after a failed delivery. From `min_backoff` to 366 days, default 5 min.
    pub max_backoff: Duration,
    /// Longest delay of a nack and of a scheduled record; a record that is scheduled for later
    /// becomes a dead letter when it is read. At least `max_backoff`, at most 366 days, default 14
    /// days.
    pub max_delay: Duration,
    /// Whether records of one key are delivered in order, the next one when the one before is
    /// acknowledged or a dead letter. Records without a key have no order. Default true.
    pub ordered_keys: bool,
    /// Records in memory: ready, leased, delayed, or behind another of their key. Behind them the
    /// source is not read. 1 to 8,192, default 4,096.
    pub max_records: usize,
    /// Bytes of the records in memory, besides the last one. At least 1, default 32 MiB.
    pub max_bytes: usize,
    /// Dead letters that are not being redriven. When there are as many, or the oldest of them was
    /// followed by four times as many, further records out of deliveries wait in memory. 1 to
    /// 8,192, default 4,096.
    pub max_dead_letters: usize,
    /// Receivers that wait for records at once. At least 1, default 1,024.
    pub max_waiting: usize,
    /// Writes between two checkpoints, and so the most that opening reads. At least 1, default
    /// 1,024.
    pub checkpoint_every: u64,
}

impl Default for WorkConfig {
    fn default() -> Self {
        Self {
            visibility_timeout: Duration::from_secs(30),
            max_deliveries: 5,
            min_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(300),
            max_delay: Duration::from_secs(14 * 24 * 3_600),
            ordered_keys: true,
            max_records: 4_096,
            max_bytes: 32 << 20,
            max_dead_letters: 4_096,
            max_waiting: 1_024,
            checkpoint_every: 1_024,
        }
    }
}

impl WorkConfig {
    /// Checks each field.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let least = Duration::from_millis(1);
        let rules = [
            (
                (least..=MAX_TIME).contains(&self.visibility_timeout),
                "visibility_timeout",
                "must be between 1 ms and 366 days",
            ),
            (
                (1..=1_000_000).contains(&self.max_deliveries),
                "max_deliveries",
                "must be between 1 and 1000000",
            ),
            (
                self.min_backoff <= self.max_backoff,
                "min_backoff",
                "must not be above `max_backoff`",
            ),
            (self.max_backoff <= self.max_delay, "max_backoff", "must not be above `max_delay`"),
            (self.max_delay <= MAX_TIME, "max_delay", "must be at most 366 days"),
            ((1..=8_192).contains(&self.max_records), "max_records", "must be between 1 and 8192"),
            (self.max_bytes >= 1, "max_bytes", "must be at least 1"),
            (
                (1..=8_192).contains(&self.max_dead_letters),
                "max_dead_letters",
                "must be between 1 and 8192",
            ),
            (self.max_waiting >= 1, "max_waiting", "must be at least 1"),
            (self.checkpoint_every >= 1, "checkpoint_every", "must be at least 1"),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, field, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }

    /// The largest checkpoint of a work queue that begins with `ledger`, which may come from a
    /// configuration with higher limits.
    fn checkpoint_bytes(&self, ledger: &Ledger) -> usize {
        let max_records = self.max_records + ledger.beyond(self.max_records);
        // Redriven dead letters count among the records, and are listed again when they die.
        let redriven = ledger.dead.values().filter(|dead| dead.is_redriven).count();
        let max_dead = self.max_dead_letters + self.max_records.max(redriven);
        codec::max_checkpoint_bytes(max_records, max_dead.max(ledger.dead.len()))
    }

    /// The limits of the core over `ledger` and a store that takes writes of `max_write_bytes`.
    ///
    /// # Errors
    /// A checkpoint takes more than half of a write.
    pub(super) fn limits(
        &self,
        max_write_bytes: usize,
        ledger: &Ledger,
    ) -> Result<Limits, ConfigError> {
        // A write has a checkpoint, events, and dead letters.
        let checkpoint = self.checkpoint_bytes(ledger) + BATCH_OVERHEAD_BYTES;
        let left = max_write_bytes.saturating_sub(checkpoint);
        if left < checkpoint {
            let (field, rule) = (
                "max_records",
                "must be so low, with max_dead_letters, that a checkpoint (65 bytes for each \
                 record, 29 for each dead letter) takes at most half of a write of the store",
            );
            return Err(ConfigError { field, rule });
        }
        let max_events = (left / 4 / codec::EVENT_BYTES).clamp(2, 16_384);
        let events = codec::HEAD_BYTES + max_events * codec::EVENT_BYTES + BATCH_OVERHEAD_BYTES;
        let max_dead_bytes = left.saturating_sub(events);
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Ok(Limits {
            max_deliveries: self.max_deliveries,
            min_backoff: nanos(self.min_backoff),
            max_backoff: nanos(self.max_backoff),
            max_delay: nanos(self.max_delay),
            max_records: self.max_records,
            max_bytes: self.max_bytes,
            max_dead: self.max_dead_letters,
            max_waiting: self.max_waiting,
            checkpoint_every: self.checkpoint_every,
            checkpoint_bytes: 4 * max_write_bytes as u64,
            max_events,
            // What does not fit into a batch of its own cannot be copied.
            max_dead_bytes: max_dead_bytes.min(MAX_BATCH_BYTES + dead::OVERHEAD_BYTES),
        })
    }
}
