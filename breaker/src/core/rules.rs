//! The configuration as the core uses it: validated, in nanoseconds and in millionths.

use super::window::{Counts, WindowKind};

/// Millionths in one.
const WHOLE: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub(crate) struct Thresholds {
    pub(crate) shape: WindowKind,
    pub(crate) min_calls: u64,
    /// Millionths of the calls.
    pub(crate) failure_rate: Option<u64>,
    pub(crate) slow_rate: Option<u64>,
    pub(crate) consecutive_failures: Option<u64>,
    pub(crate) open_for: u64,
    pub(crate) max_open_for: u64,
    pub(crate) open_backoff: f64,
    pub(crate) open_jitter: f64,
    pub(crate) probes: u16,
    pub(crate) max_bad_probes: u16,
    pub(crate) max_half_open_for: Option<u64>,
    pub(crate) seed: u64,
}

/// Why a closed breaker opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trip {
    ConsecutiveFailures,
    FailureRate,
    SlowRate,
}

impl Thresholds {
    /// Which rate opens the breaker, if any. Called after a bad call was recorded, because a
    /// success never opens a breaker.
    pub(crate) fn judge(&self, counts: Counts) -> Option<Trip> {
        if counts.calls < self.min_calls {
            return None;
        }
        let reaches = |bad: u64, rate: Option<u64>| {
            rate.is_some_and(|rate| bad > 0 && bad * WHOLE >= rate * counts.calls)
        };
        if reaches(counts.failures, self.failure_rate) {
            Some(Trip::FailureRate)
        } else if reaches(counts.slow, self.slow_rate) {
            Some(Trip::SlowRate)
        } else {
            None
        }
    }

    /// How long the breaker stays open at its `openings`-th opening in a row (from 1), in ns.
    pub(crate) fn open_wait(&self, openings: u32, rng: &mut fastrand::Rng) -> u64 {
        let again = openings.saturating_sub(1);
        let exponent = i32::try_from(again).unwrap_or(i32::MAX);
        let grown = self.open_for as f64 * self.open_backoff.powi(exponent);
        let capped = grown.min(self.max_open_for as f64);
        // Around the value, and never above the cap: callers size their waits by it.
        let spread = 1.0 + self.open_jitter * (2.0 * rng.f64() - 1.0);
        (capped * spread).min(self.max_open_for as f64) as u64
    }
}

pub(crate) fn millionths(rate: f64) -> u64 {
    (rate * WHOLE as f64).round() as u64
}
