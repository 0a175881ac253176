//! A limit that the store decides, request by request.

use std::sync::Arc;

use super::counter::Counter;
use super::guard::{Guard, OutageConfig, Pass, SharedError, Source};
use crate::clock::Monotonic;
use crate::error::ConfigError;
use crate::quota::Quota;

/// A limiter that asks the store for each request: never more than the quota admits, whatever the
/// number of processes, at the price of a round trip.
///
/// While the store keeps its data. What it may lose, and what then holds, is said by the adapter.
#[derive(Debug)]
pub struct Strict {
    guard: Guard,
}

impl Strict {
    /// A limiter over a store.
    ///
    /// # Errors
    /// [`ConfigError`] if the quota is out of range or the store does not offer its algorithm.
    pub fn new(
        counter: Arc<dyn Counter>,
        quota: Quota,
        outage: OutageConfig,
    ) -> Result<Self, ConfigError> {
        Ok(Self { guard: Guard::new(counter, quota, outage, Arc::new(Monotonic))? })
    }

    /// Takes `cost` units of the key, at least 1, or none.
    ///
    /// # Errors
    /// [`SharedError::Rejected`] if there are not as many; [`SharedError::Store`] if the store
    /// gives no answer and the limiter fails closed.
    ///
    /// # Cancel safety
    /// A caller that gives up may have taken its units: they are lost until they flow back. Never
    /// are more admitted for it.
    pub async fn check(&self, key: &str, cost: u64) -> Result<Pass, SharedError> {
        let cost = cost.max(1);
        match self.guard.take(key, cost, cost).await {
            Ok(taken) if taken.granted == 0 => Err(self.guard.rejection(&taken).into()),
            Ok(taken) => Ok(Pass { source: Source::Store, remaining: taken.remaining }),
            Err(error) => self.guard.without_store(error),
        }
    }
}
