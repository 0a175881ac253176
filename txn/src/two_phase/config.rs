//! What can be tuned, with units, defaults and ranges.

use std::time::Duration;

use super::core::Times;
use super::log::MAX_BRANCHES;
use crate::config::DURATION_MAX;
use crate::error::ConfigError;

/// How a coordinator runs its transactions. Start from [`Default`] and change fields; checked by
/// [`CoordinatorBuilder::open`](super::CoordinatorBuilder::open). Durations are above zero and at
/// most 100 years.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CoordinatorConfig {
    /// Transactions that have not ended, those included whose branches are still being told. Past
    /// it [`Coordinator::begin`](super::Coordinator::begin) is rejected. At least 1. Default
    /// 10,000.
    pub max_active: usize,
    /// Branches of one transaction: 1 to 1,000. Default 64.
    pub max_branches: u32,
    /// A transaction that is not committed after this long is aborted when it asks to. Default 60
    /// s.
    pub active_timeout: Duration,
    /// A vote that takes longer aborts the transaction. Default 10 s.
    pub prepare_timeout: Duration,
    /// A participant that takes longer to apply a decision is told again. Default 10 s.
    pub finish_timeout: Duration,
    /// The first pause before a participant is told again; it doubles each time. Default 100 ms.
    pub pause: Duration,
    /// The longest such pause. Not below `pause`. Default 30 s.
    pub max_pause: Duration,
    /// Time between two recoveries. Default 10 s.
    pub recover_every: Duration,
    /// Branches that one recovery asks a participant for. At least 1. Default 1,000.
    pub max_in_doubt: usize,
    /// While a participant holds a branch prepared for longer than this, no transaction begins:
    /// what it locks, and what it keeps PostgreSQL from cleaning up, would only grow. Default 1 h.
    pub max_in_doubt_age: Duration,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            max_active: 10_000,
            max_branches: 64,
            active_timeout: Duration::from_secs(60),
            prepare_timeout: Duration::from_secs(10),
            finish_timeout: Duration::from_secs(10),
            pause: Duration::from_millis(100),
            max_pause: Duration::from_secs(30),
            recover_every: Duration::from_secs(10),
            max_in_doubt: 1000,
            max_in_doubt_age: Duration::from_secs(3600),
        }
    }
}

impl CoordinatorConfig {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let durations = [
            ("active_timeout", self.active_timeout),
            ("prepare_timeout", self.prepare_timeout),
            ("finish_timeout", self.finish_timeout),
            ("pause", self.pause),
            ("max_pause", self.max_pause),
            ("recover_every", self.recover_every),
            ("max_in_doubt_age", self.max_in_doubt_age),
        ];
        let durations = durations.into_iter().map(|(field, duration)| {
            let holds = !duration.is_zero() && duration <= DURATION_MAX;
            (field, holds, "must be above zero and at most 100 years")
        });
        let others = [
            ("max_active", self.max_active > 0, "must be at least 1"),
            (
                "max_branches",
                (1..=MAX_BRANCHES).contains(&self.max_branches),
                "must be from 1 to 1,000",
            ),
            ("max_pause", self.max_pause >= self.pause, "must not be below `pause`"),
            ("max_in_doubt", self.max_in_doubt > 0, "must be at least 1"),
        ];
        match durations.chain(others).find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }

    pub(super) fn times(&self) -> Times {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Times {
            active: ns(self.active_timeout),
            prepare: ns(self.prepare_timeout),
            pause: ns(self.pause),
            max_pause: ns(self.max_pause),
        }
    }
}
