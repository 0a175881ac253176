//! Random numbers that all threads draw from one generator, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// A generator shared by all threads. Not for secrets.
#[derive(Debug)]
pub(crate) struct Random(AtomicU64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// A number above 0 and at most 1. Each draw has a generator of its own, seeded by the next of
    /// a sequence that visits every number.
    pub(crate) fn unit(&self) -> f64 {
        let seed = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        1.0 - fastrand::Rng::with_seed(seed).f64()
    }
}
