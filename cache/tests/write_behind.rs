//! Write-behind while the process lives: coalescing, order, a sink that fails, rejected writes,
//! back-pressure, and what readers see.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use voussoir_cache::{
    Cache, Loaded, OnFull, Outcome, PlainCodec, Sink, SinkError, Source, SourceError, Write,
    WriteBehind, WriteBehindConfig, WriteError, async_trait,
};
use voussoir_journal::{Config, Journal, MemoryFiles};

type Numbers = Cache<u64, u64>;
/// The keys and values of one call of the sink.
type Call = Vec<(u64, Option<u64>)>;

/// A table that both the source and the sink use.
#[derive(Default)]
struct Table {
    rows: Mutex<HashMap<u64, u64>>,
    /// Every call of the sink.
    calls: Mutex<Vec<Call>>,
    is_down: AtomicBool,
    hangs: AtomicBool,
    /// Keys that break a constraint.
    refused: Mutex<Vec<u64>>,
    /// Keys that make the whole call fail without saying so.
    poison: Mutex<Vec<u64>>,
}

#[derive(Clone)]
struct Shared(Arc<Table>);

#[async_trait]
impl Sink<u64, u64> for Shared {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        let table = &self.0;
        table.calls.lock().push(writes.iter().map(|write| (write.key, write.value)).collect());
        tokio::time::sleep(Duration::from_millis(1)).await;
        if table.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let poison = table.poison.lock().clone();
        let is_poisoned = writes.iter().any(|write| poison.contains(&write.key));
        if is_poisoned || table.is_down.load(Ordering::SeqCst) {
            return writes.iter().map(|_| Err(SinkError::not_applied("down"))).collect();
        }
        let refused = table.refused.lock().clone();
        let mut rows = table.rows.lock();
        let mut take = |write: &Write<u64, u64>| {
            if refused.contains(&write.key) {
                return Err(SinkError::rejected("constraint"));
            }
            match write.value {
                Some(value) => rows.insert(write.key, value),
                None => rows.remove(&write.key),
            };
            Ok(())
        };
        writes.iter().map(&mut take).collect()
    }
}

#[async_trait]
impl Source<u64, u64> for Shared {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
        let found = |key: &u64| Ok(Loaded::from(self.0.rows.lock().get(key).copied()));
        keys.iter().map(found).collect()
    }
}

fn journal(files: &Arc<MemoryFiles>) -> Journal {
    let mut options = Config::default();
    options.segment_bytes = 1 << 20;
    options.max_bytes = 64 << 20;
    Journal::open_with(Arc::<MemoryFiles>::clone(files), options).unwrap()
}

fn config(change: impl FnOnce(&mut WriteBehindConfig)) -> WriteBehindConfig {
    let mut config = WriteBehindConfig::default();
    config.seed = Some(1);
    change(&mut config);
    config
}

fn cache(journal: &Journal, table: &Arc<Table>, config: WriteBehindConfig) -> Numbers {
    let behind = WriteBehind::open(journal, "numbers", PlainCodec, config).unwrap();
    let shared = Shared(Arc::clone(table));
    Cache::builder().source(shared.clone()).write_behind(behind, shared).build().unwrap()
}

fn fresh(change: impl FnOnce(&mut WriteBehindConfig)) -> (Numbers, Arc<Table>) {
    let table = Arc::new(Table::default());
    // Without threads: a paused clock jumps ahead while the runtime waits for another thread.
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), Config::manual()).unwrap();
    let cache = cache(&journal, &table, config(change));
    tokio::spawn(async move {
        // Ends: with the test's runtime.
        for now in 0.. {
            journal.work(now * 1_000_000);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    (cache, table)
}

#[tokio::test(start_paused = true)]
async fn many_writes_of_one_key_are_one_write_of_the_sink() {
    let (cache, table) = fresh(|_| {});
    for value in 0..100 {
        cache.write(1, value).await.unwrap();
        assert_eq!(cache.get(&1), Some(value), "what was acknowledged is read");
    }
    cache.flush().await;
    assert_eq!(table.rows.lock().get(&1), Some(&99));
    let calls = table.calls.lock().len();
    assert!(calls < 50, "{calls} calls for 100 writes of one key");
    assert_eq!((cache.stats().backlog, cache.stats().backlog_bytes), (0, 0));
}

/// A value that is acknowledged while an older one of its key is being flushed is flushed after it.
#[tokio::test(start_paused = true)]
async fn a_flush_removes_only_the_value_that_it_wrote() {
    let (cache, table) = fresh(|config| config.flush_after = Duration::ZERO);
    cache.write(1, 1).await.unwrap();
    // Ends: the flusher takes the value.
    while table.calls.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    cache.write(1, 2).await.unwrap();
    assert_eq!(cache.get(&1), Some(2));
    cache.flush().await;
    assert_eq!(table.rows.lock().get(&1), Some(&2));
    let expected = vec![vec![(1, Some(1))], vec![(1, Some(2))]];
    assert_eq!(*table.calls.lock(), expected);
}

#[tokio::test(start_paused = true)]
async fn the_backlog_answers_readers_until_the_sink_has_the_value() {
    let (cache, table) = fresh(|_| {});
    table.rows.lock().insert(1, 10);
    table.is_down.store(true, Ordering::SeqCst);
    cache.write_around(1, 11).await.unwrap();
    cache.invalidate(&1);
    cache.clear();
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(11), "not the old row");
    cache.delete(1).await.unwrap();
    assert_eq!(cache.get_or_load(&1).await.unwrap(), None, "not the old row");
    table.is_down.store(false, Ordering::SeqCst);
    cache.flush().await;
    assert_eq!(cache.get_or_load(&1).await.unwrap(), None);
    assert_eq!(table.rows.lock().get(&1), None);
}

/// Readers of keys whose values the sink has do not meet at the lock of the backlog, which a writer
/// may hold, or a flush of many keys; they find what they find.
#[tokio::test(start_paused = true)]
async fn readers_of_clean_keys_find_what_they_find_beside_a_large_backlog() {
    let (cache, table) = fresh(|_| {});
    for key in 0..200 {
        cache.write(key, key).await.unwrap();
    }
    cache.flush().await;
    table.is_down.store(true, Ordering::SeqCst);
    for round in 1..3 {
        for key in 100..200 {
            cache.write(key, 1000 * round + key).await.unwrap();
        }
        for key in 0..200 {
            let expected = if key < 100 { key } else { 1000 * round + key };
            assert_eq!(cache.get(&key), Some(expected));
        }
    }
    table.is_down.store(false, Ordering::SeqCst);
    cache.flush().await;
    assert_eq!((cache.stats().backlog, cache.get(&150)), (0, Some(2150)));
    // The counters have gone back to zero with the backlog.
    cache.invalidate(&150);
    table.rows.lock().insert(150, 7);
    assert_eq!(cache.get_or_load(&150).await.unwrap(), Some(7));
}

/// A load that read the row before the write, and ends after the write was flushed.
#[tokio::test(start_paused = true)]
async fn a_slow_load_does_not_undo_a_flushed_write() {
    let (cache, _) = fresh(|_| {});
    let slow = tokio::spawn({
        let cache = cache.clone();
        let load = |_| async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Ok(Loaded::value(0))
        };
        async move { cache.get_or_load_with(&1, load).await }
    });
    tokio::task::yield_now().await;
    cache.write(1, 2).await.unwrap();
    cache.flush().await;
    assert_eq!(slow.await.unwrap().unwrap(), Some(0), "it asked before");
    assert_eq!(cache.get(&1), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_down_for_a_minute_loses_nothing() {
    let (cache, table) = fresh(|config| config.max_keys = 50);
    table.is_down.store(true, Ordering::SeqCst);
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut newest = HashMap::new();
    let mut value = 0;
    while tokio::time::Instant::now() < until {
        let key = value % 50;
        cache.write(key, value).await.unwrap();
        newest.insert(key, value);
        assert_eq!(cache.get(&key), Some(value));
        assert!(cache.stats().backlog <= 50);
        value += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(value > 1000, "{value}");
    let calls = table.calls.lock().len();
    assert!(calls < 40, "{calls} calls in a minute: a sink that is down is left alone");
    table.is_down.store(false, Ordering::SeqCst);
    cache.flush().await;
    assert_eq!(*table.rows.lock(), newest);
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_makes_writers_wait() {
    let (cache, table) = fresh(|config| config.max_keys = 2);
    table.is_down.store(true, Ordering::SeqCst);
    cache.write(1, 1).await.unwrap();
    cache.write(2, 2).await.unwrap();
    cache.write(2, 3).await.unwrap();
    let third = cache.write(3, 3);
    let waited = tokio::time::timeout(Duration::from_secs(5), third).await;
    assert!(waited.is_err(), "there was no room");
    assert_eq!(cache.get(&3), None, "nothing has happened");
    let writer = tokio::spawn({
        let cache = cache.clone();
        async move { cache.write(3, 4).await }
    });
    table.is_down.store(false, Ordering::SeqCst);
    writer.await.unwrap().unwrap();
    cache.flush().await;
    assert_eq!(*table.rows.lock(), HashMap::from([(1, 1), (2, 3), (3, 4)]));
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_fails_writers_where_that_was_asked_for() {
    let (cache, table) = fresh(|config| (config.max_keys, config.on_full) = (1, OnFull::Fail));
    table.is_down.store(true, Ordering::SeqCst);
    cache.write(1, 1).await.unwrap();
    let error = cache.write(2, 2).await.unwrap_err();
    assert!(matches!(error, WriteError::Full), "{error}");
    assert!(error.is_retryable() && error.outcome() == Outcome::NotApplied);
    cache.write(1, 3).await.unwrap();
    table.is_down.store(false, Ordering::SeqCst);
    cache.flush().await;
    cache.write(2, 2).await.unwrap();
    cache.flush().await;
    assert_eq!(*table.rows.lock(), HashMap::from([(1, 3), (2, 2)]));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_hangs_is_called_again() {
    let (cache, table) = fresh(|_| {});
    table.hangs.store(true, Ordering::SeqCst);
    cache.write(1, 1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    table.hangs.store(false, Ordering::SeqCst);
    cache.flush().await;
    assert_eq!(table.rows.lock().get(&1), Some(&1));
    assert_eq!(table.calls.lock().len(), 2);
}

/// One write makes every call fail that it is part of, and the sink does not say which.
#[tokio::test(start_paused = true)]
async fn a_write_that_fails_its_whole_call_does_not_hold_up_the_others() {
    let (cache, table) = fresh(|_| {});
    table.poison.lock().push(7);
    for key in 0..40 {
        cache.write(key, key).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(table.rows.lock().len(), 39);
    assert_eq!((cache.stats().backlog, cache.get(&7)), (1, Some(7)));
    table.poison.lock().clear();
    cache.flush().await;
    assert_eq!(table.rows.lock().get(&7), Some(&7));
}

/// A table that knows the sequence of each row. Calls hang as told, and are carried out late: by a
/// task of their own, as a server does it.
#[derive(Default)]
struct Late {
    /// Sequence and value of each key.
    rows: Mutex<HashMap<u64, (u64, Option<u64>)>>,
    takes: Mutex<Duration>,
    refused: Mutex<u32>,
}

#[derive(Clone, Default)]
struct LateSink(Arc<Late>);

#[async_trait]
impl Sink<u64, u64> for LateSink {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        let (late, own) = (Arc::clone(&self.0), writes.to_vec());
        let takes = *late.takes.lock();
        let server = tokio::spawn(async move {
            tokio::time::sleep(takes).await;
            let mut rows = late.rows.lock();
            for write in own {
                let sequence = write.sequence.unwrap();
                let row = rows.entry(write.key).or_insert((sequence, write.value));
                if row.0 <= sequence {
                    *row = (sequence, write.value);
                } else {
                    *late.refused.lock() += 1;
                }
            }
        });
        server.await.unwrap();
        writes.iter().map(|_| Ok(())).collect()
    }
}

/// The call of an older value was dropped at its time limit, or with its process, and is carried
/// out after that of the newer one.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_carried_out_late_is_refused_by_its_sequence() {
    let files = Arc::new(MemoryFiles::new());
    let sink = LateSink::default();
    let mut refused = 0;
    for process in 1..4_u64 {
        let journal = Journal::open_with(Arc::<MemoryFiles>::clone(&files), Config::manual());
        let journal = journal.unwrap();
        let working = tokio::spawn({
            let journal = journal.clone();
            async move {
                // Ends: when it is aborted.
                for now in 0.. {
                    journal.work(now * 10_000_000);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
        let behind = WriteBehind::open(&journal, "numbers", PlainCodec, config(|_| {})).unwrap();
        let built = Cache::builder().write_behind(behind, sink.clone());
        let cache: Numbers = built.build().unwrap();
        // What the process before has begun is carried out after this.
        *sink.0.takes.lock() = Duration::ZERO;
        cache.write(1, 10 * process).await.unwrap();
        cache.flush().await;
        tokio::time::sleep(Duration::from_secs(300)).await;
        refused += u32::from(process > 1);
        assert_eq!(*sink.0.refused.lock(), refused, "process {process}");
        assert_eq!(sink.0.rows.lock()[&1].1, Some(10 * process));
        // One that is dropped at its time limit, and is carried out after the next one.
        *sink.0.takes.lock() = Duration::from_secs(100);
        cache.write(1, 10 * process + 1).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        *sink.0.takes.lock() = Duration::ZERO;
        cache.write(1, 10 * process + 2).await.unwrap();
        cache.flush().await;
        tokio::time::sleep(Duration::from_secs(100)).await;
        refused += 1;
        assert_eq!(*sink.0.refused.lock(), refused, "process {process}");
        assert_eq!(sink.0.rows.lock()[&1].1, Some(10 * process + 2));
        // One that is under way when the process ends.
        *sink.0.takes.lock() = Duration::from_secs(200);
        cache.write(1, 10 * process + 3).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let closed = cache.close(Duration::from_secs(1)).await;
        assert_eq!((closed.backlog, closed.keeps_namespace), (1, false));
        working.abort();
        let _ = working.await;
        journal.close().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_writes_pin_nothing_and_survive() {
    let files = Arc::new(MemoryFiles::new());
    let table = Arc::new(Table::default());
    table.refused.lock().extend([1, 2, 3]);
    {
        let journal = journal(&files);
        let cache = cache(&journal, &table, config(|_| {}));
        for key in 1..=4 {
            cache.write(key, key * 10).await.unwrap();
        }
        cache.flush().await;
        assert_eq!(cache.rejected_writes().len(), 3);
        assert_eq!(cache.stats().backlog, 0);
        assert_eq!(cache.get_or_load(&1).await.unwrap(), None, "what the sink has");
        drop(cache);
        journal.close().unwrap();
    }
    let journal = journal(&files);
    let cache = cache(&journal, &table, config(|_| {}));
    let mut rejected = cache.rejected_writes();
    rejected.sort_by_key(|write| write.key);
    let seen: Vec<_> = rejected.iter().map(|write| (write.key, write.value)).collect();
    assert_eq!(seen, [(1, Some(10)), (2, Some(20)), (3, Some(30))]);
    assert_eq!(rejected[0].reason, "constraint");
    table.refused.lock().clear();
    assert!(cache.discard_rejected(&2).await.unwrap());
    assert!(cache.retry_rejected(&1).await.unwrap());
    // A newer value has come: the rejected one must not be written over it.
    cache.write(3, 31).await.unwrap();
    assert!(!cache.retry_rejected(&3).await.unwrap());
    cache.flush().await;
    assert!(!cache.retry_rejected(&3).await.unwrap(), "the newer value settles it");
    assert!(cache.rejected_writes().is_empty());
    assert_eq!(*table.rows.lock(), HashMap::from([(1, 10), (3, 31), (4, 40)]));
}

/// One key that cannot be flushed must not keep the records of all others in the journal.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_stuck_does_not_pin_the_journal() {
    let journal = journal(&Arc::default());
    let table = Arc::new(Table::default());
    table.poison.lock().push(7);
    let cache = cache(&journal, &table, config(|config| config.max_batch = 1));
    cache.write(7, 7).await.unwrap();
    let records = || {
        let bounds = journal.log("numbers", 0).unwrap().bounds();
        bounds.end - bounds.start
    };
    let mut most = 0;
    for value in 0..30_000 {
        cache.write(1, value).await.unwrap();
        most = most.max(records());
    }
    assert!(most < 7_000, "{most} records for two keys");
    table.poison.lock().clear();
    cache.flush().await;
    assert_eq!(*table.rows.lock(), HashMap::from([(1, 29_999), (7, 7)]));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_at_the_end_is_read_back_before_the_first_read() {
    let files = Arc::new(MemoryFiles::new());
    let table = Arc::new(Table::default());
    table.rows.lock().insert(1, 1);
    table.is_down.store(true, Ordering::SeqCst);
    {
        let journal = journal(&files);
        let cache = cache(&journal, &table, config(|_| {}));
        cache.write(1, 2).await.unwrap();
        cache.write(1, 3).await.unwrap();
        cache.delete(2).await.unwrap();
        drop(cache);
        journal.close().unwrap();
    }
    let journal = journal(&files);
    let cache = cache(&journal, &table, config(|_| {}));
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(3), "not the old row");
    table.is_down.store(false, Ordering::SeqCst);
    cache.flush().await;
    assert_eq!(*table.rows.lock(), HashMap::from([(1, 3)]));
    assert_eq!(table.calls.lock().last().unwrap().len(), 2);
}

#[tokio::test]
async fn in_memory_works_the_same_until_the_process_ends() {
    let table = Arc::new(Table::default());
    let behind = WriteBehind::in_memory(config(|_| {}), |_, _| 16).unwrap();
    let shared = Shared(Arc::clone(&table));
    let cache: Numbers = Cache::builder().write_behind(behind, shared).build().unwrap();
    cache.write(1, 5).await.unwrap();
    assert_eq!(cache.get(&1), Some(5));
    cache.flush().await;
    assert_eq!(table.rows.lock().get(&1), Some(&5));
}

/// In memory too: values are counted, not only keys.
#[tokio::test(start_paused = true)]
async fn in_memory_the_backlog_is_bounded_in_bytes() {
    let table = Arc::new(Table::default());
    table.is_down.store(true, Ordering::SeqCst);
    let weigh = |_: &u64, value: Option<&u64>| 8 + value.copied().unwrap_or(0);
    let behind = WriteBehind::in_memory(config(|config| config.max_bytes = 100), weigh).unwrap();
    let shared = Shared(Arc::clone(&table));
    let cache: Numbers = Cache::builder().write_behind(behind, shared).build().unwrap();
    cache.write(1, 40).await.unwrap();
    cache.write(2, 40).await.unwrap();
    assert_eq!(cache.stats().backlog_bytes, 96);
    let third = tokio::time::timeout(Duration::from_secs(5), cache.write(3, 1)).await;
    assert!(third.is_err(), "there was no room");
    table.is_down.store(false, Ordering::SeqCst);
    cache.write(3, 1000).await.unwrap();
    cache.flush().await;
    assert_eq!(*table.rows.lock(), HashMap::from([(1, 40), (2, 40), (3, 1000)]));
    assert_eq!(cache.stats().backlog_bytes, 0);
}

#[test]
fn a_cache_with_write_behind_needs_a_runtime() {
    let behind = WriteBehind::<u64, u64>::in_memory(config(|_| {}), |_, _| 16).unwrap();
    let shared = Shared(Arc::new(Table::default()));
    let error = Cache::builder().write_behind(behind, shared).build().unwrap_err();
    assert_eq!(error.field, "write_behind");
}

/// A record of another version, and a value that the codec does not know, are errors: no write is
/// dropped silently.
#[tokio::test]
async fn what_cannot_be_read_back_is_an_error() {
    for (record, message) in [
        (&[2_u8, 0, 0, 0, 0, 0][..], "record version 2"),
        (&[1, 9, 0, 0, 0, 0], "not a key"),
        (&[1, 0, 255, 255, 255, 255, 1], "too short"),
        (&[1], "too short"),
        (&[1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1], "not a value"),
        (&[1, 9, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1], "unknown kind 9"),
    ] {
        let journal = journal(&Arc::default());
        let log = journal.log("numbers", 0).unwrap();
        journal.commit_blocking(voussoir_journal::Commit::new().append(&log, [record])).unwrap();
        let config = config(|_| {});
        let opened = WriteBehind::<u64, u64>::open(&journal, "numbers", PlainCodec, config);
        let error = opened.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// The bytes in the journal are part of the format.
#[tokio::test(start_paused = true)]
async fn records_have_the_bytes_of_version_1() {
    let journal = journal(&Arc::default());
    let table = Arc::new(Table::default());
    table.is_down.store(true, Ordering::SeqCst);
    let cache = cache(&journal, &table, config(|_| {}));
    cache.write(1, 2).await.unwrap();
    cache.delete(3).await.unwrap();
    let records = journal.log("numbers", 0).unwrap().read_range(0..2, 1 << 20).unwrap();
    let written: &[u8] = &[1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
    let deleted: &[u8] = &[1, 1, 8, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(records, [written, deleted]);
}
