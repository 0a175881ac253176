//! Writes through the cache: order, outcomes, and what is left in the cache.

mod support;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use support::config;
use voussoir_cache::{Cache, Loaded, Outcome, Sink, SinkError, Write, WriteError, async_trait};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Takes,
    Refuses,
    TimesOut,
    Panics,
    Hangs,
}

/// A database that takes a while.
struct Database {
    rows: Mutex<Vec<(u64, Option<u64>)>>,
    mood: Mutex<Mood>,
}

struct Shared(Arc<Database>);

#[async_trait]
impl Sink<u64, u64> for Shared {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        let [write] = writes else { panic!("write-through has one write a call") };
        vec![self.take(write.key, write.value).await]
    }
}

impl Shared {
    async fn take(&self, key: u64, value: Option<u64>) -> Result<(), SinkError> {
        let mood = *self.0.mood.lock();
        // The first of two writes is the slower one.
        let slow = value == Some(1);
        tokio::time::sleep(Duration::from_millis(if slow { 20 } else { 1 })).await;
        match mood {
            Mood::Takes => {}
            Mood::Refuses => return Err(SinkError::not_applied("constraint")),
            Mood::TimesOut => return Err(SinkError::unknown("timeout")),
            Mood::Panics => panic!("the sink panics"),
            Mood::Hangs => std::future::pending().await,
        }
        self.0.rows.lock().push((key, value));
        Ok(())
    }
}

fn cache() -> (Cache<u64, u64>, Arc<Database>) {
    let database = Database { rows: Mutex::default(), mood: Mutex::new(Mood::Takes) };
    let database = Arc::new(database);
    let sink = Shared(Arc::clone(&database));
    (Cache::builder().config(config(|_| {})).sink(sink).build().unwrap(), database)
}

#[tokio::test(start_paused = true)]
async fn a_write_is_at_the_sink_before_it_is_in_the_cache() {
    let (cache, database) = cache();
    let writing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.write(1, 1).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(cache.get(&1), None);
    writing.await.unwrap().unwrap();
    assert_eq!((cache.get(&1), database.rows.lock().clone()), (Some(1), vec![(1, Some(1))]));
    cache.write_around(1, 2).await.unwrap();
    assert_eq!(cache.get(&1), None, "the next reader loads it");
    cache.delete(1).await.unwrap();
    assert_eq!(database.rows.lock().last(), Some(&(1, None)));
}

/// Two writes of one key: the cache ends with the one that the sink ends with.
#[tokio::test(start_paused = true)]
async fn writes_of_one_key_reach_sink_and_cache_in_one_order() {
    let (cache, database) = cache();
    let first = tokio::spawn({
        let cache = cache.clone();
        async move { cache.write(1, 1).await }
    });
    tokio::task::yield_now().await;
    let second = cache.write(1, 2);
    let (first, second) = tokio::join!(first, second);
    assert!(first.unwrap().is_ok() && second.is_ok());
    assert_eq!(database.rows.lock().clone(), [(1, Some(1)), (1, Some(2))]);
    assert_eq!(cache.get(&1), Some(2));
}

/// A row that is locked, and a database that takes any number of writes side by side.
#[tokio::test(start_paused = true)]
async fn writes_of_different_keys_do_not_wait_for_each_other() {
    let (cache, database) = cache();
    *database.mood.lock() = Mood::Hangs;
    let stuck = tokio::spawn({
        let cache = cache.clone();
        async move { cache.write(0, 2).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    *database.mood.lock() = Mood::Takes;
    let began = tokio::time::Instant::now();
    let mut writes = tokio::task::JoinSet::new();
    for key in 1..=5_000 {
        let cache = cache.clone();
        writes.spawn(async move { cache.write(key, 1).await });
    }
    while let Some(written) = writes.join_next().await {
        written.unwrap().unwrap();
    }
    assert_eq!(began.elapsed(), Duration::from_millis(20), "as long as one of them");
    assert!(!stuck.is_finished());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_drops_the_entry() {
    let (cache, database) = cache();
    for (mood, left) in [(Mood::Refuses, Some(5)), (Mood::TimesOut, None)] {
        cache.insert(1, 5);
        *database.mood.lock() = mood;
        let error = cache.write(1, 6).await.unwrap_err();
        assert_eq!(cache.get(&1), left, "{mood:?}");
        let certain = error.outcome() == Outcome::NotApplied;
        assert_eq!(certain, left.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_panics_is_an_unknown_outcome() {
    let (cache, database) = cache();
    cache.insert(1, 5);
    *database.mood.lock() = Mood::Panics;
    let error = cache.write(1, 6).await.unwrap_err();
    assert!(matches!(error, WriteError::Panicked), "{error}");
    assert_eq!((error.outcome(), cache.get(&1)), (Outcome::Unknown, None));
    *database.mood.lock() = Mood::Takes;
    cache.write(1, 7).await.unwrap();
    assert_eq!(cache.get(&1), Some(7), "the key's turn was given back");
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_hangs_is_an_unknown_outcome() {
    let (cache, database) = cache();
    cache.insert(1, 5);
    *database.mood.lock() = Mood::Hangs;
    let writing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.write(1, 6).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(cache.get(&1), Some(5), "not acknowledged");
    let error = writing.await.unwrap().unwrap_err();
    assert!(matches!(error, WriteError::TimedOut), "{error}");
    assert_eq!((error.outcome(), cache.get(&1)), (Outcome::Unknown, None));
    *database.mood.lock() = Mood::Takes;
    cache.write(1, 7).await.unwrap();
    assert_eq!(cache.get(&1), Some(7), "the key's turn was given back");
}

/// A handler is dropped when its client hangs up, and the database commits all the same: a reader
/// that has loaded the old row meanwhile must not leave it in the cache.
#[tokio::test(start_paused = true)]
async fn a_write_goes_on_without_its_caller() {
    let (cache, database) = cache();
    let writing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.write(1, 1).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.write(1, 9).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    writing.abort();
    waiting.abort();
    let old = |_| async { Ok(Loaded::value(5)) };
    assert_eq!(cache.get_or_load_with(&1, old).await.unwrap(), Some(5));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let rows = database.rows.lock().clone();
    assert_eq!(rows, [(1, Some(1))], "the one that waited for its turn has written nothing");
    assert_eq!(cache.get(&1), Some(1), "what the database has");
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_not_polled_holds_up_no_other() {
    let (cache, database) = cache();
    let mut held: Vec<_> = [1, 2].map(|value| Box::pin(cache.write(1, value))).into();
    for writer in &mut held {
        std::future::poll_fn(|cx| {
            assert!(writer.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
    }
    let written = tokio::time::timeout(Duration::from_secs(1), cache.write(1, 3)).await;
    written.expect("the turn comes").unwrap();
    assert_eq!(cache.get(&1), Some(3));
    for writer in held {
        writer.await.unwrap();
    }
    let rows = database.rows.lock().clone();
    assert_eq!(rows, [(1, Some(1)), (1, Some(2)), (1, Some(3))]);
    assert_eq!(cache.get(&1), Some(3));
}

/// A load that read the row before the write and ends after it.
#[tokio::test(start_paused = true)]
async fn a_slow_load_does_not_undo_a_write() {
    let (cache, _) = cache();
    let slow = tokio::spawn({
        let cache = cache.clone();
        async move {
            let load = |_| async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(Loaded::value(0))
            };
            cache.get_or_load_with(&1, load).await
        }
    });
    tokio::task::yield_now().await;
    cache.write(1, 2).await.unwrap();
    assert_eq!(slow.await.unwrap().unwrap(), Some(0));
    assert_eq!(cache.get(&1), Some(2));
}

#[tokio::test]
async fn a_cache_without_sink_or_source_says_so() {
    let cache: Cache<u64, u64> = Cache::builder().build().unwrap();
    assert!(matches!(cache.write(1, 1).await, Err(WriteError::NoSink)));
    let error = cache.get_or_load(&1).await.unwrap_err();
    assert!(!error.is_retryable(), "{error}");
}

#[tokio::test]
async fn a_weigher_that_panics_costs_the_entry_and_nothing_else() {
    let weigh = |key: &u64, _: &u64| if *key == 1 { panic!("the weigher panics") } else { 1 };
    let cache: Cache<u64, u64> = Cache::builder().weigher(weigh).build().unwrap();
    assert!(!cache.insert(1, 1));
    assert!(cache.insert(2, 2));
    let load = |key| async move { Ok(Loaded::value(key)) };
    assert_eq!(cache.get_or_load_with(&1, load).await.unwrap(), Some(1), "the answer is given");
    assert_eq!((cache.get(&1), cache.get(&2)), (None, Some(2)));
    assert_eq!(cache.stats().loads_under_way, 0);
}
