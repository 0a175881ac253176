//! Foreign code: what happens when it panics, blocks, or calls the journal back.
//!
//! One section for each place at which the journal runs code that is not its own. The table in the
//! README says what each test here shows.
#![cfg(feature = "testing")]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use voussoir_journal::files::crash::Op;
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{
    Batch, Commit, Config, Durability, Error, Journal, MemoryFiles, OpenError, Outcome, inspect,
};

/// A test that takes longer than this hangs.
const HANGS_AFTER: Duration = Duration::from_secs(20);

/// Runs a test on a thread of its own and fails when it hangs.
fn ends(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = channel();
    let thread = std::thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(test));
        done.send(()).unwrap();
        result
    });
    ended.recv_timeout(HANGS_AFTER).expect("the journal hangs");
    thread.join().unwrap().unwrap();
}

fn config() -> Config {
    let mut config = Config::default();
    config.segment_bytes = 64 << 10;
    config.max_bytes = 16 << 20;
    config
}

fn open(config: Config) -> Journal {
    Journal::open_with(Arc::new(MemoryFiles::new()), config).unwrap()
}

fn manual() -> Config {
    let mut config = Config::manual();
    (config.segment_bytes, config.max_bytes) = (64 << 10, 16 << 20);
    config
}

fn record(journal: &Journal) -> Commit {
    Commit::new().append(&journal.log("t", 1).unwrap(), ["x"])
}

// Completion callbacks of `submit`.

#[test]
fn a_callback_that_panics_fails_nobody_else() {
    ends(|| {
        for manual_options in [true, false] {
            let journal = open(if manual_options { manual() } else { config() });
            let (told, outcomes) = channel();
            for number in 0..30 {
                let told = told.clone();
                let callback = move |outcome: Result<_, Error>| {
                    told.send((number, outcome.is_ok())).unwrap();
                    assert!(number % 3 != 0, "a panic of a callback, as the test wants it");
                };
                journal.submit(record(&journal), callback).unwrap();
                // A caller that leads for others does not get their panics.
                journal.commit_blocking(record(&journal)).unwrap();
            }
            while manual_options && journal.stats().pending_bytes > 0 {
                journal.work(0);
            }
            let mut seen: Vec<_> = outcomes.iter().take(30).collect();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq((0..30).map(|number| (number, true))));
            assert_eq!(journal.log("t", 1).unwrap().end(), 60);
            journal.close().unwrap();
        }
    });
}

#[test]
fn a_buffered_commit_calls_back_at_once_and_a_panic_ends_there() {
    ends(|| {
        let journal = open(manual());
        let commit = record(&journal).durability(Durability::Buffered);
        journal.submit(commit, |_| panic!("as the test wants it")).unwrap();
        journal.commit_blocking(record(&journal)).unwrap();
        assert_eq!(journal.log("t", 1).unwrap().end(), 2);
        journal.close().unwrap();
    });
}

#[test]
fn a_callback_that_blocks_delays_and_loses_nothing() {
    ends(|| {
        let journal = open(config());
        let (go, gone) = channel::<()>();
        let (entered, inside) = channel();
        let callback = move |_| {
            entered.send(()).unwrap();
            gone.recv().unwrap();
        };
        journal.submit(record(&journal), callback).unwrap();
        inside.recv().unwrap();
        // Commits are still accepted; they wait for the leader, who is in the callback.
        let (told, outcomes) = channel();
        for _ in 0..10 {
            let told = told.clone();
            journal.submit(record(&journal), move |outcome| told.send(outcome).unwrap()).unwrap();
        }
        assert!(outcomes.try_recv().is_err());
        assert_eq!(journal.log("t", 1).unwrap().bounds(), 0..1, "reading does not wait");
        go.send(()).unwrap();
        assert!(outcomes.iter().take(10).all(|outcome| outcome.is_ok()));
        journal.close().unwrap();
    });
}

#[test]
fn a_callback_may_call_back() {
    ends(|| {
        for config in [config(), manual()] {
            let journal = open(config.clone());
            let (told, outcomes) = channel();
            let (inner, again) = (journal.clone(), told.clone());
            let callback = move |outcome: Result<_, _>| {
                told.send(outcome).unwrap();
                let (log, future) = (inner.log("t", 1).unwrap(), inner.commit(record(&inner)));
                assert_eq!(log.read(0).unwrap(), "x");
                drop(future);
                assert!(inner.stats().commits > 0 && !inner.logs().is_empty());
                let refused = inner.commit_blocking(record(&inner)).unwrap_err();
                assert_eq!(
                    (&refused, refused.outcome()),
                    (&Error::FromCallback, Outcome::NotApplied)
                );
                let last = move |outcome| again.send(outcome).unwrap();
                inner.submit(record(&inner), last).unwrap();
                assert_eq!(inner.work(0), voussoir_journal::Work::Idle);
            };
            journal.submit(record(&journal), callback).unwrap();
            let mut seen = 0;
            while seen < 2 {
                journal.work(0);
                seen += outcomes.try_iter().map(Result::unwrap).count();
                std::thread::yield_now();
            }
            assert_eq!(journal.log("t", 1).unwrap().end(), 3);
            journal.close().unwrap();
        }
    });
}

/// Calls the journal when it is dropped.
struct CallsOnDrop(Journal, Sender<u64>);

impl Drop for CallsOnDrop {
    fn drop(&mut self) {
        let _ = self.0.log("dropped", 1);
        self.1.send(self.0.stats().pending_bytes).unwrap();
    }
}

impl AsRef<[u8]> for CallsOnDrop {
    fn as_ref(&self) -> &[u8] {
        b"memory with a destructor"
    }
}

/// The closure that was never called, and the records that were never written, are dropped; what
/// they own may call the journal.
#[test]
fn what_a_refused_commit_owned_may_call_back_when_it_is_dropped() {
    ends(|| {
        let mut config = manual();
        config.max_pending_bytes = 1;
        let journal = open(config);
        let log = journal.log("t", 1).unwrap();
        let (told, dropped) = channel();
        let owner = || CallsOnDrop(journal.clone(), told.clone());
        let owned = || Batch::from(Bytes::from_owner(owner()));
        let refused = |commit: Commit, expected: fn(&Error) -> bool| {
            let guard = owner();
            let error = journal.submit(commit.clone(), move |_| drop(guard)).unwrap_err().error;
            assert!(expected(&error), "{error}");
            dropped.recv().unwrap();
            drop(journal.commit(commit));
            dropped.recv().unwrap();
        };
        let outside = Commit::new().append_batch(&log, owned()).truncate(&log, 9);
        refused(outside, |error| matches!(error, Error::OutOfRange { .. }));
        log.set_quota(Some(0));
        refused(Commit::new().append_batch(&log, owned()), |error| {
            matches!(error, Error::OverQuota { .. })
        });
        log.set_quota(None);
        // From here on there is no room, and commits wait for it.
        journal.submit(Commit::new().append(&log, ["x"]), |_| {}).unwrap();
        refused(Commit::new().append_batch(&log, owned()), |error| {
            matches!(error, Error::Busy { option: "max_pending_bytes", .. })
        });
        let waiting = journal.commit(Commit::new().append_batch(&log, owned()));
        journal.close().unwrap();
        dropped.recv().unwrap();
        drop(waiting);
    });
}

// Wakers: of commits, and of followers.

struct PanickingWaker(AtomicU64);

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("a panic of a waker, as the test wants it");
    }
}

/// Polls its future again within `wake`, as an executor may that runs tasks at once.
struct InlineWaker {
    journal: Journal,
    woken: Sender<Option<Error>>,
}

impl Wake for InlineWaker {
    fn wake(self: Arc<Self>) {
        let log = self.journal.log("t", 1).unwrap();
        assert_eq!(log.read(log.first()).unwrap(), "x");
        let refused = self.journal.commit_blocking(record(&self.journal)).err();
        self.woken.send(refused).unwrap();
    }
}

#[test]
fn wakers_may_panic() {
    ends(|| {
        let journal = open(manual());
        let woken = Arc::new(PanickingWaker(AtomicU64::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut commit = pin!(journal.commit(record(&journal)));
        assert!(commit.as_mut().poll(&mut context).is_pending());
        let mut follow = journal.log("t", 1).unwrap().follow(0);
        assert!(follow.poll_record(&mut context).is_pending());
        journal.commit_blocking(record(&journal)).unwrap();
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert!(matches!(commit.as_mut().poll(&mut context), Poll::Ready(Ok(_))));
        assert!(matches!(follow.poll_record(&mut context), Poll::Ready(Ok((0, _)))));
        let mut failed = pin!(journal.failed());
        assert!(failed.as_mut().poll(&mut context).is_pending());
        journal.close().unwrap();
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
        assert_eq!(failed.as_mut().poll(&mut context), Poll::Ready(Error::Closed));
    });
}

#[test]
fn wakers_may_call_back() {
    ends(|| {
        for config in [manual(), config()] {
            let journal = open(config);
            let (woken, wakes) = channel();
            let waker = Waker::from(Arc::new(InlineWaker { journal: journal.clone(), woken }));
            let mut context = Context::from_waker(&waker);
            let mut follow = journal.log("t", 1).unwrap().follow(0);
            assert!(follow.poll_record(&mut context).is_pending());
            let mut commit = pin!(journal.commit(record(&journal)));
            let pending = commit.as_mut().poll(&mut context).is_pending();
            journal.commit_blocking(record(&journal)).unwrap();
            for _ in 0..=usize::from(pending) {
                assert_eq!(wakes.recv().unwrap(), Some(Error::FromCallback));
            }
            drop(follow);
            journal.close().unwrap();
        }
    });
}

/// Asks the journal for everything that takes one of its locks.
struct AskingWaker {
    journal: Journal,
    woken: Sender<Option<Error>>,
}

impl Wake for AskingWaker {
    fn wake(self: Arc<Self>) {
        let _ = (self.journal.stats(), self.journal.logs(), self.journal.log("t", 2));
        let mut failed = pin!(self.journal.failed());
        assert!(failed.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
        self.woken.send(self.journal.commit_blocking(record(&self.journal)).err()).unwrap();
    }
}

#[test]
fn wakers_of_those_who_wait_for_the_failure_may_call_back() {
    ends(|| {
        for fails in [false, true] {
            for config in [manual(), config()] {
                let failing = Arc::new(AtomicU64::new(0));
                let fuse = Arc::clone(&failing);
                let files = HookedFiles::new(Arc::new(MemoryFiles::new()), move |call| {
                    if call.op == Op::Sync && fuse.load(Ordering::Relaxed) > 0 {
                        return Err(std::io::Error::other("as the test wants it"));
                    }
                    Ok(())
                });
                let journal = Journal::open_with(Arc::new(files), config).unwrap();
                journal.commit_blocking(record(&journal)).unwrap();
                let (woken, wakes) = channel();
                let asking = AskingWaker { journal: journal.clone(), woken };
                let waker = Waker::from(Arc::new(asking));
                let mut failed = pin!(journal.failed());
                assert!(failed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                failing.store(u64::from(fails), Ordering::Relaxed);
                let expected: fn(Option<Error>) -> bool = if fails {
                    journal.commit_blocking(record(&journal)).unwrap_err();
                    |error| matches!(error, Some(Error::FromCallback | Error::Stopped { .. }))
                } else {
                    journal.close().unwrap();
                    |error| error == Some(Error::Closed)
                };
                assert!(expected(wakes.recv().unwrap()));
                assert_eq!(journal.close().is_err(), fails);
            }
        }
    });
}

// `Files`.

/// Files in memory that call `hook` before each operation.
fn hooked(hook: impl Fn(Op) + Send + Sync + 'static) -> HookedFiles {
    HookedFiles::new(Arc::new(MemoryFiles::new()), move |call| {
        hook(call.op);
        Ok(())
    })
}

/// A sync panics on the thread of this name, or on any that is not the journal's, once armed.
fn panics_on(thread: Option<&'static str>) -> (HookedFiles, Arc<AtomicU64>) {
    let armed = Arc::new(AtomicU64::new(0));
    let fuse = Arc::clone(&armed);
    let hooked = hooked(move |operation| {
        let current = std::thread::current();
        let ours = current.name().is_some_and(|name| name.starts_with("journal-"));
        let here = thread.map_or(!ours, |thread| current.name() == Some(thread));
        if here && operation == Op::Sync && fuse.load(Ordering::Relaxed) > 0 {
            fuse.store(0, Ordering::Relaxed);
            panic!("a panic of `Files`, as the test wants it");
        }
    });
    (hooked, armed)
}

#[test]
fn files_that_panic_stop_the_journal_and_leave_nobody_waiting() {
    ends(|| {
        let threads = [(None, manual()), (None, config()), (Some("journal-writer"), config())];
        for (thread, config) in threads {
            let (files, armed) = panics_on(thread);
            let journal = Journal::open_with(Arc::new(files.clone()), config.clone()).unwrap();
            journal.commit_blocking(record(&journal)).unwrap();
            armed.store(1, Ordering::Relaxed);
            let (told, outcomes) = channel();
            if thread.is_some() {
                journal.submit(record(&journal), move |result| told.send(result).unwrap()).unwrap();
                let failed = outcomes.recv().unwrap().unwrap_err();
                assert_eq!(failed.outcome(), Outcome::Unknown, "{failed}");
            } else {
                let panicked =
                    catch_unwind(AssertUnwindSafe(|| journal.commit_blocking(record(&journal))));
                assert!(panicked.is_err(), "the panic reaches the caller that led");
                drop((told, outcomes));
            }
            let refused = journal.commit_blocking(record(&journal)).unwrap_err();
            assert!(matches!(refused, Error::Stopped { .. }), "{refused}");
            assert_eq!(refused.outcome(), Outcome::NotApplied);
            assert_eq!(journal.log("t", 1).unwrap().read(0).unwrap(), "x", "reading goes on");
            assert!(matches!(journal.close(), Err(Error::Stopped { .. })));
            // The directory is free, and holds what was acknowledged.
            let journal = Journal::open_with(Arc::new(files), config).unwrap();
            assert!(journal.log("t", 1).unwrap().end() >= 1);
            journal.close().unwrap();
        }
    });
}

#[test]
fn files_that_panic_while_a_segment_is_prepared_stop_the_journal() {
    ends(|| {
        let (files, armed) = panics_on(Some("journal-keeper"));
        let journal = Journal::open_with(Arc::new(files), config()).unwrap();
        armed.store(1, Ordering::Relaxed);
        let log = journal.log("t", 1).unwrap();
        let stopped = loop {
            match journal.commit_blocking(Commit::new().append(&log, [[7; 900]])) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(stopped, Error::Stopped { .. }), "{stopped}");
        assert!(matches!(journal.close(), Err(Error::Stopped { .. })));
    });
}

#[test]
fn files_that_panic_while_reading_hurt_nobody() {
    ends(|| {
        let armed = Arc::new(AtomicU64::new(0));
        let fuse = Arc::clone(&armed);
        let files = hooked(move |operation| {
            let due = operation == Op::Read && fuse.swap(0, Ordering::Relaxed) > 0;
            assert!(!due, "a panic of `Files`, as the test wants it");
        });
        let journal = Journal::open_with(Arc::new(files), manual()).unwrap();
        journal.commit_blocking(record(&journal)).unwrap();
        let log = journal.log("t", 1).unwrap();
        armed.store(1, Ordering::Relaxed);
        assert!(catch_unwind(AssertUnwindSafe(|| log.read(0))).is_err());
        assert_eq!(log.read(0).unwrap(), "x");
        journal.commit_blocking(record(&journal)).unwrap();
        journal.close().unwrap();
    });
}

#[test]
fn files_that_block_delay_and_lose_nothing() {
    ends(|| {
        let (entered, inside) = channel();
        let (go, gone): (Sender<()>, Receiver<()>) = channel();
        let (entered, gone) = (parking_lot::Mutex::new(entered), parking_lot::Mutex::new(gone));
        let armed = Arc::new(AtomicU64::new(0));
        let fuse = Arc::clone(&armed);
        let files = hooked(move |operation| {
            // Every sync while it is armed: that of a segment in reserve may come first.
            if operation == Op::Sync && fuse.load(Ordering::Relaxed) > 0 {
                entered.lock().send(()).unwrap();
                assert!(gone.lock().recv().is_err(), "ends when the sender is dropped");
            }
        });
        let journal = Journal::open_with(Arc::new(files), config()).unwrap();
        armed.store(1, Ordering::Relaxed);
        let (told, outcomes) = channel();
        let submit = || {
            let told = told.clone();
            journal.submit(record(&journal), move |outcome| told.send(outcome).unwrap()).unwrap();
        };
        submit();
        inside.recv().unwrap();
        submit();
        assert_eq!(journal.log("t", 1).unwrap().end(), 0, "not acknowledged, and reads go on");
        armed.store(0, Ordering::Relaxed);
        drop(go);
        assert!(outcomes.iter().take(2).all(|outcome| outcome.is_ok()));
        journal.close().unwrap();
    });
}

// The progress callback of `inspect`.

#[test]
fn a_progress_callback_that_panics_leaves_the_directory_free() {
    let files = MemoryFiles::new();
    let journal = Journal::open_with(Arc::new(files.clone()), manual()).unwrap();
    journal.commit_blocking(record(&journal)).unwrap();
    journal.close().unwrap();
    let panicked =
        catch_unwind(AssertUnwindSafe(|| inspect(&files, &mut |_| panic!("as the test wants it"))));
    assert!(panicked.is_err());
    // It is called without a lock but that of the directory.
    let again = files.clone();
    let report = inspect(&files, &mut |_| {
        let opened = Journal::open_with(Arc::new(again.clone()), manual());
        assert_eq!(opened.err(), Some(OpenError::InUse));
    });
    assert!(report.unwrap().problems.is_empty());
}

// What is dropped gives back what it held.

#[test]
fn commits_that_waited_for_room_and_were_dropped_leave_their_places() {
    let mut config = manual();
    (config.max_pending_bytes, config.max_waiting) = (1, 4);
    let journal = open(config);
    journal.submit(record(&journal), |_| {}).unwrap();
    for _ in 0..100 {
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting: Vec<_> = (0..4).map(|_| journal.commit(record(&journal))).collect();
        for commit in &mut waiting {
            assert!(Pin::new(commit).poll(&mut context).is_pending());
        }
        let mut fifth = pin!(journal.commit(record(&journal)));
        let polled = fifth.as_mut().poll(&mut context);
        let busy = Error::Busy { option: "max_waiting", limit: 4 };
        assert_eq!(polled, Poll::Ready(Err(busy)));
        drop(waiting);
    }
    journal.submit(record(&journal), |_| {}).unwrap_err();
    journal.work(0);
    journal.submit(record(&journal), |_| {}).unwrap();
    journal.work(0);
    assert_eq!(journal.log("t", 1).unwrap().end(), 2);
}

#[test]
fn what_is_submitted_in_turn_waits_with_all_others_and_is_not_rejected() {
    let mut config = manual();
    (config.max_pending_bytes, config.max_waiting) = (1, 1);
    let journal = open(config);
    let (told, order) = channel();
    let in_turn = |number: u64| {
        let told = told.clone();
        let commit = record(&journal);
        let tell = move |result: Result<_, Error>| told.send((number, result.is_ok())).unwrap();
        journal.submit_in_turn(commit, tell).unwrap();
    };
    (0..3).for_each(in_turn);
    // They take no place of those whom the limit counts, of whom one may wait.
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..2 {
        let mut counted = pin!(journal.commit(record(&journal)));
        assert!(counted.as_mut().poll(&mut context).is_pending());
        let polled = pin!(journal.commit(record(&journal))).poll(&mut context);
        assert!(matches!(polled, Poll::Ready(Err(Error::Busy { option: "max_waiting", .. }))));
    }
    let mut counted = pin!(journal.commit(record(&journal)));
    assert!(counted.as_mut().poll(&mut context).is_pending());
    // Nobody overtakes the line.
    let rejected = journal.submit(record(&journal), |_| {}).unwrap_err();
    assert!(matches!(rejected.error, Error::Busy { option: "max_pending_bytes", .. }));
    in_turn(3);
    while journal.log("t", 1).unwrap().end() < 5 {
        journal.work(0);
    }
    assert!(matches!(counted.poll(&mut context), Poll::Ready(Ok(_))));
    assert_eq!(order.try_iter().collect::<Vec<_>>(), [(0, true), (1, true), (2, true), (3, true)]);
    (4..6).for_each(in_turn);
    let mut counted = pin!(journal.commit(record(&journal)));
    assert!(counted.as_mut().poll(&mut context).is_pending(), "the place is free again");
    // Closing takes those that wait along, or tells them.
    let _ = journal.close();
    assert_eq!(
        order.try_iter().map(|(number, _)| number).collect::<BTreeSet<_>>(),
        (4..6).collect()
    );
}
