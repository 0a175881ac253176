//! Compaction by key: which records of a log the later ones replace, and what is left of a batch.

use std::collections::HashMap;

use super::index::{Entry, Index};
use crate::format::{Batch, FormatError, Header, MAX_UNPACKED_BYTES, NO_TIMESTAMP, Record};

/// What an entry of a [`KeyMap`] takes besides the key, in bytes.
const ENTRY_BYTES: usize = 64;

/// What compaction has done to a partition, and what it has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clean {
    /// Records before this offset have been compacted: for each key there is one of them at most.
    /// Invariant: at most the partition's next offset.
    pub(crate) offset: u64,
    /// Position behind the batches that the last compaction has left. They are in a copy, so the
    /// next one takes all of them. Invariant: at most the partition's next position.
    pub(crate) position: u64,
    /// Bytes of the batches that the last compaction has left.
    pub(crate) bytes: u64,
    /// Bytes of the batches that were appended behind them, also of those that were released.
    pub(crate) dirty_bytes: u64,
    /// Tombstones among the records that were left.
    pub(crate) tombstones: u64,
    /// Tombstones before this offset have been compacted since `aging_since_ms`. Invariant: at
    /// most `offset`.
    pub(crate) aging_offset: u64,
    /// Time of day, in ms since the UNIX epoch.
    pub(crate) aging_since_ms: i64,
}

impl Clean {
    /// Tombstones before the returned offset have been kept for `min_age_ms` by `now_ms`.
    pub(crate) fn expired_offset(&self, min_age_ms: i64, now_ms: i64) -> u64 {
        let until = self.aging_since_ms.saturating_add(min_age_ms);
        if now_ms >= until { self.aging_offset } else { 0 }
    }

    /// Whether compacting is worth reading and writing the partition: at least half of it has not
    /// been compacted, or there are tombstones that may go.
    #[cfg(feature = "journal")]
    pub(crate) fn is_due(&self, min_age_ms: i64, now_ms: i64) -> bool {
        let has_expired = self.tombstones > 0 && self.expired_offset(min_age_ms, now_ms) > 0;
        has_expired || (self.dirty_bytes > 0 && self.dirty_bytes >= self.bytes)
    }
}

/// The last offset of each key, as many as fit into a number of bytes.
///
/// Keys are held as they are: no two of them can be taken for one.
#[derive(Debug)]
pub(crate) struct KeyMap {
    offsets: HashMap<Box<[u8]>, u64>,
    bytes: usize,
    max_bytes: usize,
}

impl KeyMap {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { offsets: HashMap::new(), bytes: 0, max_bytes }
    }

    /// Notes the record of a key, later than all that were noted before. `false` when there is no
    /// room for the key. One key fits in any case.
    pub(crate) fn note(&mut self, key: &[u8], offset: u64) -> bool {
        if let Some(last) = self.offsets.get_mut(key) {
            *last = offset;
            return true;
        }
        let bytes = self.bytes + key.len() + ENTRY_BYTES;
        if bytes > self.max_bytes && !self.offsets.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.offsets.insert(key.into(), offset);
        true
    }
}

/// Which records stay.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) keys: KeyMap,
    /// Tombstones before this offset go. No earlier record of their keys may be in the log.
    pub(crate) tombstones_before: u64,
}

/// What is left of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// All of it, as it is.
    Whole,
    /// Some of its records.
    Part(Batch),
    Nothing,
    /// Some of its records, which take more than a batch may when they are packed again.
    Unfit,
}

impl Filter {
    /// Whether a record stays. One without a key is replaced by nothing.
    fn keeps(&self, record: &Record) -> bool {
        let Some(key) = &record.key else { return true };
        let is_last = self.keys.offsets.get(&key[..]).is_none_or(|last| record.offset >= *last);
        is_last && (record.value.is_some() || record.offset >= self.tombstones_before)
    }

    /// What is left of `batch`, packed into at most `max_bytes`, and how many tombstones and
    /// records there are in it.
    ///
    /// # Errors
    /// Its records cannot be read.
    pub(crate) fn apply(
        &self,
        batch: &Batch,
        max_bytes: usize,
    ) -> Result<(Left, Kept), FormatError> {
        let records = batch.records(MAX_UNPACKED_BYTES)?;
        let mut kept = Kept::default();
        for record in records.clone() {
            let record = record?;
            kept.before += 1;
            if self.keeps(&record) {
                kept.records += 1;
                kept.tombstones += u64::from(is_tombstone(&record));
            }
        }
        let left = match kept.records {
            all if all == kept.before && all > 0 => Left::Whole,
            0 => Left::Nothing,
            _ => {
                let records = records.filter_map(Result::ok).filter(|record| self.keeps(record));
                match batch.subset(records) {
                    Ok(part) if part.bytes().len() <= max_bytes => Left::Part(part),
                    Ok(_) | Err(FormatError::TooLarge { .. }) => Left::Unfit,
                    Err(error) => return Err(error),
                }
            }
        };
        Ok((left, kept))
    }
}

fn is_tombstone(record: &Record) -> bool {
    record.key.is_some() && record.value.is_none()
}

/// Records of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Records before.
    pub(crate) before: u64,
    /// Those that are left.
    pub(crate) records: u64,
    /// The tombstones among them.
    pub(crate) tombstones: u64,
}

/// What a copy has so far.
#[derive(Debug)]
pub(crate) struct Copied {
    pub(crate) batches: u64,
    pub(crate) bytes: u64,
    pub(crate) tombstones: u64,
    /// Entries have positions from 0 on.
    pub(crate) index: Index,
    max_timestamp: i64,
}

impl Copied {
    pub(crate) fn new() -> Self {
        let max_timestamp = NO_TIMESTAMP;
        Self { batches: 0, bytes: 0, tombstones: 0, index: Index::new(), max_timestamp }
    }

    /// Adds a batch that was appended to the copy.
    pub(crate) fn push(&mut self, header: &Header, tombstones: u64, max_entries: usize) {
        let (position, offset) = (self.batches, header.base_offset as u64);
        let entry = Entry { position, offset, timestamp_before: self.max_timestamp };
        self.index.add(entry, max_entries);
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
        self.batches += 1;
        self.bytes += header.bytes as u64;
        self.tombstones += tombstones;
    }
}

/// A copy that takes the place of the first batches of a log.
#[derive(Clone, Debug)]
pub(crate) struct Replacement {
    /// The first position that stays as it is.
    pub(crate) end: u64,
    pub(crate) batches: u64,
    /// Entries have positions from 0 on.
    pub(crate) index: Index,
    /// With the bytes that are behind the copy as `dirty_bytes` when it was begun.
    pub(crate) clean: Clean,
    /// Bytes of `clean.dirty_bytes` that the copy has taken.
    pub(crate) taken_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BatchBuilder, Compression};

    fn filter(tombstones_before: u64) -> Filter {
        Filter { keys: KeyMap::new(1 << 20), tombstones_before }
    }

    fn batch(records: &[Record], compression: Compression) -> Batch {
        let mut builder = BatchBuilder::new().compression(compression).producer(7, 3, 40);
        for record in records {
            builder.push(record).expect("it fits");
        }
        builder.finish().expect("a batch").placed(100, 5)
    }

    #[test]
    fn what_is_left_keeps_its_offsets_and_its_producer() {
        let records = [
            Record::new("1").key("a").timestamp(50).header("trace", "x"),
            Record::new("2").key("b").timestamp(90),
            Record::new("3").key("a").timestamp(10),
            Record::new("no key").timestamp(20),
            Record::new("4").key("b").timestamp(30),
        ];
        let codecs = [Compression::None, Compression::Gzip, Compression::Lz4];
        for compression in codecs.into_iter().filter(|codec| codec.is_available()) {
            let before = batch(&records, compression);
            let mut filter = filter(0);
            for (record, offset) in records.iter().zip(100..) {
                let noted = record.key.as_ref().is_none_or(|key| filter.keys.note(key, offset));
                assert!(noted);
            }
            let (left, kept) = filter.apply(&before, 1 << 20).expect("it can be read");
            assert_eq!(kept, Kept { before: 5, records: 3, tombstones: 0 });
            let Left::Part(part) = left else { panic!("{left:?}") };
            let header = part.header();
            assert_eq!((part.base_offset(), part.last_offset(), header.count), (100, 104, 3));
            assert_eq!((header.max_timestamp, header.leader_epoch), (30, 5));
            let producer = (header.producer_id, header.producer_epoch, header.base_sequence);
            assert_eq!((producer, header.compression), ((7, 3, 40), compression));
            let left: Vec<Record> = part
                .records(1 << 20)
                .expect("unpacked")
                .map(|record| record.expect("a record"))
                .collect();
            let offsets: Vec<u64> = left.iter().map(|record| record.offset).collect();
            assert_eq!(offsets, [102, 103, 104]);
            let expected = records[2..].iter().zip(102..);
            for (left, (record, offset)) in left.iter().zip(expected) {
                assert_eq!(*left, Record { offset, ..record.clone() });
            }
            // The same filter leaves it as it is.
            let again = filter.apply(&part, 1 << 20).expect("it can be read");
            assert_eq!(again, (Left::Whole, Kept { before: 3, records: 3, tombstones: 0 }));
            let (left, _) = filter.apply(&before, 70).expect("it can be read");
            assert_eq!(left, Left::Unfit, "what does not fit is not cut");
        }
    }

    #[test]
    fn a_tombstone_goes_when_its_time_is_over_and_not_before() {
        let before = batch(&[Record::tombstone("a"), Record::tombstone("b")], Compression::None);
        let left = |tombstones_before| {
            let mut filter = filter(tombstones_before);
            assert!(filter.keys.note(b"a", 100) && filter.keys.note(b"b", 101));
            filter.apply(&before, 1 << 20).expect("it can be read")
        };
        let kept = |records| Kept { before: 2, records, tombstones: records };
        assert_eq!(left(100), (Left::Whole, kept(2)));
        let (part, counts) = left(101);
        assert!(matches!(part, Left::Part(_)) && counts == kept(1), "{part:?}");
        assert_eq!(left(102), (Left::Nothing, kept(0)));
        let clean = Clean { aging_offset: 9, aging_since_ms: 50, ..Clean::default() };
        assert_eq!((clean.expired_offset(10, 59), clean.expired_offset(10, 60)), (0, 9));
        assert_eq!(clean.expired_offset(i64::MAX, i64::MAX - 1), 0);
    }

    #[test]
    fn the_map_is_bounded_and_takes_one_key_of_any_size() {
        let mut keys = KeyMap::new(1_000);
        assert!(keys.note(&[0; 5_000], 1), "the first one");
        assert!(!keys.note(b"b", 2) && keys.note(&[0; 5_000], 3));
        let mut keys = KeyMap::new(1_000);
        let fits = (0..100_u64).take_while(|at| keys.note(&at.to_le_bytes(), *at)).count();
        assert_eq!(fits, 1_000 / (ENTRY_BYTES + 8));
        assert!(keys.bytes <= 1_000);
    }
}
