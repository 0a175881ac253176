//! Outlier detection and checks.

use super::*;
use voussoir_lb::strategy::*;
use voussoir_lb::{CheckConfig, LatencyOutliers, OnPanic, OutlierConfig};

fn with_outliers(change: impl FnOnce(&mut OutlierConfig), endpoints: usize) -> Balancer {
    let mut outliers = OutlierConfig::default();
    change(&mut outliers);
    let mut config = Config::default();
    config.outliers = Some(outliers);
    balancer(RoundRobin::default(), config, &vec![1; endpoints])
}

#[test]
fn failures_in_a_row_eject_and_each_ejection_is_longer() {
    let balancer = with_outliers(|_| (), 4);
    let mut now = 0;
    for length in [30, 60, 90] {
        fail(&balancer, "b", 4, now);
        assert!(names(&balancer, 8, now).contains('b'), "a success ends the row");
        fail(&balancer, "b", 5, now);
        let ejected = balancer.stats(now).endpoints[1].ejected_for.expect("ejected");
        assert_eq!(ejected.as_secs(), length);
        assert!(!names(&balancer, 40, now + length * SECOND - 1).contains('b'));
        now += length * SECOND;
        assert!(names(&balancer, 8, now).contains('b'));
    }
}

#[test]
fn ejections_are_forgotten_with_good_windows() {
    let balancer = with_outliers(|_| (), 4);
    fail(&balancer, "b", 5, 0);
    for window in 1..=20 {
        balancer.tick(window * 10 * SECOND);
    }
    fail(&balancer, "b", 5, 210 * SECOND);
    let ejected = balancer.stats(210 * SECOND).endpoints[1].ejected_for.expect("ejected");
    assert_eq!(ejected.as_secs(), 30);
}

/// Without windows that judge anything, too.
#[test]
fn ejections_are_forgotten_if_only_failures_in_a_row_eject() {
    let only_rows = |outliers: &mut OutlierConfig| outliers.success_rate = None;
    let balancer = with_outliers(only_rows, 4);
    fail(&balancer, "b", 5, 0);
    for window in 1..=20 {
        assert_eq!(names(&balancer, 4, window * 10 * SECOND).len(), 4);
    }
    fail(&balancer, "b", 5, 210 * SECOND);
    let ejected = balancer.stats(210 * SECOND).endpoints[1].ejected_for.expect("ejected");
    assert_eq!(ejected.as_secs(), 30);
}

fn half_ejected(change: impl FnOnce(&mut Config)) -> Balancer {
    let mut config = Config::default();
    let mut outliers = OutlierConfig::default();
    outliers.max_ejected_share = 0.5;
    config.outliers = Some(outliers);
    config.priorities.on_panic = OnPanic::Reject;
    change(&mut config);
    balancer(RoundRobin::default(), config, &[1, 1, 1, 1])
}

fn ejected(balancer: &Balancer) -> String {
    let stats = balancer.stats(0);
    let ejected = stats.endpoints.iter().filter(|endpoint| endpoint.ejected_for.is_some());
    ejected.map(|endpoint| endpoint.name.as_str()).collect()
}

/// The share was that of the set before: of the one that is left all were ejected.
#[test]
fn a_smaller_set_ends_the_ejections_that_exceed_its_share() {
    let balancer = half_ejected(|_| ());
    fail(&balancer, "b", 5, 0);
    fail(&balancer, "a", 5, SECOND);
    assert_eq!(ejected(&balancer), "ab");
    balancer.update(weighted(&[1, 1]), 2 * SECOND).expect("a set");
    assert_eq!(ejected(&balancer), "a", "that of b would have ended first");
    assert_eq!(names(&balancer, 4, 2 * SECOND), "bbbb");
}

#[test]
fn draining_the_others_ends_the_ejections_that_exceed_the_share() {
    let balancer = half_ejected(|_| ());
    fail(&balancer, "a", 5, 0);
    fail(&balancer, "b", 5, SECOND);
    balancer.set_draining("c", true, 2 * SECOND);
    assert_eq!((ejected(&balancer), names(&balancer, 2, 2 * SECOND)), ("b".into(), "da".into()));
    balancer.set_draining("d", true, 2 * SECOND);
    assert_eq!((ejected(&balancer), names(&balancer, 2, 2 * SECOND)), ("b".into(), "aa".into()));
    balancer.set_draining("a", true, 2 * SECOND);
    assert_eq!((ejected(&balancer), names(&balancer, 2, 2 * SECOND)), (String::new(), "bb".into()));
}

/// What fails its checks serves nothing: the last one that passes them is not ejected.
#[test]
fn the_last_endpoint_that_passes_its_checks_serves() {
    let balancer = half_ejected(|config| {
        config.checks = Some(CheckConfig::default());
        config.priorities.panic_threshold = 0.0;
    });
    let ids: Vec<u64> = balancer.endpoints().iter().map(|endpoint| endpoint.id()).collect();
    for id in &ids {
        balancer.record_check(*id, true, 0);
    }
    let fall = |at: usize| {
        for _ in 0..3 {
            balancer.record_check(ids[at], false, 0);
        }
    };
    for at in 1..4 {
        fall(at);
    }
    fail(&balancer, "a", 5, 0);
    assert_eq!((ejected(&balancer), names(&balancer, 2, 0)), (String::new(), "aa".into()));
    // The other way round: it was ejected while others passed theirs.
    for _ in 0..2 {
        balancer.record_check(ids[1], true, 0);
    }
    fail(&balancer, "a", 5, 0);
    assert_eq!((ejected(&balancer), names(&balancer, 2, 0)), ("a".into(), "bb".into()));
    fall(1);
    assert_eq!((ejected(&balancer), names(&balancer, 2, 0)), (String::new(), "aa".into()));
}

#[test]
fn a_low_success_rate_ejects_at_the_end_of_the_window() {
    let balancer = with_outliers(|outliers| outliers.consecutive_failures = None, 6);
    for step in 0..3_000_u32 {
        let pick = balancer.pick(&Context::new(), SECOND).expect("healthy");
        let fails = pick.endpoint().name() == "d" && step % 4 == 1 || step % 97 == 0;
        pick.finish(SECOND, if fails { Outcome::Failure } else { Outcome::Success });
    }
    assert_eq!(balancer.stats(SECOND).ejections, 0);
    assert!(!names(&balancer, 60, 11 * SECOND).contains('d'));
    assert_eq!(balancer.stats(11 * SECOND).ejections, 1);
}

#[test]
fn a_high_latency_ejects_at_the_end_of_the_window() {
    let latency = |outliers: &mut OutlierConfig| {
        outliers.success_rate = None;
        outliers.latency = Some(LatencyOutliers::default());
    };
    let balancer = with_outliers(latency, 4);
    for step in 0..800 {
        let now = step * MS;
        let pick = balancer.pick(&Context::new(), now).expect("healthy");
        let latency = if pick.endpoint().name() == "c" { 50 } else { 10 };
        pick.finish(now + latency * MS, Outcome::Success);
    }
    assert!(!names(&balancer, 60, 11 * SECOND).contains('c'));
}

#[test]
fn checks_rise_and_fall() {
    let mut config = Config::default();
    config.checks = Some(CheckConfig::default());
    let balancer = balancer(RoundRobin::default(), config, &[1, 1]);
    let mut availability = balancer.availability();
    let ids: Vec<u64> = balancer.endpoints().iter().map(|endpoint| endpoint.id()).collect();
    let check = |at: usize, passed| balancer.record_check(ids[at], passed, 0);
    check(0, true);
    check(1, true);
    assert_eq!(names(&balancer, 4, 0).matches('b').count(), 2);
    check(1, false);
    check(1, false);
    assert_eq!(names(&balancer, 4, 0).matches('b').count(), 2);
    check(1, false);
    assert_eq!(names(&balancer, 4, 0), "aaaa");
    assert_eq!(availability.borrow_and_update().healthy, 1);
    check(1, true);
    assert!(!availability.has_changed().expect("it lives"));
    check(1, true);
    assert!(availability.has_changed().expect("it lives"));
    assert_eq!(names(&balancer, 4, 0).matches('b').count(), 2);
    balancer.record_check(999, false, 0);
}
