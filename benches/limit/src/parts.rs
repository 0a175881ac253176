//! The parts of the run: one limiter for all callers, limiters by key, and their memory.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use governor::clock::FakeRelativeClock;
use voussoir_limit::{Coarse, Limiter, Quota};

use crate::measure::{Case, KeyOf, ROUNDS, compare, scattered, used, zipf};
use crate::report::Report;
use crate::rivals::{SECOND, bump, keyed_limiter, ours, theirs, tower_limit};

/// The rows of one limiter, at one and two threads.
pub fn plain(report: &mut Report) {
    let mut cases = Vec::new();
    for threads in [1, 2] {
        let row = |one, two| if threads == 1 { one } else { two };
        let mut add = |row, who, call| cases.push(Case { row, who, threads, call });

        let name = row("check, now given, 1 thread", "check, now given, 2 threads");
        let limiter = ours(None);
        add(name, "ours", used(move |turn| limiter.check_at(turn, 1).is_ok()));
        let clock = FakeRelativeClock::default();
        let governor = governor::RateLimiter::direct_with_clock(theirs(), clock);
        add(name, "governor", used(move |_| governor.check().is_ok()));
        let word = AtomicU64::new(0);
        add(name, "floor: load and exchange", used(move |_| bump(&word)));

        let name = row("whole answer, 1 thread", "whole answer, 2 threads");
        let limiter = ours(None);
        add(name, "ours", used(move |turn| limiter.check_at(turn, 1)));

        let name = row("rejected, now given, 1 thread", "rejected, now given, 2 threads");
        let limiter = Limiter::new(Quota::gcra(1, 1000 * SECOND)).expect("the quota is valid");
        limiter.check_at(1, 1).expect("the first passes");
        add(name, "ours", used(move |_| limiter.check_at(2, 1).is_ok()));
        let quota = governor::Quota::with_period(1000 * SECOND).expect("it is not 0");
        let clock = FakeRelativeClock::default();
        let governor = governor::RateLimiter::direct_with_clock(quota, clock);
        governor.check().expect("the first passes");
        add(name, "governor", used(move |_| governor.check().is_ok()));

        let name = row("check, coarse clock, 1 thread", "check, coarse clock, 2 threads");
        let limiter = ours(Some(Coarse));
        add(name, "ours", used(move |_| limiter.check().is_ok()));

        let name = row("check, default clock, 1 thread", "check, default clock, 2 threads");
        let limiter = ours(None);
        add(name, "ours", used(move |_| limiter.check().is_ok()));
        let governor = governor::RateLimiter::direct(theirs());
        add(name, "governor", used(move |_| governor.check().is_ok()));
        let bucket = leaky_bucket::RateLimiter::builder()
            .max(usize::MAX / 4)
            .initial(usize::MAX / 4)
            .build();
        add(name, "leaky-bucket", used(move |_| bucket.try_acquire(1)));
        add(name, "floor: Instant::now()", used(|_| Instant::now()));
    }
    compare(&cases, report);
    let limiter = ours(None);
    let call = used(move |_| limiter.check().is_ok());
    let own = Case { row: "", who: "ours", threads: 1, call };
    let own = (0..ROUNDS).map(|_| own.time()).fold(f64::MAX, f64::min);
    let theirs = (0..ROUNDS).map(|_| tower_limit()).fold(f64::MAX, f64::min);
    report.beside("check, default clock, through a service", own, "tower", theirs, "ns");
}

/// The rows of a limiter by key.
pub fn keyed(report: &mut Report) {
    let mut cases = Vec::new();
    for (keys, names) in [
        (1 << 17, ["131,072 keys", "131,072 keys, Zipf", "131,072 keys, 2 threads"]),
        (1 << 20, ["1,048,576 keys", "1,048,576 keys, Zipf", "1,048,576 keys, 2 threads"]),
    ] {
        let limiter = Arc::new(keyed_limiter(keys));
        (0..keys).for_each(|key| assert!(limiter.check_at(&key, 1, 1).is_ok()));
        let clock = FakeRelativeClock::default();
        let governor = Arc::new(governor::RateLimiter::dashmap_with_clock(theirs(), clock));
        (0..keys).for_each(|key| assert!(governor.check_key(&key).is_ok()));
        // As large as our table, and a word of it for each key.
        let stride = limiter.stats().table_bytes / 8 / keys as usize;
        let words = (0..keys as usize * stride).map(|_| AtomicU64::new(1));
        let words: Arc<[AtomicU64]> = words.collect();
        let draws = zipf(keys);
        let uniform: KeyOf = Arc::new(move |turn| scattered(turn, keys));
        let zipf: KeyOf = Arc::new(move |turn| u64::from(draws[turn as usize & ((1 << 20) - 1)]));
        let kinds = [(Arc::clone(&uniform), 1), (zipf, 1), (uniform, 2)];
        for (row, (key_of, threads)) in names.into_iter().zip(kinds) {
            let mut add = |who, call| cases.push(Case { row, who, threads, call });
            let (of, one) = (Arc::clone(&key_of), Arc::clone(&limiter));
            add("ours", used(move |turn| one.check_at(&of(turn), 2, 1).is_ok()));
            let (of, governor) = (Arc::clone(&key_of), Arc::clone(&governor));
            add("governor", used(move |turn| governor.check_key(&of(turn)).is_ok()));
            let (of, words) = (Arc::clone(&key_of), Arc::clone(&words));
            add(
                "floor: load and exchange",
                used(move |turn| bump(&words[of(turn) as usize * stride])),
            );
            let (of, many) = (key_of, Arc::clone(&limiter));
            // Sixteen in every sixteenth turn.
            let sixteen = move |turn: u64| {
                if turn & 15 == 0 {
                    let keys: [u64; 16] = std::array::from_fn(|n| of(turn + n as u64));
                    many.check_many(&keys.each_ref(), 2, 1, |_, answer| {
                        black_box(answer.is_ok());
                    });
                }
            };
            add("ours, 16 at once", used(sixteen));
        }
    }
    compare(&cases, report);
}

/// What a key takes, in a table for a million: reserved, and got from the system.
pub fn memory(report: &mut Report) {
    let max_keys = 1 << 20;
    for part in [64, 16, 4, 2, 1] {
        let keys = max_keys / part;
        let before = resident();
        let limiter = keyed_limiter(max_keys);
        (0..keys).for_each(|key| assert!(limiter.check_at(&key, 1, 1).is_ok()));
        let got = (resident() - before) / keys as f64;
        let reserved = limiter.stats().table_bytes as f64 / keys as f64;
        report.alone(&format!("memory a key, {keys} keys, resident"), got, "B");
        report.alone(&format!("memory a key, {keys} keys, reserved"), reserved, "B");
    }
}

fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4096.0
}
