//! Publish and subscribe: every subscriber gets every record, and a slow one holds up nobody.

use std::time::Duration;

use crate::error::FetchError;
use crate::partition::{Fetched, Partition, Seek};

/// What becomes of a subscriber that is more than its limit behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlowPolicy {
    /// It goes on with the latest records within its limit; those between are counted as skipped.
    #[default]
    Skip,
    /// It gets [`SubscribeError::TooSlow`] from then on.
    Disconnect,
}

/// Why a subscriber gets no more records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The subscriber was too slow and has been disconnected ([`SlowPolicy::Disconnect`]).
    #[error("{lag} records behind, the limit is {limit}")]
    TooSlow {
        /// Records that it was behind.
        lag: u64,
        /// The limit.
        limit: u64,
    },
    /// The partition cannot be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// A reader of all records of a partition, which keeps nothing in memory: what it has not read is
/// in the log. Each has its own pace, and a limit on how far it may be behind.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use voussoir_queue::broadcast::{SlowPolicy, Subscription};
/// use voussoir_queue::store::MemoryPartition;
/// use voussoir_queue::{BatchBuilder, Config, Durability, Partition, Record, Seek};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let news = Partition::open(MemoryPartition::new(1 << 20), Config::default())?;
/// let mut reader = Subscription::new(&news, Seek::Latest, 1_000, SlowPolicy::Skip)?;
/// let mut batch = BatchBuilder::new();
/// batch.push(&Record::new("hello"))?;
/// news.append(batch.finish()?, Durability::Synced).await?;
/// let fetched = reader.next(1 << 20, Duration::from_secs(1)).await?;
/// assert_eq!(fetched.batches.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Subscription {
    partition: Partition,
    offset: u64,
    max_lag: u64,
    policy: SlowPolicy,
    skipped: u64,
    error: Option<SubscribeError>,
}

impl Subscription {
    /// Subscribes from `from` on, to be at most `max_lag` records behind, at least 1.
    ///
    /// # Errors
    /// For a timestamp, the partition cannot be read.
    pub fn new(
        partition: &Partition,
        from: Seek,
        max_lag: u64,
        policy: SlowPolicy,
    ) -> Result<Self, FetchError> {
        let (partition, offset) = (partition.clone(), partition.seek(from)?);
        let max_lag = max_lag.max(1);
        Ok(Self { partition, offset, max_lag, policy, skipped: 0, error: None })
    }

    /// The next batches, about `max_bytes` of them; waits up to `max_wait` for one, and returns
    /// none when none came.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    ///
    /// # Cancel safety
    /// Safe: no record is passed over before it was returned.
    pub async fn next(
        &mut self,
        max_bytes: usize,
        max_wait: Duration,
    ) -> Result<Fetched, SubscribeError> {
        self.catch_up()?;
        match self.partition.fetch_wait(self.offset, max_bytes, max_wait).await {
            Ok(fetched) => {
                self.offset = fetched.next_offset;
                Ok(fetched)
            }
            Err(FetchError::OutOfRange { start, .. }) if start > self.offset => {
                // Released since `catch_up` looked.
                self.catch_up()?;
                let fetched = self.partition.fetch(self.offset, max_bytes)?;
                self.offset = fetched.next_offset;
                Ok(fetched)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Applies the policy when the subscriber is too far behind, or its records were released.
    fn catch_up(&mut self) -> Result<(), SubscribeError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let offsets = self.partition.offsets();
        let oldest = offsets.start.max(offsets.end.saturating_sub(self.max_lag));
        if self.offset >= oldest {
            return Ok(());
        }
        match self.policy {
            SlowPolicy::Skip => {
                self.skipped += oldest - self.offset;
                self.offset = oldest;
                Ok(())
            }
            SlowPolicy::Disconnect => {
                let (lag, limit) = (offsets.end - self.offset, self.max_lag);
                let error = SubscribeError::TooSlow { lag, limit };
                self.error = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Offset of the next record.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Records that were skipped because the subscriber was too slow.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}
