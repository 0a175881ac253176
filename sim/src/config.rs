//! What a family of runs has in common: a [`Config`] makes a [`Plan`] from each seed.

use crate::{ConfigError, FaultSet, Plan};

/// One microsecond in nanoseconds.
pub const MICROSECOND: u64 = 1_000;
/// One millisecond in nanoseconds.
pub const MILLISECOND: u64 = 1_000_000;
/// One second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// The bounds within which plans are drawn. All times are nanoseconds of virtual time.
///
/// # Example
/// ```
/// use voussoir_sim::{FaultClass, FaultSet, Config, SECOND};
/// let mut config = Config::default();
/// config.faults = FaultSet::ALL.without(FaultClass::DiskFull);
/// config.faults_ns = 10 * SECOND;
/// let plan = config.plan(17).unwrap();
/// assert_eq!(plan, config.plan(17).unwrap());
/// assert!(plan.intensity(FaultClass::DiskFull).is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The classes that may occur. Default: all.
    pub faults: FaultSet,
    /// How likely each of them is to be part of one plan, in millionths. Default: 500,000.
    ///
    /// Leaving out about half of the classes in each run finds more than having all of them in
    /// every run, because some faults hide others (swarm testing, Groce et al., ISSTA 2012).
    pub enable_ppm: u32,
    /// How long faults go on from the start of the run. Default: 20 s.
    pub faults_ns: u64,
    /// How long the run goes on after the last fault, for checks of liveness. Default: 20 s.
    pub settle_ns: u64,
    /// The least and the greatest one-way delay of a link without faults. The upper end of each
    /// plan is drawn between the two. Default: 50 µs to 20 ms.
    pub delay_ns: (u64, u64),
    /// The least and the greatest time of a disk operation without faults, as
    /// [`Context::disk_delay`](crate::Context::disk_delay) tells it. Default: 50 µs to 2 ms.
    pub disk_ns: (u64, u64),
    /// How fast or slow clocks may run, in millionths. Default: 10,000; at most 500,000.
    pub skew_ppm: u32,
    /// How far a clock may jump. Default: 2 s.
    pub jump_ns: u64,
    /// Bounds on what one run may take.
    pub limits: Limits,
}

/// Bounds on what one run may take. Going over one is a failure of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Most events that may be waiting at a time. Default: 1,000,000; at least 100.
    pub pending: usize,
    /// Most events in a run. Default: 100,000,000.
    pub steps: u64,
    /// How many lines of trace are kept for the report of a failure. Default: 60.
    pub trace_lines: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { pending: 1_000_000, steps: 100_000_000, trace_lines: 60 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            faults: FaultSet::ALL,
            enable_ppm: 500_000,
            faults_ns: 20 * SECOND,
            settle_ns: 20 * SECOND,
            delay_ns: (50 * MICROSECOND, 20 * MILLISECOND),
            disk_ns: (50 * MICROSECOND, 2 * MILLISECOND),
            skew_ppm: 10_000,
            jump_ns: 2 * SECOND,
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// The plan that `seed` stands for.
    ///
    /// # Errors
    /// [`ConfigError`] if a field of the config is out of its bounds.
    pub fn plan(&self, seed: u64) -> Result<Plan, ConfigError> {
        self.validate()?;
        Ok(Plan::draw(self, seed))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        const YEAR: u64 = 365 * 24 * 3_600 * SECOND;
        const A_YEAR: &str = "must be at most 365 days";
        const ORDER: &str = "must not run from a higher to a lower value";
        let millionths = "must be at most 1,000,000";
        let rules = [
            ("delay_ns", self.delay_ns.0 <= self.delay_ns.1, ORDER),
            ("disk_ns", self.disk_ns.0 <= self.disk_ns.1, ORDER),
            ("enable_ppm", self.enable_ppm <= 1_000_000, millionths),
            ("faults_ns", self.faults_ns <= YEAR, A_YEAR),
            ("settle_ns", self.settle_ns <= YEAR, A_YEAR),
            ("delay_ns", self.delay_ns.1 <= YEAR, A_YEAR),
            ("disk_ns", self.disk_ns.1 <= YEAR, A_YEAR),
            ("skew_ppm", self.skew_ppm <= 500_000, "must be at most 500,000"),
            ("jump_ns", self.jump_ns <= YEAR, A_YEAR),
            (
                "limits.pending",
                (100..=u32::MAX as usize).contains(&self.limits.pending),
                "must be between 100 and 4,294,967,295",
            ),
            (
                "limits.trace_lines",
                (1..=10_000_000).contains(&self.limits.trace_lines),
                "must be between 1 and 10,000,000",
            ),
        ];
        for (field, holds, rule) in rules {
            if !holds {
                return Err(ConfigError { field, rule });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_out_of_bounds_is_named() {
        let range = Config { delay_ns: (2, 1), ..Config::default() };
        assert_eq!(range.plan(1).unwrap_err().field, "delay_ns");
        let skew = Config { skew_ppm: 2_000_000, ..Config::default() };
        let error = skew.plan(1).unwrap_err();
        assert_eq!(error.to_string(), "`skew_ppm` must be at most 500,000");
    }
}
