//! Each limit: what is said when it is met, and what ends that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{
    Commit, Config, Durability, Error, FullCause, Health, Journal, Log, MemoryFiles, OpenError,
    Work,
};

use crate::losses::{in_order, overtaking};

const SECOND: u64 = 1_000_000_000;

fn manual() -> Config {
    in_order().config
}

fn append(journal: &Journal, log: &Log, bytes: usize) -> Result<(), Error> {
    journal.commit_blocking(Commit::new().append(log, [vec![7; bytes]])).map(drop)
}

/// Appends until the journal refuses.
fn fill(journal: &Journal, log: &Log) -> Error {
    loop {
        if let Err(error) = append(journal, log, 900) {
            return error;
        }
    }
}

/// The manifest and three segments and a half fit.
fn nearly_full() -> CrashFiles {
    let disk = CrashFiles::new(1);
    disk.set_capacity(Some((128 << 10) + 7 * (64 << 10) / 2));
    disk
}

#[test]
fn a_full_disk_is_told_from_the_limit_of_the_options() {
    let disk = nearly_full();
    let journal = Journal::open_with(disk.mount(), manual()).unwrap();
    let log = journal.log("t", 1).unwrap();
    let error = fill(&journal, &log);
    let Error::Full { cause: FullCause::Disk { fault }, .. } = &error else { panic!("{error}") };
    assert_eq!((fault.operation, &*fault.name), ("write", "segment-00000003"));
    assert_eq!(fault.kind, std::io::ErrorKind::StorageFull);
    let text = error.to_string();
    assert!(text.starts_with("the journal is full: write segment-00000003: "), "{text}");

    let mut config = manual();
    config.max_bytes = 4 * config.segment_bytes;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).unwrap();
    let log = journal.log("t", 1).unwrap();
    let error = fill(&journal, &log);
    let limit = FullCause::Limit { segments: 4, max_bytes: 256 << 10 };
    assert!(matches!(&error, Error::Full { cause, .. } if *cause == limit), "{error}");
}

/// Nothing is released: another process frees the disk.
#[test]
fn appends_resume_when_the_disk_has_room_again() {
    let disk = nearly_full();
    let journal = Journal::open_with(disk.mount(), manual()).unwrap();
    let log = journal.log("t", 1).unwrap();
    fill(&journal, &log);
    // The clock of a manual journal is the caller's.
    let mut now = 5 * SECOND;
    assert_eq!(journal.work(now), Work::Marked, "the disk is still full");
    for _ in 0..100 {
        let operations = disk.counters().operations;
        now += SECOND / 200;
        journal.work(now);
        assert!(disk.counters().operations == operations, "tried again too soon");
    }
    assert!(matches!(append(&journal, &log, 900), Err(Error::Full { .. })));
    disk.set_capacity(None);
    now += SECOND;
    assert_eq!(journal.work(now), Work::Prepared);
    append(&journal, &log, 900).unwrap();
}

#[test]
fn appends_resume_by_themselves_in_a_journal_with_threads() {
    let disk = nearly_full();
    let config = threads();
    let journal = Journal::open_with(disk.mount(), config).unwrap();
    let log = journal.log("t", 1).unwrap();
    let error = fill(&journal, &log);
    assert!(matches!(error, Error::Full { cause: FullCause::Disk { .. }, .. }), "{error}");
    disk.set_capacity(None);
    resumes(&journal, &log);
    journal.close().unwrap();
}

/// As somebody does who waits for room.
#[test]
fn a_full_disk_is_tried_again_however_often_room_is_asked_for() {
    let disk = nearly_full();
    let journal = Journal::open_with(disk.mount(), threads()).unwrap();
    let log = journal.log("t", 1).unwrap();
    fill(&journal, &log);
    disk.set_capacity(None);
    let began = Instant::now();
    while let Err(error) = append(&journal, &log, 900) {
        assert!(error.is_retryable() && began.elapsed() < Duration::from_secs(20), "{error}");
        journal.make_room();
        std::thread::yield_now();
    }
    journal.close().unwrap();
}

fn threads() -> Config {
    let mut config = Config::default();
    config.segment_bytes = 64 << 10;
    config.max_bytes = 64 << 20;
    config
}

fn resumes(journal: &Journal, log: &Log) {
    let began = Instant::now();
    while let Err(error) = append(journal, log, 900) {
        assert!(error.is_retryable(), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20), "{error}");
        std::thread::yield_now();
    }
}

/// A process that has no file descriptor left gets one again.
#[test]
fn a_file_that_cannot_be_had_now_can_be_had_later() {
    for (op, threaded) in [(Op::Create, false), (Op::Open, false), (Op::Create, true)] {
        let disk = CrashFiles::new(1);
        let config = if threaded { threads() } else { manual() };
        let journal = Journal::open_with(disk.mount(), config.clone()).unwrap();
        let log = journal.log("t", 1).unwrap();
        if op == Op::Open {
            // A file that was in use before is opened again.
            while journal.stats().rotations < 3 {
                append(&journal, &log, 900).unwrap();
            }
            journal.commit_blocking(Commit::new().release(&log, log.end() - 1)).unwrap();
        }
        disk.inject(Fault::new(op, When::From(0), Effect::Fail));
        let error = fill(&journal, &log);
        let Error::Full { cause: FullCause::Disk { fault }, .. } = &error else {
            panic!("{op:?}: {error}")
        };
        assert_eq!(fault.operation, if op == Op::Create { "create" } else { "open" });
        for again in 1..5 {
            if !threaded {
                assert_ne!(journal.work(again * 2 * SECOND), Work::Prepared);
            }
        }
        disk.heal();
        let (files, created) = (journal.stats().files, journal.stats().segments_created);
        if threaded {
            resumes(&journal, &log);
        } else {
            assert_eq!(journal.work(20 * SECOND), Work::Prepared, "{op:?}");
        }
        if op == Op::Open {
            // All files that were there are used again, and no other is created.
            let rotations = journal.stats().rotations;
            while journal.stats().rotations < rotations + 4 {
                let commit = Commit::new().append(&log, [vec![7; 900]]);
                journal.commit_blocking(commit.release(&log, log.end())).unwrap();
                journal.work(20 * SECOND);
            }
            assert_eq!(journal.stats().segments_created, created);
        }
        let end = log.end();
        append(&journal, &log, 900).unwrap();
        // No file was forgotten on the way.
        if op == Op::Create {
            // The keeper may be making another one ready, of which only the file counts.
            let began = Instant::now();
            let is_whole = || journal.stats().files == journal.stats().segments;
            while threaded && !is_whole() && began.elapsed() < Duration::from_secs(20) {
                std::thread::yield_now();
            }
            assert!(is_whole(), "{:?}", journal.stats());
        } else {
            assert_eq!(journal.stats().files, files);
        }
        disk.power_loss(Loss::Any);
        let journal = Journal::open_with(disk.mount(), config).unwrap();
        assert_eq!(journal.log("t", 1).unwrap().end(), end + 1, "{op:?}");
    }
}

#[test]
fn a_segment_size_that_cannot_hold_the_table_of_logs_is_refused() {
    let files = Arc::new(MemoryFiles::new());
    let mut config = manual();
    config.segment_bytes = 4 << 20;
    config.max_bytes = 64 << 20;
    let journal = Journal::open_with(files.clone(), config.clone()).unwrap();
    for id in 0..700 {
        append(&journal, &journal.log("t", id).unwrap(), 8).unwrap();
    }
    journal.close().unwrap();
    let small = manual();
    for _ in 0..2 {
        let error = Journal::open_with(files.clone(), small.clone()).unwrap_err();
        let OpenError::TableTooLarge { logs: 700, segment_bytes: 65_536, bytes } = error else {
            panic!("{error}")
        };
        assert_eq!(bytes, 136 + 700 * 72);
        assert!(error.to_string().contains("at least 204800"), "{error}");
        // What the error recommends works.
        let mut enough = manual();
        (enough.segment_bytes, enough.max_bytes) = (204_800, 64 << 20);
        let journal = Journal::open_with(files.clone(), enough).unwrap();
        append(&journal, &journal.log("t", 1).unwrap(), 8).unwrap();
        journal.close().unwrap();
    }
    let journal = Journal::open_with(files, config).unwrap();
    assert_eq!(journal.log("t", 1).unwrap().end(), 3);
}

/// Whatever the size of segments, each opening finds the same.
#[test]
fn a_damaged_frame_is_reported_the_same_by_each_opening() {
    for segment_bytes in [1 << 20, 4 << 20] {
        let disk = CrashFiles::new(1);
        let mut config = manual();
        (config.segment_bytes, config.max_bytes) = (segment_bytes, 64 << 20);
        let journal = Journal::open_with(disk.mount(), config.clone()).unwrap();
        let log = |journal: &Journal, id| journal.log("t", id).unwrap();
        for id in 0..2_000 {
            append(&journal, &log(&journal, id), 8).unwrap();
        }
        append(&journal, &log(&journal, 77), 1_234).unwrap();
        for id in 0..1_502 {
            append(&journal, &log(&journal, id), 8).unwrap();
        }
        journal.close().unwrap();
        let image = disk.snapshot();
        let marked =
            |content: &[u8]| content.windows(1_234).position(|record| record == [7; 1_234]);
        let (name, at) =
            image.iter().find_map(|(name, content)| Some((name, marked(content)?))).unwrap();
        disk.overwrite(name, at as u64 - 40, &[0xff; 8]);
        let mut seen: Option<Vec<Health>> = None;
        for opening in 0..4 {
            // With smaller segments it must not open, and must change nothing.
            let refused = Journal::open_with(disk.mount(), manual()).unwrap_err();
            assert!(matches!(refused, OpenError::TableTooLarge { .. }), "{refused}");
            let journal = Journal::open_with(disk.mount(), config.clone()).unwrap();
            let healths: Vec<_> = (0..2_000).map(|id| log(&journal, id).health()).collect();
            let intact = healths.iter().filter(|health| **health == Health::Intact).count();
            assert_eq!(intact, 1_501, "opening {opening}");
            assert_eq!(*seen.get_or_insert(healths.clone()), healths, "opening {opening}");
            journal.close().unwrap();
        }
    }
}

#[test]
fn each_limit_of_a_commit_is_named() {
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), manual()).unwrap();
    let log = journal.log("t", 1).unwrap();
    let error = |commit: Commit| journal.commit_blocking(commit).unwrap_err();
    let many = (0..2_049).fold(Commit::new(), |commit, upto| commit.release(&log, upto));
    let expected = Error::TooManyOperations { operations: 2_049, limit: 2_048 };
    assert_eq!(error(many), expected);
    assert_eq!(expected.to_string(), "2049 operations are more than the 2048 allowed for a commit");
    let large = error(Commit::new().append(&log, [vec![0; 20_000]]));
    assert!(matches!(large, Error::TooLarge { what: "commit", limit: 16_384, .. }), "{large}");
    let batch = error(Commit::new().append(&log, [vec![0; 1 << 20]]));
    let limit = 1 << 20;
    assert_eq!(batch, Error::TooLarge { what: "batch", bytes: limit + 4, limit });
}

#[test]
fn the_limits_of_logs_are_told_apart() {
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), manual()).unwrap();
    let full = (0..).find_map(|id| {
        let log = journal.log("t", id).unwrap();
        append(&journal, &log, 1).err().map(|error| (id, error))
    });
    // A quarter of 64 KiB holds the head of the frame and 225 entries of 72 bytes.
    let expected = Error::TableFull { bytes: 136 + 226 * 72, limit: 16_384 };
    assert_eq!(full, Some((225, expected.clone())));
    assert!(expected.to_string().contains("segment_bytes"), "{expected}");
    // A log less makes room for one more.
    journal.commit_blocking(Commit::new().delete(&journal.log("t", 3).unwrap())).unwrap();
    append(&journal, &journal.log("t", 225).unwrap(), 1).unwrap();

    let mut config = manual();
    config.max_logs = 5;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).unwrap();
    let logs: Vec<_> = (0..5).map(|id| journal.log("t", id).unwrap()).collect();
    let error = journal.log("t", 5).unwrap_err();
    assert_eq!(error, Error::TooManyLogs { limit: 5 });
    drop(logs);
    journal.log("t", 5).unwrap();
}

#[test]
fn buffered_commits_that_die_are_counted() {
    let buffered = |log: &Log| Commit::new().append(log, ["x"]).durability(Durability::Buffered);
    // There is no room for them.
    let disk = nearly_full();
    let mut config = manual();
    config.max_pending_bytes = 8 << 20;
    let journal = Journal::open_with(disk.mount(), config).unwrap();
    let log = journal.log("t", 1).unwrap();
    let mut accepted = 0;
    for _ in 0..400 {
        let commit = Commit::new().append(&log, [[7; 900]]).durability(Durability::Buffered);
        assert!(journal.commit_blocking(commit).unwrap().lsn().is_none());
        accepted += 1;
    }
    assert_eq!(journal.stats().buffered_lost, 0);
    while journal.stats().pending_bytes > 0 {
        journal.work(0);
    }
    let lost = journal.stats().buffered_lost;
    assert!(lost > 0 && lost == accepted - log.end(), "{lost} of {accepted}, {log:?}");

    // The journal stops before they are written, or while they are.
    for together in [false, true] {
        let disk = CrashFiles::new(1);
        let journal = Journal::open_with(disk.mount(), manual()).unwrap();
        let (log, other) = (journal.log("t", 1).unwrap(), journal.log("other", 1).unwrap());
        journal.commit_blocking(Commit::new().append(&log, ["kept"])).unwrap();
        disk.inject(Fault::new(Op::Sync, When::Nth(0), Effect::Fail));
        if !together {
            // Written by itself, and the sync fails when the journal idles.
            journal.submit(buffered(&log), |_| {}).unwrap();
            assert_eq!(journal.work(0), Work::Committed { commits: 1 });
        }
        for _ in 0..3 {
            journal.submit(buffered(&log), |_| {}).unwrap();
        }
        journal.submit(Commit::new().append(&other, ["x"]), |_| {}).unwrap();
        journal.work(SECOND);
        assert_eq!(journal.stats().buffered_lost, 3);
        assert!(matches!(journal.close(), Err(Error::Stopped { .. })));
    }
}

/// The log is deleted already when the second one comes, if only the first one is written.
#[test]
fn a_change_that_another_has_made_fails_with_it() {
    let disk = nearly_full();
    let mut config = manual();
    config.max_pending_bytes = 8 << 20;
    let journal = Journal::open_with(disk.mount(), config).unwrap();
    let log = journal.log("t", 1).unwrap();
    append(&journal, &log, 900).unwrap();
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let submit = |commit: Commit| {
        let outcomes = Arc::clone(&outcomes);
        journal.submit(commit, move |outcome| outcomes.lock().push(outcome.is_ok())).unwrap();
    };
    // More than there is room for, on which both deletions build.
    (0..400).for_each(|_| submit(Commit::new().append(&log, [[7; 900]])));
    submit(Commit::new().delete(&log));
    submit(Commit::new().delete(&log));
    while journal.stats().pending_bytes > 0 {
        journal.work(0);
    }
    let outcomes = std::mem::take(&mut *outcomes.lock());
    assert!(outcomes.len() == 402 && outcomes[0] && log.end() > 1, "{outcomes:?}");
    assert_eq!(outcomes[399..], [false, false, false], "the log is there: {log:?}");
    journal.commit_blocking(Commit::new().delete(&log)).unwrap();
    assert_eq!(log.end(), 0);
}

/// A large commit is overtaken by small ones, but by none that has less to do because of it.
#[test]
fn a_change_that_another_has_made_is_told_after_it() {
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), overtaking().config).unwrap();
    let [log, other, third, large] = [1, 2, 3, 4].map(|id| journal.log("t", id).unwrap());
    journal.commit_blocking(Commit::new().append(&log, ["a", "b", "c"])).unwrap();
    let bulk = || Commit::new().append(&large, [vec![7; 60_000], vec![7; 60_000]]);
    // The group behind this one takes no large commit.
    journal.commit_blocking(bulk()).unwrap();
    journal.submit(bulk().release(&log, 2), |_| {}).unwrap();
    let small = |log: &Log| Commit::new().append(log, ["x"]);
    let (told, is_told) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    let (seen, first) = (Arc::clone(&told), log.clone());
    journal
        .submit(small(&other).release(&log, 2), move |outcome| {
            *seen.lock() = Some((outcome.is_ok(), first.first()));
        })
        .unwrap();
    let seen = Arc::clone(&is_told);
    let end = large.clone();
    journal.submit(small(&third), move |_| *seen.lock() = Some(end.end())).unwrap();
    while told.lock().is_none() {
        journal.work(0);
    }
    assert_eq!(*told.lock(), Some((true, 2)), "{log:?} is released when that is told");
    assert_eq!(*is_told.lock(), Some(2), "a small commit that waits for nothing overtakes");
}

/// It is a barrier behind small and large commits of all logs.
#[test]
fn a_commit_without_operations_overtakes_none() {
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), overtaking().config).unwrap();
    let [large, other, small] = [1, 2, 3].map(|id| journal.log("t", id).unwrap());
    let submit = |commit: Commit| journal.submit(commit, |_| {}).unwrap();
    for _ in 0..4 {
        for log in [&large, &other] {
            submit(Commit::new().append(log, [vec![7; 60_000], vec![7; 60_000]]));
        }
        submit(Commit::new().append(&small, ["x"]));
    }
    let (told, is_told) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    let (seen, logs) = (Arc::clone(&told), [&large, &other, &small].map(Log::clone));
    let ends = move || logs.each_ref().map(Log::end);
    let before = ends.clone();
    journal.submit(Commit::new(), move |_| *seen.lock() = Some(before())).unwrap();
    let seen = Arc::clone(&is_told);
    journal
        .submit(Commit::new().append(&small, ["y"]), move |_| *seen.lock() = Some(ends()))
        .unwrap();
    while told.lock().is_none() {
        journal.work(0);
    }
    assert_eq!(told.lock().unwrap()[..2], [8, 8], "all that were accepted before it");
    let overtaken = is_told.lock().expect("it is told");
    assert!(overtaken[0] < 8, "a small commit does not wait for it: {overtaken:?}");
}

/// A journal of 1,000 logs, each of which has records in each full segment.
fn full_of_a_thousand_logs(disk: &CrashFiles) -> (Journal, Vec<Log>, Config) {
    full_with(manual(), disk)
}

fn full_with(mut config: Config, disk: &CrashFiles) -> (Journal, Vec<Log>, Config) {
    (config.segment_bytes, config.max_bytes) = (1 << 20, 6 << 20);
    let journal = Journal::open_with(disk.mount(), config.clone()).unwrap();
    let logs: Vec<Log> = (0..1_000).map(|id| journal.log("t", id).unwrap()).collect();
    // Ends because nothing is released.
    let full = logs.iter().cycle().find_map(|log| append(&journal, log, 700).err()).unwrap();
    assert!(matches!(full, Error::Full { cause: FullCause::Limit { segments: 6, .. }, .. }));
    (journal, logs, config)
}

#[test]
fn a_full_journal_takes_any_number_of_releases() {
    let disk = CrashFiles::new(1);
    let (mut journal, mut logs, config) = full_of_a_thousand_logs(&disk);
    let files = journal.stats().files;
    let mut upto = 0;
    // What is released frees nothing: an empty log is moved on. It fills the reserve ten times.
    for round in 0..80 {
        let empty = journal.log("empty", 1).unwrap();
        for _ in 0..10 {
            let commit = (0..1_000).fold(Commit::new(), |commit, _| {
                upto += 1;
                commit.release(&empty, upto)
            });
            journal.commit_blocking(commit).unwrap();
        }
        let refused = append(&journal, &logs[0], 700);
        assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
        if round % 8 == 0 {
            disk.power_loss(Loss::Any);
            journal = Journal::open_with(disk.mount(), config.clone()).unwrap();
            logs = (0..1_000).map(|id| journal.log("t", id).unwrap()).collect();
            assert_eq!(journal.log("empty", 1).unwrap().first(), upto);
        }
    }
    assert_eq!(journal.stats().files, files, "no file beside the reserve");
    // Each log is deleted by a commit of its own, and all room comes back.
    for log in &logs {
        journal.commit_blocking(Commit::new().delete(log)).unwrap();
    }
    append(&journal, &logs[0], 700).unwrap();
    assert_eq!(fill(&journal, &logs[0]).outcome(), voussoir_journal::Outcome::NotApplied);
    let stored: u64 = logs[0].extents().iter().map(|extent| extent.bytes).sum();
    assert!(stored > 5 << 20, "{stored} bytes");
}

/// Each log writes what stands for its records, and lets them go. Nothing else is taken, unless
/// rewriting has found room for it.
#[test]
fn a_full_journal_takes_records_that_free_space() {
    let mut without = manual();
    without.rewrite_bytes_per_second = 0;
    assert_eq!(records_free_space(without), 0);
    assert!(records_free_space(manual()) > 0);
}

/// Answers how many commits found room that do not say that they free space.
fn records_free_space(config: Config) -> usize {
    let disk = CrashFiles::new(1);
    let (mut journal, mut logs, config) = full_with(config, &disk);
    let (mut found_room, mut is_rewritten) = (0, false);
    for number in 0..1_000 {
        let log = &logs[number];
        let snapshot = Commit::new().append(log, [vec![1; 200]]);
        let refused = journal.commit_blocking(snapshot.clone().release(log, log.first()));
        is_rewritten |= journal.stats().segments_rewritten > 0;
        if number < 900 && refused.is_ok() {
            assert!(is_rewritten, "log {number}: {refused:?}");
            found_room += 1;
        } else if number < 900 {
            assert!(matches!(refused, Err(Error::Full { .. })), "log {number}: {refused:?}");
        }
        journal.commit_blocking(snapshot.release(log, log.end()).frees_space()).unwrap();
        if number % 100 == 0 {
            disk.power_loss(Loss::Any);
            journal = Journal::open_with(disk.mount(), config.clone()).unwrap();
            logs = (0..1_000).map(|id| journal.log("t", id).unwrap()).collect();
        }
    }
    append(&journal, &logs[0], 700).unwrap();
    assert!(logs.iter().all(|log| log.read(log.end() - 1).is_ok()));
    found_room
}

/// A user that says of all its commits that they free space does not stop those that only release.
#[test]
fn records_that_claim_to_free_space_leave_room_for_releases() {
    let (journal, logs, _) = full_of_a_thousand_logs(&CrashFiles::new(1));
    let mut upto = 0;
    let refused = loop {
        let commit = Commit::new().append(&logs[0], [vec![1; 900]]).frees_space();
        upto += 1;
        let moved = journal.log("empty", 1).unwrap();
        if let Err(error) = journal.commit_blocking(commit.release(&moved, upto)) {
            break error;
        }
        assert!(upto < 2_000, "all of the reserve has been used up");
    };
    assert!(matches!(refused, Error::Full { .. }), "{refused}");
    assert!(upto > 500, "{upto} commits found room in the reserve");
    for log in &logs {
        journal.commit_blocking(Commit::new().release(log, log.end())).unwrap();
    }
    append(&journal, &logs[0], 900).unwrap();
}

/// The disk becomes full while the first segment does: the reserve has its place by then.
#[test]
fn the_reserve_is_there_before_the_disk_is_full() {
    let disk = CrashFiles::new(1);
    let journal = Journal::open_with(disk.mount(), manual()).unwrap();
    let log = journal.log("t", 1).unwrap();
    for _ in 0..20 {
        append(&journal, &log, 900).unwrap();
        while journal.work(0) != Work::Idle {}
    }
    let segments = journal.stats().segments;
    assert_eq!(segments, 5, "the active one, the next one and three");
    disk.set_capacity(Some((128 << 10) + segments as u64 * (64 << 10)));
    let error = fill(&journal, &log);
    assert!(matches!(error, Error::Full { cause: FullCause::Disk { .. }, .. }), "{error}");
    let moved = journal.log("moved", 1).unwrap();
    for upto in 1..3_000 {
        journal.commit_blocking(Commit::new().release(&moved, upto)).unwrap();
    }
    journal.commit_blocking(Commit::new().release(&log, log.end())).unwrap();
    append(&journal, &log, 900).unwrap();
}
