//! Load shedding: calls of lower priority are rejected first.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::adaptive::AdaptiveLimit;
use crate::bulkhead::Bulkhead;
use crate::error::{ConfigError, GateError};

/// How much a call matters. The order is the order in which calls are kept.
///
/// Source: "SRE Book", chapter "Handling Overload", criticality.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// Batches, prefetching: may fail for hours.
    Sheddable,
    /// Background work that somebody will miss in minutes.
    SheddablePlus,
    /// Requests that a user waits for.
    #[default]
    Critical,
    /// Requests that are shed last.
    CriticalPlus,
}

/// Where the load comes from: 1 is all there is, above 1 there is a queue.
pub trait LoadSource: Send + Sync + fmt::Debug {
    /// The load now, 0 or more.
    fn load(&self) -> f64;
}

impl LoadSource for Bulkhead {
    fn load(&self) -> f64 {
        self.stats().load()
    }
}

impl LoadSource for AdaptiveLimit {
    fn load(&self) -> f64 {
        self.stats().load()
    }
}

/// Up to which load each priority is admitted.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ShedConfig {
    /// Default 0.6.
    pub max_sheddable: f64,
    /// Default 0.8.
    pub max_sheddable_plus: f64,
    /// Default 1.0.
    pub max_critical: f64,
    /// Default: always, the queue then decides.
    pub max_critical_plus: f64,
}

impl Default for ShedConfig {
    fn default() -> Self {
        Self {
            max_sheddable: 0.6,
            max_sheddable_plus: 0.8,
            max_critical: 1.0,
            max_critical_plus: f64::INFINITY,
        }
    }
}

/// Rejects calls by priority before they take a permit.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use voussoir_breaker::{Bulkhead, Priority, QueueConfig, ShedConfig, Shedder};
///
/// let bulkhead = Bulkhead::new(10, QueueConfig::default())?;
/// let shedder = Shedder::new(Arc::new(bulkhead.clone()), ShedConfig::default())?;
/// let busy: Vec<_> = (0..7).map(|_| bulkhead.try_acquire()).collect();
/// assert!(shedder.check(Priority::Sheddable).is_err());
/// assert!(shedder.check(Priority::Critical).is_ok());
/// # drop(busy);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Shedder {
    source: Arc<dyn LoadSource>,
    /// By the priority's number.
    max_load: [f64; 4],
    shed: [AtomicU64; 4],
}

impl Shedder {
    /// A shedder over the load of `source`.
    ///
    /// # Errors
    /// Bounds that are not in the order of the priorities.
    pub fn new(source: Arc<dyn LoadSource>, config: ShedConfig) -> Result<Self, ConfigError> {
        let max_load = [
            config.max_sheddable,
            config.max_sheddable_plus,
            config.max_critical,
            config.max_critical_plus,
        ];
        if !(max_load[0] >= 0.0 && max_load.windows(2).all(|pair| pair[0] <= pair[1])) {
            return Err(ConfigError::new(
                "max_sheddable",
                "must be at least 0, and no bound below that of the priority before it",
            ));
        }
        Ok(Self { source, max_load, shed: Default::default() })
    }

    /// Checks that a call of this priority may go on at the present load.
    ///
    /// # Errors
    /// [`GateError::Shed`] if the load is at or above the bound of the priority.
    pub fn check(&self, priority: Priority) -> Result<(), GateError> {
        let load = self.source.load();
        let own = priority as usize;
        if load < self.max_load[own] {
            return Ok(());
        }
        self.shed[own].fetch_add(1, Relaxed);
        Err(GateError::Shed { load_percent: (load * 100.0) as u32 })
    }

    /// Calls of a priority rejected so far.
    pub fn shed(&self, priority: Priority) -> u64 {
        self.shed[priority as usize].load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Load(f64);

    impl LoadSource for Load {
        fn load(&self) -> f64 {
            self.0
        }
    }

    #[test]
    fn the_less_important_go_first() {
        let kept = |load| {
            let shedder = Shedder::new(Arc::new(Load(load)), ShedConfig::default()).unwrap();
            [
                Priority::Sheddable,
                Priority::SheddablePlus,
                Priority::Critical,
                Priority::CriticalPlus,
            ]
            .map(|priority| shedder.check(priority).is_ok())
        };
        assert_eq!(kept(0.5), [true, true, true, true]);
        assert_eq!(kept(0.6), [false, true, true, true]);
        assert_eq!(kept(0.8), [false, false, true, true]);
        assert_eq!(kept(1.0), [false, false, false, true]);
        assert_eq!(kept(7.0), [false, false, false, true]);
    }

    #[test]
    fn bounds_out_of_order_are_refused() {
        let config = ShedConfig { max_critical: 0.1, ..Default::default() };
        assert!(Shedder::new(Arc::new(Load(0.0)), config).is_err());
    }
}
