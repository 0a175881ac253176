//! What a JetStream back end is told.

use std::time::Duration;

use crate::config::check;
use crate::error::ConfigError;

/// How the back end uses a JetStream server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JetStreamConfig {
    /// Begins the names of streams and subjects. 1 to 64 letters, digits, `-` and `_`, default
    /// `voussoir`.
    pub prefix: String,
    /// Servers that hold each stream that the back end creates. 1 to 5, default 1.
    pub replicas: usize,
    /// How long the server remembers ids of messages. It does not slide: a duplicate does not renew
    /// it. 1 s to 1 day, default 2 minutes. A stream that is there with a shorter one is a
    /// mismatch.
    pub duplicate_window: Duration,
    /// How long a record is sent again until it is answered. Above zero, and below
    /// `duplicate_window`: a record that is sent again behind it is stored twice. Default 30 s.
    pub delivery_timeout: Duration,
    /// How long one request to the server may take. Above zero, at most `delivery_timeout`, default
    /// 5 s.
    pub request_timeout: Duration,
    /// Records that a group may have received and not committed, all members together; beyond it
    /// polls return nothing. 1 to 100,000, default 1,000. With 1 records of a key are delivered in
    /// order ([`Need::KeyOrder`](super::super::Need::KeyOrder)), one at a time.
    pub max_unacknowledged: u32,
    /// The operator's word that the server syncs before it answers (`sync_interval: always`): a
    /// client cannot see it. Default false.
    pub is_synced: bool,
}

impl Default for JetStreamConfig {
    fn default() -> Self {
        Self {
            prefix: "voussoir".to_owned(),
            replicas: 1,
            duplicate_window: Duration::from_secs(120),
            delivery_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(5),
            max_unacknowledged: 1_000,
            is_synced: false,
        }
    }
}

impl JetStreamConfig {
    /// Checks each field.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let windows = Duration::from_secs(1)..=Duration::from_secs(86_400);
        check(&[
            (
                (1..=64).contains(&self.prefix.len()) && self.prefix.bytes().all(is_plain),
                "prefix",
                "must be 1 to 64 letters, digits, '-' and '_'",
            ),
            ((1..=5).contains(&self.replicas), "replicas", "must be between 1 and 5"),
            (
                windows.contains(&self.duplicate_window),
                "duplicate_window",
                "must be between 1 s and 1 day",
            ),
            (
                !self.delivery_timeout.is_zero() && self.delivery_timeout < self.duplicate_window,
                "delivery_timeout",
                "must be above zero and below duplicate_window",
            ),
            (
                !self.request_timeout.is_zero() && self.request_timeout <= self.delivery_timeout,
                "request_timeout",
                "must be above zero and at most delivery_timeout",
            ),
            (
                (1..=100_000).contains(&self.max_unacknowledged),
                "max_unacknowledged",
                "must be between 1 and 100000",
            ),
        ])
    }
}
