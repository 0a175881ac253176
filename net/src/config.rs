//! The limits and times of a transport.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use crate::{Class, ConfigError};

/// The longest of the times but `gather`.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const GATHER_MAX: Duration = Duration::from_secs(1);
/// Space for so many events is taken at the start.
const EVENTS_MAX: usize = 1 << 16;

/// The limits of one class of connections. Each connection has its own queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The longest message, in bytes, both ways; 1 KiB to 1 GiB. Two peers use the lower of what
    /// each sends and the other takes.
    pub message_bytes_max: usize,
    /// The most bytes that wait to be sent to one peer; at least `message_bytes_max`.
    pub queue_bytes_max: usize,
    /// The most messages that wait to be sent to one peer; at least 1.
    pub queue_messages_max: usize,
}

/// What a transport is told at its start. Nothing of it changes later. Times are 1 ms to 1 day,
/// but `gather`, which is at most 1 s; counts are at least 1.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The cluster that this node belongs to. Peers of another one are refused: it guards against
    /// a wrong address, not against an enemy.
    pub cluster: u128,
    /// Where the jitter of the back-off comes from. The default differs in each process.
    pub seed: u64,
    /// The limits of [`Class::Small`]: by default 1 MiB, 8 MiB and 16,384 messages.
    pub small: Limits,
    /// The limits of [`Class::Bulk`]: by default 16 MiB, 64 MiB and 1,024 messages.
    pub bulk: Limits,
    /// The most calls of this node to one peer that are under way in one class, default 1,024.
    pub calls_out_max: usize,
    /// The most calls of one peer that are under way here in one class, default 1,024.
    pub calls_in_max: usize,
    /// The most connections that have come in, default 1,024; two for each peer are needed.
    pub connections_max: usize,
    /// The most connections in their handshake, default 256. Further ones wait in the kernel's
    /// backlog until one of these is done or has had its time, which is a quarter of
    /// `handshake_timeout` and at most 500 ms; then the oldest is closed. If one address has many
    /// more than the address of the next connection, its oldest is closed at once.
    pub handshakes_max: usize,
    /// The most bytes of unfinished frames that all connections hold together, beyond 128 KiB for
    /// each; default 256 MiB, at least the larger `message_bytes_max`. When more is needed, the
    /// connections whose unfinished frames are the oldest are closed:
    /// [`Event::Overloaded`](crate::Event::Overloaded).
    pub partial_bytes_max: usize,
    /// How long an attempt to connect may take, default 1 s.
    pub dial_timeout: Duration,
    /// How long a handshake may take, default 2 s.
    pub handshake_timeout: Duration,
    /// How often a peer is asked for a sign of life, default 500 ms.
    pub keep_alive: Duration,
    /// How long a peer may be silent until its connection is given up, default 3 s; at least
    /// twice `keep_alive`.
    pub dead_after: Duration,
    /// The first pause between two attempts to connect, default 10 ms.
    pub backoff_min: Duration,
    /// The longest pause between two attempts to connect, default 500 ms.
    pub backoff_max: Duration,
    /// Messages that follow the last write to a connection by less than this are gathered into
    /// one write, default 5 µs. Zero: each message that finds the queue empty is written at once.
    pub gather: Duration,
    /// How many events a reader of `Events` may be behind, default 1,024, at most 65,536.
    pub events_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            cluster: 0,
            seed: RandomState::new().build_hasher().finish(),
            small: Limits {
                message_bytes_max: MIB,
                queue_bytes_max: 8 * MIB,
                queue_messages_max: 16 * 1024,
            },
            bulk: Limits {
                message_bytes_max: 16 * MIB,
                queue_bytes_max: 64 * MIB,
                queue_messages_max: 1024,
            },
            calls_out_max: 1024,
            calls_in_max: 1024,
            connections_max: 1024,
            handshakes_max: 256,
            partial_bytes_max: 256 * MIB,
            dial_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(2),
            keep_alive: Duration::from_millis(500),
            dead_after: Duration::from_secs(3),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(500),
            gather: Duration::from_micros(5),
            events_max: 1024,
        }
    }
}

impl Config {
    /// The defaults for a node of this cluster.
    pub fn new(cluster: u128) -> Self {
        Self { cluster, ..Self::default() }
    }

    /// The limits of a class.
    pub fn limits(&self, class: Class) -> &Limits {
        match class {
            Class::Small => &self.small,
            Class::Bulk => &self.bulk,
        }
    }

    /// Whether every field is within its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for class in Class::ALL {
            self.limits(class).validate()?;
        }
        let counts = [
            ("calls_out_max", self.calls_out_max),
            ("calls_in_max", self.calls_in_max),
            ("connections_max", self.connections_max),
            ("handshakes_max", self.handshakes_max),
            ("events_max", self.events_max),
        ];
        for (field, value) in counts {
            check(value >= 1, field, "must be at least 1")?;
        }
        check(self.events_max <= EVENTS_MAX, "events_max", "must be at most 65,536")?;
        let longest = self.small.message_bytes_max.max(self.bulk.message_bytes_max);
        check(
            self.partial_bytes_max >= longest,
            "partial_bytes_max",
            "must be at least the larger message_bytes_max",
        )?;
        let times = [
            ("dial_timeout", self.dial_timeout),
            ("handshake_timeout", self.handshake_timeout),
            ("keep_alive", self.keep_alive),
            ("dead_after", self.dead_after),
            ("backoff_min", self.backoff_min),
            ("backoff_max", self.backoff_max),
        ];
        for (field, value) in times {
            let range = Duration::from_millis(1)..=DURATION_MAX;
            check(range.contains(&value), field, "must be 1 ms to 1 day")?;
        }
        check(self.gather <= GATHER_MAX, "gather", "must be at most 1 s")?;
        check(
            self.dead_after >= self.keep_alive * 2,
            "dead_after",
            "must be at least twice keep_alive",
        )?;
        check(self.backoff_max >= self.backoff_min, "backoff_max", "must be at least backoff_min")
    }
}

impl Limits {
    fn validate(&self) -> Result<(), ConfigError> {
        check(
            (1 << 10..=1 << 30).contains(&self.message_bytes_max),
            "message_bytes_max",
            "must be 1 KiB to 1 GiB",
        )?;
        check(
            self.queue_bytes_max >= self.message_bytes_max,
            "queue_bytes_max",
            "must be at least message_bytes_max",
        )?;
        check(self.queue_messages_max >= 1, "queue_messages_max", "must be at least 1")
    }
}

fn check(holds: bool, field: &'static str, rule: &'static str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError { field, rule }) }
}
