//! Reading: extents, logs of a namespace, reads that do not wait, and windows over short batches.
#![cfg(feature = "testing")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use voussoir_journal::files::crash::{CrashFiles, Op};
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{
    Commit, Config, DiskFiles, Durability, Error, Files, Health, Journal, Log, MemoryFiles,
    OpenError, ReadError,
};
use voussoir_sim::Situations;

/// Files in memory that count the calls by which they are read.
fn counted_files(reads: &Arc<AtomicUsize>) -> Arc<dyn Files> {
    let reads = Arc::clone(reads);
    Arc::new(HookedFiles::new(Arc::new(MemoryFiles::new()), move |call| {
        reads.fetch_add(usize::from(call.op == Op::Read), Ordering::Relaxed);
        Ok(())
    }))
}

fn open(files: Arc<dyn Files>, segment_bytes: u64) -> Journal {
    let mut config = Config::manual();
    config.segment_bytes = segment_bytes;
    config.max_bytes = 64 * segment_bytes;
    Journal::open_with(files, config).unwrap()
}

fn append(journal: &Journal, log: &Log, record: &[u8]) {
    let commit = Commit::new().append(log, [record]).durability(Durability::Written);
    journal.commit_blocking(commit).unwrap();
    journal.work(0);
}

fn record(position: u64, length: usize) -> Vec<u8> {
    let mut record = position.to_le_bytes().to_vec();
    record.resize(length, position as u8);
    record
}

/// The figures of a scan of 512 records of 1 KiB, each a batch of its own.
#[test]
fn short_batches_are_read_in_windows() {
    for (others, most) in [(0, 12), (1, 12), (16, 512)] {
        let reads = Arc::new(AtomicUsize::new(0));
        // One segment holds all, or several do, with indexes.
        for segment_bytes in [32 << 20, 256 << 10] {
            let journal = open(counted_files(&reads), segment_bytes);
            let log = journal.log("scanned", 1).unwrap();
            for position in 0..512 {
                append(&journal, &log, &record(position, 1 << 10));
                for other in 0..others {
                    let other = journal.log("other", other).unwrap();
                    append(&journal, &other, &record(position, 1 << 10));
                }
            }
            let before = reads.load(Ordering::Relaxed);
            let all = log.read_range(0..512, usize::MAX).unwrap();
            let calls = reads.load(Ordering::Relaxed) - before;
            for (position, read) in all.iter().enumerate() {
                assert_eq!(read[..], record(position as u64, 1 << 10), "{position}");
            }
            assert_eq!(all.len(), 512);
            // Each full segment costs four calls more, for its index.
            let indexes = 4 * log.extents().len();
            assert!(calls <= most + indexes, "{others} other logs: {calls} calls");
        }
    }
}

/// A reader of batches of one record each reads none that it has no room for.
#[test]
fn no_batch_is_read_to_be_left_out() {
    let reads = Arc::new(AtomicUsize::new(0));
    // One segment holds all, or several do, with indexes that are in memory by the second read.
    for segment_bytes in [32 << 20, 512 << 10] {
        let journal = open(counted_files(&reads), segment_bytes);
        let log = journal.log("large", 1).unwrap();
        for position in 0..40 {
            append(&journal, &log, &record(position, 64 << 10));
        }
        assert_eq!(log.read_range(0..40, usize::MAX).unwrap().len(), 40);
        for (max_bytes, expected) in [(1, 1), (64 << 10, 1), (100 << 10, 1), (256 << 10, 4)] {
            let before = reads.load(Ordering::Relaxed);
            let read = log.read_range(3..40, max_bytes).unwrap();
            assert_eq!(read.len(), expected);
            let calls = reads.load(Ordering::Relaxed) - before;
            assert_eq!(calls, expected, "{max_bytes} bytes");
            assert_eq!(log.try_read_range(3..40, max_bytes).unwrap(), Some(read));
        }
    }
}

/// Records that lie apart: a batch is read once for those that follow one another, and the one that
/// cannot be read keeps none of the others back.
#[test]
fn records_that_lie_apart_are_read_with_their_batches_once() {
    let reads = Arc::new(AtomicUsize::new(0));
    for segment_bytes in [32 << 20, 256 << 10] {
        let journal = open(counted_files(&reads), segment_bytes);
        let log = journal.log("apart", 1).unwrap();
        for first in (0..1_000).step_by(50) {
            let records = (first..first + 50).map(|position| record(position, 1 << 10));
            journal.commit_blocking(Commit::new().append(&log, records)).unwrap();
            journal.work(0);
        }
        let read = |positions: &[u64]| {
            let mut found = Vec::new();
            log.read_each(positions, |at, record| {
                assert_eq!(at, found.len());
                found.push(record);
            });
            found
        };
        let every_third: Vec<u64> = (0..1_000).step_by(3).collect();
        // The indexes are in memory by the second time.
        for _ in 0..2 {
            let before = reads.load(Ordering::Relaxed);
            let found = read(&every_third);
            let calls = reads.load(Ordering::Relaxed) - before;
            for (position, found) in every_third.iter().zip(&found) {
                assert_eq!(found.as_ref().unwrap()[..], record(*position, 1 << 10), "{position}");
            }
            assert_eq!(found.len(), every_third.len());
            assert!(calls <= 20 + 4 * log.extents().len(), "{calls} calls");
        }
        let cut = Commit::new().truncate(&log, 975).release(&log, 5);
        journal.commit_blocking(cut).unwrap();
        let found = read(&[4, 5, 974, 975, 6, 5_000, 6]);
        let ok: Vec<bool> = found.iter().map(Result::is_ok).collect();
        assert_eq!(ok, [false, true, true, false, true, false, true]);
        assert!(matches!(found[0], Err(ReadError::Released { first: 5 })));
        assert!(matches!(found[3], Err(ReadError::Absent { end: 975 })));
        assert_eq!(found[6].as_ref().unwrap()[..], record(6, 1 << 10));
    }
}

/// A range never has more than was asked for, wherever the windows end.
#[test]
fn ranges_are_exact_at_every_bound() {
    let journal = open(Arc::new(MemoryFiles::new()), 64 << 10);
    let log = journal.log("ranges", 1).unwrap();
    let length = |position: u64| 8 + (position * 37 % 900) as usize;
    for position in 0..200 {
        append(&journal, &log, &record(position, length(position)));
    }
    let cut = Commit::new().truncate(&log, 190).release(&log, 3);
    journal.commit_blocking(cut).unwrap();
    for first in 3..190 {
        for (end, max_bytes) in [(first + 1, 1), (first + 7, 2_000), (u64::MAX, 9_000)] {
            let read = match log.read_range(first..end, max_bytes) {
                Ok(read) => read,
                Err(error) => panic!("{first}..{end}: {error}"),
            };
            let mut bytes = 0;
            let expected = (first..end.min(190)).take_while(|position| {
                bytes += length(*position);
                *position == first || bytes <= max_bytes
            });
            let expected: Vec<Vec<u8>> = expected.map(|p| record(p, length(p))).collect();
            assert_eq!(read, expected, "{first}..{end}, {max_bytes} bytes");
            let cached = log.try_read_range(first..end, max_bytes).unwrap();
            assert_eq!(cached, Some(read), "everything is in memory");
        }
    }
    assert!(matches!(log.try_read(2), Err(ReadError::Released { first: 3 })));
    assert!(matches!(log.try_read_range(190..191, 9), Err(ReadError::Absent { end: 190 })));
    assert_eq!(log.try_read_range(50..50, 9).unwrap(), Some(vec![]));
}

/// Batches of ten records, the last of which is cut in its middle: a window over them ends where
/// the log does, and where the records that replaced the cut ones begin in another segment.
#[test]
fn a_window_ends_at_a_truncation_inside_its_last_batch() {
    let journal = open(Arc::new(MemoryFiles::new()), 64 << 10);
    let (log, other) = (journal.log("cut", 1).unwrap(), journal.log("other", 1).unwrap());
    let commit = |commit: Commit| journal.commit_blocking(commit).unwrap();
    let batch = |first: u64, word: &str| -> Vec<String> {
        (first..first + 10).map(|position| format!("{word} {position}")).collect()
    };
    for first in [0, 10, 20] {
        commit(Commit::new().append(&log, batch(first, "old")));
    }
    commit(Commit::new().truncate(&log, 25));
    let mut expected: Vec<String> = [0, 10, 20].into_iter().flat_map(|f| batch(f, "old")).collect();
    expected.truncate(25);
    for first in 0..25 {
        let read = log.read_range(first..u64::MAX, 1_000).unwrap();
        assert_eq!(read, expected[first as usize..], "from {first}");
    }
    // The same, when what replaces the cut records is in the next segment, before and after the
    // first segment has an index.
    while other.extents().len() < 2 {
        commit(Commit::new().append(&other, [[1; 900]]));
    }
    commit(Commit::new().append(&log, batch(25, "new")));
    assert_eq!(log.extents().len(), 2);
    expected.extend(batch(25, "new"));
    for round in 0..3 {
        for first in 0..35 {
            let read = log.read_range(first..u64::MAX, 1_000).unwrap();
            assert_eq!(read, expected[first as usize..], "from {first}, round {round}");
        }
        journal.work(0);
    }
}

/// What is at hand is what a read gives; what is not is `None`, never an error.
#[test]
fn a_read_that_does_not_wait_gives_the_same_or_nothing() {
    static SITUATIONS: [&str; 4] = ["a record at hand", "no record at hand", "a part", "no index"];
    let reached = Situations::new(&SITUATIONS);
    let disk = CrashFiles::new(7);
    for life in 0..2 {
        let journal = open(disk.mount(), 64 << 10);
        let log = journal.log("cached", 1).unwrap();
        for position in log.end()..200 {
            append(&journal, &log, &record(position, 700));
        }
        for position in 0..200 {
            let tried = log.try_read(position).unwrap();
            if life == 1 && position == 0 {
                assert_eq!(tried, None, "the index of a segment before the newest is unread");
                reached.reached("no index");
            }
            let read = log.read(position).unwrap();
            assert_eq!(read[..], record(position, 700));
            match tried {
                Some(tried) => assert_eq!(tried, read),
                None => reached.reached("no record at hand"),
            }
            if log.try_read(position).unwrap().is_some() {
                reached.reached("a record at hand");
            }
            let some: Vec<Bytes> = log.read_range(position..position + 5, 9_000).unwrap();
            if let Some(part) = log.try_read_range(position..position + 5, 9_000).unwrap() {
                assert_eq!(part, some[..part.len()]);
                if part.len() < some.len() {
                    reached.reached("a part");
                }
            }
        }
        journal.close().unwrap();
        assert!(matches!(log.try_read(0), Err(ReadError::Closed)));
    }
    for name in SITUATIONS {
        assert!(reached.count(name) > 0, "never reached: {name}\n{reached}");
    }
}

/// Real files: the page cache has what has just been written, where the file system tells.
#[test]
fn the_page_cache_is_asked() {
    let folder = std::env::temp_dir().join(format!("voussoir-cached-{}", std::process::id()));
    let journal = open(Arc::new(DiskFiles::new(&folder).unwrap()), 256 << 10);
    let log = journal.log("cached", 1).unwrap();
    let mut hits = 0;
    for position in 0..50 {
        append(&journal, &log, &record(position, 4_000));
        if let Some(read) = log.try_read(position).unwrap() {
            assert_eq!(read[..], record(position, 4_000));
            hits += 1;
        }
    }
    println!("{hits} of 50 records were at hand");
    drop((log, journal));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn extents_tell_what_a_release_lets_go() {
    let journal = open(Arc::new(MemoryFiles::new()), 64 << 10);
    let log = journal.log("retained", 1).unwrap();
    assert!(log.extents().is_empty());
    for position in 0..150 {
        append(&journal, &log, &record(position, 900));
    }
    let extents = log.extents();
    assert!(extents.len() >= 3, "{extents:?}");
    assert_eq!((extents[0].first, extents.last().unwrap().end), (0, 150));
    for pair in extents.windows(2) {
        assert_eq!(pair[0].end, pair[1].first);
        assert!(pair[0].sealed, "{extents:?}");
    }
    assert!(!extents.last().unwrap().sealed, "{extents:?}");
    let bytes: u64 = extents.iter().map(|extent| extent.bytes).sum();
    assert_eq!(bytes, log.info().bytes);

    let counted = journal.stats().extents;
    assert_eq!(counted, extents.iter().filter(|extent| extent.sealed).count() as u64);
    let segments = log.info().segments;
    journal.commit_blocking(Commit::new().release(&log, extents[1].end)).unwrap();
    assert_eq!(log.extents(), extents[2..], "two extents and their segments are gone");
    assert_eq!(journal.stats().extents, counted - 2);
    assert_eq!(log.info().segments, segments - 2);
    // A part of an extent keeps all of its segment.
    journal.commit_blocking(Commit::new().release(&log, extents[2].first + 1)).unwrap();
    assert_eq!(log.extents()[0].first, extents[2].first + 1);
    assert_eq!(log.info().segments, segments - 2);
}

#[test]
fn logs_of_a_namespace_are_found_without_the_others() {
    let journal = open(Arc::new(MemoryFiles::new()), 1 << 20);
    // More than are looked at under one lock, ids at both ends of the range, and gaps.
    let ids: Vec<u64> = (0..700).map(|id| id * 3).chain([u64::MAX]).collect();
    for namespace in ["a", "wanted", "z"] {
        for id in &ids {
            let log = journal.log(namespace, *id).unwrap();
            if id % 2 == 0 || namespace != "wanted" {
                append(&journal, &log, b"x");
            }
        }
    }
    let found: Vec<u64> = journal.logs_of("wanted").iter().map(|info| info.name.id).collect();
    let expected: Vec<u64> = ids.iter().copied().filter(|id| id % 2 == 0).collect();
    assert_eq!(found, expected, "only those that exist, by id");
    assert!(journal.logs_of("unknown").is_empty());
    assert_eq!(journal.logs_of("z").len(), ids.len());
    let all = journal.logs();
    assert_eq!(all.len(), 2 * ids.len() + expected.len());
}

/// Whoever is rejected has the whole commit again, operations without effect included.
#[test]
fn a_rejected_commit_comes_back_whole() {
    let mut config = Config::manual();
    config.segment_bytes = 1 << 20;
    config.max_pending_bytes = 1;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).unwrap();
    let log = journal.log("busy", 1).unwrap();
    journal.submit(Commit::new().append(&log, ["first"]), |_| ()).unwrap();
    let second = Commit::new().release(&log, 0).append(&log, ["second"]);
    let rejected = journal.submit(second, |_| panic!("a rejected commit is not told")).unwrap_err();
    assert!(matches!(rejected.error, Error::Busy { .. }) && rejected.error.is_retryable());
    journal.work(0);
    journal.submit(rejected.commit, |told| drop(told.unwrap())).unwrap();
    journal.work(0);
    assert_eq!(log.read_range(0..9, 99).unwrap(), ["first", "second"]);

    // The second operation fails, so the first one is undone and given back as well.
    let bad = Commit::new().append(&log, ["third"]).truncate(&log, 7);
    let rejected = journal.submit(bad, |_| ()).unwrap_err();
    assert!(matches!(rejected.error, Error::OutOfRange { position: 7, .. }), "{rejected}");
    let mended = rejected.commit.append(&log, ["x", "y", "z", "."]);
    let rejected = journal.submit(mended, |_| ()).unwrap_err();
    assert!(matches!(rejected.error, Error::OutOfRange { end: 3, .. }), "{rejected}");
    assert_eq!(log.end(), 2);
    let receipt = journal.commit_blocking(Commit::new().append(&log, ["third"])).unwrap();
    assert_eq!(receipt.positions().first(), Some(&(2..3)));
}

/// Whichever sector of a full segment cannot be read, the journal opens: an index is rebuilt from
/// the frames, and records in the sector itself are reported. All others are there.
#[test]
fn a_sector_of_a_full_segment_that_cannot_be_read_costs_what_was_in_it() {
    const SEGMENT_BYTES: u64 = 64 << 10;
    const SECTOR: u64 = 512;
    static SITUATIONS: [&str; 2] = ["nothing is lost", "records are reported"];
    let reached = Situations::new(&SITUATIONS);
    let memory = MemoryFiles::new();
    let journal = open(Arc::new(memory.clone()), SEGMENT_BYTES);
    let log = journal.log("hurt", 1).unwrap();
    for position in 0..150 {
        append(&journal, &log, &record(position, 700));
    }
    assert!(log.extents()[0].sealed);
    journal.close().unwrap();
    // The header and the table at the beginning are needed; so is all of the newest segment.
    for start in (8192..SEGMENT_BYTES).step_by(SECTOR as usize) {
        let bad = start..start + SECTOR;
        let files = HookedFiles::new(Arc::new(memory.clone()), move |call| {
            if call.op == Op::Read && call.name == "segment-00000000" && call.touches(&bad) {
                return Err(io::Error::other("unreadable sector"));
            }
            Ok(())
        });
        let mut config = Config::manual();
        (config.segment_bytes, config.max_bytes) = (SEGMENT_BYTES, 64 * SEGMENT_BYTES);
        let journal = Journal::open_with(Arc::new(files), config).unwrap();
        let log = journal.log("hurt", 1).unwrap();
        assert_eq!(log.bounds(), 0..150, "sector at {start}");
        let mut lost = 0;
        for position in 0..150 {
            match log.read(position) {
                Ok(read) => assert_eq!(read[..], record(position, 700)),
                Err(ReadError::Io(_) | ReadError::Damaged { .. }) => lost += 1,
                Err(error) => panic!("sector at {start}, position {position}: {error}"),
            }
        }
        assert!(lost <= 3, "sector at {start}: {lost} records cannot be read");
        reached.reached(if lost == 0 { SITUATIONS[0] } else { SITUATIONS[1] });
    }
    reached.assert_all_reached();
}

/// A device that reads nothing of a full segment for a while is no reason to give up what is on
/// it: opening fails, and works once the device does.
#[test]
fn a_device_that_fails_for_a_while_costs_nothing() {
    let memory = MemoryFiles::new();
    let journal = open(Arc::new(memory.clone()), 64 << 10);
    let log = journal.log("kept", 1).unwrap();
    for position in 0..150 {
        append(&journal, &log, &record(position, 700));
    }
    assert!(log.extents()[0].sealed);
    journal.close().unwrap();
    for from in [8192, 16384, 32768] {
        let failing = Arc::new(AtomicUsize::new(1));
        let fails = Arc::clone(&failing);
        let files = HookedFiles::new(Arc::new(memory.clone()), move |call| {
            let is_lost = call.name == "segment-00000000" && call.touches(&(from..u64::MAX));
            if is_lost && call.op == Op::Read && fails.load(Ordering::Relaxed) > 0 {
                return Err(io::Error::other("the device does not answer"));
            }
            Ok(())
        });
        let mut config = Config::manual();
        (config.segment_bytes, config.max_bytes) = (64 << 10, 64 * (64 << 10));
        let opened = Journal::open_with(Arc::new(files.clone()), config.clone());
        let error = opened.expect_err("nothing of the segment can be read");
        assert!(matches!(error, OpenError::Io(_)), "from {from}: {error}");
        failing.store(0, Ordering::Relaxed);
        let journal = Journal::open_with(Arc::new(files), config).unwrap();
        let log = journal.log("kept", 1).unwrap();
        assert_eq!((log.bounds(), log.health()), (0..150, Health::Intact));
        assert_eq!(log.read_range(0..150, usize::MAX).unwrap().len(), 150);
        journal.close().unwrap();
    }
}
