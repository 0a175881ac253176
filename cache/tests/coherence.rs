//! Nothing older than an acknowledged invalidation is served: loads that read the old value and end
//! late, by key, tag, group of keys, everything, and by the source's own versions.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{Mood, Numbers, Script, Scripted, cache, config};
use tokio::task::JoinHandle;
use voussoir_cache::testing::ManualClock;
use voussoir_cache::{
    Cache, Clock, Insert, LoadError, Loaded, SessionToken, Sink, SinkError, Write, WriteBehind,
    WriteBehindConfig, async_trait,
};

type Reader = JoinHandle<Result<Option<u64>, LoadError>>;

/// A reader whose load has read the row and is on its way back.
async fn slow_reader(cache: &Numbers, key: u64) -> Reader {
    let cache = cache.clone();
    let reader = tokio::spawn(async move { cache.get_or_load(&key).await });
    tokio::time::sleep(Duration::from_millis(5)).await;
    reader
}

/// The classic race of cache-aside: a slow read puts back an old value after a delete.
#[tokio::test(start_paused = true)]
async fn a_slow_load_does_not_put_back_what_was_invalidated_meanwhile() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|_| {}), &script);
    let slow = slow_reader(&cache, 1).await;
    script.write(1, 11);
    cache.invalidate(&1);
    // Whoever asks after the invalidation does not join the old load.
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(11));
    assert_eq!(slow.await.unwrap().unwrap(), Some(10), "it asked before");
    assert_eq!(cache.get(&1), Some(11));
    assert_eq!((cache.stats().overtaken, script.calls()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_slow_load_does_not_replace_what_was_inserted_meanwhile() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|_| {}), &script);
    let slow = slow_reader(&cache, 1).await;
    assert!(cache.insert(1, 99));
    assert_eq!(slow.await.unwrap().unwrap(), Some(10));
    assert_eq!(cache.get(&1), Some(99));
}

/// The tag is known only when the load ends; its invalidation was before.
#[tokio::test(start_paused = true)]
async fn a_tag_that_was_invalidated_during_a_load_hits_its_result() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|_| {}), &script);
    script.tags.lock().push("all".into());
    let slow = slow_reader(&cache, 1).await;
    script.write(1, 11);
    cache.invalidate_tag("all");
    assert_eq!(slow.await.unwrap().unwrap(), Some(10));
    assert_eq!(cache.get(&1), None);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(11));
    assert_eq!(cache.get(&1), Some(11), "loads that began later are stored");
}

#[tokio::test(start_paused = true)]
async fn more_tags_than_are_kept_cost_the_loads_under_way_and_nothing_else() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|config| config.max_tag_floors = 2), &script);
    script.tags.lock().push("all".into());
    let slow = slow_reader(&cache, 1).await;
    cache.insert(5, 50);
    cache.invalidate_tag("all");
    for n in 0..10 {
        cache.invalidate_tag(&format!("other {n}"));
    }
    assert_eq!(slow.await.unwrap().unwrap(), Some(10));
    assert_eq!((cache.get(&1), cache.get(&5)), (None, Some(50)));
}

#[tokio::test(start_paused = true)]
async fn clear_hits_what_is_stored_and_what_is_being_loaded() {
    let script = Script::new(1);
    let lasting = config(|config| {
        config.ttl = Some(Duration::from_secs(1));
        config.stale_if_error = Duration::from_secs(100);
    });
    let (cache, clock) = cache(lasting, &script);
    assert_eq!(cache.get_or_load(&2).await.unwrap(), Some(20));
    let slow = slow_reader(&cache, 1).await;
    cache.clear();
    assert_eq!(slow.await.unwrap().unwrap(), Some(10));
    assert_eq!((cache.get(&1), cache.get(&2)), (None, None));
    // A hard clear also bounds stale values: the loader fails, and what was cleared is not served.
    clock.advance(Duration::from_secs(2));
    script.set(Mood::Fails);
    assert!(cache.get_or_load(&2).await.is_err());
    script.set(Mood::Answers);
    assert_eq!(cache.get_or_load(&2).await.unwrap(), Some(20));
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_not_served_on_error_once_it_was_invalidated() {
    let script = Script::new(1);
    let lasting = config(|config| {
        config.ttl = Some(Duration::from_secs(1));
        config.stale_if_error = Duration::from_secs(100);
    });
    let (cache, clock) = cache(lasting, &script);
    script.tags.lock().push("all".into());
    let invalidate: [fn(&Numbers); 3] =
        [|cache| cache.invalidate(&1), |cache| cache.invalidate_tag("all"), Numbers::clear];
    for (way, invalidate) in invalidate.iter().enumerate() {
        script.set(Mood::Answers);
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
        clock.advance(Duration::from_secs(2));
        script.set(Mood::Fails);
        let slow = slow_reader(&cache, 1).await;
        invalidate(&cache);
        assert!(slow.await.unwrap().is_err(), "invalidated during the load, way {way}");
    }
}

/// The reader found a stale value, which was replaced while its load was under way. The load fails,
/// or is slower than the soft time-out.
#[tokio::test(start_paused = true)]
async fn a_reader_whose_load_fails_is_given_what_replaced_the_stale_value() {
    type Change = fn(&Numbers);
    for mood in [Mood::Fails, Mood::Hangs] {
        let script = Script::new(1);
        let lasting = config(|config| {
            config.ttl = Some(Duration::from_secs(1));
            config.negative_ttl = Duration::from_secs(100);
            config.stale_if_error = Duration::from_secs(100);
            config.soft_timeout = Some(Duration::from_millis(100));
        });
        let (cache, clock) = cache(lasting, &script);
        let replace: [(Change, Option<u64>); 4] = [
            (|cache| _ = cache.insert(1, 2), Some(2)),
            (
                |cache| {
                    cache.invalidate(&1);
                    cache.insert(1, 3);
                },
                Some(3),
            ),
            (
                |cache| {
                    cache.clear();
                    cache.insert(1, 4);
                },
                Some(4),
            ),
            (|cache| cache.invalidate(&1), None),
        ];
        for (replace, expected) in replace {
            cache.insert(1, 1);
            clock.advance(Duration::from_secs(2));
            script.set(mood);
            let slow = slow_reader(&cache, 1).await;
            replace(&cache);
            // The newest word may be that there is no value.
            let absent = |_| async { Ok(Loaded::absent()) };
            assert_eq!(cache.get_or_load_with(&1, absent).await.unwrap(), expected);
            assert_eq!(slow.await.unwrap().unwrap(), expected, "{mood:?}");
        }
        assert_eq!(cache.stats().stale_served, 0);
    }
}

/// The same where the newer value is in the backlog of write-behind.
#[tokio::test(start_paused = true)]
async fn a_reader_whose_load_fails_is_given_what_was_written_meanwhile() {
    let script = Script::new(1);
    let lasting = config(|config| {
        config.ttl = Some(Duration::from_secs(1));
        config.stale_if_error = Duration::from_secs(100);
    });
    let clock = Arc::new(ManualClock::default());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let behind = WriteBehind::in_memory(WriteBehindConfig::default(), |_, _| 1).unwrap();
    let cache: Numbers = Cache::builder()
        .config(lasting)
        .clock(shared)
        .source(Scripted(Arc::clone(&script)))
        .write_behind(behind, Full)
        .build()
        .unwrap();
    cache.insert(1, 1);
    clock.advance(Duration::from_secs(2));
    script.set(Mood::Fails);
    let slow = slow_reader(&cache, 1).await;
    cache.write(1, 2).await.unwrap();
    assert_eq!(slow.await.unwrap().unwrap(), Some(2));
}

/// A sink that takes nothing.
struct Full;

#[async_trait]
impl Sink<u64, u64> for Full {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        writes.iter().map(|_| Err(SinkError::not_applied("full"))).collect()
    }
}

/// A session is not given an older value where its load fails, and is at the position of the one
/// that it was given.
#[tokio::test(start_paused = true)]
async fn a_session_whose_load_fails_is_given_nothing_from_before_it() {
    let script = Script::new(1);
    let lasting = config(|config| {
        config.ttl = Some(Duration::from_secs(1));
        config.stale_if_error = Duration::from_secs(100);
    });
    let (cache, clock) = cache(lasting, &script);
    let at = |position| {
        let mut with = Insert::default();
        with.position = Some(position);
        with
    };
    for (replaced_by, expected) in [(4, None), (7, Some(7))] {
        cache.invalidate(&1);
        cache.insert_with(1, 5, at(5));
        clock.advance(Duration::from_secs(2));
        script.set(Mood::Fails);
        let reader = cache.clone();
        let slow = tokio::spawn(async move {
            let mut token = SessionToken::new(5);
            let answer = reader.session(&mut token).get_or_load(&1).await;
            (answer.ok().flatten(), token.position())
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        cache.invalidate(&1);
        cache.insert_with(1, replaced_by, at(replaced_by));
        assert_eq!(slow.await.unwrap(), (expected, expected.unwrap_or(5)));
    }
}

#[tokio::test]
async fn a_group_of_keys_is_invalidated_by_what_they_share() {
    let group = |key: &String| key.split_once(':').map(|(group, _)| group.to_owned());
    let cache: Cache<String, u64> =
        Cache::builder().tag_keys(move |key| group(key).into_iter().collect()).build().unwrap();
    for key in ["user:1", "user:2", "order:1", "plain"] {
        cache.insert(key.to_owned(), 1);
    }
    cache.invalidate_tag("user");
    let found = ["user:1", "user:2", "order:1", "plain"].map(|key| cache.get(key));
    assert_eq!(found, [None, None, Some(1), Some(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_larger_version_of_the_source_is_never_overwritten() {
    let cache: Cache<u64, u64> = Cache::builder().build().unwrap();
    let at = |version| {
        let mut with = Insert::default();
        with.version = Some(version);
        with
    };
    assert!(cache.insert_with(1, 5, at(5)));
    assert!(!cache.insert_with(1, 4, at(4)), "older");
    assert!(cache.insert_with(1, 55, at(5)), "the same may be stored again");
    cache.invalidate(&1);
    assert!(cache.insert_with(1, 3, at(3)), "nothing is stored to compare with");
    let load =
        |version: u64| move |_: u64| async move { Ok(Loaded::value(version).at_version(version)) };
    cache.invalidate(&1);
    assert_eq!(cache.get_or_load_with(&1, load(7)).await.unwrap(), Some(7));
    assert_eq!(cache.get(&1), Some(7));
}

/// What a source answers for a row that is not there tells no tags.
#[tokio::test(start_paused = true)]
async fn the_invalidation_of_a_tag_drops_a_remembered_absence() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|config| config.negative_ttl = Duration::from_secs(60)), &script);
    script.rows.lock().remove(&1);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), None);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), None);
    assert_eq!(script.calls(), 1, "it is remembered");
    script.tags.lock().push("rows".into());
    script.write(1, 11);
    cache.invalidate_tag("rows");
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(11));
}

#[tokio::test(start_paused = true)]
async fn a_reader_is_not_given_an_absence_from_before_an_invalidation() {
    let script = Script::new(1);
    script.rows.lock().remove(&1);
    let source = Scripted(Arc::clone(&script));
    let built = Cache::builder().source(source).tag_keys(|_| vec!["rows".into()]);
    let cache = built.build().unwrap();
    let slow = slow_reader(&cache, 1).await;
    script.write(1, 11);
    cache.invalidate_tag("rows");
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(11), "it joined an older load");
    assert_eq!(slow.await.unwrap().unwrap(), None, "it asked before");
}

/// A row is deleted and inserted again past the cache: its versions begin anew.
#[tokio::test(start_paused = true)]
async fn an_expired_version_is_no_obstacle() {
    let script = Script::new(1);
    let lasting = config(|config| {
        config.ttl = Some(Duration::from_secs(10));
        config.stale_if_error = Duration::from_secs(600);
    });
    let (cache, clock) = cache(lasting, &script);
    let loads = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let load = |version: u64| {
        let loads = Arc::clone(&loads);
        move |_: u64| {
            loads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            async move { Ok(Loaded::value(version).at_version(version)) }
        }
    };
    assert_eq!(cache.get_or_load_with(&1, load(7)).await.unwrap(), Some(7));
    clock.advance(Duration::from_secs(11));
    for _ in 0..5 {
        assert_eq!(cache.get_or_load_with(&1, load(1)).await.unwrap(), Some(1));
    }
    assert_eq!(loads.load(std::sync::atomic::Ordering::SeqCst), 2, "it was stored");
}

/// Readers, writers and invalidations on real threads over a "database" whose rows only grow. A
/// value that is served is never older than the row was when it was last invalidated before the
/// read began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_sees_a_value_older_than_an_acknowledged_invalidation() {
    use std::sync::atomic::{AtomicU64, Ordering};
    const KEYS: u64 = 4;
    let rows: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let acknowledged: Arc<Vec<AtomicU64>> =
        Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let cache: Cache<u64, u64> = Cache::builder().config(config(|_| {})).build().unwrap();
    let mut workers = Vec::new();
    for worker in 0..6_u64 {
        let (cache, rows, acknowledged) =
            (cache.clone(), Arc::clone(&rows), Arc::clone(&acknowledged));
        workers.push(tokio::spawn(async move {
            let mut chance = voussoir_sim::Rng::stream(11, worker);
            for _ in 0..4000 {
                let key = chance.below(KEYS);
                let at = key as usize;
                if worker < 2 {
                    let value = rows[at].fetch_add(1, Ordering::SeqCst) + 1;
                    match chance.below(8) {
                        0 => cache.clear(),
                        1 | 2 => cache.invalidate_tag("row"),
                        _ => cache.invalidate(&key),
                    }
                    acknowledged[at].fetch_max(value, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    continue;
                }
                let least = acknowledged[at].load(Ordering::SeqCst);
                let rows = Arc::clone(&rows);
                let pauses = chance.below(4);
                let read = cache.get_or_load_with(&key, move |key| {
                    let rows = Arc::clone(&rows);
                    async move {
                        let value = rows[key as usize].load(Ordering::SeqCst);
                        for _ in 0..pauses {
                            tokio::task::yield_now().await;
                        }
                        Ok(Loaded::value(value).tagged("row"))
                    }
                });
                let value = read.await.unwrap().unwrap();
                assert!(value >= least, "key {key}: {value} after {least} was invalidated");
            }
        }));
    }
    for worker in workers {
        worker.await.unwrap();
    }
    assert!(cache.stats().overtaken > 0 && cache.stats().hits > 0, "{:?}", cache.stats());
}
