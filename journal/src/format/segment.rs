//! Segment headers and trailers.

use super::{
    COUNT_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, VERSION, VERSION_UNMOVED, crc32c, u32_at,
    u64_at, u128_at,
};
use crate::engine::segment::Location;

pub(crate) const BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"vsrsegmt";
const TRAILER_MAGIC: &[u8; 8] = b"vsrseale";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) slot: u32,
    pub(crate) journal: u128,
    pub(crate) sequence: u64,
    pub(crate) size: u64,
    pub(crate) epoch: u32,
    /// It holds moved frames.
    pub(crate) is_rewritten: bool,
}

/// Set in the header of a segment of moved frames.
const FLAG_REWRITTEN: u8 = 1;

/// What the first bytes of a segment file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Header(SegmentHeader),
    /// A header of a newer version.
    Newer(u32),
    /// Nothing that verifies: never prepared, or damaged.
    Nothing,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[0..8].copy_from_slice(MAGIC);
        let version = if self.is_rewritten { VERSION } else { VERSION_UNMOVED };
        out[8..12].copy_from_slice(&version.to_le_bytes());
        out[12..16].copy_from_slice(&self.slot.to_le_bytes());
        out[16..32].copy_from_slice(&self.journal.to_le_bytes());
        out[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        out[40..48].copy_from_slice(&self.size.to_le_bytes());
        out[48..52].copy_from_slice(&self.epoch.to_le_bytes());
        out[52] = if self.is_rewritten { FLAG_REWRITTEN } else { 0 };
        let crc = crc32c(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Found {
        Self::try_decode(bytes).unwrap_or(Found::Nothing)
    }

    fn try_decode(bytes: &[u8]) -> Option<Found> {
        let bytes = bytes.get(..BYTES)?;
        if &bytes[..8] != MAGIC || u32_at(bytes, 60)? != crc32c(&bytes[..60]) {
            return None;
        }
        let version = u32_at(bytes, 8)?;
        if version > VERSION {
            return Some(Found::Newer(version));
        }
        let header = Self {
            slot: u32_at(bytes, 12)?,
            journal: u128_at(bytes, 16)?,
            sequence: u64_at(bytes, 32)?,
            size: u64_at(bytes, 40)?,
            epoch: u32_at(bytes, 48)?,
            is_rewritten: version > VERSION_UNMOVED && bytes[52] & FLAG_REWRITTEN != 0,
        };
        let sane = header.sequence <= COUNT_MAX
            && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&header.size)
            && header.size.is_multiple_of(super::BLOCK);
        sane.then_some(Found::Header(header))
    }
}

/// Says where the index frame of a sealed segment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) lsn: u64,
}

impl Trailer {
    pub(crate) fn encode(&self, place: Location<'_>) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[0..8].copy_from_slice(TRAILER_MAGIC);
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..24].copy_from_slice(&self.length.to_le_bytes());
        out[24..32].copy_from_slice(&self.lsn.to_le_bytes());
        let crc = crc32c(&out[..60]) ^ place.mask();
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8], place: Location<'_>) -> Option<Self> {
        let bytes = bytes.get(..BYTES)?;
        if &bytes[..8] != TRAILER_MAGIC || u32_at(bytes, 60)? != crc32c(&bytes[..60]) ^ place.mask()
        {
            return None;
        }
        Some(Self {
            offset: u64_at(bytes, 8)?,
            length: u64_at(bytes, 16)?,
            lsn: u64_at(bytes, 24)?,
        })
    }
}
