//! Repeated measurement of the latency without a queue.

use super::{Bounded, LimitSample};

/// Lowers the limit to half for two limits' worth of samples and looks at the second of them: the
/// first still belongs to the load before. Taken under load, the measure would drift upwards with
/// the very queue that it is meant to show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// Limits' worth of samples from one probe to the next.
    after: u64,
    samples: u64,
    /// The end of the probe under way, in samples.
    end: Option<u64>,
    seen: Seen,
}

/// Latencies of a probe, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) least: u64,
    sum: u128,
    count: u64,
}

impl Seen {
    pub(super) fn mean(self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }
}

/// Decision about a sample.
pub(super) enum Step {
    /// Use the sample as usual.
    Go,
    /// A probe is under way: this is the limit meanwhile.
    Probing(usize),
    /// A probe has ended.
    Found(Seen),
}

impl Probe {
    pub(super) fn new(after: u32) -> Self {
        let after = u64::from(after.max(1));
        Self { after, samples: 0, end: None, seen: Seen::default() }
    }

    pub(super) fn step(&mut self, sample: &LimitSample, limit: Bounded) -> Step {
        self.samples += 1;
        let worth = limit.get() as u64;
        let Some(end) = self.end else {
            if self.samples < worth.saturating_mul(self.after) {
                return Step::Go;
            }
            (self.samples, self.end) = (0, Some(worth.saturating_mul(2)));
            self.seen = Seen { least: u64::MAX, ..Seen::default() };
            return Step::Probing(limit.half());
        };
        if self.samples > end / 2 && !sample.is_overload {
            self.seen.least = self.seen.least.min(sample.latency);
            self.seen.sum += u128::from(sample.latency);
            self.seen.count += 1;
        }
        if self.samples < end {
            return Step::Probing(limit.half());
        }
        (self.samples, self.end) = (0, None);
        if self.seen.count == 0 { Step::Go } else { Step::Found(self.seen) }
    }
}
