//! The failure detector against the distribution it is meant to know, and at its extremes.

use std::time::Duration;

use proptest::prelude::*;
use voussoir_quorum::detector::{Availability, DetectorConfig, FailureDetector};
use voussoir_sim::Rng;

const MS: u64 = 1_000_000;

fn detector(change: impl FnOnce(&mut DetectorConfig)) -> FailureDetector {
    let mut config = DetectorConfig::default();
    change(&mut config);
    FailureDetector::new(config).unwrap()
}

/// Intervals of 1 s with a deviation of 200 ms: phi is -log10 of the tail of that distribution, as
/// exactly as its logistic approximation has it.
#[test]
fn phi_is_the_tail_of_the_normal_distribution() {
    let mut detector = detector(|config| {
        (config.acceptable_pause, config.min_deviation) =
            (Duration::ZERO, Duration::from_millis(100));
        config.threshold = 100.0;
    });
    let (mut now, intervals) = (0, [800 * MS, 1_200 * MS]);
    detector.heartbeat(1, now);
    for at in 0..100 {
        now += intervals[at % 2];
        detector.heartbeat(1, now);
    }
    // Tails at 0, 1, 2 and 3 deviations.
    for (deviations, tail) in [(0, 0.5), (1, 0.158_655), (2, 0.022_750), (3, 0.001_350)] {
        let phi = detector.phi(1, now + 1_000 * MS + deviations * 200 * MS);
        let expected = -f64::log10(tail);
        assert!(
            (phi - expected).abs() < 0.02 * expected.max(1.0),
            "{deviations}: {phi}, expected {expected}"
        );
    }
}

/// A node that stops is suspected within a bounded time, and one that jitters is not.
#[test]
fn a_stopped_node_is_suspected_and_a_slow_one_is_not() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let (mut now, period) = (0, rng.between(50, 2_000) * MS);
        let mut detector = detector(|config| config.first_interval = Duration::from_nanos(period));
        for _ in 0..300 {
            // Up to half a period late, and now and then a pause that is acceptable.
            let pause = if rng.chance(20_000) { 900 * MS } else { 0 };
            now += period + rng.below(period / 2) + pause;
            assert!(detector.is_available(1, now), "seed {seed}: suspected while alive");
            detector.heartbeat(1, now);
        }
        let mut until = now;
        while detector.is_available(1, until) {
            until += 10 * MS;
        }
        let silence = until - now;
        let bound = 4 * period + 4_000 * MS;
        assert!(silence < bound, "seed {seed}: suspected after {silence} ns, period {period} ns");
        assert!(silence > period, "seed {seed}: suspected before a heartbeat was due");
    }
}

/// A crash is no interval: the next one is noticed as quickly as the first.
#[test]
fn a_crash_does_not_teach_the_detector_to_wait() {
    let mut detector = detector(|_| {});
    let mut now = 0;
    let mut delays = Vec::new();
    for _ in 0..5 {
        for _ in 0..50 {
            now += 1_000 * MS;
            detector.heartbeat(1, now);
        }
        let mut until = now;
        while detector.is_available(1, until) {
            until += MS;
        }
        delays.push(until - now);
        now = until + 600_000 * MS;
    }
    assert!(delays.iter().all(|delay| *delay == delays[0]), "{delays:?}");
}

/// A node that takes up a slower rhythm is suspected a few times, and not for ever.
#[test]
fn a_slower_rhythm_is_learned() {
    let mut detector = detector(|_| {});
    let (mut now, mut suspected) = (0, 0);
    for at in 0..100 {
        now += if at < 50 { 1_000 * MS } else { 5_000 * MS };
        suspected += u32::from(!detector.is_available(1, now));
        detector.heartbeat(1, now);
    }
    assert_eq!(suspected, 3);
}

#[test]
fn unknown_nodes_and_nodes_beyond_the_limit_are_available() {
    let mut detector = detector(|config| config.max_nodes = 1);
    assert!(detector.is_available(1, u64::MAX));
    detector.heartbeat(1, 0);
    detector.heartbeat(2, 0);
    assert!(!detector.is_available(1, u64::MAX));
    assert!(detector.is_available(2, u64::MAX), "not remembered");
    detector.remove(1);
    detector.heartbeat(2, 0);
    assert!(detector.is_available(1, u64::MAX) && !detector.is_available(2, u64::MAX));
}

/// A clock that stands still or goes back, heartbeats that come late: phi stays what it was.
#[test]
fn a_heartbeat_of_the_past_changes_nothing() {
    let mut detector = detector(|_| {});
    (0..20).for_each(|at| detector.heartbeat(1, at * 1_000 * MS));
    let before = detector.phi(1, 21_000 * MS);
    detector.heartbeat(1, 0);
    detector.heartbeat(1, 19_000 * MS);
    assert_eq!(detector.phi(1, 21_000 * MS).to_bits(), before.to_bits());
    assert!(detector.phi(1, 0) < 1.0);
}

proptest! {
    #[test]
    fn a_configuration_that_validates_works(
        threshold in proptest::sample::select(vec![0.0, 1.0, 8.0, 100.0, f64::NAN, 101.0]),
        max_samples in prop_oneof![0..4_usize, Just(10_000), Just(10_001)],
        times in proptest::array::uniform3(prop_oneof![0..3_u64, Just(3_600_000), Just(3_600_001)]),
        max_nodes in prop_oneof![0..3_usize, Just(1_000_000), Just(1_000_001)],
        intervals in
            proptest::collection::vec(prop_oneof![0..5_u64, any::<u64>()], 0..12),
    ) {
        let mut config = DetectorConfig::default();
        (config.threshold, config.max_samples) = (threshold, max_samples);
        config.max_nodes = max_nodes;
        [config.min_deviation, config.acceptable_pause, config.first_interval] =
            times.map(Duration::from_millis);
        let is_valid = config.validate().is_ok();
        let Ok(mut detector) = FailureDetector::new(config) else {
            prop_assert!(!is_valid);
            return Ok(());
        };
        let mut now = 0_u64;
        for interval in intervals {
            now = now.saturating_add(interval);
            detector.heartbeat(1, now);
            prop_assert!(detector.is_available(1, now), "it was heard just now");
            let (soon, late) = (detector.phi(1, now), detector.phi(1, u64::MAX));
            prop_assert!(!soon.is_nan() && !late.is_nan() && late >= soon);
        }
    }
}
