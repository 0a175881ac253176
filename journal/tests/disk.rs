//! Directories of the operating system: who may open them, and what looking at one leaves behind.

use std::fs;
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};

use voussoir_journal::{Commit, Config, DiskFiles, Error, Files, Journal, OpenError, inspect};

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let name = format!("voussoir-disk-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config() -> Config {
    let mut config = Config::manual();
    (config.segment_bytes, config.max_bytes) = (64 << 10, 1 << 20);
    config
}

fn written(dir: &Path) -> Journal {
    let journal = Journal::open(dir, config()).unwrap();
    let log = journal.log("t", 1).unwrap();
    journal.commit_blocking(Commit::new().append(&log, ["kept"])).unwrap();
    journal
}

#[test]
#[cfg(unix)]
fn without_its_lock_file_a_directory_still_has_one_owner() {
    let dir = Directory::new("owner");
    let journal = written(&dir.0);
    assert_eq!(Journal::open(&dir.0, config()).err(), Some(OpenError::InUse));
    fs::remove_file(dir.0.join("lock")).unwrap();
    assert_eq!(Journal::open(&dir.0, config()).err(), Some(OpenError::InUse));
    let files = DiskFiles::existing(&dir.0).unwrap();
    assert_eq!(inspect(&files, &mut |_| {}).err(), Some(OpenError::InUse));
    journal.close().unwrap();
    Journal::open(&dir.0, config()).unwrap().close().unwrap();
}

/// A process of an older version locks the file alone.
#[test]
fn the_lock_file_alone_keeps_others_out_too() {
    let dir = Directory::new("file");
    written(&dir.0).close().unwrap();
    let held = fs::File::open(dir.0.join("lock")).unwrap();
    held.try_lock().unwrap();
    assert_eq!(Journal::open(&dir.0, config()).err(), Some(OpenError::InUse));
    let files = DiskFiles::existing(&dir.0).unwrap();
    assert_eq!(inspect(&files, &mut |_| {}).err(), Some(OpenError::InUse));
    drop(held);
    Journal::open(&dir.0, config()).unwrap().close().unwrap();
}

#[test]
fn looking_at_a_directory_writes_nothing() {
    let dir = Directory::new("look");
    written(&dir.0).close().unwrap();
    fs::remove_file(dir.0.join("lock")).unwrap();
    let content = || {
        let names = fs::read_dir(&dir.0).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = names.map(|path| (fs::read(&path).unwrap(), path)).collect();
        files.sort_unstable();
        files
    };
    let before = content();
    let files = DiskFiles::existing(&dir.0).unwrap();
    let report = inspect(&files, &mut |_| {}).unwrap();
    assert!(report.problems.is_empty() && report.logs.len() == 1, "{report:?}");
    assert!(content() == before);

    // As on a read-only file system: no file is opened for writing, and nothing is created.
    let file = files.open("segment-00000000").unwrap();
    file.write_at(&[IoSlice::new(b"x")], 0).unwrap_err();
    let refused = [
        files.create("new").err(),
        files.rename("manifest", "aside").err(),
        files.remove("manifest").err(),
        files.sync_dir().err(),
    ];
    for error in refused {
        assert_eq!(error.unwrap().kind(), ErrorKind::ReadOnlyFilesystem);
    }
    assert!(content() == before);
    assert_eq!(DiskFiles::existing(dir.0.join("none")).err().unwrap().kind(), ErrorKind::NotFound);
}

/// A file that only looks like a segment does not lead the journal to numbers without a successor.
#[test]
fn a_file_with_the_highest_number_is_none_of_the_journals() {
    let dir = Directory::new("highest");
    written(&dir.0).close().unwrap();
    fs::write(dir.0.join("segment-ffffffff"), b"").unwrap();
    let journal = Journal::open(&dir.0, config()).unwrap();
    let log = journal.log("t", 1).unwrap();
    while journal.stats().rotations < 3 {
        journal.commit_blocking(Commit::new().append(&log, [[7; 900]])).unwrap();
    }
    journal.close().unwrap();
    assert_eq!(fs::read(dir.0.join("segment-ffffffff")).unwrap(), b"");
}

/// A file that the manifest lists and that somebody removed does not come back: this is no lack of
/// room that a caller should wait out.
#[test]
fn a_removed_segment_stops_the_journal_and_is_not_taken_for_a_full_disk() {
    let dir = Directory::new("removed");
    let journal = written(&dir.0);
    let log = journal.log("t", 1).unwrap();
    // Several segments that are free again, to be used once more.
    let record = vec![7_u8; 8 << 10];
    for _ in 0..40 {
        let commit = Commit::new().append(&log, [&record[..]]).release(&log, log.end());
        journal.commit_blocking(commit).unwrap();
    }
    for entry in fs::read_dir(&dir.0).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("segment-") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    let failed = (0..200).find_map(|_| {
        let commit = Commit::new().append(&log, [&record[..]]).release(&log, log.end());
        journal.commit_blocking(commit).err()
    });
    let error = failed.expect("a segment that is gone cannot be used again");
    assert!(matches!(error, Error::Stopped { .. } | Error::Failed { .. }), "{error}");
    assert!(error.to_string().contains("segment-"), "{error}");
}
