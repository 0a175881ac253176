//! The index with which a sealed segment ends.

use super::{crc32c, u16_at, u32_at, u64_at};

pub(crate) const DIRECTORY_ENTRY: usize = 48;
pub(crate) const ENTRY: usize = 24;

/// Where one batch of a log is: 24 bytes in memory and on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchRef {
    /// Position of its first record.
    pub(crate) first: u64,
    /// Offset of the frame in the file, divided by 8.
    pub(crate) frame: u32,
    /// Offset of the payload in the file, divided by 8.
    pub(crate) payload: u32,
    /// Bytes of the payload.
    pub(crate) length: u32,
    /// Index of the section within its frame.
    pub(crate) section: u16,
}

impl BatchRef {
    pub(crate) fn new(first: u64, frame: u64, payload: u64, length: u32, section: usize) -> Self {
        Self {
            first,
            frame: (frame / 8) as u32,
            payload: (payload / 8) as u32,
            length,
            section: section as u16,
        }
    }

    pub(crate) fn frame_at(&self) -> u64 {
        u64::from(self.frame) * 8
    }

    pub(crate) fn payload_at(&self) -> u64 {
        u64::from(self.payload) * 8
    }
}

/// Where the batches of one log are in the entries of one sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirectoryEntry {
    pub(crate) log: u64,
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) last: u64,
    /// Index of its first entry among those of the segment.
    pub(crate) at: u32,
    pub(crate) count: u32,
    /// CRC-32C of its entries.
    pub(crate) crc: u32,
    /// Bytes of its payloads.
    pub(crate) bytes: u32,
}

impl DirectoryEntry {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.log, self.first, self.end, self.last] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.at, self.count, self.crc, self.bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// `None` when the bytes, whose checksum held, are no directory.
    pub(crate) fn decode_all(bytes: &[u8], count: u32) -> Option<Vec<Self>> {
        if bytes.len() != (count as usize).checked_mul(DIRECTORY_ENTRY)? {
            return None;
        }
        bytes.chunks_exact(DIRECTORY_ENTRY).map(Self::decode).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let entry = Self {
            log: u64_at(bytes, 0)?,
            first: u64_at(bytes, 8)?,
            end: u64_at(bytes, 16)?,
            last: u64_at(bytes, 24)?,
            at: u32_at(bytes, 32)?,
            count: u32_at(bytes, 36)?,
            crc: u32_at(bytes, 40)?,
            bytes: u32_at(bytes, 44)?,
        };
        (entry.first < entry.end).then_some(entry)
    }
}

/// Appends the entries of one log and answers their checksum.
pub(crate) fn encode_entries<'a>(
    batches: impl Iterator<Item = &'a BatchRef>,
    out: &mut Vec<u8>,
) -> u32 {
    let start = out.len();
    for batch in batches {
        out.extend_from_slice(&batch.first.to_le_bytes());
        out.extend_from_slice(&batch.frame.to_le_bytes());
        out.extend_from_slice(&batch.payload.to_le_bytes());
        out.extend_from_slice(&batch.length.to_le_bytes());
        out.extend_from_slice(&batch.section.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
    }
    crc32c(&out[start..])
}

/// The entries of one log. `None` when their length or checksum is wrong, or when they are not
/// strictly ascending within the directory's range.
pub(crate) fn decode_entries(bytes: &[u8], entry: &DirectoryEntry) -> Option<Vec<BatchRef>> {
    if bytes.len() != (entry.count as usize).checked_mul(ENTRY)? || crc32c(bytes) != entry.crc {
        return None;
    }
    let batches: Vec<BatchRef> =
        bytes.chunks_exact(ENTRY).map(decode_entry).collect::<Option<_>>()?;
    let ordered = batches.is_sorted_by(|a, b| a.first < b.first)
        && batches.first().is_some_and(|batch| batch.first <= entry.first)
        && batches.last().is_some_and(|batch| batch.first < entry.end);
    ordered.then_some(batches)
}

fn decode_entry(bytes: &[u8]) -> Option<BatchRef> {
    Some(BatchRef {
        first: u64_at(bytes, 0)?,
        frame: u32_at(bytes, 8)?,
        payload: u32_at(bytes, 12)?,
        length: u32_at(bytes, 16)?,
        section: u16_at(bytes, 20)?,
    })
}
