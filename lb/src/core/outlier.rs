//! Passive outlier detection: who is ejected, and for how long.

/// What one endpoint did in one window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WindowSample {
    pub(crate) successes: u32,
    pub(crate) failures: u32,
    /// Sum of the latencies of the successes in ns.
    pub(crate) latency_sum: u64,
}

impl WindowSample {
    fn requests(&self) -> u32 {
        self.successes.saturating_add(self.failures)
    }
}

/// The ejections of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EjectionState {
    /// When the current ejection ends, in ns. `None` while not ejected.
    pub(crate) until: Option<u64>,
    /// Ejections in a row. One is forgotten with each window in which there was none.
    pub(crate) times: u32,
    /// Whether the endpoint was ejected in the current window.
    pub(crate) in_this_window: bool,
}

impl EjectionState {
    /// Ejects from `now` on, for `base` times the ejections in a row, at most `max`.
    pub(crate) fn eject(&mut self, now: u64, base: u64, max: u64) {
        self.times = self.times.saturating_add(1);
        self.in_this_window = true;
        let length = base.saturating_mul(u64::from(self.times)).min(max);
        self.until = Some(now.saturating_add(length));
    }

    /// Ends a window.
    pub(crate) fn end_window(&mut self) {
        if !std::mem::take(&mut self.in_this_window) && self.until.is_none() {
            self.times = self.times.saturating_sub(1);
        }
    }
}

/// Whether one more of `total` endpoints may be ejected when `ejected` are: the share is counted
/// with the new one, and one endpoint always stays.
pub(crate) fn ejection_allowed(ejected: usize, total: usize, max_share: f64) -> bool {
    let after = ejected + 1;
    after < total && after as f64 <= max_share * total as f64 + 1e-9
}

/// Positions of the samples whose success rate is below `mean - factor * deviation`. Samples with
/// fewer than `min_requests` are neither judged nor counted, and nobody is judged unless
/// `min_endpoints` count.
///
/// Where failures are rare the deviation is that of chance: of 20 equal endpoints the two that
/// happen to have a failure more than the others would stand out. So the failures must also exceed
/// what [`failures_by_chance`] allows.
///
/// Source: Envoy, "Outlier detection: success rate".
pub(crate) fn success_rate_outliers(
    samples: &[WindowSample],
    min_endpoints: u32,
    min_requests: u32,
    factor: f64,
) -> Vec<usize> {
    let rate = |sample: &WindowSample| f64::from(sample.successes) / f64::from(sample.requests());
    let judged = judged(samples, min_endpoints, |sample| sample.requests() >= min_requests);
    let count = judged.len() as f64;
    let mean = judged.iter().map(|&at| rate(&samples[at])).sum::<f64>() / count;
    let variance =
        judged.iter().map(|&at| (rate(&samples[at]) - mean).powi(2)).sum::<f64>() / count;
    let bound = mean - factor * variance.sqrt();
    let stands_out = |sample: &WindowSample| {
        let expected = (1.0 - mean) * f64::from(sample.requests());
        rate(sample) < bound - 1e-9 && f64::from(sample.failures) > failures_by_chance(expected)
    };
    judged.into_iter().filter(|&at| stands_out(&samples[at])).collect()
}

/// The failures that an endpoint may have by chance when `expected` are due: four standard
/// deviations of a Poisson distribution more, and two for the long tail of small ones. About one
/// window in 10,000 of an endpoint that is no worse than the others exceeds it.
fn failures_by_chance(expected: f64) -> f64 {
    expected + 4.0 * expected.sqrt() + 2.0
}

/// Positions of the samples whose mean latency is above `factor` times the median of the means.
pub(crate) fn latency_outliers(
    samples: &[WindowSample],
    min_endpoints: u32,
    min_requests: u32,
    factor: f64,
) -> Vec<usize> {
    let mean = |sample: &WindowSample| sample.latency_sum as f64 / f64::from(sample.successes);
    let judged = judged(samples, min_endpoints, |sample| sample.successes >= min_requests);
    let mut means: Vec<f64> = judged.iter().map(|&at| mean(&samples[at])).collect();
    means.sort_by(f64::total_cmp);
    // The lower median: with two endpoints the slower one can still be an outlier.
    let Some(&median) = means.get(means.len().saturating_sub(1) / 2) else { return Vec::new() };
    judged.into_iter().filter(|&at| mean(&samples[at]) > factor * median).collect()
}

fn judged(
    samples: &[WindowSample],
    min_endpoints: u32,
    is_judged: impl Fn(&WindowSample) -> bool,
) -> Vec<usize> {
    let judged: Vec<usize> = (0..samples.len()).filter(|&at| is_judged(&samples[at])).collect();
    if judged.len() < min_endpoints as usize { Vec::new() } else { judged }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(successes: u32, failures: u32, mean: u64) -> WindowSample {
        WindowSample { successes, failures, latency_sum: mean * u64::from(successes) }
    }

    #[test]
    fn the_share_is_counted_after_the_ejection_and_one_stays() {
        assert!(ejection_allowed(0, 3, 0.67) && ejection_allowed(1, 3, 0.67));
        assert!(!ejection_allowed(2, 3, 0.67) && !ejection_allowed(2, 3, 1.0));
        assert!(!ejection_allowed(0, 1, 1.0) && !ejection_allowed(0, 10, 0.05));
    }

    #[test]
    fn a_low_success_rate_stands_out() {
        let mut samples = vec![sample(990, 10, 1); 9];
        samples.push(sample(500, 500, 1));
        assert_eq!(success_rate_outliers(&samples, 5, 100, 1.9), [9]);
        assert!(success_rate_outliers(&samples[5..8], 5, 100, 1.9).is_empty());
        samples[9] = sample(5, 5, 1);
        assert!(success_rate_outliers(&samples, 5, 100, 1.9).is_empty());
        assert!(success_rate_outliers(&[sample(0, 200, 1); 9], 5, 100, 1.9).is_empty());
    }

    /// With the formula alone 3.1 of 20 equal endpoints were ejected on average.
    #[test]
    fn equals_stand_out_only_by_chance() {
        let mut rng = fastrand::Rng::with_seed(7);
        for (endpoints, requests, failing) in
            [(5, 100, 0.001), (20, 500, 0.001), (20, 500, 0.02), (10, 5_000, 0.001), (20, 500, 0.3)]
        {
            let mut found = 0;
            for _ in 0..500 {
                let samples: Vec<WindowSample> = (0..endpoints)
                    .map(|_| {
                        let failures = (0..requests).filter(|_| rng.f64() < failing).count() as u32;
                        sample(requests - failures, failures, 1)
                    })
                    .collect();
                found += success_rate_outliers(&samples, 5, 100, 1.9).len();
            }
            assert!(found <= 5, "{endpoints} endpoints, {failing}: {found} in 500 windows");
        }
        // One that fails ten times as often does stand out.
        let mut samples = vec![sample(499, 1, 1); 9];
        samples.push(sample(490, 10, 1));
        assert_eq!(success_rate_outliers(&samples, 5, 100, 1.9), [9]);
    }

    #[test]
    fn a_high_latency_stands_out() {
        let samples = [sample(200, 0, 10), sample(200, 0, 12), sample(200, 0, 90)];
        assert_eq!(latency_outliers(&samples, 3, 100, 3.0), [2]);
        assert!(latency_outliers(&samples, 4, 100, 3.0).is_empty());
        assert!(latency_outliers(&samples, 3, 100, 9.0).is_empty());
        assert!(latency_outliers(&[], 0, 0, 2.0).is_empty());
    }

    #[test]
    fn ejections_grow_and_are_forgotten() {
        let mut state = EjectionState::default();
        state.eject(100, 10, 25);
        assert_eq!(state.until.take(), Some(110));
        state.eject(200, 10, 25);
        state.until = None;
        state.eject(300, 10, 25);
        assert_eq!(state.until, Some(325));
        state.until = None;
        for _ in 0..4 {
            state.end_window();
        }
        state.eject(400, 10, 25);
        assert_eq!(state.until, Some(410));
    }
}
