//! Every configuration over its whole range: what validates works, and what does not is refused.

use std::time::Duration;

use proptest::prelude::*;
use voussoir_cache::{Cache, Config, Loaded, OnPanic};
use voussoir_sim::Situations;

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        6 => (1_000_000..u64::MAX / 8).prop_map(Duration::from_nanos),
        1 => extreme_durations(),
    ]
}

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

fn shares(most: f64) -> impl Strategy<Value = f64> {
    prop_oneof![2 => Just(0.0), 2 => Just(most), 6 => 0.0..=most, 1 => any::<f64>()]
}

fn configs() -> impl Strategy<Value = Config> {
    let optional = || prop::option::of(durations());
    let times = (optional(), optional(), durations(), optional(), durations(), durations());
    let sizes = prop_oneof![1 => Just(0), 2 => Just(1), 4 => 1..100_u64, 2 => Just(u64::MAX)];
    let rest = (shares(1.0), shares(100.0), optional(), durations(), sizes, 0..5_usize);
    (times, rest, any::<bool>(), any::<u64>()).prop_map(|(times, rest, retry, seed)| {
        let mut config = Config::default();
        (config.ttl, config.tti, config.negative_ttl, config.refresh_after, ..) = times;
        (.., config.stale_while_revalidate, config.stale_if_error) = times;
        (config.ttl_jitter, config.early_refresh, config.soft_timeout, ..) = rest;
        (_, _, _, config.hard_timeout, config.max_weight, config.max_loads) = rest;
        config.sink_timeout = config.hard_timeout;
        config.max_tag_floors = config.max_loads;
        config.on_panic = if retry { OnPanic::RetryOnce } else { OnPanic::Fail };
        config.seed = Some(seed);
        config
    })
}

static SITUATIONS: [&str; 2] = ["accepted", "refused"];

#[test]
fn whatever_validates_works() {
    let situations = Situations::new(&SITUATIONS);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) };
    let mut runner = prop::test_runner::TestRunner::new(config);
    let result = runner.run(&configs(), |config| {
        let valid = config.validate().is_ok();
        situations.reached(if valid { "accepted" } else { "refused" });
        let built = Cache::<u64, u64>::builder().config(config.clone()).build();
        prop_assert_eq!(built.is_ok(), valid);
        if let Ok(cache) = built {
            use_a_little(&cache, &config);
        }
        Ok(())
    });
    result.unwrap();
    situations.assert_all_reached();
    assert!(situations.count("accepted") >= 200, "most of the range was refused");
}

fn use_a_little(cache: &Cache<u64, u64>, config: &Config) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        for key in 0..4 {
            let load = |key| async move { Ok(Loaded::value(key).tagged("all")) };
            assert_eq!(cache.get_or_load_with(&key, load).await.unwrap(), Some(key));
            let absent = |_| async move { Ok(Loaded::absent()) };
            assert_eq!(cache.get_or_load_with(&(key + 100), absent).await.unwrap(), None);
            cache.insert(key, key);
            let _ = cache.get(&key);
        }
        cache.invalidate_tag("all");
        cache.invalidate(&1);
        cache.clear();
        assert_eq!(cache.get(&2), None);
        let stats = cache.stats();
        assert!(stats.weight <= config.max_weight && stats.loads_under_way == 0, "{stats:?}");
    });
}
