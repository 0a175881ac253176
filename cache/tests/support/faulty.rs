//! A bus that fails as the tests want it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use voussoir_cache::{Bus, BusError, LocalBus, Subscription, async_trait};

const MS: Duration = Duration::from_millis(1);

/// A bus that can be made to fail and to lose what it carries.
#[derive(Clone, Default)]
pub(crate) struct Faulty {
    inner: LocalBus,
    pub(crate) state: Arc<FaultyState>,
}

impl Faulty {
    /// The way of another process to the same bus, which fails by itself.
    pub(crate) fn another_way(&self) -> Self {
        Self { inner: self.inner.clone(), state: Arc::default() }
    }
}

#[derive(Default)]
pub(crate) struct FaultyState {
    pub(crate) is_down: AtomicBool,
    pub(crate) loses: AtomicBool,
    /// Subscriptions from before this one are over.
    pub(crate) epoch: AtomicU64,
    pub(crate) published: AtomicU64,
}

struct FaultySubscription(Box<dyn Subscription>, Faulty, u64);

#[async_trait]
impl Bus for Faulty {
    async fn publish(&self, messages: &[Vec<u8>]) -> Result<(), BusError> {
        if self.state.is_down.load(Ordering::SeqCst) {
            return Err(BusError("down".into()));
        }
        self.state.published.fetch_add(messages.len() as u64, Ordering::SeqCst);
        if self.state.loses.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.inner.publish(messages).await
    }

    async fn subscribe(&self) -> Result<Box<dyn Subscription>, BusError> {
        if self.state.is_down.load(Ordering::SeqCst) {
            return Err(BusError("down".into()));
        }
        let epoch = self.state.epoch.load(Ordering::SeqCst);
        Ok(Box::new(FaultySubscription(self.inner.subscribe().await?, self.clone(), epoch)))
    }
}

#[async_trait]
impl Subscription for FaultySubscription {
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if self.1.state.epoch.load(Ordering::SeqCst) != self.2 {
                return None;
            }
            tokio::select! {
                message = self.0.next() => return message,
                () = sleep(4 * MS) => {}
            }
        }
    }
}
