//! Hears the invalidations of others.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::bus::{Bus, BusConfig, Subscription};
use super::outbox::Outbox;
use super::{Remote, catch_panic};
use crate::config::nanos;
use crate::core::peers::{Heard, Peers};
use crate::flights::{Key, Value};
use crate::lookup::Inner;
use crate::stats::count;

/// Pauses between attempts to subscribe, first and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

pub(super) struct Listener<K: Key, V: Value> {
    cache: Weak<Inner<K, V>>,
    outbox: Arc<Outbox>,
    bus: Arc<dyn Bus>,
    config: BusConfig,
    origin: u64,
}

/// The task may end before the cache does, with the runtime on which the cache was built: nobody
/// hears of invalidations then.
impl<K: Key, V: Value> Drop for Listener<K, V> {
    fn drop(&mut self) {
        if !self.outbox.is_closed() {
            self.set_bus(false);
        }
    }
}

impl<K: Key, V: Value> Listener<K, V> {
    pub(super) fn new(
        cache: &Arc<Inner<K, V>>,
        remote: &Remote<K, V>,
        bus: Arc<dyn Bus>,
        origin: u64,
    ) -> Self {
        let (outbox, config) = (Arc::clone(&remote.outbox), remote.bus_config.clone());
        Self { cache: Arc::downgrade(cache), outbox, bus, config, origin }
    }

    pub(super) async fn run(self) {
        let mut pause = PAUSE.0;
        // Ends: when the cache is gone.
        while !self.outbox.is_closed() {
            let subscribed = timeout(self.config.timeout, catch_panic(self.bus.subscribe())).await;
            if let Ok(Some(Ok(subscription))) = subscribed {
                pause = PAUSE.0;
                self.listen(subscription).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Listens until the bus is down or the cache is gone.
    async fn listen(&self, mut subscription: Box<dyn Subscription>) {
        if !self.set_bus(true) {
            return;
        }
        let BusConfig { timeout, peer_memory, .. } = self.config;
        let mut peers = Peers::new(self.origin, nanos(timeout), nanos(peer_memory));
        let epoch = Instant::now();
        let (mut own_heard_at, mut is_complete) = (epoch, true);
        // Ends: with the subscription, in silence, or when the cache is gone.
        loop {
            let own_until = own_heard_at + timeout;
            let look_at = peers.next_deadline().map(|at| epoch + Duration::from_nanos(at));
            let until = look_at.map_or(own_until, |look_at| look_at.min(own_until));
            let heard = timeout_at(until, catch_panic(subscription.next())).await;
            let now = Instant::now();
            let Some(cache) = self.cache.upgrade() else { return };
            let Some(remote) = &cache.remote else { return };
            let at = u64::try_from((now - epoch).as_nanos()).unwrap_or(u64::MAX);
            let message = match heard {
                Ok(Some(Some(message))) => Some(message),
                Ok(_) => break,
                Err(_) if now >= own_until => break,
                Err(_) => None,
            };
            match message.map_or(Heard::Nothing, |message| peers.hear(at, &message)) {
                Heard::Own => own_heard_at = Instant::now(),
                Heard::Nothing => {}
                Heard::Apply(invalidation) => {
                    count(&remote.counters.bus_heard);
                    cache.apply(remote, &invalidation);
                }
                Heard::Gap => {
                    count(&remote.counters.bus_gaps);
                    cache.clear();
                }
            }
            // A peer that is not heard may be cut off, and go on invalidating.
            if peers.look(at) == is_complete {
                is_complete = !is_complete;
                cache.set_bus(remote, is_complete);
            }
        }
        self.set_bus(false);
    }

    fn set_bus(&self, is_up: bool) -> bool {
        let Some(cache) = self.cache.upgrade() else { return false };
        let Some(remote) = &cache.remote else { return false };
        cache.set_bus(remote, is_up);
        true
    }
}
