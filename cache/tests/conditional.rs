//! What a source says beside a value: that nothing has changed, that there is none, and where it
//! stands.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use support::{Mood, Script, cache, config};
use voussoir_cache::testing::{ManualClock, MemoryLevel};
use voussoir_cache::{
    Cache, Clock, ConditionalSource, Config, Held, Insert, LevelConfig, LoadError, Loaded,
    PlainCodec, Reloaded, SessionToken, Source, SourceError, TokenError, async_trait,
};

const SECOND: Duration = Duration::from_secs(1);

/// A source that keeps a version for its rows, and an account of what it was asked.
#[derive(Default)]
struct Versioned {
    /// Value and version of key 1 to 9; other keys have no value.
    row: Mutex<(u64, u64)>,
    loads: Mutex<Vec<Vec<u64>>>,
    reloads: Mutex<Vec<Vec<Held<u64, u64>>>>,
    max_batch: usize,
    /// The position of its answers; 0 for none.
    position: AtomicU64,
    /// It panics when it is asked about held values.
    panics: AtomicBool,
}

struct Shared(Arc<Versioned>);

impl Versioned {
    fn look_up(&self, key: u64) -> Loaded<u64> {
        let (value, version) = *self.row.lock();
        let loaded = match key {
            1..=9 => Loaded::value(value + key).at_version(version).tagged("rows"),
            _ => Loaded::absent(),
        };
        match self.position.load(Ordering::SeqCst) {
            0 => loaded,
            position => loaded.as_of(position),
        }
    }
}

#[async_trait]
impl Source<u64, u64> for Shared {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
        self.0.loads.lock().push(keys.to_vec());
        tokio::time::sleep(Duration::from_millis(10)).await;
        keys.iter().map(|key| Ok(self.0.look_up(*key))).collect()
    }

    fn max_batch(&self) -> usize {
        self.0.max_batch
    }
}

#[async_trait]
impl ConditionalSource<u64, u64> for Shared {
    async fn reload(&self, held: &[Held<u64, u64>]) -> Vec<Result<Reloaded<u64>, SourceError>> {
        self.0.reloads.lock().push(held.to_vec());
        assert!(!self.0.panics.load(Ordering::SeqCst), "the source panics");
        let version = self.0.row.lock().1;
        tokio::time::sleep(Duration::from_millis(10)).await;
        let answer = |held: &Held<u64, u64>| {
            if held.version == Some(version) {
                match self.0.position.load(Ordering::SeqCst) {
                    0 => Reloaded::not_modified(),
                    position => Reloaded::not_modified().as_of(position),
                }
            } else {
                Reloaded::Changed(self.0.look_up(held.key))
            }
        };
        held.iter().map(|held| Ok(answer(held))).collect()
    }
}

fn conditional(max_batch: usize) -> (Cache<u64, u64>, Arc<ManualClock>, Arc<Versioned>) {
    let source = Versioned { row: Mutex::new((100, 1)), max_batch, ..Versioned::default() };
    let source = Arc::new(source);
    let clock = Arc::new(ManualClock::default());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let cache = Cache::builder()
        .config(config(|config| config.ttl = Some(SECOND)))
        .conditional_source(Shared(Arc::clone(&source)))
        .clock(shared);
    (cache.build().unwrap(), clock, source)
}

/// Held and missing keys that come together are asked for in one turn. The call about the held
/// ones panics.
#[tokio::test(start_paused = true)]
async fn a_panic_about_held_values_costs_no_reader_of_a_missing_one() {
    let (cache, clock, source) = conditional(10);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(101));
    clock.advance(2 * SECOND);
    source.panics.store(true, Ordering::SeqCst);
    let (held, missing) = tokio::join!(cache.get_or_load(&1), cache.get_or_load(&2));
    assert!(matches!(held, Err(LoadError::Panicked)), "{held:?}");
    assert_eq!(missing.unwrap(), Some(102));
}

/// A value's own lifetime is renewed with it, also where there is no other. A new one replaces it.
#[tokio::test(start_paused = true)]
async fn a_value_that_has_not_changed_keeps_its_lifetime() {
    struct Timed(Arc<(AtomicU64, AtomicU64)>);
    const OWN: Duration = Duration::from_millis(30);

    #[async_trait]
    impl Source<u64, u64> for Timed {
        async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
            self.0.0.fetch_add(1, Ordering::SeqCst);
            keys.iter().map(|_| Ok(Loaded::value(1).with_ttl(OWN))).collect()
        }
    }

    #[async_trait]
    impl ConditionalSource<u64, u64> for Timed {
        async fn reload(&self, held: &[Held<u64, u64>]) -> Vec<Result<Reloaded<u64>, SourceError>> {
            let asked = self.0.1.fetch_add(1, Ordering::SeqCst);
            let answer = || match asked {
                5 => Reloaded::not_modified().with_ttl(3 * OWN),
                _ => Reloaded::not_modified(),
            };
            held.iter().map(|_| Ok(answer())).collect()
        }
    }

    let (counts, clock) = (Arc::<(AtomicU64, AtomicU64)>::default(), ManualClock::default());
    let clock = Arc::new(clock);
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let source = Timed(Arc::clone(&counts));
    let cache = Cache::<u64, u64>::builder().conditional_source(source).clock(shared);
    let cache = cache.config(config(|_| {})).build().unwrap();
    for _ in 0..6 {
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(1));
        clock.advance(OWN);
        assert_eq!(cache.get(&1), None);
    }
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(1));
    for _ in 0..2 {
        for _ in 0..2 {
            clock.advance(OWN);
            assert_eq!(cache.get(&1), Some(1));
        }
        clock.advance(OWN);
        assert_eq!(cache.get(&1), None);
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(1));
    }
    let counts = (counts.0.load(Ordering::SeqCst), counts.1.load(Ordering::SeqCst));
    assert_eq!(counts, (1, 8));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_has_not_changed_is_not_sent_again() {
    let (cache, clock, source) = conditional(1);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(101));
    for round in 1..4 {
        clock.advance(2 * SECOND);
        assert_eq!(cache.get(&1), None, "expired");
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(101));
        assert_eq!(cache.get(&1), Some(101), "fresh again");
        assert_eq!((source.loads.lock().len(), source.reloads.lock().len()), (1, round));
    }
    *source.row.lock() = (200, 2);
    clock.advance(2 * SECOND);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(201));
    let last = source.reloads.lock().last().cloned().unwrap();
    assert_eq!((last[0].key, last[0].value, last[0].version), (1, 101, Some(1)));
    // The renewed entry kept its version and its tags.
    cache.invalidate_tag("rows");
    assert_eq!(cache.get(&1), None);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_was_invalidated_is_loaded_and_not_asked_about() {
    let (cache, clock, source) = conditional(1);
    let invalidations: [fn(&Cache<u64, u64>); 3] =
        [|cache| cache.invalidate(&1), |cache| cache.invalidate_tag("rows"), Cache::clear];
    for invalidate in invalidations {
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(101));
        clock.advance(2 * SECOND);
        invalidate(&cache);
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(101));
        assert!(source.reloads.lock().is_empty());
    }
}

/// A session passes over an entry from before its position without a look at its tags, so the entry
/// is still in the table when the source is asked. Its version is not offered: "not modified since
/// version 1" would renew a value that was invalidated, with tags that may have changed.
#[tokio::test(start_paused = true)]
async fn a_session_does_not_ask_about_a_value_that_was_invalidated() {
    let (cache, _, source) = conditional(1);
    source.position.store(5, Ordering::SeqCst);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(101));
    source.position.store(20, Ordering::SeqCst);
    // Without an invalidation the older entry is asked about.
    let mut token = SessionToken::new(10);
    assert_eq!(cache.session(&mut token).get_or_load(&1).await.unwrap(), Some(101));
    assert_eq!((source.loads.lock().len(), source.reloads.lock().len()), (1, 1));
    assert_eq!(token.position(), 20);
    cache.invalidate_tag("rows");
    source.position.store(40, Ordering::SeqCst);
    let mut token = SessionToken::new(30);
    assert_eq!(cache.session(&mut token).get_or_load(&1).await.unwrap(), Some(101));
    assert_eq!((source.loads.lock().len(), source.reloads.lock().len()), (2, 1));
}

/// The tag is invalidated after the reader has looked at the entry and before the source is asked:
/// the second level is asked in between.
#[tokio::test(start_paused = true)]
async fn a_value_that_is_invalidated_on_the_way_to_the_source_is_not_asked_about() {
    let source = Versioned { row: Mutex::new((100, 1)), max_batch: 1, ..Versioned::default() };
    let source = Arc::new(source);
    let clock = Arc::new(ManualClock::default());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let level = MemoryLevel::default();
    let cache: Cache<u64, u64> = Cache::builder()
        .config(config(|config| config.ttl = Some(SECOND)))
        .conditional_source(Shared(Arc::clone(&source)))
        .clock(shared)
        .codec(PlainCodec)
        .second_level(level.clone(), LevelConfig::default())
        .build()
        .unwrap();
    for invalidates in [false, true] {
        cache.get_or_load(&1).await.unwrap();
        clock.advance(2 * SECOND);
        level.forget();
        level.delay(Duration::from_millis(20));
        let load = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get_or_load(&1).await }
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        if invalidates {
            cache.invalidate_tag("rows");
        }
        assert_eq!(load.await.unwrap().unwrap(), Some(101));
        assert_eq!(source.reloads.lock().len(), 1, "only without the invalidation");
        level.delay(Duration::ZERO);
    }
}

/// "Not modified" was true when the source said it, and not any more when it arrives.
#[tokio::test(start_paused = true)]
async fn a_not_modified_from_before_an_invalidation_renews_nothing() {
    let (cache, clock, source) = conditional(1);
    let invalidations: [fn(&Cache<u64, u64>); 3] =
        [|cache| cache.invalidate(&1), |cache| cache.invalidate_tag("rows"), Cache::clear];
    for invalidate in invalidations {
        cache.get_or_load(&1).await.unwrap();
        clock.advance(2 * SECOND);
        let reload = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get_or_load(&1).await }
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        let version = source.row.lock().1 + 1;
        *source.row.lock() = (version * 100, version);
        invalidate(&cache);
        reload.await.unwrap().unwrap();
        assert_eq!(cache.get(&1), None);
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(version * 100 + 1));
    }
    assert_eq!(source.reloads.lock().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn held_and_missing_keys_are_asked_in_batches_of_their_own() {
    let (cache, clock, source) = conditional(3);
    let all = |cache: Cache<u64, u64>, keys: Vec<u64>| async move {
        let reads = keys.into_iter().map(|key| {
            let cache = cache.clone();
            tokio::spawn(async move { (key, cache.get_or_load(&key).await.unwrap()) })
        });
        for read in reads.collect::<Vec<_>>() {
            let (key, value) = read.await.unwrap();
            assert_eq!(value, (key <= 9).then_some(100 + key));
        }
    };
    all(cache.clone(), vec![1, 2, 3, 4]).await;
    clock.advance(2 * SECOND);
    source.loads.lock().clear();
    all(cache.clone(), vec![1, 2, 3, 4, 5, 6, 50]).await;
    let sizes = |calls: Vec<usize>| (calls.len(), calls.into_iter().sum::<usize>());
    let loads = sizes(source.loads.lock().iter().map(Vec::len).collect());
    let reloads = sizes(source.reloads.lock().iter().map(Vec::len).collect());
    assert_eq!((loads, reloads), ((1, 3), (2, 4)));
}

/// A refresh that learns that the row is gone must not leave the old value for its lifetime.
#[tokio::test(start_paused = true)]
async fn the_answer_that_there_is_no_value_drops_the_old_one() {
    for negative_ttl in [Duration::ZERO, SECOND] {
        let script = Script::new(1);
        let refreshing = config(|config| {
            config.ttl = Some(100 * SECOND);
            config.refresh_after = Some(SECOND);
            config.stale_if_error = 100 * SECOND;
            config.negative_ttl = negative_ttl;
        });
        let (cache, clock) = cache(refreshing, &script);
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
        script.rows.lock().remove(&1);
        clock.advance(2 * SECOND);
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10), "refreshed in the background");
        tokio::time::sleep(SECOND).await;
        assert_eq!(cache.get(&1), None);
        clock.advance(200 * SECOND);
        script.set(Mood::Fails);
        assert!(cache.get_or_load(&1).await.is_err(), "nothing stale is left to cover the failure");
    }
}

fn loads(position: u64) -> impl Fn(u64) -> std::future::Ready<Result<Loaded<u64>, LoadError>> {
    move |_| std::future::ready(Ok(Loaded::value(position).as_of(position)))
}

#[tokio::test(start_paused = true)]
async fn an_entry_from_before_the_session_is_a_miss() {
    let cache: Cache<u64, u64> = Cache::builder().build().unwrap();
    cache.get_or_load_with(&1, loads(10)).await.unwrap();
    let mut token = SessionToken::new(10);
    assert_eq!(cache.session(&mut token).get(&1), Some(10), "just as new as the session");
    token.merge(SessionToken::new(11));
    assert_eq!(cache.session(&mut token).get(&1), None);
    assert_eq!(cache.get(&1), Some(10), "others may have it");
    let read = cache.session(&mut token).get_or_load_with(&1, loads(15)).await;
    assert_eq!((read.unwrap(), token.position()), (Some(15), 15));
    // What it has read it never reads from before.
    cache.get_or_load_with(&2, loads(12)).await.unwrap();
    assert_eq!(cache.session(&mut token).get(&2), None);
    // An entry without a position is of an unknown age.
    cache.insert(3, 3);
    assert_eq!(cache.session(&mut token).get(&3), None);
    assert_eq!(cache.session(&mut SessionToken::default()).get(&3), Some(3));
    let mut with = Insert::default();
    with.position = Some(20);
    cache.insert_with(3, 3, with);
    assert_eq!((cache.session(&mut token).get(&3), token.position()), (Some(3), 20));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_behind_the_session_is_an_error_and_not_an_old_value() {
    let mut covered = Config::default();
    covered.ttl = Some(SECOND);
    covered.stale_if_error = 100 * SECOND;
    let cache: Cache<u64, u64> = Cache::builder().config(covered).build().unwrap();
    let mut token = SessionToken::new(20);
    let read = cache.session(&mut token).get_or_load_with(&1, loads(19)).await;
    assert!(matches!(read, Err(LoadError::Behind { wanted: 20, found: Some(19) })), "{read:?}");
    assert!(read.unwrap_err().is_retryable());
    let absent = |_| std::future::ready(Ok(Loaded::absent().as_of(19)));
    let read = cache.session(&mut token).get_or_load_with(&2, absent).await;
    assert!(matches!(read, Err(LoadError::Behind { .. })), "{read:?}");
    let absent = |_| std::future::ready(Ok(Loaded::absent().as_of(21)));
    let read = cache.session(&mut token).get_or_load_with(&2, absent).await;
    assert_eq!((read.unwrap(), token.position()), (None, 21));
    // A lagging replica does not replace what a later position has.
    cache.get_or_load_with(&3, loads(30)).await.unwrap();
    let mut older = Insert::default();
    older.position = Some(29);
    assert!(!cache.insert_with(3, 29, older));
    assert_eq!(cache.get(&3), Some(30));
}

/// It joins a load that read the row before the session's write.
#[tokio::test(start_paused = true)]
async fn a_session_does_not_take_the_answer_of_a_load_from_before_it() {
    let cache: Cache<u64, u64> = Cache::builder().build().unwrap();
    let position = Arc::new(Mutex::new(10));
    let load = {
        let position = Arc::clone(&position);
        move |_| {
            let at = *position.lock();
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(Loaded::value(at).as_of(at))
            }
        }
    };
    let slow = tokio::spawn({
        let (cache, load) = (cache.clone(), load.clone());
        async move { cache.get_or_load_with(&1, load).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    *position.lock() = 11;
    let mut token = SessionToken::new(11);
    let read = cache.session(&mut token).get_or_load_with(&1, load).await;
    assert_eq!(read.unwrap(), Some(11));
    assert_eq!(slow.await.unwrap().unwrap(), Some(10), "it has seen nothing");
    assert_eq!((cache.get(&1), cache.stats().loads, cache.stats().joins), (Some(11), 2, 1));
}

#[test]
fn tokens_have_these_bytes() {
    let token = SessionToken::new(0x0102_0304_0506_0708);
    assert_eq!(token.encode(), [b'c', 1, 8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(SessionToken::decode(&token.encode()), Ok(token));
    assert_eq!(SessionToken::decode(&[]), Err(TokenError::Kind));
    assert_eq!(SessionToken::decode(b"r1"), Err(TokenError::Kind));
    assert_eq!(SessionToken::decode(b"c"), Err(TokenError::Length(1)));
    assert_eq!(SessionToken::decode(&[b'c', 2, 0]), Err(TokenError::Version(2)));
    assert_eq!(SessionToken::decode(&[b'c', 1, 0]), Err(TokenError::Length(3)));
    assert_eq!(
        SessionToken::decode(&[b'c', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        Err(TokenError::Length(11))
    );
}
