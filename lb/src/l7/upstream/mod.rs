//! A group of backends behind one balancer, with the connections to them.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::config::UpstreamConfig;
use crate::balancer::Balancer;
use crate::budget::{BudgetHold, RetryBudget};
use crate::endpoint::Endpoint;
use crate::error::ConfigError;

mod budget;
mod connection;
mod pool;

pub(super) use connection::SendError;
pub(super) use pool::{ConnectError, Lease, Pool};

/// Period in which idle connections and connections to endpoints that left are closed.
const SWEEP: Duration = Duration::from_secs(1);

/// A balancer over backends that speak HTTP, and the connections to them. Cheap to clone; clones
/// share everything. The name of an endpoint is its address, `10.0.0.1:80` or `host:80`.
#[derive(Clone)]
pub struct Upstream {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    balancer: Balancer,
    config: UpstreamConfig,
    is_tls: bool,
    #[cfg(feature = "tls")]
    tls: Option<super::tls::ClientTls>,
    budget: ArcSwap<Arc<dyn RetryBudget>>,
    pools: Mutex<HashMap<u64, Arc<Pool>>>,
    is_swept: AtomicBool,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connects: AtomicU64,
    pub(super) connect_failures: AtomicU64,
    pub(super) reuses: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) retries_rejected: AtomicU64,
    /// Connections that were idle and had ended, or had bytes to read, when they were to be used.
    pub(super) stale: AtomicU64,
    active: AtomicU32,
}

/// What an upstream has done. Counts are since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpstreamStats {
    /// Connections that were established.
    pub connects: u64,
    /// Connections that could not be established.
    pub connect_failures: u64,
    /// Requests that used an open connection.
    pub reuses: u64,
    /// Idle connections that had ended, or had bytes to read, when they were to be used.
    pub stale: u64,
    /// Requests that were sent again after a backend may have seen them.
    pub retries: u64,
    /// Requests that were not sent again because the budget was used up.
    pub retries_rejected: u64,
    /// Requests under way.
    pub active: u32,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("name", &self.inner.name)
            .field("balancer", &self.inner.balancer)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// An upstream over plain TCP. `name` appears in the access log.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(
        name: impl Into<String>,
        balancer: Balancer,
        config: UpstreamConfig,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let inner = Inner {
            name: name.into(),
            balancer,
            budget: default_budget(&config),
            config,
            is_tls: false,
            #[cfg(feature = "tls")]
            tls: None,
            pools: Mutex::default(),
            is_swept: AtomicBool::new(false),
            counters: Arc::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// An upstream over TLS.
    ///
    /// # Errors
    /// A configuration that cannot work.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn with_tls(
        name: impl Into<String>,
        balancer: Balancer,
        config: UpstreamConfig,
        tls: super::tls::ClientTls,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let tls = Some(tls.with_protocol(config.protocol));
        let inner = Inner {
            name: name.into(),
            balancer,
            budget: default_budget(&config),
            config,
            is_tls: true,
            tls,
            pools: Mutex::default(),
            is_swept: AtomicBool::new(false),
            counters: Arc::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The balancer, for its verbs: the set of endpoints is changed there.
    pub fn balancer(&self) -> &Balancer {
        &self.inner.balancer
    }

    /// The configuration.
    pub fn config(&self) -> &UpstreamConfig {
        &self.inner.config
    }

    /// What the upstream has done.
    pub fn stats(&self) -> UpstreamStats {
        let counters = &self.inner.counters;
        UpstreamStats {
            connects: counters.connects.load(Relaxed),
            connect_failures: counters.connect_failures.load(Relaxed),
            reuses: counters.reuses.load(Relaxed),
            stale: counters.stale.load(Relaxed),
            retries: counters.retries.load(Relaxed),
            retries_rejected: counters.retries_rejected.load(Relaxed),
            active: counters.active.load(Relaxed),
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.inner.is_tls
    }

    /// Replaces the budget that bounds retries, for requests that begin after the call. The
    /// budget may be shared among upstreams. By default, retries under way are bounded by
    /// [`RetryConfig`](super::RetryConfig)'s `budget_share` and `min_budget`.
    ///
    /// The budget is asked without a lock. If it panics, the connection of the request ends.
    pub fn set_retry_budget(&self, budget: Arc<dyn RetryBudget>) {
        self.inner.budget.store(Arc::new(budget));
    }

    /// Counts a request that is under way, until the guard is dropped.
    pub(super) fn enter(&self) -> Active {
        let budget = self.inner.budget.load_full();
        let hold = budget.begin();
        self.inner.counters.active.fetch_add(1, Relaxed);
        let counters = Arc::clone(&self.inner.counters);
        Active { counters, budget, _request: hold, retries: Vec::new() }
    }

    pub(super) fn pool(&self, endpoint: &Arc<Endpoint>) -> Arc<Pool> {
        let mut pools = self.inner.pools.lock();
        let pool = pools.entry(endpoint.id()).or_insert_with(|| {
            let pool = Pool::new(
                endpoint.name(),
                self.inner.config.clone(),
                Arc::clone(&self.inner.counters),
            );
            #[cfg(feature = "tls")]
            let pool = pool.with_tls(self.inner.tls.clone());
            Arc::new(pool)
        });
        let pool = Arc::clone(pool);
        drop(pools);
        if !self.inner.is_swept.swap(true, Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(&self.inner)));
        }
        pool
    }
}

/// Ends with the last clone of the upstream.
async fn sweep(upstream: Weak<Inner>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(inner) = upstream.upgrade() else { return };
        let ids: Vec<u64> = inner.balancer.endpoints().iter().map(|found| found.id()).collect();
        let mut removed = Vec::new();
        let mut pools = inner.pools.lock();
        pools.retain(|id, pool| {
            let stays = ids.contains(id);
            if !stays {
                removed.push(Arc::clone(pool));
            }
            stays
        });
        let kept: Vec<_> = pools.values().cloned().collect();
        // Requests need the lock; connections are closed without it.
        drop(pools);
        drop(removed);
        for pool in kept {
            pool.close_idle();
        }
    }
}

fn default_budget(config: &UpstreamConfig) -> ArcSwap<Arc<dyn RetryBudget>> {
    let budget: Arc<dyn RetryBudget> = Arc::new(budget::ActiveShare::new(&config.retry));
    ArcSwap::from_pointee(budget)
}

/// A request under way. Gives back what it holds of the retry budget when it is dropped.
pub(super) struct Active {
    counters: Arc<Counters>,
    budget: Arc<Arc<dyn RetryBudget>>,
    _request: BudgetHold,
    retries: Vec<BudgetHold>,
}

impl fmt::Debug for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Active").field("retries", &self.retries.len()).finish_non_exhaustive()
    }
}

impl Active {
    /// Takes one retry of the budget.
    pub(super) fn try_retry(&mut self) -> bool {
        let Some(hold) = self.budget.try_retry() else {
            self.counters.retries_rejected.fetch_add(1, Relaxed);
            return false;
        };
        self.retries.push(hold);
        self.counters.retries.fetch_add(1, Relaxed);
        true
    }

    /// A backend has answered: the retries that led to it are over, however long its body takes.
    pub(super) fn end_retries(&mut self) {
        self.retries.clear();
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.counters.active.fetch_sub(1, Relaxed);
    }
}
