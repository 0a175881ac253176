//! Frames: one header, its sections, their payloads.

use super::{SECTIONS_MAX, padded, u16_at, u32_at, u64_at};
use crate::engine::segment::Location;

const MAGIC: u32 = u32::from_le_bytes(*b"vsrf");
pub(crate) const HEADER_BYTES: usize = 40;
pub(crate) const SECTION_BYTES: usize = 40;
/// The longest head that a reader accepts: all sections and as much again for extensions.
pub(crate) const HEAD_BYTES_MAX: usize = HEADER_BYTES + 2 * SECTIONS_MAX * SECTION_BYTES;

/// Set on a mark frame: the journal was closed after it.
pub(crate) const FLAG_CLOSED: u8 = 1;

/// Set on a section that makes a damaged log whole.
const SECTION_HEALS: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Commit = 1,
    Mark = 2,
    Table = 3,
    Index = 4,
    /// A copy of one batch of a commit, with the LSN of that commit.
    Moved = 5,
}

impl FrameKind {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Commit, Self::Mark, Self::Table, Self::Index, Self::Moved]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SectionKind {
    Append = 1,
    Truncate = 2,
    Release = 3,
    Delete = 4,
    Create = 5,
    Table = 6,
    Directory = 7,
    Entries = 8,
}

impl SectionKind {
    fn from_byte(byte: u8) -> Option<Self> {
        use SectionKind::{Append, Create, Delete, Directory, Entries, Release, Table, Truncate};
        [Append, Truncate, Release, Delete, Create, Table, Directory, Entries]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) lsn: u64,
    pub(crate) mark: u64,
    pub(crate) length: u32,
    pub(crate) epoch: u32,
    pub(crate) head: u32,
    pub(crate) sections: u16,
    /// Raw: what is unknown is an error only where it has to be understood.
    pub(crate) kind: u8,
    pub(crate) flags: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) log: u64,
    pub(crate) position: u64,
    pub(crate) previous: u64,
    pub(crate) count: u32,
    pub(crate) length: u32,
    pub(crate) crc: u32,
    pub(crate) kind: SectionKind,
    /// The writer knew that the log was damaged: this section makes it whole from here on.
    pub(crate) heals: bool,
}

/// Why a head that verifies cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadError {
    /// A section kind of a newer version.
    UnknownSection(u8),
    /// Lengths that do not add up.
    Malformed,
}

impl Header {
    /// The header of a frame with these sections.
    pub(crate) fn new(kind: FrameKind, lsn: u64, epoch: u32, sections: &[Section]) -> Self {
        let head = HEADER_BYTES + sections.len() * SECTION_BYTES;
        let payload: u64 = sections.iter().map(|section| padded(u64::from(section.length))).sum();
        Self {
            lsn,
            mark: 0,
            length: (head as u64 + payload) as u32,
            epoch,
            head: head as u32,
            sections: sections.len() as u16,
            kind: kind as u8,
            flags: 0,
        }
    }

    /// Whether a header may start with these bytes.
    pub(crate) fn may_start(bytes: &[u8]) -> bool {
        u32_at(bytes, 0) == Some(MAGIC)
    }

    /// Reads the header at the start of `bytes`, if it looks like one; it has not been verified.
    pub(crate) fn peek(bytes: &[u8]) -> Option<Self> {
        if u32_at(bytes, 0)? != MAGIC {
            return None;
        }
        let header = Self {
            lsn: u64_at(bytes, 8)?,
            mark: u64_at(bytes, 16)?,
            length: u32_at(bytes, 24)?,
            epoch: u32_at(bytes, 28)?,
            head: u32_at(bytes, 32)?,
            sections: u16_at(bytes, 36)?,
            kind: *bytes.get(38)?,
            flags: *bytes.get(39)?,
        };
        let head = header.head as usize;
        let sections_end = HEADER_BYTES + header.sections as usize * SECTION_BYTES;
        let sane = head >= sections_end
            && head <= HEAD_BYTES_MAX
            && header.sections as usize <= SECTIONS_MAX
            && header.head <= header.length
            && header.head.is_multiple_of(8)
            && header.length.is_multiple_of(8);
        sane.then_some(header)
    }

    /// Whether `bytes`, which begin with this header, hold the head that was written at `place`.
    pub(crate) fn verify(&self, bytes: &[u8], place: Location<'_>) -> bool {
        self.mask(bytes).is_some_and(|mask| mask == place.mask())
    }

    /// The mask of the place at which the head in `bytes` verifies.
    pub(crate) fn mask(&self, bytes: &[u8]) -> Option<u32> {
        Some(u32_at(bytes, 4)? ^ super::crc32c(bytes.get(8..self.head as usize)?))
    }

    /// The sections of a head that has been verified.
    pub(crate) fn sections(&self, bytes: &[u8]) -> Result<Vec<Section>, HeadError> {
        let mut sections = Vec::with_capacity(self.sections as usize);
        let mut payload = 0u64;
        for number in 0..self.sections as usize {
            let at = HEADER_BYTES + number * SECTION_BYTES;
            let section = Section::decode(bytes, at)?;
            payload += padded(u64::from(section.length));
            sections.push(section);
        }
        if u64::from(self.head) + payload != u64::from(self.length) {
            return Err(HeadError::Malformed);
        }
        Ok(sections)
    }

    /// Writes header and sections into `out`, which is exactly `head` bytes long.
    pub(crate) fn encode(&self, sections: &[Section], place: Location<'_>, out: &mut [u8]) {
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..16].copy_from_slice(&self.lsn.to_le_bytes());
        out[16..24].copy_from_slice(&self.mark.to_le_bytes());
        out[24..28].copy_from_slice(&self.length.to_le_bytes());
        out[28..32].copy_from_slice(&self.epoch.to_le_bytes());
        out[32..36].copy_from_slice(&self.head.to_le_bytes());
        out[36..38].copy_from_slice(&self.sections.to_le_bytes());
        out[38] = self.kind;
        out[39] = self.flags;
        for (section, out) in sections.iter().zip(out[HEADER_BYTES..].chunks_mut(SECTION_BYTES)) {
            section.encode(out);
        }
        let crc = super::crc32c(&out[8..]) ^ place.mask();
        out[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

impl Section {
    fn decode(bytes: &[u8], at: usize) -> Result<Self, HeadError> {
        let bytes = bytes.get(at..at + SECTION_BYTES).ok_or(HeadError::Malformed)?;
        let u64_at = |at| u64_at(bytes, at).ok_or(HeadError::Malformed);
        let u32_at = |at| u32_at(bytes, at).ok_or(HeadError::Malformed);
        let kind = bytes[36];
        Ok(Self {
            log: u64_at(0)?,
            position: u64_at(8)?,
            previous: u64_at(16)?,
            count: u32_at(24)?,
            length: u32_at(28)?,
            crc: u32_at(32)?,
            kind: SectionKind::from_byte(kind).ok_or(HeadError::UnknownSection(kind))?,
            heals: bytes[37] & SECTION_HEALS != 0,
        })
    }

    fn encode(&self, out: &mut [u8]) {
        out[0..8].copy_from_slice(&self.log.to_le_bytes());
        out[8..16].copy_from_slice(&self.position.to_le_bytes());
        out[16..24].copy_from_slice(&self.previous.to_le_bytes());
        out[24..28].copy_from_slice(&self.count.to_le_bytes());
        out[28..32].copy_from_slice(&self.length.to_le_bytes());
        out[32..36].copy_from_slice(&self.crc.to_le_bytes());
        out[36] = self.kind as u8;
        out[37] = if self.heals { SECTION_HEALS } else { 0 };
        out[38..40].fill(0);
    }

    /// Positions `[first, end)` of an append, if they do not overflow.
    pub(crate) fn positions(&self) -> Option<(u64, u64)> {
        Some((self.position, self.position.checked_add(u64::from(self.count))?))
    }
}

/// Where record `number` of a batch of `count` lies in its payload. `None` when the batch has no
/// such record or the table of ends contradicts itself.
pub(crate) fn record_range(
    payload: &[u8],
    count: u32,
    number: u32,
) -> Option<std::ops::Range<usize>> {
    if number >= count {
        return None;
    }
    let table_at = payload.len().checked_sub((count as usize).checked_mul(4)?)?;
    let end_of = |number: u32| Some(u32_at(payload, table_at + number as usize * 4)? as usize);
    let start = if number == 0 { 0 } else { end_of(number - 1)? };
    let end = end_of(number)?;
    (start <= end && end <= table_at).then_some(start..end)
}
