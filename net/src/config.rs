//! The limits and times of a transport.

use std::time::Duration;

use crate::{Class, ConfigError};

/// The longest of the times but `gather`.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_GATHER: Duration = Duration::from_secs(1);
/// Space for so many events is taken at the start.
const MAX_EVENTS: usize = 1 << 16;

/// The limits of one class of connections. Each connection has its own queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The longest message, in bytes, both ways; 1 KiB to 1 GiB. Two peers use the lower of what
    /// each sends and the other takes.
    pub max_message_bytes: usize,
    /// The most bytes that wait to be sent to one peer; at least `max_message_bytes`.
    pub max_queue_bytes: usize,
    /// The most messages that wait to be sent to one peer; at least 1.
    pub max_queue_messages: usize,
}

/// Configuration of a transport, fixed at its start. Times are 1 ms to 1 day, except `gather`,
/// which is at most 1 s. Counts are at least 1.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The cluster that this node belongs to. Peers of another one are rejected: it guards against
    /// a wrong address, not against an enemy.
    pub cluster: u128,
    /// Seed of the jitter of the back-off and, in a `memory::Network`, of its faults. `None`, the
    /// default: the system gives one to each transport that is built.
    pub seed: Option<u64>,
    /// The limits of [`Class::Small`]: by default 1 MiB, 8 MiB and 16,384 messages.
    pub small: Limits,
    /// The limits of [`Class::Bulk`]: by default 16 MiB, 64 MiB and 1,024 messages.
    pub bulk: Limits,
    /// The most calls of this node to one peer that are under way in one class, default 1,024.
    pub max_calls_out: usize,
    /// The most calls of one peer that are under way here in one class, default 1,024.
    pub max_calls_in: usize,
    /// The most connections that have come in, default 1,024; two for each peer are needed.
    pub max_connections: usize,
    /// The most connections in their handshake, default 256. Further ones wait in the kernel's
    /// backlog until one of these is done or has had its time, which is a quarter of
    /// `handshake_timeout` and at most 500 ms; then the oldest is closed. If one address has many
    /// more than the address of the next connection, its oldest is closed at once.
    pub max_handshakes: usize,
    /// The most bytes of unfinished frames that all connections hold together, beyond 128 KiB for
    /// each; default 256 MiB, at least the larger `max_message_bytes`. When more is needed, the
    /// connections whose unfinished frames are the oldest are closed:
    /// [`Event::Overloaded`](crate::Event::Overloaded).
    pub max_partial_bytes: usize,
    /// How long an attempt to connect may take, default 1 s.
    pub dial_timeout: Duration,
    /// How long a handshake may take, default 2 s.
    pub handshake_timeout: Duration,
    /// How often a peer is asked for a sign of life, default 500 ms; more often where the peer
    /// bears silence for less than three times this.
    pub keep_alive: Duration,
    /// How long a peer may be silent until its connection is given up, default 3 s; at least
    /// twice `keep_alive`. Peers are told, and need not have the same.
    pub dead_after: Duration,
    /// The first pause between two attempts to connect, default 10 ms.
    pub min_backoff: Duration,
    /// The longest pause between two attempts to connect, default 500 ms.
    pub max_backoff: Duration,
    /// Messages that follow the last write to a connection by less than this are gathered into
    /// one write, default 5 µs. Zero: each message that finds the queue empty is written at once.
    pub gather: Duration,
    /// How many events a reader of `Events` may be behind, default 1,024, at most 65,536.
    pub max_events: usize,
}

impl Default for Config {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            cluster: 0,
            seed: None,
            small: Limits {
                max_message_bytes: MIB,
                max_queue_bytes: 8 * MIB,
                max_queue_messages: 16 * 1024,
            },
            bulk: Limits {
                max_message_bytes: 16 * MIB,
                max_queue_bytes: 64 * MIB,
                max_queue_messages: 1024,
            },
            max_calls_out: 1024,
            max_calls_in: 1024,
            max_connections: 1024,
            max_handshakes: 256,
            max_partial_bytes: 256 * MIB,
            dial_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(2),
            keep_alive: Duration::from_millis(500),
            dead_after: Duration::from_secs(3),
            min_backoff: Duration::from_millis(10),
            max_backoff: Duration::from_millis(500),
            gather: Duration::from_micros(5),
            max_events: 1024,
        }
    }
}

impl Config {
    /// The defaults for a node of this cluster.
    pub fn new(cluster: u128) -> Self {
        Self { cluster, ..Self::default() }
    }

    /// The seed given, or one from the system.
    pub(crate) fn draw_seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| fastrand::u64(..))
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
            ("max_calls_out", self.max_calls_out),
            ("max_calls_in", self.max_calls_in),
            ("max_connections", self.max_connections),
            ("max_handshakes", self.max_handshakes),
            ("max_events", self.max_events),
        ];
        for (field, value) in counts {
            check(value >= 1, field, "must be at least 1")?;
        }
        check(self.max_events <= MAX_EVENTS, "max_events", "must be at most 65,536")?;
        let longest = self.small.max_message_bytes.max(self.bulk.max_message_bytes);
        check(
            self.max_partial_bytes >= longest,
            "max_partial_bytes",
            "must be at least the larger max_message_bytes",
        )?;
        let times = [
            ("dial_timeout", self.dial_timeout),
            ("handshake_timeout", self.handshake_timeout),
            ("keep_alive", self.keep_alive),
            ("dead_after", self.dead_after),
            ("min_backoff", self.min_backoff),
            ("max_backoff", self.max_backoff),
        ];
        for (field, value) in times {
            let range = Duration::from_millis(1)..=MAX_DURATION;
            check(range.contains(&value), field, "must be 1 ms to 1 day")?;
        }
        check(self.gather <= MAX_GATHER, "gather", "must be at most 1 s")?;
        check(
            self.dead_after >= self.keep_alive * 2,
            "dead_after",
            "must be at least twice keep_alive",
        )?;
        check(self.max_backoff >= self.min_backoff, "max_backoff", "must be at least min_backoff")
    }
}

impl Limits {
    fn validate(&self) -> Result<(), ConfigError> {
        check(
            (1 << 10..=1 << 30).contains(&self.max_message_bytes),
            "max_message_bytes",
            "must be 1 KiB to 1 GiB",
        )?;
        check(
            self.max_queue_bytes >= self.max_message_bytes,
            "max_queue_bytes",
            "must be at least max_message_bytes",
        )?;
        check(self.max_queue_messages >= 1, "max_queue_messages", "must be at least 1")
    }
}

fn check(holds: bool, field: &'static str, rule: &'static str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError { field, rule }) }
}
