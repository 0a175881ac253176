//! The calls that are timed.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use failsafe::CircuitBreaker as _;
use tower::{Layer, Service, ServiceExt};
use tower_resilience_circuitbreaker::SlidingWindowType;
use voussoir_breaker::{Breaker, BreakerConfig, Monotonic, Verdict, Window, default_clock};

use crate::measure::{Subject, timed};

#[derive(Clone, Copy, PartialEq)]
pub enum Ours {
    NowPassedIn,
    DefaultClock,
    FineClock,
    NotSlow,
    CountWindow,
}

fn breaker(kind: Ours) -> Breaker {
    let mut config = BreakerConfig::default();
    config.slow_rate = (kind != Ours::NotSlow).then_some(0.5);
    config.open_for = Duration::from_secs(3_600);
    config.max_open_for = config.open_for;
    if kind == Ours::CountWindow {
        config.window = Window::Count { calls: 100 };
    }
    let clock = if kind == Ours::FineClock { Arc::new(Monotonic) } else { default_clock() };
    Breaker::with_clock("bench", &config, clock).expect("valid")
}

/// Calls through a closed breaker that succeed, or through one that rejects them.
pub fn ours(kind: Ours, is_open: bool) -> Subject {
    let breaker = breaker(kind);
    // As it opens by itself, not by hand: forced open is a shorter path.
    while is_open && breaker.state() != voussoir_breaker::State::Open {
        breaker.try_acquire().expect("still closed").failure();
    }
    let is_passed_in = matches!(kind, Ours::NowPassedIn | Ours::CountWindow);
    Box::new(move |calls| {
        if !is_passed_in {
            return timed(calls, |_| {
                if let Ok(permit) = black_box(&breaker).try_acquire() {
                    permit.success();
                }
            });
        }
        let base = default_clock().now();
        timed(calls, |call| {
            // Buckets turn as they would: 100 ns between calls.
            let now = base + call * 100;
            if let Ok(permit) = black_box(&breaker).try_acquire_at(now) {
                permit.record_at(black_box(now + 50), Verdict::Success);
            }
        })
    })
}

/// Calls that fail, through a breaker that only looks on.
pub fn failures(window: Window) -> Subject {
    let mut config = BreakerConfig::default();
    (config.window, config.slow_rate) = (window, Some(0.5));
    let breaker = Breaker::new("bench", &config).expect("valid");
    breaker.metrics_only();
    Box::new(move |calls| {
        let base = default_clock().now();
        timed(calls, |call| {
            if let Ok(permit) = black_box(&breaker).try_acquire_at(base + call * 100) {
                permit.record_at(base + call * 100, Verdict::Failure);
            }
        })
    })
}

/// What any counter shared by threads costs at the least: a word of its thread's own, read and
/// changed by one compare-and-swap.
pub fn one_swap() -> Subject {
    #[repr(align(128))]
    struct Own(AtomicU64);
    Box::new(|calls| {
        let own = Own(AtomicU64::new(0));
        timed(calls, |_| {
            let word = black_box(&own);
            let seen = word.0.load(Relaxed);
            let _ = black_box(word.0.compare_exchange(seen, seen + 1, Relaxed, Relaxed));
        })
    })
}

pub fn default_clock_reading() -> Subject {
    let clock = default_clock();
    Box::new(move |calls| {
        timed(calls, |_| {
            black_box(black_box(&clock).now());
        })
    })
}

pub fn recloser(is_open: bool) -> Subject {
    let recloser =
        recloser::Recloser::custom().closed_len(100).open_wait(Duration::from_secs(3_600)).build();
    for _ in 0..if is_open { 300 } else { 0 } {
        let _ = recloser.call(|| Err::<(), ()>(()));
    }
    let answer = recloser.call(|| Ok::<u64, ()>(1));
    assert_eq!(answer.is_err(), is_open, "recloser is in the wrong state");
    Box::new(move |calls| {
        timed(calls, |call| {
            let _ = black_box(black_box(&recloser).call(|| Ok::<u64, ()>(call)));
        })
    })
}

pub fn failsafe(is_open: bool) -> Subject {
    let backoff = failsafe::backoff::constant(Duration::from_secs(3_600));
    if is_open {
        // Its success rate has to decay over its window before it opens: this opens at once.
        let policy = failsafe::failure_policy::consecutive_failures(3, backoff);
        let breaker = failsafe::Config::new().failure_policy(policy).build();
        for _ in 0..3 {
            let _ = breaker.call(|| Err::<(), ()>(()));
        }
        assert!(!breaker.is_call_permitted(), "failsafe should be open");
        return failsafe_rounds(breaker);
    }
    let window = Duration::from_secs(10);
    let policy = failsafe::failure_policy::success_rate_over_time_window(0.5, 20, window, backoff);
    failsafe_rounds(failsafe::Config::new().failure_policy(policy).build())
}

fn failsafe_rounds(breaker: impl failsafe::CircuitBreaker + Sync + 'static) -> Subject {
    Box::new(move |calls| {
        timed(calls, |call| {
            let _ = black_box(black_box(&breaker).call(|| Ok::<u64, ()>(call)));
        })
    })
}

/// A tower service: the call goes through `ready` and a future, which is part of its price. Made
/// anew for each round of 2,000 calls: over a time window it takes longer the more of them it
/// remembers.
pub fn tower(window: SlidingWindowType, is_open: bool) -> Subject {
    Box::new(move |_| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("runs").block_on(tower_round(window, is_open))
    })
}

async fn tower_round(window: SlidingWindowType, is_open: bool) -> f64 {
    let bare = tower::service_fn(|is_bad: bool| async move {
        if is_bad { Err::<u64, &str>("bad") } else { Ok(1) }
    });
    let layer = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder()
        .failure_rate_threshold(0.5)
        .sliding_window_type(window)
        .sliding_window_duration(Duration::from_secs(10))
        .minimum_number_of_calls(20)
        .slow_call_duration_threshold(Duration::from_secs(1))
        .slow_call_rate_threshold(0.5)
        .wait_duration_in_open(Duration::from_secs(3_600))
        .build()
        .expect("valid");
    let mut service = layer.layer(bare);
    for _ in 0..if is_open { 300 } else { 0 } {
        let _ = service.ready().await.expect("ready").call(true).await;
    }
    let answer = service.ready().await.expect("ready").call(false).await;
    assert_eq!(answer.is_err(), is_open, "tower-resilience is in the wrong state");
    let calls = 2_000_u32;
    let start = Instant::now();
    for _ in 0..calls {
        let _ = black_box(service.ready().await.expect("ready").call(black_box(false)).await);
    }
    start.elapsed().as_nanos() as f64 / f64::from(calls)
}
