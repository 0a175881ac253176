//! Checks by algorithm, with and without a clock, and by key.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use voussoir_limit::{Keyed, KeyedConfig, Limiter, Quota};

const SECOND: Duration = Duration::from_secs(1);

/// Quotas that never reject: 10⁹ a second, or as much as the algorithm can count.
fn quotas() -> [(&'static str, Quota); 4] {
    [
        ("gcra", Quota::gcra(1_000_000_000, SECOND).burst(1 << 40)),
        ("token bucket", Quota::token_bucket(1_000_000, SECOND).burst(1 << 20)),
        ("fixed window", Quota::fixed_window(1 << 20, SECOND)),
        ("sliding counter", Quota::sliding_counter(1 << 40, SECOND)),
    ]
}

fn check(c: &mut Criterion) {
    let mut group = c.benchmark_group("limit/check");
    for (name, quota) in quotas() {
        let limiter = Limiter::new(quota).expect("a valid quota");
        let mut now = 0;
        group.bench_function(BenchmarkId::new(name, "now given"), |b| {
            b.iter(|| {
                now += 1000;
                black_box(limiter.check_at(now, 1).is_ok())
            });
        });
        let limiter = Limiter::new(quota).expect("a valid quota");
        group.bench_function(BenchmarkId::new(name, "default clock"), |b| {
            b.iter(|| black_box(limiter.check().is_ok()));
        });
    }
    let limiter = Limiter::new(Quota::gcra(1, 1000 * SECOND)).expect("a valid quota");
    limiter.check_at(1, 1).expect("the first unit");
    group.bench_function("rejected", |b| b.iter(|| black_box(limiter.check_at(2, 1).is_err())));
    let tiers = [
        Quota::gcra(1_000_000_000, SECOND).burst(1 << 40),
        Quota::fixed_window(1 << 40, Duration::from_secs(3600)),
    ];
    let limiter = Limiter::tiers(&tiers).expect("valid quotas");
    group.bench_function("two tiers", |b| b.iter(|| black_box(limiter.check().is_ok())));
    group.finish();
}

fn keyed(c: &mut Criterion) {
    let mut group = c.benchmark_group("limit/keyed");
    for keys in [1024_u64, 1 << 17, 1 << 20] {
        let mut config = KeyedConfig::default();
        config.max_keys = keys as usize;
        let quota = Quota::gcra(1, 1000 * SECOND).burst(1_000_000);
        let limiter = Keyed::with_config(&[quota], config).expect("a valid quota");
        let mut turn = 0_u64;
        group.bench_function(BenchmarkId::from_parameter(keys), |b| {
            b.iter(|| {
                turn += 1;
                let key = (turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) & (keys - 1);
                black_box(limiter.check_at(&key, turn, 1).is_ok())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, check, keyed);
criterion_main!(benches);
