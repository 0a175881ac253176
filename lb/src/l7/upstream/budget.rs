//! The retry budget that an upstream has unless it is given another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::budget::{BudgetHold, RetryBudget};
use crate::l7::config::RetryConfig;

/// Bounds the retries under way to a share of the requests under way.
#[derive(Debug)]
pub(super) struct ActiveShare {
    share: f64,
    min: u32,
    /// Held by each request under way, and by this budget: the strong count tells how many.
    requests: Arc<()>,
    retries: Arc<AtomicU32>,
}

impl ActiveShare {
    pub(super) fn new(config: &RetryConfig) -> Self {
        let (share, min) = (config.budget_share, config.min_budget);
        Self { share, min, requests: Arc::default(), retries: Arc::default() }
    }
}

impl RetryBudget for ActiveShare {
    fn begin(&self) -> BudgetHold {
        BudgetHold::shared(Arc::<()>::clone(&self.requests))
    }

    fn try_retry(&self) -> Option<BudgetHold> {
        let requests = Arc::strong_count(&self.requests) - 1;
        let max = self.min.max((requests as f64 * self.share) as u32);
        let below = |retries| (retries < max).then_some(retries + 1);
        self.retries.fetch_update(Relaxed, Relaxed, below).ok()?;
        Some(BudgetHold::new(Held(Arc::clone(&self.retries))))
    }
}

/// One of the retries under way, until it is dropped.
struct Held(Arc<AtomicU32>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
