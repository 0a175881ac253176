//! What a write leaves in the cache, where the source gives its values tags and versions.

mod support;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use support::config;
use tokio::time::sleep;
use voussoir_cache::{
    Cache, ConditionalSource, Held, Insert, Loaded, Reloaded, Sink, SinkError, Source, SourceError,
    Write, WriteBehind, WriteBehindConfig, WriteError, async_trait,
};

const MS: Duration = Duration::from_millis(1);

/// A row with a version, tagged "users". Its write takes 10 ms before and after it is made.
#[derive(Clone, Default)]
struct Row(Arc<Mutex<(u64, u64)>>);

impl Row {
    /// Changes the row, past the cache.
    fn set(&self, value: u64) {
        let mut row = self.0.lock();
        *row = (value, row.1 + 1);
    }
}

#[async_trait]
impl Source<u64, u64> for Row {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
        let (value, version) = *self.0.lock();
        keys.iter().map(|_| Ok(Loaded::value(value).tagged("users").at_version(version))).collect()
    }
}

#[async_trait]
impl ConditionalSource<u64, u64> for Row {
    async fn reload(&self, held: &[Held<u64, u64>]) -> Vec<Result<Reloaded<u64>, SourceError>> {
        let value = self.0.lock().0;
        let answer = |held: &Held<u64, u64>| {
            assert_eq!(held.value, value, "this test changes the value with each write");
            Ok(Reloaded::not_modified())
        };
        held.iter().map(answer).collect()
    }
}

#[async_trait]
impl Sink<u64, u64> for Row {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        sleep(10 * MS).await;
        for write in writes {
            self.set(write.value.unwrap_or(0));
        }
        sleep(10 * MS).await;
        writes.iter().map(|_| Ok(())).collect()
    }
}

/// A cache that writes through, and one that writes behind.
fn caches() -> [(Cache<u64, u64>, Row); 2] {
    [false, true].map(|is_behind| {
        let row = Row::default();
        *row.0.lock() = (1, 10);
        let built = Cache::builder().config(config(|_| {})).source(row.clone());
        let built = if is_behind {
            let behind = WriteBehind::in_memory(WriteBehindConfig::default(), |_, _| 1).unwrap();
            built.write_behind(behind, row.clone())
        } else {
            built.sink(row.clone())
        };
        (built.build().unwrap(), row)
    })
}

fn at_version(version: u64) -> Insert {
    let mut with = Insert::default();
    with.version = Some(version);
    with
}

fn tagged(tag: &str) -> Insert {
    let mut with = Insert::default();
    with.tags.push(tag.to_owned());
    with
}

/// The writer does not know the tags that the source gives the value.
#[tokio::test(start_paused = true)]
async fn the_invalidation_of_a_tag_drops_what_was_written_without_tags() {
    for (cache, row) in caches() {
        // With and without an entry that tells the tags.
        for (key, is_loaded) in [(1, true), (2, false)] {
            if is_loaded {
                cache.get_or_load(&key).await.unwrap();
            }
            cache.write(key, 11).await.unwrap();
            cache.flush().await;
            assert_eq!(cache.get(&key), Some(11));
            row.set(12);
            cache.invalidate_tag("users");
            assert_eq!(cache.get(&key), None);
            assert_eq!(cache.get_or_load(&key).await.unwrap(), Some(12));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_version_from_before_a_write_does_not_replace_what_was_written() {
    for (cache, _) in caches() {
        cache.get_or_load(&1).await.unwrap();
        for value in [11, 12] {
            cache.write(1, value).await.unwrap();
            cache.flush().await;
            for older in [9, 10] {
                assert!(!cache.insert_with(1, 1, at_version(older)), "{older}");
                assert_eq!(cache.get(&1), Some(value));
            }
        }
        assert!(cache.insert_with(1, 13, at_version(11)), "the source has gone on");
        assert_eq!(cache.get(&1), Some(13));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_is_kept_with_what_its_writer_says() {
    for (cache, _) in caches() {
        let mut with = tagged("users");
        (with.version, with.position) = (Some(20), Some(7));
        cache.write_with(1, 11, with).await.unwrap();
        cache.write_with(2, 12, Insert::default()).await.unwrap();
        cache.flush().await;
        cache.invalidate_tag("orders");
        assert_eq!((cache.get(&1), cache.get(&2)), (Some(11), Some(12)));
        assert!(!cache.insert_with(1, 9, at_version(19)));
        assert!(cache.insert_with(1, 11, at_version(20)), "the same may be stored again");
        cache.write_with(1, 11, tagged("users")).await.unwrap();
        cache.flush().await;
        cache.invalidate_tag("users");
        assert_eq!((cache.get(&1), cache.get(&2)), (None, Some(12)));
    }
}

/// "Not modified" would renew a value of which nobody knows the tags.
#[tokio::test(start_paused = true)]
async fn a_value_of_unknown_tags_is_loaded_and_not_asked_about() {
    let row = Row::default();
    let mut lasting = config(|config| config.ttl = Some(Duration::from_secs(10)));
    lasting.seed = Some(1);
    let clock = Arc::new(voussoir_cache::testing::ManualClock::default());
    let built = Cache::builder().config(lasting).clock(clock.clone()).sink(row.clone());
    let cache = built.conditional_source(row.clone()).build().unwrap();
    cache.write(1, 11).await.unwrap();
    clock.advance(Duration::from_secs(11));
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(11));
    cache.invalidate_tag("orders");
    assert_eq!(cache.get(&1), Some(11), "its tags are known now");
    cache.invalidate_tag("users");
    assert_eq!(cache.get(&1), None);
}

/// Another writer comes after this one at the sink, and its invalidation is heard before the sink
/// has answered this one: what this one wrote is old.
#[tokio::test(start_paused = true)]
async fn a_write_that_was_overtaken_at_the_sink_leaves_no_older_value() {
    type Change = fn(&Cache<u64, u64>);
    let changes: [Change; 5] = [
        |cache| cache.invalidate(&1),
        |cache| cache.invalidate_tag("mine"),
        |cache| cache.invalidate_tag("users"),
        Cache::clear,
        |cache| _ = cache.insert(1, 12),
    ];
    let [(cache, row), _] = caches();
    for change in changes {
        for with in [None, Some(tagged("users")), Some(tagged("mine"))] {
            cache.get_or_load(&1).await.unwrap();
            let writing = tokio::spawn({
                let cache = cache.clone();
                async move {
                    match with {
                        None => cache.write(1, 11).await,
                        Some(with) => cache.write_with(1, 11, with).await,
                    }
                }
            });
            sleep(15 * MS).await;
            assert_eq!(row.0.lock().0, 11);
            row.set(12);
            change(&cache);
            writing.await.unwrap().unwrap();
            assert_eq!(cache.get(&1), None);
            assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(12));
        }
    }
}

/// The runtime on which a cache was built ends, and handles live on in another one.
#[test]
fn a_cache_whose_runtime_has_ended_says_so() {
    let build = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (first, second) = (build(), build());
    let row = Row::default();
    let mut small = WriteBehindConfig::default();
    small.max_keys = 1;
    small.flush_after = Duration::from_secs(3600);
    let behind = WriteBehind::in_memory(small, |_, _| 1).unwrap();
    let cache = first.block_on(async {
        let built = Cache::builder().write_behind(behind, row.clone()).source(row.clone());
        let cache: Cache<u64, u64> = built.build().unwrap();
        cache.write(1, 11).await.unwrap();
        cache
    });
    // Waits for room in the backlog.
    let waiting = second.spawn({
        let cache = cache.clone();
        async move { cache.write(2, 12).await }
    });
    second.block_on(async { tokio::task::yield_now().await });
    drop(first);
    second.block_on(async {
        let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
        let error = waited.expect("it does not wait for ever").unwrap().unwrap_err();
        assert!(matches!(error, WriteError::Stopped) && !error.is_retryable(), "{error}");
        assert_eq!(error.outcome(), voussoir_cache::Outcome::NotApplied);
        let refused = cache.write(1, 13).await;
        assert!(matches!(refused, Err(WriteError::Stopped)), "{refused:?}");
        assert_eq!(cache.get(&1), Some(11), "what was acknowledged is still read");
        cache.flush().await;
        let closed = cache.close(Duration::from_secs(10)).await;
        assert_eq!(closed.backlog, 1, "{closed:?}");
    });
}
