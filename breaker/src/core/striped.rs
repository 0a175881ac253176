//! A word that threads share without sharing its cache line.

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, thread_number};

/// A word for each stripe, among which threads are spread.
#[derive(Debug)]
pub(crate) struct Striped(Box<[CachePadded<AtomicU64>]>);

impl Striped {
    pub(crate) fn new(stripes: u32) -> Self {
        let stripes = stripes.max(1).next_power_of_two();
        Self((0..stripes).map(|_| CachePadded::new(AtomicU64::new(0))).collect())
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
