//! Every configuration over its whole range: what validates works, and what does not is refused.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use voussoir_cache::{
    Cache, Config, Loaded, OnPanic, Sink, SinkError, Write, WriteBehind, WriteBehindConfig,
    async_trait,
};
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
    let largest = prop::option::weighted(0.3, shares(1.2));
    (times, rest, any::<bool>(), any::<u64>(), largest).prop_map(|all| {
        let (times, rest, retry, seed, largest) = all;
        let mut config = Config::default();
        (config.ttl, config.tti, config.negative_ttl, config.refresh_after, ..) = times;
        (.., config.stale_while_revalidate, config.stale_if_error) = times;
        (config.ttl_jitter, config.early_refresh, config.soft_timeout, ..) = rest;
        (_, _, _, config.hard_timeout, config.max_weight, config.max_loads) = rest;
        config.max_entry_weight = largest.map(|share| (config.max_weight as f64 * share) as u64);
        (config.sink_timeout, config.error_pause) = (config.hard_timeout, config.negative_ttl);
        config.max_tag_floors = config.max_loads;
        config.on_panic = if retry { OnPanic::RetryOnce } else { OnPanic::Fail };
        config.seed = Some(seed);
        config
    })
}

static SITUATIONS: [&str; 3] = ["accepted", "refused", "a largest weight"];

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
        if let (true, Some(largest)) = (valid, config.max_entry_weight) {
            situations.reached("a largest weight");
            let built = Cache::<u64, u64>::builder().config(config);
            let cache = built.weigher(move |_, _| largest).build().unwrap();
            for key in 0..20 {
                prop_assert!(cache.insert(key, key));
            }
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

fn write_behind_configs() -> impl Strategy<Value = WriteBehindConfig> {
    let sizes =
        || prop_oneof![1 => Just(0), 4 => Just(1), 6 => 1..100_usize, 3 => Just(usize::MAX)];
    let bytes = prop_oneof![1 => Just(0), 3 => Just(1), 5 => 1..500_u64, 3 => Just(u64::MAX)];
    let times = (durations(), durations(), durations(), durations());
    let sizes = (sizes(), bytes, sizes(), 0..4_usize);
    (times, sizes, any::<u64>(), any::<bool>()).prop_map(|(times, sizes, seed, is_ordered)| {
        let mut config = WriteBehindConfig::default();
        (config.flush_after, config.sink_timeout, config.min_backoff, config.max_backoff) = times;
        if is_ordered {
            config.max_backoff = config.max_backoff.max(config.min_backoff);
        }
        (config.max_keys, config.max_bytes, config.max_batch, config.max_rejected) = sizes;
        config.seed = Some(seed);
        config
    })
}

/// Fails the first call, and rejects key 3 as long as it is told to, and for a number of calls at
/// most: in the time until it is told, a pause of a nanosecond fits too often.
#[derive(Clone, Default)]
struct Rows {
    table: Arc<Mutex<HashMap<u64, u64>>>,
    calls: Arc<Mutex<Vec<usize>>>,
    accepts_all: Arc<std::sync::atomic::AtomicBool>,
}

#[async_trait]
impl Sink<u64, u64> for Rows {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        let calls = {
            let mut calls = self.calls.lock();
            calls.push(writes.len());
            calls.len()
        };
        if calls == 1 {
            return vec![Err(SinkError::not_applied("the first call")); writes.len()];
        }
        let is_told = self.accepts_all.load(std::sync::atomic::Ordering::SeqCst);
        let accepts_all = is_told || calls > 1_000;
        let take = |write: &Write<u64, u64>| match write.value {
            Some(_) if write.key == 3 && !accepts_all => Err(SinkError::rejected("key 3")),
            Some(value) => {
                self.table.lock().insert(write.key, value);
                Ok(())
            }
            None => {
                self.table.lock().remove(&write.key);
                Ok(())
            }
        };
        writes.iter().map(take).collect()
    }
}

static BEHIND_SITUATIONS: [&str; 4] =
    ["accepted", "refused", "a write was kept as rejected", "there was no room for a rejected one"];

#[test]
fn whatever_validates_of_write_behind_works() {
    let situations = Situations::new(&BEHIND_SITUATIONS);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) };
    let mut runner = prop::test_runner::TestRunner::new(config);
    let result = runner.run(&write_behind_configs(), |config| {
        let valid = config.validate().is_ok();
        situations.reached(if valid { "accepted" } else { "refused" });
        let weigh = |_: &u64, value: Option<&u64>| value.map_or(8, |value| *value);
        let behind = WriteBehind::in_memory(config.clone(), weigh);
        prop_assert_eq!(behind.is_ok(), valid);
        if let Ok(behind) = behind {
            write_a_little(behind, &config, &situations);
        }
        Ok(())
    });
    result.unwrap();
    situations.assert_all_reached();
    assert!(situations.count("accepted") >= 200, "most of the range was refused");
}

fn write_a_little(
    behind: WriteBehind<u64, u64>,
    config: &WriteBehindConfig,
    situations: &Situations,
) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let rows = Rows::default();
        let cache = Cache::<u64, u64>::builder().write_behind(behind, rows.clone());
        let cache = cache.build().unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for key in 0..6 {
            let cache = cache.clone();
            writers.spawn(async move {
                // Weighs nothing, little, and more than fits.
                for value in [0, 3, if key == 1 { u64::MAX } else { 7 }] {
                    cache.write(key, value).await.unwrap();
                    assert!(cache.stats().backlog <= 6);
                }
            });
        }
        let end = async {
            while let Some(written) = writers.join_next().await {
                written.unwrap();
                assert!(cache.stats().backlog as usize <= config.max_keys);
            }
            cache.delete(5).await.unwrap();
        };
        // Where nothing is kept as rejected, key 3 is tried again until the sink takes it.
        let mend = async {
            tokio::time::sleep(Duration::from_secs(200 * 365 * 86_400)).await;
            rows.accepts_all.store(true, std::sync::atomic::Ordering::SeqCst);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = async { end.await; cache.flush().await } => {}
            () = mend => {}
        }
        let kept = cache.rejected_writes();
        let name = if kept.is_empty() { BEHIND_SITUATIONS[3] } else { BEHIND_SITUATIONS[2] };
        situations.reached(name);
        assert!(kept.len() <= config.max_rejected);
        let mut expected = HashMap::from([(0, 7), (1, u64::MAX), (2, 7), (3, 7), (4, 7)]);
        if !kept.is_empty() {
            expected.remove(&3);
        }
        assert_eq!(*rows.table.lock(), expected);
        assert!(rows.calls.lock().iter().all(|call| *call <= config.max_batch));
        assert_eq!((cache.stats().backlog, cache.stats().backlog_bytes), (0, 0));
    });
}
