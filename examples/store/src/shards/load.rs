//! Which places are hot: the accesses that this node served, counted by range.

use voussoir_ring::LoadConfig;
use voussoir_ring::load::{Advice, RangeLoad};

use serde::{Deserialize, Serialize};

use super::map::Routes;

/// A shard that takes a large part of the requests of its node, and where to split it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hot {
    pub shard: u64,
    /// The place that divides its requests about evenly.
    pub at: String,
    /// Its part of the node's requests, 0 to 1.
    pub share: f64,
}

/// Counts accesses under one version of the map; those of another count anew.
#[derive(Debug, Default)]
pub struct Load {
    counted: Option<(u64, RangeLoad)>,
}

impl Load {
    /// Counts one access.
    pub fn record(&mut self, routes: &Routes, place: &str) {
        let Some(ranges) = routes.ranges() else { return };
        if self.counted.as_ref().is_none_or(|(version, _)| *version != routes.map.version) {
            let mut config = LoadConfig::default();
            config.min_accesses = MIN_ACCESSES;
            config.hot_share = HOT_SHARE;
            self.counted = RangeLoad::new(&config).ok().map(|load| (routes.map.version, load));
        }
        if let Some((_, load)) = &mut self.counted {
            load.record(ranges, place.as_bytes());
        }
    }

    /// The hottest shard, if one is hot enough to be split.
    pub fn hottest(&mut self, routes: &Routes) -> Option<Hot> {
        let (version, load) = self.counted.as_mut()?;
        let ranges = routes.ranges().filter(|_| *version == routes.map.version)?;
        load.advise(ranges).into_iter().find_map(|advice| match advice {
            Advice::Split { range, at, share, .. } => {
                let at = String::from_utf8(at).ok()?;
                Some(Hot { shard: routes.shard_of(range)?, at, share })
            }
            _ => None,
        })
    }

    /// Halves all counts, so that old accesses fade.
    pub fn decay(&mut self) {
        if let Some((_, load)) = &mut self.counted {
            load.decay();
        }
    }
}

/// Accesses before any shard counts as hot.
const MIN_ACCESSES: u64 = 500;
/// The share of a node's accesses above which a shard is hot.
const HOT_SHARE: f64 = 0.4;
