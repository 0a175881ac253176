//! The answer of a check.

use std::time::Duration;

/// The wait of a request that no passing of time makes admissible.
pub(crate) const NEVER: u64 = u64::MAX;

/// Where a quota stands after a decision.
///
/// Holds the figures as the decision had them; what needs a division is computed when asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    whole: u64,
    left: u64,
    /// Number of `whole` and `left` that make one unit of cost. At least 1.
    unit: u64,
    reset_ns: u64,
    tier: u32,
}

impl Standing {
    pub(crate) const fn new(whole: u64, left: u64, unit: u64, reset_ns: u64) -> Self {
        Self { whole, left, unit, reset_ns, tier: 0 }
    }

    pub(crate) const fn in_tier(self, tier: usize) -> Self {
        Self { tier: tier as u32, ..self }
    }

    /// The most units that the quota ever has to give at one moment: its burst, or the limit of
    /// its window.
    pub const fn limit(&self) -> u64 {
        self.whole / self.unit
    }

    /// Units that can be taken right now, the decision already counted.
    pub const fn remaining(&self) -> u64 {
        self.left / self.unit
    }

    /// Until the quota is as if never used, if nobody takes from it any more.
    pub const fn reset_after(&self) -> Duration {
        Duration::from_nanos(self.reset_ns)
    }

    /// Which of the quotas this is about, counted from 0 in the order they were given: the one
    /// with the least left, or the one that rejected for longest.
    pub const fn tier(&self) -> usize {
        self.tier as usize
    }
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) standing: Standing,
    /// 0: admitted. Else the nanoseconds after which the same request alone would be.
    pub(crate) wait: u64,
    /// The time under which the units were counted, not before the caller's `now`.
    pub(crate) at: u64,
}

/// Facts about a grant that a later refund needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) at: u64,
    pub(crate) cost: u64,
}

impl Verdict {
    pub(crate) const fn admitted(&self) -> bool {
        self.wait == 0
    }
}
