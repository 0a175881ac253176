//! What lies outside the process: a bus that carries invalidations, and a second level.
//!
//! An invalidation is applied here at once, waits in the outbox until the second level has dropped
//! what it had, is applied here once more, and is then published.

pub(crate) mod bus;
pub(crate) mod envelope;
pub(crate) mod level;
mod listener;
mod outbox;
mod publisher;
#[cfg(feature = "redis")]
mod redis;
pub(crate) mod tasks;
pub(crate) mod through;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use crate::core::peers::Invalidation;
use crate::error::ConfigError;
use crate::load::{Key, Value};
use crate::stats::RemoteCounters;
use bus::{Bus, BusConfig};
use level::{LevelConfig, SecondLevel};
use outbox::Outbox;
use through::{Level, SharedCodec};

#[cfg(feature = "redis")]
pub use redis::{RedisBus, RedisLevel};

/// `None` when the future, which is foreign code, panics.
async fn catch_panic<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let answer = std::future::poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.map_or(Poll::Ready(None), |poll| poll.map(Some))
    });
    answer.await
}

/// What the builder was given for the world outside.
pub(crate) struct RemoteParts<K, V> {
    pub(crate) codec: Option<SharedCodec<K, V>>,
    pub(crate) bus: Option<(Arc<dyn Bus>, BusConfig)>,
    pub(crate) level: Option<(Arc<dyn SecondLevel>, LevelConfig)>,
}

impl<K, V> Default for RemoteParts<K, V> {
    fn default() -> Self {
        Self { codec: None, bus: None, level: None }
    }
}

/// The cache's hold on what lies outside: its tasks end with it.
pub(crate) struct Remote<K, V> {
    pub(crate) codec: SharedCodec<K, V>,
    pub(crate) level: Option<Arc<Level>>,
    bus: Option<Arc<dyn Bus>>,
    bus_config: BusConfig,
    outbox: Arc<Outbox>,
    /// The cache's own lifetime, which values from the second level do not exceed either.
    config_ttl: Option<Duration>,
    /// The longest lifetime of an entry that is stored now, in nanoseconds: short while the bus is
    /// down.
    max_ttl: AtomicU64,
    pub(crate) counters: RemoteCounters,
}

impl<K: Key, V: Value> Remote<K, V> {
    /// `None` where there is neither a bus nor a second level.
    pub(crate) fn new(
        parts: RemoteParts<K, V>,
        config_ttl: Option<Duration>,
    ) -> Result<Option<Self>, ConfigError> {
        let RemoteParts { codec, bus, level } = parts;
        if bus.is_none() && level.is_none() {
            return Ok(None);
        }
        let rule = "must be given to the builder with a bus or a second level";
        let codec = codec.ok_or(ConfigError { field: "codec", rule })?;
        let (bus, bus_config) = match bus {
            Some((bus, config)) => (Some(bus), config),
            None => (None, BusConfig::default()),
        };
        bus_config.validate()?;
        if let Some((_, config)) = &level {
            config.validate()?;
        }
        let level = level.map(|(seam, config)| Arc::new(Level::new(seam, config)));
        // Until the bus is up.
        let max_ttl = match &bus {
            Some(_) => crate::config::nanos(bus_config.outage_ttl),
            None => u64::MAX,
        };
        Ok(Some(Self {
            codec,
            level,
            bus,
            outbox: Arc::new(Outbox::new(bus_config.max_pending)),
            bus_config,
            config_ttl,
            max_ttl: AtomicU64::new(max_ttl),
            counters: RemoteCounters::default(),
        }))
    }

    pub(crate) fn key(&self, key: &K) -> Invalidation {
        let mut bytes = Vec::new();
        self.codec.encode_key(key, &mut bytes);
        Invalidation::Key(bytes.into())
    }

    /// Tells the second level and the other processes. To be called before the invalidation takes
    /// place here, so that no load that begins after it trusts the second level.
    pub(crate) fn tell(&self, invalidation: Invalidation, again: bool) {
        self.outbox.add(invalidation, again);
    }

    /// The longest lifetime of an entry that is stored now, in nanoseconds.
    pub(crate) fn max_ttl(&self) -> u64 {
        self.max_ttl.load(Ordering::Acquire)
    }

    pub(crate) async fn settle(&self) {
        self.outbox.settle().await;
    }

    /// Ends the tasks, after one more attempt to send what waits.
    pub(crate) fn close(&self) {
        self.outbox.close();
    }

    pub(crate) fn pending(&self) -> u64 {
        self.outbox.len()
    }
}

impl<K, V> Drop for Remote<K, V> {
    fn drop(&mut self) {
        self.outbox.close();
    }
}
