//! 64 callers released together on a breaker whose open wait has just ended.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use failsafe::CircuitBreaker as _;
use tower::{Layer, Service, ServiceExt};
use voussoir_breaker::{Breaker, BreakerConfig};

use crate::Error;
use crate::measure::median;
use crate::report::Figure;

const CALLERS: usize = 64;
const WAIT: Duration = Duration::from_millis(50);
/// Longer than it takes to release them all.
const CALL: Duration = Duration::from_millis(100);

pub fn admitted(rounds: usize, round: fn() -> Result<u64, Error>) -> Result<Figure, Error> {
    let counts = (0..rounds).map(|_| round().map(|count| count as f64));
    Ok(median(counts.collect::<Result<_, _>>()?))
}

fn release(call: impl Fn(&AtomicU64) + Sync) -> u64 {
    let (barrier, admitted) = (Barrier::new(CALLERS), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                barrier.wait();
                call(&admitted);
            });
        }
    });
    admitted.into_inner()
}

fn probe(admitted: &AtomicU64) -> Result<(), ()> {
    admitted.fetch_add(1, Ordering::Relaxed);
    std::thread::sleep(CALL);
    Ok(())
}

pub fn ours() -> Result<u64, Error> {
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(1);
    config.open_for = WAIT;
    config.open_jitter = 0.0;
    config.probes = 3;
    config.max_bad_probes = 0;
    let breaker = Breaker::new("herd", &config)?;
    let _ = breaker.run(|| Err::<(), ()>(()));
    std::thread::sleep(WAIT * 2);
    Ok(release(|admitted| {
        let _ = breaker.run(|| probe(admitted));
    }))
}

pub fn recloser() -> Result<u64, Error> {
    let recloser =
        recloser::Recloser::custom().closed_len(1).half_open_len(3).open_wait(WAIT).build();
    for _ in 0..3 {
        let _ = recloser.call(|| Err::<(), ()>(()));
    }
    std::thread::sleep(WAIT * 2);
    Ok(release(|admitted| {
        let _ = recloser.call(|| probe(admitted));
    }))
}

pub fn failsafe() -> Result<u64, Error> {
    let policy =
        failsafe::failure_policy::consecutive_failures(1, failsafe::backoff::constant(WAIT));
    let breaker = failsafe::Config::new().failure_policy(policy).build();
    let _ = breaker.call(|| Err::<(), ()>(()));
    std::thread::sleep(WAIT * 2);
    Ok(release(|admitted| {
        let _ = breaker.call(|| probe(admitted));
    }))
}

pub fn tower() -> Result<u64, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let admitted = std::sync::Arc::new(AtomicU64::new(0));
    let layer = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder()
        .consecutive_failures(1)
        .permitted_calls_in_half_open(3)
        .wait_duration_in_open(WAIT)
        .build()?;
    let count = std::sync::Arc::clone(&admitted);
    let service = tower::service_fn(move |is_bad: bool| {
        let count = std::sync::Arc::clone(&count);
        async move {
            if is_bad {
                return Err("bad");
            }
            count.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(CALL).await;
            Ok(())
        }
    });
    let service = layer.layer(service);
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let mut first = service.clone();
        let _ = first.ready().await.expect("ready").call(true).await;
        tokio::time::sleep(WAIT * 2).await;
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let mut service = service.clone();
                tokio::task::spawn_local(async move {
                    let _ = service.ready().await.expect("ready").call(false).await;
                })
            })
            .collect();
        for caller in callers {
            caller.await.expect("ran");
        }
    });
    Ok(admitted.load(Ordering::Relaxed))
}
