//! The bus: how caches of several processes hear of each other's invalidations.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::broadcast;

use crate::error::ConfigError;

/// A bus that did not work. The cache tries again by itself; readers never see it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("bus: {0}")]
pub struct BusError(pub String);

/// Carries messages from each cache to all others that listen. Messages are opaque; the sender's
/// own may come back. A bus may lose, double and reorder messages: the caches notice, and drop what
/// came through it.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Sends messages to all subscriptions, in this order.
    ///
    /// # Errors
    /// [`BusError`] if not all were sent. They are sent again then, all of them.
    ///
    /// # Cancel safety
    /// Dropped after [`BusConfig::timeout`]; the messages are sent again.
    async fn publish(&self, messages: &[Vec<u8>]) -> Result<(), BusError>;

    /// Begins to listen. What is published after this returns is heard.
    ///
    /// # Errors
    /// [`BusError`]; the cache tries again.
    ///
    /// # Cancel safety
    /// Dropped after [`BusConfig::timeout`].
    async fn subscribe(&self) -> Result<Box<dyn Subscription>, BusError>;
}

/// What hears the messages of a [`Bus`].
#[async_trait]
pub trait Subscription: Send {
    /// The next message. `None`: it is over, or something was missed; the cache subscribes again.
    ///
    /// # Cancel safety
    /// Must be cancel safe: a message is lost only with the subscription.
    async fn next(&mut self) -> Option<Vec<u8>>;
}

/// How a cache uses its bus. Start from [`Default`] and change fields.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusConfig {
    /// How often a cache tells the others that it is there and how many invalidations it has sent,
    /// and listens for its own words. 1 ms to 1 hour. Default 1 s.
    pub heartbeat: Duration,
    /// A bus over which a cache does not hear its own heartbeat for so long is down. Also the limit
    /// for one call of the bus. At least twice `heartbeat`, at most 1 day. Default 3 s.
    pub timeout: Duration,
    /// How long an entry is served that is stored while the bus is down: nothing would tell this
    /// cache that the entry has become stale. No window for stale values follows it. At most 1
    /// day; zero stores nothing meanwhile. Default 1 s.
    pub outage_ttl: Duration,
    /// How long a cache that others have ceased to hear, for the longer one of their `timeout` and
    /// its own, and that has not closed, is taken for one that is cut off and goes on invalidating:
    /// others drop everything once, and meanwhile the bus is as one that is down for them. After
    /// that it is taken for dead: what it does not tell is bounded by the lifetimes of entries
    /// alone. So much is what a process costs the others that is killed; closing the cache, or
    /// dropping it on a runtime that lives on, costs them nothing. At most 1 day; zero where other
    /// caches' silence is to say nothing. Default 30 s.
    pub peer_memory: Duration,
    /// Invalidations that wait for the bus or the second level. Past it they become one of
    /// everything. 1 to 1,000,000. Default 10,000.
    pub max_pending: usize,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            timeout: Duration::from_secs(3),
            outage_ttl: Duration::from_secs(1),
            peer_memory: Duration::from_secs(30),
            max_pending: 10_000,
        }
    }
}

const DAY: Duration = Duration::from_secs(86_400);

impl BusConfig {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let heartbeats = Duration::from_millis(1)..=Duration::from_secs(3600);
        let rules = [
            ("heartbeat", heartbeats.contains(&self.heartbeat), "must be from 1 ms to 1 hour"),
            (
                "timeout",
                self.timeout >= self.heartbeat.saturating_mul(2) && self.timeout <= DAY,
                "must be at least twice `heartbeat` and at most 1 day",
            ),
            ("outage_ttl", self.outage_ttl <= DAY, "must be at most 1 day"),
            ("peer_memory", self.peer_memory <= DAY, "must be at most 1 day"),
            (
                "max_pending",
                (1..=1_000_000).contains(&self.max_pending),
                "must be from 1 to 1,000,000",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

/// A bus between the caches of one process. Clones are the same bus.
#[derive(Clone, Debug)]
pub struct LocalBus(broadcast::Sender<Batch>);

/// The messages of one publication: their number puts no subscription behind.
type Batch = Arc<[Vec<u8>]>;

impl Default for LocalBus {
    fn default() -> Self {
        Self::new(1024)
    }
}

impl LocalBus {
    /// A bus that keeps so many publications, each of all messages that a cache had to send at
    /// the time, for a subscription which is behind; one that is further behind ends. At least 1.
    /// Default 1,024.
    pub fn new(max_behind: usize) -> Self {
        Self(broadcast::Sender::new(max_behind.clamp(1, 1 << 20)))
    }
}

#[async_trait]
impl Bus for LocalBus {
    async fn publish(&self, messages: &[Vec<u8>]) -> Result<(), BusError> {
        // An error here says that nobody listens.
        let _ = self.0.send(messages.into());
        Ok(())
    }

    async fn subscribe(&self) -> Result<Box<dyn Subscription>, BusError> {
        let batches = self.0.subscribe();
        Ok(Box::new(LocalSubscription { batches, heard: Arc::default(), next: 0 }))
    }
}

struct LocalSubscription {
    batches: broadcast::Receiver<Batch>,
    /// The last publication, of which the messages from `next` on were not given out yet.
    heard: Batch,
    next: usize,
}

#[async_trait]
impl Subscription for LocalSubscription {
    async fn next(&mut self) -> Option<Vec<u8>> {
        // Ends: with a message, or with the subscription. A publication may have none.
        loop {
            if let Some(message) = self.heard.get(self.next) {
                self.next += 1;
                return Some(message.clone());
            }
            (self.heard, self.next) = (self.batches.recv().await.ok()?, 0);
        }
    }
}
