//! What every store must do, on the stores that are here.
#![cfg(feature = "journal")]

use std::sync::Arc;
use std::task::Poll;

use voussoir_journal::{Commit, Config, Error, Journal, MemoryFiles};
use voussoir_txn::store::{JournalStore, MemoryStore, Record, RecordKind, SagaStore};
use voussoir_txn::{Bytes, Saga, Sagas, Step, StepError};

fn journal(files: &Arc<MemoryFiles>) -> Journal {
    let mut config = Config::default();
    config.segment_bytes = 1 << 20;
    let files: Arc<MemoryFiles> = Arc::clone(files);
    Journal::open_with(files, config).expect("a journal")
}

fn record(saga: &str, kind: RecordKind, events: &'static str) -> Record {
    Record::new(saga, kind, Bytes::from_static(events.as_bytes()))
}

async fn appended(store: &dyn SagaStore) {
    store
        .append(vec![record("a", RecordKind::More, "1"), record("b", RecordKind::More, "1")])
        .await
        .expect("an append");
    store.append(vec![record("a", RecordKind::More, "2")]).await.expect("an append");
    store.append(vec![record("a", RecordKind::Whole, "3")]).await.expect("an append");
    store.append(vec![record("a", RecordKind::More, "4")]).await.expect("an append");
    store.append(vec![record("b", RecordKind::Forgotten, "")]).await.expect("an append");
}

/// What is left of one saga after whole and forgotten records took effect.
async fn left(store: &dyn SagaStore, saga: &str) -> (u64, Vec<String>) {
    let opened = store.open().await.expect("it opens");
    let mut left = Vec::new();
    for record in opened.records.iter().filter(|record| &*record.saga == saga) {
        match record.kind {
            RecordKind::Whole | RecordKind::Forgotten => left.clear(),
            _ => {}
        }
        if record.kind != RecordKind::Forgotten {
            left.push(String::from_utf8(record.events.to_vec()).expect("text"));
        }
    }
    (opened.epoch, left)
}

#[tokio::test]
async fn stores_keep_what_is_needed_in_order() {
    let memory = MemoryStore::new();
    let files = Arc::new(MemoryFiles::new());
    let first = journal(&files);
    let on_journal = JournalStore::new(&first, "sagas").expect("two logs");
    for store in [&memory as &dyn SagaStore, &on_journal] {
        assert_eq!(store.open().await.expect("it opens").epoch, 1);
        appended(store).await;
    }
    drop(on_journal);
    first.close().expect("it closes");
    let second = journal(&files);
    let on_journal = JournalStore::new(&second, "sagas").expect("two logs");
    for store in [&memory as &dyn SagaStore, &on_journal] {
        assert_eq!(left(store, "a").await, (2, vec!["3".to_owned(), "4".to_owned()]));
        assert_eq!(left(store, "b").await, (3, Vec::new()));
    }
}

#[tokio::test]
async fn a_store_that_was_opened_again_is_replaced() {
    let old = MemoryStore::new();
    old.open().await.expect("it opens");
    old.append(vec![record("a", RecordKind::More, "1")]).await.expect("it is the newest");
    let new = old.clone();
    assert!(new.append(vec![record("a", RecordKind::More, "2")]).await.is_err(), "not open");
    new.open().await.expect("it opens");
    assert!(old.append(vec![record("a", RecordKind::More, "3")]).await.is_err(), "replaced");
    new.append(vec![record("a", RecordKind::More, "4")]).await.expect("it is the newest");
}

/// Two owners would run the same steps, or write between each other's records.
#[tokio::test]
async fn a_namespace_has_one_owner() {
    let files = Arc::new(MemoryFiles::new());
    let journal = journal(&files);
    let leased = |refused: Result<JournalStore, Error>| match refused {
        Err(Error::Leased { namespace }) => assert_eq!(namespace, "sagas"),
        other => panic!("{other:?}"),
    };
    let first = JournalStore::new(&journal, "sagas").expect("two logs");
    assert!(first.append(vec![record("a", RecordKind::More, "1")]).await.is_err(), "not open");
    leased(JournalStore::new(&journal, "sagas"));
    first.open().await.expect("it opens");
    leased(JournalStore::new(&journal, "sagas"));
    assert!(matches!(journal.lease("sagas"), Err(Error::Leased { .. })));
    first.append(vec![record("a", RecordKind::More, "1")]).await.expect("it goes on");
    drop(first);
    let other = journal.lease("sagas").expect("it is free");
    leased(JournalStore::new(&journal, "sagas"));
    drop(other);
    let second = JournalStore::new(&journal, "sagas").expect("it is free");
    assert_eq!(second.open().await.expect("it opens").records.len(), 1);
}

/// A process may hand a namespace over to itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_sagas_let_go_of_their_store() {
    let files = Arc::new(MemoryFiles::new());
    let journal = journal(&files);
    let saga = Saga::<u64>::define("one", 1);
    let act = |_, input: u64, ()| async move { Ok::<u64, StepError>(input) };
    let (saga, _) = saga.pivot(Step::new("pivot", (), act));
    let saga = saga.build().expect("a definition");
    let mut config = voussoir_txn::Config::default();
    // So that each saga forgets an older one behind its end.
    config.max_ended = 1;
    for round in 0..200 {
        let store = JournalStore::new(&journal, "sagas").expect("it was let go");
        let builder = Sagas::builder().register(&saga).config(config.clone());
        let sagas = builder.open(store).await.expect("sagas open");
        for number in 0..3 {
            let id = format!("{round}-{number}");
            let handle = sagas.start(&saga, &id, &number).await.expect("it starts");
            assert!(handle.end().await.expect("it ends").is_completed());
        }
        sagas.drain().await;
    }
}

/// The runtime ends while an append is under way: its records are there at the next opening, or
/// never.
#[test]
fn an_append_that_was_dropped_is_ahead_of_the_next_epoch() {
    let files = Arc::new(MemoryFiles::new());
    let journal = journal(&files);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        for appended in 0..50 {
            let store = JournalStore::new(&journal, "sagas").expect("two logs");
            let opened = store.open().await.expect("it opens");
            assert_eq!(opened.records.len(), appended, "records came late");
            let mut append = store.append(vec![record("a", RecordKind::More, "1")]);
            let polled = std::future::poll_fn(|cx| Poll::Ready(append.as_mut().poll(cx))).await;
            drop((polled, append));
        }
    });
}

/// Large appends to one log of the journal are overtaken by the epoch, which goes to another one.
#[tokio::test]
async fn large_appends_that_were_dropped_are_ahead_of_the_next_epoch() {
    let mut config = Config::manual();
    config.segment_bytes = 8 << 20;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).expect("a journal");
    // The journal works only while an opening waits for it.
    let open = async |store: &JournalStore| {
        let mut opening = store.open();
        loop {
            let polled = std::future::poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx))).await;
            if let Poll::Ready(opened) = polled {
                break opened.expect("it opens");
            }
            journal.work(0);
        }
    };
    let store = JournalStore::new(&journal, "sagas").expect("two logs");
    open(&store).await;
    for number in 0..6 {
        let events = Bytes::from(vec![number; 900 << 10]);
        let mut append = store.append(vec![Record::new("a", RecordKind::More, events)]);
        let polled = std::future::poll_fn(|cx| Poll::Ready(append.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
    }
    drop(store);
    let store = JournalStore::new(&journal, "sagas").expect("two logs");
    assert_eq!(open(&store).await.records.len(), 6, "records came late");
}

/// What one saga appends at once may be more than a batch of the journal.
#[tokio::test]
async fn an_append_takes_as_much_as_a_commit_of_the_journal() {
    for segment_bytes in [64 << 10, 1 << 20, 64 << 20] {
        let mut config = Config::default();
        config.segment_bytes = segment_bytes;
        config.max_bytes = 4 * segment_bytes;
        let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).expect("a journal");
        let store = JournalStore::new(&journal, "s".repeat(64).as_str()).expect("two logs");
        store.open().await.expect("it opens");
        let most = store.max_append_bytes();
        assert!(most as u64 > journal.max_commit_bytes() / 10 * 9, "{most}");
        for record_bytes in [most.min((1 << 20) - 300), most.min(600 << 10), most / 50, 100] {
            let (mut left, mut records) = (most, Vec::new());
            while left > 9 {
                let bytes = record_bytes.min(left - 9);
                left -= bytes + 9;
                let events = Bytes::from(vec![records.len() as u8; bytes]);
                let kind = if records.is_empty() { RecordKind::Whole } else { RecordKind::More };
                records.push(Record::new("a", kind, events));
            }
            store.append(records.clone()).await.expect("it fits");
            let opened = store.open().await.expect("it opens");
            let found = opened.records.iter().rev().take(records.len()).rev();
            assert!(found.eq(&records), "{segment_bytes} {record_bytes}");
        }
    }
}

#[tokio::test]
async fn records_of_unknown_versions_are_errors() {
    let files = Arc::new(MemoryFiles::new());
    let journal = journal(&files);
    let log = journal.log("sagas", 0).expect("a log");
    for (bytes, says) in [
        (&[2_u8, 0, 1, 0, b'a'][..], "format"),
        (&[1, 9, 1, 0, b'a'], "kind"),
        (&[1, 0, 9, 0, b'a'], "cut off"),
        (&[1, 0, 1, 0, 0xff], "no text"),
        (&[1, 0], "cut off"),
    ] {
        let end = log.end();
        let commit = Commit::new().append(&log, [bytes]).release(&log, end);
        journal.commit_blocking(commit).expect("a commit");
        let store = JournalStore::new(&journal, "sagas").expect("two logs");
        let error = store.open().await.expect_err("it cannot be read");
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.to_string().contains("\"sagas\""), "{error}");
        assert!(!journal.log("sagas", 1).expect("a log").exists(), "an epoch was written");
    }
}

/// Records of something else may look like those of sagas.
#[tokio::test]
async fn records_without_an_epoch_and_other_logs_are_of_something_else() {
    let files = Arc::new(MemoryFiles::new());
    let journal = journal(&files);
    for (id, epoch, says) in
        [(0, None, "no epoch"), (2, None, "sagas2/2"), (1, Some(&[1_u8][..]), "epoch")]
    {
        let namespace = format!("sagas{id}");
        let log = journal.log(&namespace, id).expect("a log");
        let commit = Commit::new().append(&log, [epoch.unwrap_or(&[1, 0, 1, 0, b'a'])]);
        journal.commit_blocking(commit).expect("a commit");
        let before = journal.logs_of(&namespace);
        let store = JournalStore::new(&journal, &namespace).expect("two logs");
        let error = store.open().await.expect_err("it is not of this crate");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(format!("{:?}", journal.logs_of(&namespace)), format!("{before:?}"));
    }
}
