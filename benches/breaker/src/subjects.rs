//! One round of calls, for each of the subjects.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use failsafe::CircuitBreaker as _;
use tower::{Layer, Service, ServiceExt};
use tower_resilience_circuitbreaker::SlidingWindowType;
use voussoir_breaker::{Breaker, BreakerConfig, Monotonic, Verdict, Window, default_clock};

use crate::measure::{CALLS, threads};

#[derive(Clone, Copy, PartialEq)]
pub enum Ours {
    NowPassedIn,
    DefaultClock,
    FineClock,
    NotSlow,
    CountWindow,
}

fn ours(kind: Ours) -> Breaker {
    let mut config = BreakerConfig::default();
    config.slow_rate = (kind != Ours::NotSlow).then_some(0.5);
    config.open_for = Duration::from_secs(3_600);
    config.open_for_max = config.open_for;
    if kind == Ours::CountWindow {
        config.window = Window::Count { calls: 100 };
    }
    let clock = if kind == Ours::FineClock { Arc::new(Monotonic) } else { default_clock() };
    Breaker::with_clock("bench", &config, clock).expect("valid")
}

/// Calls through a closed breaker that succeed, or through one that rejects them.
pub fn ours_calls(kind: Ours, is_open: bool, count: usize) -> f64 {
    let breaker = ours(kind);
    // As it opens by itself, not by hand: forced open is a shorter path.
    while is_open && breaker.state() != voussoir_breaker::State::Open {
        breaker.try_acquire().expect("still closed").failure();
    }
    let base = default_clock().now();
    threads(count, |calls| {
        for call in 0..calls {
            // Buckets turn as they would: 100 ns between calls.
            let now = base + call * 100;
            match kind {
                Ours::NowPassedIn | Ours::CountWindow => {
                    if let Ok(permit) = black_box(&breaker).try_acquire_at(now) {
                        permit.record_at(black_box(now + 50), Verdict::Success);
                    }
                }
                Ours::DefaultClock | Ours::FineClock | Ours::NotSlow => {
                    if let Ok(permit) = black_box(&breaker).try_acquire() {
                        permit.success();
                    }
                }
            }
        }
    })
}

pub fn recloser_calls(is_open: bool, count: usize) -> f64 {
    let recloser =
        recloser::Recloser::custom().closed_len(100).open_wait(Duration::from_secs(3_600)).build();
    for _ in 0..if is_open { 300 } else { 0 } {
        let _ = recloser.call(|| Err::<(), ()>(()));
    }
    let answer = recloser.call(|| Ok::<u64, ()>(1));
    assert_eq!(answer.is_err(), is_open, "recloser is in the wrong state");
    threads(count, |calls| {
        for call in 0..calls {
            let _ = black_box(black_box(&recloser).call(|| Ok::<u64, ()>(call)));
        }
    })
}

pub fn failsafe_calls(is_open: bool, count: usize) -> f64 {
    let backoff = failsafe::backoff::constant(Duration::from_secs(3_600));
    if is_open {
        // Its success rate has to decay over its window before it opens: this opens at once.
        let policy = failsafe::failure_policy::consecutive_failures(3, backoff);
        let breaker = failsafe::Config::new().failure_policy(policy).build();
        for _ in 0..3 {
            let _ = breaker.call(|| Err::<(), ()>(()));
        }
        assert!(!breaker.is_call_permitted(), "failsafe should be open");
        return failsafe_round(&breaker, count);
    }
    let window = Duration::from_secs(10);
    let policy = failsafe::failure_policy::success_rate_over_time_window(0.5, 20, window, backoff);
    failsafe_round(&failsafe::Config::new().failure_policy(policy).build(), count)
}

fn failsafe_round(breaker: &(impl failsafe::CircuitBreaker + Sync), count: usize) -> f64 {
    threads(count, |calls| {
        for call in 0..calls {
            let _ = black_box(black_box(breaker).call(|| Ok::<u64, ()>(call)));
        }
    })
}

/// A tower service: the call goes through `ready` and a future, which is part of its price. Fewer
/// calls than the others make: over a time window it takes longer the more of them it remembers.
pub fn tower_calls(window: SlidingWindowType, is_open: bool) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("runs").block_on(async {
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
        let calls = CALLS / 50;
        let start = Instant::now();
        for _ in 0..calls {
            let _ = black_box(service.ready().await.expect("ready").call(black_box(false)).await);
        }
        start.elapsed().as_nanos() as f64 / calls as f64
    })
}
