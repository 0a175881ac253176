//! The permits that a call holds.

use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Acquire;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::Sent;
use crate::adaptive::AdaptivePermit;
use crate::breaker::{Breaker, Permit, Verdict};
use crate::bulkhead::BulkheadPermit;
use crate::deadline::Deadline;

/// One permit.
pub(super) enum Guard<'a> {
    Breaker(Permit<&'a Breaker>),
    Adaptive(AdaptivePermit),
    /// Nothing to tell; held for as long as the call runs.
    Bulkhead {
        _permit: BulkheadPermit,
    },
}

/// How an admitted call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With the dependency's own answer.
    Answered {
        verdict: Verdict,
        is_overload: bool,
    },
    /// With a rejection of a stage inside, or cut off in its queue: the dependency was not asked.
    Refused,
    /// A time limit of the policy passed.
    TimedOut,
    /// The caller's deadline passed.
    CutByDeadline,
    /// A hedge that began later answered first.
    Overtaken,
    Panicked,
    /// The caller dropped the call.
    Cancelled,
}

/// Where a call stands that guards may have to explain the end of.
#[derive(Clone, Copy, Default)]
pub(super) struct Bounds<'a> {
    /// The caller's deadline, and with it the earliest of all.
    pub(super) caller: Option<Deadline>,
    /// The earliest end of the policy's own time limits around this place.
    pub(super) own: Option<Instant>,
    /// When the attempt began that has won the race around this place.
    pub(super) race: Option<&'a OnceLock<Instant>>,
    /// What the attempt of that race has sent, with its retries. No race lies within another.
    pub(super) begun: Option<&'a AtomicU32>,
}

impl Bounds<'_> {
    /// Attempts of the call begun so far, without those beside this place in a race.
    fn attempts(&self, sent: &Sent) -> u32 {
        self.begun.map_or_else(|| sent.attempts(), |begun| begun.load(Acquire))
    }
}

/// The permits between two stages that repeat or bound calls.
pub(super) struct Guards<'a> {
    held: Vec<Guard<'a>>,
    bounds: Bounds<'a>,
    sent: &'a Sent,
    /// Attempts that had begun before from here. As many at the end: the dependency was not asked
    /// under these permits.
    sent_before: u32,
    /// Only within a race.
    start: Option<Instant>,
    is_polling: bool,
}

impl<'a> Guards<'a> {
    pub(super) fn new(bounds: Bounds<'a>, sent: &'a Sent) -> Self {
        let start = bounds.race.map(|_| Instant::now());
        let sent_before = bounds.attempts(sent);
        Self { held: Vec::new(), bounds, sent, sent_before, start, is_polling: false }
    }

    pub(super) fn push(&mut self, guard: Guard<'a>) {
        self.held.push(guard);
    }

    /// Polls the call that the permits were taken for: a panic in it is told from a cancellation.
    pub(super) fn poll<F: Future>(
        &mut self,
        call: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        self.is_polling = true;
        let poll = call.poll(cx);
        self.is_polling = false;
        poll
    }

    /// Asks the classifier, whose panic counts as the call's.
    pub(super) fn classified(&mut self, classify: impl FnOnce() -> End) -> End {
        self.is_polling = true;
        let end = classify();
        self.is_polling = false;
        end
    }

    /// Returns all permits, the innermost first.
    pub(super) fn settle(&mut self, end: End) {
        // Ends: each round takes one permit out.
        while let Some(guard) = self.held.pop() {
            match guard {
                Guard::Breaker(permit) => tell_breaker(permit, end),
                Guard::Adaptive(permit) => tell_limit(permit, end),
                Guard::Bulkhead { .. } => {}
            }
        }
    }

    /// Why the call was dropped.
    fn end_of_dropped(&self) -> End {
        let has_passed = |end: Instant| Instant::now() >= end;
        let won = self.bounds.race.and_then(OnceLock::get);
        if self.is_polling {
            End::Panicked
        } else if self.bounds.attempts(self.sent) == self.sent_before {
            // It was still in a queue, or between two stages.
            End::Refused
        } else if self.bounds.own.is_some_and(has_passed) {
            End::TimedOut
        } else if won.is_some_and(|won| self.start.is_some_and(|start| start < *won)) {
            End::Overtaken
        } else if self.bounds.caller.is_some_and(Deadline::has_passed) {
            End::CutByDeadline
        } else {
            End::Cancelled
        }
    }
}

fn tell_breaker(permit: Permit<&Breaker>, end: End) {
    match end {
        End::Answered { verdict, .. } => permit.record(verdict),
        End::Refused => permit.record(Verdict::Ignored),
        End::TimedOut => permit.failure(),
        End::CutByDeadline => permit.abandon(),
        End::Overtaken => permit.overtaken(),
        End::Panicked => permit.panicked(),
        End::Cancelled => permit.cancel(),
    }
}

fn tell_limit(permit: AdaptivePermit, end: End) {
    match end {
        End::Answered { is_overload: true, .. } | End::TimedOut => permit.overload(),
        // The overtaken one took at least as long as it has taken so far.
        End::Answered { .. } | End::Overtaken => permit.success(),
        // Nothing is known of the dependency's latency.
        End::Refused | End::CutByDeadline | End::Panicked | End::Cancelled => drop(permit),
    }
}

impl Drop for Guards<'_> {
    fn drop(&mut self) {
        if !self.held.is_empty() {
            self.settle(self.end_of_dropped());
        }
    }
}
