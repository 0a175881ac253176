//! Random numbers for strategies: the thread's generator, or a seeded one that repeats.

use parking_lot::Mutex;

/// A source of random numbers that any thread may draw from.
///
/// Without a seed each thread draws from a generator of its own (about 2 ns). With a seed all
/// threads share one generator behind a lock: single-threaded runs repeat exactly.
#[derive(Debug)]
pub struct Random {
    seeded: Option<Mutex<fastrand::Rng>>,
}

impl Random {
    /// A generator that repeats for `Some(seed)`, the thread's own for `None`.
    pub fn new(seed: Option<u64>) -> Self {
        Self { seeded: seed.map(|seed| Mutex::new(fastrand::Rng::with_seed(seed))) }
    }

    /// 64 random bits.
    #[inline]
    pub fn u64(&self) -> u64 {
        match &self.seeded {
            None => fastrand::u64(..),
            Some(seeded) => seeded.lock().u64(..),
        }
    }
}

/// Maps 32 random bits to 0..n. The bias is below n / 2^32.
#[inline]
pub(crate) fn below(bits: u32, n: usize) -> usize {
    ((u64::from(bits) * n as u64) >> 32) as usize
}
