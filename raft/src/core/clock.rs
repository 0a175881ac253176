//! The caller's clock, made steady.

/// The longest step forward that counts, in nanoseconds: an hour, the longest of all timeouts.
/// Whatever waits has waited long enough then, and the sum of all steps cannot overflow.
const MAX_STEP: u64 = 3_600_000_000_000;

/// Turns the caller's time, which may jump either way, into a time of the core that only grows,
/// by what has passed between two steps. A jump back counts as no time at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    caller: u64,
    now: u64,
}

impl Clock {
    pub(super) fn new(caller: u64) -> Self {
        Self { caller, now: 0 }
    }

    /// Takes the caller's time and returns the core's.
    pub(super) fn advance(&mut self, caller: u64) -> u64 {
        self.now = self.of_caller(caller);
        self.caller = caller;
        self.now
    }

    /// What the core's time is when the caller's is `caller`.
    pub(super) fn of_caller(self, caller: u64) -> u64 {
        self.now + caller.saturating_sub(self.caller).min(MAX_STEP)
    }

    /// When the core's time `at` was, in the caller's time, where that has not jumped since.
    pub(super) fn past_to_caller(self, at: u64) -> u64 {
        self.caller.saturating_sub(self.now.saturating_sub(at))
    }

    /// When the core's time `at` comes, in the caller's time.
    pub(super) fn to_caller(self, at: u64) -> u64 {
        self.caller.saturating_add(at.saturating_sub(self.now))
    }
}
