//! A bound on the calls that run at once.

use std::sync::Arc;
use std::time::Duration;

use crate::config::nanos;
use crate::core::{Patience, QueueOrder};
use crate::error::{ConfigError, GateError};
use crate::gate::{Gate, GatePermit, GateStats};

/// The queue of a bulkhead, or of an adaptive limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueConfig {
    /// Calls that may wait for a permit. 0 to 1,000,000, default 0: a call that finds no permit is
    /// rejected.
    pub max_len: usize,
    /// Who is served next. Default: adaptive.
    pub order: QueueOrder,
    /// How long a call may wait. Above 0, default 100 ms.
    pub max_wait: Duration,
    /// How long it may wait once the queue has not been empty for `max_wait`: controlled delay.
    /// At most `max_wait`, default 5 ms.
    pub max_standing_wait: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            max_len: 0,
            order: QueueOrder::Adaptive,
            max_wait: Duration::from_millis(100),
            max_standing_wait: Duration::from_millis(5),
        }
    }
}

impl QueueConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.max_len > 1_000_000 {
            return Err(ConfigError::new("max_len", "must be 0 to 1000000"));
        }
        if self.max_wait.is_zero() || self.max_standing_wait.is_zero() {
            return Err(ConfigError::new("max_wait", "must be above 0"));
        }
        if self.max_standing_wait > self.max_wait {
            return Err(ConfigError::new("max_standing_wait", "must not be above `max_wait`"));
        }
        Ok(())
    }

    pub(crate) fn gate(&self, limit: usize) -> Arc<Gate> {
        let patience = Patience {
            usual: nanos(self.max_wait),
            standing: nanos(self.max_standing_wait),
            standing_after: nanos(self.max_wait),
        };
        Gate::new(limit, self.max_len, self.order, patience)
    }
}

/// Bounds the calls that run at once, so that one slow dependency cannot take every task, socket
/// and byte of the process. Cloning shares it.
///
/// # Example
/// ```
/// use voussoir_breaker::{Bulkhead, QueueConfig};
///
/// let bulkhead = Bulkhead::new(1, QueueConfig::default())?;
/// let place = bulkhead.try_acquire()?;
/// assert!(bulkhead.try_acquire().is_err());
/// drop(place);
/// assert!(bulkhead.try_acquire().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bulkhead {
    gate: Arc<Gate>,
}

/// The permit to run one call. Given back when dropped.
#[derive(Debug)]
#[must_use = "the permit is given back when this is dropped"]
pub struct BulkheadPermit {
    _gate: GatePermit,
}

impl Bulkhead {
    /// `limit` is the number of concurrent calls, 0 to 1,000,000. With 0 the bulkhead is closed:
    /// calls are rejected, or wait in the queue up to their time limit, until
    /// [`set_limit`](Self::set_limit) opens it.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(limit: usize, queue: QueueConfig) -> Result<Self, ConfigError> {
        check_limit(limit)?;
        queue.validate()?;
        Ok(Self { gate: queue.gate(limit) })
    }

    /// A permit, if one is free and no caller waits.
    ///
    /// # Errors
    /// There is none.
    pub fn try_acquire(&self) -> Result<BulkheadPermit, GateError> {
        Ok(BulkheadPermit { _gate: self.gate.try_enter()? })
    }

    /// A permit, at once or after a wait in the queue.
    ///
    /// # Errors
    /// The queue is full, or the wait was too long.
    ///
    /// # Cancel safety
    /// Dropping it leaves the queue; a place granted at that moment goes to the next in it.
    pub async fn acquire(&self) -> Result<BulkheadPermit, GateError> {
        Ok(BulkheadPermit { _gate: self.gate.enter().await? })
    }

    /// Changes the limit, 0 to 1,000,000. A lower limit takes effect as calls end; 0 closes the
    /// bulkhead.
    ///
    /// # Errors
    /// A limit out of range; nothing was changed.
    pub fn set_limit(&self, limit: usize) -> Result<(), ConfigError> {
        check_limit(limit)?;
        self.gate.set_limit(limit);
        Ok(())
    }

    /// Figures at this moment.
    pub fn stats(&self) -> GateStats {
        self.gate.stats()
    }
}

fn check_limit(limit: usize) -> Result<(), ConfigError> {
    if limit <= 1_000_000 {
        return Ok(());
    }
    Err(ConfigError::new("limit", "must be 0 to 1000000"))
}
