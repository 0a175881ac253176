//! The byte format does not change by accident: a small journal is compared byte for byte with
//! `tests/golden/*.hex`. `UPDATE=1 cargo test -p voussoir-journal --test golden` rewrites them,
//! which is right only together with a new format version.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use voussoir_journal::{Commit, Config, Files, Journal, MemoryFiles, OpenError, Work};

fn config() -> Config {
    let mut config = Config::manual();
    config.segment_bytes = 64 << 10;
    config.max_bytes = 1 << 20;
    config.identity = Some(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    config
}

/// Every kind of section, two epochs, a rotation.
fn write(files: &Arc<MemoryFiles>) {
    let journal = Journal::open_with(files.clone(), config()).unwrap();
    let a = journal.log("golden", 1).unwrap();
    let b = journal.log("another", u64::MAX).unwrap();
    let commit = |commit: Commit| journal.commit_blocking(commit).map(drop).unwrap();
    commit(Commit::new().append(&a, ["one", "two", ""]).append(&b, [[7u8; 9]]));
    commit(Commit::new().truncate(&a, 2).append(&a, ["three"]).release(&a, 1));
    commit(Commit::new().delete(&b));
    commit(Commit::new().release(&b, 5).append(&b, ["at five"]));
    journal.close().unwrap();

    let journal = Journal::open_with(files.clone(), config()).unwrap();
    let a = journal.log("golden", 1).unwrap();
    for _ in 0..5 {
        journal.commit_blocking(Commit::new().append(&a, [vec![0x55; 14_000]])).unwrap();
    }
    assert_eq!(journal.stats().rotations, 1);
    journal.close().unwrap();
}

fn read(files: &MemoryFiles, name: &str) -> Vec<u8> {
    let file = files.open(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

/// Sixteen bytes a line, repeated lines as `*`.
fn hex(bytes: &[u8]) -> String {
    let (mut text, mut before, mut repeated) = (String::new(), None, false);
    for (number, line) in bytes.chunks(16).enumerate() {
        if before == Some(line) {
            if !repeated {
                text.push_str("*\n");
            }
            repeated = true;
            continue;
        }
        (before, repeated) = (Some(line), false);
        write!(text, "{:08x}", number * 16).unwrap();
        for byte in line {
            write!(text, " {byte:02x}").unwrap();
        }
        text.push('\n');
    }
    writeln!(text, "{:08x}", bytes.len()).unwrap();
    text
}

#[test]
fn the_bytes_are_as_they_were() {
    let files = Arc::new(MemoryFiles::new());
    write(&files);
    for name in ["manifest", "segment-00000000", "segment-00000001"] {
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.hex"));
        let now = hex(&read(&files, name));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &now).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap();
        assert!(golden == now, "{name} differs from {}", path.display());
    }
}

/// A cold log with a record in each segment, until they have been rewritten once.
fn write_moved(files: &Arc<MemoryFiles>) -> String {
    let mut config = config();
    config.max_bytes = 4 * config.segment_bytes;
    let journal = Journal::open_with(files.clone(), config).unwrap();
    let (cold, hot) = (journal.log("cold", 1).unwrap(), journal.log("hot", 2).unwrap());
    for number in 0..40 {
        let record = [vec![0x55; 14_000]];
        let mut commit = Commit::new().append(&hot, record).release(&hot, hot.end());
        if number % 3 == 0 {
            commit = commit.append(&cold, [format!("record {number}"), "another".to_owned()]);
        }
        journal.commit_blocking(commit).unwrap();
        while journal.work(0) != Work::Idle {
            if journal.stats().segments_rewritten > 0 {
                let names = files.list().unwrap();
                let is_moved = |name: &&String| {
                    name.starts_with("segment-") && read(files, name).get(52) == Some(&1)
                };
                return names.iter().find(is_moved).unwrap().clone();
            }
        }
    }
    panic!("nothing was rewritten: {:?}", journal.stats());
}

#[test]
fn moved_frames_are_as_they_were() {
    let files = Arc::new(MemoryFiles::new());
    let name = write_moved(&files);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/moved.hex");
    let now = hex(&read(&files, &name));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert!(golden == now, "{name} differs from {}", path.display());
}

#[test]
fn a_newer_version_is_named() {
    let files = Arc::new(MemoryFiles::new());
    write(&files);
    // Byte 8 is the version, and the checksum of a slot covers it: a real one of version 3.
    let manifest = files.open("manifest").unwrap();
    for slot in [0, 64 << 10] {
        let mut bytes = vec![0; 64 << 10];
        manifest.read_at(&mut bytes, slot).unwrap();
        let length = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
        bytes[8] = 3;
        let covered = [&bytes[8..12], &bytes[16..length]].concat();
        let crc = crc_fast::crc32_iscsi(&covered);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        manifest.write_at(&[std::io::IoSlice::new(&bytes[..length])], slot).unwrap();
    }
    let opened = Journal::open_with(files.clone(), config());
    let name = "manifest".to_owned();
    assert_eq!(opened.err(), Some(OpenError::NewerFormat { name, found: 3, supported: 2 }));
}

#[test]
fn directories_that_are_not_one_whole_journal_are_refused() {
    let files = Arc::new(MemoryFiles::new());
    write(&files);
    let held = Journal::open_with(files.clone(), config()).unwrap();
    assert_eq!(Journal::open_with(files.clone(), config()).err(), Some(OpenError::InUse));
    held.close().unwrap();

    let other = Arc::new(MemoryFiles::new());
    let mut foreign = config();
    foreign.identity = Some(1);
    Journal::open_with(other.clone(), foreign).unwrap().close().unwrap();
    let bytes = read(&other, "segment-00000000");
    let mixed = files.create("segment-000000ff").unwrap();
    mixed.write_at(&[std::io::IoSlice::new(&bytes)], 0).unwrap();
    let name = "segment-000000ff".to_owned();
    let opened = Journal::open_with(files.clone(), config());
    assert_eq!(opened.err(), Some(OpenError::ForeignSegment { name }));
    files.remove("segment-000000ff").unwrap();

    files.rename("segment-00000000", "aside").unwrap();
    let name = "segment-00000000".to_owned();
    let opened = Journal::open_with(files.clone(), config());
    assert_eq!(opened.err(), Some(OpenError::SegmentMissing { name }));
    files.rename("aside", "segment-00000000").unwrap();

    files.rename("manifest", "aside").unwrap();
    let opened = Journal::open_with(files.clone(), config());
    assert!(matches!(opened.err(), Some(OpenError::ManifestMissing { segments: 2.. })));
    files.rename("aside", "manifest").unwrap();

    // Nothing was changed by all the refusals.
    let journal = Journal::open_with(files, config()).unwrap();
    assert_eq!(journal.log("golden", 1).unwrap().bounds(), 1..8);
    assert_eq!(journal.log("another", u64::MAX).unwrap().bounds(), 5..6);
}
