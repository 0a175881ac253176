//! The load of key ranges, and where to split or merge them.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use super::space_saving::{HotKey, HotKeys};
use crate::config::LoadConfig;
use crate::error::ConfigError;
use crate::hash;
use crate::range::{KeyRange, MAX_KEY_BYTES, RangeMap};

const MIN_SAMPLES: usize = 8;
const MAX_SAMPLES: usize = 4096;

/// Advice about uneven load.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Advice {
    /// Split a hot range where its traffic divides about evenly.
    Split {
        /// The range's id.
        range: u64,
        /// Where the right part should start.
        at: Vec<u8>,
        /// The range's share of all traffic.
        share: f64,
        /// The left part's estimated share of the range's traffic.
        left: f64,
    },
    /// Hold more replicas of one key and spread its reads, or cache it: no split divides it.
    Replicate {
        /// The range's id.
        range: u64,
        /// The key (its first bytes if it is longer than the sketch keeps).
        key: Vec<u8>,
        /// The key's share of all traffic.
        share: f64,
        /// How many nodes it takes to bring each below the hot share.
        copies: usize,
    },
    /// Merge two cold neighbours.
    Merge {
        /// The left range's id.
        left: u64,
        /// The right range's id.
        right: u64,
        /// Share of both ranges in all traffic.
        share: f64,
    },
}

#[derive(Clone, Default)]
struct OneRange {
    accesses: u64,
    /// A uniform sample of accessed keys.
    samples: Vec<Vec<u8>>,
}

/// Counts accesses by range and by key, and advises what to split, merge or replicate.
///
/// Memory is bounded: a counter and a fixed number of sampled keys for each range of the map, and
/// one [`HotKeys`] sketch. Keys are sampled with a seeded generator: with one
/// [`seed`](LoadConfig::seed) the same accesses give the same advice.
///
/// # Example
/// ```
/// use voussoir_ring::load::{Advice, RangeLoad};
/// use voussoir_ring::range::RangeMap;
/// let map = RangeMap::new(1, &[1])?;
/// let mut load = RangeLoad::new(&Default::default())?;
/// for n in 0..20_000_u32 {
///     load.record(&map, format!("user:{:05}", n % 1000).as_bytes());
/// }
/// let advice = load.advise(&map);
/// let [Advice::Split { at, left, .. }] = &advice[..] else { panic!("{advice:?}") };
/// assert!((0.35..0.65).contains(left));
/// let map = map.split(at)?;
/// assert_eq!(map.ranges().len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RangeLoad {
    config: LoadConfig,
    ranges: HashMap<u64, OneRange>,
    hot: HotKeys,
    random: u64,
}

impl RangeLoad {
    /// An empty count.
    ///
    /// # Errors
    /// [`ConfigError`] if a field is out of its range.
    pub fn new(config: &LoadConfig) -> Result<Self, ConfigError> {
        let (hot, cold, key) = (config.hot_share, config.cold_share, config.key_share);
        let rules = [
            ("hot_share", 0.0 < hot && hot <= 1.0, "must be above 0 and at most 1"),
            ("key_share", 0.0 < key && key <= 1.0, "must be above 0 and at most 1"),
            ("cold_share", 0.0 <= cold && cold <= hot, "must be 0 to `hot_share`"),
            (
                "samples",
                (MIN_SAMPLES..=MAX_SAMPLES).contains(&config.samples),
                "must be between 8 and 4096",
            ),
        ];
        if let Some((field, _, rule)) = rules.into_iter().find(|(_, holds, _)| !holds) {
            return Err(ConfigError::new(field, rule));
        }
        let seed = config.seed.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
        let hot = HotKeys::new(&config.hot_keys)?;
        Ok(Self { config: config.clone(), ranges: HashMap::new(), hot, random: seed })
    }

    /// Counts one access to a key.
    pub fn record(&mut self, map: &RangeMap, key: &[u8]) {
        self.hot.record(key);
        let limit = self.config.samples;
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let random = hash::mix(self.random);
        let range = self.ranges.entry(map.range(key).id).or_default();
        range.accesses += 1;
        let sample = || key[..key.len().min(MAX_KEY_BYTES)].to_vec();
        if range.samples.len() < limit {
            range.samples.push(sample());
        } else if let Some(kept) =
            range.samples.get_mut(hash::scale(random, range.accesses) as usize)
        {
            *kept = sample();
        }
    }

    /// Advice, for the hottest range first. Ranges that are no longer in the map are forgotten.
    pub fn advise(&mut self, map: &RangeMap) -> Vec<Advice> {
        let present: HashMap<u64, &KeyRange> =
            map.ranges().iter().map(|range| (range.id, range)).collect();
        self.ranges.retain(|id, _| present.contains_key(id));
        let total: u64 = self.ranges.values().map(|range| range.accesses).sum();
        if total < self.config.min_accesses.max(1) {
            return Vec::new();
        }
        let hot = self.hot.top();
        let share = |id: u64| {
            self.ranges.get(&id).map_or(0.0, |range| range.accesses as f64 / total as f64)
        };
        let mut ids: Vec<u64> = present.keys().copied().collect();
        ids.sort_by(|a, b| share(*b).total_cmp(&share(*a)).then(a.cmp(b)));
        let hot_ids = ids.into_iter().filter(|&id| share(id) > self.config.hot_share);
        let mut advice: Vec<Advice> =
            hot_ids.filter_map(|id| self.relieve(map, present[&id], share(id), &hot)).collect();
        advice.extend(map.ranges().windows(2).filter_map(|pair| {
            let both = share(pair[0].id) + share(pair[1].id);
            let fit = both < self.config.cold_share && pair[0].owners == pair[1].owners;
            fit.then(|| Advice::Merge { left: pair[0].id, right: pair[1].id, share: both })
        }));
        advice
    }

    fn relieve(
        &self,
        map: &RangeMap,
        range: &KeyRange,
        share: f64,
        hot: &[HotKey],
    ) -> Option<Advice> {
        let seen = self.hot.total().max(1) as f64;
        let hottest = hot.iter().find(|key| map.range(&key.key).id == range.id);
        if let Some(key) = hottest {
            let of_all = (key.count - key.error) as f64 / seen;
            if of_all > self.config.key_share * share {
                let copies = (of_all / self.config.hot_share).ceil().max(2.0) as usize;
                let key = key.key.clone();
                return Some(Advice::Replicate { range: range.id, key, share: of_all, copies });
            }
        }
        let mut samples: Vec<&[u8]> =
            self.ranges.get(&range.id)?.samples.iter().map(Vec::as_slice).collect();
        samples.sort_unstable();
        // The sample that divides best; the range's own start would divide nothing.
        let best = (1..samples.len())
            .filter(|&at| samples[at] != samples[at - 1] && *samples[at] > *range.start)
            .min_by_key(|&at| (2 * at).abs_diff(samples.len()))?;
        let left = best as f64 / samples.len() as f64;
        Some(Advice::Split { range: range.id, at: samples[best].to_vec(), share, left })
    }

    /// Ranges and their accesses, in no order.
    pub fn accesses(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().map(|(&id, range)| (id, range.accesses))
    }

    /// The sketch of hot keys.
    pub fn hot_keys(&self) -> &HotKeys {
        &self.hot
    }

    /// Halves all counts, so that old traffic fades: call it at a fixed interval.
    pub fn decay(&mut self) {
        self.hot.decay();
        for range in self.ranges.values_mut() {
            range.accesses /= 2;
        }
    }
}

impl fmt::Debug for RangeLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeLoad")
            .field("ranges", &self.ranges.len())
            .field("hot", &self.hot)
            .finish_non_exhaustive()
    }
}
