//! A full segment whose index cannot be used, and which has lost a frame as well: nothing that the
//! frame had replaced is taken for what counts, by no reader and by no copy. And what it costs when
//! only the index is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use voussoir_journal::files::crash::{CrashFiles, Loss, Op};
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{Commit, Files, Health, Journal, Log, ReadError, Role, inspect};
use voussoir_sim::Situations;

use crate::rewriting::{
    SEGMENT, append_cold, cold, commit, fill_segment, fits, hot, index_at, moved_segment, open,
    record, short_of_segments,
};

const FRAMES_AT: usize = 4096;
/// Bytes of a frame's header, and of each of its sections.
const HEADER: usize = 40;
const INDEX: u8 = 4;

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn content(disk: &CrashFiles, name: &str) -> Vec<u8> {
    disk.snapshot().into_iter().find(|(file, _)| file == name).unwrap().1
}

/// Where the heads of the frames of a segment are, up to the index.
fn heads(content: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut heads, mut at) = (Vec::new(), FRAMES_AT);
    while content[at..].starts_with(b"vsrf") && content[at + 38] != INDEX {
        heads.push(at..at + u32_at(content, at + 32));
        at += u32_at(content, at + 24);
    }
    heads
}

/// The trailer rots: nothing says where the index is.
fn lose_index(disk: &CrashFiles, name: &str) {
    disk.overwrite(name, SEGMENT - 64, &[0; 64]);
}

/// The entries of the index rot, and not the directory before them.
fn lose_entries(disk: &CrashFiles, name: &str) {
    let content = content(disk, name);
    let at = index_at(&content) as usize;
    let directory = u32_at(&content, at + HEADER + 28).next_multiple_of(8);
    let entries = at + u32_at(&content, at + 32) + directory;
    disk.overwrite(name, entries as u64, &[0xff; 24]);
}

/// What may stand at a position: nothing else is ever read there.
fn check(log: &Log, expected: &[String], situations: &Situations) {
    for (position, expected) in expected.iter().enumerate() {
        match log.read(position as u64) {
            Ok(read) => {
                assert_eq!(read, expected.as_bytes(), "position {position}");
                situations.reached("a record is read");
            }
            Err(ReadError::Damaged { .. }) => situations.reached("a record is damaged"),
            Err(error) => panic!("position {position}: {error}"),
        }
    }
    let range = log.read_range(0..expected.len() as u64, usize::MAX);
    let read = range.unwrap_or_default();
    assert!(read.iter().zip(expected).all(|(read, expected)| read == expected), "{read:?}");
}

fn words(word: &str, positions: std::ops::Range<u64>) -> Vec<String> {
    positions.map(|position| format!("{word} {position}")).collect()
}

/// A closed journal: a batch, which the next commit replaces in part, and perhaps another batch
/// after that, all in its first segment. And what the log holds.
fn replaced_in_part(goes_on: bool) -> (CrashFiles, Vec<String>) {
    let disk = CrashFiles::new(1);
    let journal = open(disk.mount());
    let log = cold(&journal);
    commit(&journal, Commit::new().append(&log, words("old", 0..10)));
    commit(&journal, Commit::new().truncate(&log, 3).append(&log, words("new", 3..8)));
    let mut expected = [words("old", 0..3), words("new", 3..8)].concat();
    if goes_on {
        commit(&journal, Commit::new().append(&log, words("more", 8..12)));
        expected.extend(words("more", 8..12));
    }
    fill_segment(&journal, true);
    journal.close().unwrap();
    (disk, expected)
}

static READS: [&str; 2] = ["a record is read", "a record is damaged"];

/// Each bit of each head in turn, with the journal open: opening found nothing wrong.
#[test]
fn a_lost_frame_brings_nothing_back() {
    const NAME: &str = "segment-00000000";
    let situations = Situations::new(&READS);
    for goes_on in [false, true] {
        let (base, expected) = replaced_in_part(goes_on);
        let heads = heads(&content(&base, NAME));
        // The table is the first; then the commits to the log.
        for head in &heads[1..3 + usize::from(goes_on)] {
            for byte in head.clone() {
                let disk = base.fork(byte as u64);
                let journal = open(disk.mount());
                let log = cold(&journal);
                assert_eq!(log.health(), Health::Intact);
                lose_index(&disk, NAME);
                disk.flip_bit(NAME, byte as u64 * 8 + byte as u64 % 8);
                check(&log, &expected, &situations);
            }
        }
    }
    situations.assert_all_reached();
}

/// The same of moved frames: part of a batch that was moved has been replaced, and what replaced it
/// was moved as well.
#[test]
fn a_lost_moved_frame_brings_nothing_back() {
    let situations = Situations::new(&READS);
    let base = CrashFiles::new(1);
    let journal = open(base.mount());
    let log = cold(&journal);
    commit(&journal, Commit::new().append(&log, words("old", 0..10)));
    fill_segment(&journal, false);
    commit(&journal, Commit::new().truncate(&log, 5).append(&log, words("new", 5..15)));
    let expected = [words("old", 0..5), words("new", 5..15)].concat();
    let pins = journal.log("pins", 1).unwrap();
    while journal.stats().segments_rewritten == 0 {
        commit(&journal, Commit::new().append(&pins, ["here"]));
        fill_segment(&journal, true);
    }
    journal.close().unwrap();
    let (name, moved) = moved_segment(&base);
    let heads = heads(&moved);
    assert!(heads.len() > 3, "{heads:?}");
    for byte in heads.iter().take(2).cloned().flatten() {
        let disk = base.fork(byte as u64);
        let journal = open(disk.mount());
        let log = cold(&journal);
        assert_eq!(log.health(), Health::Intact);
        lose_index(&disk, &name);
        disk.flip_bit(&name, byte as u64 * 8 + byte as u64 % 8);
        check(&log, &expected, &situations);
    }
    let journal = open(base.mount());
    lose_index(&base, &name);
    check(&cold(&journal), &expected, &situations);
    assert_eq!(cold(&journal).read(7).unwrap(), "new 7", "the frames have everything");
    situations.assert_all_reached();
}

/// A round has been planned by the directories, and in one victim the batches of a log cannot be
/// listed any more: one of them is neither dropped with its segment nor mistaken for another.
#[test]
fn what_a_victim_cannot_list_stays() {
    // What is appended to the first segment, and which of these frames is lost.
    type Story = (fn(&Journal), usize);
    let in_a_row: fn(&Journal) = |journal| {
        for positions in [0..5, 5..8, 8..12] {
            let records = positions.map(record);
            commit(journal, Commit::new().append(&cold(journal), records));
        }
    };
    let replaced: fn(&Journal) = |journal| {
        let log = cold(journal);
        commit(journal, Commit::new().append(&log, (0..10).map(|at| record(at % 3))));
        commit(journal, Commit::new().truncate(&log, 3).append(&log, (3..8).map(record)));
    };
    let stories: [Story; 5] =
        [(in_a_row, 0), (in_a_row, 1), (in_a_row, 2), (replaced, 0), (replaced, 1)];
    for (begin, lost) in stories {
        let disk = CrashFiles::new(1);
        let journal = open(disk.mount());
        begin(&journal);
        let upto = cold(&journal).end();
        drop(journal);
        disk.kill();
        let journal = short_of_segments(disk.mount());
        let all = cold(&journal).end();
        let name = "segment-00000000";
        let head = heads(&content(&disk, name))[1 + lost].clone();
        lose_entries(&disk, name);
        disk.flip_bit(name, head.start as u64 * 8 + 67);
        let before = content(&disk, name);
        for _ in 0..40 {
            fill_segment(&journal, true);
        }
        let stats = journal.stats();
        assert_eq!(stats.segments_unmovable, 1, "frame {lost}");
        assert!(stats.segments_rewritten > 1, "{stats:?}");
        let check = |journal: &Journal| {
            let log = cold(journal);
            assert_eq!(log.bounds(), 0..all);
            let mut damaged = 0;
            for position in 0..all {
                match log.read(position) {
                    Ok(read) => assert_eq!(read, record(position), "frame {lost}"),
                    Err(ReadError::Damaged { .. }) => {
                        assert!(position < upto, "frame {lost}: {position}");
                        damaged += 1;
                    }
                    Err(error) => panic!("{position}: {error}"),
                }
            }
            damaged
        };
        assert!(check(&journal) > 0, "frame {lost}");
        disk.kill();
        assert!(check(&open(disk.mount())) > 0, "frame {lost}");
        assert!(content(&disk, name) == before, "all that is left is still there");
    }
}

/// Files that count the bytes that are read of the first segment.
fn counted(files: Arc<dyn Files>) -> (Arc<dyn Files>, Arc<AtomicU64>) {
    let bytes = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&bytes);
    let files = HookedFiles::new(files, move |call| {
        if call.op == Op::Read && call.name == "segment-00000000" {
            counter.fetch_add(call.length as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    (Arc::new(files), bytes)
}

const LOGS: u64 = 60;

/// Many logs in the first segment, which is full.
fn many_logs(disk: &CrashFiles) -> Journal {
    let journal = open(disk.mount());
    for id in 0..LOGS {
        let log = journal.log("many", id).unwrap();
        commit(&journal, Commit::new().append(&log, [record(id)]));
    }
    fill_segment(&journal, true);
    fill_segment(&journal, true);
    journal
}

fn read_all_logs(journal: &Journal) {
    for id in 0..LOGS {
        let log = journal.log("many", id).unwrap();
        assert_eq!((log.read(0).unwrap().to_vec(), log.health()), (record(id), Health::Intact));
    }
}

#[test]
fn an_opening_gives_a_segment_the_index_that_a_crash_took() {
    let disk = CrashFiles::new(1);
    many_logs(&disk);
    disk.power_loss(Loss::Everything);
    let indexed = || {
        let segments = inspect(&*disk.mount(), &mut |_| {}).unwrap().segments;
        segments.iter().find(|segment| segment.name == "segment-00000000").unwrap().indexed
    };
    assert!(!indexed(), "an index is not synced");
    let (files, bytes) = counted(disk.mount());
    let journal = open(files);
    let opening = bytes.swap(0, Ordering::Relaxed);
    assert!(opening < 4 * SEGMENT, "{opening} bytes");
    read_all_logs(&journal);
    // Each log reads its entries and its batch.
    let read = bytes.load(Ordering::Relaxed);
    assert!(read < LOGS * 1_000, "{read} bytes");
    assert_eq!(journal.stats().segments_unmovable, 0);
    journal.close().unwrap();
    assert!(indexed());
    let report = inspect(&*disk.mount(), &mut |_| {}).unwrap();
    assert_eq!(report.problems, []);
}

/// The index rots while the journal is open.
#[test]
fn the_frames_of_a_segment_without_an_index_are_read_once_for_all_logs() {
    let disk = CrashFiles::new(1);
    many_logs(&disk).close().unwrap();
    let (files, bytes) = counted(disk.mount());
    let journal = open(files);
    lose_index(&disk, "segment-00000000");
    bytes.store(0, Ordering::Relaxed);
    read_all_logs(&journal);
    let read = bytes.load(Ordering::Relaxed);
    assert!(read < 2 * SEGMENT, "{read} bytes");
}

/// A frame is lost beside the index: an index of the others would hide that from later openings.
#[test]
fn an_opening_gives_no_index_to_a_segment_that_has_lost_a_frame() {
    let (disk, expected) = replaced_in_part(true);
    let name = "segment-00000000";
    let head = heads(&content(&disk, name))[2].clone();
    let at = index_at(&content(&disk, name));
    disk.overwrite(name, at, &[0; 8]);
    lose_index(&disk, name);
    disk.flip_bit(name, head.start as u64 * 8 + 67);
    for opening in 0..3 {
        let journal = open(disk.mount());
        assert_eq!(cold(&journal).health(), Health::Suspect, "opening {opening}");
        assert_eq!(hot(&journal).health(), Health::Intact, "opening {opening}");
        assert_eq!(journal.stats().segments_unmovable, 1, "opening {opening}");
        assert_eq!(cold(&journal).read(11).unwrap(), expected[11].as_bytes());
        disk.kill();
    }
    let report = inspect(&*disk.mount(), &mut |_| {}).unwrap();
    let segment = report.segments.iter().find(|segment| segment.name == name).unwrap();
    assert!(segment.role == Role::Sealed && !segment.indexed, "{segment:?}");
}

/// A segment that a power loss has robbed of its index is a victim like any other.
#[test]
fn a_segment_without_an_index_can_be_moved_after_the_next_opening() {
    let disk = CrashFiles::new(1);
    drop(short_of_segments(disk.mount()));
    disk.power_loss(Loss::Everything);
    let journal = open(disk.mount());
    for _ in 0..12 {
        append_cold(&journal);
        fill_segment(&journal, true);
    }
    let stats = journal.stats();
    assert!(stats.segments_rewritten > 1 && stats.segments_unmovable == 0, "{stats:?}");
    assert!(stats.files <= 8 + 3, "{stats:?}");
    fits(&journal, cold(&journal).end());
}
