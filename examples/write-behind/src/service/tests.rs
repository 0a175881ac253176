//! The service over a table in memory: reports that are lost, sent twice and interrupted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use voussoir_cache::{Loaded, SinkError, SourceError, Write, async_trait};

use super::*;

/// A table in memory. Clones share it.
#[derive(Clone, Default)]
struct Rows(Arc<Table>);

#[derive(Default)]
struct Table {
    counts: parking_lot::Mutex<HashMap<Key, Count>>,
    is_down: AtomicBool,
    is_read_only: AtomicBool,
}

impl Rows {
    fn set_down(&self, down: bool) {
        self.0.is_down.store(down, Ordering::SeqCst);
    }

    fn is_down(&self) -> bool {
        self.0.is_down.load(Ordering::SeqCst)
    }

    fn views(&self) -> HashMap<Key, u64> {
        self.0.counts.lock().iter().map(|(key, count)| (*key, count.views)).collect()
    }
}

#[async_trait]
impl Sink<Key, Count> for Rows {
    async fn write(&self, writes: &[Write<Key, Count>]) -> Vec<Result<(), SinkError>> {
        let write = |write: &Write<Key, Count>| {
            if self.is_down() || self.0.is_read_only.load(Ordering::SeqCst) {
                return Err(SinkError::not_applied("down"));
            }
            self.0.counts.lock().insert(write.key, write.value.unwrap());
            Ok(())
        };
        writes.iter().map(write).collect()
    }
}

#[async_trait]
impl Source<Key, Count> for Rows {
    async fn load(&self, keys: &[Key]) -> Vec<Result<Loaded<Count>, SourceError>> {
        // Others run between the question and the answer.
        tokio::task::yield_now().await;
        let load = |key: &Key| {
            if self.is_down() {
                return Err(SourceError::new("down"));
            }
            Ok(Loaded::from(self.0.counts.lock().get(key).copied()))
        };
        keys.iter().map(load).collect()
    }
}

fn config(max_backlog: usize) -> Config {
    let flush_after = Duration::from_millis(1);
    Config { max_backlog, flush_after, max_journal_bytes: 64 << 20 }
}

fn open(folder: &Path, rows: &Rows, max_backlog: usize) -> Service {
    let config = config(max_backlog);
    let journal = open_journal(folder, &config).unwrap();
    Service::open(&journal, &config, rows.clone(), rows.clone()).unwrap()
}

const KEY: Key = Key { page: 7, edge: 1 };

fn report(sequence: u64, views: u64) -> Report {
    Report { sequence, views }
}

#[tokio::test]
async fn a_report_that_is_sent_again_is_counted_once() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), Rows::default());
    let service = open(folder.path(), &rows, 100);
    for _ in 0..3 {
        let counted = service.report(KEY, report(1, 5)).await.unwrap();
        assert_eq!(counted, Count { views: 5, sequence: 1 });
    }
    assert_eq!(service.report(KEY, report(2, 1)).await.unwrap().views, 6);
    service.flush().await;
    assert_eq!(rows.views(), [(KEY, 6)].into());
}

#[tokio::test]
async fn a_report_out_of_sequence_is_not_counted() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), Rows::default());
    let service = open(folder.path(), &rows, 100);
    service.report(KEY, report(1, 5)).await.unwrap();
    service.report(KEY, report(2, 5)).await.unwrap();
    for (found, last) in [(1, 2), (4, 2), (0, 2), (u64::MAX, 2)] {
        let error = service.report(KEY, report(found, 5)).await.unwrap_err();
        let said = (found, last);
        assert!(
            matches!(error, ReportError::OutOfSequence { found, last } if (found, last) == said)
        );
        assert_eq!(error.outcome(), Outcome::NotApplied);
    }
    let other = Key { page: 8, edge: 1 };
    let error = service.report(other, report(0, 5)).await.unwrap_err();
    assert!(matches!(error, ReportError::OutOfSequence { found: 0, last: 0 }), "{error}");
    assert_eq!(service.report(KEY, report(2, 5)).await.unwrap().views, 10);
}

#[tokio::test]
async fn a_counter_never_exceeds_its_column() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), Rows::default());
    let full = Count { views: i64::MAX.cast_unsigned() - 1, sequence: 9 };
    rows.0.counts.lock().insert(KEY, full);
    let service = open(folder.path(), &rows, 100);
    let error = service.report(KEY, report(10, 2)).await.unwrap_err();
    assert!(matches!(error, ReportError::TooLarge), "{error}");
    assert_eq!(service.report(KEY, report(10, 1)).await.unwrap().views, i64::MAX.cast_unsigned());
}

/// Clients go away at random, so that the futures of their reports are dropped at any point, and
/// send the same report again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_clients_that_go_away_are_neither_lost_nor_doubled() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), Rows::default());
    let service = open(folder.path(), &rows, 8);
    let mut clients = tokio::task::JoinSet::new();
    for edge in 0..8 {
        let service = service.clone();
        clients.spawn(async move {
            let mut random = fastrand::Rng::with_seed(u64::from(edge));
            let (mut ledger, mut dropped) = (HashMap::new(), 0);
            for _ in 0..150 {
                let key = Key { page: random.u64(0..4), edge };
                let last: Count = ledger.get(&key).copied().unwrap_or_default();
                let wanted = Count { views: last.views + 3, sequence: last.sequence + 1 };
                let counted = loop {
                    let wait = Duration::from_micros(random.u64(1..2_000));
                    let counting = service.report(key, report(wanted.sequence, 3));
                    match tokio::time::timeout(wait, counting).await {
                        Ok(counted) => break counted.unwrap(),
                        Err(_) => dropped += 1,
                    }
                };
                assert_eq!(counted, wanted);
                ledger.insert(key, counted);
            }
            (ledger, dropped)
        });
    }
    let (mut ledger, mut dropped) = (HashMap::new(), 0);
    while let Some(client) = clients.join_next().await {
        let (counted, went_away) = client.unwrap();
        ledger.extend(counted);
        dropped += went_away;
    }
    assert!(dropped > 50, "only {dropped} reports were interrupted");
    service.flush().await;
    assert_eq!(*rows.0.counts.lock(), ledger);
}

#[tokio::test]
async fn counts_survive_a_process_whose_table_was_away() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), Rows::default());
    let service = open(folder.path(), &rows, 100);
    service.report(KEY, report(1, 5)).await.unwrap();
    service.flush().await;
    rows.set_down(true);
    assert_eq!(service.report(KEY, report(2, 5)).await.unwrap().views, 10);
    // A counter that is not in memory cannot be counted without the table.
    let cold = Key { page: 8, edge: 1 };
    let error = service.report(cold, report(1, 1)).await.unwrap_err();
    assert!(matches!(error, ReportError::Load(_)), "{error}");
    drop(service);
    // The journal is closed by the last of the tasks that use it.
    let again = loop {
        match open_journal(folder.path(), &config(100)) {
            Ok(journal) => {
                let open = Service::open(&journal, &config(100), rows.clone(), rows.clone());
                break open.unwrap();
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!(again.stats().backlog, 1);
    assert_eq!(again.report(KEY, report(2, 5)).await.unwrap().views, 10, "the same report again");
    assert_eq!(again.report(KEY, report(3, 1)).await.unwrap().views, 11);
    rows.set_down(false);
    again.flush().await;
    assert_eq!(rows.views(), [(KEY, 11)].into());
    assert_eq!(again.views(7, 4).await.unwrap(), 11);
}

/// A database that has become read-only, a full backlog, and more reports of other counters than
/// may be counted at once, which all wait.
#[tokio::test]
async fn reports_of_others_hold_up_none_of_the_counters_in_a_full_backlog() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), Rows::default());
    let service = open(folder.path(), &rows, 50);
    rows.0.is_read_only.store(true, Ordering::SeqCst);
    let own = |page| Key { page, edge: 0 };
    for page in 0..50 {
        service.report(own(page), report(1, 1)).await.unwrap();
    }
    let mut others = tokio::task::JoinSet::new();
    for page in 100..6_100 {
        let service = service.clone();
        others.spawn(async move { service.report(Key { page, edge: 1 }, report(1, 1)).await });
    }
    let counted = async {
        for page in 0..50 {
            // Ends: there is a slot as soon as one of the others was turned away.
            while let Err(error) = service.report(own(page), report(2, 1)).await {
                assert!(matches!(error, ReportError::Busy), "{error}");
                tokio::task::yield_now().await;
            }
        }
    };
    let counted = tokio::time::timeout(Duration::from_secs(60), counted).await;
    assert!(counted.is_ok(), "they wait for others");
    assert_eq!(service.stats().backlog, 50);
    others.abort_all();
    while others.join_next().await.is_some() {}
    // The attempts that were under way end by themselves.
    while service.0.slots.available_permits() < MAX_REPORTS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rows.0.is_read_only.store(false, Ordering::SeqCst);
    service.flush().await;
    assert_eq!(rows.views(), (0..50).map(|page| (own(page), 2)).collect());
}

#[tokio::test]
async fn reports_beyond_the_limit_are_rejected_and_slots_come_back() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), Rows::default());
    let service = open(folder.path(), &rows, 1);
    rows.set_down(true);
    rows.0.counts.lock().insert(KEY, Count::default());
    let slots = Arc::clone(&service.0.slots);
    let all = slots.try_acquire_many(MAX_REPORTS as u32).unwrap();
    let error = service.report(KEY, report(1, 5)).await.unwrap_err();
    assert!(matches!(error, ReportError::Busy), "{error}");
    drop(all);
    // The load fails: the table is down. The slot is given back all the same.
    assert!(service.report(KEY, report(1, 5)).await.is_err());
    assert_eq!(slots.available_permits(), MAX_REPORTS);
    rows.set_down(false);
    assert_eq!(service.report(KEY, report(1, 5)).await.unwrap().views, 5);
}
