//! A node's clocks: one that never runs backwards, and one of the wall.

const MILLION: u64 = 1_000_000;

/// Maps true time to what a node reads. All times in ns.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// True time of the last change of rate or jump, and what the clock read then.
    base_true: u64,
    base_local: u64,
    rate_ppm: i64,
    wall_offset: i64,
}

impl Clock {
    pub(crate) fn new(now: u64, local: u64, rate_ppm: i64, wall_offset: i64) -> Self {
        Self { base_true: now, base_local: local, rate_ppm, wall_offset }
    }

    pub(crate) fn local(&self, now: u64) -> u64 {
        let gone = now.saturating_sub(self.base_true);
        if self.rate_ppm == 0 {
            return self.base_local.saturating_add(gone);
        }
        let rate = self.rate_ppm.unsigned_abs();
        let drift = gone / MILLION * rate + gone % MILLION * rate / MILLION;
        let gone = if self.rate_ppm > 0 { gone.saturating_add(drift) } else { gone - drift };
        self.base_local.saturating_add(gone)
    }

    /// Jumps of the wall clock go both ways, and so it may be read as less than before.
    pub(crate) fn wall(&self, now: u64) -> u64 {
        self.local(now).saturating_add_signed(self.wall_offset)
    }

    /// The first true time at which the clock reads `local` or more.
    pub(crate) fn true_at(&self, local: u64) -> u64 {
        let Some(ahead) = local.checked_sub(self.base_local) else { return self.base_true };
        if self.rate_ppm == 0 {
            return self.base_true.saturating_add(ahead);
        }
        let pace = u128::from(MILLION.saturating_add_signed(self.rate_ppm));
        let gone = u128::from(ahead) * u128::from(MILLION) / pace;
        // The division and the drift both round down, at rates of no less than a half: the
        // answer is at most two steps before, and a few after.
        let gone = u64::try_from(gone).unwrap_or(u64::MAX).saturating_sub(3);
        let mut at = self.base_true.saturating_add(gone);
        while at < u64::MAX && self.local(at) < local {
            at += 1;
        }
        at
    }

    pub(crate) fn set_rate(&mut self, now: u64, rate_ppm: i64) {
        (self.base_local, self.base_true) = (self.local(now), now);
        self.rate_ppm = rate_ppm;
    }

    pub(crate) fn jump(&mut self, now: u64, by: u64) {
        self.set_rate(now, self.rate_ppm);
        self.base_local = self.base_local.saturating_add(by);
    }

    pub(crate) fn jump_wall(&mut self, by: i64) {
        self.wall_offset = self.wall_offset.saturating_add(by);
    }

    pub(crate) const fn is_skewed(&self) -> bool {
        self.rate_ppm != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn a_deadline_is_reached_at_the_first_moment_that_reads_it() {
        let mut rng = Rng::new(1);
        for _ in 0..20_000 {
            let rate = rng.between(0, 1_000_000).cast_signed() - 500_000;
            let base = rng.below(1 << 40);
            let clock = Clock::new(base, rng.below(1 << 40), rate, 0);
            let ahead = rng.below(1 << 50);
            let deadline = clock.base_local + rng.below(ahead + 1);
            let at = clock.true_at(deadline);
            assert!(clock.local(at) >= deadline, "{clock:?} {deadline}");
            assert!(at == base || clock.local(at - 1) < deadline, "{clock:?} {deadline}");
        }
    }

    #[test]
    fn a_quick_clock_stops_at_the_last_moment() {
        for rate in [100, 500_000] {
            let clock = Clock::new(0, 0, rate, 0);
            assert_eq!(clock.local(u64::MAX), u64::MAX);
            assert_eq!(clock.wall(u64::MAX), u64::MAX);
        }
    }

    #[test]
    fn rate_and_jumps_never_turn_it_back() {
        let mut rng = Rng::new(2);
        let mut clock = Clock::new(0, 5, 0, 0);
        let (mut now, mut last) = (0, 0);
        for _ in 0..10_000 {
            now += rng.below(1_000_000);
            match rng.below(4) {
                0 => clock.set_rate(now, rng.between(0, 20_000).cast_signed() - 10_000),
                1 => clock.jump(now, rng.below(1_000)),
                _ => {}
            }
            assert!(clock.local(now) >= last);
            last = clock.local(now);
        }
        clock.jump_wall(-3);
        assert_eq!(clock.wall(now), clock.local(now) - 3);
    }
}
