//! The byte format, version 2. All integers are little-endian; all offsets are bytes.
//!
//! # Files
//! ```text
//! lock               empty; locked while a journal is open
//! manifest           two slots of 64 KiB, written in turn; the valid one with the higher
//!                    counter counts
//! manifest.new       a manifest being created; without a `manifest` it is ignored
//! segment-00000000   segments; the number in the name is the slot, which never changes
//! ```
//!
//! # Manifest slot
//! ```text
//!  0  u8[8]  magic "vsrmanif"
//!  8  u32    version
//! 12  u32    CRC-32C of bytes 8..12 and 16..length
//! 16  u32    length of the slot's content in bytes
//! 20  u32    epoch: +1 each time the journal is opened
//! 24  u128   journal id
//! 40  u64    counter: +1 each time a slot is written
//! 48  u32    number of entries            52  u32  zero
//! 56  u64    mark: all frames up to this LSN were durable when this was written
//! 64  entries of 16 bytes: u64 sequence, u32 slot, u32 span
//! ```
//! A slot that becomes a segment gets the next sequence number; (slot, sequence) is one *life*
//! of a file. The entries are the live set: frames are written only into lives that a durable
//! manifest lists. A listed life whose slot has moved on to a higher sequence was dead.
//!
//! *Span* is the number of LSNs from the first frame of a full segment to its index, both included;
//! 0 while the segment is not full, and when the number is unknown. A power loss may take an index,
//! and the segment that followed may have been recycled: the span then proves that all frames
//! before the index are there. 2^32 - 1 for a segment of moved frames, see "Rewriting".
//!
//! # Segment
//! ```text
//! 0        header, 64 bytes, the rest of the first 4096 zero
//! 4096     frames, one directly after the other, each at a multiple of 8
//! size-64  trailer, once the segment is sealed
//!
//! header                                       trailer
//!  0  u8[8]  magic "vsrsegmt"                   0  u8[8]  magic "vsrseale"
//!  8  u32    version                            8  u64    offset of the index frame
//! 12  u32    slot                              16  u64    length of the index frame
//! 16  u128   journal id                        24  u64    LSN of the index frame
//! 32  u64    sequence                          32  u8[28] zero
//! 40  u64    size of the segment               60  u32    CRC-32C of bytes 0..60, masked
//! 48  u32    epoch of its preparation
//! 52  u8     flags: bit 0: it holds moved frames
//! 53  u8[7]  zero
//! 60  u32    CRC-32C of bytes 0..60
//! ```
//!
//! # Frame
//! One frame is one commit, recovered wholly or not at all.
//! ```text
//!  0  u32  magic "vsrf"
//!  4  u32  CRC-32C of bytes 8..head, masked
//!  8  u64  LSN: +1 per frame over the whole journal, whatever its kind
//! 16  u64  mark: all frames up to this LSN were durable when this one was written
//! 24  u32  length of the whole frame, a multiple of 8
//! 28  u32  epoch
//! 32  u32  head: bytes of this header, the sections and the extensions
//! 36  u16  number of sections
//! 38  u8   kind: 1 commit, 2 mark, 3 table, 4 index, 5 moved
//! 39  u8   flags: bit 0 on a mark: the journal was closed
//! 40  sections of 40 bytes
//!     extensions: any number of { u16 tag, u16 length, u32 zero, bytes padded to 8 }; a reader
//!     skips tags that it does not know; none are defined
//! head  payloads, one per section in their order, each padded with zeros to a multiple of 8
//! ```
//! *Masked* means XORed with CRC-32C(journal id, sequence, offset) of the place where the bytes
//! stand. The CRC is linear, so this is the same as seeding it with the place: a frame that is
//! stale, was written to a wrong place or is embedded in a record does not verify. A
//! section's CRC of its payload is not masked, so that it can be computed before the place is
//! known; the masked one covers its value.
//!
//! # Section
//! ```text
//!  0  u64  log: a number that is never given twice; a log that is deleted and created again
//!          gets a new one (its incarnation)
//!  8  u64  position (see kinds)
//! 16  u64  previous: LSN of the frame with this log's previous section, 0 for none
//! 24  u32  number of records (append), logs (table, directory) or entries
//! 28  u32  length of the payload without padding
//! 32  u32  CRC-32C of the payload without padding
//! 36  u8   kind
//! 37  u8   flags: bit 0: the log was known to be damaged, and this makes it whole
//! 38  u8[2] zero
//! ```
//! | kind | meaning | position | payload |
//! |---|---|---|---|
//! | 1 append | records; what was from there on is gone | first record | see below |
//! | 2 truncate | positions from `position` on are gone | new end | |
//! | 3 release | positions below `position` are gone; the log ends at or after it | new first | |
//! | 4 delete | the log is gone | 0 | |
//! | 5 create | the log exists, empty at position 0 | the log's id | the namespace, UTF-8 |
//! | 6 table | all logs, as they were before this frame | next log number | see below |
//! | 7 directory | the logs that have batches in this segment | 0 | see below |
//! | 8 entries | where the batches are | 0 | see below |
//!
//! The payload of an append is the records, one directly after the other, and then a u32 per
//! record that says where it ends.
//!
//! Sections apply in order of LSN, and within a frame in their order.
//!
//! # Table
//! The first frame of a segment is a table; so a truncate, release, delete or create need not
//! outlive the segment in which it stands. Its payload, after a u32 of flags (bit 0: names may
//! be missing because of damage) and a u32 zero, has per log:
//! ```text
//!  0  u64  log      8  u64  first    16  u64  end    24  u64  last: LSN of its last section
//! 32  u64  id      40  u64  damage from    48  u64  damage until
//! 56  u16  length of the namespace    58  u16  flags: bit 0 damaged    60  u32  zero
//! 64  the namespace, padded to 8
//! ```
//!
//! # Index
//! The last frame of a sealed segment: a directory section and an entries section. It is not
//! synced, so that a power loss may take it; then the frames are read instead, and the next
//! opening writes it again, unless frames are lost as well. Of a log in a segment without an index
//! only those batches count that no lost frame can have replaced: the sections of a log form a
//! chain, and those before a gap in it are in doubt.
//! ```text
//! directory, per log, 48 bytes                entry, 24 bytes, one per batch, by position
//!  0  u64  log                                 0  u64  position of its first record
//!  8  u64  first position in this segment      8  u32  offset of the frame / 8
//! 16  u64  position after its last            12  u32  offset of the payload / 8
//! 24  u64  LSN of its last batch              16  u32  length of the payload
//! 32  u32  first entry   36  u32  entries     20  u16  number of the section in its frame
//! 40  u32  CRC-32C of its entries             22  u16  zero
//! 44  u32  bytes of its payloads
//! ```
//! The index is a hint: what it points at must verify as a frame of that place, and hold that
//! log and position.
//!
//! # Rewriting
//! Space comes back in whole segments. Those that are pinned by little are *victims*: the batches
//! in them that count are copied into a segment of moved frames, sorted by log and position, and
//! one synced write of the manifest puts that segment into the place of all of them.
//!
//! A *moved frame* (kind 5) holds one batch. Its LSN, mark and epoch are those of the commit that
//! wrote the batch, and its one section is that commit's, unchanged: a frame keeps its LSN wherever
//! it is copied. Only the place to which its checksum is bound is new. A segment of moved frames is
//! written once and never appended to. It has no table, its frames are not in the order of their
//! LSNs, and its index, which is synced before a manifest lists the segment, has the LSN of the
//! last moved batch. A log has an entry in the directory for each run of positions without a gap.
//!
//! Frames of this kind are not replayed. The bounds of the logs come from the tables and commits,
//! and what sealed segments and moved frames hold within these bounds is ordered by LSN, whatever
//! the order of the files: of several batches with one position, the one with the highest LSN
//! counts, so that neither a copy hides a later append, nor an older one a copy. A truncate,
//! release or delete outlives every copy, because the table of the newest segment has its effect,
//! and because a batch is left out of a copy only for a change that is durable before the manifest
//! is.
//! A log that is created again has another number than the copies of the earlier one.
//!
//! Until the manifest is written, a crash leaves a file that no manifest lists: it is free. When
//! one copy of the manifest is damaged, the other one may be older than the replacement. So a file
//! with moved frames and an index that verifies then counts also unlisted: what it holds and what
//! it was copied from are the same batches.
//!
//! Moved frames whose index is lost are found by reading the segment. Each batch is then ordered by
//! its own LSN, as positions between two of them may have been rewritten elsewhere. When the index
//! is lost and frames are missing too, a batch that had replaced an older one may be among them:
//! every log counts as suspect.
//!
//! Rejected: *appending the copies to the log, with new LSNs* (recovery would have to replay them,
//! they would delay commits, and the logs would be mixed again); *moving a batch by itself to a
//! segment that is not full* (such a segment would be written after a manifest lists it, so that a
//! crash could tear it).
//!
//! # Evolution
//! The magic, version, CRC and length of a manifest slot and the magic and version of a segment
//! keep their places in every version. What is written says the lowest version that can read it:
//! 2 in the header of a segment of moved frames, else 1. So a build of version 1 refuses a
//! directory in which any file has such a header, with a typed error. That includes a file whose
//! segment has been struck: it keeps its header until it is used again, so that a directory that
//! has been rewritten once may stay closed to version 1.
//!
//! A build rejects versions above its own and kinds that it does not know with a typed error, skips
//! extensions that it does not know, and ignores bytes called zero here. LSNs, marks, sequences,
//! counters and numbers of logs above 2^62, and slots above 2^30, are taken for damage.

pub(crate) mod frame;
pub(crate) mod index;
pub(crate) mod manifest;
pub(crate) mod segment;
pub(crate) mod table;
#[cfg(test)]
mod tests;

/// The newest version that this build reads and writes.
pub const VERSION: u32 = 2;
/// The version without segments of moved frames. Everything else is still written as this one.
pub(crate) const VERSION_UNMOVED: u32 = 1;

pub(crate) const BLOCK: u64 = 4096;
/// Where the first frame of a segment stands.
pub(crate) const FRAMES_AT: u64 = BLOCK;
pub(crate) const TRAILER_BYTES: u64 = 64;
pub(crate) const SEGMENT_BYTES_MIN: u64 = 64 << 10;
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// As many as fit into a manifest slot, rounded down.
pub(crate) const SEGMENTS_MAX: usize = 4000;
/// The largest commit frame, with some room for headers beyond 16 MiB of payload.
pub(crate) const COMMIT_BYTES_MAX: u64 = (16 << 20) + (256 << 10);
/// The largest payload of one append section.
pub(crate) const BATCH_BYTES_MAX: u64 = 1 << 20;
pub(crate) const NAMESPACE_BYTES_MAX: usize = 64;
/// Sections per frame.
pub(crate) const SECTIONS_MAX: usize = 4096;

/// The highest LSN, number of a log, sequence of a segment or count that is believed when it comes
/// from a disk: no journal gets that far, and whatever counts on from it never overflows.
pub(crate) const COUNT_MAX: u64 = 1 << 62;
/// The highest slot of a segment; a file of a higher number is none of ours.
pub(crate) const SLOT_MAX: u32 = 1 << 30;

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC-32C of two pieces one after the other.
pub(crate) fn crc32c_of_two(first: &[u8], second: &[u8]) -> u32 {
    if second.is_empty() {
        return crc32c(first);
    }
    if first.is_empty() {
        return crc32c(second);
    }
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(first);
    digest.update(second);
    digest.finalize() as u32
}

/// Rounds up to the alignment of frames and payloads.
pub(crate) const fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(8)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(crate) fn u128_at(bytes: &[u8], at: usize) -> Option<u128> {
    Some(u128::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}
