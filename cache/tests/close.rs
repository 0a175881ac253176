//! The orderly end of a cache: nothing is left behind that is not told, and its namespace can be
//! opened again at once.

mod support;

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use voussoir_cache::testing::MemoryLevel;
use voussoir_cache::{
    Bus, BusConfig, BusError, Cache, LevelConfig, LoadError, Loaded, LocalBus, Outcome, PlainCodec,
    Sink, SinkError, Subscription, Write, WriteBehind, WriteBehindConfig, WriteError, async_trait,
};
use voussoir_journal::{Config, Journal, MemoryFiles, Work};

const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(10);

type Numbers = Cache<u64, u64>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mood {
    #[default]
    Takes,
    Fails,
    Hangs,
    Rejects,
}

#[derive(Clone, Default)]
struct Table {
    rows: Arc<Mutex<HashMap<u64, u64>>>,
    mood: Arc<Mutex<Mood>>,
}

#[async_trait]
impl Sink<u64, u64> for Table {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        tokio::time::sleep(MS).await;
        let mood = *self.mood.lock();
        if mood == Mood::Hangs {
            std::future::pending::<()>().await;
        }
        let take = |write: &Write<u64, u64>| match mood {
            Mood::Fails => Err(SinkError::not_applied("down")),
            Mood::Rejects => Err(SinkError::rejected("broken")),
            Mood::Takes | Mood::Hangs => {
                self.rows.lock().insert(write.key, write.value.unwrap());
                Ok(())
            }
        };
        writes.iter().map(take).collect()
    }
}

fn open_journal(mut config: Config) -> Journal {
    config.segment_bytes = 1 << 20;
    config.max_bytes = 16 << 20;
    Journal::open_with(Arc::new(MemoryFiles::new()), config).unwrap()
}

/// Opens the namespace, which nobody may hold.
fn cache(journal: &Journal, table: &Table, change: impl FnOnce(&mut WriteBehindConfig)) -> Numbers {
    let mut config = WriteBehindConfig::default();
    (config.flush_after, config.seed) = (20 * MS, Some(1));
    (config.min_backoff, config.max_backoff) = (MS, 5 * MS);
    change(&mut config);
    let behind = WriteBehind::open(journal, "numbers", PlainCodec, config).unwrap();
    Cache::builder().write_behind(behind, table.clone()).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_brings_every_write_to_the_sink_and_gives_the_namespace_back() {
    let (journal, table) = (open_journal(Config::default()), Table::default());
    for round in 0..100 {
        let numbers = cache(&journal, &table, |_| {});
        let mut writers = JoinSet::new();
        for key in 0..20 {
            let numbers = numbers.clone();
            writers.spawn(async move { (key, numbers.write(key, round).await) });
        }
        // In some rounds the writers are still on their way to the journal.
        for _ in 0..round % 20 {
            writers.join_next().await.unwrap().unwrap().1.unwrap();
        }
        let closed = numbers.close(LONG).await;
        assert!(closed.is_complete(), "{closed:?}");
        let rows = table.rows.lock().clone();
        while let Some(written) = writers.join_next().await {
            match written.unwrap() {
                (key, Ok(())) => assert_eq!(rows.get(&key), Some(&round)),
                (key, Err(WriteError::Closed)) => assert_ne!(rows.get(&key), Some(&round)),
                (_, Err(error)) => panic!("{error}"),
            }
        }
    }
}

#[tokio::test]
async fn close_tells_what_a_sink_that_is_down_does_not_have() {
    let (journal, table) = (open_journal(Config::default()), Table::default());
    for mood in [Mood::Fails, Mood::Hangs] {
        let numbers = cache(&journal, &table, |_| {});
        *table.mood.lock() = mood;
        for key in 0..10 {
            numbers.write(key, 7).await.unwrap();
        }
        let closed = numbers.close(50 * MS).await;
        assert_eq!((closed.backlog, closed.keeps_namespace), (10, false), "{closed:?}");
        assert!(!closed.is_complete());
        assert!(table.rows.lock().is_empty());
        // The journal has them.
        *table.mood.lock() = Mood::Takes;
        let numbers = cache(&journal, &table, |_| {});
        assert_eq!((numbers.stats().backlog, numbers.get(&3)), (10, Some(7)));
        assert!(numbers.close(LONG).await.is_complete());
        assert_eq!(std::mem::take(&mut *table.rows.lock()).len(), 10);
    }
}

#[tokio::test]
async fn rejected_writes_are_told_and_kept() {
    let (journal, table) = (open_journal(Config::default()), Table::default());
    *table.mood.lock() = Mood::Rejects;
    let numbers = cache(&journal, &table, |_| {});
    numbers.write(1, 7).await.unwrap();
    let closed = numbers.close(LONG).await;
    assert!(closed.is_complete(), "the sink has said its word: {closed:?}");
    assert_eq!(closed.rejected_writes, 1);
    let error = numbers.retry_rejected(&1).await.unwrap_err();
    assert!(matches!(error, WriteError::Closed), "{error}");
    let numbers = cache(&journal, &table, |_| {});
    assert_eq!(numbers.rejected_writes().len(), 1);
}

/// One that waits for room in the backlog would otherwise wait for ever.
#[tokio::test]
async fn a_write_that_waits_for_room_is_rejected() {
    let (journal, table) = (open_journal(Config::default()), Table::default());
    *table.mood.lock() = Mood::Fails;
    let numbers = cache(&journal, &table, |config| config.max_keys = 1);
    numbers.write(1, 1).await.unwrap();
    let waiting = {
        let numbers = numbers.clone();
        tokio::spawn(async move { numbers.write(2, 2).await })
    };
    tokio::time::sleep(20 * MS).await;
    assert!(!waiting.is_finished());
    let _ = numbers.close(20 * MS).await;
    let answer = tokio::time::timeout(LONG, waiting).await.expect("it does not wait for ever");
    let error = answer.unwrap().unwrap_err();
    assert!(matches!(error, WriteError::Closed), "{error}");
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, false));
}

#[tokio::test]
async fn a_closed_cache_stores_and_loads_nothing() {
    let numbers: Numbers = Cache::builder().sink(Table::default()).build().unwrap();
    numbers.insert(1, 1);
    let load = |_| async { Ok(Loaded::value(2)) };
    let slow = {
        let numbers = numbers.clone();
        let slow = |_| async {
            tokio::time::sleep(20 * MS).await;
            Ok(Loaded::value(3))
        };
        tokio::spawn(async move { numbers.get_or_load_with(&3, slow).await })
    };
    tokio::task::yield_now().await;
    let closed = numbers.close(LONG).await;
    assert!(closed.is_complete(), "{closed:?}");
    assert_eq!(slow.await.unwrap().unwrap(), Some(3), "its reader came before");
    assert!(!numbers.insert(2, 2));
    assert_eq!([1, 2, 3].map(|key| numbers.get(&key)), [None; 3]);
    let error = numbers.get_or_load_with(&1, load).await.unwrap_err();
    assert!(matches!(error, LoadError::Closed) && !error.is_retryable(), "{error}");
    for written in [numbers.write(1, 1).await, numbers.delete(1).await] {
        assert!(matches!(written, Err(WriteError::Closed)), "{written:?}");
    }
    assert_eq!((numbers.stats().entries, numbers.stats().loads_under_way), (0, 0));
    // None of these waits for what does not come.
    numbers.flush().await;
    numbers.settle().await;
    assert_eq!(numbers.close(LONG).await, closed);
}

/// The entry is older than the write in the backlog, which covers it until the cache is closed.
#[tokio::test]
async fn a_closed_cache_does_not_uncover_an_older_entry() {
    let (journal, table) = (open_journal(Config::default()), Table::default());
    let numbers = cache(&journal, &table, |_| {});
    numbers.write(1, 1).await.unwrap();
    numbers.flush().await;
    assert_eq!(numbers.get(&1), Some(1), "from the table of entries");
    *table.mood.lock() = Mood::Fails;
    numbers.write(1, 2).await.unwrap();
    let reader = {
        let numbers = numbers.clone();
        // Ends: when the cache is closed.
        std::thread::spawn(move || {
            while let Some(value) = numbers.get(&1) {
                assert_eq!(value, 2);
            }
        })
    };
    assert_eq!(numbers.close(20 * MS).await.backlog, 1);
    reader.join().unwrap();
    assert_eq!(numbers.get(&1), None);
    numbers.flush().await;
}

/// What is on its way to the journal has the namespace until the journal has answered.
#[tokio::test]
async fn a_journal_that_does_not_answer_keeps_the_namespace() {
    let (journal, table) = (open_journal(Config::manual()), Table::default());
    let numbers = cache(&journal, &table, |_| {});
    let write = {
        let numbers = numbers.clone();
        tokio::spawn(async move { numbers.write(1, 7).await })
    };
    tokio::task::yield_now().await;
    let closed = numbers.close(10 * MS).await;
    assert_eq!((closed.unacknowledged, closed.keeps_namespace), (1, true), "{closed:?}");
    assert!(
        WriteBehind::<u64, u64>::open(
            &journal,
            "numbers",
            PlainCodec,
            WriteBehindConfig::default()
        )
        .is_err()
    );
    while journal.work(0) != Work::Idle {}
    write.await.unwrap().unwrap();
    let numbers = cache(&journal, &table, |_| {});
    assert_eq!(numbers.get(&1), Some(7));
}

#[tokio::test]
async fn a_write_on_its_way_to_the_journal_is_flushed_before_the_end() {
    let (journal, table) = (open_journal(Config::manual()), Table::default());
    let numbers = cache(&journal, &table, |_| {});
    let write = {
        let numbers = numbers.clone();
        tokio::spawn(async move { numbers.write(1, 7).await })
    };
    tokio::task::yield_now().await;
    let close = tokio::spawn(async move { numbers.close(LONG).await });
    tokio::time::sleep(20 * MS).await;
    assert!(!write.is_finished() && !close.is_finished());
    // Ends: the journal works.
    while !close.is_finished() {
        journal.work(0);
        tokio::time::sleep(MS).await;
    }
    let closed = close.await.unwrap();
    assert!(closed.is_complete(), "{closed:?}");
    write.await.unwrap().unwrap();
    assert_eq!(table.rows.lock().get(&1), Some(&7));
}

/// Dropped wherever it waits, and called again.
#[tokio::test]
async fn a_close_that_was_dropped_can_be_called_again() {
    let (journal, table) = (open_journal(Config::default()), Table::default());
    let mut polls_at_most = 0;
    for polls in 0..12 {
        let numbers = cache(&journal, &table, |_| {});
        numbers.write(1, polls).await.unwrap();
        {
            let mut close = pin!(numbers.close(LONG));
            let mut cx = Context::from_waker(Waker::noop());
            for poll in 0..polls {
                if close.as_mut().poll(&mut cx).is_ready() {
                    break;
                }
                polls_at_most = polls_at_most.max(poll + 1);
                tokio::time::sleep(4 * MS).await;
            }
        }
        if polls > 0 {
            assert!(matches!(numbers.write(2, 1).await, Err(WriteError::Closed)));
        }
        let closed = numbers.close(LONG).await;
        assert!(closed.is_complete(), "{closed:?}");
        assert_eq!(table.rows.lock().get(&1), Some(&polls));
    }
    assert!(polls_at_most >= 2, "dropped during the flush, and during the end: {polls_at_most}");
}

/// A bus that takes nothing.
#[derive(Clone, Default)]
struct Mute(LocalBus, Arc<AtomicBool>);

#[async_trait]
impl Bus for Mute {
    async fn publish(&self, messages: &[Vec<u8>]) -> Result<(), BusError> {
        if self.1.load(Ordering::SeqCst) {
            return Err(BusError("mute".into()));
        }
        self.0.publish(messages).await
    }

    async fn subscribe(&self) -> Result<Box<dyn Subscription>, BusError> {
        self.0.subscribe().await
    }
}

#[tokio::test(start_paused = true)]
async fn close_tells_what_other_processes_do_not_have() {
    let (bus, level) = (Mute::default(), MemoryLevel::default());
    for is_mute in [false, true] {
        let numbers: Numbers = Cache::builder()
            .codec(PlainCodec)
            .bus(bus.clone(), BusConfig::default())
            .second_level(level.clone(), LevelConfig::default())
            .build()
            .unwrap();
        tokio::time::sleep(100 * MS).await;
        bus.1.store(is_mute, Ordering::SeqCst);
        numbers.invalidate(&1);
        numbers.invalidate_tag("rows");
        let closed = numbers.close(LONG).await;
        assert_eq!(closed.unsent, if is_mute { 2 } else { 0 }, "{closed:?}");
        // What comes later is not kept for nobody.
        numbers.invalidate(&2);
        assert_eq!(numbers.stats().unsent, closed.unsent);
        numbers.settle().await;
    }
}
