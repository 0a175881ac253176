//! One admitted call.

use std::future::poll_fn;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use super::{Breaker, Verdict};
use crate::core::{Sample, Ticket};
use crate::error::Rejected;

/// The right to one call, to be returned with its verdict.
///
/// Dropped without a verdict it gives a probe's place back and counts as
/// [`BreakerConfig::on_drop`](crate::BreakerConfig::on_drop) says, or, if its thread is panicking,
/// as [`BreakerConfig::on_panic`](crate::BreakerConfig::on_panic) says. A verdict that comes after
/// the breaker has changed its state is counted as late and changes nothing.
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

    /// Ends the call because the caller's own deadline passed, which says nothing about the
    /// dependency. The call is not counted, unless slow calls count and this call has already taken
    /// `slow_after`: then it counts as slow.
    pub fn abandon(mut self) {
        let (breaker, ticket, start) = (self.breaker.take(), self.ticket, self.start);
        let Some(breaker) = breaker else { return };
        let Some(slow_after) = breaker.slow_after else { return breaker.machine.cancel(ticket) };
        let now = breaker.clock.now();
        if now.saturating_sub(start) < slow_after {
            return breaker.machine.cancel(ticket);
        }
        breaker.machine.record(ticket, now, Sample { failed: false, slow: true });
    }

    /// The call was dropped before its answer.
    pub(crate) fn cancel(self) {
        let verdict = self.breaker.as_ref().map_or(Verdict::Ignored, |breaker| breaker.on_drop);
        self.record(verdict);
    }

    /// The call panicked.
    pub(crate) fn panicked(self) {
        let verdict = self.breaker.as_ref().map_or(Verdict::Ignored, |breaker| breaker.on_panic);
        self.record(verdict);
    }

    /// A hedge that began later answered first.
    pub(crate) fn overtaken(self) {
        let verdict =
            self.breaker.as_ref().map_or(Verdict::Ignored, |breaker| breaker.on_overtaken);
        self.record(verdict);
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
            let is_panic = std::thread::panicking();
            let verdict = if is_panic { breaker.on_panic } else { breaker.on_drop };
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

/// A permit beside the future that it was taken for. Tells a panic of that future from its
/// cancellation, also where the thread panics for another reason.
struct Watched<B: Deref<Target = Breaker>> {
    permit: Option<Permit<B>>,
    is_polling: bool,
}

impl<B: Deref<Target = Breaker>> Watched<B> {
    fn poll<F: Future>(&mut self, future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.is_polling = true;
        let poll = future.poll(cx);
        self.is_polling = false;
        poll
    }
}

impl<B: Deref<Target = Breaker>> Drop for Watched<B> {
    fn drop(&mut self) {
        match self.permit.take() {
            Some(permit) if self.is_polling => permit.panicked(),
            Some(permit) => permit.cancel(),
            None => {}
        }
    }
}

/// Runs the future of an admitted call, and gives the permit back with its answer.
pub(crate) async fn watch<B: Deref<Target = Breaker>, F: Future>(
    permit: Permit<B>,
    future: F,
) -> (F::Output, Option<Permit<B>>) {
    let mut watched = Watched { permit: Some(permit), is_polling: false };
    let mut future = pin!(future);
    let answer = poll_fn(|cx| watched.poll(future.as_mut(), cx)).await;
    (answer, watched.permit.take())
}
