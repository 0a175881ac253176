//! The configurations of the bus and of the second level over their whole range.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use voussoir_cache::testing::MemoryLevel;
use voussoir_cache::{
    BusConfig, Cache, LevelConfig, Loaded, LocalBus, OnOutage, PlainCodec, TokioClock,
};
use voussoir_sim::Situations;

fn extreme_durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::from_nanos(1)),
        Just(Duration::from_millis(1)),
        Just(Duration::from_secs(100 * 365 * 86_400)),
        Just(Duration::MAX),
        any::<u64>().prop_map(Duration::from_nanos),
    ]
}

static SITUATIONS: [&str; 2] = ["accepted", "refused"];

fn outside() -> impl Strategy<Value = (BusConfig, LevelConfig)> {
    let short = || {
        let millis = (1..10_000_u64).prop_map(Duration::from_millis);
        let hours = (1..3000_u64).prop_map(|hours| Duration::from_secs(3600 * hours));
        prop_oneof![30 => millis, 3 => hours, 2 => extreme_durations()]
    };
    let pending = prop_oneof![1 => Just(0), 9 => 1..100_usize, 5 => Just(1_000_000)];
    let bus = (short(), short(), short(), short(), pending).prop_map(|times| {
        let (heartbeat, more, outage, memory, pending) = times;
        let mut config = BusConfig::default();
        config.heartbeat = heartbeat;
        config.timeout = heartbeat.saturating_mul(2).saturating_add(more);
        (config.outage_ttl, config.max_pending) = (outage, pending);
        config.peer_memory = memory;
        config
    });
    let times = (short(), short(), short(), short(), short(), any::<bool>());
    let level = times.prop_map(|(ttl, timeout, rest, lease_for, lease_wait, fails)| {
        let mut config = LevelConfig::default();
        (config.ttl, config.timeout, config.rest) = (ttl, timeout, rest);
        (config.lease_for, config.lease_wait) = (lease_for, lease_wait);
        config.on_outage = if fails { OnOutage::Fail } else { OnOutage::AskSource };
        config
    });
    (bus, level)
}

#[test]
fn whatever_validates_works_with_bus_and_second_level() {
    let situations = Situations::new(&SITUATIONS);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) };
    let mut runner = prop::test_runner::TestRunner::new(config);
    let result = runner.run(&outside(), |(bus, level)| {
        let valid = bus.validate().is_ok() && level.validate().is_ok();
        situations.reached(if valid { "accepted" } else { "refused" });
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (local, memory) = (LocalBus::default(), MemoryLevel::default());
            let build = || {
                Cache::<u64, u64>::builder()
                    .codec(PlainCodec)
                    .clock(Arc::new(TokioClock::default()))
                    .bus(local.clone(), bus.clone())
                    .second_level(memory.clone(), level.clone())
                    .build()
            };
            let (Ok(one), Ok(two)) = (build(), build()) else {
                assert!(!valid, "{bus:?} {level:?}");
                return;
            };
            assert!(valid, "{bus:?} {level:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
            let load = |value| move |_| async move { Ok(Loaded::value(value).tagged("all")) };
            for value in 0..4 {
                for key in 0..4 {
                    let read = two.get_or_load_with(&key, load(value)).await.unwrap();
                    assert_eq!(read, Some(value));
                    one.invalidate(&key);
                }
                one.invalidate_tag("all");
                one.settle().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!((one.stats().unsent, two.get(&1)), (0, None));
        });
        Ok(())
    });
    result.unwrap();
    situations.assert_all_reached();
    assert!(situations.count("accepted") >= 100, "most of the range was refused");
}
