//! The active segment: where the next frame goes, and how a segment is left for the next one.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::segment::Segment;
use crate::core::queue::{Queued, Room};
use crate::core::reserve::{Claim, Supply};
use crate::error::Fault;
use crate::files::{write_all_at, write_all_vectored};
use crate::format::frame::{FrameKind, Header, SECTION_BYTES, Section, SectionKind};
use crate::format::index::{self, DIRECTORY_ENTRY, ENTRY};
use crate::format::{FRAMES_AT, TRAILER_BYTES, crc32c, frame, padded};

/// A body at least this long is written from where it is; shorter ones are copied together.
const OWN_BUFFER_BYTES: usize = 32 << 10;
/// A staging buffer larger than this is given back after use.
const STAGING_KEPT_BYTES: usize = 2 << 20;

/// Who writes holds this.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) active: Active,
    /// LSN of the next frame. Invariant: above every LSN that was staged; at least 1.
    pub(crate) next_lsn: u64,
    pub(crate) epoch: u32,
    /// Highest LSN that a mark on the disk covers, or that needs none. Invariant:
    /// marked < next_lsn.
    pub(crate) marked: u64,
    /// Something is written that has not been synced.
    pub(crate) unsynced: bool,
    /// The next group is synced whatever its commits ask for: it begins a segment.
    pub(crate) sync_next: bool,
    pub(crate) staged: Staged,
    /// The first failed write or sync. Invariant: once set, nothing is written or synced again.
    pub(crate) failed: Option<Fault>,
    /// When the last group was written, by the clock of `work`.
    pub(crate) last_activity: u64,
}

#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    /// Offset of the next frame. Invariant: a multiple of 8, within the segment.
    pub(crate) tail: u64,
    /// LSN of its first frame; 0 while it has none.
    pub(crate) first_lsn: u64,
    /// It ends in an index: nothing more goes in.
    pub(crate) sealed: bool,
    /// Logs with records here, by their index; some may be gone or listed twice.
    pub(crate) logs: Vec<u32>,
    /// Batches, for the size of the index to come.
    pub(crate) batches: u64,
}

/// Frames that are about to be written, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    at: u64,
    pub(crate) length: u64,
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Copied(Range<usize>),
    Own(Bytes),
}

impl Active {
    /// A segment without frames.
    pub(crate) fn new(segment: Arc<Segment>) -> Self {
        let (logs, batches) = (Vec::new(), 0);
        Self { segment, tail: FRAMES_AT, first_lsn: 0, sealed: false, logs, batches }
    }
}

impl Staged {
    /// Nothing yet, to be written at this offset.
    pub(crate) fn new(at: u64) -> Self {
        Self { at, ..Self::default() }
    }

    /// Where the next frame begins.
    pub(crate) fn end(&self) -> u64 {
        self.at + self.length
    }

    fn begin(&mut self, at: u64) {
        if self.length == 0 {
            self.at = at;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.length = 0;
        self.pieces.clear();
        self.bytes.clear();
        self.bytes.shrink_to(STAGING_KEPT_BYTES);
    }

    /// Room for `length` bytes, zeroed.
    fn reserve(&mut self, length: usize) -> &mut [u8] {
        let start = self.bytes.len();
        let end = start + length;
        self.bytes.resize(end, 0);
        match self.pieces.last_mut() {
            Some(Piece::Copied(range)) => range.end = end,
            _ => self.pieces.push(Piece::Copied(start..end)),
        }
        self.length += length as u64;
        &mut self.bytes[start..]
    }

    fn pad(&mut self) {
        let padding = padded(self.length) - self.length;
        if padding > 0 {
            self.reserve(padding as usize);
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len()).copy_from_slice(bytes);
    }

    fn put_body(&mut self, bytes: &Bytes) {
        if bytes.len() < OWN_BUFFER_BYTES {
            self.put(bytes);
        } else {
            self.length += bytes.len() as u64;
            self.pieces.push(Piece::Own(bytes.clone()));
        }
    }

    /// A frame of one or two small payloads.
    pub(crate) fn put_plain(
        &mut self,
        segment: &Segment,
        header: &Header,
        sections: &[Section],
        payloads: &[&[u8]],
    ) {
        let place = segment.location(self.end());
        header.encode(sections, place, self.reserve(header.head as usize));
        for payload in payloads {
            self.put(payload);
            self.pad();
        }
    }

    pub(crate) fn write(&self, segment: &Segment) -> std::io::Result<()> {
        if let [Piece::Copied(range)] = self.pieces.as_slice() {
            return write_all_at(&*segment.file, &self.bytes[range.clone()], self.at);
        }
        let mut slices: Vec<IoSlice<'_>> = self
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Copied(range) => IoSlice::new(&self.bytes[range.clone()]),
                Piece::Own(bytes) => IoSlice::new(bytes),
            })
            .collect();
        write_all_vectored(&*segment.file, &mut slices, self.at)
    }
}

/// Counts a group's room in the active segment.
pub(crate) struct ActiveRoom {
    tail: u64,
    batches: u64,
    logs: u64,
    limit: u64,
    limit_for_frees: u64,
    limit_for_adds: u64,
    limit_for_bulk: u64,
}

impl ActiveRoom {
    fn used(&self) -> u64 {
        self.tail + index_bytes(self.logs, self.batches)
    }
}

impl Room for ActiveRoom {
    fn take(&mut self, commit: &Queued) -> bool {
        let limit = match (commit.claim, commit.bulk) {
            (Claim::Controls, _) => self.limit,
            (Claim::Frees, _) => self.limit_for_frees,
            (Claim::Adds, false) => self.limit_for_adds,
            (Claim::Adds, true) => self.limit_for_bulk,
        };
        let appends = u64::from(commit.appends);
        // Each append may be the first of its log in this segment.
        let batches = appends * (ENTRY + DIRECTORY_ENTRY) as u64;
        if self.used() + commit.bytes + batches > limit {
            return false;
        }
        self.tail += commit.bytes;
        self.batches += appends;
        self.logs += appends;
        true
    }
}

/// Bytes of the index frame of a segment.
pub(crate) fn index_bytes(logs: u64, batches: u64) -> u64 {
    let heads = (frame::HEADER_BYTES + 2 * SECTION_BYTES) as u64;
    heads + logs * DIRECTORY_ENTRY as u64 + batches * ENTRY as u64
}

impl Writer {
    /// Goes on in `active`, all of which is durable and marked.
    pub(crate) fn new(active: Active, next_lsn: u64, epoch: u32) -> Self {
        Self {
            active,
            next_lsn,
            epoch,
            marked: next_lsn - 1,
            unsynced: false,
            sync_next: false,
            staged: Staged::default(),
            failed: None,
            last_activity: 0,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Fault> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    pub(crate) fn fail(&mut self, fault: Fault) -> Fault {
        self.failed.insert(fault).clone()
    }

    /// The room in the active segment. Without a segment to go on in, commits that only add leave a
    /// part of it to those that may free others, and large ones another part to small ones. When
    /// the segment is of the reserve, its claim decides whether a commit has any room.
    pub(crate) fn room(&self, supply: Supply) -> ActiveRoom {
        let active = &self.active;
        let limit = if active.sealed { 0 } else { active.segment.size - TRAILER_BYTES };
        let left = if supply.has_segment_for(Claim::Adds) { 0 } else { active.segment.size / 16 };
        let limit_of = |claim, left| {
            if supply.admits(claim) { limit.saturating_sub(left) } else { 0 }
        };
        ActiveRoom {
            tail: self.tail(),
            batches: active.batches,
            logs: active.logs.len() as u64,
            limit,
            limit_for_frees: limit_of(Claim::Frees, 0),
            limit_for_adds: limit_of(Claim::Adds, left),
            limit_for_bulk: limit_of(Claim::Adds, 2 * left),
        }
    }

    /// Where the next frame begins, after those staged.
    pub(crate) fn tail(&self) -> u64 {
        if self.staged.length == 0 { self.active.tail } else { self.staged.end() }
    }

    /// Stages a frame of one or two small payloads.
    pub(crate) fn stage_plain(
        &mut self,
        header: &Header,
        sections: &[Section],
        payloads: &[&[u8]],
    ) {
        self.staged.begin(self.active.tail);
        self.staged.put_plain(&self.active.segment, header, sections, payloads);
    }

    pub(crate) fn take_lsn(&mut self) -> u64 {
        self.next_lsn += 1;
        self.next_lsn - 1
    }

    /// Stages a commit and notes where its batches will be.
    pub(crate) fn stage_commit(&mut self, queued: &mut Queued, mark: u64) {
        self.staged.begin(self.active.tail);
        let sections = sections_of(queued);
        let mut header = Header::new(FrameKind::Commit, queued.lsn, self.epoch, &sections);
        header.mark = mark;
        let frame_at = self.staged.end();
        let place = self.active.segment.location(frame_at);
        header.encode(&sections, place, self.staged.reserve(header.head as usize));
        let mut number = 0;
        for part in &mut queued.parts {
            if part.creates {
                self.staged.put(part.log.name().namespace.as_bytes());
                self.staged.pad();
                number += 1;
            }
            if let crate::commit::Change::Append(batch) = &part.change {
                let (at, length) = (self.staged.end(), batch.len_bytes() as u32);
                let first = part.after.end - batch.len() as u64;
                part.batch = Some(index::BatchRef::new(first, frame_at, at, length, number));
                self.staged.put_body(&batch.records);
                self.staged.put_body(&batch.ends);
                self.staged.pad();
            }
            number += usize::from(part.section.is_some());
        }
    }

    /// Stages a mark: everything up to `mark` is durable.
    pub(crate) fn stage_mark(&mut self, mark: u64, closed: bool) {
        let lsn = self.take_lsn();
        let mut header = Header::new(FrameKind::Mark, lsn, self.epoch, &[]);
        header.mark = mark;
        header.flags = if closed { frame::FLAG_CLOSED } else { 0 };
        self.stage_plain(&header, &[], &[]);
    }

    /// Whether a mark fits without taking the room of the index.
    pub(crate) fn mark_fits(&self) -> bool {
        let active = &self.active;
        let index = index_bytes(active.logs.len() as u64, active.batches);
        let end = self.tail() + frame::HEADER_BYTES as u64 + index;
        !active.sealed && end <= active.segment.size - TRAILER_BYTES
    }
}

/// A section that belongs to no log.
pub(crate) fn plain_section(
    kind: SectionKind,
    position: u64,
    count: usize,
    payload: &[u8],
) -> Section {
    Section {
        log: 0,
        position,
        previous: 0,
        count: count as u32,
        length: payload.len() as u32,
        crc: crc32c(payload),
        kind,
        heals: false,
    }
}

/// The sections of a commit frame.
fn sections_of(queued: &Queued) -> Vec<Section> {
    let mut sections = Vec::with_capacity(queued.parts.len() + 1);
    for part in &queued.parts {
        let mut previous = part.previous;
        if part.creates {
            let name = part.log.name();
            let payload = name.namespace.as_bytes();
            let mut create = plain_section(SectionKind::Create, name.id, 0, payload);
            create.log = part.number;
            sections.push(create);
            previous = queued.lsn;
        }
        let Some((kind, position)) = part.section else { continue };
        let (count, length, crc) = match &part.change {
            crate::commit::Change::Append(batch) => {
                (batch.count, batch.len_bytes() as u32, batch.crc)
            }
            _ => (0, 0, 0),
        };
        let log = part.number;
        let heals = part.heals;
        sections.push(Section { log, position, previous, count, length, crc, kind, heals });
    }
    sections
}
