//! One admitted check, ours and the rivals' in turn in one run: nanoseconds, best of seven.
//!
//! ```text
//! cargo run --release --manifest-path benches/limit/Cargo.toml
//! ```

use std::collections::BTreeMap;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
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
    let mut config = LimiterConfig::default();
    if let Some(clock) = clock {
        config.clock = Arc::new(clock);
    }
    Limiter::with_config(&[never_full()], config).expect("the quota is valid")
}

fn theirs() -> governor::Quota {
    let most = NonZeroU32::new(1_000_000_000).expect("not 0");
    governor::Quota::per_second(most).allow_burst(NonZeroU32::MAX)
}

/// Both rows of a check, at one and two threads.
fn plain(cases: &mut Vec<Case>) {
    for threads in [1, 2] {
        let row = |one, two| if threads == 1 { one } else { two };
        let mut add = |row, who, call: Box<dyn Fn(u64) + Sync>| {
            cases.push(Case { row, who, threads, call });
        };
        let name = row("check, now given, 1 thread", "check, now given, 2 threads");
        let limiter = ours(None);
        add(
            name,
            "ours",
            Box::new(move |turn| {
                black_box(limiter.check_at(turn, 1).is_ok());
            }),
        );
        let clock = FakeRelativeClock::default();
        let governor = governor::RateLimiter::direct_with_clock(theirs(), clock);
        add(
            name,
            "governor",
            Box::new(move |_| {
                black_box(governor.check().is_ok());
            }),
        );
        let name = row("check, coarse clock, 1 thread", "check, coarse clock, 2 threads");
        let limiter = ours(Some(Coarse));
        add(
            name,
            "ours",
            Box::new(move |_| {
                black_box(limiter.check().is_ok());
            }),
        );
        let name = row("check, default clock, 1 thread", "check, default clock, 2 threads");
        let limiter = ours(None);
        add(
            name,
            "ours",
            Box::new(move |_| {
                black_box(limiter.check().is_ok());
            }),
        );
        let governor = governor::RateLimiter::direct(theirs());
        add(
            name,
            "governor",
            Box::new(move |_| {
                black_box(governor.check().is_ok());
            }),
        );
        let bucket = leaky_bucket::RateLimiter::builder()
            .max(usize::MAX / 4)
            .initial(usize::MAX / 4)
            .build();
        add(
            name,
            "leaky-bucket",
            Box::new(move |_| {
                black_box(bucket.try_acquire(1));
            }),
        );
    }
}

/// Spreads turns over a number of keys, so that neighbours are far apart.
fn scattered(turn: u64, keys: u64) -> u64 {
    turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20 & (keys - 1)
}

fn keyed(cases: &mut Vec<Case>) {
    for (keys, row) in [(1 << 17, "keyed, 131,072 keys"), (1 << 20, "keyed, 1,048,576 keys")] {
        let mut config = KeyedConfig::default();
        config.keys_max = 2 << 20;
        let quota = Quota::gcra(1, Duration::from_secs(1000)).burst(1_000_000);
        let limiter: Keyed<u64> = Keyed::with_config(&[quota], config).expect("it is valid");
        (0..keys).for_each(|key| assert!(limiter.check_at(&key, 1, 1).is_ok()));
        let bytes = limiter.stats().table_bytes as f64 / keys as f64;
        println!("{row}: {bytes:.1} bytes a key");
        cases.push(Case {
            row,
            who: "ours",
            threads: 1,
            call: Box::new(move |turn| {
                black_box(limiter.check_at(&scattered(turn, keys), 2, 1).is_ok());
            }),
        });
        let clock = FakeRelativeClock::default();
        let governor = governor::RateLimiter::dashmap_with_clock(theirs(), clock);
        (0..keys).for_each(|key| assert!(governor.check_key(&key).is_ok()));
        cases.push(Case {
            row,
            who: "governor",
            threads: 1,
            call: Box::new(move |turn| {
                black_box(governor.check_key(&scattered(turn, keys)).is_ok());
            }),
        });
    }
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
    let mut cases = Vec::new();
    plain(&mut cases);
    keyed(&mut cases);
    let mut best: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for case in &cases {
            let time = case.time();
            let entry = best.entry((case.row, case.who)).or_insert(f64::MAX);
            *entry = entry.min(time);
        }
    }
    let tower = (0..ROUNDS).map(|_| tower_limit()).fold(f64::MAX, f64::min);
    println!("{:34} {:>9} {:>9}  rival", "name", "ours ns", "rival ns");
    for ((row, who), rival) in &best {
        let ours = best[&(*row, "ours")];
        if *who != "ours" {
            print_row(row, ours, who, *rival);
        } else if !best.keys().any(|(r, w)| r == row && *w != "ours") {
            println!("{row:34} {ours:9.1}");
            println!("{{\"name\":\"{row}\",\"ours\":{ours:.1}}}");
        }
    }
    print_row(
        "default clock, tower's service",
        best[&("check, default clock, 1 thread", "ours")],
        "tower",
        tower,
    );
}

fn print_row(row: &str, ours: f64, who: &str, rival: f64) {
    let ratio = rival / ours;
    println!("{row:34} {ours:9.1} {rival:9.1}  {who}, {ratio:.2} times ours");
    println!(
        "{{\"name\":\"{row}\",\"ours\":{ours:.1},\"rival\":\"{who}\",\
         \"theirs\":{rival:.1},\"ratio\":{ratio:.2}}}"
    );
}
