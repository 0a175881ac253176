//! A second level beside tags from keys, hard limits and impatient readers.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::{Mood, Script, Scripted, config};
use tokio::time::{Instant, sleep, timeout};
use voussoir_cache::testing::MemoryLevel;
use voussoir_cache::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// One row that every key has, and how often it was read.
#[derive(Clone, Default)]
struct Row(Arc<AtomicU64>, Arc<AtomicU64>);

#[async_trait]
impl Source<String, u64> for Row {
    async fn load(&self, keys: &[String]) -> Vec<Result<Loaded<u64>, SourceError>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        keys.iter().map(|_| Ok(Loaded::value(self.0.load(Ordering::SeqCst)))).collect()
    }
}

#[expect(clippy::ptr_arg, reason = "keys come as the cache has them")]
fn prefix(key: &String) -> Vec<String> {
    key.split(':').take(1).map(str::to_owned).collect()
}

/// Tags that are derived from keys hold in the second level too.
#[tokio::test(start_paused = true)]
async fn a_group_of_keys_is_invalidated_in_the_second_level() {
    let (row, level, bus) = (Row::default(), MemoryLevel::default(), LocalBus::default());
    let build = || -> Cache<String, u64> {
        Cache::builder()
            .tag_keys(prefix)
            .source(row.clone())
            .codec(PlainCodec)
            .bus(bus.clone(), BusConfig::default())
            .second_level(level.clone(), LevelConfig::default())
            .build()
            .unwrap()
    };
    let [one, two] = [build(), build()];
    sleep(100 * MS).await;
    for value in 1..4 {
        row.0.store(value, Ordering::SeqCst);
        one.invalidate_tag("user");
        one.settle().await;
        sleep(MS).await;
        let reads = row.1.load(Ordering::SeqCst);
        assert_eq!(one.get_or_load("user:1").await.unwrap(), Some(value));
        assert_eq!(two.get_or_load("user:1").await.unwrap(), Some(value));
        assert_eq!(row.1.load(Ordering::SeqCst), reads + 1, "the second level has it");
    }
}

/// The second level was filled by a process that derives no tags, such as one of an older version:
/// what it stored is not known to be valid.
#[tokio::test(start_paused = true)]
async fn a_value_without_the_tags_of_its_key_is_not_served_from_the_second_level() {
    let (row, level) = (Row::default(), MemoryLevel::default());
    let build = |tags: fn(&String) -> Vec<String>| -> Cache<String, u64> {
        let built = Cache::builder().tag_keys(tags).source(row.clone()).codec(PlainCodec);
        built.second_level(level.clone(), LevelConfig::default()).build().unwrap()
    };
    let older = build(|_| Vec::new());
    row.0.store(1, Ordering::SeqCst);
    assert_eq!(older.get_or_load("user:1").await.unwrap(), Some(1));
    row.0.store(2, Ordering::SeqCst);
    build(prefix).invalidate_tag("user");
    sleep(SECOND).await;
    assert_eq!(build(prefix).get_or_load("user:1").await.unwrap(), Some(2));
    row.0.store(3, Ordering::SeqCst);
    assert_eq!(build(prefix).get_or_load("user:1").await.unwrap(), Some(2), "it has the tag now");
}

/// Tags that wait to be sent hide what the second level has of their keys.
#[tokio::test(start_paused = true)]
async fn a_second_level_that_has_not_heard_of_a_group_is_not_trusted() {
    let (row, level) = (Row::default(), MemoryLevel::default());
    let built = Cache::builder().tag_keys(prefix).source(row.clone()).codec(PlainCodec);
    let cache = built.second_level(level.clone(), LevelConfig::default()).build().unwrap();
    assert_eq!(cache.get_or_load("user:1").await.unwrap(), Some(0));
    row.0.store(1, Ordering::SeqCst);
    // The call that is told of the invalidation takes its time, and those after it do not.
    level.delay(50 * MS);
    cache.invalidate_tag("user");
    sleep(MS).await;
    level.delay(Duration::ZERO);
    assert_eq!(cache.get_or_load("user:1").await.unwrap(), Some(1));
    assert_eq!(cache.stats().unsent, 1, "the second level has not answered yet");
}

/// `tag_keys` is foreign code: its panic costs what the second level would save.
#[tokio::test(start_paused = true)]
async fn tags_that_panic_cost_the_second_level_and_no_answer() {
    let (row, level) = (Row::default(), MemoryLevel::default());
    let built = Cache::builder().tag_keys(|_: &String| panic!("tags")).source(row.clone());
    let built = built.codec(PlainCodec).second_level(level.clone(), LevelConfig::default());
    let cache = built.build().unwrap();
    row.0.store(7, Ordering::SeqCst);
    assert_eq!(cache.get_or_load("user:1").await.unwrap(), Some(7));
    assert!(!level.has(b"user:1"));
}

/// A cache whose loads may take `hard`, over a second level.
fn impatient(
    script: &Arc<Script>,
    level: &MemoryLevel,
    hard: Duration,
    change: impl FnOnce(&mut LevelConfig),
) -> Cache<u64, u64> {
    let mut level_config = LevelConfig::default();
    change(&mut level_config);
    Cache::builder()
        .config(config(|config| config.hard_timeout = hard))
        .source(Scripted(Arc::clone(script)))
        .codec(PlainCodec)
        .second_level(level.clone(), level_config)
        .build()
        .unwrap()
}

/// The hard limit is the source's: a second level that hangs for longer costs its own limit.
#[tokio::test(start_paused = true)]
async fn a_second_level_that_hangs_beyond_the_hard_limit_is_no_error() {
    let (script, level) = (Script::new(1), MemoryLevel::default());
    let cache = impatient(&script, &level, 50 * MS, |_| {});
    level.delay(3600 * SECOND);
    let began = Instant::now();
    for key in 0..20 {
        assert_eq!(cache.get_or_load(&key).await.unwrap(), Some(key * 10));
    }
    assert!(began.elapsed() < 100 * MS + 20 * 15 * MS, "{:?}", began.elapsed());
    // The source's own limit holds all the same, after one more wait for the second level.
    script.set(Mood::Hangs);
    let began = Instant::now();
    assert!(matches!(cache.get_or_load(&99).await, Err(LoadError::TimedOut)));
    assert!(began.elapsed() < 200 * MS, "{:?}", began.elapsed());
}

/// The same with readers that give up before the second level's own limit.
#[tokio::test(start_paused = true)]
async fn readers_that_give_up_early_let_a_second_level_rest_that_hangs() {
    let (script, level) = (Script::new(1), MemoryLevel::default());
    let cache = impatient(&script, &level, 30 * SECOND, |_| {});
    level.delay(3600 * SECOND);
    let mut answered = 0;
    for key in 0..20 {
        let read = timeout(80 * MS, cache.get_or_load(&key)).await;
        answered += u64::from(read.is_ok_and(|read| read.unwrap() == Some(key * 10)));
    }
    assert!(answered >= 15, "{answered} of 20 were answered");
    // A second level that answers is not left alone because its readers go away.
    level.delay(60 * MS);
    sleep(SECOND).await;
    for key in 100..110 {
        assert!(timeout(50 * MS, cache.get_or_load(&key)).await.is_err(), "{key}");
    }
    sleep(SECOND).await;
    assert_eq!(cache.get_or_load(&200).await.unwrap(), Some(2000));
    assert!(level.has(&200_u64.to_le_bytes()), "it was asked, and given the value");
}

/// A process that had the lease has crashed, and a load waits for longer than the hard limit.
#[tokio::test(start_paused = true)]
async fn a_lease_of_the_dead_beyond_the_hard_limit_is_no_error() {
    let (script, level) = (Script::new(1), MemoryLevel::default());
    let cache = impatient(&script, &level, 300 * MS, |_| {});
    assert!(level.lease(&1_u64.to_le_bytes(), 99, 5 * SECOND).await.unwrap().is_some());
    let began = Instant::now();
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    assert!((450 * MS..600 * MS).contains(&began.elapsed()), "{:?}", began.elapsed());
}
