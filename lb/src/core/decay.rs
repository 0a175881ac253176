//! A number that decays with time, in one atomic word.

use std::sync::atomic::Ordering::Relaxed;

use crate::sync::AtomicU64;

/// One tick of the stamp is 2^20 ns, about 1.05 ms.
const TICK_SHIFT: u32 = 20;
/// A time before the stamp by less than this, 69 s, is that of a late caller. Anything further
/// apart is the time of a value that nobody has changed for ages.
const LATE_TICKS: u32 = 1 << 16;

/// A non-negative number that halves every half-life. The word holds the `f32` value in its upper
/// half and the tick of its last change in its lower half, so that both are read together.
///
/// Ticks wrap after 52 days: a value that nobody has changed for that long, within
/// [`LATE_TICKS`] before, reads as undecayed for once. [`forget`](Self::forget) ends such values.
#[derive(Debug)]
pub(crate) struct Decaying {
    word: AtomicU64,
}

fn tick(now: u64) -> u32 {
    (now >> TICK_SHIFT) as u32
}

fn pack(value: f32, stamp: u32) -> u64 {
    u64::from(value.to_bits()) << 32 | u64::from(stamp)
}

fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

/// Ticks from `stamp` to `now`; 0 when another thread passed a later `now` before.
fn elapsed(now: u32, stamp: u32) -> u32 {
    let ticks = now.wrapping_sub(stamp);
    if ticks > u32::MAX - LATE_TICKS { 0 } else { ticks }
}

/// `2^-halves`, exact for whole numbers and at most 6.2 % above between them.
fn remaining(halves: f32) -> f32 {
    if halves >= 64.0 {
        return 0.0;
    }
    let whole = halves as u32;
    let part = halves - whole as f32;
    f32::from_bits((127 - whole) << 23) * (1.0 - 0.5 * part)
}

impl Decaying {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }

    /// The value at `now`. `rate` is 1 / half-life in ticks ([`Decaying::rate`]).
    #[inline]
    pub(crate) fn read(&self, now: u64, rate: f32) -> f32 {
        let word = self.word.load(Relaxed);
        if word >> 32 == 0 {
            return 0.0;
        }
        let (value, stamp) = unpack(word);
        match elapsed(tick(now), stamp) {
            0 => value,
            ticks => value * remaining(ticks as f32 * rate),
        }
    }

    /// The `rate` of a half-life in ns.
    pub(crate) fn rate(half_life: u64) -> f32 {
        (1u64 << TICK_SHIFT) as f32 / half_life as f32
    }

    /// Makes a value that has decayed to nothing 0, so that it is nothing also when ticks wrap.
    #[inline]
    pub(crate) fn forget(&self, now: u64, rate: f32) {
        let word = self.word.load(Relaxed);
        if word >> 32 == 0 || self.read(now, rate) > 0.0 {
            return;
        }
        // Fails only if another thread has changed the value: it is not old any more.
        let _ = self.word.compare_exchange(word, 0, Relaxed, Relaxed);
    }

    /// Adds to the value.
    pub(crate) fn add(&self, now: u64, rate: f32, amount: f32) {
        self.update(now, rate, |decayed, _| Some(decayed + amount));
    }

    /// Records a sample of a peak-sensitive moving average: a sample above the average replaces
    /// it, another one moves it by the time since the last change.
    ///
    /// Samples below the average within one tick of the last change are skipped: `None`. Returns
    /// the new average otherwise.
    pub(crate) fn peak(&self, now: u64, rate: f32, sample: f32) -> Option<f32> {
        let now_tick = tick(now);
        self.update(now, rate, |decayed, stamp| {
            if sample > decayed {
                return Some(sample);
            }
            let kept = remaining(elapsed(now_tick, stamp) as f32 * rate);
            // `decayed` has lost the share that the sample is worth.
            (kept < 1.0).then_some(decayed + sample * (1.0 - kept))
        })
    }

    /// Replaces the value by a larger sample; ignores a smaller one.
    pub(crate) fn raise(&self, now: u64, rate: f32, sample: f32) {
        self.update(now, rate, |decayed, _| (sample > decayed).then_some(sample));
    }

    /// Replaces the value by what `next` makes of the decayed value and the old stamp. Returns what
    /// `next` made.
    fn update(&self, now: u64, rate: f32, next: impl Fn(f32, u32) -> Option<f32>) -> Option<f32> {
        let now = tick(now);
        let mut word = self.word.load(Relaxed);
        // Ends: an exchange fails only because another thread's update succeeded.
        loop {
            let (value, stamp) = unpack(word);
            let decayed = value * remaining(elapsed(now, stamp) as f32 * rate);
            let value = next(decayed, stamp)?;
            // The stamp never goes back, or a late writer would make the value decay twice.
            let stamp = if word == 0 { now } else { stamp.wrapping_add(elapsed(now, stamp)) };
            match self.word.compare_exchange_weak(word, pack(value, stamp), Relaxed, Relaxed) {
                Ok(_) => return Some(value),
                Err(actual) => word = actual,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn close(a: f32, b: f32) -> bool {
        (a - b).abs() <= 0.07 * b.abs().max(0.001)
    }

    #[test]
    fn a_value_halves_in_its_half_life() {
        let rate = Decaying::rate(SECOND);
        let value = Decaying::new();
        value.add(5 * SECOND, rate, 8.0);
        assert!(close(value.read(5 * SECOND, rate), 8.0));
        assert!(close(value.read(6 * SECOND, rate), 4.0));
        assert!(close(value.read(8 * SECOND, rate), 1.0));
        assert!(value.read(500 * SECOND, rate) == 0.0);
    }

    #[test]
    fn a_peak_replaces_and_lower_samples_pull_down() {
        let rate = Decaying::rate(SECOND);
        let average = Decaying::new();
        average.peak(0, rate, 100.0);
        average.peak(1, rate, 900.0);
        assert!(close(average.read(1, rate), 900.0));
        for step in 1..=200 {
            average.peak(step * SECOND / 10, rate, 100.0);
        }
        let settled = average.read(20 * SECOND, rate);
        assert!((95.0..110.0).contains(&settled), "{settled}");
    }

    const DAY: u64 = 86_400 * SECOND;

    #[test]
    fn a_value_that_nobody_changes_stays_decayed() {
        let rate = Decaying::rate(SECOND);
        for begun in [SECOND, 20 * DAY, 51 * DAY] {
            let value = Decaying::new();
            value.add(begun, rate, 8.0);
            for day in 1..52 {
                assert!(value.read(begun + day * DAY, rate) == 0.0, "day {day}");
            }
            value.add(begun + 30 * DAY, rate, 1.0);
            assert!(close(value.read(begun + 30 * DAY, rate), 1.0), "the old ones count no more");
            assert!(close(value.read(begun + 30 * DAY + SECOND, rate), 0.5), "it decays");
            let average = Decaying::new();
            average.peak(begun, rate, 900.0);
            average.peak(begun + 30 * DAY, rate, 100.0);
            assert!(close(average.read(begun + 30 * DAY, rate), 100.0), "the old peak is over");
        }
    }

    #[test]
    fn a_value_that_is_forgotten_does_not_return_when_ticks_wrap() {
        let rate = Decaying::rate(SECOND);
        let wrap = 1 << (32 + TICK_SHIFT);
        let value = Decaying::new();
        value.add(SECOND, rate, 8.0);
        value.forget(2 * SECOND, rate);
        assert!(close(value.read(2 * SECOND, rate), 4.0), "it is not old");
        value.forget(40 * DAY, rate);
        assert!(value.read(SECOND + wrap, rate) == 0.0);
    }

    #[test]
    fn an_earlier_now_neither_decays_nor_moves_the_stamp() {
        let rate = Decaying::rate(SECOND);
        let value = Decaying::new();
        value.add(10 * SECOND, rate, 1.0);
        value.add(9 * SECOND, rate, 1.0);
        assert!(close(value.read(10 * SECOND, rate), 2.0));
        assert!(close(value.read(11 * SECOND, rate), 1.0));
    }
}
