//! A leased worker number, whose ceiling is raised in the background.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::numbers::{WorkerError, WorkerGrant, WorkerNumbers};
use super::window::{Ceiling, WorkerWindow};
use super::{MAX_TIME_MS, NS_PER_MS};
use crate::clock::Clock;
use crate::error::ConfigError;

/// A worker number of this process. Its ceiling is raised ahead of the clock by a task, until this
/// value is dropped or the number is lost. After that, generators go on up to the ceiling at most.
///
/// Dropping it gives nothing back: the number is free again when the place that it was leased from
/// says so. [`release`](Self::release) gives it back now.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use voussoir_lock::ids::{MemoryNumbers, Snowflake, SnowflakeConfig, WorkerLease};
/// use voussoir_lock::{Clock, WallClock};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layout = SnowflakeConfig::default();
/// let numbers = Arc::new(MemoryNumbers::new());
/// let (clock, ahead) = (Arc::new(WallClock), Duration::from_secs(3));
/// let (lease, window) = WorkerLease::acquire(numbers, layout.workers(), ahead, clock).await?;
/// let ids = Snowflake::new(layout, window)?;
/// println!("{}", ids.next(WallClock.now())?);
/// lease.release().await?;
/// assert!(ids.next(WallClock.now()).is_err());
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it ends the lease"]
pub struct WorkerLease {
    numbers: Arc<dyn WorkerNumbers>,
    grant: WorkerGrant,
    ceiling: Ceiling,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for WorkerLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerLease").field("grant", &self.grant).finish_non_exhaustive()
    }
}

impl WorkerLease {
    /// Leases a number below `workers` and makes the first ceiling durable. `clock` is the time of
    /// day, in ns since the UNIX epoch. The ceiling is kept between two thirds of `ahead` and
    /// `ahead` before the clock: 10 ms to 1 h, 3 s is a good value. The next holder of the number
    /// waits for up to `ahead` after this one ends.
    ///
    /// The window is for one generator.
    ///
    /// # Errors
    /// [`LeaseError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped future may have taken a number; see [`WorkerNumbers::acquire`].
    pub async fn acquire(
        numbers: Arc<dyn WorkerNumbers>,
        workers: u32,
        ahead: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, WorkerWindow), LeaseError> {
        let range = Duration::from_millis(10)..=Duration::from_secs(3600);
        let rule = "must be from 10 ms to 1 h";
        ConfigError::first_of(&[("ahead", range.contains(&ahead), rule)])?;
        let grant = numbers.acquire(workers).await?;
        let (window, ceiling) = WorkerWindow::new(&grant);
        let raiser = Raiser { numbers: Arc::clone(&numbers), grant, ceiling, ahead, clock };
        if let Err(error) = raiser.raise().await {
            // A ceiling that was raised all the same stays: the next holder begins at it. If the
            // number cannot be given back either, it is taken until its store forgets it.
            drop(numbers.release(grant.worker, grant.epoch).await);
            return Err(error.into());
        }
        let ceiling = raiser.ceiling.clone();
        let task = tokio::spawn(raiser.run());
        Ok((Self { numbers, grant, ceiling, task }, window))
    }

    /// The number and its epoch.
    pub fn grant(&self) -> WorkerGrant {
        self.grant
    }

    /// Ends the generator and gives the number back.
    ///
    /// # Errors
    /// [`WorkerError`]: the number was lost before, or may not have been given back. No more ids
    /// are made either way.
    ///
    /// # Cancel safety
    /// Once polled, no more ids are made. A dropped future may have given the number back.
    pub async fn release(self) -> Result<(), WorkerError> {
        self.task.abort();
        self.ceiling.close();
        self.numbers.release(self.grant.worker, self.grant.epoch).await
    }
}

impl Drop for WorkerLease {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why there is no lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The time ahead is out of range. Nothing was leased.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no number, or its ceiling could not be raised.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// Raises the ceiling of one number.
struct Raiser {
    numbers: Arc<dyn WorkerNumbers>,
    grant: WorkerGrant,
    ceiling: Ceiling,
    ahead: Duration,
    clock: Arc<dyn Clock>,
}

impl Raiser {
    /// Makes a ceiling ahead of the clock durable, and then uses it.
    async fn raise(&self) -> Result<(), WorkerError> {
        let now_ms = self.clock.now() / NS_PER_MS;
        // A clock behind an earlier holder's ceiling reaches into no time of its own yet; the
        // ceiling is raised from where ids begin.
        let from_ms = now_ms.max(self.grant.ceiling_ms);
        let ceiling_ms = from_ms.saturating_add(self.ahead.as_millis() as u64).min(MAX_TIME_MS);
        let WorkerGrant { worker, epoch, .. } = self.grant;
        self.numbers.raise(worker, epoch, ceiling_ms).await?;
        self.ceiling.raise(ceiling_ms);
        Ok(())
    }

    /// Ends when the number is lost; aborted by the lease.
    async fn run(self) {
        let pause = self.ahead / 3;
        loop {
            sleep(pause).await;
            // A call without an answer is given up, so that the next one gets its chance.
            match timeout(self.ahead, self.raise()).await {
                Ok(Ok(())) => {}
                Ok(Err(WorkerError::Lost)) => {
                    tracing::info!(
                        target: "voussoir::lock",
                        worker = self.grant.worker,
                        "the worker number belongs to another process now"
                    );
                    return self.ceiling.close();
                }
                Ok(Err(error)) => {
                    let worker = self.grant.worker;
                    tracing::debug!(target: "voussoir::lock", worker, %error, "ceiling not raised");
                }
                Err(_elapsed) => {}
            }
        }
    }
}
