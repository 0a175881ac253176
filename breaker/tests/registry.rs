//! A registry under churn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use voussoir_breaker::*;

/// Seconds.
#[derive(Debug)]
struct Secs(AtomicU64);

impl Clock for Secs {
    fn now(&self) -> u64 {
        self.0.load(Relaxed) * 1_000_000_000
    }
}

/// One key fails at each call; the others are new each time.
fn openings_of_the_sick(capacity: usize, others: u32, others_fail: bool) -> u64 {
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(5);
    let registry = Registry::new(config, capacity).expect("valid");
    let mut key = 1;
    for _ in 0..50 {
        if let Ok(permit) = registry.get(&0_u32).expect("room").try_acquire() {
            permit.failure();
        }
        for _ in 0..others {
            key += 1;
            let breaker = registry.get(&key).expect("room");
            let permit = breaker.try_acquire().expect("new");
            if others_fail { permit.failure() } else { permit.success() }
        }
    }
    registry.get(&0).expect("room").stats().openings
}

#[test]
fn an_always_failing_key_opens_among_ever_new_keys() {
    for (capacity, others) in [(10, 20), (100, 1_000), (2, 3)] {
        assert!(openings_of_the_sick(capacity, others, false) > 0, "{capacity} and {others}");
    }
}

#[test]
fn the_breakers_of_hosts_that_never_return_make_room() {
    let clock = Arc::new(Secs(AtomicU64::new(1)));
    let mut config = BreakerConfig::default();
    (config.consecutive_failures, config.open_jitter) = (Some(1), 0.0);
    let shared: Arc<dyn Clock> = Arc::<Secs>::clone(&clock);
    let registry = Registry::with_clock(config, 10, shared).expect("valid");
    // Eight hosts die, one after the other; two breakers are set by hand.
    for host in 0..8_u32 {
        clock.0.fetch_add(1, Relaxed);
        registry.get(&host).expect("room").try_acquire().expect("new").failure();
    }
    registry.get(&8).expect("room").force_open();
    registry.get(&9).expect("room").metrics_only();
    assert!(registry.get(&100).is_err());
    // The first died at 2 s, and could be probed from 7 s on.
    clock.0.store(66, Relaxed);
    assert!(registry.get(&100).is_err(), "nobody has called for 59 s");
    clock.0.store(67, Relaxed);
    assert_eq!(registry.get(&100).expect("room").state(), State::Closed);
    registry.get(&100).expect("it").force_half_open();
    assert!(registry.get(&101).is_err(), "the second died a second later");
    // The third is asked for, and probed: it has not gone.
    clock.0.store(1_000, Relaxed);
    let probed = registry.get(&2).expect("known");
    probed.try_acquire().expect("its wait is over").success();
    assert_eq!(probed.state(), State::HalfOpen);
    drop(probed);
    registry.get(&100).expect("it").force_half_open();
    // Six of the dead make room, those that are closed by now before them.
    for host in 200..300 {
        let breaker = registry.get(&host).expect("room");
        if host < 205 {
            breaker.force_open();
        }
    }
    for (host, state) in [
        (2, State::HalfOpen),
        (8, State::ForcedOpen),
        (9, State::MetricsOnly),
        (100, State::HalfOpen),
    ] {
        assert_eq!(registry.get(&host).expect("known").state(), state, "{host}");
    }
}
