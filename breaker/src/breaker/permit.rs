//! One admitted call.

use std::ops::Deref;

use super::{Breaker, Verdict};
use crate::core::{Sample, Ticket};
use crate::error::Rejected;

/// The right to one call, to be returned with its verdict.
///
/// Dropped without one, it gives a probe's place back and counts as
/// [`BreakerConfig::on_drop`](crate::BreakerConfig::on_drop) says. A verdict that comes after the
/// breaker has changed its state is counted as late and changes nothing.
///
/// `B` is `&Breaker`, or `Arc<Breaker>` for a permit without a borrow.
#[derive(Debug)]
#[must_use = "a permit dropped at once says nothing about the call"]
pub struct Permit<B: Deref<Target = Breaker>> {
    breaker: B,
    ticket: Ticket,
    start: u64,
    is_settled: bool,
}

impl<B: Deref<Target = Breaker>> Permit<B> {
    #[inline]
    pub(super) fn acquire(breaker: B, now: impl Fn() -> u64) -> Result<Self, Rejected> {
        let start = if breaker.slow_after.is_some() { now() } else { 0 };
        let ticket = breaker.machine.admit(|| if start == 0 { now() } else { start })?;
        Ok(Self { breaker, ticket, start, is_settled: false })
    }

    /// The call succeeded.
    #[inline]
    pub fn success(self) {
        self.record(Verdict::Success);
    }

    /// The call failed.
    #[inline]
    pub fn failure(self) {
        self.record(Verdict::Failure);
    }

    /// Returns the permit with a verdict; reads the clock.
    #[inline]
    pub fn record(self, verdict: Verdict) {
        let now = self.now_for(verdict);
        self.record_at(now, verdict);
    }

    /// An ignored call needs no time.
    #[inline]
    fn now_for(&self, verdict: Verdict) -> u64 {
        match verdict {
            Verdict::Ignored => 0,
            Verdict::Success | Verdict::Failure => self.breaker.clock.now(),
        }
    }

    /// Returns the permit with a verdict at `now`, in nanoseconds since the epoch of the
    /// breaker's clock.
    #[inline]
    pub fn record_at(mut self, now: u64, verdict: Verdict) {
        self.settle(now, verdict);
    }

    #[inline]
    fn settle(&mut self, now: u64, verdict: Verdict) {
        self.is_settled = true;
        let failed = match verdict {
            Verdict::Success => false,
            Verdict::Failure => true,
            Verdict::Ignored => return self.breaker.machine.cancel(self.ticket),
        };
        let slow_after = self.breaker.slow_after;
        let slow = slow_after.is_some_and(|slow| now.saturating_sub(self.start) >= slow);
        self.breaker.machine.record(self.ticket, now, Sample { failed, slow });
    }
}

impl<B: Deref<Target = Breaker>> Drop for Permit<B> {
    #[inline]
    fn drop(&mut self) {
        if !self.is_settled {
            let verdict = self.breaker.on_drop;
            self.settle(self.now_for(verdict), verdict);
        }
    }
}
