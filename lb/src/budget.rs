//! The seam for a retry budget: who retries asks it first.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Bounds retries, so that they cannot multiply an outage. Share one among all requests to one
/// service.
///
/// With the feature `breaker`, `Arc<voussoir_breaker::RetryBudget>` is one.
pub trait RetryBudget: Send + Sync {
    /// Begins a request, which pays in its share. The request ends when the result is dropped.
    fn begin(&self) -> BudgetHold;

    /// Asks for one retry. Hold the result through the back-off and the attempt. `None`: do not
    /// retry.
    fn try_retry(&self) -> Option<BudgetHold>;
}

/// What a budget counts until this is dropped: a request, or a retry.
#[must_use = "the request or retry ends when this is dropped"]
pub struct BudgetHold {
    _held: Option<Arc<dyn Any + Send + Sync>>,
}

impl BudgetHold {
    /// Drops `held` at its end.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self::shared(Arc::new(held))
    }

    /// Drops its share of `held` at its end: a budget that counts its requests by the strong count
    /// of one `Arc` allocates nothing for a request.
    pub fn shared(held: Arc<dyn Any + Send + Sync>) -> Self {
        Self { _held: Some(held) }
    }

    /// For a budget that does not count what is active.
    pub fn empty() -> Self {
        Self { _held: None }
    }
}

impl fmt::Debug for BudgetHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BudgetHold")
    }
}

#[cfg(feature = "breaker")]
#[cfg_attr(docsrs, doc(cfg(feature = "breaker")))]
impl RetryBudget for Arc<voussoir_breaker::RetryBudget> {
    fn begin(&self) -> BudgetHold {
        BudgetHold::new(voussoir_breaker::RetryBudget::begin(self))
    }

    fn try_retry(&self) -> Option<BudgetHold> {
        self.try_extra().ok().map(BudgetHold::new)
    }
}

#[cfg(all(test, feature = "breaker"))]
mod tests {
    use super::*;
    use voussoir_breaker::RetryBudgetConfig;

    #[test]
    fn the_breakers_budget_counts_requests_and_retries_until_they_end() {
        let mut config = RetryBudgetConfig::default();
        (config.min_active, config.active_ratio, config.per_sec) = (1, 0.0, 0.0);
        let budget = voussoir_breaker::RetryBudget::new(config).expect("valid");
        let seam: &dyn RetryBudget = &budget;
        let request = seam.begin();
        let retry = seam.try_retry().expect("the balance is full");
        assert!(seam.try_retry().is_none(), "one may be active");
        let stats = budget.stats();
        assert_eq!((stats.active_calls, stats.active_extra), (1, 1));
        drop((request, retry));
        let stats = budget.stats();
        assert_eq!((stats.active_calls, stats.active_extra), (0, 0));
        assert!(seam.try_retry().is_some());
    }
}
