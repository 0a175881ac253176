//! Walking over the frames of a segment.

use std::collections::BTreeMap;

use super::rebuild::{Rebuild, Rebuilt};
use crate::engine::segment::Segment;
use crate::error::Fault;
use crate::files::{File, read_full_at};
use crate::format::frame::{FrameKind, HEADER_BYTES, HeadError, Header, Section, SectionKind};
use crate::format::index::BatchRef;
use crate::format::table::Table;
use crate::format::{COUNT_MAX, FRAMES_AT, TRAILER_BYTES, crc32c, padded};

const READ_BYTES: usize = 1 << 20;
/// The first piece that is searched for a frame.
const SEARCH_BYTES: usize = 4 << 10;

/// A frame whose head verifies.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) offset: u64,
    pub(crate) header: Header,
    pub(crate) sections: Vec<Section>,
    /// Set for a frame that a newer version wrote: its sections were not understood.
    pub(crate) unknown: Option<u8>,
}

impl Frame {
    pub(crate) fn end(&self) -> u64 {
        self.offset + u64::from(self.header.length)
    }

    pub(crate) fn kind(&self) -> Option<FrameKind> {
        FrameKind::from_byte(self.header.kind)
    }

    /// Offset of the payload of each section.
    pub(crate) fn payloads(&self) -> impl Iterator<Item = (u64, &Section)> {
        let mut at = self.offset + u64::from(self.header.head);
        self.sections.iter().map(move |section| {
            let start = at;
            at += padded(u64::from(section.length));
            (start, section)
        })
    }

    /// What the batches of this frame are called in an index, with the number after the last
    /// position.
    pub(crate) fn batches(&self) -> impl Iterator<Item = (usize, u64, BatchRef, u64)> {
        self.payloads().enumerate().filter_map(|(number, (at, section))| {
            if section.kind != SectionKind::Append {
                return None;
            }
            let (first, end) = section.positions()?;
            let batch = BatchRef::new(first, self.offset, at, section.length, number);
            Some((number, section.log, batch, end))
        })
    }
}

/// Reads a segment from front to back in large pieces.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    segment: &'a Segment,
    window: Vec<u8>,
    /// Offset of the first byte of the window.
    at: u64,
    /// Valid bytes of the window.
    filled: usize,
    /// What cannot be read is taken for zeros, so that the frames in it count as lost.
    skips_unreadable: bool,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(segment: &'a Segment) -> Self {
        Self { segment, window: Vec::new(), at: 0, filled: 0, skips_unreadable: false }
    }

    /// For a damaged disk: what cannot be read is taken for zeros.
    pub(crate) fn lenient(segment: &'a Segment) -> Self {
        Self { skips_unreadable: true, ..Self::new(segment) }
    }

    /// The first heads that are well-formed: where each stands, and the value that the checksum of
    /// its place must have for it to verify. At most `count`.
    pub(crate) fn head_masks(&mut self, count: usize) -> Result<Vec<(u64, u32)>, Fault> {
        let mut masks = Vec::new();
        let mut offset = FRAMES_AT;
        // Ends: each turn goes on behind what it has searched.
        while offset + HEADER_BYTES as u64 <= self.limit() {
            let length = (self.limit() - offset).min(READ_BYTES as u64) as usize;
            let window = self.bytes(offset, length)?;
            let searched = window.len() as u64 / 8 * 8;
            let starts: Vec<u64> = window
                .chunks_exact(8)
                .enumerate()
                .filter(|(_, bytes)| Header::may_start(bytes))
                .map(|(number, _)| offset + number as u64 * 8)
                .collect();
            for at in starts {
                let Some(header) = Header::peek(self.bytes(at, HEADER_BYTES)?) else { continue };
                let head = self.bytes(at, header.head as usize)?;
                masks.extend(header.mask(head).map(|mask| (at, mask)));
                if masks.len() == count {
                    return Ok(masks);
                }
            }
            if searched == 0 {
                break;
            }
            offset += searched;
        }
        Ok(masks)
    }

    /// Where frames must end.
    fn limit(&self) -> u64 {
        self.segment.size - TRAILER_BYTES
    }

    /// Bytes from `offset` on; fewer than asked for only where the file ends.
    pub(crate) fn bytes(&mut self, offset: u64, length: usize) -> Result<&[u8], Fault> {
        let end = offset + length as u64;
        if offset < self.at || end > self.at + self.filled as u64 {
            self.load(offset, length)?;
        }
        let start = (offset - self.at) as usize;
        Ok(&self.window[start..(start + length).min(self.filled)])
    }

    fn load(&mut self, offset: u64, length: usize) -> Result<(), Fault> {
        let have = self.at..self.at + self.filled as u64;
        if have.contains(&offset) {
            let start = (offset - self.at) as usize;
            self.window.copy_within(start..self.filled, 0);
            self.filled -= start;
        } else {
            self.filled = 0;
        }
        self.at = offset;
        // Never beyond the segment, whatever a head claims.
        let rest = (self.segment.size.saturating_sub(offset)) as usize;
        let wanted = length.max(READ_BYTES).min(rest);
        if self.window.len() < wanted {
            self.window.resize(wanted, 0);
        }
        let from = offset + self.filled as u64;
        let missing = wanted - self.filled;
        let missing_bytes = &mut self.window[self.filled..wanted];
        let read = match read_full_at(&*self.segment.file, missing_bytes, from) {
            Ok(read) => read,
            Err(error) if self.skips_unreadable => {
                let segment = self.segment.name();
                tracing::warn!(target: "voussoir::journal", segment, %error, "skipping sectors");
                read_sectors(&*self.segment.file, missing_bytes, from)
            }
            Err(error) => return Err(Fault::read(self.segment.name(), from, missing, &error)),
        };
        self.filled += read;
        Ok(())
    }

    /// The frame at `offset`, if a head verifies there.
    pub(crate) fn frame(&mut self, offset: u64) -> Result<Option<Frame>, Fault> {
        if offset + HEADER_BYTES as u64 > self.limit() {
            return Ok(None);
        }
        let limit = self.limit();
        let bytes = self.bytes(offset, HEADER_BYTES)?;
        let Some(header) = Header::peek(bytes) else { return Ok(None) };
        if header.lsn == 0 || header.lsn > COUNT_MAX || offset + u64::from(header.length) > limit {
            return Ok(None);
        }
        let segment = self.segment;
        let head = self.bytes(offset, header.head as usize)?;
        if !header.verify(head, segment.location(offset)) {
            return Ok(None);
        }
        let (sections, unknown) = match header.sections(head) {
            Ok(sections) if FrameKind::from_byte(header.kind).is_some() => (sections, None),
            Ok(_) => (Vec::new(), Some(header.kind)),
            Err(HeadError::UnknownSection(kind)) => (Vec::new(), Some(kind)),
            Err(HeadError::Malformed) => return Ok(None),
        };
        if sections.iter().any(|section| section.log > COUNT_MAX) {
            return Ok(None);
        }
        Ok(Some(Frame { offset, header, sections, unknown }))
    }

    /// The numbers of the sections whose payload fails its checksum.
    pub(crate) fn bad_payloads(&mut self, frame: &Frame) -> Result<Vec<usize>, Fault> {
        let mut bad = Vec::new();
        for (number, (at, section)) in frame.payloads().enumerate() {
            let payload = self.bytes(at, section.length as usize)?;
            if payload.len() < section.length as usize || crc32c(payload) != section.crc {
                bad.push(number);
            }
        }
        Ok(bad)
    }

    /// The next head that verifies at or after `from`.
    pub(crate) fn search(&mut self, from: u64) -> Result<Option<Frame>, Fault> {
        let mut offset = padded(from);
        // The next frame is near as a rule: a piece is no larger than what has been searched.
        let mut piece = SEARCH_BYTES;
        while offset + HEADER_BYTES as u64 <= self.limit() {
            let length = (self.limit() - offset).min(piece as u64) as usize;
            piece = (2 * piece).min(READ_BYTES);
            let window = self.bytes(offset, length)?;
            let candidates: Vec<u64> = window
                .chunks_exact(8)
                .enumerate()
                .filter(|(_, bytes)| Header::may_start(bytes))
                .map(|(number, _)| offset + number as u64 * 8)
                .collect();
            let searched = window.len() as u64 / 8 * 8;
            for candidate in candidates {
                if let Some(frame) = self.frame(candidate)? {
                    return Ok(Some(frame));
                }
            }
            if searched == 0 {
                break;
            }
            offset += searched;
        }
        Ok(None)
    }
}

/// Reads all frames of a segment, skipping what does not verify.
pub(crate) fn rebuild_index(segment: &Segment) -> Result<Rebuild, Fault> {
    let mut scanner = Scanner::lenient(segment);
    let mut logs: BTreeMap<u64, Rebuilt> = BTreeMap::new();
    let mut rebuild = Rebuild { contiguous: true, ..Rebuild::default() };
    let (mut offset, mut lsn, mut epoch) = (FRAMES_AT, 0, 0);
    while let Some(frame) = scanner.search(offset)? {
        // Leftovers of an earlier epoch lie behind the end, and never count.
        if frame.header.lsn <= lsn || frame.header.epoch < epoch {
            offset = frame.offset + 8;
            continue;
        }
        rebuild.contiguous &= frame.offset == offset;
        if lsn == 0 {
            rebuild.first_lsn = frame.header.lsn;
        }
        (lsn, epoch) = (frame.header.lsn, frame.header.epoch);
        let mut batches = frame.batches().peekable();
        for (at, section) in frame.sections.iter().enumerate() {
            if section.log != 0
                && !rebuild.note(section, lsn)
                && let Some(log) = logs.get_mut(&section.log)
            {
                log.in_doubt = log.batches.len();
            }
            match (section.kind, logs.get_mut(&section.log)) {
                (SectionKind::Truncate, Some(log)) => log.truncate(section.position),
                (SectionKind::Delete, Some(_)) => {
                    logs.remove(&section.log);
                }
                _ => {}
            }
            if let Some((_, number, batch, end)) = batches.next_if(|(number, ..)| *number == at) {
                let log = logs.entry(number).or_default();
                log.number = number;
                log.append(batch, end, lsn);
            }
        }
        rebuild.ended = frame.kind() == Some(FrameKind::Index);
        rebuild.index_at = if rebuild.ended { frame.offset } else { frame.end() };
        offset = frame.end();
    }
    (rebuild.last_lsn, rebuild.last_epoch) = (lsn, epoch);
    rebuild.logs =
        logs.into_values().filter(|log| !log.batches.is_empty() && log.first < log.end).collect();
    Ok(rebuild)
}

/// The batches of a segment of moved frames, without its index.
///
/// Each batch stands for itself. Two that follow each other by position may be copies of what was
/// written at different times, and what was between them may have been rewritten elsewhere.
pub(crate) fn rebuild_moved(segment: &Segment) -> Result<Rebuild, Fault> {
    let mut scanner = Scanner::lenient(segment);
    let mut rebuild = Rebuild { contiguous: true, is_moved: true, ..Rebuild::default() };
    let mut offset = FRAMES_AT;
    while let Some(frame) = scanner.search(offset)? {
        rebuild.contiguous &= frame.offset == offset;
        offset = frame.end();
        rebuild.ended = frame.kind() == Some(FrameKind::Index);
        if rebuild.ended {
            break;
        }
        if frame.kind() != Some(FrameKind::Moved) {
            continue;
        }
        for (_, number, batch, end) in frame.batches() {
            let mut log = Rebuilt { number, ..Rebuilt::default() };
            log.append(batch, end, frame.header.lsn);
            rebuild.logs.push(log);
        }
    }
    // They are written in this order.
    rebuild.logs.sort_by_key(|log| log.number);
    Ok(rebuild)
}

/// Reads sector by sector, and takes those that cannot be read for zeros.
fn read_sectors(file: &dyn File, buf: &mut [u8], offset: u64) -> usize {
    const SECTOR_BYTES: usize = 512;
    let mut read = 0;
    for sector in buf.chunks_mut(SECTOR_BYTES) {
        match read_full_at(file, sector, offset + read as u64) {
            Ok(length) if length < sector.len() => return read + length,
            Ok(_) => {}
            Err(_) => sector.fill(0),
        }
        read += sector.len();
    }
    read
}

/// The LSN of the frame with which a segment begins.
pub(crate) fn first_lsn(segment: &Segment) -> Result<Option<u64>, Fault> {
    Ok(Scanner::new(segment).frame(FRAMES_AT)?.map(|frame| frame.header.lsn))
}

/// The table at the start of a segment, and the number that the next new log would have got.
pub(crate) fn first_table(segment: &Segment) -> Result<Option<(Table, u64)>, Fault> {
    let mut scanner = Scanner::new(segment);
    let Some(frame) = scanner.frame(FRAMES_AT)? else { return Ok(None) };
    let whole = frame.kind() == Some(FrameKind::Table) && scanner.bad_payloads(&frame)?.is_empty();
    let Some((at, section)) = frame.payloads().next().filter(|_| whole) else { return Ok(None) };
    let payload = scanner.bytes(at, section.length as usize)?;
    Ok(Table::decode(payload, section.count).map(|table| (table, section.position)))
}
