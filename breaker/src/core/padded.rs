//! Keeps a hot word away from its neighbours, and threads away from each other's.

use std::ops::Deref;

use crate::sync::{AtomicU64, thread_number};

/// A value alone on its pair of cache lines: prefetchers fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A word for each stripe, among which threads are spread.
#[derive(Debug)]
pub(crate) struct Striped(Box<[Padded<AtomicU64>]>);

impl Striped {
    pub(crate) fn new(stripes: u32) -> Self {
        let stripes = stripes.max(1).next_power_of_two();
        Self((0..stripes).map(|_| Padded(AtomicU64::new(0))).collect())
    }

    /// The word of the thread's own stripe.
    #[inline]
    pub(crate) fn own(&self) -> &AtomicU64 {
        &self.0[thread_number() & (self.0.len() - 1)]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &AtomicU64> {
        self.0.iter().map(|word| &**word)
    }
}
