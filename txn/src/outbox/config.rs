//! What can be tuned, with units, defaults and ranges.

use std::time::Duration;

use crate::config::DURATION_MAX;
use crate::error::ConfigError;
use crate::postgres::check_schema;

/// The tables of an outbox. Start from [`Default`] and change fields; checked by
/// [`Outbox::open`](super::Outbox::open).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxConfig {
    /// The schema of the tables, created if it does not exist. 1 to 63 bytes. Default `public`.
    pub schema: String,
    /// Parts of the keys, each of which one relay has at a time. The same at every opening. 1 to
    /// 1,024. Default 16.
    pub lanes: u32,
    /// The longest body of a message. 1 byte to 64 MiB. Default 1 MiB.
    pub max_body_bytes: usize,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self { schema: "public".to_owned(), lanes: 16, max_body_bytes: 1 << 20 }
    }
}

impl OutboxConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_schema(&self.schema)?;
        let rules = [
            ("lanes", (1..=1024).contains(&self.lanes), "must be from 1 to 1,024"),
            (
                "max_body_bytes",
                (1..=64 << 20).contains(&self.max_body_bytes),
                "must be from 1 byte to 64 MiB",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

/// How a relay takes messages from an outbox to a sink. Start from [`Default`] and change fields;
/// checked by [`Relay::start`](super::Relay::start). Durations are at least 1 ms and at most 100
/// years.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayConfig {
    /// Lanes that this relay has at once. At least 1. Default 1,024: a single relay has all, and
    /// others wait for it to end.
    pub max_lanes: u32,
    /// How long a relay that does not answer keeps its lanes, and the longest that a call of the
    /// database may take. At least 100 ms. Default 10 s.
    pub lease: Duration,
    /// Time between two looks at an outbox that nobody has announced a message of. Default 500 ms.
    pub poll: Duration,
    /// Messages that are read at once, from all lanes together; at least one of each lane. Fewer if
    /// their bodies have more than 16 MiB, or a read takes longer than a quarter of `lease`. Keys
    /// that are tried again have half of them. 1 to 10,000. Default 256.
    pub max_rows: u32,
    /// Keys that are delivered side by side. 1 to 10,000. Default 16.
    pub max_parallel: usize,
    /// A delivery that takes longer has failed, with an unknown outcome. None begins later than
    /// this after its round began, or without its whole time before the lease ends. Not above half
    /// of `lease`. Default 5 s.
    pub deliver_timeout: Duration,
    /// The first pause of a key whose delivery failed, and of a relay whose database failed; it
    /// doubles each time. Default 100 ms.
    pub pause: Duration,
    /// The longest such pause. Not below `pause`. Default 30 s.
    pub max_pause: Duration,
    /// Keys that pause at once, with those of one round. Past it nothing but them is read, when
    /// they are tried again. 1 to 10,000. Default 1,000.
    pub max_blocked_keys: usize,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            max_lanes: 1024,
            lease: Duration::from_secs(10),
            poll: Duration::from_millis(500),
            max_rows: 256,
            max_parallel: 16,
            deliver_timeout: Duration::from_secs(5),
            pause: Duration::from_millis(100),
            max_pause: Duration::from_secs(30),
            max_blocked_keys: 1000,
        }
    }
}

impl RelayConfig {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let durations = [
            ("lease", self.lease),
            ("poll", self.poll),
            ("deliver_timeout", self.deliver_timeout),
            ("pause", self.pause),
            ("max_pause", self.max_pause),
        ];
        let durations = durations.into_iter().map(|(field, duration)| {
            let holds = (Duration::from_millis(1)..=DURATION_MAX).contains(&duration);
            (field, holds, "must be from 1 ms to 100 years")
        });
        let long = self.lease >= Duration::from_millis(100);
        let many = |count: usize| (1..=10_000).contains(&count);
        let rule = "must be from 1 to 10,000";
        let others = [
            ("lease", long, "must be at least 100 ms"),
            ("max_lanes", self.max_lanes > 0, "must be at least 1"),
            ("max_rows", many(self.max_rows as usize), rule),
            ("max_parallel", many(self.max_parallel), rule),
            (
                "deliver_timeout",
                self.deliver_timeout <= self.lease / 2,
                "must not be above half of `lease`",
            ),
            ("max_pause", self.max_pause >= self.pause, "must not be below `pause`"),
            ("max_blocked_keys", many(self.max_blocked_keys), rule),
        ];
        match durations.chain(others).find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}
