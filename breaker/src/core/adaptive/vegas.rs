//! A limit steered by the length of the queue that the latency suggests.

use super::probe::{Mean, Probe, Step};
use super::{Bounded, LimitAlgorithm, LimitSample};

/// How [`Vegas`] moves.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct VegasConfig {
    /// The first limit. Default 20.
    pub initial: usize,
    /// Never below. Default 1.
    pub min: usize,
    /// Never above. Default 1,000.
    pub max: usize,
    /// The unloaded latency is measured anew after so many limits' worth of samples, at least 1.
    /// Default 30.
    pub probe_after: u32,
}

impl Default for VegasConfig {
    fn default() -> Self {
        Self { initial: 20, min: 1, max: 1_000, probe_after: 30 }
    }
}

/// Keeps a small queue in front of the dependency: estimates it as
/// `limit * (1 - unloaded latency / latency)` and steers it between 3 and 6 times the decimal
/// logarithm of the limit, at least 1, while at least half of the limit is in use.
///
/// The latency is the mean of the last limit's worth of calls. The unloaded one is the mean of
/// calls that begin beside at most half of the limit, measured anew now and then; the limit is
/// lowered to half for it only if the load leaves no such calls. Means of both: against the least
/// latency ever seen, every dependency whose answers take unequally long seems to have a queue.
///
/// Sources: L. Brakmo, L. Peterson, "TCP Vegas" (1995); Netflix concurrency-limits `VegasLimit`.
#[derive(Clone, Debug)]
pub struct Vegas {
    limit: Bounded,
    probe: Probe,
    /// What the last probe has found.
    unloaded: Option<f64>,
    recent: Mean,
    /// Of all calls: passes for unloaded until the first probe.
    all: Mean,
    cut_at: Option<u64>,
}

impl Vegas {
    /// An algorithm at its first limit.
    pub fn new(config: VegasConfig) -> Self {
        let limit = Bounded::new(config.initial, config.min, config.max);
        let (probe, mean) = (Probe::new(config.probe_after), Mean::default());
        Self { limit, probe, unloaded: None, recent: mean, all: mean, cut_at: None }
    }

    fn cut(&mut self, sample: &LimitSample) {
        let began = sample.now.saturating_sub(sample.latency);
        if self.cut_at.is_none_or(|cut| began >= cut) {
            self.cut_at = Some(sample.now);
            self.limit.set(self.limit.value * 0.9 - self.limit.value.log10().max(1.0));
        }
    }
}

impl LimitAlgorithm for Vegas {
    fn initial(&self) -> usize {
        self.limit.get()
    }

    fn update(&mut self, sample: &LimitSample) -> usize {
        match self.probe.step(sample, self.limit) {
            Step::Go => {}
            Step::Found(mean) => self.unloaded = Some(mean),
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
        let limit = self.limit.value;
        let latency = sample.latency as f64;
        self.recent.add(latency, self.limit.window());
        self.all.add(latency, u32::MAX);
        if !self.limit.is_used_by(sample.running) {
            return self.limit.get();
        }
        let step = limit.log10().max(1.0);
        let queue = limit * (1.0 - self.unloaded.unwrap_or(self.all.value) / self.recent.value);
        let (alpha, beta) = (3.0 * step, 6.0 * step);
        if queue > beta {
            self.limit.set(limit - step / limit);
        } else if queue < alpha {
            // Far from a queue it grows fast, or a service behind a low first limit starves.
            let gain = if queue <= step { beta } else { step };
            self.limit.set(limit + gain / limit);
        }
        self.limit.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_corrects_an_unloaded_latency_that_was_too_low() {
        let config = VegasConfig { initial: 50, probe_after: 2, ..Default::default() };
        let mut vegas = Vegas::new(config);
        let mut limit = 50;
        for now in 1..=100 {
            limit = vegas.update(&LimitSample::new(now, 10, 1, false));
        }
        assert_eq!(vegas.unloaded, Some(10.0));
        for now in 101..2_000 {
            limit = vegas.update(&LimitSample::new(now, 1_000, limit, false));
        }
        assert_eq!(vegas.unloaded, Some(1_000.0), "a probe must replace the old latency");
        assert!(limit >= 50, "{vegas:?}");
    }
}
