//! Sliding windows over the outcomes of calls.
//!
//! Both kinds are exact for one caller, and for many callers lose or double nothing: each counter
//! is changed by compare-and-swap and carries the generation it counts for, so that a recorder that
//! slept through a change of state can never count in the new one. Counters are kept in several
//! stripes, among which threads are spread: a fight of two threads for a cache line costs several
//! times the rest of a record.

mod count;
mod time;

use count::CountWindow;
use time::TimeWindow;

/// Calls, and how many of them were bad.
///
/// A call may be both failed and slow; it then counts in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Counts {
    /// Successes and failures; ignored calls are not counted.
    pub calls: u64,
    /// Calls judged a failure.
    pub failures: u64,
    /// Calls that took at least the slow-call threshold.
    pub slow: u64,
}

impl Counts {
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            failures: self.failures + other.failures,
            slow: self.slow + other.slow,
        }
    }
}

/// Which calls the rates are taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowKind {
    Time { width: u64, buckets: u32, stripes: u32 },
    Count { calls: u32, stripes: u32 },
}

impl WindowKind {
    pub(crate) const fn stripes(self) -> u32 {
        match self {
            Self::Time { stripes, .. } | Self::Count { stripes, .. } => stripes,
        }
    }
}

/// Result of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) failed: bool,
    pub(crate) slow: bool,
}

/// Contents of a window, oldest first, independent of clock and generation.
pub(crate) type Export = Vec<(u32, Counts)>;

#[derive(Debug)]
pub(crate) enum Window {
    Time(TimeWindow),
    Count(CountWindow),
}

impl Window {
    pub(crate) fn new(shape: WindowKind) -> Self {
        match shape {
            WindowKind::Time { width, buckets, stripes } => {
                Self::Time(TimeWindow::new(width, buckets, stripes))
            }
            WindowKind::Count { calls, stripes } => Self::Count(CountWindow::new(calls, stripes)),
        }
    }

    /// [`add`](Self::add) for a call that was neither failed nor slow.
    #[inline]
    pub(crate) fn add_good(&self, generation: u8, now: u64) {
        match self {
            Self::Time(window) => window.add_good(generation, now),
            Self::Count(window) => {
                window.add_good(generation);
            }
        }
    }

    /// Counts one call for `generation`; nothing happens if the window has moved on from it.
    pub(crate) fn add(&self, generation: u8, now: u64, sample: Sample) {
        match self {
            Self::Time(window) => window.add(generation, now, sample),
            Self::Count(window) => window.add(generation, sample),
        }
    }

    /// Counts of the window at `now`.
    pub(crate) fn sum(&self, generation: u8, now: u64) -> Counts {
        match self {
            Self::Time(window) => window.sum(generation, now),
            Self::Count(window) => window.sum(generation),
        }
    }

    /// Empties the window for a new generation. Only under the lock of the transitions, and
    /// before the generation becomes visible.
    pub(crate) fn reset(&self, generation: u8, now: u64) {
        match self {
            Self::Time(window) => window.reset(generation, now),
            Self::Count(window) => window.reset(generation),
        }
    }

    /// Everything ever counted.
    pub(crate) fn lifetime(&self) -> Counts {
        match self {
            Self::Time(window) => window.lifetime(),
            Self::Count(window) => window.lifetime(),
        }
    }

    /// The content by age: in buckets, or in calls.
    pub(crate) fn export(&self, generation: u8, now: u64) -> Export {
        match self {
            Self::Time(window) => window.export(generation, now),
            Self::Count(window) => window.export(generation),
        }
    }

    /// Puts an export into a window that was just reset. What is older than the window is left
    /// out.
    pub(crate) fn import(&self, generation: u8, now: u64, export: &[(u32, Counts)]) {
        match self {
            Self::Time(window) => window.import(generation, now, export),
            Self::Count(window) => window.import(generation, export),
        }
    }
}
