//! Requests in flight and picks so far, in one atomic word.

use std::sync::atomic::Ordering::Relaxed;

use crate::sync::AtomicU64;

/// The most requests in flight at one endpoint.
pub(crate) const MAX_IN_FLIGHT: u32 = (1 << BITS) - 1;

const BITS: u32 = 24;
const MASK: u64 = (1 << BITS) - 1;

/// The lower 24 bits count requests in flight, the upper 40 bits count picks and wrap. One
/// instruction changes both.
///
/// Invariant: in flight <= the `max` of every `try_take`, plus one for each thread inside
/// `try_take`; all fit because `max` is below 2^24 by a margin of [`SLACK`].
#[derive(Debug)]
pub(crate) struct Flight {
    word: AtomicU64,
}

/// Threads that may be inside `try_take` at the limit at one time.
const SLACK: u32 = 1 << 16;

impl Flight {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }

    /// Counts a pick. Returns false, and counts nothing, if `max` are in flight.
    #[inline]
    pub(crate) fn try_take(&self, max: u32) -> bool {
        const PICK: u64 = (1 << BITS) + 1;
        let before = self.word.fetch_add(PICK, Relaxed);
        if (before & MASK) < u64::from(max.min(MAX_IN_FLIGHT - SLACK)) {
            return true;
        }
        self.word.fetch_sub(PICK, Relaxed);
        false
    }

    /// Ends a pick.
    #[inline]
    pub(crate) fn release(&self) {
        self.word.fetch_sub(1, Relaxed);
    }

    #[inline]
    pub(crate) fn in_flight(&self) -> u32 {
        (self.word.load(Relaxed) & MASK) as u32
    }

    /// Picks so far, modulo 2^40.
    pub(crate) fn picks(&self) -> u64 {
        self.word.load(Relaxed) >> BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_are_bounded_and_counted() {
        let flight = Flight::new();
        assert!(flight.try_take(2) && flight.try_take(2) && !flight.try_take(2));
        assert_eq!((flight.in_flight(), flight.picks()), (2, 2));
        flight.release();
        assert!(flight.try_take(2));
        assert_eq!((flight.in_flight(), flight.picks()), (2, 3));
    }
}
