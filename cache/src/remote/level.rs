//! The second level: a store that processes share, between the cache and its source.

use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

use crate::core::peers::Invalidation;
use crate::error::ConfigError;

/// A second level that gave no answer. Nothing is known of what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("second level: {0}")]
pub struct LevelError(pub String);

/// What the second level has of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fetched {
    /// As it was given to [`SecondLevel::store`].
    pub bytes: Vec<u8>,
    /// How long it has still to live.
    pub remaining: Duration,
    /// The version of the last invalidation of everything; 0 if there was none. Read after the
    /// bytes, or in one step with them.
    pub floor: u64,
}

impl Fetched {
    /// What was found.
    pub fn new(bytes: Vec<u8>, remaining: Duration, floor: u64) -> Self {
        Self { bytes, remaining, floor }
    }
}

/// What is to be stored.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Put<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The lease under which it was loaded.
    pub lease: u64,
    /// The value, with what the cache adds to it.
    pub bytes: &'a [u8],
    /// How long it lives.
    pub ttl: Duration,
    /// Its tags: the second level keeps the version of each one's last invalidation for as long as
    /// the value lives.
    pub tags: &'a [&'a str],
}

/// A store that processes share. All operations on one key are atomic. Versions are drawn by the
/// store and grow with each lease and each invalidation.
#[async_trait]
pub trait SecondLevel: Send + Sync + 'static {
    /// The value of a key.
    ///
    /// # Errors
    /// [`LevelError`] if there was no answer.
    ///
    /// # Cancel safety
    /// Dropped after [`LevelConfig::timeout`], as all calls are, and when nobody waits for the load
    /// any more. One call of `fetch` then follows whose answer nobody needs.
    async fn fetch(&self, key: &[u8]) -> Result<Option<Fetched>, LevelError>;

    /// The version of each tag's last invalidation; 0 if there was none. `None` where it is not
    /// known: values with the tag are invalid.
    ///
    /// # Errors
    /// [`LevelError`] if there was no answer.
    ///
    /// # Cancel safety
    /// As [`fetch`](Self::fetch).
    async fn floors(&self, tags: &[&str]) -> Result<Vec<Option<u64>>, LevelError>;

    /// Takes the lease of a key for so long, unless another one has it. The version of a load that
    /// begins now; `None`: another one has the lease.
    ///
    /// # Errors
    /// [`LevelError`] if there was no answer.
    ///
    /// # Cancel safety
    /// As [`fetch`](Self::fetch).
    async fn lease(
        &self,
        key: &[u8],
        lease: u64,
        lease_for: Duration,
    ) -> Result<Option<u64>, LevelError>;

    /// Stores a value and ends the lease. Whether it was stored: not if the lease has ended, by its
    /// time or by an invalidation, nor over a value of a larger source version or position.
    ///
    /// # Errors
    /// [`LevelError`] if there was no answer.
    ///
    /// # Cancel safety
    /// As [`fetch`](Self::fetch).
    async fn store(&self, put: Put<'_>) -> Result<bool, LevelError>;

    /// Ends a lease that stored nothing, if it is still that one.
    ///
    /// # Errors
    /// [`LevelError`] if there was no answer.
    ///
    /// # Cancel safety
    /// As [`fetch`](Self::fetch).
    async fn release(&self, key: &[u8], lease: u64) -> Result<(), LevelError>;

    /// Drops the values and the leases of keys, and raises the floors of tags or of everything.
    ///
    /// # Errors
    /// [`LevelError`] if not all of it was acknowledged. It is sent again then.
    ///
    /// # Cancel safety
    /// As [`fetch`](Self::fetch).
    async fn invalidate(&self, invalidations: &[Invalidation]) -> Result<(), LevelError>;
}

/// What readers get while the second level gives no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnOutage {
    /// The source's value: slower, and never an error for the second level's sake.
    #[default]
    AskSource,
    /// [`LoadError::SecondLevel`](crate::LoadError::SecondLevel), for sources that would not bear
    /// the load.
    Fail,
}

/// How a cache uses its second level. Start from [`Default`] and change fields.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LevelConfig {
    /// How long a value lives in the second level; less where the source gave it a shorter
    /// lifetime. The bound on the age of a fresh value whatever fails, in the second level and in
    /// each process, which also keeps what it has loaded or written itself no longer. It may be
    /// above [`Config::ttl`](crate::Config::ttl), which then only says how long a process serves
    /// its own copy before it asks again.
    /// [`Config::stale_if_error`](crate::Config::stale_if_error) and
    /// [`Config::stale_while_revalidate`](crate::Config::stale_while_revalidate) come after it.
    /// 1 ms to 100 days. Default 1 hour.
    pub ttl: Duration,
    /// The limit for one call of the second level. 1 ms to 1 minute. Default 100 ms.
    pub timeout: Duration,
    /// How long the second level is left alone after a call that failed, so that an outage costs
    /// one time limit and not one for each load, also where readers give up before it. At most 1
    /// hour. Default 500 ms.
    pub rest: Duration,
    /// How long the lease of a key lasts. A load that takes longer is not stored in the second
    /// level, and another process may load the key meanwhile. 1 ms to 1 hour. Default 5 s.
    pub lease_for: Duration,
    /// How long a load waits for a value that another process is loading; then it asks the source
    /// itself, and stores nothing in the second level. At most 1 hour. Default 500 ms.
    pub lease_wait: Duration,
    /// What readers get while the second level gives no answer. Default [`OnOutage::AskSource`].
    pub on_outage: OnOutage,
}

impl Default for LevelConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(3600),
            timeout: Duration::from_millis(100),
            rest: Duration::from_millis(500),
            lease_for: Duration::from_secs(5),
            lease_wait: Duration::from_millis(500),
            on_outage: OnOutage::AskSource,
        }
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

impl LevelConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let up_to = |duration: Duration, most: Duration| (MILLISECOND..=most).contains(&duration);
        let rules = [
            ("ttl", up_to(self.ttl, 2400 * HOUR), "must be from 1 ms to 100 days"),
            ("timeout", up_to(self.timeout, MINUTE), "must be from 1 ms to 1 minute"),
            ("rest", self.rest <= HOUR, "must be at most 1 hour"),
            ("lease_for", up_to(self.lease_for, HOUR), "must be from 1 ms to 1 hour"),
            ("lease_wait", self.lease_wait <= HOUR, "must be at most 1 hour"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}
