//! Stores in a journal that is full: nothing that waits for room is lost or stopped, and nothing
//! that was not recorded is called unknown.
#![cfg(feature = "journal")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use voussoir_journal::{Commit, Config, Error, Journal, Log, MemoryFiles};
use voussoir_txn::store::{JournalStore, Record, RecordKind, SagaStore};
use voussoir_txn::two_phase::{
    Ack, Applied, Coordinator, Decision, Gid, InDoubt, Participant, ParticipantError, PrepareError,
    StoreLog, TxnOutcome, Vote,
};
use voussoir_txn::{Bytes, Saga, SagaState, Sagas, Step, StepError, async_trait};

/// The journal of several parts of a process, one of which fills it.
struct Shared {
    journal: Journal,
    other: Log,
}

impl Shared {
    fn new() -> Self {
        let mut config = Config::default();
        config.segment_bytes = 1 << 20;
        config.max_bytes = 4 << 20;
        let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).expect("a journal");
        let other = journal.log("other", 0).expect("a log");
        Self { journal, other }
    }

    fn store(&self) -> JournalStore {
        JournalStore::new(&self.journal, "store").expect("two logs")
    }

    async fn fill(&self) {
        for bytes in [100_000, 1_000, 8] {
            // Ends: the journal takes no more than 4 MiB.
            loop {
                let commit = Commit::new().append(&self.other, [vec![0; bytes]]);
                match self.journal.commit(commit).await {
                    Ok(_) => {}
                    Err(Error::Full { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    async fn make_room(&self) {
        let release = Commit::new().release(&self.other, self.other.end());
        self.journal.commit(release).await.expect("a full journal takes a release");
    }
}

#[tokio::test]
async fn sagas_wait_while_the_journal_is_full_and_go_on() {
    let shared = Shared::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let mut saga = Saga::<u64>::define("one", 1);
    let counted = Arc::clone(&calls);
    let act = move |_, _, ()| {
        let calls = Arc::clone(&counted);
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            calls.fetch_add(1, Ordering::SeqCst);
            Ok::<u64, StepError>(1)
        }
    };
    let first = saga.step(Step::new("first", (), act).undo(|_, _, _| async { Ok(()) }));
    saga.read(Step::new(
        "second",
        first,
        |_, _, one: u64| async move { Ok::<u64, StepError>(one) },
    ));
    let saga = saga.build().expect("a definition");
    let sagas = Sagas::builder().register(&saga).open(shared.store()).await.expect("sagas open");
    let mut handles = Vec::new();
    for id in 0..20 {
        handles.push(sagas.start(&saga, &format!("s{id}"), &1).await.expect("it starts"));
    }
    shared.fill().await;
    // Their calls answer now, and one more begins.
    let late = {
        let (sagas, saga) = (sagas.clone(), saga.clone());
        tokio::spawn(async move { sagas.start(&saga, "late", &1).await })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    let states = || sagas.list().into_iter().map(|saga| saga.state);
    assert!(states().all(|state| state == SagaState::Open), "{:?}", sagas.list());
    assert!(!late.is_finished(), "its beginning is recorded nowhere");
    shared.make_room().await;
    handles.push(late.await.expect("no panic").expect("it starts"));
    for handle in handles {
        assert!(handle.end().await.expect("it ends").is_completed());
    }
    assert_eq!(calls.load(Ordering::SeqCst), 21, "a step was called again");
}

/// The releases of a store ride on its appends, which a full journal does not take.
#[tokio::test]
async fn a_store_in_a_full_journal_gives_back_what_it_does_not_need() {
    let shared = Shared::new();
    let store = shared.store();
    store.open().await.expect("it opens");
    let whole = || vec![Record::new("a", RecordKind::Whole, Bytes::from(vec![0; 200_000]))];
    let mut was_full = 0;
    for _ in 0..100 {
        while let Err(error) = store.append(whole()).await {
            assert!(error.is_retryable(), "{error}");
            was_full += 1;
            assert!(was_full < 1_000, "it stays full: {error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert!(was_full > 0, "100 records of 200 kB fit into 4 MiB");
    let opened = store.open().await.expect("it opens");
    assert!(opened.records.last() == whole().first(), "it gave back what it needs");
}

#[tokio::test]
async fn a_store_opens_in_a_full_journal() {
    let shared = Shared::new();
    let store = shared.store();
    store.open().await.expect("it opens");
    let record = vec![Record::new("a", RecordKind::More, Bytes::from_static(b"1"))];
    store.append(record.clone()).await.expect("there is room");
    shared.fill().await;
    drop(store);
    for epoch in 2..5 {
        let opened = shared.store().open().await.expect("it opens");
        assert_eq!((opened.epoch, &opened.records), (epoch, &record));
    }
}

struct Willing(AtomicUsize);

#[async_trait]
impl Participant for Willing {
    async fn prepare(&self, _: &Gid) -> Result<Vote, PrepareError> {
        Ok(Vote::Prepared)
    }

    async fn finish(&self, _: &Gid, decision: Decision) -> Result<Applied, ParticipantError> {
        self.0.fetch_add(usize::from(decision == Decision::Abort), Ordering::SeqCst);
        Ok(Applied::Done)
    }

    async fn in_doubt(&self, _: &str, _: usize) -> Result<Vec<InDoubt>, ParticipantError> {
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn a_commit_that_a_full_journal_does_not_take_is_an_abort() {
    let shared = Shared::new();
    let participant = Arc::new(Willing(AtomicUsize::new(0)));
    let builder = Coordinator::builder("c").participant("one", Arc::clone(&participant) as _);
    let coordinator = builder.open(StoreLog::new(shared.store())).await.expect("it opens");
    shared.fill().await;
    let mut txn = coordinator.begin().expect("it begins");
    txn.enlist("one").expect("it is known");
    let error = txn.commit(Ack::Applied).await.expect_err("there is no room");
    assert_eq!(error.outcome(), TxnOutcome::NotApplied, "{error}");
    assert_eq!(participant.0.load(Ordering::SeqCst), 1, "the branch keeps its locks");
    // One that waits is recorded as soon as there is room.
    let mut txn = coordinator.begin().expect("the coordinator goes on");
    txn.enlist("one").expect("it is known");
    let commit = tokio::spawn(txn.commit(Ack::Decided));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!commit.is_finished());
    shared.make_room().await;
    commit.await.expect("no panic").expect("it is committed");
    assert_eq!(participant.0.load(Ordering::SeqCst), 1);
}
