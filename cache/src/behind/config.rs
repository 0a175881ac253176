//! What can be tuned about write-behind, with units, defaults and ranges.

use std::time::Duration;

use crate::config::{LIFETIME_MAX, nanos};
use crate::core::backlog::Limits;
use crate::error::ConfigError;

/// How writes are kept and flushed. Start from [`Default`] and change fields; checked when the
/// [`WriteBehind`](crate::WriteBehind) is made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteBehindConfig {
    /// Keys with a value that the sink does not have yet. At the limit a write of another key waits
    /// until something has been flushed. At least 1. Default 100,000.
    pub max_keys: usize,
    /// Bytes of their keys and values, as encoded for the journal, or as the closure of
    /// [`WriteBehind::in_memory`](crate::WriteBehind::in_memory) says. At the limit a write waits
    /// until something has been flushed; an empty backlog takes a write of any size that the
    /// journal takes, 1 MiB at most. Writes that wait go on in no order: small ones that keep
    /// coming may keep a large one waiting for as long as they do. At least 1. Default 64 MiB.
    pub max_bytes: u64,
    /// What becomes of a write for which there is no room. Default [`OnFull::Wait`].
    pub on_full: OnFull,
    /// Writes in one call of the sink. At least 1. Default 256.
    pub max_batch: usize,
    /// How long a value waits for newer ones of its key before it is flushed. Up to 100 years.
    /// Default 10 ms.
    pub flush_after: Duration,
    /// The longest that one call of the sink may take; it is then dropped and repeated. A sink
    /// whose call may still be carried out after that must refuse older values, see
    /// [`Sink::write`](crate::Sink::write). At least 1 ms. Default 30 s.
    pub sink_timeout: Duration,
    /// The pause after the first failure, doubled with each one that follows; each pause is
    /// shortened by up to half at random. At least 1 ms. Default 50 ms.
    pub min_backoff: Duration,
    /// The longest pause. At least `min_backoff`. Default 10 s.
    pub max_backoff: Duration,
    /// Writes that the sink has rejected for good and that are kept to be looked at. At the limit
    /// further ones stay in the backlog and are tried again. Default 1,024.
    pub max_rejected: usize,
    /// Seeds the random part of the pauses. `None` (the default) draws one.
    pub seed: Option<u64>,
}

/// What becomes of a write for which the backlog has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnFull {
    /// It waits until something has been flushed.
    Wait,
    /// It fails with [`WriteError::Full`](crate::WriteError::Full) at once.
    Fail,
}

impl Default for WriteBehindConfig {
    fn default() -> Self {
        Self {
            max_keys: 100_000,
            max_bytes: 64 << 20,
            on_full: OnFull::Wait,
            max_batch: 256,
            flush_after: Duration::from_millis(10),
            sink_timeout: Duration::from_secs(30),
            min_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(10),
            max_rejected: 1024,
            seed: None,
        }
    }
}

impl WriteBehindConfig {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        const MILLISECOND: Duration = Duration::from_millis(1);
        let period = |period: Duration| (MILLISECOND..=LIFETIME_MAX).contains(&period);
        let rules = [
            ("max_keys", self.max_keys > 0, "must be at least 1"),
            ("max_bytes", self.max_bytes > 0, "must be at least 1"),
            ("max_batch", self.max_batch > 0, "must be at least 1"),
            ("flush_after", self.flush_after <= LIFETIME_MAX, "must be at most 100 years"),
            ("sink_timeout", period(self.sink_timeout), "must be from 1 ms to 100 years"),
            ("min_backoff", period(self.min_backoff), "must be from 1 ms to 100 years"),
            (
                "max_backoff",
                self.max_backoff >= self.min_backoff && period(self.max_backoff),
                "must be from `min_backoff` to 100 years",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_keys: self.max_keys,
            max_bytes: self.max_bytes,
            flush_after: nanos(self.flush_after),
        }
    }
}
