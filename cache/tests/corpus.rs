//! Public reports against other caches, told to this one. Those that another test covers already
//! stand in the README's table.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::{Mood, Script, Scripted, cache, config};
use tokio::time::{Instant, sleep, timeout};
use voussoir_cache::testing::{ManualClock, MemoryLevel};
use voussoir_cache::{Cache, Clock, LevelConfig, LoadError, Loaded, PlainCodec};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

type Numbers = Cache<u64, u64>;

/// moka 155: `invalidate_all` left entries of the same clock tick to be found.
#[test]
fn nothing_is_found_after_everything_was_dropped_however_fast() {
    let numbers: Numbers = Cache::builder().build().unwrap();
    for round in 0..1_000 {
        numbers.insert(0, round);
        assert_eq!(numbers.get(&0), Some(round));
        numbers.clear();
        assert_eq!(numbers.get(&0), None);
    }
}

/// spring-framework 36858: an asynchronous clear removed what was put after it.
#[test]
fn what_is_inserted_after_everything_was_dropped_stays() {
    let numbers: Numbers = Cache::builder().build().unwrap();
    for round in 0..1_000 {
        numbers.clear();
        numbers.invalidate_tag("rows");
        numbers.invalidate(&0);
        numbers.insert(0, round);
        assert_eq!(numbers.get(&0), Some(round));
    }
}

/// moka 329: loads that load from each other's caches and are cancelled by time-outs leaked what
/// they held.
#[tokio::test(start_paused = true)]
async fn nested_loads_that_are_cancelled_leave_nothing_behind() {
    let build = || -> Cache<u64, Arc<u64>> {
        Cache::builder().config(config(|config| config.max_weight = 4)).build().unwrap()
    };
    let (outer, inner) = (build(), build());
    // Held by each load and each value.
    let held = Arc::new(7);
    let mut chance = voussoir_sim::Rng::new(1);
    let (mut cancelled, mut answered) = (0, 0);
    for _ in 0..2_000 {
        let (inner, held) = (inner.clone(), Arc::clone(&held));
        let (key, within, takes) = (chance.below(8), chance.below(25), chance.below(25));
        let load = move |key| {
            let (inner, held) = (inner.clone(), Arc::clone(&held));
            async move {
                let load = move |_| {
                    let held = Arc::clone(&held);
                    async move {
                        sleep(takes as u32 * MS).await;
                        Ok(Loaded::value(held))
                    }
                };
                Ok(Loaded::from(inner.get_or_load_with(&key, load).await?))
            }
        };
        match timeout(within as u32 * MS, outer.get_or_load_with(&key, load)).await {
            Ok(answer) => answered += u32::from(answer.is_ok()),
            Err(_) => cancelled += 1,
        }
    }
    assert!(cancelled > 100 && answered > 100, "{cancelled} cancelled, {answered} answered");
    for cache in [&outer, &inner] {
        assert_eq!(cache.stats().loads_under_way, 0);
        cache.clear();
    }
    assert_eq!(Arc::strong_count(&held), 1);
}

/// Caffeine 193: a refresh that was under way stored its value after the entry was invalidated.
#[tokio::test(start_paused = true)]
async fn a_refresh_under_way_stores_nothing_after_an_invalidation() {
    let script = Script::new(1);
    script.tags.lock().push("rows".into());
    let rules = config(|config| {
        (config.ttl, config.refresh_after) = (Some(100 * SECOND), Some(SECOND));
    });
    let (numbers, clock) = cache(rules, &script);
    let invalidations: [fn(&Numbers); 3] =
        [|cache| cache.invalidate(&1), |cache| cache.invalidate_tag("rows"), Cache::clear];
    for (refreshes, invalidate) in (1..).zip(invalidations) {
        numbers.get_or_load(&1).await.unwrap();
        clock.advance(2 * SECOND);
        numbers.get_or_load(&1).await.unwrap();
        assert_eq!(numbers.stats().refreshes, refreshes);
        sleep(MS).await;
        invalidate(&numbers);
        sleep(100 * MS).await;
        assert_eq!((numbers.get(&1), numbers.stats().loads_under_way), (None, 0));
    }
}

/// Caffeine 175 and 467: with loads that take longer than the time to a refresh, the first value
/// was served for ever.
#[tokio::test(start_paused = true)]
async fn loads_that_are_slower_than_the_time_to_a_refresh_bring_their_values() {
    let script = Script::new(1);
    *script.takes.lock() = 5 * SECOND;
    let rules = config(|config| {
        (config.ttl, config.refresh_after) = (Some(1_000 * SECOND), Some(SECOND));
    });
    let (numbers, clock) = cache(rules, &script);
    let mut last = numbers.get_or_load(&1).await.unwrap().unwrap();
    let mut changes = 0;
    for round in 1..=60 {
        script.write(1, 100 + round);
        sleep(SECOND).await;
        clock.advance(SECOND);
        let read = numbers.get_or_load(&1).await.unwrap().unwrap();
        assert!(read >= last, "{read} after {last}");
        changes += u32::from(read != last);
        last = read;
    }
    assert!((8..=12).contains(&changes), "a load takes 5 of the 60 rounds: {changes} changes");
    assert!(last >= 145, "{last}");
}

fn over_level(
    script: &Arc<Script>,
    level: &MemoryLevel,
    change: impl FnOnce(&mut voussoir_cache::Config),
) -> (Numbers, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let built = Cache::builder()
        .config(config(change))
        .source(Scripted(Arc::clone(script)))
        .clock(shared)
        .codec(PlainCodec)
        .second_level(level.clone(), LevelConfig::default());
    (built.build().unwrap(), clock)
}

/// foyer-memory, as micromegas 1318 found it: a value that was being fetched from the slower level
/// replaced the one that was inserted meanwhile.
#[tokio::test(start_paused = true)]
async fn a_fetch_from_the_second_level_does_not_replace_what_was_inserted_meanwhile() {
    let (script, level) = (Script::new(1), MemoryLevel::default());
    let (other, _) = over_level(&script, &level, |_| {});
    assert_eq!(other.get_or_load(&1).await.unwrap(), Some(10), "the second level has it");
    let (numbers, _) = over_level(&script, &level, |_| {});
    level.delay(50 * MS);
    let fetch = tokio::spawn({
        let numbers = numbers.clone();
        async move { numbers.get_or_load(&1).await }
    });
    sleep(10 * MS).await;
    numbers.insert(1, 11);
    assert_eq!(fetch.await.unwrap().unwrap(), Some(10), "its reader came before");
    assert_eq!(numbers.get(&1), Some(11));
    numbers.settle().await;
    assert_eq!(numbers.get(&1), Some(11));
}

/// `quick_cache` 40: an insert between a load's end and its waiters' next poll made them panic.
#[tokio::test]
async fn an_insert_while_others_wait_for_a_load_leaves_them_their_answer() {
    let numbers: Numbers = Cache::builder().build().unwrap();
    let mut inserted = 0;
    for round in 0..100 {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let numbers = numbers.clone();
                let load = |_| async {
                    tokio::task::yield_now().await;
                    Ok(Loaded::value(1))
                };
                tokio::spawn(async move { numbers.get_or_load_with(&round, load).await })
            })
            .collect();
        // Before the load, in it, after it, and between two of its readers.
        for _ in 0..round % 10 {
            tokio::task::yield_now().await;
        }
        assert!(numbers.insert(round, 2));
        for reader in readers {
            let read = reader.await.unwrap().unwrap().unwrap();
            inserted += u32::from(read == 2);
        }
        assert_eq!(numbers.get(&round), Some(2), "the load is older");
    }
    assert!((1..400).contains(&inserted), "{inserted} of 400 readers came after the insert");
}

/// CacheTower 281: a reader that came as the load ended waited for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_comes_as_the_load_ends_is_answered() {
    let numbers: Numbers = Cache::builder().build().unwrap();
    let loads = Arc::new(AtomicU64::new(0));
    for key in 0..2_000 {
        let read = || {
            let (numbers, loads) = (numbers.clone(), Arc::clone(&loads));
            let load = move |key| {
                loads.fetch_add(1, Ordering::SeqCst);
                async move { Ok(Loaded::value(key)) }
            };
            tokio::spawn(async move { numbers.get_or_load_with(&key, load).await })
        };
        let (one, two) = (read(), read());
        for reader in [one, two] {
            let answer = timeout(10 * SECOND, reader).await.expect("it is answered");
            assert_eq!(answer.unwrap().unwrap(), Some(key));
        }
    }
    assert_eq!(loads.load(Ordering::SeqCst), 2_000, "one load for both");
    assert_eq!(numbers.stats().loads_under_way, 0);
}

/// FusionCache 534: a second level that hangs was waited for past its time-outs where the first
/// level had a stale value to serve.
#[tokio::test(start_paused = true)]
async fn a_second_level_that_hangs_holds_up_no_stale_value() {
    let (script, level) = (Script::new(1), MemoryLevel::default());
    let (numbers, clock) = over_level(&script, &level, |config| {
        (config.ttl, config.stale_if_error) = (Some(SECOND), 100 * SECOND);
        config.soft_timeout = Some(30 * MS);
    });
    assert_eq!(numbers.get_or_load(&1).await.unwrap(), Some(10));
    clock.advance(2 * SECOND);
    script.set(Mood::Fails);
    level.delay(1_000 * SECOND);
    let began = Instant::now();
    assert_eq!(numbers.get_or_load(&1).await.unwrap(), Some(10), "the stale value");
    assert!(began.elapsed() <= 31 * MS, "{:?}", began.elapsed());
}

/// A stale value is served when a load takes longer than 30 ms.
fn impatient() -> voussoir_cache::Config {
    config(|config| {
        (config.ttl, config.stale_if_error) = (Some(SECOND), 100 * SECOND);
        config.soft_timeout = Some(30 * MS);
    })
}

/// FusionCache 332: a load that was left behind by its readers at the soft time-out, and failed
/// then, spoilt what was served.
#[tokio::test(start_paused = true)]
async fn a_load_that_is_left_behind_brings_its_value_and_no_failure() {
    let script = Script::new(1);
    let (numbers, clock) = cache(impatient(), &script);
    assert_eq!(numbers.get_or_load(&1).await.unwrap(), Some(10));
    *script.takes.lock() = 200 * MS;
    for (mood, after) in [(Mood::Fails, None), (Mood::Answers, Some(11))] {
        clock.advance(2 * SECOND);
        script.write(1, 11);
        script.set(mood);
        assert_eq!(numbers.get_or_load(&1).await.unwrap(), Some(10), "the stale value");
        assert_eq!(numbers.stats().loads_under_way, 1, "it goes on");
        sleep(SECOND).await;
        assert_eq!(numbers.stats().loads_under_way, 0);
        assert_eq!(numbers.get(&1), after);
    }
}

/// A source that hangs, and many readers who give up waiting for it: one task goes on for all.
#[tokio::test(start_paused = true)]
async fn readers_that_leave_a_load_behind_leave_one_task_behind() {
    let script = Script::new(1);
    let mut config = impatient();
    config.error_pause = Duration::ZERO;
    let (numbers, clock) = cache(config, &script);
    assert_eq!(numbers.get_or_load(&1).await.unwrap(), Some(10));
    clock.advance(2 * SECOND);
    script.set(Mood::Hangs);
    for _ in 0..100 {
        assert_eq!(numbers.get_or_load(&1).await.unwrap(), Some(10), "the stale value");
    }
    let metrics = tokio::runtime::Handle::current().metrics();
    assert_eq!((metrics.num_alive_tasks(), numbers.stats().loads_under_way), (1, 1));
    sleep(60 * SECOND).await;
    assert_eq!((metrics.num_alive_tasks(), numbers.stats().loads_under_way), (0, 0));
}

/// FusionCache 648: what was dropped for good came back when the next load failed.
#[tokio::test(start_paused = true)]
async fn what_was_dropped_is_not_served_when_the_next_load_fails() {
    let (script, level) = (Script::new(1), MemoryLevel::default());
    script.tags.lock().push("rows".into());
    let rules = |config: &mut voussoir_cache::Config| {
        (config.ttl, config.stale_if_error) = (Some(SECOND), 100 * SECOND);
    };
    let (numbers, clock) = over_level(&script, &level, rules);
    let invalidations: [fn(&Numbers); 3] =
        [|cache| cache.invalidate(&1), |cache| cache.invalidate_tag("rows"), Cache::clear];
    for invalidate in invalidations {
        script.set(Mood::Answers);
        numbers.get_or_load(&1).await.unwrap();
        clock.advance(2 * SECOND);
        script.set(Mood::Fails);
        invalidate(&numbers);
        let error = numbers.get_or_load(&1).await.unwrap_err();
        assert!(matches!(error, LoadError::Source(_)), "{error}");
        numbers.settle().await;
    }
}
