//! Additive increase, multiplicative decrease.

use super::{Bounded, LimitAlgorithm, LimitSample};

/// How [`Aimd`] moves.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AimdConfig {
    /// The first limit. Default 20.
    pub initial: usize,
    /// Never below. Default 1.
    pub min: usize,
    /// Never above. Default 1,000.
    pub max: usize,
    /// Factor on overload, 0.1 to 0.99 (taken to the nearer end). Default 0.9.
    pub backoff: f64,
    /// A call that takes longer counts as overload, in nanoseconds. Default: never.
    pub max_latency: Option<u64>,
}

impl Default for AimdConfig {
    fn default() -> Self {
        Self { initial: 20, min: 1, max: 1_000, backoff: 0.9, max_latency: None }
    }
}

/// One more for each limit's worth of good calls while the limit is used, a tenth less on
/// overload, at most once in the time that a call takes: all calls of one overload end in it.
///
/// Source: D. Chiu, R. Jain, "Analysis of the Increase and Decrease Algorithms" (1989).
#[derive(Clone, Debug)]
pub struct Aimd {
    config: AimdConfig,
    limit: Bounded,
    cut_at: Option<u64>,
}

impl Aimd {
    /// An algorithm at its first limit.
    pub fn new(config: AimdConfig) -> Self {
        let limit = Bounded::new(config.initial, config.min, config.max);
        Self { config, limit, cut_at: None }
    }
}

impl LimitAlgorithm for Aimd {
    fn initial(&self) -> usize {
        self.limit.get()
    }

    fn update(&mut self, sample: &LimitSample) -> usize {
        let is_slow = self.config.max_latency.is_some_and(|max| sample.latency > max);
        if sample.is_overload || is_slow {
            let began = sample.now.saturating_sub(sample.latency);
            if self.cut_at.is_none_or(|cut| began >= cut) {
                self.cut_at = Some(sample.now);
                self.limit.set(self.limit.value * self.config.backoff.clamp(0.1, 0.99));
            }
        } else if self.limit.is_used_by(sample.running) {
            self.limit.set(self.limit.value + 1.0 / self.limit.value);
        }
        self.limit.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_overload_is_one_cut() {
        let mut aimd = Aimd::new(AimdConfig { initial: 100, ..Default::default() });
        for _ in 0..50 {
            aimd.update(&LimitSample::new(1_000, 500, 100, true));
        }
        assert_eq!(aimd.limit.get(), 90);
        aimd.update(&LimitSample::new(1_600, 500, 90, true));
        assert_eq!(aimd.limit.get(), 81);
    }

    #[test]
    fn an_unused_limit_does_not_grow() {
        let mut aimd = Aimd::new(AimdConfig { initial: 100, ..Default::default() });
        for now in 0..1_000 {
            aimd.update(&LimitSample::new(now, 1, 10, false));
        }
        assert_eq!(aimd.limit.get(), 100);
        for now in 0..1_000 {
            aimd.update(&LimitSample::new(now, 1, 100, false));
        }
        assert_eq!(aimd.limit.get(), 109);
    }
}
