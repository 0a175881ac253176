//! Brings invalidations to the second level and to the bus.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::bus::{Bus, BusConfig};
use super::outbox::Outbox;
use super::through::Level;
use super::{Remote, catch_panic};
use crate::config::nanos;
use crate::core::peers::{Invalidation, Sender, farewell, heartbeat};
use crate::flights::{Key, Value};
use crate::lookup::Inner;

/// Pauses between attempts after a failure, first and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// Invalidations in one call of the second level.
const LEVEL_BATCH: usize = 500;

pub(super) struct Publisher<K: Key, V: Value> {
    cache: Weak<Inner<K, V>>,
    outbox: Arc<Outbox>,
    level: Option<Arc<Level>>,
    bus: Option<Arc<dyn Bus>>,
    config: BusConfig,
    sender: Sender,
    /// The sequence of the last message that the bus has taken.
    published: Arc<AtomicU64>,
    /// Numbered messages that the bus has not taken, oldest first. Invariant: at most
    /// `config.max_pending`.
    unpublished: VecDeque<Vec<u8>>,
    /// What these messages say, where the second level has it.
    awaits_bus: Vec<Invalidation>,
    /// What the second level has not taken. Invariant: at most `config.max_pending`.
    awaits_level: HashSet<Invalidation>,
}

impl<K: Key, V: Value> Publisher<K, V> {
    pub(super) fn new(cache: &Arc<Inner<K, V>>, remote: &Remote<K, V>, origin: u64) -> Self {
        Self {
            cache: Arc::downgrade(cache),
            outbox: Arc::clone(&remote.outbox),
            level: remote.level.clone(),
            bus: remote.bus.clone(),
            config: remote.bus_config.clone(),
            sender: Sender::new(origin),
            published: Arc::default(),
            unpublished: VecDeque::new(),
            awaits_bus: Vec::new(),
            awaits_level: HashSet::new(),
        }
    }

    pub(super) async fn run(self) {
        // Beside the sending, which the second level may hold up.
        let (bus, config) = (self.bus.clone(), self.config.clone());
        let origin = self.sender.origin();
        let beat = beat(bus.clone(), config.clone(), origin, Arc::clone(&self.published));
        let last = tokio::select! {
            biased;
            last = self.run_sending() => last,
            () = beat => None,
        };
        // After the last heartbeat. Without a farewell this cache falls silent for the others, who
        // then drop what it may have left unsaid.
        if let (Some(bus), Some(sequence)) = (bus, last) {
            let last = [farewell(origin, sequence)];
            let _ = timeout(config.timeout, catch_panic(bus.publish(&last))).await;
        }
    }

    /// Sends until the cache is gone. Returns the sequence of the last message if nothing is left
    /// unsent then.
    async fn run_sending(mut self) -> Option<u64> {
        let mut pause = PAUSE.0;
        // A time of its own: a new invalidation does not put it off.
        let mut retry_at = Instant::now();
        // Ends: when the cache is gone, after one more attempt to send what waits.
        loop {
            let is_failing = !self.unpublished.is_empty() || !self.awaits_level.is_empty();
            tokio::select! {
                biased;
                () = self.outbox.wake.notified() => {}
                () = sleep_until(retry_at), if is_failing => {}
            }
            let is_last = self.outbox.is_closed();
            let is_retry = is_failing && Instant::now() >= retry_at;
            self.send(is_retry || is_last).await;
            if is_last {
                let has_all = self.unpublished.is_empty() && self.awaits_level.is_empty();
                return has_all.then(|| self.sender.sequence());
            }
            if !is_failing {
                (pause, retry_at) = (PAUSE.0, Instant::now() + PAUSE.0);
            } else if is_retry {
                pause = (pause * 2).min(PAUSE.1);
                retry_at = Instant::now() + pause;
            }
        }
    }

    /// Sends what waits, and with `retries` what failed before.
    async fn send(&mut self, retries: bool) {
        let fresh = self.outbox.take();
        let mut is_full = !self.number(&fresh);
        let again: Vec<Invalidation> =
            if retries { self.awaits_level.drain().collect() } else { Vec::new() };
        let mut batch = fresh;
        batch.extend_from_slice(&again);
        if self.send_to_level(&batch).await {
            // Others heard of these before, and may since have loaded what the second level had.
            is_full |= !self.number(&again);
            self.awaits_bus.append(&mut batch);
        } else {
            self.awaits_level.extend(batch);
        }
        if is_full || self.awaits_level.len() > self.config.max_pending {
            self.collapse();
        }
        if self.publish().await {
            self.outbox.done(&self.awaits_bus);
            self.awaits_bus.clear();
        }
    }

    /// Whether the second level has dropped what it had. This cache then drops once more what a
    /// load may have taken from there.
    async fn send_to_level(&self, batch: &[Invalidation]) -> bool {
        let Some(level) = &self.level else { return true };
        for part in batch.chunks(LEVEL_BATCH) {
            if level.call(level.seam().invalidate(part)).await.is_err() {
                return false;
            }
        }
        let Some(cache) = self.cache.upgrade() else { return true };
        let Some(remote) = &cache.remote else { return true };
        for invalidation in batch.iter().filter(|batch| self.outbox.is_again(batch)) {
            cache.apply(remote, invalidation);
        }
        true
    }

    /// Makes messages of what is to be published. False if they became one of everything, because
    /// there are too many of them.
    fn number(&mut self, batch: &[Invalidation]) -> bool {
        if self.bus.is_none() {
            return true;
        }
        if self.unpublished.len() + batch.len() > self.config.max_pending {
            // The numbers that are missing then say the same once more.
            self.unpublished.clear();
            self.unpublished.push_back(self.sender.encode(&Invalidation::All));
            return false;
        }
        for invalidation in batch {
            let message = self.sender.encode(invalidation);
            self.unpublished.push_back(message);
        }
        true
    }

    /// What is being sent becomes one invalidation of everything.
    fn collapse(&mut self) {
        self.outbox.collapse();
        self.awaits_bus.clear();
        if self.awaits_level.is_empty() {
            self.awaits_bus.push(Invalidation::All);
        } else {
            self.awaits_level = HashSet::from([Invalidation::All]);
        }
    }

    /// Whether the bus has taken everything. Messages keep their numbers when they are sent again.
    async fn publish(&mut self) -> bool {
        let Some(bus) = &self.bus else { return true };
        if self.unpublished.is_empty() {
            return true;
        }
        let messages = self.unpublished.make_contiguous();
        let sent = timeout(self.config.timeout, catch_panic(bus.publish(messages))).await;
        if !matches!(sent, Ok(Some(Ok(())))) {
            return false;
        }
        self.unpublished.clear();
        self.published.store(self.sender.sequence(), Ordering::Release);
        true
    }
}

/// Says again and again how much the bus has taken.
async fn beat(
    bus: Option<Arc<dyn Bus>>,
    config: BusConfig,
    origin: u64,
    published: Arc<AtomicU64>,
) {
    let Some(bus) = bus else { return std::future::pending().await };
    let mut beats = interval(config.heartbeat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Ends: with the sending beside it.
    loop {
        beats.tick().await;
        let published = published.load(Ordering::Acquire);
        let beat = [heartbeat(origin, published, nanos(config.timeout))];
        // One that is lost is noticed by all who listen, this cache included.
        let _ = timeout(config.timeout, catch_panic(bus.publish(&beat))).await;
    }
}
