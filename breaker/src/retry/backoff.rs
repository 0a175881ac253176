//! How long to wait between attempts.

use std::time::Duration;

use crate::error::ConfigError;

/// How the waits grow.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Growth {
    /// Always `first`.
    Constant,
    /// `first`, then each time `factor` as long.
    Exponential {
        /// 1 to 16.
        factor: f64,
        /// How much of the wait is drawn at random.
        jitter: Jitter,
    },
    /// A random time between `first` and three times the wait before.
    ///
    /// Source: M. Brooker, "Exponential Backoff And Jitter" (2015).
    Decorrelated,
}

/// How much of an exponential wait is drawn at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Jitter {
    /// None: all clients that failed together come back together. For tests.
    None,
    /// Half of it.
    Equal,
    /// All of it: anything from zero to the wait.
    Full,
}

/// The waits between attempts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Backoff {
    /// The first wait, or the base of all. Above 0, default 50 ms.
    pub first: Duration,
    /// No wait is longer. Not below `first`, default 5 s.
    pub max: Duration,
    /// Default: decorrelated.
    pub growth: Growth,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(50),
            max: Duration::from_secs(5),
            growth: Growth::Decorrelated,
        }
    }
}

impl Backoff {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.first.is_zero() {
            return Err(ConfigError::new("backoff.first", "must be above 0"));
        }
        if self.max < self.first {
            return Err(ConfigError::new("backoff.max", "must not be below `backoff.first`"));
        }
        if let Growth::Exponential { factor, .. } = self.growth
            && !(1.0..=16.0).contains(&factor)
        {
            return Err(ConfigError::new("backoff.factor", "must be 1 to 16"));
        }
        Ok(())
    }

    /// The waits in turn, without end, drawn from `seed`.
    ///
    /// # Example
    /// ```
    /// use voussoir_breaker::Backoff;
    ///
    /// let backoff = Backoff::default();
    /// assert!(backoff.waits(7).take(20).all(|wait| wait >= backoff.first && wait <= backoff.max));
    /// ```
    pub fn waits(&self, seed: u64) -> Waits {
        Waits {
            backoff: *self,
            rng: fastrand::Rng::with_seed(seed),
            before: self.first.as_secs_f64(),
            nth: 0,
        }
    }
}

/// The waits of one call. See [`Backoff::waits`].
#[derive(Clone, Debug)]
pub struct Waits {
    backoff: Backoff,
    rng: fastrand::Rng,
    /// Seconds of the wait before.
    before: f64,
    nth: i32,
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let Backoff { first: shortest, max: longest, growth } = self.backoff;
        let (first, max) = (shortest.as_secs_f64(), longest.as_secs_f64());
        let (seconds, min) = match growth {
            Growth::Constant => (first, shortest),
            Growth::Exponential { factor, jitter } => {
                let grown = (first * factor.powi(self.nth)).min(max);
                let seconds = match jitter {
                    Jitter::None => grown,
                    Jitter::Equal => grown * (0.5 + 0.5 * self.rng.f64()),
                    Jitter::Full => grown * self.rng.f64(),
                };
                (seconds, Duration::ZERO)
            }
            Growth::Decorrelated => {
                let seconds = (first + (self.before * 3.0 - first) * self.rng.f64()).min(max);
                (seconds, shortest)
            }
        };
        self.before = seconds;
        self.nth = self.nth.saturating_add(1);
        // Seconds in floating point are rounded, near the longest duration to more than it holds.
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or(longest);
        Some(wait.clamp(min, longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exponential(jitter: Jitter) -> Backoff {
        Backoff {
            first: Duration::from_millis(100),
            max: Duration::from_secs(1),
            growth: Growth::Exponential { factor: 2.0, jitter },
        }
    }

    #[test]
    fn exponential_doubles_up_to_its_cap() {
        let waits: Vec<_> =
            exponential(Jitter::None).waits(0).take(6).map(|w| w.as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_000, 1_000]);
    }

    #[test]
    fn jitter_keeps_its_range_and_fills_it() {
        for (jitter, low) in [(Jitter::Equal, 500), (Jitter::Full, 0)] {
            let draws: Vec<_> = (0..2_000)
                .map(|seed| exponential(jitter).waits(seed).nth(5).unwrap().as_millis())
                .collect();
            let (min, max) = (*draws.iter().min().unwrap(), *draws.iter().max().unwrap());
            assert!(min >= low && min < low + 50, "{jitter:?}: from {min}");
            assert!(max > 950 && max <= 1_000, "{jitter:?}: to {max}");
        }
    }

    #[test]
    fn decorrelated_stays_between_its_bounds_and_differs_by_seed() {
        let backoff = Backoff::default();
        let mut means = [0.0; 4];
        for seed in 0..2_000 {
            let mut before = backoff.first;
            for (nth, wait) in backoff.waits(seed).take(4).enumerate() {
                assert!(wait >= backoff.first && wait <= (before * 3).min(backoff.max));
                means[nth] += wait.as_secs_f64() / 2_000.0;
                before = wait;
            }
        }
        assert!(means.windows(2).all(|pair| pair[1] > pair[0] * 1.2), "{means:?}");
        assert_ne!(backoff.waits(1).nth(1), backoff.waits(2).nth(1));
    }

    #[test]
    fn a_far_attempt_does_not_overflow() {
        assert_eq!(exponential(Jitter::None).waits(0).nth(5_000), Some(Duration::from_secs(1)));
    }
}
