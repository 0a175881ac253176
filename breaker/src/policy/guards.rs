//! The permits that a call holds.

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

/// What an answer tells the permits.
#[derive(Clone, Copy)]
pub(super) struct Told {
    pub(super) verdict: Verdict,
    pub(super) is_overload: bool,
}

impl Told {
    /// Whether a race may end with it.
    pub(super) fn is_good(self) -> bool {
        self.verdict == Verdict::Success
    }
}

/// The permits between two stages that repeat or bound calls.
///
/// Dropped unsettled, the call was cancelled. If that happened because the policy's own time limit
/// passed, the dependency was too slow and hears of it; else nobody knows anything.
pub(super) struct Guards<'a> {
    held: Vec<Guard<'a>>,
    deadline: Option<Deadline>,
}

impl<'a> Guards<'a> {
    pub(super) const fn new(deadline: Option<Deadline>) -> Self {
        Self { held: Vec::new(), deadline }
    }

    pub(super) fn push(&mut self, guard: Guard<'a>) {
        self.held.push(guard);
    }

    /// Returns all permits, the innermost first.
    pub(super) fn settle(&mut self, told: Told) {
        while let Some(guard) = self.held.pop() {
            match guard {
                Guard::Breaker(permit) => permit.record(told.verdict),
                Guard::Adaptive(permit) if told.is_overload => permit.overload(),
                // A refusal of our own says nothing about the dependency's latency.
                Guard::Adaptive(permit) if told.verdict == Verdict::Ignored => drop(permit),
                Guard::Adaptive(permit) => permit.success(),
                Guard::Bulkhead { .. } => {}
            }
        }
    }
}

impl Drop for Guards<'_> {
    fn drop(&mut self) {
        if !self.held.is_empty() && self.deadline.is_some_and(Deadline::has_passed) {
            self.settle(Told { verdict: Verdict::Failure, is_overload: true });
        }
    }
}
