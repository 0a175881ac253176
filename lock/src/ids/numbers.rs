//! The seam to the place where worker numbers are leased from.

use async_trait::async_trait;

/// Where worker numbers are leased from. What it answers is durable and the same for all
/// processes.
///
/// It keeps for each number an epoch, which grows whenever the number is granted, and a ceiling,
/// which never falls. It may grant a number at any time, also one that a process still uses: ids
/// stay different, because the new holder begins at the ceiling, and the ceiling can no longer be
/// raised in the old epoch. Granting only numbers that were given back or have not been raised for
/// long keeps processes from losing theirs.
#[async_trait]
pub trait WorkerNumbers: Send + Sync {
    /// Grants a number below `workers` in a new epoch.
    ///
    /// # Errors
    /// [`WorkerError`].
    ///
    /// # Cancel safety
    /// A dropped future may have taken a number, which counts as used until it is free again by
    /// the rule of the implementation.
    async fn acquire(&self, workers: u32) -> Result<WorkerGrant, WorkerError>;

    /// Raises the ceiling of a number in its epoch, durably. A lower ceiling than the one that
    /// stands is accepted and changes nothing.
    ///
    /// # Errors
    /// [`WorkerError::Lost`] when the number was granted again or given back.
    ///
    /// # Cancel safety
    /// A dropped future may have raised the ceiling.
    async fn raise(&self, worker: u32, epoch: u64, ceiling_ms: u64) -> Result<(), WorkerError>;

    /// Gives a number back. Epoch and ceiling stay.
    ///
    /// # Errors
    /// [`WorkerError::Lost`] when the number was granted again or given back.
    ///
    /// # Cancel safety
    /// A dropped future may have given the number back.
    async fn release(&self, worker: u32, epoch: u64) -> Result<(), WorkerError>;
}

/// A worker number in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerGrant {
    /// The number.
    pub worker: u32,
    /// Grows whenever the number is granted.
    pub epoch: u64,
    /// The ceiling of all earlier holders, in ms since the UNIX epoch: ids begin here.
    pub ceiling_ms: u64,
}

impl WorkerGrant {
    /// A grant, for implementations of [`WorkerNumbers`].
    pub fn new(worker: u32, epoch: u64, ceiling_ms: u64) -> Self {
        Self { worker, epoch, ceiling_ms }
    }
}

/// Why there is no worker number, or no higher ceiling.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// All numbers are in use. Retry when a process has given its number back.
    #[error("all worker numbers are in use")]
    AllTaken,
    /// The number belongs to another process, or was given back. Nothing was changed. Final.
    #[error("the worker number belongs to another process")]
    Lost,
    /// There was no answer. The call may have had its effect; retry freely.
    #[error("worker numbers are not available: {0}")]
    Unavailable(String),
}
