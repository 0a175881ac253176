//! Several caches over one source: what one changes the others see, by the bus and past the second
//! level, however the two fail.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::faulty::{Faulty, FaultyState};
use support::{Mood, Script, Scripted, config};
use tokio::time::{sleep, sleep_until};
use voussoir_cache::testing::{MemoryLevel, check_bus, check_second_level};
use voussoir_cache::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

type Numbers = Cache<u64, u64>;

fn builder(script: &Arc<Script>) -> Builder<u64, u64> {
    Cache::builder()
        .config(config(|config| config.ttl = Some(1000 * SECOND)))
        .source(Scripted(Arc::clone(script)))
        .clock(Arc::new(TokioClock::default()))
        .codec(PlainCodec)
}

/// Two caches on one bus, which is up.
async fn pair(script: &Arc<Script>, level: Option<&MemoryLevel>) -> [Numbers; 2] {
    let bus = LocalBus::default();
    let build = || {
        let built = builder(script).bus(bus.clone(), BusConfig::default());
        match level {
            Some(level) => built.second_level(level.clone(), LevelConfig::default()),
            None => built,
        }
        .build()
        .unwrap()
    };
    let caches = [build(), build()];
    sleep(100 * MS).await;
    assert!(caches.iter().all(|cache| cache.stats().bus_gaps == 1), "the bus came up");
    caches
}

fn bytes(key: u64) -> [u8; 8] {
    key.to_le_bytes()
}

#[tokio::test(start_paused = true)]
async fn the_seams_in_memory_keep_their_promises() {
    check_bus(&LocalBus::default()).await;
    check_second_level(&MemoryLevel::default()).await;
}

#[tokio::test(start_paused = true)]
async fn many_invalidations_at_once_drop_nothing_else() {
    let script = Script::new(1);
    let [one, two] = pair(&script, None).await;
    for key in [1, 6_000] {
        assert!(one.get_or_load(&key).await.is_ok() && two.get_or_load(&key).await.is_ok());
    }
    (0..5_000).for_each(|key| one.invalidate(&key));
    one.settle().await;
    sleep(100 * MS).await;
    let found = [&one, &two].map(|cache| (cache.get(&1), cache.get(&6_000)));
    assert_eq!(found, [(None, Some(60_000)); 2]);
}

#[tokio::test(start_paused = true)]
async fn what_one_invalidates_the_others_drop() {
    let script = Script::new(1);
    script.tags.lock().push("rows".into());
    let [one, two] = pair(&script, None).await;
    let changes: [fn(&Numbers); 4] = [
        |cache| cache.invalidate(&1),
        |cache| cache.invalidate_tag("rows"),
        Cache::clear,
        |cache| _ = cache.insert(1, 7),
    ];
    for change in changes {
        assert_eq!(two.get_or_load(&1).await.unwrap(), Some(10));
        assert_eq!(two.get(&1), Some(10));
        change(&one);
        one.settle().await;
        sleep(MS).await;
        assert_eq!(two.get(&1), None);
    }
    // What was inserted stays where it was: an echo of one's own is no invalidation.
    assert_eq!(one.get(&1), Some(7));
    assert_eq!((one.stats().bus_heard, two.stats().bus_heard), (0, 4));
    assert_eq!((one.stats().bus_gaps, two.stats().bus_gaps), (1, 1));
}

/// FusionCache 627: a marker that was heard was sent on with the hearer's time.
#[tokio::test(start_paused = true)]
async fn what_was_heard_is_not_sent_on() {
    let script = Script::new(1);
    let [one, two] = pair(&script, Some(&MemoryLevel::default())).await;
    for _ in 0..20 {
        one.invalidate_tag("rows");
        one.settle().await;
        sleep(SECOND).await;
    }
    assert_eq!((one.stats().bus_heard, two.stats().bus_heard), (0, 20));
    assert_eq!(two.stats().unsent, 0);
}

#[tokio::test(start_paused = true)]
async fn a_group_of_keys_is_invalidated_everywhere() {
    let bus = LocalBus::default();
    let build = || {
        let built: Builder<String, u64> = Cache::builder()
            .tag_keys(|key: &String| key.split(':').take(1).map(str::to_owned).collect())
            .codec(PlainCodec)
            .bus(bus.clone(), BusConfig::default());
        built.build().unwrap()
    };
    let [one, two] = [build(), build()];
    sleep(MS).await;
    for key in ["user:1", "user:2", "order:1"] {
        two.insert(key.into(), 1);
    }
    two.settle().await;
    one.invalidate_tag("user");
    one.settle().await;
    sleep(MS).await;
    assert_eq!(["user:1", "user:2", "order:1"].map(|key| two.get(key)), [None, None, Some(1)]);
}

async fn faulty_pair(script: &Arc<Script>) -> ([Numbers; 2], Arc<FaultyState>) {
    let bus = Faulty::default();
    let build = || builder(script).bus(bus.clone(), BusConfig::default()).build().unwrap();
    let caches = [build(), build()];
    sleep(100 * MS).await;
    (caches, bus.state)
}

/// One invalidation is lost on its way. The next word of its sender says so.
#[tokio::test(start_paused = true)]
async fn a_lost_message_is_a_gap_that_drops_everything() {
    let script = Script::new(1);
    let ([one, two], bus) = faulty_pair(&script).await;
    for key in 1..4 {
        two.get_or_load(&key).await.unwrap();
    }
    bus.loses.store(true, Ordering::SeqCst);
    one.invalidate(&1);
    one.settle().await;
    bus.loses.store(false, Ordering::SeqCst);
    assert_eq!(two.get(&1), Some(10), "it does not know yet");
    sleep(1100 * MS).await;
    assert_eq!([1, 2, 3].map(|key| two.get(&key)), [None; 3]);
    assert_eq!((one.stats().bus_gaps, two.stats().bus_gaps), (1, 2));
}

/// Nothing is heard, and nothing says that the connection is dead.
#[tokio::test(start_paused = true)]
async fn a_silent_bus_is_down_after_its_timeout() {
    let script = Script::new(1);
    let ([one, two], bus) = faulty_pair(&script).await;
    two.get_or_load(&1).await.unwrap();
    bus.loses.store(true, Ordering::SeqCst);
    one.invalidate(&1);
    sleep(4 * SECOND + 100 * MS).await;
    assert_eq!(two.get(&1), None);
    script.write(1, 11);
    // Entries live for `outage_ttl` at most while nobody would tell of their end. Subscriptions
    // still begin, and each one ends in silence.
    bus.is_down.store(true, Ordering::SeqCst);
    sleep(10 * SECOND).await;
    assert_eq!(two.get_or_load(&1).await.unwrap(), Some(11));
    sleep(900 * MS).await;
    assert_eq!(two.get(&1), Some(11));
    sleep(200 * MS).await;
    assert_eq!(two.get(&1), None);
    bus.loses.store(false, Ordering::SeqCst);
    bus.is_down.store(false, Ordering::SeqCst);
    sleep(2 * SECOND).await;
    assert_eq!(two.get_or_load(&1).await.unwrap(), Some(11));
    sleep(100 * SECOND).await;
    assert_eq!(two.get(&1), Some(11), "the bus is up again");
}

/// One cache is cut off from the bus, and the others are not. Nobody hears what it invalidates.
#[tokio::test(start_paused = true)]
async fn a_peer_that_is_cut_off_alone_leaves_nothing_stale() {
    let script = Script::new(1);
    let bus = Faulty::default();
    let way = bus.another_way();
    let build = |bus: Faulty| builder(&script).bus(bus, BusConfig::default()).build().unwrap();
    let [one, two] = [build(way.clone()), build(bus)];
    sleep(100 * MS).await;
    two.get_or_load(&1).await.unwrap();
    sleep(10 * SECOND).await;
    assert_eq!(two.get(&1), Some(10), "both are heard");
    way.state.is_down.store(true, Ordering::SeqCst);
    script.write(1, 11);
    one.invalidate(&1);
    assert_eq!(two.get(&1), Some(10), "nobody has told");
    sleep(BusConfig::default().timeout + 10 * MS).await;
    assert_eq!(two.get(&1), None, "the other one may have invalidated it");
    // Until it is heard again, or forgotten, entries live for `outage_ttl` at most.
    assert_eq!(two.get_or_load(&1).await.unwrap(), Some(11));
    script.write(1, 12);
    one.invalidate(&1);
    sleep(900 * MS).await;
    assert_eq!(two.get(&1), Some(11));
    sleep(200 * MS).await;
    assert_eq!(two.get(&1), None);
    way.state.is_down.store(false, Ordering::SeqCst);
    sleep(2 * SECOND).await;
    assert_eq!((one.stats().unsent, two.get_or_load(&1).await.unwrap()), (0, Some(12)));
    sleep(100 * SECOND).await;
    assert_eq!(two.get(&1), Some(12), "it is heard again");
    // It never comes back, as a process that was killed does not.
    way.state.is_down.store(true, Ordering::SeqCst);
    sleep(10 * SECOND).await;
    assert_eq!(two.get_or_load(&1).await.unwrap(), Some(12));
    sleep(2 * SECOND).await;
    assert_eq!(two.get(&1), None, "it is remembered");
    sleep(BusConfig::default().peer_memory).await;
    two.get_or_load(&1).await.unwrap();
    sleep(100 * SECOND).await;
    assert_eq!(two.get(&1), Some(12), "it is forgotten");
}

/// A cache that ends and has told everything costs the others nothing; one that has not is as one
/// that is cut off.
#[tokio::test(start_paused = true)]
async fn a_peer_that_has_closed_is_not_missed() {
    let script = Script::new(1);
    let bus = LocalBus::default();
    let build = || builder(&script).bus(bus.clone(), BusConfig::default()).build().unwrap();
    let two = build();
    for closes in [true, false] {
        let one = build();
        sleep(2 * SECOND).await;
        two.get_or_load(&1).await.unwrap();
        if closes {
            assert!(one.close(SECOND).await.is_complete());
        }
        drop(one);
        sleep(100 * SECOND).await;
        assert_eq!((two.get(&1), two.stats().bus_gaps), (Some(10), 1));
    }
    // Its word reaches the bus, and the second level goes on answering with the old value.
    let level = MemoryLevel::default();
    let [one, two] = pair(&script, Some(&level)).await;
    level.set_failing(true);
    one.invalidate(&1);
    assert_eq!(one.close(SECOND).await.unsent, 1);
    drop(one);
    sleep(4 * SECOND).await;
    assert_eq!(two.stats().bus_gaps, 2, "what was left unsaid");
}

/// The windows for stale values are for sources that fail, not for a bus that nobody hears.
#[tokio::test(start_paused = true)]
async fn a_silent_bus_bounds_stale_values_too() {
    let script = Script::new(1);
    let bus = Faulty::default();
    let lasting = config(|config| {
        config.ttl = Some(5 * SECOND);
        config.stale_while_revalidate = 60 * SECOND;
        config.stale_if_error = 600 * SECOND;
    });
    let build = || {
        let built = builder(&script).config(lasting.clone());
        built.bus(bus.clone(), BusConfig::default()).build().unwrap()
    };
    let [one, two] = [build(), build()];
    sleep(100 * MS).await;
    bus.state.loses.store(true, Ordering::SeqCst);
    bus.state.is_down.store(true, Ordering::SeqCst);
    sleep(10 * SECOND).await;
    assert_eq!(two.get_or_load(&1).await.unwrap(), Some(10));
    script.write(1, 11);
    one.invalidate(&1);
    sleep(900 * MS).await;
    assert_eq!(two.get(&1), Some(10), "nobody has told");
    sleep(200 * MS).await;
    assert_eq!(two.get(&1), None, "older than `outage_ttl`");
    script.set(Mood::Fails);
    assert!(two.get_or_load(&1).await.is_err(), "nor is it served when the source fails");
    script.set(Mood::Answers);
    assert_eq!(two.get_or_load(&1).await.unwrap(), Some(11));
}

/// The runtime on which a cache was built ends, and with it the task that hears of invalidations.
#[test]
fn a_cache_whose_runtime_has_ended_hears_of_nothing_and_knows() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let bus = LocalBus::default();
    let build = |runtime: &tokio::runtime::Runtime| {
        runtime.block_on(async {
            let built = Cache::<u64, u64>::builder().codec(PlainCodec);
            let cache = built.bus(bus.clone(), BusConfig::default()).build().unwrap();
            sleep(20 * MS).await;
            cache
        })
    };
    let (one, two) = (build(&second), build(&first));
    assert!(two.insert(1, 10));
    assert_eq!(two.get(&1), Some(10));
    drop(first);
    assert_eq!(two.get(&1), None, "the bus is down");
    assert!(two.insert(1, 10));
    second.block_on(async {
        one.invalidate(&1);
        sleep(BusConfig::default().outage_ttl + 100 * MS).await;
    });
    assert_eq!(two.get(&1), None);
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_drops_what_came_before_it() {
    let script = Script::new(1);
    let ([one, two], bus) = faulty_pair(&script).await;
    let slow = {
        *script.takes.lock() = SECOND;
        let two = two.clone();
        tokio::spawn(async move { two.get_or_load(&2).await })
    };
    *script.takes.lock() = MS;
    two.get_or_load(&1).await.unwrap();
    bus.is_down.store(true, Ordering::SeqCst);
    bus.epoch.fetch_add(1, Ordering::SeqCst);
    sleep(10 * MS).await;
    assert_eq!(two.get(&1), None, "at once when it goes down");
    one.invalidate(&1);
    assert_eq!(one.stats().unsent, 1);
    two.get_or_load(&1).await.unwrap();
    bus.is_down.store(false, Ordering::SeqCst);
    sleep(700 * MS).await;
    assert_eq!(two.get(&1), None, "and when it is up again");
    assert_eq!(one.stats().unsent, 0, "what waited was sent");
    slow.await.unwrap().unwrap();
    assert_eq!(two.get(&2), None, "a load from before is not stored");
}

#[tokio::test(start_paused = true)]
async fn invalidations_without_end_wait_in_bounded_memory() {
    let script = Script::new(1);
    let bus = Faulty::default();
    let mut small = BusConfig::default();
    small.max_pending = 50;
    let build = || builder(&script).bus(bus.clone(), small.clone()).build().unwrap();
    let [one, two] = [build(), build()];
    sleep(100 * MS).await;
    // Only publishing fails: the subscriptions go on.
    bus.state.is_down.store(true, Ordering::SeqCst);
    two.get_or_load(&9999).await.unwrap();
    for key in 0..10_000 {
        one.invalidate(&key);
        assert!(one.stats().unsent <= 101, "{}", one.stats().unsent);
        if key % 100 == 0 {
            sleep(MS).await;
        }
    }
    bus.state.is_down.store(false, Ordering::SeqCst);
    one.settle().await;
    sleep(MS).await;
    assert_eq!(one.stats().unsent, 0);
    assert_eq!(two.get(&9999), None);
    assert!(bus.state.published.load(Ordering::SeqCst) < 200, "they were coalesced");
}

/// Bytes that the codec of this process does not know, from a process of another version.
#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_decoded_drops_everything() {
    let script = Script::new(1);
    let bus = LocalBus::default();
    let two = builder(&script).bus(bus.clone(), BusConfig::default()).build().unwrap();
    let other: Cache<String, u64> =
        Cache::builder().codec(PlainCodec).bus(bus, BusConfig::default()).build().unwrap();
    sleep(MS).await;
    two.get_or_load(&1).await.unwrap();
    other.invalidate("a key of another form");
    other.settle().await;
    sleep(MS).await;
    assert_eq!(two.get(&1), None);
    two.get_or_load(&1).await.unwrap();
    other.invalidate("one more of them");
    other.settle().await;
    sleep(MS).await;
    assert_eq!(two.get(&1), None, "the listener goes on");
}

#[tokio::test(start_paused = true)]
async fn one_process_loads_for_all() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let [one, two] = pair(&script, Some(&level)).await;
    *script.takes.lock() = 100 * MS;
    let reads = [&one, &two, &one, &two].map(|cache| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get_or_load(&1).await.unwrap() })
    });
    for read in reads {
        assert_eq!(read.await.unwrap(), Some(10));
    }
    assert_eq!(script.calls(), 1);
    assert_eq!((one.stats().level_hits, two.stats().level_hits), (0, 1));
    // A process that starts finds it there.
    let three = builder(&script).second_level(level.clone(), LevelConfig::default());
    assert_eq!(three.build().unwrap().get_or_load(&1).await.unwrap(), Some(10));
    assert_eq!(script.calls(), 1);
}

/// retools 8: a lease that nobody ends blocked loading for a week.
#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_ends_costs_a_wait_and_nothing_else() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let [one, two] = pair(&script, Some(&level)).await;
    // Its process is gone.
    assert!(level.lease(&bytes(1), 99, 5 * SECOND).await.unwrap().is_some());
    let began = tokio::time::Instant::now();
    assert_eq!(one.get_or_load(&1).await.unwrap(), Some(10));
    assert!((450 * MS..600 * MS).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert!(!level.has(&bytes(1)), "without the lease nothing is stored");
    sleep(5 * SECOND).await;
    assert_eq!(two.get_or_load(&1).await.unwrap(), Some(10));
    assert!(level.has(&bytes(1)));
    // A load that fails, and one that is dropped, end theirs at once.
    script.set(Mood::Fails);
    assert!(one.get_or_load(&2).await.is_err());
    script.set(Mood::Answers);
    let began = tokio::time::Instant::now();
    assert_eq!(two.get_or_load(&2).await.unwrap(), Some(20));
    assert!(began.elapsed() < 100 * MS, "{:?}", began.elapsed());
    script.set(Mood::Hangs);
    assert!(tokio::time::timeout(50 * MS, one.get_or_load(&3)).await.is_err());
    script.set(Mood::Answers);
    let began = tokio::time::Instant::now();
    assert_eq!(two.get_or_load(&3).await.unwrap(), Some(30));
    assert!(began.elapsed() < 100 * MS, "{:?}", began.elapsed());
}

/// FusionCache 625, 613, 535: a slow load of another process puts the old value back into the
/// second level, after it was deleted there.
#[tokio::test(start_paused = true)]
async fn a_slow_load_does_not_put_back_what_another_process_invalidated() {
    let script = Script::new(1);
    script.tags.lock().push("rows".into());
    let level = MemoryLevel::default();
    let [one, two] = pair(&script, Some(&level)).await;
    let changes: [fn(&Numbers); 3] =
        [|cache| cache.invalidate(&1), |cache| cache.invalidate_tag("rows"), Cache::clear];
    for (value, change) in (11..).zip(changes) {
        one.clear();
        one.settle().await;
        sleep(MS).await;
        *script.takes.lock() = 100 * MS;
        let slow = tokio::spawn({
            let one = one.clone();
            async move { one.get_or_load(&1).await.unwrap() }
        });
        sleep(50 * MS).await;
        script.write(1, value);
        *script.takes.lock() = MS;
        change(&two);
        two.settle().await;
        slow.await.unwrap();
        for cache in [&two, &one] {
            assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(value));
        }
    }
}

/// FusionCache 625: between the invalidation and the second level's acknowledgement a reader must
/// not fetch the old value from there.
#[tokio::test(start_paused = true)]
async fn the_second_level_is_not_trusted_until_it_has_dropped_the_old_value() {
    let script = Script::new(1);
    script.tags.lock().push("rows".into());
    let level = MemoryLevel::default();
    let [one, _] = pair(&script, Some(&level)).await;
    let changes: [fn(&Numbers); 3] =
        [|cache| cache.invalidate(&1), |cache| cache.invalidate_tag("rows"), Cache::clear];
    for (value, change) in (11..).zip(changes) {
        one.get_or_load(&1).await.unwrap();
        script.write(1, value);
        level.delay(50 * MS);
        change(&one);
        assert!(level.has(&bytes(1)));
        assert_eq!(one.get_or_load(&1).await.unwrap(), Some(value));
        one.settle().await;
        level.delay(Duration::ZERO);
        assert_eq!(one.get_or_load(&1).await.unwrap(), Some(value));
    }
}

/// FusionCache 613: the second level answers readers, and has not heard yet that a tag was
/// invalidated here. The old value must not come back by its tag, its key, or everything.
#[tokio::test(start_paused = true)]
async fn a_second_level_that_has_not_heard_of_an_invalidation_is_not_trusted() {
    let script = Script::new(1);
    script.tags.lock().push("rows".into());
    let level = MemoryLevel::default();
    let build = || builder(&script).second_level(level.clone(), LevelConfig::default());
    let (one, other) = (build().build().unwrap(), build().build().unwrap());
    let changes: [fn(&Numbers); 3] =
        [|cache| cache.invalidate_tag("rows"), |cache| cache.invalidate(&1), Cache::clear];
    for (value, change) in (11..).zip(changes) {
        // The second level is given the old value by another process.
        other.clear();
        other.settle().await;
        let old = other.get_or_load(&1).await.unwrap();
        assert_eq!(one.get_or_load(&1).await.unwrap(), old, "from the second level");
        script.write(1, value);
        // The call that is told of the invalidation takes its time, and those after it do not.
        level.delay(50 * MS);
        change(&one);
        sleep(MS).await;
        level.delay(Duration::ZERO);
        assert_eq!(one.stats().unsent, 1);
        assert_eq!(one.get_or_load(&1).await.unwrap(), Some(value));
        assert_eq!(one.stats().unsent, 1, "the second level has not answered yet");
        one.settle().await;
        assert_eq!(one.get_or_load(&1).await.unwrap(), Some(value));
    }
}

/// What a load has taken from the second level before that was told to drop it.
#[tokio::test(start_paused = true)]
async fn this_cache_drops_again_when_the_second_level_has_dropped() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let [one, two] = pair(&script, Some(&level)).await;
    one.get_or_load(&1).await.unwrap();
    script.write(1, 11);
    level.delay(50 * MS);
    one.invalidate(&1);
    one.insert(2, 7);
    assert_eq!(one.get_or_load(&1).await.unwrap(), Some(11), "from the source");
    assert_eq!(one.get(&1), Some(11));
    one.settle().await;
    assert_eq!(one.get(&1), None);
    assert_eq!(one.get(&2), Some(7), "a value that was written here is newer than that");
    drop(two);
}

/// An older version of the source's own, as a lagging replica has it.
#[tokio::test(start_paused = true)]
async fn an_older_version_does_not_replace_a_newer_one_in_the_second_level() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let [one, two] = pair(&script, Some(&level)).await;
    let load = |version: u64| {
        move |_| std::future::ready(Ok(Loaded::value(version).at_version(version).as_of(version)))
    };
    let mut refreshing = config(|config| config.ttl = Some(1000 * SECOND));
    refreshing.refresh_after = Some(SECOND);
    let refresher: Numbers = Cache::builder()
        .config(refreshing)
        .codec(PlainCodec)
        .clock(Arc::new(TokioClock::default()))
        .second_level(level.clone(), LevelConfig::default())
        .build()
        .unwrap();
    assert_eq!(refresher.get_or_load_with(&1, load(5)).await.unwrap(), Some(5));
    sleep(2 * SECOND).await;
    assert_eq!(refresher.get_or_load_with(&1, load(4)).await.unwrap(), Some(5));
    sleep(SECOND).await;
    assert_eq!(refresher.stats().refreshes, 1);
    assert_eq!(one.get_or_load_with(&1, load(9)).await.unwrap(), Some(5), "not 4");
    // A session that has seen more than the second level asks the source.
    let mut token = SessionToken::new(6);
    let read = two.session(&mut token).get_or_load_with(&1, load(9)).await;
    assert_eq!((read.unwrap(), token.position()), (Some(9), 9));
}

/// Two sessions join a load that brings neither what it has seen. The one that has seen less begins
/// the next load, which another process answers; that is no answer of the source for the other.
#[tokio::test(start_paused = true)]
async fn a_shared_answer_of_the_second_level_does_not_speak_for_the_source() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let build = || builder(&script).second_level(level.clone(), LevelConfig::default());
    let (one, other) = (build().build().unwrap(), build().build().unwrap());
    let at = |position: u64| {
        move |_: u64| std::future::ready(Ok(Loaded::value(position).as_of(position)))
    };
    let read = |cache: &Numbers, seen: u64, source: u64| {
        let cache = cache.clone();
        async move {
            let mut token = SessionToken::new(seen);
            let read = cache.session(&mut token).get_or_load_with(&1, at(source)).await;
            read.map(|value| (value, token.position()))
        }
    };
    assert_eq!(read(&other, 0, 50).await.unwrap(), (Some(50), 50));
    level.delay(50 * MS);
    let spawned = [0, 60, 100].map(|seen| tokio::spawn(read(&one, seen, 120)));
    // The first load has what the second level had, and the second one has not asked there yet.
    sleep(60 * MS).await;
    level.delay(Duration::ZERO);
    assert_eq!(read(&other, 60, 70).await.unwrap(), (Some(70), 70));
    let [plain, second, third] = spawned;
    assert_eq!(plain.await.unwrap().unwrap(), (Some(50), 50));
    assert_eq!(second.await.unwrap().unwrap(), (Some(70), 70), "by way of the second level");
    assert_eq!(third.await.unwrap().unwrap(), (Some(120), 120), "of the source");
    // A source that is behind is one.
    let behind = read(&one, 200, 120).await;
    let wanted =
        |error: &LoadError| matches!(error, LoadError::Behind { wanted: 200, found: Some(120) });
    assert!(wanted(behind.as_ref().unwrap_err()), "{behind:?}");
}

#[tokio::test(start_paused = true)]
async fn the_lifetime_of_a_value_counts_from_its_load() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let mut short = LevelConfig::default();
    short.ttl = 10 * SECOND;
    let build = || builder(&script).second_level(level.clone(), short.clone()).build().unwrap();
    let [one, two] = [build(), build()];
    one.get_or_load(&1).await.unwrap();
    script.write(1, 11);
    sleep(9 * SECOND).await;
    assert_eq!(two.get_or_load(&1).await.unwrap(), Some(10));
    sleep(1100 * MS).await;
    assert_eq!(two.get(&1), None, "it is 10 s old, though here for 1 s");
    assert_eq!(two.get_or_load(&1).await.unwrap(), Some(11));
}

/// Without a lifetime of the cache's own too, and however a value got in: nothing would drop it in
/// this process if the word of its end was lost.
#[tokio::test(start_paused = true)]
async fn the_second_level_bounds_what_a_process_has_loaded_itself() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let mut short = LevelConfig::default();
    short.ttl = 10 * SECOND;
    let lasting = config(|config| config.negative_ttl = 1000 * SECOND);
    let built = builder(&script).config(lasting).second_level(level.clone(), short);
    let cache = built.build().unwrap();
    script.rows.lock().remove(&4);
    let began = tokio::time::Instant::now();
    cache.get_or_load(&1).await.unwrap();
    assert!(cache.insert(2, 7));
    let with_ttl = |_| async { Ok(Loaded::value(7).with_ttl(1000 * SECOND)) };
    cache.get_or_load_with(&3, with_ttl).await.unwrap();
    assert_eq!(cache.get_or_load(&4).await.unwrap(), None);
    // Past the second level.
    level.set_failing(true);
    cache.get_or_load(&5).await.unwrap();
    level.set_failing(false);
    let calls = script.calls();
    sleep_until(began + 9900 * MS).await;
    for key in 1..6 {
        let _ = cache.get_or_load(&key).await.unwrap();
    }
    assert_eq!(script.calls(), calls, "they are fresh");
    sleep_until(began + 10_100 * MS).await;
    assert_eq!([1, 2, 3, 5].map(|key| cache.get(&key)), [None; 4]);
    script.write(4, 11);
    assert_eq!(cache.get_or_load(&4).await.unwrap(), Some(11));
}

/// redis-rs 698: an answer that belongs to another key.
#[tokio::test(start_paused = true)]
async fn bytes_of_another_key_are_not_served() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let build = || {
        let built = builder(&script).second_level(level.clone(), LevelConfig::default());
        built.build().unwrap()
    };
    let one = build();
    one.get_or_load(&1).await.unwrap();
    let of_another = level.raw(&bytes(1)).unwrap();
    let mut later_version = of_another.clone();
    later_version[2] = 2;
    let bad: [&[u8]; 4] = [&of_another, &later_version, b"", &of_another[..40]];
    for (round, bad) in (1..).zip(bad) {
        level.put_raw(&bytes(2), bad, 100 * SECOND);
        let fresh = build();
        assert_eq!(fresh.get_or_load(&2).await.unwrap(), Some(20), "round {round}");
        assert_eq!(fresh.stats().level_invalid, 1);
        assert_eq!(build().get_or_load(&2).await.unwrap(), Some(20), "it was replaced");
    }
}

#[tokio::test(start_paused = true)]
async fn without_its_second_level_a_cache_is_slower_and_nothing_else() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let [one, two] = pair(&script, Some(&level)).await;
    level.set_failing(true);
    for key in 0..100 {
        assert_eq!(one.get_or_load(&key).await.unwrap(), Some(key * 10));
    }
    assert!(level.calls() < 10, "it is left alone: {} calls", level.calls());
    // An invalidation waits for it, and reaches the other process meanwhile.
    two.get_or_load(&1).await.unwrap();
    script.write(1, 11);
    one.invalidate(&1);
    sleep(20 * MS).await;
    assert_eq!(two.get(&1), None);
    assert_eq!(one.stats().unsent, 1);
    level.set_failing(false);
    one.settle().await;
    assert_eq!(one.stats().unsent, 0);
    // It is slow: each rest costs one time limit.
    level.delay(10 * SECOND);
    let began = tokio::time::Instant::now();
    for key in 200..300 {
        assert_eq!(one.get_or_load(&key).await.unwrap(), Some(key * 10));
    }
    assert!(began.elapsed() < 100 * 10 * MS + 500 * MS, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_an_error_where_that_was_asked_for() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let mut strict = LevelConfig::default();
    strict.on_outage = OnOutage::Fail;
    let cache = builder(&script).second_level(level.clone(), strict).build().unwrap();
    level.set_failing(true);
    let failed = cache.get_or_load(&1).await;
    assert!(matches!(failed, Err(LoadError::SecondLevel(_))), "{failed:?}");
    assert_eq!(script.calls(), 0);
    level.set_failing(false);
    sleep(SECOND).await;
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
}

/// A row that is gone leaves no older value in the second level.
#[tokio::test(start_paused = true)]
async fn absence_is_not_hidden_by_the_second_level() {
    let script = Script::new(1);
    let level = MemoryLevel::default();
    let mut refreshing = config(|config| config.ttl = Some(1000 * SECOND));
    refreshing.refresh_after = Some(SECOND);
    let one: Numbers = builder(&script)
        .config(refreshing)
        .second_level(level.clone(), LevelConfig::default())
        .build()
        .unwrap();
    one.get_or_load(&1).await.unwrap();
    script.rows.lock().remove(&1);
    sleep(2 * SECOND).await;
    one.get_or_load(&1).await.unwrap();
    sleep(SECOND).await;
    assert!(!level.has(&bytes(1)));
    assert_eq!(one.get_or_load(&1).await.unwrap(), None);
}

/// A bus, a second level and a codec that panic are as ones that fail.
#[tokio::test(start_paused = true)]
async fn foreign_code_that_panics_costs_what_a_failure_costs() {
    struct Panics;
    #[async_trait]
    impl Bus for Panics {
        async fn publish(&self, _: &[Vec<u8>]) -> Result<(), BusError> {
            panic!("publish")
        }

        async fn subscribe(&self) -> Result<Box<dyn Subscription>, BusError> {
            panic!("subscribe")
        }
    }
    let script = Script::new(1);
    let cache = builder(&script).bus(Panics, BusConfig::default()).build().unwrap();
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    cache.invalidate(&1);
    sleep(10 * SECOND).await;
    assert_eq!(cache.stats().unsent, 1, "it is tried again");
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_gone_leaves_no_task_behind() {
    let script = Script::new(1);
    let [one, two] = pair(&script, Some(&MemoryLevel::default())).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    assert_eq!(metrics.num_alive_tasks(), 4);
    two.get_or_load(&1).await.unwrap();
    one.invalidate(&1);
    drop(one);
    sleep(MS).await;
    assert_eq!(two.get(&1), None, "what it had said was still sent");
    drop(two);
    sleep(10 * SECOND).await;
    assert_eq!(metrics.num_alive_tasks(), 0);
}

#[test]
fn a_codec_and_a_runtime_are_needed() {
    let field = |built: Result<Numbers, ConfigError>| built.unwrap_err().field;
    let bus = || Cache::builder().bus(LocalBus::default(), BusConfig::default());
    assert_eq!(field(bus().build()), "codec");
    assert_eq!(field(bus().codec(PlainCodec).build()), "bus or second_level");
}
