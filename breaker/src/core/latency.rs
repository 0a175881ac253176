//! Quantiles of recent latencies.

/// Buckets in each doubling of the latency: a value is exact to one part in 32.
const STEP_BITS: u32 = 4;
const STEPS: usize = 1 << STEP_BITS;
/// Doublings from 1 µs to 2^36 µs.
const DOUBLINGS: usize = 36;
const PLACES: usize = (DOUBLINGS + 1) * STEPS;
/// Samples after which the cached quantile is computed again.
const FRESH_FOR: u64 = 16;

/// Counts over two halves of a window, of which the older one is dropped whole.
#[derive(Debug)]
pub(crate) struct LatencyWindow {
    half: u64,
    halves: [Box<[u32]>; 2],
    counts: [u64; 2],
    present: usize,
    ends: u64,
    quantile: f64,
    remembered: Option<(u64, u64)>,
}

impl LatencyWindow {
    /// A window of `span` nanoseconds, asked for one quantile in `0..1`.
    pub(crate) fn new(span: u64, quantile: f64, now: u64) -> Self {
        let half = (span / 2).max(1);
        Self {
            half,
            halves: [vec![0; PLACES].into(), vec![0; PLACES].into()],
            counts: [0; 2],
            present: 0,
            ends: now.saturating_add(half),
            quantile,
            remembered: None,
        }
    }

    pub(crate) fn record(&mut self, now: u64, latency: u64) {
        self.turn(now);
        let count = &mut self.halves[self.present][place(latency)];
        *count = count.saturating_add(1);
        self.counts[self.present] += 1;
    }

    /// Samples that the window holds.
    pub(crate) fn len(&mut self, now: u64) -> u64 {
        self.turn(now);
        self.counts[0] + self.counts[1]
    }

    /// The latency in nanoseconds that the quantile of the samples does not exceed, rounded up by
    /// at most a sixteenth.
    pub(crate) fn quantile(&mut self, now: u64) -> Option<u64> {
        let len = self.len(now);
        match self.remembered {
            Some((at, value)) if len >= at && len - at < FRESH_FOR.min(at / 32 + 1) => Some(value),
            _ => {
                let value = self.look_up(len)?;
                self.remembered = Some((len, value));
                Some(value)
            }
        }
    }

    fn look_up(&self, len: u64) -> Option<u64> {
        let rank = ((len as f64 * self.quantile).ceil() as u64).clamp(1, len.max(1));
        let mut seen = 0;
        let sums =
            self.halves[0].iter().zip(&*self.halves[1]).map(|(a, b)| u64::from(*a) + u64::from(*b));
        for (at, count) in sums.enumerate() {
            seen += count;
            if seen >= rank {
                return Some(upper(at));
            }
        }
        None
    }

    fn turn(&mut self, now: u64) {
        if now < self.ends {
            return;
        }
        let is_long_ago = now - self.ends >= self.half;
        self.present = 1 - self.present;
        self.clear(self.present);
        if is_long_ago {
            self.clear(1 - self.present);
        }
        self.ends = now.saturating_add(self.half);
        self.remembered = None;
    }

    fn clear(&mut self, half: usize) {
        self.halves[half].fill(0);
        self.counts[half] = 0;
    }
}

fn place(nanos: u64) -> usize {
    let micros = (nanos / 1_000).max(1);
    let doubling = micros.ilog2();
    let step = if doubling >= STEP_BITS {
        (micros >> (doubling - STEP_BITS)) as usize
    } else {
        (micros << (STEP_BITS - doubling)) as usize
    } & (STEPS - 1);
    (doubling as usize * STEPS + step).min(PLACES - 1)
}

/// Upper bound of a bucket of the histogram, in ns.
fn upper(place: usize) -> u64 {
    let (doubling, step) = (place / STEPS, place % STEPS);
    let micros = (1_u128 << doubling) * (STEPS + step + 1) as u128 / STEPS as u128;
    u64::try_from((micros * 1_000).max(1_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn quantiles_are_right_to_a_sixteenth() {
        for quantile in [0.5, 0.95, 0.99] {
            let mut window = LatencyWindow::new(1_000 * MS, quantile, 0);
            for n in 1..=1_000 {
                window.record(0, n * MS);
            }
            let exact = (1_000.0 * quantile) as u64 * MS;
            let found = window.quantile(0).unwrap();
            assert!(found >= exact && found <= exact + exact / 16 + 1_000, "{quantile}: {found}");
        }
    }

    #[test]
    fn every_value_has_a_place_that_holds_it() {
        for nanos in (0..63).flat_map(|bit| [1 << bit, (1 << bit) + 1, (1 << bit) * 2 - 1]) {
            let end = upper(place(nanos));
            assert!(place(nanos) == PLACES - 1 || end + 1_000 > nanos, "{nanos} in {end}");
            assert!(place(nanos) <= place(nanos + 1));
        }
    }

    #[test]
    fn old_samples_leave() {
        let mut window = LatencyWindow::new(100, 0.5, 0);
        assert_eq!(window.quantile(0), None);
        window.record(0, MS);
        window.record(60, 9 * MS);
        assert_eq!(window.len(60), 2);
        assert_eq!(window.len(120), 1);
        assert_eq!(window.len(500), 0);
    }
}
