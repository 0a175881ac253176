//! Each config that validates, and each intensity, gives a world that runs; others are refused.

mod common;

use common::world;
use proptest::prelude::*;
use voussoir_sim::{Config, FaultClass, FaultSet, Intensity, Plan, SECOND};

const YEAR: u64 = 365 * 24 * 3_600 * SECOND;

fn ns() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), 0..SECOND, 0..=YEAR, Just(YEAR)]
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), 0..1_000_000_u64, any::<u64>(), Just(u64::MAX)]
}

prop_compose! {
    fn valid()(
        delays in (ns(), ns()), disks in (ns(), ns()),
        enable_ppm in 0..=1_000_000_u32, skew_ppm in 0..=500_000_u32,
        faults_ns in ns(), settle_ns in ns(), jump_ns in ns(),
        pending in prop_oneof![Just(100), Just(1_000_000), Just(u32::MAX as usize)],
        trace_lines in prop_oneof![Just(1), Just(60), Just(10_000_000)],
    ) -> Config {
        let mut config = Config::default();
        config.faults = FaultSet::ALL;
        (config.enable_ppm, config.skew_ppm) = (enable_ppm, skew_ppm);
        (config.faults_ns, config.settle_ns, config.jump_ns) = (faults_ns, settle_ns, jump_ns);
        config.delay_ns = (delays.0.min(delays.1), delays.0.max(delays.1));
        config.disk_ns = (disks.0.min(disks.1), disks.0.max(disks.1));
        (config.limits.pending, config.limits.trace_lines) = (pending, trace_lines);
        config
    }
}

/// The first events of a run of two nodes, within the smallest number of waiting events.
fn runs(plan: Plan) {
    let mut world = world(plan, 2);
    for _ in 0..20 {
        if world.step().is_none() {
            break;
        }
    }
    let _ = world.report();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_validates_runs(config in valid(), seed in any::<u64>()) {
        let plan = config.plan(seed);
        prop_assert!(plan.is_ok(), "{plan:?}");
        runs(plan.unwrap());
    }

    #[test]
    fn every_intensity_runs(
        class in 0..FaultClass::ALL.len(),
        (every_ns, for_ns, amount) in (any_number(), any_number(), any_number()),
        quiet_ns in any_number(),
        seed in any::<u64>(),
    ) {
        let intensity = Intensity::new(every_ns, for_ns, amount);
        let plan = Plan::calm(seed, SECOND).quiet_at(quiet_ns);
        runs(plan.with(FaultClass::ALL[class], intensity));
    }

    #[test]
    fn what_is_out_of_range_is_refused(at in 0..9_usize, config in valid()) {
        let mut config = config;
        match at {
            0 => config.enable_ppm = 1_000_001,
            1 => config.skew_ppm = 500_001,
            2 => config.faults_ns = YEAR + 1,
            3 => config.settle_ns = u64::MAX,
            4 => config.jump_ns = YEAR + 1,
            5 => config.delay_ns = (2, 1),
            6 => config.disk_ns.1 = YEAR + 1,
            7 => config.limits.pending = 99,
            _ => config.limits.trace_lines = 0,
        }
        prop_assert!(config.plan(1).is_err());
    }
}
