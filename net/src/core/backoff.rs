//! How long to wait before the next attempt to connect.

use std::time::Duration;

use fastrand::Rng;

/// Returns a duration of at least `low` and, unless they are equal, less than `high`.
pub(crate) fn duration_between(rng: &mut Rng, low: Duration, high: Duration) -> Duration {
    let span = high.saturating_sub(low).as_nanos() as u64;
    low + Duration::from_nanos(if span == 0 { 0 } else { rng.u64(..span) })
}

/// Exponential back-off. Each pause is drawn between half of its step and the whole step, so that
/// peers which lost the same node do not reconnect at the same time.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    step: Duration,
    rng: Rng,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, step: min, rng: Rng::with_seed(seed) }
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(self.max);
        duration_between(&mut self.rng, step / 2, step)
    }

    pub(crate) fn reset(&mut self) {
        self.step = self.min;
    }
}
