//! Limits of a participant.

use std::time::Duration;

use super::event::MAX_BODY_BYTES;
use crate::config::DURATION_MAX;
use crate::error::ConfigError;

/// How a participant runs. Start from [`Default`] and change fields; checked by
/// [`Running::start`](super::Running::start).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChoreographyConfig {
    /// Reactions between the first event and the last. What would be published beyond it becomes a
    /// dead letter. 1 to 10,000. Default 64.
    pub max_hops: u32,
    /// Joins that wait for further events, in each partition of the bus. The event that would begin
    /// one more becomes a dead letter. 1 to 1,000,000. Default 10,000.
    pub max_waits: usize,
    /// Events that wait for the first event of their join, in each partition of the bus. Beyond
    /// it the oldest becomes a dead letter. 1 to 1,000,000. Default 1,000.
    pub max_parked: usize,
    /// Calls that run or are to be tried again, in each partition of the bus. At this many no more
    /// events of that partition are read. 1 to 100,000. Default 1,000.
    pub max_due: usize,
    /// Calls that run at once. Those of one key run one after the other. 1 to 10,000. Default 64.
    pub max_parallel: usize,
    /// Ids of events by which duplicates are told, in each partition of the bus; the oldest is
    /// forgotten first. 1 to 10,000,000. Default 100,000.
    pub max_seen: usize,
    /// The longest body of an event that a reaction publishes. 1 to 98,304. Default 65,536.
    pub max_body_bytes: usize,
    /// Events that one reaction publishes. More are an error of the reaction. 1 to 1,000. Default
    /// 16.
    pub max_published: usize,
    /// The first pause after the bus has failed; it doubles each time up to 64 times this. 1 ms to
    /// 1 hour. Default 100 ms.
    pub pause: Duration,
    /// Seeds the jitter of delays. `None` (the default) draws one.
    pub seed: Option<u64>,
}

impl Default for ChoreographyConfig {
    fn default() -> Self {
        Self {
            max_hops: 64,
            max_waits: 10_000,
            max_parked: 1000,
            max_due: 1000,
            max_parallel: 64,
            max_seen: 100_000,
            max_body_bytes: 64 << 10,
            max_published: 16,
            pause: Duration::from_millis(100),
            seed: None,
        }
    }
}

impl ChoreographyConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let pause = (Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&self.pause);
        let rules = [
            ("max_hops", (1..=10_000).contains(&self.max_hops), "must be from 1 to 10,000"),
            ("max_waits", (1..=1_000_000).contains(&self.max_waits), "must be from 1 to 1,000,000"),
            (
                "max_parked",
                (1..=1_000_000).contains(&self.max_parked),
                "must be from 1 to 1,000,000",
            ),
            ("max_due", (1..=100_000).contains(&self.max_due), "must be from 1 to 100,000"),
            ("max_parallel", (1..=10_000).contains(&self.max_parallel), "must be from 1 to 10,000"),
            ("max_seen", (1..=10_000_000).contains(&self.max_seen), "must be from 1 to 10,000,000"),
            (
                "max_body_bytes",
                (1..=MAX_BODY_BYTES).contains(&self.max_body_bytes),
                "must be from 1 to 98,304",
            ),
            ("max_published", (1..=1000).contains(&self.max_published), "must be from 1 to 1,000"),
            ("pause", pause, "must be from 1 ms to 1 hour"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

/// Whether a duration of a rule is from 1 ms to 100 years.
pub(super) fn is_duration(duration: Duration) -> bool {
    (Duration::from_millis(1)..=DURATION_MAX).contains(&duration)
}
