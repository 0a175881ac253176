//! The latency of late, and that without a queue.

use super::{Bounded, LimitSample};

/// Measures the mean latency of calls that begin while at most half of the limit runs.
///
/// Where the load leaves half of the limit free, such calls come by themselves, and nobody is
/// refused for the measure. Only if there were too few of them since the last one, the limit is
/// lowered to half until there are a limit's worth, or for two limits' worth of samples. Taken
/// under load, the measure would drift upwards with the very queue that it is meant to show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// Limits' worth of samples from one measure to the next.
    after: u64,
    samples: u64,
    /// When the limit is lowered: for so many samples at most.
    end: Option<u64>,
    /// Calls that have begun with at most half of the limit running, since the last measure.
    seen: Mean,
}

/// Decision about a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// Use the sample as usual.
    Go,
    /// The limit is lowered: this is the limit meanwhile.
    Probing(usize),
    /// A measure has ended, with this mean latency.
    Found(f64),
}

impl Probe {
    pub(super) fn new(after: u32) -> Self {
        let after = u64::from(after.max(1));
        Self { after, samples: 0, end: None, seen: Mean::default() }
    }

    pub(super) fn step(&mut self, sample: &LimitSample, limit: Bounded) -> Step {
        self.samples += 1;
        if !sample.is_overload && sample.running <= limit.half() {
            self.seen.add(sample.latency as f64, u32::MAX);
        }
        let worth = limit.get() as u64;
        let is_enough = u64::from(self.seen.count) >= worth;
        match self.end {
            None if self.samples < worth.saturating_mul(self.after) => return Step::Go,
            None if !is_enough => {
                (self.samples, self.end) = (0, Some(worth.saturating_mul(2)));
                return Step::Probing(limit.half());
            }
            Some(end) if self.samples < end && !is_enough => return Step::Probing(limit.half()),
            None | Some(_) => {}
        }
        (self.samples, self.end) = (0, None);
        let seen = std::mem::take(&mut self.seen);
        if seen.count == 0 { Step::Go } else { Step::Found(seen.value) }
    }
}

/// A mean of latencies, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mean {
    pub(super) value: f64,
    pub(super) count: u32,
}

impl Mean {
    /// Adds one. The mean grows into its window, then forgets exponentially.
    pub(super) fn add(&mut self, value: f64, window: u32) {
        self.count = self.count.saturating_add(1).min(window);
        self.value += (value - self.value) / f64::from(self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a probe over a limit of 10, measured after each 2 limits' worth.
    fn steps(running: impl Fn(usize) -> usize, count: usize) -> Vec<Step> {
        let (mut probe, limit) = (Probe::new(2), Bounded::new(10, 1, 100));
        let mut limited = 10;
        let mut step = |at: usize| {
            let running = running(at).min(limited);
            let latency = 100 * running as u64;
            let step = probe.step(&LimitSample::new(at as u64, latency, running, false), limit);
            limited = if let Step::Probing(half) = step { half } else { 10 };
            step
        };
        (0..count).map(&mut step).collect()
    }

    #[test]
    fn a_load_that_leaves_half_of_the_limit_free_is_not_cut() {
        // Every other call begins beside four others.
        let steps = steps(|at| if at % 2 == 0 { 9 } else { 5 }, 200);
        assert!(!steps.iter().any(|step| matches!(step, Step::Probing(_))), "{steps:?}");
        assert_eq!(steps.iter().filter(|step| **step == Step::Found(500.0)).count(), 10);
    }

    #[test]
    fn a_load_that_fills_the_limit_is_cut_for_a_limits_worth() {
        let steps = steps(|_| 10, 30);
        assert!(steps[..19].iter().all(|step| *step == Step::Go), "{steps:?}");
        assert!(steps[19..29].iter().all(|step| *step == Step::Probing(5)), "{steps:?}");
        assert_eq!(steps[29], Step::Found(500.0));
    }
}
