//! A limit from the gradient of the latency.

use super::probe::{Probe, Step};
use super::{Bounded, LimitAlgorithm, LimitSample};

/// Latency above that of a probe at half the limit that may pass for none. Below 2, or the limit
/// that a probe finds would be higher than the one it was taken at.
const PROBED_TOLERANCE: f64 = 1.5;

/// How [`Gradient2`] moves.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Gradient2Config {
    /// The first limit. Default 20.
    pub initial: usize,
    /// Never below. Default 1.
    pub min: usize,
    /// Never above. Default 1,000.
    pub max: usize,
    /// Latency above the long-term one that is not yet a queue, as a factor of at least 1.
    /// Default 1.5.
    pub tolerance: f64,
    /// Weight of a new limit against the old one, 0.01 to 1. Default 0.2.
    pub smoothing: f64,
    /// Samples over which the long-term latency is averaged, at least 1. Default 600.
    pub long_window: u32,
    /// Room for bursts, in calls. Default 4.
    pub queue: usize,
    /// The unloaded latency is measured anew after so many limits' worth of samples, at least 1.
    /// Default 30.
    pub probe_after: u32,
}

impl Default for Gradient2Config {
    fn default() -> Self {
        Self {
            initial: 20,
            min: 1,
            max: 1_000,
            tolerance: 1.5,
            smoothing: 0.2,
            long_window: 600,
            queue: 4,
            probe_after: 30,
        }
    }
}

/// Compares the latency with its long-term average: `limit * average / latency`, plus room for a
/// queue while there is no sign of one.
///
/// The room is given only while the gradient is 1. Given always, a slight and lasting overload
/// lets the limit creep up for ever.
///
/// Under a load that always fills the limit the average drifts up with the queue. So a probe at
/// half the limit measures the latency now and then, and no more than 1.5 times that passes for
/// unloaded.
///
/// Source: Netflix concurrency-limits `Gradient2Limit`, and its issue 134.
#[derive(Clone, Debug)]
pub struct Gradient2 {
    config: Gradient2Config,
    limit: Bounded,
    long: f64,
    samples: u32,
    probe: Probe,
    /// Mean latency of the last probe.
    probed: Option<f64>,
    cut_at: Option<u64>,
}

impl Gradient2 {
    /// An algorithm at its first limit.
    pub fn new(config: Gradient2Config) -> Self {
        let limit = Bounded::new(config.initial, config.min, config.max);
        let probe = Probe::new(config.probe_after);
        Self { config, limit, long: 0.0, samples: 0, probe, probed: None, cut_at: None }
    }

    fn cut(&mut self, sample: &LimitSample) {
        let began = sample.now.saturating_sub(sample.latency);
        if self.cut_at.is_none_or(|cut| began >= cut) {
            self.cut_at = Some(sample.now);
            self.limit.set(self.limit.value * 0.9);
        }
    }

    /// The average grows into its window, then forgets exponentially.
    fn average(&mut self, latency: f64) -> f64 {
        let window = self.config.long_window.max(1);
        self.samples = self.samples.saturating_add(1).min(window);
        self.long += (latency - self.long) / f64::from(self.samples);
        // After an overload the average is high and would hide the next one.
        if self.long > latency * 2.0 {
            self.long *= 0.95;
        }
        self.long
    }
}

impl LimitAlgorithm for Gradient2 {
    fn initial(&self) -> usize {
        self.limit.get()
    }

    fn update(&mut self, sample: &LimitSample) -> usize {
        let step = self.probe.step(sample, self.limit);
        if sample.is_overload {
            self.cut(sample);
            return self.limit.get();
        }
        match step {
            Step::Go => {}
            Step::Probing(half) => return half,
            Step::Found(seen) => self.probed = Some(seen.mean()),
        }
        let latency = sample.latency as f64;
        let long = self.average(latency);
        if !self.limit.is_used_by(sample.running) {
            return self.limit.get();
        }
        let tolerance = self.config.tolerance.max(1.0);
        let mut unloaded = tolerance * long;
        if let Some(probed) = self.probed {
            unloaded = unloaded.min(PROBED_TOLERANCE * probed);
        }
        let gradient = (unloaded / latency).clamp(0.5, 1.0);
        let room = if gradient >= 1.0 { self.config.queue as f64 } else { 0.0 };
        let goal = self.limit.value * gradient + room;
        let weight = self.config.smoothing.clamp(0.01, 1.0);
        // One limit's worth of samples makes one whole move.
        let weight = weight / self.limit.value.max(1.0);
        self.limit.set(self.limit.value * (1.0 - weight) + goal * weight);
        self.limit.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slight_and_lasting_overload_does_not_creep() {
        let mut gradient = Gradient2::new(Gradient2Config { initial: 50, ..Default::default() });
        for now in 0..600 {
            gradient.update(&LimitSample::new(now, 1_000, 5, false));
        }
        for now in 0..200 {
            gradient.update(&LimitSample::new(now, 2_000, 50, false));
        }
        assert!(gradient.limit.get() <= 50, "{gradient:?}");
    }
}
