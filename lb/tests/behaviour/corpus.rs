//! Bugs of other balancers, each as a test of ours.

use super::*;
use voussoir_lb::strategy::*;
use voussoir_lb::{CheckConfig, OutlierConfig, SlowStartConfig};

/// tower #856, #874: the endpoint was kept as an index; a removal moved another into its slot.
#[test]
fn a_pick_holds_its_endpoint_when_the_set_changes() {
    let balancer = balancer(RoundRobin::default(), Config::default(), &[1, 1, 1]);
    let pick = balancer.pick(&Context::new(), 0).expect("healthy");
    let endpoint = std::sync::Arc::clone(pick.endpoint());
    assert_eq!(endpoint.name(), "a");
    let mut set = weighted(&[1, 1, 1]);
    set.swap_remove(0);
    balancer.update(set, 0).expect("a set");
    assert_eq!(pick.endpoint().name(), "a");
    let loads = || -> Vec<u32> { balancer.endpoints().iter().map(|e| e.in_flight()).collect() };
    assert_eq!(loads(), [0, 0]);
    pick.finish(1, Outcome::Success);
    assert_eq!((endpoint.in_flight(), loads()), (0, vec![0, 0]));
}

fn three(max_share: f64) -> Balancer {
    let mut outliers = OutlierConfig::default();
    outliers.max_ejected_share = max_share;
    let mut config = Config::default();
    config.outliers = Some(outliers);
    balancer(RoundRobin::default(), config, &[1, 1, 1])
}

/// envoy #27066, #3263: the maximum was compared before the ejection: 3 of 3 were out at 67 %.
#[test]
fn the_share_of_ejected_endpoints_is_counted_after_the_ejection() {
    for (share, ejected) in [(0.67, 2), (1.0, 2), (0.4, 1), (0.3, 0)] {
        let balancer = three(share);
        for now in 0..100 {
            request(&balancer, &Context::new(), now, Outcome::Failure);
        }
        assert_eq!(balancer.stats(100).ejections, ejected, "at {share}");
    }
}

/// envoy #28304: endpoints that had been ejected still got thousands of requests.
#[test]
fn an_ejection_takes_effect_in_the_pick_that_follows() {
    let balancer = three(0.5);
    let picks: Vec<_> = (0..15).filter_map(|_| balancer.pick(&Context::new(), 0)).collect();
    for pick in picks {
        let is_bad = pick.endpoint().name() == "b";
        pick.finish(0, if is_bad { Outcome::Failure } else { Outcome::Success });
    }
    assert!(!names(&balancer, 100, 0).contains('b'));
}

fn slow_start(weights: &[u32], strategy: impl Strategy + 'static) -> Balancer {
    let mut config = Config::default();
    config.slow_start = Some(SlowStartConfig::default());
    balancer(strategy, config, weights)
}

/// envoy #19437, #19526: a weight near 0 put the deadline so far ahead that the endpoint starved.
#[test]
fn an_endpoint_in_slow_start_is_not_starved_after_it() {
    // Weights whose cycle is too long to store: deadlines.
    let balancer = slow_start(&[65_521, 65_519], RoundRobin::default());
    let set = [65_521, 65_519, 65_497];
    balancer.update(weighted(&set), SECOND).expect("a set");
    let early = counts(&balancer, 2_100, 2 * SECOND);
    assert!((80..=120).contains(&early["c"]), "{early:?}");
    for second in 3..=32 {
        names(&balancer, 100, second * SECOND);
    }
    let late = counts(&balancer, 300, 33 * SECOND);
    assert!((99..=101).contains(&late["c"]), "{late:?}");
}

/// envoy #26290: adding one host made others that were in slow start surge.
#[test]
fn a_joining_endpoint_does_not_raise_the_share_of_another_in_slow_start() {
    let balancer = slow_start(&[1, 1, 1, 1], RandomChoice::default());
    balancer.update(weighted(&[1; 5]), SECOND).expect("a set");
    let before = counts(&balancer, 20_000, 10 * SECOND)["e"];
    balancer.update(weighted(&[1; 6]), 10 * SECOND).expect("a set");
    let after = counts(&balancer, 20_000, 10 * SECOND);
    assert!(after["e"] < before + 150, "{before} before, {after:?}");
    assert!(after["f"] < after["e"], "{after:?}");
    let grown = counts(&balancer, 20_000, 60 * SECOND);
    assert!(grown.values().all(|count| count.abs_diff(3_333) < 250), "{grown:?}");
}

/// A position that is rounded down at each update would never reach the last endpoint of a set
/// whose size alternates between two and three.
#[test]
fn a_set_whose_size_alternates_starves_nobody() {
    let balancer = balancer(RoundRobin::default(), Config::default(), &[1, 1]);
    let mut last = 0;
    for round in 0..600 {
        balancer.update(weighted(&[1; 3][..2 + round % 2]), 0).expect("a set");
        last += u32::from(names(&balancer, 1, 0) == "c");
    }
    assert!(last >= 60, "the third endpoint was there for 300 picks and got {last}");
}

/// envoy #29953, haproxy #1282: each update began the schedule again.
#[test]
fn updates_do_not_begin_the_schedule_again() {
    for weights in [&[1, 1, 1, 1][..], &[5, 1, 1, 3], &[60_000, 30_001, 20_000, 9_999]] {
        let balancer = balancer(RoundRobin::default(), Config::default(), weights);
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let mut counts = [0_u64; 4];
        for _ in 0..4_000 {
            balancer.update(weighted(weights), 0).expect("a set");
            counts[usize::from(names(&balancer, 1, 0).as_bytes()[0] - b'a')] += 1;
        }
        for (count, &weight) in counts.into_iter().zip(weights) {
            let fair = 4_000 * u64::from(weight) / total;
            assert!(count.abs_diff(fair) <= 4, "{counts:?} of weights {weights:?}");
        }
    }
    // A set that alternates.
    let balancer = balancer(RoundRobin::default(), Config::default(), &[1]);
    let mut seen = BTreeMap::<String, u32>::new();
    for round in 0..600 {
        balancer.update(weighted(&[1; 5][..3 + round % 3]), 0).expect("a set");
        *seen.entry(names(&balancer, 1, 0)).or_default() += 1;
    }
    assert!(["a", "b", "c"].iter().all(|name| seen[*name] >= 100), "{seen:?}");
}

/// haproxy #3298: after a reload the second of two servers that were down was up for 500 ms.
#[test]
fn a_reload_carries_health_over_and_a_new_endpoint_waits_for_its_check() {
    let mut config = Config::default();
    config.checks = Some(CheckConfig::default());
    let balancer = balancer(RoundRobin::default(), config, &[1, 1]);
    assert!(balancer.pick(&Context::new(), 0).is_none(), "nothing was checked yet");
    let ids: Vec<u64> = balancer.endpoints().iter().map(|endpoint| endpoint.id()).collect();
    balancer.record_check(ids[0], true, 0);
    balancer.record_check(ids[1], false, 0);
    balancer.update(weighted(&[2, 2, 2]), 0).expect("a set");
    assert_eq!(names(&balancer, 4, 0), "aaaa");
    // In a panic the endpoint that failed its check is used, the unknown one is not.
    for _ in 0..3 {
        balancer.record_check(ids[0], false, 0);
    }
    let used = names(&balancer, 10, 0);
    assert!(used.contains('a') && used.contains('b') && !used.contains('c'), "{used}");
}

/// linkerd2 #11669: an endpoint that fails at once attracts the traffic.
#[test]
fn an_endpoint_that_fails_at_once_attracts_nothing() {
    let strategies: [Box<dyn Strategy>; 4] = [
        Box::new(PeakEwma::default()),
        Box::new(PowerOfTwo::default()),
        Box::new(LeastRequest::default()),
        Box::new(LeastConnections::default()),
    ];
    for strategy in strategies {
        let mut config = Config::default();
        config.seed = Some(5);
        let balancer = Balancer::boxed(strategy, config).expect("valid");
        balancer.update(weighted(&[1; 10]), 0).expect("a set");
        let mut flying = std::collections::VecDeque::new();
        let mut bad = 0;
        for step in 0..20_000_u64 {
            let now = step * MS;
            while flying.front().is_some_and(|(end, _)| *end <= now) {
                let (end, pick): (u64, voussoir_lb::Pick) = flying.pop_front().expect("one");
                pick.finish(end, Outcome::Success);
            }
            let pick = balancer.pick(&Context::new(), now).expect("healthy");
            if pick.endpoint().name() == "a" {
                bad += 1;
                pick.finish(now, Outcome::Failure);
            } else {
                flying.push_back((now + 20 * MS, pick));
            }
        }
        assert!(bad <= 3_000, "{bad} of 20000 to the failing one, 2000 are fair: {balancer:?}");
        assert!(bad >= 5, "{bad}: it must be tried again: {balancer:?}");
    }
}
