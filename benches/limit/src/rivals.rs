//! Ours, the rivals and the floors, each as it is set up.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::{Duration, Instant};

use voussoir_limit::{Coarse, Keyed, KeyedConfig, Limiter, LimiterConfig, Quota};

use crate::measure::CALLS;

pub const SECOND: Duration = Duration::from_secs(1);

pub fn never_full() -> Quota {
    Quota::gcra(1_000_000_000, SECOND).burst(1 << 40)
}

pub fn ours(clock: Option<Coarse>) -> Limiter {
    let (quotas, config) = ([never_full()], LimiterConfig::default());
    let limiter = match clock {
        Some(clock) => Limiter::with_clock(&quotas, config, Arc::new(clock)),
        None => Limiter::with_config(&quotas, config),
    };
    limiter.expect("the quota is valid")
}

pub fn theirs() -> governor::Quota {
    let most = NonZeroU32::new(1_000_000_000).expect("not 0");
    governor::Quota::per_second(most).allow_burst(NonZeroU32::MAX)
}

/// A load and an exchange, with nothing decided in between.
pub fn bump(word: &AtomicU64) {
    let mut seen = word.load(Acquire);
    while let Err(other) = word.compare_exchange_weak(seen, seen + 1, AcqRel, Acquire) {
        seen = other;
    }
}

pub fn keyed_limiter(keys: u64) -> Keyed<u64> {
    let mut config = KeyedConfig::default();
    config.max_keys = keys as usize;
    let quota = Quota::gcra(1, Duration::from_secs(1000)).burst(1_000_000);
    Keyed::with_config(&[quota], config).expect("it is valid")
}

/// Through a service of the kind that `tower` has, polled ready and called.
pub fn tower_limit() -> f64 {
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
