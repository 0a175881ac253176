//! Configurations: plain data with defaults, checked when a balancer is built.

use std::time::Duration;

use crate::error::ConfigError;

/// How a [`Balancer`](crate::Balancer) chooses among endpoints, apart from its strategy.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Seed of the random numbers. `None` takes the thread's generator.
    pub seed: Option<u64>,
    /// Picks that one endpoint may hold at a time, 1 to 16,777,215. `None` is the upper end. A
    /// full endpoint is skipped; when all are full, nothing is picked.
    pub max_in_flight: Option<u32>,
    /// Time in which the load of a failure decays to one half, 1 ms to 1 hour; default 1 s. A
    /// failure counts as one request in flight, so an endpoint that fails fast attracts nothing.
    pub failure_half_life: Duration,
    /// Thresholds of active checks. With `Some`, an endpoint gets no traffic before its first check
    /// has passed. `None` (the default): no checks run, every endpoint counts as healthy.
    pub checks: Option<CheckConfig>,
    /// Passive outlier detection. `None` (the default) is off.
    pub outliers: Option<OutlierConfig>,
    /// Gradual admission of endpoints that join a set or become healthy. `None` is off.
    pub slow_start: Option<SlowStartConfig>,
    /// Preference for endpoints of the caller's zone. `None` is off.
    pub zone: Option<ZoneConfig>,
    /// How traffic overflows from one priority to the next, and what happens in a panic.
    pub priorities: PriorityConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: None,
            max_in_flight: None,
            failure_half_life: Duration::from_secs(1),
            checks: None,
            outliers: None,
            slow_start: None,
            zone: None,
            priorities: PriorityConfig::default(),
        }
    }
}

/// One endpoint as configuration or discovery names it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointConfig {
    /// The identity of the endpoint, such as `10.0.0.1:8080`. State is kept by this name.
    pub name: String,
    /// Relative share of the traffic, 1 to 65,535; default 1.
    pub weight: u32,
    /// The zone the endpoint runs in.
    pub zone: Option<String>,
    /// 0 is used first; higher numbers take what lower ones cannot. Default 0.
    pub priority: u8,
    /// Whether the endpoint gets no new traffic, apart from the sessions bound to it.
    pub draining: bool,
}

impl EndpointConfig {
    /// An endpoint of weight 1 and priority 0.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), weight: 1, zone: None, priority: 0, draining: false }
    }

    /// Sets the weight.
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the zone.
    pub fn with_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets the priority.
    pub fn with_priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// Marks the endpoint as draining.
    pub fn draining(mut self) -> Self {
        self.draining = true;
        self
    }
}

/// Passive detection of endpoints that answer worse than the others.
///
/// An ejected endpoint gets no traffic for `base_ejection` times its number of ejections in a row.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OutlierConfig {
    /// Failures in a row that eject, 1 or more; `None` is off. Default 5.
    pub consecutive_failures: Option<u32>,
    /// Ejection by the share of successes. Default on.
    pub success_rate: Option<SuccessRateOutliers>,
    /// Ejection by the mean latency. Default off.
    pub latency: Option<LatencyOutliers>,
    /// Length of the windows of `success_rate` and `latency`, 10 ms to 1 hour; default 10 s.
    pub interval: Duration,
    /// Length of the first ejection, 1 ms to 1 day; default 30 s.
    pub base_ejection: Duration,
    /// The longest ejection, at least `base_ejection`, at most 1 day; default 5 min.
    pub max_ejection: Duration,
    /// Share of the endpoints that may be ejected, counted with the new one, 0 to 1; default 0.5.
    /// One endpoint always stays.
    pub max_ejected_share: f64,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        Self {
            consecutive_failures: Some(5),
            success_rate: Some(SuccessRateOutliers::default()),
            latency: None,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_share: 0.5,
        }
    }
}

/// Ejects endpoints whose success rate lies below `mean - factor * standard deviation`, with more
/// failures than chance explains: `n + 4 * sqrt(n) + 2` where the mean rate leaves `n` to expect.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SuccessRateOutliers {
    /// Endpoints that need `min_requests` before any is ejected, 2 or more; default 5.
    pub min_endpoints: u32,
    /// Requests that an endpoint needs in the window, 1 or more; default 100.
    pub min_requests: u32,
    /// Standard deviations below the mean, above 0 and at most 10; default 1.9.
    pub factor: f64,
}

impl Default for SuccessRateOutliers {
    fn default() -> Self {
        Self { min_endpoints: 5, min_requests: 100, factor: 1.9 }
    }
}

/// Ejects endpoints whose mean latency is above `factor` times the median of all endpoints.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LatencyOutliers {
    /// Endpoints that need `min_requests` before any is ejected, 2 or more; default 3.
    pub min_endpoints: u32,
    /// Requests that an endpoint needs in the window, 1 or more; default 100.
    pub min_requests: u32,
    /// Multiple of the median, above 1 and at most 1,000; default 3.
    pub factor: f64,
}

impl Default for LatencyOutliers {
    fn default() -> Self {
        Self { min_endpoints: 3, min_requests: 100, factor: 3.0 }
    }
}

/// How many results of active checks in a row change the health of an endpoint. The first result
/// of a new endpoint decides alone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckConfig {
    /// Passed checks that make an unhealthy endpoint healthy, 1 or more; default 2.
    pub rise: u32,
    /// Failed checks that make a healthy endpoint unhealthy, 1 or more; default 3.
    pub fall: u32,
}

impl Default for CheckConfig {
    fn default() -> Self {
        Self { rise: 2, fall: 3 }
    }
}

/// Gradual admission: the weight grows linearly from `floor` to the whole within `window`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SlowStartConfig {
    /// Length of the ramp, 20 ms to 1 day; default 30 s.
    pub window: Duration,
    /// Share of the weight at the start, 0.05 to 1; default 0.1.
    pub floor: f64,
}

impl Default for SlowStartConfig {
    fn default() -> Self {
        Self { window: Duration::from_secs(30), floor: 0.1 }
    }
}

/// Preference for the caller's zone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ZoneConfig {
    /// The zone of this process. Not empty.
    pub local: String,
    /// Share of all callers that run in this zone, above 0 and at most 1. With it, the zone keeps
    /// only as much traffic as its share of the healthy weight can serve. `None` (the default)
    /// keeps all traffic while the zone is healthy.
    pub callers_share: Option<f64>,
}

impl ZoneConfig {
    /// Prefers `local` while it is healthy.
    pub fn new(local: impl Into<String>) -> Self {
        Self { local: local.into(), callers_share: None }
    }
}

/// What is done when too few endpoints of a priority are healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPanic {
    /// Traffic goes to healthy and unhealthy endpoints alike, because health is likely wrong.
    #[default]
    UseAll,
    /// Nothing is picked from that priority.
    Reject,
}

/// Overflow between priorities, and panic.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PriorityConfig {
    /// A priority takes all of its traffic while `healthy share * overprovisioning >= 1`.
    /// 1 to 10; default 1.4.
    pub overprovisioning: f64,
    /// Healthy share below which a priority panics, when all priorities together cannot take the
    /// traffic. 0 (never) to 1; default 0.5.
    pub panic_threshold: f64,
    /// What a panic does.
    pub on_panic: OnPanic,
}

impl Default for PriorityConfig {
    fn default() -> Self {
        Self { overprovisioning: 1.4, panic_threshold: 0.5, on_panic: OnPanic::UseAll }
    }
}

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

fn check(holds: bool, field: &'static str, rule: &'static str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::new(field, rule)) }
}

impl Config {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let in_flight = self.max_in_flight.is_none_or(|max| (1..=0xFF_FFFF).contains(&max));
        check(in_flight, "max_in_flight", "must be between 1 and 16777215")?;
        let half_life = (MS..=HOUR).contains(&self.failure_half_life);
        check(half_life, "failure_half_life", "must be between 1 ms and 1 hour")?;
        if let Some(checks) = &self.checks {
            check(checks.rise >= 1, "checks.rise", "must be at least 1")?;
            check(checks.fall >= 1, "checks.fall", "must be at least 1")?;
        }
        if let Some(outliers) = &self.outliers {
            outliers.validate()?;
        }
        if let Some(slow) = &self.slow_start {
            let window = (20 * MS..=DAY).contains(&slow.window);
            check(window, "slow_start.window", "must be between 20 ms and 1 day")?;
            let floor = (0.05..=1.0).contains(&slow.floor);
            check(floor, "slow_start.floor", "must be between 0.05 and 1")?;
        }
        if let Some(zone) = &self.zone {
            check(!zone.local.is_empty(), "zone.local", "must not be empty")?;
            let share = zone.callers_share.is_none_or(|share| share > 0.0 && share <= 1.0);
            check(share, "zone.callers_share", "must be above 0 and at most 1")?;
        }
        let factor = (1.0..=10.0).contains(&self.priorities.overprovisioning);
        check(factor, "priorities.overprovisioning", "must be between 1 and 10")?;
        let threshold = (0.0..=1.0).contains(&self.priorities.panic_threshold);
        check(threshold, "priorities.panic_threshold", "must be between 0 and 1")
    }
}

impl OutlierConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let row = self.consecutive_failures.is_none_or(|row| row >= 1);
        check(row, "outliers.consecutive_failures", "must be at least 1")?;
        if let Some(rate) = &self.success_rate {
            check(rate.min_endpoints >= 2, "success_rate.min_endpoints", "must be at least 2")?;
            check(rate.min_requests >= 1, "success_rate.min_requests", "must be at least 1")?;
            let factor = rate.factor > 0.0 && rate.factor <= 10.0;
            check(factor, "success_rate.factor", "must be above 0 and at most 10")?;
        }
        if let Some(latency) = &self.latency {
            check(latency.min_endpoints >= 2, "latency.min_endpoints", "must be at least 2")?;
            check(latency.min_requests >= 1, "latency.min_requests", "must be at least 1")?;
            let factor = latency.factor > 1.0 && latency.factor <= 1_000.0;
            check(factor, "latency.factor", "must be above 1 and at most 1000")?;
        }
        let interval = (10 * MS..=HOUR).contains(&self.interval);
        check(interval, "outliers.interval", "must be between 10 ms and 1 hour")?;
        let base = (MS..=DAY).contains(&self.base_ejection);
        check(base, "outliers.base_ejection", "must be between 1 ms and 1 day")?;
        let max = (self.base_ejection..=DAY).contains(&self.max_ejection);
        check(max, "outliers.max_ejection", "must be between `base_ejection` and 1 day")?;
        let share = (0.0..=1.0).contains(&self.max_ejected_share);
        check(share, "outliers.max_ejected_share", "must be between 0 and 1")
    }
}
