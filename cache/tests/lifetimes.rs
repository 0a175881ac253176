//! How long entries are served, and what happens at their end.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use support::{Mood, Script, Scripted, cache, config};
use tokio::time::Instant;
use voussoir_cache::{Cache, Config, Insert, LoadError};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn an_entry_expires_and_is_loaded_again() {
    let script = Script::new(1);
    let (cache, clock) = cache(config(|config| config.ttl = Some(10 * SECOND)), &script);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    clock.advance(9 * SECOND);
    assert_eq!(cache.get(&1), Some(10));
    clock.advance(SECOND);
    assert_eq!(cache.get(&1), None);
    assert_eq!((cache.stats().expired, cache.stats().entries), (1, 0));
    script.write(1, 11);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(11));
}

#[tokio::test(start_paused = true)]
async fn an_entry_of_its_own_lifetime_keeps_that() {
    let script = Script::new(1);
    let (cache, clock) = cache(config(|config| config.ttl = Some(10 * SECOND)), &script);
    let mut with = Insert::default();
    with.ttl = Some(SECOND);
    cache.insert_with(1, 5, with);
    cache.insert(2, 6);
    clock.advance(SECOND);
    assert_eq!((cache.get(&1), cache.get(&2)), (None, Some(6)));
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_nobody_reads_leaves() {
    let script = Script::new(1);
    let (cache, clock) = cache(config(|config| config.tti = Some(10 * SECOND)), &script);
    cache.insert(1, 1);
    cache.insert(2, 2);
    for _ in 0..5 {
        clock.advance(6 * SECOND);
        assert_eq!(cache.get(&1), Some(1), "each read extends its time");
    }
    assert_eq!(cache.get(&2), None);
    clock.advance(10 * SECOND);
    assert_eq!(cache.get(&1), None);
}

#[tokio::test(start_paused = true)]
async fn the_absence_of_a_value_is_remembered_for_its_own_time() {
    let script = Script::new(1);
    let remembering = config(|config| {
        config.ttl = Some(100 * SECOND);
        config.negative_ttl = 5 * SECOND;
    });
    let (cache, clock) = cache(remembering, &script);
    for _ in 0..3 {
        assert_eq!(cache.get_or_load(&77_777).await.unwrap(), None);
    }
    assert_eq!(script.calls(), 1);
    script.write(77_777, 1);
    clock.advance(5 * SECOND);
    assert_eq!(cache.get_or_load(&77_777).await.unwrap(), Some(1));
    // Without it each read asks.
    let (forgetful, _) = support::cache(config(|_| {}), &script);
    for _ in 0..3 {
        assert_eq!(forgetful.get_or_load(&88_888).await.unwrap(), None);
    }
    assert_eq!(script.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_served_while_one_load_replaces_it() {
    let script = Script::new(1);
    let stale = config(|config| {
        config.ttl = Some(10 * SECOND);
        config.stale_while_revalidate = 10 * SECOND;
    });
    let (cache, clock) = cache(stale, &script);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    script.write(1, 11);
    clock.advance(15 * SECOND);
    for _ in 0..10 {
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10), "nobody waits");
    }
    tokio::time::sleep(SECOND).await;
    assert_eq!(cache.get(&1), Some(11));
    assert_eq!((script.calls(), cache.stats().refreshes), (2, 1));
    // Beyond its time it is not served.
    clock.advance(20 * SECOND);
    script.write(1, 12);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(12));
}

/// A refresh that hangs never keeps an expired entry alive, and does not stop later ones.
#[tokio::test(start_paused = true)]
async fn a_refresh_that_hangs_ends_and_the_entry_expires_all_the_same() {
    let script = Script::new(1);
    let stale = config(|config| {
        config.ttl = Some(10 * SECOND);
        config.refresh_after = Some(5 * SECOND);
        config.hard_timeout = 3 * SECOND;
    });
    let (cache, clock) = cache(stale, &script);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    script.set(Mood::Hangs);
    clock.advance(6 * SECOND);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    assert_eq!(cache.stats().loads_under_way, 1);
    clock.advance(5 * SECOND);
    assert_eq!(cache.get(&1), None, "its time is over, whatever is under way");
    tokio::time::sleep(4 * SECOND).await;
    assert_eq!(cache.stats().loads_under_way, 0);
    script.set(Mood::Answers);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
}

/// The mark of a refresh under way goes with the refresh, not with the entry.
#[tokio::test(start_paused = true)]
async fn an_entry_that_left_during_its_refresh_is_refreshed_again_later() {
    let script = Script::new(1);
    let refreshing = config(|config| {
        config.ttl = Some(100 * SECOND);
        config.refresh_after = Some(SECOND);
    });
    let (cache, clock) = cache(refreshing, &script);
    for round in 1..5 {
        cache.insert(1, round);
        clock.advance(2 * SECOND);
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(round));
        cache.invalidate(&1);
        tokio::time::sleep(SECOND).await;
        assert_eq!(cache.stats().refreshes, round);
        assert_eq!(cache.get(&1), None, "the refresh was overtaken");
    }
}

/// A reader that is held between its look at an old value and its wish to have it loaded again:
/// another one has had that done meanwhile. The clock is what it asks in between.
#[test]
fn what_has_been_refreshed_since_a_reader_looked_is_not_refreshed_again() {
    type Held = Mutex<Option<Box<dyn FnOnce() + Send>>>;
    let (now, held) = (Arc::new(AtomicU64::new(0)), Arc::new(Held::default()));
    let (at, meanwhile) = (Arc::clone(&now), Arc::clone(&held));
    let clock = move || {
        let run = meanwhile.lock().take();
        if let Some(run) = run {
            std::thread::spawn(run).join().unwrap();
        }
        at.load(Ordering::Relaxed)
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let script = Script::new(1);
    let stale = config(|config| {
        config.ttl = Some(10 * SECOND);
        config.stale_while_revalidate = 100 * SECOND;
        config.error_pause = SECOND;
    });
    let source = Scripted(Arc::clone(&script));
    let cache = Cache::builder().config(stale).source(source).clock(Arc::new(clock));
    let cache = cache.build().unwrap();
    let read = |cache: &Cache<u64, u64>| runtime().block_on(cache.get_or_load(&1)).unwrap();
    assert_eq!(read(&cache), Some(10));
    for (calls, mood) in [(2, Mood::Answers), (3, Mood::Fails)] {
        script.set(mood);
        now.fetch_add(11 * 1_000_000_000, Ordering::Relaxed);
        let (other, asked) = (cache.clone(), Arc::clone(&script));
        *held.lock() = Some(Box::new(move || {
            runtime().block_on(async {
                assert_eq!(other.get_or_load(&1).await.unwrap(), Some(10));
                while other.stats().loads_under_way > 0 || asked.calls() < calls {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }));
        assert_eq!(read(&cache), Some(10));
        assert_eq!(cache.stats().refreshes + 1, calls as u64, "{mood:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_source_is_covered_by_stale_values_for_so_long() {
    let script = Script::new(1);
    let covered = config(|config| {
        config.ttl = Some(10 * SECOND);
        config.stale_if_error = 60 * SECOND;
        config.soft_timeout = Some(Duration::from_millis(100));
    });
    let (cache, clock) = cache(covered, &script);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    clock.advance(30 * SECOND);
    for mood in [Mood::Fails, Mood::Panics, Mood::Hangs] {
        // After the pause that follows a failure.
        clock.advance(SECOND);
        script.set(mood);
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10), "{mood:?}");
    }
    assert_eq!(cache.stats().stale_served, 3);
    // The load that hung past the soft timeout goes on without its reader, to the hard timeout.
    assert_eq!(cache.stats().loads_under_way, 1);
    tokio::time::sleep(40 * SECOND).await;
    assert_eq!(cache.stats().loads_under_way, 0);
    script.set(Mood::Fails);
    clock.advance(40 * SECOND);
    assert!(matches!(cache.get_or_load(&1).await, Err(LoadError::Source(_))), "too old now");
}

/// In each of the windows in which a value is served while its source fails.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_down_is_asked_once_a_pause() {
    let windows: [fn(&mut Config); 3] = [
        |config| config.refresh_after = Some(4 * SECOND),
        |config| config.stale_while_revalidate = 1000 * SECOND,
        |config| config.stale_if_error = 1000 * SECOND,
    ];
    for (window, after) in windows.into_iter().zip([5, 12, 12]) {
        let script = Script::new(1);
        let rules = config(|config| {
            config.ttl = Some(10 * SECOND);
            window(config);
        });
        let (cache, clock) = cache(rules, &script);
        assert!(cache.insert(1, 7));
        clock.advance(after * SECOND);
        script.set(Mood::Fails);
        for calls in 1..4 {
            for _ in 0..100 {
                assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(7));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(script.calls(), calls);
            clock.advance(SECOND);
        }
        assert_eq!((cache.stats().entries, cache.stats().evicted), (1, 0));
        script.set(Mood::Answers);
        cache.get_or_load(&1).await.unwrap();
        tokio::time::sleep(SECOND).await;
        assert_eq!(cache.get(&1), Some(10), "after the pause it is asked again");
    }
}

/// Without a soft time-out the reader that begins a load waits for the hard one.
#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_costs_one_reader_a_wait() {
    let script = Script::new(1);
    let covered = config(|config| {
        config.ttl = Some(10 * SECOND);
        config.stale_if_error = 1000 * SECOND;
    });
    let (cache, clock) = cache(covered, &script);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    clock.advance(20 * SECOND);
    script.set(Mood::Hangs);
    let began = Instant::now();
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    assert_eq!(began.elapsed(), 30 * SECOND, "the hard time-out");
    for _ in 0..10 {
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
        assert_eq!(cache.get(&1), None, "fresh values only");
    }
    // After the pause one reader tries again, and the others do not wait for it.
    clock.advance(2 * SECOND);
    let trying = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load(&1).await }
    });
    tokio::time::sleep(SECOND).await;
    for _ in 0..10 {
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    }
    assert_eq!((began.elapsed(), script.calls()), (31 * SECOND, 3));
    assert_eq!(trying.await.unwrap().unwrap(), Some(10));
    // Nobody who has a value that was invalidated is given one.
    cache.invalidate(&1);
    script.set(Mood::Fails);
    assert!(cache.get_or_load(&1).await.is_err());
    assert!(cache.get_or_load(&1).await.is_err(), "each reader asks");
    assert_eq!(script.calls(), 5);
}

/// Readers who give up earlier than the load does, by themselves or at the soft time-out: the load
/// never fails while they look.
#[tokio::test(start_paused = true)]
async fn a_source_that_outlasts_its_readers_is_not_waited_for_by_each() {
    for soft in [None, Some(Duration::from_millis(100))] {
        let script = Script::new(1);
        let covered = config(|config| {
            config.ttl = Some(10 * SECOND);
            config.stale_if_error = 1000 * SECOND;
            config.soft_timeout = soft;
        });
        let (cache, clock) = cache(covered, &script);
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
        clock.advance(20 * SECOND);
        script.set(Mood::Hangs);
        let mut waiting = Box::pin(cache.get_or_load(&1));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
        clock.advance(SECOND / 4);
        if soft.is_some() {
            assert_eq!(waiting.await.unwrap(), Some(10));
        } else {
            drop(waiting);
        }
        let began = Instant::now();
        for _ in 0..10 {
            assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
        }
        assert_eq!((began.elapsed(), script.calls()), (Duration::ZERO, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_the_ends_of_what_was_stored_together() {
    let script = Script::new(1);
    let spread = config(|config| {
        config.ttl = Some(100 * SECOND);
        config.ttl_jitter = 0.5;
    });
    let (cache, clock) = cache(spread, &script);
    (0..1000).for_each(|key| _ = cache.insert(key, key));
    clock.advance(75 * SECOND);
    let left = (0..1000).filter(|key| cache.get(key).is_some()).count();
    assert!((450..550).contains(&left), "{left} of 1000 after half of the spread");
    clock.advance(25 * SECOND);
    assert!((0..1000).all(|key| cache.get(&key).is_none()), "no entry lives longer than its ttl");
}

#[tokio::test]
async fn capacity_may_be_bytes() {
    let config = config(|config| config.max_weight = 100_000);
    let cache: Cache<u64, Vec<u8>> = Cache::builder()
        .config(config)
        .weigher(|_, value: &Vec<u8>| value.len() as u64)
        .build()
        .unwrap();
    for key in 0..1000 {
        cache.insert(key, vec![0; 1000]);
    }
    let stats = cache.stats();
    assert!(stats.weight <= 100_000 && stats.weight > 50_000, "{stats:?}");
    assert!(stats.evicted >= 900, "{stats:?}");
    // One that can never fit is not stored, and drops nothing else.
    cache.insert(5000, vec![0; 200_000]);
    assert_eq!(cache.get(&5000), None);
    assert!(cache.stats().weight > 50_000);
}

/// The weight is divided among shards, and an entry has to fit into one of them.
#[test]
fn an_entry_of_up_to_the_largest_weight_is_stored() {
    let build = |largest: Option<u64>| -> Cache<u64, Vec<u8>> {
        let config = config(|config| {
            (config.max_weight, config.max_entry_weight) = (1_000_000, largest);
        });
        let weigh = |_: &u64, value: &Vec<u8>| value.len() as u64;
        Cache::builder().config(config).weigher(weigh).build().unwrap()
    };
    for (largest, weight) in [(None, 15_625), (Some(600_000), 600_000), (Some(970_000), 970_000)] {
        let cache = build(largest);
        for key in 0..100 {
            assert!(cache.insert(key, vec![1; weight]), "{largest:?}");
            assert!(cache.get(&key).is_some(), "{largest:?}");
        }
        assert!(cache.stats().weight <= 1_000_000);
    }
    // A heavier one may not fit. Then the answer says so, and the older value does not stay.
    let cache = build(None);
    assert!(cache.insert(1, vec![1; 10]));
    assert!(!cache.insert(1, vec![2; 980_000]));
    assert_eq!(cache.get(&1), None);
}

#[test]
fn an_entry_that_is_replaced_was_not_evicted() {
    let config = config(|config| config.max_weight = 100);
    let cache: Cache<u64, u64> =
        Cache::builder().config(config).weigher(|_, value| *value).build().unwrap();
    for value in 1..=40 {
        cache.insert(1, value);
    }
    assert_eq!((cache.stats().evicted, cache.stats().entries), (0, 1));
    cache.insert(2, 1000);
    assert_eq!((cache.stats().evicted, cache.get(&2)), (1, None), "heavier than the capacity");
}
