//! States, verdicts and transitions of a breaker.

use std::fmt;
use std::time::Duration;

use crate::core::{Counts, Phase, Shift, ShiftCause, Trip};

/// State of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum State {
    /// Admits all calls and counts the answers; opens when a threshold is reached.
    Closed,
    /// Rejects all calls until the open wait is over.
    Open,
    /// Admits a fixed number of probes; their answers close or open the breaker.
    HalfOpen,
    /// Set by hand: rejects all calls.
    ForcedOpen,
    /// Set by hand: admits all calls and counts nothing.
    ForcedClosed,
    /// Set by hand: admits all calls and counts the answers, but never opens.
    MetricsOnly,
}

impl State {
    pub(crate) const fn of(phase: Phase) -> Self {
        match phase {
            Phase::Closed => Self::Closed,
            Phase::Open => Self::Open,
            Phase::HalfOpen => Self::HalfOpen,
            Phase::ForcedOpen => Self::ForcedOpen,
            Phase::ForcedClosed => Self::ForcedClosed,
            Phase::MetricsOnly => Self::MetricsOnly,
        }
    }

    pub(crate) const fn phase(self) -> Phase {
        match self {
            Self::Closed => Phase::Closed,
            Self::Open => Phase::Open,
            Self::HalfOpen => Phase::HalfOpen,
            Self::ForcedOpen => Phase::ForcedOpen,
            Self::ForcedClosed => Phase::ForcedClosed,
            Self::MetricsOnly => Phase::MetricsOnly,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
            Self::ForcedOpen => "forced open",
            Self::ForcedClosed => "forced closed",
            Self::MetricsOnly => "metrics only",
        })
    }
}

/// Verdict of an answer on the health of the dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// The dependency works.
    Success,
    /// The dependency does not work.
    Failure,
    /// The answer says nothing about the dependency: it is somebody else's, or the call was
    /// cancelled. Not counted, not as a slow call either. A mistake of the caller that the
    /// dependency has found is a [`Success`](Self::Success): it works.
    Ignored,
}

impl Verdict {
    /// `Ok` is a success, `Err` a failure.
    pub const fn of<T, E>(answer: &Result<T, E>) -> Self {
        match answer {
            Ok(_) => Self::Success,
            Err(_) => Self::Failure,
        }
    }
}

/// Why a breaker changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Too many failures in a row.
    ConsecutiveFailures,
    /// The share of failures in the window.
    FailureRate,
    /// The share of slow calls in the window.
    SlowRate,
    /// The open wait was over when a call or a tick came.
    WaitOver,
    /// Enough probes succeeded.
    ProbesHealthy,
    /// Too many probes failed or were slow.
    ProbesSick,
    /// All probes were under way for longer than the configuration allows.
    ProbesStuck,
    /// Set by hand.
    ByHand,
    /// Taken from a snapshot.
    Restored,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConsecutiveFailures => "consecutive failures",
            Self::FailureRate => "failure rate",
            Self::SlowRate => "slow-call rate",
            Self::WaitOver => "wait over",
            Self::ProbesHealthy => "probes healthy",
            Self::ProbesSick => "probes sick",
            Self::ProbesStuck => "probes stuck",
            Self::ByHand => "by hand",
            Self::Restored => "restored",
        })
    }
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// The state that ended.
    pub from: State,
    /// The state that began.
    pub to: State,
    /// Why.
    pub cause: Cause,
    /// Nanoseconds since the epoch of the breaker's clock.
    pub at: u64,
    /// How long the new state waits before it admits probes, if it is open.
    pub open_for: Option<Duration>,
    /// Counts of the window at the transition.
    pub window: Counts,
}

impl Transition {
    pub(crate) fn of(shift: Shift) -> Self {
        let cause = match shift.cause {
            ShiftCause::Tripped(Trip::ConsecutiveFailures) => Cause::ConsecutiveFailures,
            ShiftCause::Tripped(Trip::FailureRate) => Cause::FailureRate,
            ShiftCause::Tripped(Trip::SlowRate) => Cause::SlowRate,
            ShiftCause::WaitOver => Cause::WaitOver,
            ShiftCause::ProbesHealthy => Cause::ProbesHealthy,
            ShiftCause::ProbesSick => Cause::ProbesSick,
            ShiftCause::ProbesStuck => Cause::ProbesStuck,
            ShiftCause::ByHand => Cause::ByHand,
            ShiftCause::Restored => Cause::Restored,
        };
        Self {
            from: State::of(shift.from),
            to: State::of(shift.to),
            cause,
            at: shift.at,
            open_for: shift.wait.map(Duration::from_nanos),
            window: shift.counts,
        }
    }
}
