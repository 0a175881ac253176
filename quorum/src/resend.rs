//! When the requests of a phase that were not answered are sent again.

/// How often the pause is doubled at most.
const MAX_DOUBLINGS: u32 = 4;

/// The pause doubles each time, up to 16 times the first one: replicas that do not keep up are not
/// asked for more than they can answer. In ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resend {
    at: u64,
    first: u64,
    doublings: u32,
}

impl Resend {
    /// Of requests that are sent at `now`.
    pub(crate) fn after(now: u64, first: u64) -> Self {
        Self { at: now.saturating_add(first), first, doublings: 0 }
    }

    /// When they are sent again.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// They were sent again at `now`.
    pub(crate) fn again(&mut self, now: u64) {
        self.doublings = (self.doublings + 1).min(MAX_DOUBLINGS);
        self.at = now.saturating_add(self.first << self.doublings);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_sixteen_times_the_first() {
        let mut resend = Resend::after(7, 100);
        let mut now = 7;
        for pause in [100, 200, 400, 800, 1_600, 1_600, 1_600] {
            assert_eq!(resend.at(), now + pause);
            now = resend.at();
            resend.again(now);
        }
        // The longest that a configuration takes.
        let mut late = Resend::after(u64::MAX - 1, 3_600_000_000_000);
        late.again(u64::MAX);
        assert_eq!(late.at(), u64::MAX);
    }
}
