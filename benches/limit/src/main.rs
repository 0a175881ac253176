//! One check, ours and the rivals' in turn in one run: nanoseconds, best of seven.
//!
//! ```text
//! cargo run --release --manifest-path benches/limit/Cargo.toml [PART OF A ROW'S NAME]
//! ```
//!
//! Beside the rivals stand floors: what any limiter pays on this machine in this run.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::{Duration, Instant};

use governor::clock::FakeRelativeClock;
use voussoir_limit::{Coarse, Keyed, KeyedConfig, Limiter, LimiterConfig, Quota};

const CALLS: u64 = 1_000_000;
const ROUNDS: usize = 7;
const SECOND: Duration = Duration::from_secs(1);

/// One thing to time: `threads` of them call it `CALLS` times each.
struct Case {
    row: &'static str,
    who: &'static str,
    threads: usize,
    call: Box<dyn Fn(u64) + Sync>,
}

/// A call whose answer is used.
fn used<T>(call: impl Fn(u64) -> T + Sync + 'static) -> Box<dyn Fn(u64) + Sync> {
    Box::new(move |turn| {
        black_box(call(turn));
    })
}

impl Case {
    fn time(&self) -> f64 {
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

fn never_full() -> Quota {
    Quota::gcra(1_000_000_000, SECOND).burst(1 << 40)
}

fn ours(clock: Option<Coarse>) -> Limiter {
    let (quotas, config) = ([never_full()], LimiterConfig::default());
    let limiter = match clock {
        Some(clock) => Limiter::with_clock(&quotas, config, Arc::new(clock)),
        None => Limiter::with_config(&quotas, config),
    };
    limiter.expect("the quota is valid")
}

fn theirs() -> governor::Quota {
    let most = NonZeroU32::new(1_000_000_000).expect("not 0");
    governor::Quota::per_second(most).allow_burst(NonZeroU32::MAX)
}

/// A load and an exchange, with nothing decided in between.
fn bump(word: &AtomicU64) {
    let mut seen = word.load(Acquire);
    while let Err(other) = word.compare_exchange_weak(seen, seen + 1, AcqRel, Acquire) {
        seen = other;
    }
}

/// The rows of one limiter, at one and two threads.
fn plain(cases: &mut Vec<Case>) {
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
}

/// Spreads turns over a number of keys, so that neighbours are far apart.
fn scattered(turn: u64, keys: u64) -> u64 {
    (turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) & (keys - 1)
}

/// Ranks drawn by Zipf's law with exponent 0.99, scattered over the keys.
fn zipf(keys: u64) -> Vec<u32> {
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
type KeyOf = Arc<dyn Fn(u64) -> u64 + Send + Sync>;

fn keyed_limiter(keys: u64) -> Keyed<u64> {
    let mut config = KeyedConfig::default();
    config.max_keys = keys as usize;
    let quota = Quota::gcra(1, Duration::from_secs(1000)).burst(1_000_000);
    Keyed::with_config(&[quota], config).expect("it is valid")
}

fn keyed(cases: &mut Vec<Case>) {
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
}

/// What a key takes, in a table for a million: reserved, and got from the system.
fn memory() {
    let max_keys = 1 << 20;
    for part in [64, 16, 4, 2, 1] {
        let keys = max_keys / part;
        let before = resident();
        let limiter = keyed_limiter(max_keys);
        (0..keys).for_each(|key| assert!(limiter.check_at(&key, 1, 1).is_ok()));
        let got = (resident() - before) / keys as f64;
        let reserved = limiter.stats().table_bytes as f64 / keys as f64;
        println!("{keys:8} keys: {got:7.1} bytes a key resident, {reserved:7.1} reserved");
    }
}

fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4096.0
}

/// Through a service of the kind that `tower` has, polled ready and called.
fn tower_limit() -> f64 {
    use tower::{Service, ServiceExt};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime starts").block_on(async {
        let inner = tower::service_fn(|n: u64| async move { Ok::<u64, ()>(n) });
        let mut service = tower::limit::RateLimit::new(
            inner,
            tower::limit::rate::Rate::new(1 << 50, Duration::from_secs(3600)),
        );
        let start = Instant::now();
        for turn in 0..CALLS {
            let ready = service.ready().await.expect("it is never full");
            black_box(ready.call(turn).await).expect("it answers");
        }
        start.elapsed().as_nanos() as f64 / CALLS as f64
    })
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let mut cases = Vec::new();
    plain(&mut cases);
    if filter.is_empty() || filter.contains("keys") {
        memory();
        keyed(&mut cases);
    }
    cases.retain(|case| case.row.contains(&filter));
    let mut best: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for case in &cases {
            let time = case.time();
            let entry = best.entry((case.row, case.who)).or_insert(f64::MAX);
            *entry = entry.min(time);
        }
    }
    println!("{:34} {:>9} {:>9}  other", "name", "ours ns", "other ns");
    for ((row, who), other) in &best {
        let ours = best[&(*row, "ours")];
        if *who != "ours" {
            print_row(row, ours, who, *other);
        } else if !best.keys().any(|(r, w)| r == row && *w != "ours") {
            println!("{row:34} {ours:9.1}");
            println!("{{\"name\":\"{row}\",\"ours\":{ours:.1}}}");
        }
    }
    let name = "check, default clock, 1 thread";
    if let Some(ours) = best.get(&(name, "ours")) {
        let tower = (0..ROUNDS).map(|_| tower_limit()).fold(f64::MAX, f64::min);
        print_row(name, *ours, "tower's service", tower);
    }
}

fn print_row(row: &str, ours: f64, who: &str, rival: f64) {
    let ratio = rival / ours;
    println!("{row:34} {ours:9.1} {rival:9.1}  {who}, {ratio:.2} times ours");
    println!(
        "{{\"name\":\"{row}\",\"ours\":{ours:.1},\"rival\":\"{who}\",\
         \"theirs\":{rival:.1},\"ratio\":{ratio:.2}}}"
    );
}
