//! Algorithms that find out how many calls a dependency can take at once.

mod aimd;
mod gradient;
mod probe;
mod vegas;

use std::fmt;

pub use aimd::{Aimd, AimdConfig};
pub use gradient::{Gradient2, Gradient2Config};
pub use vegas::{Vegas, VegasConfig};

/// One call that has ended, as an algorithm is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitSample {
    /// When it ended, in nanoseconds since any fixed moment.
    pub now: u64,
    /// How long it took, in nanoseconds, at least 1.
    pub latency: u64,
    /// Calls running when it began, itself included.
    pub running: usize,
    /// Whether it timed out, or the dependency rejected it because of overload.
    pub is_overload: bool,
}

impl LimitSample {
    /// A sample. A latency of zero counts as one.
    pub fn new(now: u64, latency: u64, running: usize, is_overload: bool) -> Self {
        Self { now, latency: latency.max(1), running, is_overload }
    }
}

/// Finds a limit from samples. Plain state: no clock, no lock, no randomness.
///
/// Implement it to bring your own; `testing::check_limit_algorithm` is what each must pass.
pub trait LimitAlgorithm: Send + fmt::Debug {
    /// The limit before the first sample.
    fn initial(&self) -> usize;

    /// The limit after one more sample. Called for one sample at a time, in the order in which
    /// calls end, and without a lock: it may ask the limit that it works for, and samples that it
    /// causes are told later. If it panics, the panic ends the call whose sample it was given, and
    /// the limit stays as it was.
    fn update(&mut self, sample: &LimitSample) -> usize;
}

/// Calls over which a latency is averaged, at least.
const MIN_WINDOW: u32 = 20;

/// A limit between two bounds, as a float, so that steps smaller than one add up.
#[derive(Clone, Copy, Debug)]
struct Bounded {
    value: f64,
    min: f64,
    max: f64,
}

impl Bounded {
    fn new(initial: usize, min: usize, max: usize) -> Self {
        let (min, max) = (min.max(1), max.max(min.max(1)));
        Self { value: initial.clamp(min, max) as f64, min: min as f64, max: max as f64 }
    }

    fn set(&mut self, value: f64) {
        // A NaN becomes `min`: `f64::clamp` would return it, `max` returns the other operand.
        self.value = value.max(self.min).min(self.max);
    }

    fn get(self) -> usize {
        self.value as usize
    }

    /// Half of the limit, at least `min`.
    fn half(self) -> usize {
        (self.value / 2.0).max(self.min) as usize
    }

    /// Calls over which the latency of late is averaged: a limit's worth, and not too few.
    fn window(self) -> u32 {
        (self.value as u32).max(MIN_WINDOW)
    }

    /// Whether at least half of the limit is in use: else a sample is no reason to raise it.
    fn is_used_by(self, running: usize) -> bool {
        running as f64 * 2.0 >= self.value
    }
}
