//! How a call is timed: nanoseconds, best of seven rounds of a million calls.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use crate::report::Report;

pub const CALLS: u64 = 1_000_000;
pub const ROUNDS: usize = 7;

/// One thing to time: `threads` threads call it `CALLS` times each.
pub struct Case {
    pub row: &'static str,
    pub who: &'static str,
    pub threads: usize,
    pub call: Box<dyn Fn(u64) + Sync>,
}

/// A call whose answer is used.
pub fn used<T>(call: impl Fn(u64) -> T + Sync + 'static) -> Box<dyn Fn(u64) + Sync> {
    Box::new(move |turn| {
        black_box(call(turn));
    })
}

impl Case {
    /// Nanoseconds a call of one round; wall time of each thread.
    pub fn time(&self) -> f64 {
        // The thread's number keeps the sequences of two threads apart.
        let work = |thread: u64| {
            for turn in 0..CALLS {
                (self.call)(turn + thread * 7_777_777);
            }
        };
        let start = Instant::now();
        if self.threads == 1 {
            work(0);
        } else {
            std::thread::scope(|scope| {
                for thread in 0..self.threads as u64 {
                    scope.spawn(move || work(thread));
                }
            });
        }
        start.elapsed().as_nanos() as f64 / CALLS as f64
    }
}

/// Spreads turns over a number of keys, so that neighbours are far apart.
pub fn scattered(turn: u64, keys: u64) -> u64 {
    (turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) & (keys - 1)
}

/// Ranks drawn by Zipf's law with exponent 0.99, scattered over the keys.
pub fn zipf(keys: u64) -> Vec<u32> {
    let mut sums = Vec::with_capacity(keys as usize);
    let mut sum = 0.0;
    for rank in 1..=keys {
        sum += (rank as f64).powf(-0.99);
        sums.push(sum);
    }
    let draw = |turn: u64| {
        let bits = turn.wrapping_mul(0xD134_2543_DE82_EF95) >> 11;
        let uniform = bits as f64 / (1_u64 << 53) as f64;
        let rank = sums.partition_point(|upto| *upto < uniform * sum) as u64;
        scattered(rank, keys) as u32
    };
    (0..1 << 20).map(draw).collect()
}

/// Which key a turn asks for.
pub type KeyOf = Arc<dyn Fn(u64) -> u64 + Send + Sync>;

/// Times every case in turn, so that a drift of the machine hits them all, and adds the rows.
pub fn compare(cases: &[Case], report: &mut Report) {
    let mut best: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for case in cases {
            let time = case.time();
            let entry = best.entry((case.row, case.who)).or_insert(f64::MAX);
            *entry = entry.min(time);
        }
    }
    for ((row, who), time) in &best {
        if *who != "ours" {
            report.beside(row, best[&(*row, "ours")], who, *time, "ns");
        } else if !best.keys().any(|(other, who)| other == row && *who != "ours") {
            report.alone(row, *time, "ns");
        }
    }
}
