//! A limit from the gradient of the latency.

use super::probe::{Mean, Probe, Step};
use super::{Bounded, LimitAlgorithm, LimitSample};

/// Latency above that measured at half the limit that may pass for none. Below 2, or the limit
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

/// Compares the mean latency of the last limit's worth of calls with its long-term average:
/// `limit * average / latency`, plus room for a queue while there is no sign of one. The latency
/// of a single call is no sign: a dependency whose answers take now 5, now 50 ms has no queue.
///
/// The room is given only while the gradient is 1. Given always, a slight and lasting overload
/// lets the limit creep up for ever.
///
/// Under a load that always fills the limit the average drifts up with the queue. So the latency
/// of calls that begin beside at most half of the limit is measured now and then, and no more than
/// 1.5 times that passes for unloaded. The limit is lowered to half for it only if the load leaves
/// no such calls.
///
/// Source: Netflix concurrency-limits `Gradient2Limit`, and its issue 134.
#[derive(Clone, Debug)]
pub struct Gradient2 {
    config: Gradient2Config,
    limit: Bounded,
    recent: Mean,
    long: Mean,
    probe: Probe,
    /// What the last probe has found.
    probed: Option<f64>,
    cut_at: Option<u64>,
}

impl Gradient2 {
    /// An algorithm at its first limit.
    pub fn new(config: Gradient2Config) -> Self {
        let limit = Bounded::new(config.initial, config.min, config.max);
        let probe = Probe::new(config.probe_after);
        let mean = Mean::default();
        Self { config, limit, recent: mean, long: mean, probe, probed: None, cut_at: None }
    }

    fn cut(&mut self, sample: &LimitSample) {
        let began = sample.now.saturating_sub(sample.latency);
        if self.cut_at.is_none_or(|cut| began >= cut) {
            self.cut_at = Some(sample.now);
            self.limit.set(self.limit.value * 0.9);
        }
    }
}

impl LimitAlgorithm for Gradient2 {
    fn initial(&self) -> usize {
        self.limit.get()
    }

    fn update(&mut self, sample: &LimitSample) -> usize {
        match self.probe.step(sample, self.limit) {
            Step::Go => {}
            Step::Found(mean) => self.probed = Some(mean),
            Step::Probing(half) => {
                if sample.is_overload {
                    self.cut(sample);
                }
                return half.min(self.limit.get());
            }
        }
        if sample.is_overload {
            self.cut(sample);
            return self.limit.get();
        }
        let latency = sample.latency as f64;
        self.recent.add(latency, self.limit.window());
        self.long.add(latency, self.config.long_window.max(1));
        // After an overload the average is high and would hide the next one.
        if self.long.value > self.recent.value * 2.0 {
            self.long.value *= 0.95;
        }
        if !self.limit.is_used_by(sample.running) {
            return self.limit.get();
        }
        let tolerance = self.config.tolerance.max(1.0);
        let mut unloaded = tolerance * self.long.value;
        if let Some(probed) = self.probed {
            unloaded = unloaded.min(PROBED_TOLERANCE * probed);
        }
        let gradient = (unloaded / self.recent.value).clamp(0.5, 1.0);
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
