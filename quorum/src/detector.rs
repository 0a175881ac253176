//! Suspicion of nodes by their heartbeats: the phi accrual failure detector (Hayashibara, Défago,
//! Yared, Katayama 2004). Pure: time is passed in.
//!
//! Suspicion steers routing only: which replica is asked first, whom to hedge. It never changes who
//! holds a key, and no quorum shrinks because of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ConfigError;

/// What tells which nodes are worth asking: a [`FailureDetector`], or a membership protocol such as
/// SWIM. Called often and under no lock; it answers at once, from what it knows.
pub trait Availability: Send + Sync {
    /// Whether the node is thought to answer. `now` is in ns. A wrong answer costs time, never
    /// correctness. An unknown node is available: nothing speaks against it.
    fn is_available(&self, node: u64, now: u64) -> bool;
}

/// Configuration of a [`FailureDetector`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DetectorConfig {
    /// Phi from which a node is suspected: the chance to be wrong is about 10^-phi. From 1 to 100.
    /// Default 8.
    pub threshold: f64,
    /// Intervals between heartbeats that are remembered of each node, 8 bytes each. From 1 to
    /// 10,000. Default 200.
    pub max_samples: usize,
    /// The least deviation that is assumed: the more regular heartbeats are, the less a late one
    /// may mean. From 1 ms to 1 hour. Default 100 ms.
    pub min_deviation: Duration,
    /// Added to the mean interval: how long a pause is not suspicious by itself (a collection of
    /// garbage, a short loss of the network). Up to 1 hour. Default 1 s.
    pub acceptable_pause: Duration,
    /// The interval that is expected before any was measured. From 1 ms to 1 hour. Default 1 s.
    pub first_interval: Duration,
    /// Nodes that are remembered. One beyond is not: it counts as available. From 1 to 1,000,000.
    /// Default 1,024.
    pub max_nodes: usize,
}

impl Default for DetectorConfig {
    fn default() -> Self {
        Self {
            threshold: 8.0,
            max_samples: 200,
            min_deviation: Duration::from_millis(100),
            acceptable_pause: Duration::from_secs(1),
            first_interval: Duration::from_secs(1),
            max_nodes: 1_024,
        }
    }
}

impl DetectorConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let hour = Duration::from_secs(3_600);
        let times = Duration::from_millis(1)..=hour;
        let rules = [
            ("threshold", (1.0..=100.0).contains(&self.threshold), "must be from 1 to 100"),
            ("max_samples", (1..=10_000).contains(&self.max_samples), "must be from 1 to 10,000"),
            ("min_deviation", times.contains(&self.min_deviation), "must be from 1 ms to 1 hour"),
            ("acceptable_pause", self.acceptable_pause <= hour, "must not be above 1 hour"),
            ("first_interval", times.contains(&self.first_interval), "must be from 1 ms to 1 hour"),
            ("max_nodes", (1..=1_000_000).contains(&self.max_nodes), "must be from 1 to 1,000,000"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

/// A longer interval counts as one of a day: 10,000 squares of it, 10,000 times, fit into 128 bits.
const MAX_INTERVAL: u64 = 86_400_000_000_000;

/// So many surprising intervals in a row are no crashes.
const NEW_RHYTHM: u32 = 3;

/// Learns how regular the heartbeats of each node are, and says how surprising its silence is.
///
/// Any message of a node may count as a heartbeat. Memory: at most `max_nodes` times `max_samples`
/// intervals.
///
/// # Example
/// ```
/// use voussoir_quorum::detector::{Availability, DetectorConfig, FailureDetector};
/// const SECOND: u64 = 1_000_000_000;
/// let mut detector = FailureDetector::new(DetectorConfig::default())?;
/// (0..10).for_each(|at| detector.heartbeat(7, at * SECOND));
/// assert!(detector.is_available(7, 10 * SECOND));
/// assert!(!detector.is_available(7, 30 * SECOND));
/// detector.heartbeat(7, 31 * SECOND);
/// assert!(detector.is_available(7, 31 * SECOND));
/// # Ok::<(), voussoir_quorum::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct FailureDetector {
    config: DetectorConfig,
    /// Invariant: at most `max_nodes`.
    nodes: BTreeMap<u64, Heartbeats>,
}

#[derive(Clone, Debug)]
struct Heartbeats {
    /// The latest one, in ns.
    last: u64,
    /// Intervals in ns, the oldest first. Invariant: at most `max_samples`.
    intervals: VecDeque<u64>,
    /// Their sum, and that of their squares. Exact: no error grows with the number of heartbeats.
    sum: u128,
    squares: u128,
    /// How many of the latest intervals in a row ended a suspicion.
    surprises: u32,
}

impl FailureDetector {
    /// A detector that knows no node.
    ///
    /// # Errors
    /// [`ConfigError`]: a field is out of range.
    pub fn new(config: DetectorConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { config, nodes: BTreeMap::new() })
    }

    /// Records a sign of life at `now`, in ns. One that is not later than the latest changes
    /// nothing.
    ///
    /// A silence after which the node was suspected is not learned: a crash is no interval, and
    /// would hide the next one. Three of them in a row are a new rhythm, which replaces the old.
    pub fn heartbeat(&mut self, node: u64, now: u64) {
        let is_suspected = self.phi(node, now) >= self.config.threshold;
        let is_full = self.nodes.len() >= self.config.max_nodes;
        let max_samples = self.config.max_samples;
        let Some(known) = self.nodes.get_mut(&node) else {
            if !is_full {
                let intervals = VecDeque::new();
                let new = Heartbeats { last: now, intervals, sum: 0, squares: 0, surprises: 0 };
                self.nodes.insert(node, new);
            }
            return;
        };
        let interval = now.saturating_sub(known.last).min(MAX_INTERVAL);
        known.last = known.last.max(now);
        if interval == 0 {
            return;
        }
        known.surprises = if is_suspected { known.surprises + 1 } else { 0 };
        if known.surprises >= NEW_RHYTHM {
            (known.surprises, known.sum, known.squares) = (0, 0, 0);
            known.intervals.clear();
            known.learn(interval, max_samples);
        } else if !is_suspected {
            known.learn(interval, max_samples);
        }
    }

    /// Forgets a node that has left.
    pub fn remove(&mut self, node: u64) {
        self.nodes.remove(&node);
    }

    /// How surprising the silence of the node is at `now`: -log10 of the chance that its heartbeat
    /// comes later still. 0 for an unknown node; grows without bound, and never falls while the
    /// node is silent.
    pub fn phi(&self, node: u64, now: u64) -> f64 {
        let Some(known) = self.nodes.get(&node) else { return 0.0 };
        let (mean, deviation) = known.mean_and_deviation(&self.config);
        let silence = now.saturating_sub(known.last) as f64;
        // The tail of the normal distribution by a logistic function: within 2 % up to three
        // deviations, and above it beyond them (9.3 instead of 8.0 at 5.6).
        let y = (silence - mean) / deviation;
        let exponent = y * (1.5976 + 0.070_566 * y * y);
        // -log10(1 / (1 + e^x)), also where e^x is too large for a number.
        let ln = if exponent > 30.0 { exponent } else { exponent.exp().ln_1p() };
        ln / std::f64::consts::LN_10
    }
}

impl Availability for FailureDetector {
    fn is_available(&self, node: u64, now: u64) -> bool {
        self.phi(node, now) < self.config.threshold
    }
}

impl Heartbeats {
    fn learn(&mut self, interval: u64, max_samples: usize) {
        if self.intervals.len() >= max_samples
            && let Some(oldest) = self.intervals.pop_front()
        {
            self.sum -= u128::from(oldest);
            self.squares -= square(oldest);
        }
        self.intervals.push_back(interval);
        self.sum += u128::from(interval);
        self.squares += square(interval);
    }

    /// In ns.
    fn mean_and_deviation(&self, config: &DetectorConfig) -> (f64, f64) {
        let pause = config.acceptable_pause.as_nanos() as f64;
        let least = config.min_deviation.as_nanos() as f64;
        if self.intervals.is_empty() {
            let first = config.first_interval.as_nanos() as f64;
            return (first + pause, least.max(first / 4.0));
        }
        let count = self.intervals.len() as u128;
        let mean = self.sum as f64 / count as f64;
        // n * squares - sum^2, without cancellation: all are integers.
        let spread = (count * self.squares).saturating_sub(self.sum * self.sum);
        let deviation = (spread as f64).sqrt() / count as f64;
        (mean + pause, deviation.max(least))
    }
}

fn square(interval: u64) -> u128 {
    u128::from(interval) * u128::from(interval)
}
