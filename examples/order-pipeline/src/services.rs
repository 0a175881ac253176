//! The services behind an order. Each does an order once, however often it is asked: a worker that
//! died after the call asks again.
//!
//! These are stand-ins that take time and can be slowed and stopped. Put clients of your own in
//! their place: `perform` is all that the pipeline calls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::order::Order;

/// The services, in the order in which the synchronous form calls them.
pub(crate) const NAMES: [&str; 4] = ["payment", "stock", "shipping", "notification"];
/// How long a service that is down keeps its callers.
const TIMEOUT: Duration = Duration::from_millis(100);

/// Why a service did not do an order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// It may do it later.
    #[error("{service} does not answer")]
    Temporary { service: &'static str },
    /// It never will.
    #[error("{service}: there is no article {article:?}")]
    Permanent { service: &'static str, article: String },
}

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    delay_us: AtomicU64,
    is_down: AtomicBool,
    unknown_articles: Mutex<BTreeSet<String>>,
    /// Times that it was asked for each order that it has done.
    done: Mutex<BTreeMap<u64, u32>>,
}

impl Service {
    pub(crate) fn new(name: &'static str, delay: Duration) -> Self {
        Self {
            name,
            delay_us: AtomicU64::new(delay.as_micros() as u64),
            is_down: AtomicBool::new(false),
            unknown_articles: Mutex::default(),
            done: Mutex::default(),
        }
    }

    /// Does the order, unless it is done.
    pub(crate) async fn perform(&self, order: &Order) -> Result<(), Failure> {
        if self.is_down.load(Relaxed) {
            tokio::time::sleep(TIMEOUT).await;
            return Err(Failure::Temporary { service: self.name });
        }
        tokio::time::sleep(Duration::from_micros(self.delay_us.load(Relaxed))).await;
        if self.unknown_articles.lock().contains(&order.article) {
            let article = order.article.clone();
            return Err(Failure::Permanent { service: self.name, article });
        }
        *self.done.lock().entry(order.id).or_default() += 1;
        Ok(())
    }
}

/// For the demonstration.
#[cfg(feature = "demo")]
impl Service {
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.delay_us.store(delay.as_micros() as u64, Relaxed);
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Relaxed);
    }

    /// Sets whether it sells an article.
    pub(crate) fn set_unknown(&self, article: &str, is_unknown: bool) {
        let mut articles = self.unknown_articles.lock();
        if is_unknown {
            articles.insert(article.to_owned());
        } else {
            articles.remove(article);
        }
    }

    /// Ids of the orders that it has done, and how often it was asked again for one of them.
    pub(crate) fn ledger(&self) -> (BTreeSet<u64>, u64) {
        let done = self.done.lock();
        let again = done.values().map(|times| u64::from(times - 1)).sum();
        (done.keys().copied().collect(), again)
    }
}
