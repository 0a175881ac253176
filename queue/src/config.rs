//! How large the parts of a partition may grow.

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
