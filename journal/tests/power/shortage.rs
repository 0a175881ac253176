//! Rewriting when segments are short: what it takes of the reserve, and who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use voussoir_journal::files::crash::{CrashFiles, Op};
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{Commit, Config, Error, Files, Journal, Log, MemoryFiles, Work};

use crate::losses::in_order;

const SEGMENT: u64 = 64 << 10;

/// A pool of eight segments, with rewriting or without.
fn config(rewrites: bool) -> Config {
    let mut config = in_order().config;
    config.max_bytes = 8 * SEGMENT;
    if !rewrites {
        config.rewrite_bytes_per_second = 0;
    }
    config
}

fn log(journal: &Journal, namespace: &str) -> Log {
    journal.log(namespace, 1).unwrap()
}

fn record(position: u64) -> Vec<u8> {
    vec![position as u8; 40 + (position % 60) as usize]
}

fn append_cold(journal: &Journal) -> Result<(), Error> {
    let cold = log(journal, "cold");
    journal.commit_blocking(Commit::new().append(&cold, [record(cold.end())])).map(drop)
}

/// Fills the active segment with records that are let go at once.
fn fill_segment(journal: &Journal) -> Result<(), Error> {
    let (hot, before) = (log(journal, "hot"), journal.stats().rotations);
    while journal.stats().rotations == before {
        let more = Commit::new().append(&hot, [[7; 3_000]]).release(&hot, hot.end());
        journal.commit_blocking(more)?;
        journal.work(0);
    }
    Ok(())
}

fn holds(journal: &Journal) {
    let cold = log(journal, "cold");
    let all = cold.read_range(cold.bounds(), usize::MAX).unwrap();
    assert_eq!(all, cold.bounds().map(record).collect::<Vec<_>>());
}

/// A journal that became full without rewriting, and whose releases have used up some of its
/// reserve, is opened with rewriting: appends go on.
#[test]
fn a_journal_that_has_used_its_reserve_is_rewritten() {
    for rotations in 0..5 {
        let disk = CrashFiles::new(1);
        let journal = Journal::open_with(disk.mount(), config(false)).unwrap();
        let refused = (0..100)
            .find_map(|_| append_cold(&journal).and_then(|()| fill_segment(&journal)).err());
        assert!(matches!(refused, Some(Error::Full { .. })), "{refused:?}");
        let before = journal.stats().rotations;
        let mut upto = 0;
        while journal.stats().rotations < before + rotations {
            upto += 1;
            let release = Commit::new().release(&log(&journal, "moves"), upto);
            journal.commit_blocking(release).unwrap();
            journal.work(0);
        }
        disk.kill();
        let journal = Journal::open_with(disk.mount(), config(true)).unwrap();
        for _ in 0..30 {
            append_cold(&journal).unwrap();
            fill_segment(&journal).unwrap();
        }
        assert!(journal.stats().segments_rewritten > 0, "{:?}", journal.stats());
        holds(&journal);
    }
}

/// An append that has room in the active segment does not wait for a round, whatever the round has
/// taken.
#[test]
fn an_append_that_has_room_waits_for_no_round() {
    let mut amid = 0;
    for steps in 0..12 {
        let journal = Journal::open_with(CrashFiles::new(1).mount(), config(true)).unwrap();
        for _ in 0..30 {
            append_cold(&journal).unwrap();
            let (hot, before) = (log(&journal, "hot"), journal.stats().rotations);
            while journal.stats().rotations == before {
                let more = Commit::new().append(&hot, [[7; 3_000]]).release(&hot, hot.end());
                journal.commit_blocking(more).unwrap();
            }
            // The segment has just been begun.
            let mut last = Work::Idle;
            for _ in 0..steps {
                last = journal.work(0);
            }
            let before = journal.stats();
            append_cold(&journal).unwrap();
            let after = journal.stats();
            assert_eq!(before.bytes_rewritten, after.bytes_rewritten, "{steps} steps");
            assert_eq!(before.segments_rewritten, after.segments_rewritten, "{steps} steps");
            amid += u64::from(last == Work::Rewritten && before.bytes_rewritten > 0);
        }
        holds(&journal);
    }
    assert!(amid > 10, "only {amid} appends were made amid a round");
}

/// What has been released or cut off counts no more once it has been moved, however often.
#[test]
fn the_bytes_of_a_log_do_not_grow_by_moving_it() {
    const QUOTA: u64 = 4_000;
    let disk = CrashFiles::new(1);
    let mut journal = Journal::open_with(disk.mount(), config(true)).unwrap();
    let mut rewritten = 0;
    for round in 0..160 {
        let cold = log(&journal, "cold");
        cold.set_quota(Some(QUOTA));
        append_cold(&journal).unwrap();
        // Records of less than 100 bytes, so few that some of a copy count when it is moved again.
        let first = cold.end().saturating_sub(24);
        if first > 0 {
            journal.commit_blocking(Commit::new().release(&cold, first)).unwrap();
        }
        // Something that is never released keeps rounds going.
        let pins = log(&journal, "pins");
        journal.commit_blocking(Commit::new().append(&pins, ["here"])).unwrap();
        fill_segment(&journal).unwrap();
        let bytes = |journal: &Journal| {
            let logs = journal.logs();
            logs.iter().find(|info| info.name.namespace == "cold").unwrap().bytes
        };
        assert!(bytes(&journal) <= QUOTA, "round {round}: {} bytes", bytes(&journal));
        if round % 80 == 79 {
            rewritten += journal.stats().segments_rewritten;
            holds(&journal);
            drop(cold);
            disk.kill();
            journal = Journal::open_with(disk.mount(), config(true)).unwrap();
            assert!(bytes(&journal) <= QUOTA, "opened after round {round}: {}", bytes(&journal));
        }
    }
    assert!(rewritten > 60, "only {rewritten} segments were rewritten");
}

/// The keeper writes while the journal fails and is closed: the directory is free only afterwards.
#[test]
fn a_close_after_a_failure_waits_for_what_the_keeper_writes() {
    let memory = MemoryFiles::new();
    let flag = || Arc::new(AtomicBool::new(false));
    let (entered, failing, early) = (flag(), flag(), flag());
    let hook = {
        let (memory, entered) = (memory.clone(), entered.clone());
        let (failing, early) = (failing.clone(), early.clone());
        move |call: voussoir_journal::testing::Call<'_>| {
            let is_keeper = std::thread::current().name() == Some("journal-keeper");
            if is_keeper && call.op == Op::Write {
                let (began, first) = (Instant::now(), !entered.swap(true, Ordering::SeqCst));
                // In the middle of a write, for a while.
                while first && began.elapsed() < Duration::from_millis(400) {
                    if memory.lock().is_ok() {
                        early.store(true, Ordering::SeqCst);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            } else if !is_keeper && call.op == Op::Sync && failing.load(Ordering::SeqCst) {
                return Err(std::io::Error::other("no sync"));
            }
            Ok(())
        }
    };
    let files = HookedFiles::new(Arc::new(memory.clone()), hook);
    let mut config = Config::default();
    (config.segment_bytes, config.max_bytes) = (SEGMENT, 8 * SEGMENT);
    let journal = Journal::open_with(Arc::new(files), config).unwrap();
    while !entered.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    failing.store(true, Ordering::SeqCst);
    let refused = append_cold(&journal);
    assert!(matches!(refused, Err(Error::Failed { .. })), "{refused:?}");
    assert!(matches!(journal.close(), Err(Error::Stopped { .. })));
    assert!(!early.load(Ordering::SeqCst), "the directory was free while the keeper wrote");
    assert!(memory.lock().is_ok(), "the directory is not free after the close");
}
