//! The manifest: which lives of which segment files count.

use super::{
    COUNT_MAX, SEGMENTS_MAX, SLOT_MAX, VERSION, VERSION_UNMOVED, crc32c_of_two, u32_at, u64_at,
    u128_at,
};

pub(crate) const SLOT_BYTES: usize = 64 << 10;
const MAGIC: &[u8; 8] = b"vsrmanif";
const HEAD: usize = 64;
const ENTRY: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) journal: u128,
    pub(crate) epoch: u32,
    pub(crate) counter: u64,
    /// Everything up to this LSN was durable when this was written.
    pub(crate) mark: u64,
    /// By sequence, ascending.
    pub(crate) live: Vec<Life>,
}

/// One life of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life {
    pub(crate) sequence: u64,
    pub(crate) slot: u32,
    /// Number of LSNs from the segment's first frame to its index, both included; 0 until the
    /// segment is full, or when the number is unknown; [`SPAN_REWRITTEN`] for moved frames.
    pub(crate) span: u32,
}

/// The span of a segment of moved frames. No other has it: a frame takes at least 40 bytes, and a
/// segment at most 2^30.
pub(crate) const SPAN_REWRITTEN: u32 = u32::MAX;

/// What one slot of the manifest holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Slot {
    Valid(Manifest),
    Newer(u32),
    Invalid,
}

impl Manifest {
    /// The used part of a slot.
    pub(crate) fn encode(&self) -> Vec<u8> {
        debug_assert!(self.live.len() <= SEGMENTS_MAX);
        let length = HEAD + self.live.len() * ENTRY;
        let mut out = vec![0; length];
        out[0..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION_UNMOVED.to_le_bytes());
        out[16..20].copy_from_slice(&(length as u32).to_le_bytes());
        out[20..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..40].copy_from_slice(&self.journal.to_le_bytes());
        out[40..48].copy_from_slice(&self.counter.to_le_bytes());
        out[48..52].copy_from_slice(&(self.live.len() as u32).to_le_bytes());
        out[56..64].copy_from_slice(&self.mark.to_le_bytes());
        for (life, out) in self.live.iter().zip(out[HEAD..].chunks_mut(ENTRY)) {
            out[0..8].copy_from_slice(&life.sequence.to_le_bytes());
            out[8..12].copy_from_slice(&life.slot.to_le_bytes());
            out[12..16].copy_from_slice(&life.span.to_le_bytes());
        }
        let crc = checksum(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(slot: &[u8]) -> Slot {
        match Self::try_decode(slot) {
            Some(Slot::Valid(manifest)) if !manifest.is_sane() => Slot::Invalid,
            decoded => decoded.unwrap_or(Slot::Invalid),
        }
    }

    /// Whether no number in it is one that no journal gets to.
    fn is_sane(&self) -> bool {
        let sane = |life: &Life| life.sequence <= COUNT_MAX && life.slot <= SLOT_MAX;
        self.counter <= COUNT_MAX && self.mark <= COUNT_MAX && self.live.iter().all(sane)
    }

    fn try_decode(slot: &[u8]) -> Option<Slot> {
        if slot.get(..8)? != MAGIC {
            return None;
        }
        let length = u32_at(slot, 16)? as usize;
        if !(HEAD..=SLOT_BYTES).contains(&length)
            || u32_at(slot, 12)? != checksum(slot.get(..length)?)
        {
            return None;
        }
        let version = u32_at(slot, 8)?;
        if version > VERSION {
            return Some(Slot::Newer(version));
        }
        let count = u32_at(slot, 48)? as usize;
        if count > SEGMENTS_MAX {
            return None;
        }
        let entries = slot.get(HEAD..length)?.get(..count.checked_mul(ENTRY)?)?;
        let mut live = Vec::with_capacity(entries.len() / ENTRY);
        for entry in entries.chunks_exact(ENTRY) {
            live.push(Life {
                sequence: u64_at(entry, 0)?,
                slot: u32_at(entry, 8)?,
                span: u32_at(entry, 12)?,
            });
        }
        live.sort_unstable();
        Some(Slot::Valid(Self {
            journal: u128_at(slot, 24)?,
            epoch: u32_at(slot, 20)?,
            counter: u64_at(slot, 40)?,
            mark: u64_at(slot, 56)?,
            live,
        }))
    }
}

/// CRC-32C of everything but itself and the magic.
fn checksum(slot: &[u8]) -> u32 {
    crc32c_of_two(&slot[8..12], &slot[16..])
}

/// Puts the magic, the length and the checksum of a slot right, for fuzzers.
#[cfg(feature = "testing")]
pub(crate) fn seal(slot: &mut [u8]) {
    let Some(claimed) = u32_at(slot, 16) else { return };
    let length = (claimed as usize).clamp(HEAD, SLOT_BYTES);
    if slot.len() < length {
        return;
    }
    slot[..8].copy_from_slice(MAGIC);
    slot[16..20].copy_from_slice(&(length as u32).to_le_bytes());
    let crc = checksum(&slot[..length]);
    slot[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// The name of the file of a segment slot.
pub(crate) fn segment_name(slot: u32) -> String {
    format!("segment-{slot:08x}")
}

/// The slot in the name of a segment file.
pub(crate) fn segment_slot(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("segment-")?;
    let slot = u32::from_str_radix(digits, 16).ok()?;
    (slot <= SLOT_MAX && segment_name(slot) == name).then_some(slot)
}
