//! Configuration, validated where it is used.

use std::time::Duration;

/// How a [`HashRing`](crate::HashRing) is laid out.
///
/// # Example
/// ```
/// use voussoir_ring::{HashRing, Node, RingConfig, Topology};
/// let mut config = RingConfig::default();
/// config.virtual_nodes = 512;
/// let ring = HashRing::with_config(&Topology::new(1, [Node::new(1)])?, &config)?;
/// assert_eq!(ring.points(), 512);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingConfig {
    /// Points on the ring for a node of weight one: 1 to 65,536. More points spread the keys more
    /// evenly (the deviation of a node's load falls with the square root) and take more memory (17
    /// bytes each). Default: 160.
    pub virtual_nodes: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self { virtual_nodes: 160 }
    }
}

/// How a plan is cut into steps and how fast they follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanConfig {
    /// The most moves of one step: at least 1. Default: 64.
    pub moves_per_step: usize,
    /// The most moves of one step that read from, or write to, one node: at least 1. Default: 4.
    pub moves_per_node: usize,
    /// The pause after each step. Default: none.
    pub step_pause: Duration,
    /// How long a failed move waits before it is tried again. Default: 1 s.
    pub retry_after: Duration,
}

impl Default for PlanConfig {
    fn default() -> Self {
        Self {
            moves_per_step: 64,
            moves_per_node: 4,
            step_pause: Duration::ZERO,
            retry_after: Duration::from_secs(1),
        }
    }
}

/// The size of a [`HotKeys`](crate::load::HotKeys) sketch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HotKeysConfig {
    /// How many keys are counted at once: 1 to 1,048,576. Every key with more than `1 / counters`
    /// of the traffic is found. Default: 4096.
    pub counters: usize,
    /// The longest key kept whole, in bytes: 1 to 1024. Longer keys are told apart by their hash
    /// and reported by their first bytes. Default: 64.
    pub key_bytes: usize,
}

impl Default for HotKeysConfig {
    fn default() -> Self {
        Self { counters: 4096, key_bytes: 64 }
    }
}

/// When a [`RangeLoad`](crate::load::RangeLoad) gives which advice.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LoadConfig {
    /// A range with more than this share of all traffic is hot: above 0, at most 1. Default: 0.1.
    pub hot_share: f64,
    /// Two neighbours that together have less than this share are worth merging: 0 (never) to
    /// `hot_share`. Default: 0.
    pub cold_share: f64,
    /// A key with more than this share of its range's traffic is to be replicated, since no split
    /// divides it: above 0, at most 1. Default: 0.5.
    pub key_share: f64,
    /// Accesses seen before any advice is given. Default: 10,000.
    pub min_accesses: u64,
    /// Keys sampled in each range to find where to split it: 8 to 4096. Default: 128.
    pub samples: usize,
    /// The sketch of hot keys.
    pub hot_keys: HotKeysConfig,
    /// Starts the sampling. Default: `None`, drawn from the system when the count is made.
    pub seed: Option<u64>,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            hot_share: 0.1,
            cold_share: 0.0,
            key_share: 0.5,
            min_accesses: 10_000,
            samples: 128,
            hot_keys: HotKeysConfig::default(),
            seed: None,
        }
    }
}
