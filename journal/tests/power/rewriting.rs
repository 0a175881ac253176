//! Rewriting of segments that are pinned by little: what it gives back, and what it must not lose.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{
    Commit, Config, Durability, Error, Files, Health, Journal, Log, MemoryFiles, OpenError,
    ReadError, Role, Work, inspect,
};

use crate::losses::in_order;

pub(crate) const SEGMENT: u64 = 64 << 10;

/// A pool of eight segments.
pub(crate) fn config() -> Config {
    let mut config = in_order().config;
    config.max_bytes = 8 * SEGMENT;
    config
}

pub(crate) fn open(files: Arc<dyn Files>) -> Journal {
    Journal::open_with(files, config()).unwrap()
}

pub(crate) fn cold(journal: &Journal) -> Log {
    journal.log("cold", 1).unwrap()
}

pub(crate) fn hot(journal: &Journal) -> Log {
    journal.log("hot", 1).unwrap()
}

pub(crate) fn record(position: u64) -> Vec<u8> {
    let mut record = position.to_le_bytes().to_vec();
    record.resize(40 + (position % 60) as usize, position as u8);
    record
}

pub(crate) fn commit(journal: &Journal, commit: Commit) {
    journal.commit_blocking(commit).map(drop).unwrap();
}

pub(crate) fn append_cold(journal: &Journal) {
    let log = cold(journal);
    commit(journal, Commit::new().append(&log, [record(log.end())]));
}

/// Fills the active segment with records that are let go at once. `work` as well, or not.
pub(crate) fn fill_segment(journal: &Journal, work: bool) {
    let (hot, before) = (hot(journal), journal.stats().rotations);
    while journal.stats().rotations == before {
        commit(journal, Commit::new().append(&hot, [[7; 3_000]]).release(&hot, hot.end()));
        if work {
            journal.work(0);
        }
    }
}

pub(crate) fn fits(journal: &Journal, upto: u64) {
    let log = cold(journal);
    assert_eq!((log.bounds(), log.health()), (0..upto, Health::Intact));
    let all = log.read_range(0..upto, usize::MAX).unwrap();
    let expected: Vec<Vec<u8>> = (0..upto).map(record).collect();
    assert_eq!(all, expected);
}

/// A journal in which a round has just begun: nothing has been copied yet.
pub(crate) fn short_of_segments(files: Arc<dyn Files>) -> Journal {
    let journal = open(files);
    for _ in 0..12 {
        append_cold(&journal);
        fill_segment(&journal, false);
        let begun = loop {
            match journal.work(0) {
                Work::Prepared => {}
                work => break work == Work::Rewritten,
            }
        };
        if begun {
            assert_eq!(journal.stats().bytes_rewritten, 0);
            return journal;
        }
    }
    panic!("no segment is rewritten: {:?}", journal.stats());
}

/// Goes on with a round to its end.
pub(crate) fn finish_round(journal: &Journal) {
    let before = journal.stats().segments_rewritten;
    for _ in 0..100 {
        assert!(journal.work(0) != Work::Idle, "{:?}", journal.stats());
        if journal.stats().segments_rewritten > before {
            return;
        }
    }
    panic!("the round does not end: {:?}", journal.stats());
}

/// Whoever needs more room than there is does not wait until three quarters are in use.
#[test]
fn segments_are_rewritten_early_where_room_is_asked_for() {
    let works = |journal: &Journal| {
        // Ends: there is no more to do.
        while journal.work(0) != Work::Idle {}
        journal.stats().segments_rewritten
    };
    let files = Arc::new(MemoryFiles::new());
    let journal = open(files);
    for _ in 0..3 {
        append_cold(&journal);
        fill_segment(&journal, false);
    }
    let before = journal.room_bytes();
    assert_eq!(works(&journal), 0, "there is room");
    journal.make_room();
    assert!(works(&journal) >= 2);
    assert!(journal.room_bytes() > before, "{before}");
    fits(&journal, 3);
    // Asked for in vain, it ends.
    journal.make_room();
    works(&journal);
    let mut never = config();
    never.rewrite_bytes_per_second = 0;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), never).unwrap();
    for _ in 0..3 {
        append_cold(&journal);
        fill_segment(&journal, false);
    }
    journal.make_room();
    assert_eq!(works(&journal), 0);
}

#[test]
fn space_comes_back_although_one_log_never_releases() {
    for work in [true, false] {
        let disk = CrashFiles::new(1);
        let mut journal = open(disk.mount());
        for round in 0..100 {
            append_cold(&journal);
            // A commit that finds no room ends the round itself.
            fill_segment(&journal, work);
            assert!(journal.stats().files <= 8 + 3, "{:?}", journal.stats());
            if round % 10 == 9 {
                fits(&journal, round + 1);
                disk.power_loss(Loss::Everything);
                journal = open(disk.mount());
                fits(&journal, round + 1);
            }
        }
        let report = {
            journal.close().unwrap();
            inspect(&*disk.mount(), &mut |_| {}).unwrap()
        };
        assert_eq!(report.problems, []);
        let moved: u64 = report
            .segments
            .iter()
            .filter(|segment| segment.role == Role::Rewritten)
            .map(|segment| segment.frames)
            .sum();
        assert!(moved > 60, "{moved} frames of moved batches and indexes");
    }
}

/// Off, the same load ends in a refusal: that is what rewriting is for.
#[test]
fn without_a_budget_nothing_is_moved() {
    let mut config = config();
    config.rewrite_bytes_per_second = 0;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).unwrap();
    let refused = (0..).find_map(|_| {
        append_cold_or_refuse(&journal).err().or_else(|| {
            let hot = hot(&journal);
            let before = journal.stats().rotations;
            while journal.stats().rotations == before {
                let more = Commit::new().append(&hot, [[7; 3_000]]);
                if let Err(error) = journal.commit_blocking(more.release(&hot, hot.end())) {
                    return Some(error);
                }
                assert_ne!(journal.work(0), Work::Rewritten);
            }
            None
        })
    });
    let Some(Error::Full { pinned_by, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(pinned_by, [cold(&journal).name().clone()]);
}

fn append_cold_or_refuse(journal: &Journal) -> Result<(), Error> {
    let log = cold(journal);
    journal.commit_blocking(Commit::new().append(&log, [record(log.end())])).map(drop)
}

/// The history of a log that was strewn over many segments is read by few calls again.
#[test]
fn the_history_of_a_log_lies_together_again() {
    let reads = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&reads);
    let files = HookedFiles::new(Arc::new(MemoryFiles::new()), move |call| {
        counter.fetch_add(u64::from(call.op == Op::Read), Ordering::Relaxed);
        Ok(())
    });
    let journal = short_of_segments(Arc::new(files));
    let calls = || {
        let before = reads.load(Ordering::Relaxed);
        let log = cold(&journal);
        let read = log.read_range(log.bounds(), usize::MAX).unwrap();
        assert_eq!(read.len() as u64, log.end());
        reads.load(Ordering::Relaxed) - before
    };
    // The first time reads the indexes.
    calls();
    let (strewn, extents) = (calls(), cold(&journal).extents().len());
    finish_round(&journal);
    calls();
    let (together, after) = (calls(), cold(&journal).extents().len());
    assert!(extents >= 4 && after <= 2, "{extents} extents, then {after}");
    assert!(strewn >= extents as u64 && together <= 2, "{strewn} calls, then {together}");
}

/// The power goes at each operation of a round, and again while the journal is opened.
#[test]
fn a_crash_at_any_moment_of_a_round_loses_nothing() {
    let (mut ended, mut cut) = (0, 0);
    for nth in 0.. {
        let disk = CrashFiles::new(nth);
        let journal = short_of_segments(disk.mount());
        let upto = cold(&journal).end();
        disk.inject(Fault::new(Op::Any, When::Nth(nth), Effect::PowerOff));
        let before = journal.stats().segments_rewritten;
        while journal.stats().segments_rewritten == before && journal.work(0) != Work::Idle {}
        let is_done = journal.stats().segments_rewritten > before;
        for loss in [Loss::Any, Loss::Everything] {
            let disk = disk.fork(nth);
            disk.power_loss(loss);
            disk.heal();
            for again in 0..8 {
                disk.inject(Fault::new(Op::Any, When::Nth(again * 3), Effect::PowerOff));
                if let Ok(journal) = Journal::open_with(disk.mount(), config()) {
                    fits_if_readable(&journal, upto);
                }
                disk.power_loss(Loss::Any);
                disk.heal();
            }
            let report = inspect(&*disk.mount(), &mut |_| {}).unwrap();
            assert_eq!(report.problems, [], "operation {nth}");
            let journal = open(disk.mount());
            fits(&journal, upto);
            // What was freed is used, and what was not is freed again.
            for _ in 0..12 {
                append_cold(&journal);
                fill_segment(&journal, true);
            }
            fits(&journal, upto + 12);
        }
        cut += u64::from(!is_done);
        ended += u64::from(is_done);
        if is_done && ended > 2 {
            break;
        }
    }
    assert!(cut > 8, "a round has only {cut} operations");
}

/// As [`fits`], while the power may go in the middle of a read.
fn fits_if_readable(journal: &Journal, upto: u64) {
    match cold(journal).read_range(0..upto, usize::MAX) {
        Ok(all) => assert_eq!(all, (0..all.len() as u64).map(record).collect::<Vec<_>>()),
        Err(ReadError::Io(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

/// What happens to the cold log while it is moved, and how it must look then.
type Change = (fn(&Journal, Durability), fn(&Journal));

fn changes() -> [Change; 4] {
    [
        (
            |journal, durability| {
                let log = cold(journal);
                let release = Commit::new().release(&log, 3).durability(durability);
                commit(journal, release);
            },
            |journal| {
                let log = cold(journal);
                assert_eq!((log.first(), log.health()), (3, Health::Intact));
                assert!(matches!(log.read(2), Err(ReadError::Released { first: 3 })));
                assert_eq!(log.read(3).unwrap(), record(3));
            },
        ),
        (
            |journal, durability| {
                let log = cold(journal);
                let cut = Commit::new().truncate(&log, 2).append(&log, ["new"]);
                commit(journal, cut.durability(durability));
            },
            |journal| {
                let log = cold(journal);
                assert_eq!((log.bounds(), log.health()), (0..3, Health::Intact));
                assert_eq!(log.read_range(1..3, 1 << 20).unwrap(), [&record(1)[..], b"new"]);
            },
        ),
        (
            |journal, durability| {
                commit(journal, Commit::new().delete(&cold(journal)).durability(durability));
            },
            |journal| assert!(!cold(journal).exists()),
        ),
        (
            |journal, durability| {
                let log = cold(journal);
                let again = Commit::new().delete(&log).append(&log, ["again"]);
                commit(journal, again.durability(durability));
            },
            |journal| {
                let log = cold(journal);
                assert_eq!(log.read_range(log.bounds(), 1 << 20).unwrap(), ["again"]);
                assert_eq!((log.bounds(), log.health()), (0..1, Health::Intact));
            },
        ),
    ]
}

/// Each change is made before each step of a round, survives the round, and survives a power loss
/// after it.
#[test]
fn changes_during_a_round_are_not_undone() {
    for (change, holds) in changes() {
        for steps in 0..4 {
            for durability in [Durability::Synced, Durability::Written] {
                let disk = CrashFiles::new(1);
                let journal = short_of_segments(disk.mount());
                for _ in 0..steps {
                    journal.work(0);
                }
                change(&journal, durability);
                holds(&journal);
                // A log that is gone as a whole leaves no victims, only room.
                for _ in 0..40 {
                    fill_segment(&journal, true);
                }
                assert!(journal.stats().segments_recycled > 20, "{:?}", journal.stats());
                holds(&journal);
                disk.power_loss(Loss::Everything);
                let journal = open(disk.mount());
                holds(&journal);
                fill_segment(&journal, true);
                disk.kill();
                holds(&open(disk.mount()));
            }
        }
    }
}

/// A release is merely written before victims are chosen, so that a copy leaves it out. The victims
/// must not go before it is durable.
#[test]
fn a_lost_release_loses_no_record_that_was_left_out_of_a_copy() {
    let mut ended = 0;
    for steps in 0..24 {
        let disk = CrashFiles::new(1);
        let journal = short_of_segments(disk.mount());
        finish_round(&journal);
        // The next round is planned after the release, which is in the same segment as these.
        let (log, hot) = (cold(&journal), hot(&journal));
        for _ in 0..6 {
            append_cold(&journal);
            let before = journal.stats().rotations;
            while journal.stats().rotations == before {
                commit(&journal, Commit::new().append(&hot, [[7; 3_000]]).release(&hot, hot.end()));
            }
        }
        // In the middle of what has been moved together: that is a victim with a part left out.
        let (upto, rewritten) = (2, journal.stats().segments_rewritten);
        commit(&journal, Commit::new().release(&log, upto).durability(Durability::Written));
        let end = log.end();
        for _ in 0..steps {
            journal.work(0);
        }
        ended += u64::from(journal.stats().segments_rewritten > rewritten);
        disk.power_loss(Loss::Everything);
        let journal = open(disk.mount());
        let log = cold(&journal);
        assert_eq!(log.health(), Health::Intact, "{steps} steps");
        assert!(log.first() == 0 || log.first() == upto, "{steps} steps: {log:?}");
        for position in log.first()..end {
            assert_eq!(log.read(position).unwrap(), record(position), "{steps} steps");
        }
    }
    assert!(ended > 2, "only {ended} rounds ended after the release");
}

/// A reader finds a batch in a victim, and before it reads the victim has been moved, freed and
/// filled with something else.
#[test]
fn a_reader_of_a_victim_follows_the_batch() {
    let journal: Arc<Mutex<Option<Journal>>> = Arc::default();
    let (armed, fired) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let hook = {
        let (journal, armed, fired) = (journal.clone(), armed.clone(), fired.clone());
        move |call: voussoir_journal::testing::Call<'_>| {
            if call.op == Op::Read && call.name != "manifest" && armed.swap(false, Ordering::SeqCst)
            {
                let journal = journal.lock().clone().unwrap();
                finish_round(&journal);
                // Each file is used again: what is in these is not let go.
                let pins = journal.log("pins", 1).unwrap();
                for _ in 0..8 {
                    commit(&journal, Commit::new().append(&pins, ["here"]));
                    fill_segment(&journal, true);
                }
                fired.store(true, Ordering::SeqCst);
            }
            Ok(())
        }
    };
    type Read = fn(&Log) -> Vec<u8>;
    let reads: [Read; 3] = [
        |log| log.read(1).unwrap().to_vec(),
        |log| log.read_range(1..3, 1 << 20).unwrap()[0].to_vec(),
        |log| log.try_read(1).unwrap().map_or_else(|| record(1), |read| read.to_vec()),
    ];
    for (number, read) in reads.into_iter().enumerate() {
        for indexed in [false, true] {
            let files = HookedFiles::new(Arc::new(MemoryFiles::new()), hook.clone());
            let opened = short_of_segments(Arc::new(files));
            *journal.lock() = Some(opened.clone());
            let log = cold(&opened);
            if indexed {
                // The index is in memory, so that the next call reads the batch.
                log.read_range(log.bounds(), 1 << 20).unwrap();
            }
            fired.store(false, Ordering::SeqCst);
            armed.store(true, Ordering::SeqCst);
            assert_eq!(read(&log), record(1), "way {number}, indexed: {indexed}");
            let waits = number == 2;
            assert!(fired.load(Ordering::SeqCst) || waits, "the victim was not read");
            armed.store(false, Ordering::SeqCst);
            *journal.lock() = None;
            opened.close().unwrap();
        }
    }
}

/// What does not verify is not copied, and its segment stays for whoever repairs it.
#[test]
fn a_damaged_victim_stays_where_it_is() {
    let disk = CrashFiles::new(1);
    let journal = short_of_segments(disk.mount());
    let upto = cold(&journal).end();
    let damaged = record(2);
    let image = disk.snapshot();
    let at = |content: &[u8]| content.windows(damaged.len()).position(|bytes| bytes == damaged);
    let (name, offset) = image.iter().find_map(|(name, c)| Some((name, at(c)?))).unwrap();
    disk.overwrite(name, offset as u64, &[0xee]);
    for _ in 0..60 {
        fill_segment(&journal, true);
    }
    let stats = journal.stats();
    assert_eq!(stats.segments_unmovable, 1);
    assert!(stats.segments_rewritten > 1, "{stats:?}");
    let check = |journal: &Journal| {
        let log = cold(journal);
        for position in 0..upto {
            match log.read(position) {
                Ok(read) => assert_eq!(read, record(position)),
                Err(ReadError::Damaged { position: 2, .. }) => assert_eq!(position, 2),
                Err(error) => panic!("{position}: {error}"),
            }
        }
        assert!(log.read(2).is_err());
    };
    check(&journal);
    disk.power_loss(Loss::Everything);
    check(&open(disk.mount()));
    disk.kill();
    let problems = inspect(&*disk.mount(), &mut |_| {}).unwrap().problems;
    let [voussoir_journal::Problem::Records { segment, positions, .. }] = &problems[..] else {
        panic!("{problems:?}")
    };
    assert_eq!((segment, positions), (name, &(2..3)));
}

/// The name and the content of the segment that holds moved frames.
pub(crate) fn moved_segment(disk: &CrashFiles) -> (String, Vec<u8>) {
    let report = inspect(&*disk.mount(), &mut |_| {}).unwrap();
    let moved = report.segments.iter().find(|segment| segment.role == Role::Rewritten).unwrap();
    disk.snapshot().into_iter().find(|(name, _)| *name == moved.name).unwrap()
}

/// A disk on which a round has ended, and how many records the cold log has there.
fn after_a_round() -> (CrashFiles, u64) {
    let disk = CrashFiles::new(1);
    let journal = short_of_segments(disk.mount());
    let upto = cold(&journal).end();
    finish_round(&journal);
    journal.close().unwrap();
    (disk, upto)
}

/// The offset of the index, as the trailer of a segment says it.
pub(crate) fn index_at(content: &[u8]) -> u64 {
    let trailer = &content[content.len() - 64..];
    u64::from_le_bytes(trailer[8..16].try_into().unwrap())
}

#[test]
fn damage_to_moved_frames_is_reported() {
    // The index: the frames have everything.
    let (disk, upto) = after_a_round();
    let (name, content) = moved_segment(&disk);
    disk.overwrite(&name, index_at(&content) + 130, &[0xff; 8]);
    fits(&open(disk.mount()), upto);
    disk.kill();
    assert!(!inspect(&*disk.mount(), &mut |_| {}).unwrap().problems.is_empty());

    // A record: it is reported where it is read, and as a problem.
    let (disk, upto) = after_a_round();
    let (name, content) = moved_segment(&disk);
    let wanted = record(1);
    let at = content.windows(wanted.len()).position(|bytes| bytes == wanted).unwrap();
    disk.overwrite(&name, at as u64, &[0xff]);
    let journal = open(disk.mount());
    assert!(matches!(cold(&journal).read(1), Err(ReadError::Damaged { position: 1, .. })));
    assert_eq!(cold(&journal).read(upto - 1).unwrap(), record(upto - 1));
    disk.kill();
    assert_eq!(inspect(&*disk.mount(), &mut |_| {}).unwrap().problems.len(), 1);

    // The index and a frame: nobody knows what the frame was.
    let (disk, _) = after_a_round();
    let (name, content) = moved_segment(&disk);
    disk.overwrite(&name, index_at(&content) + 130, &[0xff; 8]);
    disk.overwrite(&name, 4096 + 8, &[0xff; 8]);
    let journal = open(disk.mount());
    assert_eq!(cold(&journal).health(), Health::Suspect);
    disk.kill();

    // The header of the file: the manifest says what it is.
    let (disk, upto) = after_a_round();
    let (name, _) = moved_segment(&disk);
    disk.overwrite(&name, 16, &[0xff; 8]);
    fits(&open(disk.mount()), upto);
}

/// Part of a moved batch is replaced by records in a segment with a lower sequence than that of the
/// copy. The order of the files is not the order of the log, with an index or without one.
#[test]
fn an_old_copy_never_hides_a_later_record() {
    for lose_index in [false, true] {
        let disk = CrashFiles::new(1);
        let journal = open(disk.mount());
        let log = cold(&journal);
        let batch = |word: &'static str| (0..10).map(move |number| format!("{word} {number}"));
        commit(&journal, Commit::new().append(&log, batch("old")));
        fill_segment(&journal, false);
        // Cut in the middle of a batch: only half of it counts when it is moved.
        commit(&journal, Commit::new().truncate(&log, 5));
        for _ in 0..9 {
            let other = journal.log("other", 1).unwrap();
            commit(&journal, Commit::new().append(&other, ["pins"]));
            fill_segment(&journal, false);
            while journal.work(0) == Work::Prepared {}
        }
        // The copies go to a spare that was made ready before, or after, what replaces them.
        commit(&journal, Commit::new().append(&log, batch("new")));
        fill_segment(&journal, false);
        finish_round(&journal);
        for _ in 0..2 {
            fill_segment(&journal, false);
        }
        let holds = |journal: &Journal| {
            let log = cold(journal);
            let expected: Vec<String> = batch("old").take(5).chain(batch("new")).collect();
            assert_eq!((log.bounds(), log.health()), (0..15, Health::Intact));
            assert_eq!(log.read_range(0..15, 1 << 20).unwrap(), expected);
        };
        holds(&journal);
        commit(&journal, Commit::new().truncate(&log, 4).append(&log, ["4"; 6]));
        fill_segment(&journal, false);
        disk.kill();
        drop(journal);
        if lose_index {
            let (name, content) = moved_segment(&disk);
            disk.overwrite(&name, index_at(&content) + 130, &[0xff; 8]);
        }
        let journal = open(disk.mount());
        let log = cold(&journal);
        assert_eq!((log.bounds(), log.health()), (0..10, Health::Intact));
        let expected: Vec<String> =
            batch("old").take(4).chain((0..6).map(|_| "4".to_owned())).collect();
        assert_eq!(log.read_range(0..10, 1 << 20).unwrap(), expected);
    }
}

/// The first version knows no moved frames. It opens everything else that this one writes.
#[test]
fn only_a_segment_of_moved_frames_needs_the_second_version() {
    let (disk, _) = after_a_round();
    let (moved, content) = moved_segment(&disk);
    assert_eq!(content[8], 2);
    for (name, content) in disk.snapshot() {
        let is_old = content.get(8) == Some(&1);
        assert!(is_old || name == moved || name == "lock", "{name}");
    }
    // As the first version answers a header of the second one, so does this one a third.
    let mut header = content[..64].to_vec();
    header[8] = 3;
    let crc = crc_fast::crc32_iscsi(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    disk.overwrite(&moved, 0, &header);
    let refused = Journal::open_with(disk.mount(), config()).unwrap_err();
    assert_eq!(refused, OpenError::NewerFormat { name: moved, found: 3, supported: 2 });
}

/// A failed write or sync of a copy stops the journal, and what it has is still read.
#[test]
fn a_failed_sync_of_a_copy_is_final() {
    let disk = CrashFiles::new(1);
    let journal = short_of_segments(disk.mount());
    let upto = cold(&journal).end();
    disk.inject(Fault::new(Op::Sync, When::From(0), Effect::Fail));
    while journal.work(0) == Work::Rewritten {}
    let refused = journal.commit_blocking(Commit::new().append(&cold(&journal), ["x"]));
    assert!(matches!(refused, Err(Error::Stopped { .. })), "{refused:?}");
    fits(&journal, upto);
    disk.heal();
    disk.power_loss(Loss::Any);
    fits(&open(disk.mount()), upto);
}

/// A leader that waits for a round, and a round that waits for what the leader has written.
#[test]
fn a_round_ends_while_commits_that_are_merely_written_wait_for_it() {
    let mut config = Config::default();
    (config.segment_bytes, config.max_bytes) = (SEGMENT, 8 * SEGMENT);
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).unwrap();
    let (log, hot) = (cold(&journal), hot(&journal));
    for number in 0..400 {
        let mut more = Commit::new().append(&hot, [[7; 15_000]]).release(&hot, hot.end());
        if number % 4 == 0 {
            more = more.append(&log, [record(log.end())]);
        }
        if number % 40 == 39 {
            more = more.release(&log, log.first() + 2);
        }
        commit(&journal, more.durability(Durability::Written));
    }
    assert!(journal.stats().segments_rewritten > 40, "{:?}", journal.stats());
    for position in log.bounds() {
        assert_eq!(log.read(position).unwrap(), record(position));
    }
    journal.close().unwrap();
}

/// In a journal with threads: the pace is that of the budget, a close does not wait for the round,
/// and the next opening goes on.
#[test]
fn a_round_keeps_to_its_budget_and_ends_with_the_journal() {
    let files = Arc::new(MemoryFiles::new());
    let mut config = Config::default();
    (config.segment_bytes, config.max_bytes) = (1 << 20, 8 << 20);
    config.rewrite_bytes_per_second = 256 << 10;
    let journal = Journal::open_with(files.clone(), config.clone()).unwrap();
    let (log, hot) = (cold(&journal), hot(&journal));
    let moved = || journal.stats().bytes_rewritten;
    let began = Instant::now();
    // Few enough that no append waits for room, which would end the pace.
    for _ in 0..5 {
        let before = journal.stats().rotations;
        for _ in 0..10 {
            commit(&journal, Commit::new().append(&log, [vec![1; 16_000]]));
        }
        while journal.stats().rotations == before {
            let more = Commit::new().append(&hot, [vec![7; 60_000]]);
            commit(&journal, more.release(&hot, hot.end()));
        }
    }
    while moved() < 600 << 10 && began.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (bytes, took) = (moved(), began.elapsed());
    assert!(bytes >= 600 << 10, "{bytes} bytes in {took:?}");
    // Two pieces are moved at once, and each other one after a pause: 128 KiB and a batch each.
    let paced = bytes.saturating_sub(2 * (128 << 10) + 2 * 17_000);
    let least = Duration::from_millis(1_000 * paced / (256 << 10));
    assert!(took >= least, "{bytes} bytes in {took:?}");
    journal.close().unwrap();
    let after_close = files.list().unwrap();
    config.rewrite_bytes_per_second = u64::MAX;
    let journal = Journal::open_with(files.clone(), config).unwrap();
    let end = cold(&journal).end();
    let began = Instant::now();
    while journal.stats().segments_rewritten == 0 && began.elapsed() < Duration::from_secs(30) {
        commit(&journal, Commit::new().append(&self::hot(&journal), [[7; 100]]));
    }
    assert!(journal.stats().segments_rewritten > 1, "{:?}", journal.stats());
    assert_eq!(cold(&journal).read_range(0..end, usize::MAX).unwrap().len() as u64, end);
    assert_eq!(files.list().unwrap().len(), after_close.len());
}
