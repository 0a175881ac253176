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
    /// Taken out when the permit is returned.
    breaker: Option<B>,
    ticket: Ticket,
    start: u64,
}

impl<B: Deref<Target = Breaker>> Permit<B> {
    #[inline]
    pub(super) fn acquire(breaker: B, now: impl Fn() -> u64) -> Result<Self, Rejected> {
        let start = if breaker.slow_after.is_some() { now() } else { 0 };
        let ticket = breaker.machine.admit(|| if start == 0 { now() } else { start })?;
        Ok(Self { breaker: Some(breaker), ticket, start })
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
        let now = self.breaker.as_ref().map_or(0, |breaker| breaker.now_for(verdict));
        self.record_at(now, verdict);
    }

    /// Returns the permit with a verdict at `now`, in nanoseconds since the epoch of the
    /// breaker's clock.
    #[inline]
    pub fn record_at(mut self, now: u64, verdict: Verdict) {
        let (breaker, ticket, start) = (self.breaker.take(), self.ticket, self.start);
        // Nothing is left in it that a drop would have to look at.
        std::mem::forget(self);
        if let Some(breaker) = breaker {
            breaker.settle(ticket, start, now, verdict);
        }
    }
}

impl<B: Deref<Target = Breaker>> Drop for Permit<B> {
    #[inline]
    fn drop(&mut self) {
        if let Some(breaker) = &self.breaker {
            let verdict = breaker.on_drop;
            breaker.settle(self.ticket, self.start, breaker.now_for(verdict), verdict);
        }
    }
}

impl Breaker {
    /// An ignored call needs no time.
    #[inline]
    fn now_for(&self, verdict: Verdict) -> u64 {
        match verdict {
            Verdict::Ignored => 0,
            Verdict::Success | Verdict::Failure => self.clock.now(),
        }
    }

    #[inline]
    fn settle(&self, ticket: Ticket, start: u64, now: u64, verdict: Verdict) {
        let failed = match verdict {
            Verdict::Success => false,
            Verdict::Failure => true,
            Verdict::Ignored => return self.machine.cancel(ticket),
        };
        let slow = self.slow_after.is_some_and(|slow| now.saturating_sub(start) >= slow);
        self.machine.record(ticket, now, Sample { failed, slow });
    }
}
