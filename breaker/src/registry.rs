//! Breakers by key.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::RwLock;

use crate::breaker::{Breaker, State};
use crate::clock::{Clock, default_clock};
use crate::config::BreakerConfig;
use crate::error::{ConfigError, RegistryFull};

/// Breakers by key, made on first use and bounded in number: one for each host, tenant or route.
///
/// At its limit it lets go of the closed breaker that was asked for least recently and that
/// nobody holds. One that is not closed is never let go: a crowd of new keys cannot make a sick
/// dependency look well.
pub struct Registry<K> {
    config: BreakerConfig,
    clock: Arc<dyn Clock>,
    capacity: usize,
    map: RwLock<HashMap<K, Entry>>,
    uses: AtomicU64,
}

struct Entry {
    breaker: Arc<Breaker>,
    used: AtomicU64,
}

impl<K> fmt::Debug for Registry<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Clone + fmt::Display> Registry<K> {
    /// At most `capacity` breakers of one configuration. At least 1.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(config: BreakerConfig, capacity: usize) -> Result<Self, ConfigError> {
        Self::with_clock(config, capacity, default_clock())
    }

    /// The same over a clock of the caller's.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn with_clock(
        config: BreakerConfig,
        capacity: usize,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        if capacity == 0 {
            return Err(ConfigError::out_of_range("capacity", 0, "at least 1"));
        }
        let map = RwLock::new(HashMap::new());
        Ok(Self { config, clock, capacity, map, uses: AtomicU64::new(0) })
    }

    /// The breaker of a key, named after it.
    ///
    /// Callers with many calls to one key keep what this returns: looking it up takes a shared
    /// lock, and making a new one in a full registry walks over all.
    ///
    /// # Errors
    /// All places are taken by breakers that are open or held by somebody.
    ///
    /// # Panics
    /// Never: the configuration was validated with the registry.
    pub fn get(&self, key: &K) -> Result<Arc<Breaker>, RegistryFull> {
        let used = self.uses.fetch_add(1, Relaxed);
        if let Some(entry) = self.map.read().get(key) {
            entry.used.store(used, Relaxed);
            return Ok(Arc::clone(&entry.breaker));
        }
        let mut map = self.map.write();
        if let Some(entry) = map.get(key) {
            return Ok(Arc::clone(&entry.breaker));
        }
        if map.len() >= self.capacity {
            self.make_room(&mut map)?;
        }
        let name = key.to_string();
        let clock = Arc::clone(&self.clock);
        let breaker = Breaker::with_clock(name, &self.config, clock)
            .expect("the configuration was validated with the registry");
        let breaker = Arc::new(breaker);
        let entry = Entry { breaker: Arc::clone(&breaker), used: AtomicU64::new(used) };
        map.insert(key.clone(), entry);
        Ok(breaker)
    }

    fn make_room(&self, map: &mut HashMap<K, Entry>) -> Result<(), RegistryFull> {
        let is_idle = |entry: &Entry| {
            entry.breaker.state() == State::Closed && Arc::strong_count(&entry.breaker) == 1
        };
        let oldest = map
            .iter()
            .filter(|(_, entry)| is_idle(entry))
            .min_by_key(|(_, entry)| entry.used.load(Relaxed))
            .map(|(key, _)| key.clone());
        let Some(oldest) = oldest else { return Err(RegistryFull { capacity: self.capacity }) };
        map.remove(&oldest);
        Ok(())
    }

    /// Breakers that it holds.
    pub fn len(&self) -> usize {
        self.map.read().len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All breakers, in no order.
    pub fn all(&self) -> Vec<Arc<Breaker>> {
        self.map.read().values().map(|entry| Arc::clone(&entry.breaker)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_keys_cannot_close_an_open_breaker() {
        let registry = Registry::new(BreakerConfig::default(), 3).unwrap();
        registry.get(&"sick").unwrap().force_open();
        let held = registry.get(&"held").unwrap();
        for key in ["a", "b", "c", "d"] {
            registry.get(&key).unwrap();
            assert_eq!(registry.len(), 3);
        }
        assert_eq!(registry.get(&"sick").unwrap().state(), State::ForcedOpen);
        assert!(Arc::ptr_eq(&registry.get(&"held").unwrap(), &held));
        registry.get(&"d").unwrap().force_open();
        assert_eq!(registry.get(&"e").err(), Some(RegistryFull { capacity: 3 }));
        drop(held);
        assert_eq!(registry.get(&"e").unwrap().name(), "e");
    }

    #[test]
    fn the_least_recently_asked_for_goes() {
        let registry = Registry::new(BreakerConfig::default(), 2).unwrap();
        for key in ["a", "b", "a", "c"] {
            registry.get(&key).unwrap();
        }
        let mut names: Vec<_> = registry.all().iter().map(|b| b.name().to_owned()).collect();
        names.sort();
        assert_eq!(names, ["a", "c"]);
    }
}
