//! The seam to a store that counts for all.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::ConfigError;
use crate::quota::Quota;

/// A request for units of one key.
#[derive(Clone, Copy, Debug)]
pub struct Take<'a> {
    /// Whose units. Callers use one key with one quota at a time.
    pub key: &'a str,
    /// Quota of the key.
    pub quota: Quota,
    /// Smallest grant that is useful to the caller. At least 1.
    pub least: u64,
    /// More than these are not wanted. At least `least`.
    pub most: u64,
}

/// Answer of a store to a [`Take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Units taken: 0, or `least` to `most`.
    pub granted: u64,
    /// Units that could still be taken now.
    pub remaining: u64,
    /// If nothing was granted: after how long `least` would be, `None` if never.
    pub retry_after: Option<Duration>,
    /// Until the key is as if never used.
    pub reset_after: Duration,
}

/// Whether what a failed call asked for has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing was taken.
    NotApplied,
    /// The units may be taken: counting them as not taken could exceed the quota.
    Unknown,
}

/// Why a store gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store could not be reached, or its server does not serve now (it loads, is a replica, is
    /// busy): nothing was taken. Retry after a pause.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// The store was asked and its answer did not come: units may be taken. Retry after a pause;
    /// what was lost is at most what was asked for.
    #[error("the store did not answer: {0}")]
    NoAnswer(String),
    /// The store answered with an error about this key or request: nothing was taken. Other keys
    /// are asked for as before. Retrying does not help before the cause is gone.
    #[error("the store refused: {0}")]
    Refused(String),
    /// The store does not permit a command that it takes: nothing was taken. The text says which
    /// and what to grant. Retrying does not help before that.
    #[error("the store does not permit it: {0}")]
    NotPermitted(String),
    /// The store answered what this crate does not understand: units may be taken. Retrying does
    /// not help before the cause is gone.
    #[error("the store's answer was not understood: {0}")]
    Invalid(String),
    /// The store was not asked: the server of this key was unreachable or silent a moment ago, or
    /// the question of another caller for the same key, which this one waited for, has just failed,
    /// for whatever reason. Nothing was taken. Retry after a pause.
    #[error("the store failed a moment ago and is left alone")]
    Resting,
}

impl StoreError {
    /// Whether units may be taken. For the caller: the limiters do not ask.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Unreachable(_) | Self::Resting | Self::Refused(_) | Self::NotPermitted(_) => {
                Outcome::NotApplied
            }
            Self::NoAnswer(_) | Self::Invalid(_) => Outcome::Unknown,
        }
    }

    /// Whether the same call may succeed later.
    pub const fn is_retryable(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::NotPermitted(_) | Self::Invalid(_))
    }

    /// Whether this answer shows that the server is away. Not [`Self::Resting`], which is no answer
    /// and must not prolong the rest.
    pub const fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::NoAnswer(_))
    }
}

/// A store that counts for all who share a limit.
///
/// Each take is atomic, and is counted at the store's own clock: the clocks of those who ask need
/// not agree. Takes of one batch are independent of each other, also in failure.
///
/// A shared limiter calls it under no lock but the turn of the key, and drops the future of a take
/// whose time is over. A panic passes through to the caller of the limiter.
#[async_trait]
pub trait Counter: Send + Sync + fmt::Debug + 'static {
    /// Whether it can count this quota at its rate. Asked when a limiter is built.
    ///
    /// # Errors
    /// [`ConfigError`] if not.
    fn accepts(&self, quota: &Quota) -> Result<(), ConfigError>;

    /// The number of the server that keeps the key, of the caller's choice. After
    /// [an outage](StoreError::is_outage) the limiter leaves alone the keys of that server, and no
    /// others.
    fn server_of(&self, key: &str) -> u64 {
        let _ = key;
        0
    }

    /// Takes units; one answer for each request, in their order.
    async fn take(&self, takes: &[Take<'_>]) -> Vec<Result<Taken, StoreError>>;
}
