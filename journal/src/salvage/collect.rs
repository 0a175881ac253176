//! The files of a directory, and the frames that verify in them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{FileRole, SalvageConfig, SalvageError, SalvageProgress, SalvagedFile, identify};
use crate::engine::segment::Segment;
use crate::engine::space::MANIFEST;
use crate::error::{Fault, LogName};
use crate::files::{File, Files, read_full_at};
use crate::format::frame::{FrameKind, SectionKind};
use crate::format::index::BatchRef;
use crate::format::manifest::{Life, Manifest, SPAN_REWRITTEN, segment_name, segment_slot};
use crate::format::segment::{self, Found, SegmentHeader};
use crate::format::table::Table;
use crate::format::{FRAMES_AT, NAMESPACE_BYTES_MAX, SEGMENT_BYTES_MAX, TRAILER_BYTES};
use crate::recovery::read_manifest;
use crate::recovery::scan::{Frame, Scanner};

/// Where one frame stands. Sorted: by LSN, for each LSN the newest epoch first, and of the copies
/// of a frame a whole one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) lsn: u64,
    pub(super) epoch: Reverse<u32>,
    pub(super) is_damaged: bool,
    pub(super) sequence: u64,
    pub(super) offset: u64,
    /// Which of the copies of the segment.
    pub(super) copy: u32,
}

/// What a directory holds of one journal.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) journal: u128,
    pub(super) manifest: Option<Manifest>,
    /// Both copies of the manifest verify: it is the newest one.
    manifest_is_whole: bool,
    pub(super) files: Vec<SalvagedFile>,
    /// By sequence: the files that hold a segment. Invariant: at least one.
    pub(super) segments: BTreeMap<u64, Vec<Arc<Segment>>>,
    /// Segments of which a header or bytes at the end are missing.
    pub(super) cut: Vec<u64>,
    /// Invariant: sorted, and only one place per LSN.
    pub(super) frames: Vec<Place>,
    /// Copies of batches from segments that were rewritten. Invariant: each once, by LSN.
    pub(super) moved: Vec<MovedBatch>,
    /// Segments of moved frames of which no head is missing.
    whole_moved: BTreeSet<u64>,
    /// By number, as tables and creations name the logs.
    pub(super) names: BTreeMap<u64, LogName>,
}

/// A batch in a segment of moved frames. The payload may be damaged.
#[derive(Debug, Clone, Copy)]
pub(super) struct MovedBatch {
    pub(super) log: u64,
    pub(super) lsn: u64,
    pub(super) batch: BatchRef,
    /// The position after its last record.
    pub(super) end: u64,
    pub(super) sequence: u64,
}

/// A file that may be a segment.
struct Candidate {
    name: String,
    file: Arc<dyn File>,
    length: u64,
    header: Option<SegmentHeader>,
}

impl Collected {
    pub(super) fn read(
        files: &dyn Files,
        config: &SalvageConfig,
        progress: &mut dyn FnMut(SalvageProgress),
    ) -> Result<Self, SalvageError> {
        let listed = files
            .list()
            .map_err(|error| SalvageError::Damaged(Fault::new("list", "directory", &error)))?;
        let mut names: Vec<String> =
            listed.into_iter().filter(|name| name.starts_with("segment-")).collect();
        names.sort_unstable();
        let manifest = open_unless_refused(files, MANIFEST)?;
        let manifest = manifest.and_then(|file| read_manifest(&*file).ok());
        let (manifest, manifest_is_whole) = manifest.unzip();
        let candidates: Vec<Candidate> =
            names.iter().map(|name| Candidate::open(files, name)).collect::<Result<_, _>>()?;
        let journal = config.journal.or_else(|| journal_of(&candidates, manifest.as_ref()));
        let Some(journal) = journal else {
            return Err(SalvageError::NoJournal { files: candidates.len() });
        };
        let mut collected = Self {
            journal,
            manifest: manifest.filter(|manifest| manifest.journal == journal),
            manifest_is_whole: manifest_is_whole == Some(true),
            files: Vec::new(),
            segments: BTreeMap::new(),
            cut: Vec::new(),
            frames: Vec::new(),
            moved: Vec::new(),
            whole_moved: BTreeSet::new(),
            names: BTreeMap::new(),
        };
        let newest = collected.newest_sequence(&candidates);
        let mut done = SalvageProgress::default();
        for candidate in candidates {
            let file = collected.add(candidate, newest);
            done.files += 1;
            done.frames += file.frames;
            collected.files.push(file);
            progress(done);
        }
        collected.choose_frames();
        Ok(collected)
    }

    fn newest_sequence(&self, candidates: &[Candidate]) -> u64 {
        let headers = candidates.iter().filter_map(|candidate| candidate.header);
        let of_headers =
            headers.filter(|header| header.journal == self.journal).map(|header| header.sequence);
        let listed = self.manifest.iter().flat_map(|manifest| &manifest.live);
        of_headers.chain(listed.map(|life| life.sequence)).max().unwrap_or(0)
    }

    /// The manifest shows that the segment had been released when it was written.
    ///
    /// A segment of moved frames has a lower sequence than spares that were prepared while it was
    /// written, and is listed later. When one copy of the manifest is damaged, the other one may be
    /// of the time between, and what the segment was copied from may have been used again since.
    fn is_released(&self, sequence: u64, header: Option<SegmentHeader>) -> bool {
        let may_be_moved = header.is_none_or(|header| header.is_rewritten);
        if may_be_moved && !self.manifest_is_whole {
            return false;
        }
        self.manifest.as_ref().is_some_and(|manifest| {
            let newest = manifest.live.last().map_or(0, |life| life.sequence);
            sequence <= newest && !manifest.live.iter().any(|life| life.sequence == sequence)
        })
    }

    fn add(&mut self, candidate: Candidate, newest: u64) -> SalvagedFile {
        let Candidate { name, file, length, header } = candidate;
        let journal = header.map(|header| header.journal);
        let mut found = SalvagedFile {
            name,
            journal,
            sequence: header.map(|header| header.sequence),
            frames: 0,
            role: FileRole::Unreadable,
        };
        if journal.is_some_and(|journal| journal != self.journal) {
            found.role = FileRole::Foreign;
            return found;
        }
        // Frames end before the file does, whatever its header says: nothing longer is allocated.
        let most = length.saturating_add(TRAILER_BYTES).min(SEGMENT_BYTES_MAX);
        let size = header.map_or(most, |header| header.size.min(most));
        let sequence = found.sequence.or_else(|| {
            let slot = segment_slot(&found.name);
            let mut lives = self.manifest.iter().flat_map(|manifest| &manifest.live);
            // A slot has one life at a time.
            let listed = lives.find(|life| Some(life.slot) == slot);
            let listed = listed.map(|life| life.sequence);
            identify::sequence_of(&file, size, self.journal, listed, newest)
        });
        let Some(sequence) = sequence.filter(|_| size > FRAMES_AT + TRAILER_BYTES) else {
            return found;
        };
        found.sequence = Some(sequence);
        if self.is_released(sequence, header) {
            found.role = FileRole::Released;
            return found;
        }
        if header.is_none_or(|header| length < header.size) {
            self.cut.push(sequence);
        }
        let segment = Segment::new(self.journal, 0, sequence, size, file);
        let copies = self.segments.entry(sequence).or_default();
        let copy = copies.len() as u32;
        copies.push(Arc::new(segment));
        found.role = if copy == 0 { FileRole::Segment } else { FileRole::Copy };
        found.frames = self.search(sequence, copy);
        found
    }

    /// Finds the frames of one file; answers how many.
    fn search(&mut self, sequence: u64, copy: u32) -> u64 {
        let segment = Arc::clone(&self.segments[&sequence][copy as usize]);
        let mut scanner = Scanner::lenient(&segment);
        let (mut offset, mut lsn, mut epoch, mut frames) = (FRAMES_AT, 0, 0, 0);
        let (mut holds_moved, mut contiguous, mut ended) = (false, true, false);
        // Ends: each turn goes on behind the frame found. A lenient scanner fails at nothing.
        while let Ok(Some(frame)) = scanner.search(offset) {
            // Moved frames are in the order of logs, and their index has no LSN of its own.
            holds_moved |= frame.kind() == Some(FrameKind::Moved);
            if holds_moved {
                contiguous &= frame.offset == offset;
                ended = frame.kind() == Some(FrameKind::Index);
                offset = frame.end();
                self.note_moved(&frame, sequence);
                frames += 1;
                continue;
            }
            // Leftovers of an earlier epoch lie behind the end, and never count.
            if frame.header.lsn <= lsn || frame.header.epoch < epoch {
                offset = frame.offset + 8;
                continue;
            }
            (lsn, epoch, offset) = (frame.header.lsn, frame.header.epoch, frame.end());
            let bad = scanner.bad_payloads(&frame).unwrap_or_default();
            self.note_names(&mut scanner, &frame, &bad);
            self.frames.push(Place {
                lsn,
                epoch: Reverse(epoch),
                is_damaged: !bad.is_empty(),
                sequence,
                offset: frame.offset,
                copy,
            });
            frames += 1;
        }
        if holds_moved && contiguous && ended {
            self.whole_moved.insert(sequence);
        }
        frames
    }

    fn note_moved(&mut self, frame: &Frame, sequence: u64) {
        let lsn = frame.header.lsn;
        let moved = frame.batches().map(|(_, log, batch, end)| MovedBatch {
            log,
            lsn,
            batch,
            end,
            sequence,
        });
        self.moved.extend(moved);
    }

    fn note_names(&mut self, scanner: &mut Scanner<'_>, frame: &Frame, bad: &[usize]) {
        let whole = |(number, _): &(usize, _)| !bad.contains(number);
        for (_, (at, section)) in frame.payloads().enumerate().filter(whole) {
            if !matches!(section.kind, SectionKind::Create | SectionKind::Table) {
                continue;
            }
            let Ok(payload) = scanner.bytes(at, section.length as usize) else { continue };
            if section.kind == SectionKind::Create {
                if let Ok(namespace) = str::from_utf8(payload)
                    && namespace.len() <= NAMESPACE_BYTES_MAX
                {
                    let name = LogName { namespace: namespace.to_owned(), id: section.position };
                    self.names.insert(section.log, name);
                }
            } else if let Some(table) = Table::decode(payload, section.count) {
                for log in table.logs {
                    let name = LogName { namespace: log.namespace, id: log.id };
                    self.names.insert(log.number, name);
                }
            }
        }
    }

    /// Leaves one place per LSN. Where an opening went on below the end of what had been written
    /// before a crash, the frames of earlier epochs from there on were never part of the journal.
    fn choose_frames(&mut self) {
        self.frames.sort_unstable();
        let (mut lsn, mut epoch) = (0, 0);
        self.frames.retain(|place| {
            let counts = place.lsn > lsn && place.epoch.0 >= epoch;
            if counts {
                (lsn, epoch) = (place.lsn, place.epoch.0);
            }
            counts
        });
        // A segment that was moved again may still be there, and a file twice.
        self.moved.sort_unstable_by_key(|moved| {
            (moved.lsn, moved.log, moved.batch.first, Reverse(moved.sequence))
        });
        self.moved.dedup_by_key(|moved| (moved.lsn, moved.log, moved.batch.first));
    }

    /// The files that the manifest lists and that are not there.
    pub(super) fn missing_segments(&self) -> Vec<String> {
        let listed = self.manifest.iter().flat_map(|manifest| &manifest.live);
        let missing = listed.filter(|life| !self.segments.contains_key(&life.sequence));
        missing.map(|life| segment_name(life.slot)).collect()
    }

    /// The entry of a segment in a manifest that is known to be the newest, and the sequence of the
    /// next one there, leaving out those of moved frames.
    pub(super) fn neighbours(&self, sequence: u64) -> Option<(Life, u64)> {
        // What is missing of the copies may have replaced what is still there.
        let manifest = self.manifest.as_ref().filter(|_| self.moved_are_whole())?;
        let mut lives = manifest.live.iter().filter(|life| life.span != SPAN_REWRITTEN);
        let life = lives.find(|life| life.sequence == sequence)?;
        Some((*life, lives.next()?.sequence))
    }

    /// Whether a manifest that is known to be the newest shows that no moved frame is missing.
    pub(super) fn moved_are_whole(&self) -> bool {
        let manifest = self.manifest.as_ref().filter(|_| self.manifest_is_whole);
        manifest.is_some_and(|manifest| {
            let mut moved = manifest.live.iter().filter(|life| life.span == SPAN_REWRITTEN);
            moved.all(|life| self.whole_moved.contains(&life.sequence))
        })
    }

    /// Whether the manifest and the files show that no frame is missing behind this segment.
    pub(super) fn proves_end(&self, last: u64) -> bool {
        let manifest = self.manifest.as_ref().filter(|_| self.manifest_is_whole);
        let Some(manifest) = manifest else { return false };
        let is_whole =
            |sequence: u64| self.segments.contains_key(&sequence) && !self.cut.contains(&sequence);
        let later = manifest.live.iter().map(|life| life.sequence).filter(|life| *life >= last);
        later.chain([last]).all(is_whole)
    }
}

impl Candidate {
    /// What the disk cannot open or read has no bytes.
    fn open(files: &dyn Files, name: &str) -> Result<Self, SalvageError> {
        let file = open_unless_refused(files, name)?.unwrap_or_else(|| Arc::new(Nothing));
        let mut bytes = [0; segment::BYTES];
        let read = read_full_at(&*file, &mut bytes, 0).unwrap_or(0);
        let header = match SegmentHeader::decode(&bytes[..read]) {
            Found::Header(header) => Some(header),
            Found::Newer(_) | Found::Nothing => None,
        };
        Ok(Self { name: name.to_owned(), length: file.len().unwrap_or(0), file, header })
    }
}

/// Opens a file; `None` when it is not there or the disk fails. It is an error when the system
/// refuses the file to this process: nothing is known of what is in it.
fn open_unless_refused(
    files: &dyn Files,
    name: &str,
) -> Result<Option<Arc<dyn File>>, SalvageError> {
    match files.open(name) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_refusal(&error) => {
            Err(SalvageError::Damaged(Fault::new("open", name, &error)))
        }
        Err(_) => Ok(None),
    }
}

/// Whether an error is about this process and not about the file: it lacks the permission, or a
/// descriptor.
fn is_refusal(error: &std::io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    let lacks_descriptor = cfg!(unix) && matches!(error.raw_os_error(), Some(ENFILE | EMFILE));
    lacks_descriptor || error.kind() == std::io::ErrorKind::PermissionDenied
}

/// A file that could not be opened.
#[derive(Debug)]
struct Nothing;

impl File for Nothing {
    fn len(&self) -> std::io::Result<u64> {
        Ok(0)
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> std::io::Result<usize> {
        Ok(0)
    }

    fn write_at(&self, _: &[std::io::IoSlice<'_>], _: u64) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

fn journal_of(candidates: &[Candidate], manifest: Option<&Manifest>) -> Option<u128> {
    let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
    for header in candidates.iter().filter_map(|candidate| candidate.header) {
        *votes.entry(header.journal).or_default() += 1;
    }
    let named = manifest.map(|manifest| manifest.journal);
    let most = votes.iter().max_by_key(|(_, files)| **files).map(|(journal, _)| *journal);
    named.filter(|named| votes.is_empty() || votes.contains_key(named)).or(most)
}

/// Whether a frame is a table that verifies.
pub(super) fn is_table(frame: &Frame, bad: &[usize]) -> bool {
    frame.kind() == Some(FrameKind::Table) && bad.is_empty()
}
