//! A registry under churn.

use voussoir_breaker::*;

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
