//! Decoders under arbitrary and mutated bytes: they never panic, never build more than the bytes
//! can hold, and never take a changed byte for the written one.

use proptest::collection::vec;
use proptest::prelude::*;

use super::frame::{FrameKind, Header, SECTION_BYTES, Section, SectionKind, record_range};
use super::index::{self, BatchRef, DirectoryEntry};
use super::manifest::{Life, Manifest, Slot, segment_name, segment_slot};
use super::segment::{Found, SegmentHeader, Trailer};
use super::table::{Table, TableEntry};
use super::{COUNT_MAX, SEGMENT_BYTES_MIN, SLOT_MAX, crc32c};
use crate::engine::segment::Segment;
use crate::files::{Files, MemoryFiles};

fn segment(journal: u128, sequence: u64) -> Segment {
    let file = MemoryFiles::new().create("file").unwrap();
    Segment::new(journal, 0, sequence, SEGMENT_BYTES_MIN, file)
}

fn section() -> impl Strategy<Value = Section> {
    let kinds = prop::sample::select(vec![
        SectionKind::Append,
        SectionKind::Truncate,
        SectionKind::Release,
        SectionKind::Delete,
        SectionKind::Create,
        SectionKind::Table,
        SectionKind::Directory,
        SectionKind::Entries,
    ]);
    (any::<[u64; 3]>(), any::<[u32; 2]>(), 0..5_000_u32, kinds).prop_map(
        |([log, position, previous], [count, crc], length, kind)| Section {
            heals: count % 2 == 1,
            log,
            position,
            previous,
            count,
            length,
            crc,
            kind,
        },
    )
}

fn life() -> impl Strategy<Value = Life> {
    (0..=COUNT_MAX, 0..=SLOT_MAX, any::<u32>()).prop_map(|(sequence, slot, span)| Life {
        sequence,
        slot,
        span,
    })
}

fn manifest() -> impl Strategy<Value = Manifest> {
    ((any::<u128>(), any::<u32>(), 0..=COUNT_MAX), vec(life(), 0..20)).prop_map(
        |((journal, epoch, counter), mut live)| {
            live.sort_unstable();
            Manifest { journal, epoch, counter, mark: counter / 2, live }
        },
    )
}

fn table_entry() -> impl Strategy<Value = TableEntry> {
    let damage = proptest::option::of(any::<(u64, u64)>());
    (any::<[u64; 5]>(), damage, "[a-zé]{1,30}").prop_map(
        |([number, one, other, last, id], damage, namespace)| TableEntry {
            number,
            namespace,
            id,
            first: one.min(other),
            end: one.max(other),
            last,
            damage,
        },
    )
}

/// Bytes of which some decoders take the first for a magic.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let magics: [&[u8]; 5] = [b"vsrf", b"vsrmanif", b"vsrsegmt", b"vsrseale", b""];
    (prop::sample::select(magics.to_vec()), vec(any::<u8>(), 0..2_000))
        .prop_map(|(magic, rest)| [magic, &rest].concat())
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_survived(bytes in bytes(), count: u32, number: u32, offset: u64) {
        let segment = segment(1, 2);
        let place = segment.location(offset);
        prop_assert!(!matches!(Manifest::decode(&bytes), Slot::Valid(_)));
        prop_assert_eq!(SegmentHeader::decode(&bytes), Found::Nothing);
        prop_assert_eq!(Trailer::decode(&bytes, place), None);
        if let Some(header) = Header::peek(&bytes) {
            prop_assert!(!header.verify(&bytes, place));
            if let Ok(sections) = header.sections(&bytes) {
                prop_assert!(sections.len() * SECTION_BYTES <= bytes.len());
            }
        }
        for count in [count, count % 64] {
            if let Some(table) = Table::decode(&bytes, count) {
                prop_assert!(table.logs.len() * 64 <= bytes.len());
            }
            if let Some(entries) = DirectoryEntry::decode_all(&bytes, count) {
                prop_assert_eq!(entries.len() * index::DIRECTORY_ENTRY, bytes.len());
            }
            for number in [number, number % 64] {
                if let Some(range) = record_range(&bytes, count, number) {
                    prop_assert!(bytes.get(range).is_some());
                }
            }
        }
    }

    /// What a checksum let through may still be nonsense: a bug elsewhere, or an attack.
    #[test]
    fn nonsense_with_a_right_checksum_is_survived(
        mut bytes in vec(any::<u8>(), 56..2_000),
        length in 0..2_100_u32,
        entry: [u64; 4],
    ) {
        bytes[..8].copy_from_slice(b"vsrmanif");
        bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        bytes[16..20].copy_from_slice(&length.to_le_bytes());
        let covered = bytes.get(16..length as usize).unwrap_or(&[]);
        let crc = crc32c(covered);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        if let Slot::Valid(manifest) = Manifest::decode(&bytes) {
            prop_assert!(manifest.live.len() * 16 <= bytes.len());
        }
        let [log, first, end, last] = entry;
        let count = (bytes.len() / index::ENTRY) as u32;
        let entries = &bytes[..count as usize * index::ENTRY];
        let entry =
            DirectoryEntry { log, first, end, last, at: 0, count, crc: crc32c(entries), bytes: 0 };
        if let Some(batches) = index::decode_entries(entries, &entry) {
            prop_assert_eq!(batches.len(), count as usize);
        }
    }

    #[test]
    fn frames_come_back_and_only_from_their_place(
        sections in vec(section(), 0..20),
        (lsn, offset) in any::<(u64, u64)>(),
        (flip, elsewhere) in any::<(prop::sample::Index, u64)>(),
    ) {
        let (here, successor, stranger) = (segment(1, 2), segment(1, 3), segment(2, 2));
        let header = Header::new(FrameKind::Commit, lsn, 7, &sections);
        let mut bytes = vec![0; header.head as usize];
        header.encode(&sections, here.location(offset), &mut bytes);
        prop_assert_eq!(Header::peek(&bytes), Some(header));
        prop_assert!(header.verify(&bytes, here.location(offset)));
        prop_assert_eq!(header.sections(&bytes), Ok(sections));
        prop_assert!(elsewhere == offset || !header.verify(&bytes, here.location(elsewhere)));
        prop_assert!(!header.verify(&bytes, successor.location(offset)));
        prop_assert!(!header.verify(&bytes, stranger.location(offset)));
        prop_assert!(!header.verify(&bytes[..bytes.len() - 1], here.location(offset)));

        let bit = flip.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let peeked = Header::peek(&bytes);
        let accepted = peeked.is_some_and(|header| header.verify(&bytes, here.location(offset)));
        prop_assert!(!accepted);
    }

    #[test]
    fn manifests_come_back_and_a_flipped_bit_is_noticed(
        manifest in manifest(),
        flip: prop::sample::Index,
    ) {
        let mut bytes = manifest.encode();
        prop_assert_eq!(Manifest::decode(&bytes), Slot::Valid(manifest.clone()));
        let bit = flip.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        match Manifest::decode(&bytes) {
            Slot::Valid(decoded) => prop_assert_eq!(decoded, manifest),
            Slot::Newer(_) => prop_assert!((8..12).contains(&(bit / 8))),
            Slot::Invalid => {}
        }
        prop_assert_eq!(Manifest::decode(&bytes[..bytes.len() - 1]), Slot::Invalid);
    }

    #[test]
    fn segment_headers_and_trailers_come_back(
        (slot, journal, sequence, epoch) in
            (0..=SLOT_MAX, any::<u128>(), 0..=COUNT_MAX, any::<u32>()),
        (offset, length, lsn) in any::<(u64, u64, u64)>(),
        flip in 0..512_usize,
    ) {
        let size = SEGMENT_BYTES_MIN;
        let is_rewritten = epoch % 2 == 1;
        let header = SegmentHeader { slot, journal, sequence, size, epoch, is_rewritten };
        let mut bytes = header.encode();
        prop_assert_eq!(SegmentHeader::decode(&bytes), Found::Header(header));
        bytes[flip / 8] ^= 1 << (flip % 8);
        prop_assert_eq!(SegmentHeader::decode(&bytes), Found::Nothing);

        let segment = segment(journal, sequence);
        let trailer = Trailer { offset, length, lsn };
        let mut bytes = trailer.encode(segment.location(0));
        prop_assert_eq!(Trailer::decode(&bytes, segment.location(0)), Some(trailer));
        prop_assert_eq!(Trailer::decode(&bytes, segment.location(8)), None);
        bytes[flip / 8] ^= 1 << (flip % 8);
        prop_assert_eq!(Trailer::decode(&bytes, segment.location(0)), None);
        prop_assert_eq!(segment_slot(&segment_name(slot)), Some(slot));
    }

    #[test]
    fn tables_come_back_and_cut_ones_are_refused(
        names_missing: bool,
        logs in vec(table_entry(), 0..10),
        (cut, more) in any::<(prop::sample::Index, u32)>(),
    ) {
        let table = Table { names_missing, logs };
        let (bytes, count) = (table.encode(), table.logs.len() as u32);
        let decoded = Table::decode(&bytes, count);
        prop_assert_eq!(decoded.as_ref(), Some(&table));
        let cut = &bytes[..cut.index(bytes.len())];
        prop_assert!(Table::decode(cut, count).is_none_or(|cut| cut == table));
        prop_assert_eq!(Table::decode(&bytes, count.saturating_add(more | 1)), None);
    }

    #[test]
    fn indexes_come_back_and_a_flipped_bit_is_noticed(
        (start, steps) in (0..1_u64 << 40, vec(1..1_000_u64, 1..50)),
        (frame, payload, length, section) in any::<(u32, u32, u32, u16)>(),
        flip: prop::sample::Index,
    ) {
        let mut first = start;
        let mut batches = Vec::new();
        for step in steps {
            let (frame, payload) = (u64::from(frame) * 8, u64::from(payload) * 8);
            batches.push(BatchRef::new(first, frame, payload, length, section.into()));
            first += step;
        }
        let mut bytes = Vec::new();
        let crc = index::encode_entries(batches.iter(), &mut bytes);
        let count = batches.len() as u32;
        let (first, end) = (start, first);
        let entry = DirectoryEntry { log: 1, first, end, last: 9, at: 0, count, crc, bytes: 0 };
        let decoded = index::decode_entries(&bytes, &entry);
        prop_assert_eq!(decoded.as_ref(), Some(&batches));
        let bit = flip.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(index::decode_entries(&bytes, &entry), None);

        let mut directory = Vec::new();
        entry.encode(&mut directory);
        entry.encode(&mut directory);
        prop_assert_eq!(DirectoryEntry::decode_all(&directory, 2), Some(vec![entry; 2]));
        prop_assert_eq!(DirectoryEntry::decode_all(&directory, 3), None);
    }
}

#[test]
fn names_that_are_not_segments() {
    for name in ["segment-", "segment-1", "segment-0000000G", "segment-0000000A", "manifest"] {
        assert_eq!(segment_slot(name), None, "{name}");
    }
    assert_eq!(segment_slot("segment-0000000a"), Some(10));
}
