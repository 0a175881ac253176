//! What a family of runs has in common: a [`Profile`] makes a [`Plan`] from each seed.

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
/// use voussoir_sim::{FaultClass, FaultSet, Profile, SECOND};
/// let mut profile = Profile::default();
/// profile.faults = FaultSet::ALL.without(FaultClass::DiskFull);
/// profile.faults_ns = 10 * SECOND;
/// let plan = profile.plan(17).unwrap();
/// assert_eq!(plan, profile.plan(17).unwrap());
/// assert!(plan.intensity(FaultClass::DiskFull).is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Profile {
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

impl Default for Profile {
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

impl Profile {
    /// The plan that `seed` stands for.
    ///
    /// # Errors
    /// [`ConfigError`] if a field of the profile is out of its bounds.
    pub fn plan(&self, seed: u64) -> Result<Plan, ConfigError> {
        self.validate()?;
        Ok(Plan::draw(self, seed))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        for (field, (low, high)) in [("delay_ns", self.delay_ns), ("disk_ns", self.disk_ns)] {
            if low > high {
                return Err(ConfigError::EmptyRange { field });
            }
        }
        let year = 365 * 24 * 3_600 * SECOND;
        for (field, value, min, max) in [
            ("enable_ppm", u64::from(self.enable_ppm), 0, 1_000_000),
            ("faults_ns", self.faults_ns, 0, year),
            ("settle_ns", self.settle_ns, 0, year),
            ("delay_ns", self.delay_ns.1, 0, year),
            ("disk_ns", self.disk_ns.1, 0, year),
            ("skew_ppm", u64::from(self.skew_ppm), 0, 500_000),
            ("jump_ns", self.jump_ns, 0, year),
            ("limits.pending", self.limits.pending as u64, 100, u64::from(u32::MAX)),
            ("limits.trace_lines", self.limits.trace_lines as u64, 1, 10_000_000),
        ] {
            if !(min..=max).contains(&value) {
                return Err(ConfigError::OutOfRange { field, min, max });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_out_of_bounds_names_its_field() {
        let range = Profile { delay_ns: (2, 1), ..Profile::default() };
        assert_eq!(range.plan(1), Err(ConfigError::EmptyRange { field: "delay_ns" }));
        let skew = Profile { skew_ppm: 2_000_000, ..Profile::default() };
        let error = skew.plan(1).unwrap_err();
        assert_eq!(error.to_string(), "`skew_ppm` must be between 0 and 500000");
    }
}
