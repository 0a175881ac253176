//! Entry points for fuzzers: what a disk may hold, as bytes. The targets under `fuzz/` and
//! `tests/corpus.rs` call them.

use std::io;
use std::sync::{Arc, OnceLock};

use crate::engine::segment::Segment;
use crate::files::write_all_at;
use crate::format::frame::{HEADER_BYTES, Header, SECTION_BYTES};
use crate::format::index::{DirectoryEntry, decode_entries};
use crate::format::manifest::{self, Manifest, SLOT_BYTES, Slot};
use crate::format::table::Table;
use crate::format::{FRAMES_AT, crc32c, padded};
use crate::{
    Commit, Config, Files, Journal, MemoryFiles, SalvageConfig, SalvageError, inspect, salvage,
};

const JOURNAL_ID: u128 = 7;

/// Decodes `bytes` as a slot of the manifest: as they are, and with the checksum put right.
///
/// # Panics
/// When a decoded manifest does not survive being encoded again.
pub fn manifest_slot(bytes: &[u8]) {
    let mut slot = bytes.to_vec();
    slot.resize(SLOT_BYTES, 0);
    decode_manifest(&slot);
    manifest::seal(&mut slot);
    decode_manifest(&slot);
}

fn decode_manifest(slot: &[u8]) {
    if let Slot::Valid(decoded) = Manifest::decode(slot) {
        let mut again = decoded.encode();
        again.resize(SLOT_BYTES, 0);
        let Slot::Valid(second) = Manifest::decode(&again) else { panic!("{decoded:?} is lost") };
        assert_eq!(format!("{second:?}"), format!("{decoded:?}"), "a manifest changed");
    }
}

/// Decodes `bytes` as a frame's header and sections, as a table of logs and as an index.
///
/// # Panics
/// When decoded sections or a decoded table do not survive being encoded again.
pub fn frame(bytes: &[u8]) {
    if let Some(header) = Header::peek(bytes)
        && let Ok(sections) = header.sections(bytes)
    {
        let file = Arc::new(MemoryFiles::new()).create("segment-00000000");
        if let Ok(file) = file {
            let segment = Segment::new(JOURNAL_ID, 0, 1, 1 << 16, file);
            let mut head = vec![0; header.head as usize];
            let place = segment.location(FRAMES_AT);
            header.encode(&sections, place, &mut head);
            assert!(header.verify(&head, place), "an encoded head does not verify");
            assert_eq!(header.sections(&head), Ok(sections), "sections changed");
        }
    }
    let (count, rest) = match bytes.split_first_chunk::<4>() {
        Some((count, rest)) => (u32::from_le_bytes(*count), rest),
        None => return,
    };
    if let Some(table) = Table::decode(rest, count) {
        let again = Table::decode(&table.encode(), table.logs.len() as u32);
        assert_eq!(format!("{again:?}"), format!("{:?}", Some(table)), "a table changed");
    }
    for entry in DirectoryEntry::decode_all(rest, count).iter().flatten() {
        // With a checksum that holds, whatever the entries say.
        let entry = DirectoryEntry { crc: crc32c(rest), ..*entry };
        let _ = decode_entries(rest, &entry);
    }
}

/// Opens, inspects, salvages, reads and writes a journal whose files were changed: `bytes` is a
/// list of changes of five bytes each (the file, the offset in three bytes, little-endian, and the
/// new byte). All checksums are put right after that, so that what the bytes mean is reached.
///
/// # Panics
/// When the journal panics, or answers differently when it is opened a second time.
pub fn directory(bytes: &[u8]) {
    let Ok(image) = image() else { return };
    let mut image = image.clone();
    for change in bytes.chunks_exact(5) {
        let files = image.len();
        let (_, content) = &mut image[usize::from(change[0]) % files];
        let at = u32::from_le_bytes([change[1], change[2], change[3], 0]) as usize;
        let length = content.len();
        content[at % length] = change[4];
    }
    for (name, content) in &mut image {
        if name == "manifest" {
            content.chunks_mut(SLOT_BYTES).for_each(manifest::seal);
        } else {
            seal_frames(name, content);
        }
    }
    let files: Arc<dyn Files> = Arc::new(MemoryFiles::new());
    for (name, content) in &image {
        let written = files.create(name).and_then(|file| write_all_at(&*file, content, 0));
        if written.is_err() {
            return;
        }
    }
    let _ = inspect(&*files, &mut |_| {});
    let new = Arc::new(MemoryFiles::new());
    match salvage(&*files, new.clone(), &SalvageConfig::default(), &mut |_| {}) {
        Ok(_) => assert!(use_journal(&(new as Arc<dyn Files>)).is_some(), "no journal was saved"),
        Err(SalvageError::NoJournal { .. }) => {}
        Err(error) => panic!("whatever the files hold is no reason to fail: {error}"),
    }
    let first = use_journal(&files);
    if first.is_some() {
        assert!(use_journal(&files).is_some(), "it opened once and then no more");
    }
}

/// Reads all that can be read, appends to each log and closes. `None` when it does not open.
fn use_journal(files: &Arc<dyn Files>) -> Option<()> {
    let journal = Journal::open_with(Arc::clone(files), config()).ok()?;
    for info in journal.logs() {
        let Ok(log) = journal.log(&info.name.namespace, info.name.id) else { continue };
        let bounds = log.bounds();
        // A position may say anything; only its own bytes cost memory.
        let _ = log.read_range(bounds.clone(), 1 << 20);
        let _ = log.read(bounds.start);
        let _ = log.read(bounds.end.wrapping_sub(1));
        let _ = journal.commit_blocking(Commit::new().append(&log, ["again"]));
    }
    let _ = journal.close();
    Some(())
}

fn config() -> Config {
    let mut config = Config::manual();
    config.segment_bytes = 64 << 10;
    config.max_bytes = 1 << 20;
    config.identity = Some(JOURNAL_ID);
    config
}

type Image = Vec<(String, Vec<u8>)>;

/// The files of a small journal with every kind of section and a sealed segment.
fn image() -> Result<&'static Image, &'static io::Error> {
    static IMAGE: OnceLock<io::Result<Image>> = OnceLock::new();
    IMAGE.get_or_init(make_image).as_ref()
}

fn make_image() -> io::Result<Image> {
    let files: Arc<dyn Files> = Arc::new(MemoryFiles::new());
    let journal = Journal::open_with(Arc::clone(&files), config()).map_err(io::Error::other)?;
    let log = |id| journal.log("log", id).map_err(io::Error::other);
    let (a, b, c) = (log(1)?, log(2)?, log(3)?);
    let commit = |commit| journal.commit_blocking(commit).map(drop).map_err(io::Error::other);
    commit(Commit::new().append(&a, ["one", "two", ""]).append(&b, ["b"]).append(&c, ["c"]))?;
    commit(Commit::new().truncate(&a, 2).append(&a, ["three"]).release(&a, 1).delete(&c))?;
    for _ in 0..6 {
        commit(Commit::new().append(&a, [[5; 12_000]]))?;
    }
    commit(Commit::new().release(&b, 1))?;
    journal.close().map_err(io::Error::other)?;
    let mut image = Vec::new();
    for name in files.list()? {
        let file = files.open(&name)?;
        let mut content = vec![0; usize::try_from(file.len()?).unwrap_or(0)];
        file.read_at(&mut content, 0)?;
        if !content.is_empty() {
            image.push((name, content));
        }
    }
    Ok(image)
}

/// Puts right the checksums of the frames of a segment file, as far as their lengths lead.
fn seal_frames(name: &str, content: &mut [u8]) {
    let Some(slot) = manifest::segment_slot(name) else { return };
    let Ok(file) = MemoryFiles::new().create(name) else { return };
    let Some(sequence) = content.get(32..40).and_then(|bytes| bytes.first_chunk()) else { return };
    let sequence = u64::from_le_bytes(*sequence);
    let segment = Segment::new(JOURNAL_ID, slot, sequence, content.len() as u64, file);
    let mut at = FRAMES_AT as usize;
    while let Some(header) = content.get(at..).and_then(Header::peek) {
        let end = at + (header.length as usize).max(HEADER_BYTES);
        let Some(frame) = content.get_mut(at..end) else { return };
        let mut payload = header.head as usize;
        for number in 0..usize::from(header.sections) {
            let section = HEADER_BYTES + number * SECTION_BYTES;
            let Some(length) = frame.get(section + 28..section + 32) else { break };
            let length = u32::from_le_bytes(*length.first_chunk().unwrap_or(&[0; 4]));
            let Some(covered) = frame.get(payload..payload + length as usize) else { break };
            let crc = crc32c(covered);
            frame[section + 32..section + 36].copy_from_slice(&crc.to_le_bytes());
            payload += padded(u64::from(length)) as usize;
        }
        let crc = crc32c(&frame[8..header.head as usize]) ^ segment.location(at as u64).mask();
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}
