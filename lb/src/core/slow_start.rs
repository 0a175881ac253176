//! Slow start: how much of its weight an endpoint has while it warms up.

/// The step of an endpoint that has all of its weight. A step is 1/20 of the weight, so that the
/// weights stay integers and the tables are rebuilt at most 20 times in a ramp.
pub(crate) const FULL: u32 = 20;

/// The step, 1 to [`FULL`], after `elapsed` of `window` ns, beginning at the share `floor`, and
/// the time from now to the next step (`None` at the end).
pub(crate) fn ramp_step(elapsed: u64, window: u64, floor: f64) -> (u32, Option<u64>) {
    if elapsed >= window {
        return (FULL, None);
    }
    let first = ((floor * f64::from(FULL)).round() as u32).clamp(1, FULL);
    let steps = u64::from(FULL - first) + 1;
    // Step i of `steps` begins at i * window / steps.
    let at = (u128::from(elapsed) * u128::from(steps) / u128::from(window)) as u64;
    let next = ((u128::from(at) + 1) * u128::from(window)).div_ceil(u128::from(steps)) as u64;
    let step = first + at as u32;
    (step.min(FULL), (step < FULL).then(|| next.max(elapsed + 1) - elapsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ramp_rises_from_the_floor_and_ends() {
        for (window, floor) in [(1_000, 0.1), (20, 0.05), (u64::MAX / 2, 0.5), (7, 1.0)] {
            let (mut elapsed, mut last, mut steps) = (0, 0, 0);
            loop {
                let (step, next) = ramp_step(elapsed, window, floor);
                assert!(step > last || steps == 0, "{window} {floor} {elapsed}");
                assert!(step >= 1 && f64::from(step) >= (floor * 20.0).floor());
                (last, steps) = (step, steps + 1);
                let Some(next) = next else { break };
                elapsed += next;
            }
            assert_eq!(last, FULL);
            assert!(steps <= FULL && elapsed <= window);
        }
    }
}
