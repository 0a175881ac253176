//! A limit from the queue that the latency tells of.

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
/// `limit * (1 - unloaded latency / latency)` and steers it between 3 and 6 times the logarithm
/// of the limit.
///
/// To learn the unloaded latency anew, it lowers the limit to half for one limit's worth of
/// samples and takes the least it sees: taken under load, the measure would drift upwards with
/// the queue that it is meant to show.
///
/// Sources: L. Brakmo, L. Peterson, "TCP Vegas" (1995); Netflix concurrency-limits `VegasLimit`.
#[derive(Clone, Debug)]
pub struct Vegas {
    config: VegasConfig,
    limit: Bounded,
    unloaded: u64,
    samples: u64,
    /// The end of a probe, in samples, and the least latency seen in it.
    probe: Option<(u64, u64)>,
    cut_at: Option<u64>,
}

impl Vegas {
    /// An algorithm at its first limit.
    pub fn new(config: VegasConfig) -> Self {
        let limit = Bounded::new(config.initial, config.min, config.max);
        Self { config, limit, unloaded: u64::MAX, samples: 0, probe: None, cut_at: None }
    }

    /// Steers the probes; the limit to use while one is under way.
    fn probe(&mut self, sample: &LimitSample) -> Option<usize> {
        self.samples += 1;
        let limit = self.limit.get() as u64;
        match &mut self.probe {
            None => {
                if self.samples < limit * u64::from(self.config.probe_after.max(1)) {
                    return None;
                }
                // The first limit's worth still belongs to the load before.
                self.samples = 0;
                self.probe = Some((2 * limit, u64::MAX));
            }
            Some((end, least)) => {
                if self.samples > *end / 2 && !sample.is_overload {
                    *least = (*least).min(sample.latency);
                }
                if self.samples >= *end {
                    let least = *least;
                    if least < u64::MAX {
                        self.unloaded = least;
                    }
                    self.samples = 0;
                    self.probe = None;
                    return None;
                }
            }
        }
        let half = (self.limit.value / 2.0).max(self.limit.min) as usize;
        Some(half)
    }
}

impl LimitAlgorithm for Vegas {
    fn initial(&self) -> usize {
        self.limit.get()
    }

    fn update(&mut self, sample: &LimitSample) -> usize {
        let probing = self.probe(sample);
        let limit = self.limit.value;
        let step = limit.log10().max(1.0);
        if sample.is_overload {
            let began = sample.now.saturating_sub(sample.latency);
            if self.cut_at.is_none_or(|cut| began >= cut) {
                self.cut_at = Some(sample.now);
                self.limit.set(limit * 0.9 - step);
            }
            return probing.map_or(self.limit.get(), |half| half.min(self.limit.get()));
        }
        if let Some(half) = probing {
            return half;
        }
        self.unloaded = self.unloaded.min(sample.latency);
        let queue = limit * (1.0 - self.unloaded as f64 / sample.latency as f64);
        let (alpha, beta) = (3.0 * step, 6.0 * step);
        if queue > beta {
            self.limit.set(limit - step / limit);
        } else if self.limit.is_used_by(sample.running) {
            // Far from a queue it grows fast, or a service behind a low first limit starves.
            let gain = if queue <= step { beta } else { step };
            if queue < alpha {
                self.limit.set(limit + gain / limit);
            }
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
        vegas.update(&LimitSample::new(1, 10, 50, false));
        for now in 2..2_000 {
            vegas.update(&LimitSample::new(now, 1_000, 50, false));
        }
        assert_eq!(vegas.unloaded, 1_000, "the dependency became slower for good");
        assert!(vegas.limit.get() >= 50, "{vegas:?}");
    }
}
