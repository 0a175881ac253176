//! What a call costs that is admitted, rejected or retried, and a whole policy around it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use voussoir_breaker::{
    Breaker, BreakerConfig, Bulkhead, Idempotent, Policy, QueueConfig, Retry, RetryBudget,
    RetryBudgetConfig, RetryConfig, Timeout, Window,
};

fn config(window: Window) -> BreakerConfig {
    let mut config = BreakerConfig::default();
    config.window = window;
    config.slow_rate = Some(0.9);
    config
}

fn breaker(c: &mut Criterion) {
    let mut group = c.benchmark_group("breaker");
    let windows = [
        ("time window", Window::Time { span: Duration::from_secs(10), buckets: 10 }),
        ("count window", Window::Count { calls: 100 }),
    ];
    for (name, window) in windows {
        let breaker = Breaker::new("bench", &config(window)).expect("valid");
        group.bench_function(format!("admitted, {name}"), |b| {
            b.iter(|| breaker.try_acquire().expect("closed").success());
        });
    }
    let breaker = Breaker::new("bench", &BreakerConfig::default()).expect("valid");
    breaker.force_open();
    group.bench_function("rejected", |b| b.iter(|| black_box(breaker.try_acquire().is_err())));
    group.finish();
}

fn bulkhead(c: &mut Criterion) {
    let bulkhead = Bulkhead::new(64, QueueConfig::default()).expect("valid");
    c.bench_function("bulkhead/acquire and release", |b| {
        b.iter(|| drop(black_box(bulkhead.try_acquire().expect("a permit"))));
    });
}

fn policy(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let budget = RetryBudget::new(RetryBudgetConfig::default()).expect("valid");
    let retry = Retry::new(RetryConfig::default()).expect("valid").with_budget(budget);
    let limit = |time| Timeout::new(time).expect("above zero");
    let policy: Policy<u64, std::io::Error> = Policy::builder()
        .classify(Arc::new(Idempotent))
        .timeout(limit(Duration::from_secs(2)))
        .retry(Arc::new(retry))
        .breaker(Arc::new(Breaker::new("bench", &BreakerConfig::default()).expect("valid")))
        .bulkhead(Bulkhead::new(64, QueueConfig::default()).expect("valid"))
        .timeout(limit(Duration::from_millis(300)))
        .build()
        .expect("a valid order");
    c.bench_function("policy/timeout, retry, breaker, bulkhead, timeout", |b| {
        b.to_async(&runtime).iter(|| async {
            black_box(policy.call(|_| async { Ok(7) }).await.expect("an answer"))
        });
    });
}

criterion_group!(benches, breaker, bulkhead, policy);
criterion_main!(benches);
