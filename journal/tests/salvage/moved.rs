//! Salvage of directories whose segments have been rewritten.

use std::sync::Arc;

use voussoir_journal::{
    Commit, FileRole, Health, Journal, MemoryFiles, Role, SalvageConfig, SalvageReport, inspect,
    salvage,
};

use crate::frames::{FRAMES_AT, u32_at};
use crate::life::{Image, config, files_of, image_of};

/// A journal with a log that never releases, most of which has been moved: its files, and the name
/// of the segment that holds moved frames.
fn rewritten() -> (Image, String, Vec<Vec<u8>>) {
    let files = MemoryFiles::new();
    let mut config = config(64 << 10);
    config.max_bytes = 8 * config.segment_bytes;
    let journal = Journal::open_with(Arc::new(files.clone()), config).unwrap();
    let (cold, hot) = (journal.log("cold", 1).unwrap(), journal.log("hot", 1).unwrap());
    let mut records = Vec::new();
    for number in 0..400u32 {
        let mut commit = Commit::new().append(&hot, [[7; 3_000]]).release(&hot, hot.end());
        if number % 7 == 0 {
            records.push(format!("record {number} of the cold log").into_bytes());
            commit = commit.append(&cold, &records[records.len() - 1..]);
        }
        journal.commit_blocking(commit).unwrap();
        journal.work(0);
    }
    assert!(journal.stats().segments_rewritten > 6, "{:?}", journal.stats());
    journal.close().unwrap();
    let report = inspect(&files, &mut |_| {}).unwrap();
    assert_eq!(report.problems, []);
    let moved: Vec<_> =
        report.segments.iter().filter(|segment| segment.role == Role::Rewritten).collect();
    let most = moved.iter().max_by_key(|segment| segment.frames).unwrap();
    assert!(most.frames > 10, "{moved:?}");
    (image_of(&files), most.name.clone(), records)
}

fn run(image: &Image) -> (Journal, SalvageReport) {
    let to = Arc::new(MemoryFiles::new());
    let told = SalvageConfig::default();
    let report = salvage(&files_of(image), to.clone(), &told, &mut |_| {}).unwrap();
    (Journal::open_with(to, config(64 << 10)).unwrap(), report)
}

fn cold_of(journal: &Journal, first: u64, end: u64) -> Vec<Vec<u8>> {
    let log = journal.log("cold", 1).unwrap();
    (first..end).map(|position| log.read(position).unwrap().to_vec()).collect()
}

#[test]
fn a_rewritten_directory_is_saved_whole() {
    let (mut image, _, records) = rewritten();
    let (journal, report) = run(&image);
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(cold_of(&journal, 0, records.len() as u64), records);
    // Nothing proves the end without a manifest; the records are there.
    image.remove("manifest");
    let (journal, report) = run(&image);
    assert!(!report.is_whole());
    assert_eq!(cold_of(&journal, 0, records.len() as u64), records);
}

#[test]
fn the_segment_of_moved_frames_alone_gives_its_records() {
    let (image, name, records) = rewritten();
    for header in [true, false] {
        let mut file = image[&name].clone();
        if !header {
            file[..64].fill(0);
        }
        let mut alone = Image::from([(name.clone(), file)]);
        if !header {
            // Something has to say which journal this is.
            alone.insert("manifest".to_owned(), image["manifest"].clone());
        }
        let (journal, report) = run(&alone);
        let [log] = &report.logs[..] else { panic!("{report:?}") };
        assert_eq!((log.health, report.names_missing), (Health::Suspect, true));
        let named = journal.log(&log.name.namespace, log.name.id).unwrap();
        let saved: Vec<Vec<u8>> = (log.first..log.end)
            .filter_map(|position| named.read(position).ok())
            .map(|read| read.to_vec())
            .collect();
        assert!(saved.len() > 10 && saved.iter().all(|record| records.contains(record)));
        assert_eq!(saved.len() as u64, log.records);
    }
}

#[test]
fn a_damaged_moved_record_is_the_only_one_that_is_missing() {
    let (image, name, records) = rewritten();
    let mut at = FRAMES_AT;
    let mut frames = 0;
    // Each moved frame in turn; the index ends them.
    while image[&name][at + 38] == 5 {
        let mut damaged = image.clone();
        let file = damaged.get_mut(&name).unwrap();
        let (head, length) = (u32_at(file, at + 32) as usize, u32_at(file, at + 24) as usize);
        let position = u64::from_le_bytes(file[at + 48..at + 56].try_into().unwrap());
        file[at + head] ^= 1;
        let (journal, report) = run(&damaged);
        let log = report.logs.iter().find(|log| log.name.namespace == "cold").unwrap();
        let lost = position..position + 1;
        assert_eq!(log.missing, std::slice::from_ref(&lost));
        assert_eq!(log.health, Health::Lost { from: lost.start, until: lost.end });
        let end = records.len() as u64;
        assert_eq!(cold_of(&journal, 0, position), records[..position as usize]);
        assert_eq!(cold_of(&journal, position + 1, end), records[position as usize + 1..]);
        let roles = report.files.iter().filter(|file| file.role == FileRole::Segment).count();
        assert!(roles > 1);
        (at, frames) = (at + length, frames + 1);
    }
    assert!(frames > 10, "{frames}");
}

/// A head that is damaged, and a segment that is gone.
#[test]
fn a_log_is_not_intact_when_moved_frames_are_missing() {
    let (image, name, _) = rewritten();
    let mut headless = image.clone();
    headless.get_mut(&name).unwrap()[FRAMES_AT + 8] ^= 1;
    let mut without = image.clone();
    without.remove(&name);
    for damaged in [headless, without] {
        let (_, report) = run(&damaged);
        let cold = report.logs.iter().find(|log| log.name.namespace == "cold").unwrap();
        assert_ne!(cold.health, Health::Intact, "{report:?}");
    }
}

/// A segment that stays has records of a log that were cut off later, and what replaced them has
/// been moved. When the copies are missing, the old records are not what the log holds.
#[test]
fn what_had_been_cut_off_is_not_intact_when_its_replacement_is_missing() {
    for first_stays in [true, false] {
        old_records_are_suspect(first_stays);
    }
}

fn old_records_are_suspect(first_stays: bool) {
    let files = MemoryFiles::new();
    let mut config = config(64 << 10);
    config.max_bytes = 8 * config.segment_bytes;
    let journal = Journal::open_with(Arc::new(files.clone()), config).unwrap();
    let log = |name: &str| journal.log(name, 1).unwrap();
    let (cold, hot) = (log("cold"), log("hot"));
    let commit = |commit: Commit| journal.commit_blocking(commit).map(drop).unwrap();
    commit(Commit::new().append(&cold, ["old"; 10]));
    let fill = |kept: usize| {
        let before = journal.stats().rotations;
        let mut turns = 0;
        while journal.stats().rotations == before {
            let more = Commit::new().append(&hot, [[7; 3_000]]).release(&hot, hot.end());
            let keeps = turns < kept;
            commit(if keeps { more.append(&log("kept"), [[8; 4_000]]) } else { more });
            journal.work(0);
            turns += 1;
        }
    };
    // Too much of the first segment counts for it to be moved, or nothing but the cold log.
    fill(if first_stays { usize::MAX } else { 0 });
    commit(Commit::new().truncate(&cold, 5).append(&cold, ["new"; 5]));
    for _ in 0..40 {
        commit(Commit::new().append(&log("pins"), ["here"]));
        fill(0);
    }
    assert!(journal.stats().segments_rewritten > 10, "{:?}", journal.stats());
    journal.close().unwrap();
    let (image, mut damaged) = (image_of(&files), Vec::new());
    let moved = |file: &[u8]| file[FRAMES_AT + 38] == 5;
    let holds = |file: &[u8]| file.windows(15).any(|bytes| bytes == b"newnewnewnewnew");
    for (name, file) in image.iter().filter(|(_, file)| file.len() > FRAMES_AT + 64) {
        if name.starts_with("segment-") && moved(file) && holds(file) {
            // The head of each frame, and then the file.
            let mut at = FRAMES_AT;
            while file[at + 38] == 5 {
                let mut headless = image.clone();
                headless.get_mut(name).unwrap()[at + 8] ^= 1;
                damaged.push(headless);
                at += u32_at(file, at + 24) as usize;
            }
            let mut without = image.clone();
            without.remove(name);
            damaged.push(without);
        }
    }
    let stays = image
        .values()
        .any(|file| file.windows(30).any(|bytes| bytes == b"oldold".repeat(5)) && !moved(file));
    assert_eq!(stays, first_stays);
    assert!(damaged.len() > 1, "the new records have not been moved");
    let mut hidden = 0;
    for damaged in damaged {
        let (journal, report) = run(&damaged);
        let told = report.logs.iter().find(|log| log.name.namespace == "cold").unwrap();
        let read = journal.log("cold", 1).unwrap().read(5);
        let is_right = read.as_ref().is_ok_and(|read| read == "new");
        hidden += u64::from(!is_right);
        assert!(is_right || told.health != Health::Intact, "{read:?}: {report:?}");
    }
    assert!(hidden > 1, "no damage hit the new records");
}
