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
use crate::config::{BreakerConfig, nanos};
use crate::error::{ConfigError, RegistryFull};

/// Breakers that a full registry examines to make room for a new one.
const MAX_LOOKS: usize = 64;

/// Breakers by key, made on first use and bounded in number: one for each host, tenant or route.
///
/// A full one lets go of a closed breaker that nobody holds: of the 64 whose turn it is to be
/// looked at, the one whose window holds the fewest failures and slow calls, and among equals the
/// one that was asked for least recently. If none of them is closed, it lets go of the one whose
/// probes have been due for the longest without a verdict, for
/// [`max_open_for`](BreakerConfig::max_open_for) at least: hardly anybody calls its dependency any
/// more. One that is set by hand to be forced open, forced closed or metrics only is never let go.
/// So a crowd of new keys can neither make a sick dependency look well nor keep one from being
/// found sick, unless the crowd fails as much.
///
/// `Hash`, `Eq` and `Clone` of the key run under the registry's lock and must not call it; its
/// `Display`, its `Drop` and the clock do not.
pub struct Registry<K> {
    config: BreakerConfig,
    clock: Arc<dyn Clock>,
    capacity: usize,
    kept: RwLock<Kept<K>>,
    uses: AtomicU64,
}

struct Kept<K> {
    places: HashMap<K, usize>,
    entries: Vec<Entry<K>>,
    /// Index of the entry to examine next for eviction.
    hand: usize,
}

struct Entry<K> {
    key: K,
    breaker: Arc<Breaker>,
    used: AtomicU64,
}

impl<K> fmt::Debug for Registry<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Clone + fmt::Display> Registry<K> {
    /// A registry of at most `capacity` breakers (1 or more), all of one configuration.
    ///
    /// # Errors
    /// A configuration that cannot work, or a capacity of 0.
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
            return Err(ConfigError::new("capacity", "must be at least 1"));
        }
        let kept = Kept { places: HashMap::new(), entries: Vec::new(), hand: 0 };
        Ok(Self { config, clock, capacity, kept: RwLock::new(kept), uses: AtomicU64::new(0) })
    }

    /// The breaker of a key, named after it.
    ///
    /// Callers with many calls to one key keep what this returns: looking it up takes a shared
    /// lock.
    ///
    /// # Errors
    /// The registry is full, and each of the 64 breakers that it has looked at is held by
    /// somebody, or is not closed and has opened not long ago. The next call looks at
    /// the next 64.
    ///
    /// # Panics
    /// Never: the configuration was validated with the registry.
    pub fn get(&self, key: &K) -> Result<Arc<Breaker>, RegistryFull> {
        let used = self.uses.fetch_add(1, Relaxed);
        if let Some(breaker) = self.kept.read().find(key, used) {
            return Ok(breaker);
        }
        // Built before the lock: the name and the clock are foreign code.
        let clock = Arc::clone(&self.clock);
        let breaker = Breaker::with_clock(key.to_string(), &self.config, clock)
            .expect("the configuration was validated with the registry");
        let breaker = Arc::new(breaker);
        let entry =
            Entry { key: key.clone(), breaker: Arc::clone(&breaker), used: AtomicU64::new(used) };
        let now = self.clock.now();
        let abandoned = now.checked_sub(nanos(self.config.max_open_for));
        let mut kept = self.kept.write();
        // Another thread inserted the key first.
        if let Some(breaker) = kept.find(key, used) {
            return Ok(breaker);
        }
        let evicted = if kept.entries.len() < self.capacity {
            kept.add(entry);
            None
        } else {
            let place =
                kept.room(now, abandoned).ok_or(RegistryFull { capacity: self.capacity })?;
            Some(kept.replace(place, entry))
        };
        // The evicted key's drop is foreign code.
        drop(kept);
        drop(evicted);
        Ok(breaker)
    }

    /// Number of breakers held.
    pub fn len(&self) -> usize {
        self.kept.read().entries.len()
    }

    /// Whether the registry holds no breaker.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All breakers, in no order.
    pub fn all(&self) -> Vec<Arc<Breaker>> {
        self.kept.read().entries.iter().map(|entry| Arc::clone(&entry.breaker)).collect()
    }
}

impl<K: Hash + Eq + Clone> Kept<K> {
    fn find(&self, key: &K, used: u64) -> Option<Arc<Breaker>> {
        let entry = self.entries.get(*self.places.get(key)?)?;
        entry.used.store(used, Relaxed);
        Some(Arc::clone(&entry.breaker))
    }

    /// Index of the entry to evict, among the entries examined in this turn. One that has waited
    /// for probes since `abandoned` may go too.
    fn room(&mut self, now: u64, abandoned: Option<u64>) -> Option<usize> {
        let looks = self.entries.len().min(MAX_LOOKS);
        let turn = (0..looks).map(|look| (self.hand + look) % self.entries.len());
        let worth = |place: usize| Some((self.entries[place].worth(now, abandoned)?, place));
        let least_missed = turn.filter_map(worth).min();
        self.hand = (self.hand + looks) % self.entries.len();
        least_missed.map(|(_, place)| place)
    }

    fn add(&mut self, entry: Entry<K>) {
        self.places.insert(entry.key.clone(), self.entries.len());
        self.entries.push(entry);
    }

    /// Replaces the entry at an index. Returns the old entry.
    fn replace(&mut self, place: usize, entry: Entry<K>) -> Entry<K> {
        self.places.insert(entry.key.clone(), place);
        let old = std::mem::replace(&mut self.entries[place], entry);
        self.places.remove(&old.key);
        old
    }
}

/// How much a breaker would be missed. The order is the order in which they go.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    Closed { bad_calls: u64, used: u64 },
    Abandoned { since: u64, used: u64 },
}

impl<K> Entry<K> {
    /// `None` if it must stay.
    fn worth(&self, now: u64, abandoned: Option<u64>) -> Option<Worth> {
        let (breaker, used) = (&self.breaker, self.used.load(Relaxed));
        if Arc::strong_count(breaker) > 1 {
            return None;
        }
        if breaker.state() == State::Closed {
            return Some(Worth::Closed { bad_calls: breaker.bad_calls(now), used });
        }
        let since = breaker.probing_since().filter(|since| Some(*since) <= abandoned)?;
        Some(Worth::Abandoned { since, used })
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

    #[test]
    fn room_is_looked_for_in_turns() {
        let registry = Registry::new(BreakerConfig::default(), 3 * MAX_LOOKS).unwrap();
        let held: Vec<_> = (0..2 * MAX_LOOKS).map(|key| registry.get(&key).unwrap()).collect();
        for key in held.len()..3 * MAX_LOOKS {
            registry.get(&key).unwrap();
        }
        // The first two turns meet breakers that are held, the third does not.
        for turn in 0..9 {
            let room = registry.get(&(1_000 + turn));
            assert_eq!(room.is_ok(), turn % 3 == 2, "turn {turn}");
        }
        assert_eq!(registry.len(), 3 * MAX_LOOKS);
        for (key, breaker) in held.iter().enumerate() {
            assert!(Arc::ptr_eq(&registry.get(&key).unwrap(), breaker), "{key}");
        }
        // Each took the place of one that nobody held.
        for turn in [2, 5, 8] {
            assert_eq!(registry.get(&(1_000 + turn)).unwrap().name(), (1_000 + turn).to_string());
        }
        assert!(registry.kept.read().places.len() == 3 * MAX_LOOKS);
    }
}
