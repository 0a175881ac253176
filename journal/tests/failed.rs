//! Waiting for the failure of a journal.
#![cfg(feature = "testing")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::time::timeout;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Op, When};
use voussoir_journal::{Commit, Config, Error, Journal, MemoryFiles, Work};

/// A wait that takes longer than this hangs.
const HANGS_AFTER: Duration = Duration::from_secs(20);

fn small(mut config: Config) -> Config {
    (config.segment_bytes, config.max_bytes) = (64 << 10, 1 << 20);
    config
}

fn record(journal: &Journal) -> Commit {
    Commit::new().append(&journal.log("t", 1).unwrap(), ["x"])
}

#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Woken {
    fn times(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The first poll of a new wait.
fn now(journal: &Journal) -> Poll<Error> {
    pin!(journal.failed()).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_failed_sync_ends_every_wait_with_its_cause() {
    let disk = CrashFiles::new(1);
    let journal = Journal::open_with(disk.mount(), small(Config::default())).unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let journal = journal.clone();
            tokio::spawn(async move { journal.failed().await })
        })
        .collect();
    // Those that have been polled wait, whatever works.
    tokio::task::yield_now().await;
    journal.commit(record(&journal)).await.unwrap();
    tokio::task::yield_now().await;
    assert!(waiting.iter().all(|wait| !wait.is_finished()) && now(&journal).is_pending());

    disk.inject(Fault::new(Op::Sync, When::From(0), Effect::DropDirty));
    // By the commit, or before by the thread that prepares the next segment.
    journal.commit(record(&journal)).await.unwrap_err();
    let stopped = journal.commit(record(&journal)).await.unwrap_err();
    assert!(matches!(&stopped, Error::Stopped { fault } if fault.operation == "sync"));
    for wait in waiting {
        assert_eq!(timeout(HANGS_AFTER, wait).await.unwrap().unwrap(), stopped);
    }
    // One that comes later does not wait, also when the journal has been closed since.
    assert_eq!(now(&journal), Poll::Ready(stopped.clone()));
    journal.close().unwrap_err();
    assert_eq!(now(&journal), Poll::Ready(stopped));

    // What to do then.
    disk.heal();
    let journal = Journal::open_with(disk.mount(), small(Config::default())).unwrap();
    assert!(now(&journal).is_pending());
    journal.commit(record(&journal)).await.unwrap();
}

#[test]
fn a_failure_that_no_commit_was_told_of_wakes_those_who_wait() {
    let disk = CrashFiles::new(1);
    let journal = Journal::open_with(disk.mount(), small(Config::manual())).unwrap();
    journal.commit_blocking(record(&journal)).unwrap();
    while journal.work(0) != Work::Idle {}
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut failed = pin!(journal.failed());
    for _ in 0..2 {
        assert!(failed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    // Of an idle journal: the mark that everything is durable.
    disk.inject(Fault::new(Op::Write, When::From(0), Effect::Fail));
    assert_eq!(woken.times(), 0);
    journal.work(u64::MAX);
    assert_eq!(woken.times(), 1);
    let told = failed.as_mut().poll(&mut Context::from_waker(&waker));
    let Poll::Ready(Error::Stopped { fault }) = told else { panic!("{told:?}") };
    assert_eq!(fault.operation, "write");
}

#[test]
fn a_full_journal_has_not_failed() {
    let disk = CrashFiles::new(1);
    let journal = Journal::open_with(disk.mount(), small(Config::manual())).unwrap();
    let log = journal.log("t", 1).unwrap();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut failed = pin!(journal.failed());
    assert!(failed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    // Ends: the journal has a limit.
    let full = loop {
        let commit = Commit::new().append(&log, [vec![1; 10_000]]);
        if let Err(error) = journal.commit_blocking(commit) {
            break error;
        }
        while journal.work(0) != Work::Idle {}
    };
    assert!(matches!(full, Error::Full { .. }), "{full}");
    assert!(failed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(woken.times(), 0);
}

#[tokio::test]
async fn a_close_ends_the_wait() {
    let files = Arc::new(MemoryFiles::new());
    let journal = Journal::open_with(files, small(Config::default())).unwrap();
    let waiting = journal.clone();
    let waiting = tokio::spawn(async move { waiting.failed().await });
    tokio::task::yield_now().await;
    journal.commit(record(&journal)).await.unwrap();
    journal.close().unwrap();
    assert_eq!(timeout(HANGS_AFTER, waiting).await.unwrap().unwrap(), Error::Closed);
    assert_eq!(now(&journal), Poll::Ready(Error::Closed));
}
