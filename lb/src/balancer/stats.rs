//! Snapshots of a balancer.

use std::time::Duration;

use super::state::State;

/// How many endpoints may get new traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Availability {
    /// Endpoints that are healthy and not draining.
    pub healthy: usize,
    /// Endpoints in the set, and those that left it but still serve in its place.
    pub total: usize,
    /// Ejections that were due but would have left too few endpoints, so far. A rise says that
    /// endpoints fail that are still used: the set may be stale.
    pub refused_ejections: u64,
}

/// The state of a balancer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BalancerStats {
    /// The endpoints, in the order of the set, then those that left it but still serve.
    pub endpoints: Vec<EndpointStats>,
    /// Sets received.
    pub updates: u64,
    /// Time since the last set. `None` before the first.
    pub update_age: Option<Duration>,
    /// Picks that found no endpoint.
    pub rejected: u64,
    /// Ejections by outlier detection.
    pub ejections: u64,
}

/// The state of an endpoint.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointStats {
    /// Its name.
    pub name: String,
    /// Its configured weight.
    pub weight: u32,
    /// Whether checks and outlier detection find nothing wrong.
    pub healthy: bool,
    /// Time until its ejection ends.
    pub ejected_for: Option<Duration>,
    /// Whether it is draining.
    pub draining: bool,
    /// Picks in flight.
    pub in_flight: u32,
    /// Picks so far, those that ended at once because the endpoint was full not counted.
    pub picks: u64,
    /// Picks that finished with a failure.
    pub failures: u64,
    /// Picks that were dropped.
    pub cancelled: u64,
    /// Moving average of the latency; zero if unknown.
    pub latency: Duration,
}

impl State {
    pub(super) fn stats(&self, rejected: u64, now: u64) -> BalancerStats {
        let since = |at: u64| Duration::from_nanos(now.saturating_sub(at));
        let until = |at: u64| Duration::from_nanos(at.saturating_sub(now));
        let endpoint = |entry: &super::state::Entry| EndpointStats {
            name: entry.config.name.clone(),
            weight: entry.config.weight,
            healthy: entry.is_healthy(),
            ejected_for: entry.ejection.until.map(until),
            draining: entry.is_draining(),
            in_flight: entry.endpoint.in_flight(),
            picks: entry.endpoint.picks(),
            failures: entry.endpoint.failures(),
            cancelled: entry.endpoint.cancelled(),
            latency: Duration::from_nanos(entry.endpoint.latency(now) as u64),
        };
        BalancerStats {
            endpoints: self.entries.iter().map(endpoint).collect(),
            updates: self.updates,
            update_age: self.last_update.map(since),
            rejected,
            ejections: self.ejections,
        }
    }
}
