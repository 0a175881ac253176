//! Rounds, medians, threads.

use std::sync::Barrier;
use std::time::Instant;

const ROUNDS: usize = 25;
/// Calls of each thread in a round.
pub const CALLS: u64 = 100_000;

#[derive(Clone, Copy)]
pub struct Figure {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Figure {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { median: values[values.len() / 2], min: values[0], max: values[values.len() - 1] }
    }

    pub fn show(self, unit: &str) -> String {
        format!("{:.1} [{:.1}-{:.1}] {unit}", self.median, self.min, self.max)
    }
}

/// Every subject once in each round, so that what disturbs the machine disturbs them all.
pub fn medians(subjects: &mut [Box<dyn FnMut() -> f64>]) -> Vec<Figure> {
    let mut values = vec![Vec::new(); subjects.len()];
    for round in 0..=ROUNDS {
        for (subject, values) in subjects.iter_mut().zip(&mut values) {
            let value = subject();
            // The first round warms up.
            if round > 0 {
                values.push(value);
            }
        }
    }
    values.into_iter().map(Figure::of).collect()
}

/// Nanoseconds for each of the `CALLS` that every thread makes, all starting together: the
/// slowest thread's.
pub fn threads(count: usize, work: impl Fn(u64) + Sync) -> f64 {
    let barrier = Barrier::new(count);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let start = Instant::now();
                    work(CALLS);
                    start.elapsed().as_nanos() as f64 / CALLS as f64
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("ran")).fold(0.0, f64::max)
    })
}
