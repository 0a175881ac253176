//! The first 61 bytes of a batch.

use super::{Compression, FormatError, HEADER_BYTES, MAX_BATCH_BYTES};

pub(super) const LENGTH_AT: usize = 8;
pub(super) const EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
pub(super) const CRC_AT: usize = 17;
/// What the checksum covers begins here.
pub(super) const CHECKED_AT: usize = 21;
pub(super) const MAX_TIMESTAMP_AT: usize = 35;
pub(super) const COUNT_AT: usize = 57;
/// Bytes before and in the length field, which it does not count.
pub(super) const UNCOUNTED_BYTES: usize = 12;

const CODEC_MASK: i16 = 0b111;
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// Who set the timestamps of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer: the time of the event.
    #[default]
    Create,
    /// The log: the time of the append. All records have the batch's largest timestamp.
    LogAppend,
}

/// The header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// Offset of the first record. Not covered by the checksum.
    pub base_offset: i64,
    /// Bytes of the whole batch, header included. At most [`MAX_BATCH_BYTES`].
    pub bytes: usize,
    /// Epoch of the partition's leader; -1 for none. Not covered by the checksum.
    pub leader_epoch: i32,
    /// CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// The attributes as they are, with bits that this version does not know.
    pub attributes: i16,
    /// Offset of the last record, relative to `base_offset`. Invariant: at least 0.
    pub last_offset_delta: i32,
    /// Timestamp of the first record, in ms since the UNIX epoch.
    pub base_timestamp: i64,
    /// Largest timestamp of a record, in ms since the UNIX epoch.
    pub max_timestamp: i64,
    /// Id of the idempotent producer, -1 for none.
    pub producer_id: i64,
    /// Epoch of the idempotent producer, -1 for none.
    pub producer_epoch: i16,
    /// Sequence of the first record, -1 for none.
    pub base_sequence: i32,
    /// Number of records. Invariant: `0 <= count <= last_offset_delta + 1`; less where compaction
    /// has removed records.
    pub count: i32,
    /// The codec of the records.
    pub compression: Compression,
}

impl Header {
    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// Sequence of the last record; after `i32::MAX` sequences go on with 0.
    pub fn last_sequence(&self) -> i32 {
        let last = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        (last % (i64::from(i32::MAX) + 1)) as i32
    }

    /// Whether an idempotent producer sent the batch.
    pub fn is_idempotent(&self) -> bool {
        self.producer_id >= 0
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch is a marker of the log rather than data.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Who set the timestamps.
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & LOG_APPEND_TIME == 0 {
            TimestampType::Create
        } else {
            TimestampType::LogAppend
        }
    }

    /// Bytes of the batch that `input` begins with, from its length field. `None` when `input`
    /// ends before that field does.
    pub(super) fn length_of(input: &[u8]) -> Result<Option<usize>, FormatError> {
        let Some(field) = input.get(LENGTH_AT..UNCOUNTED_BYTES) else { return Ok(None) };
        let counted = i32::from_be_bytes(array(field));
        let bytes = usize::try_from(counted).map_or(0, |counted| counted + UNCOUNTED_BYTES);
        if bytes < HEADER_BYTES {
            let rule = "must count the header's other 49 bytes";
            let value = i64::from(counted);
            return Err(FormatError::Header { field: "length", value, rule });
        }
        if bytes > MAX_BATCH_BYTES {
            let limit = MAX_BATCH_BYTES as u64;
            return Err(FormatError::TooLarge { bytes: bytes as u64, limit });
        }
        Ok(Some(bytes))
    }

    /// Reads the header of `input`, which must be exactly one batch. The checksum is not checked.
    pub(super) fn read(input: &[u8]) -> Result<Self, FormatError> {
        let have = input.len();
        let Some(bytes) = Self::length_of(input)? else {
            return Err(FormatError::Truncated { have, need: HEADER_BYTES });
        };
        if have < bytes {
            return Err(FormatError::Truncated { have, need: bytes });
        }
        if have > bytes {
            return Err(FormatError::Trailing { bytes: have - bytes });
        }
        let magic = input[MAGIC_AT].cast_signed();
        if magic != 2 {
            return Err(FormatError::Magic { found: magic });
        }
        let attributes = i16::from_be_bytes(array(&input[21..23]));
        let header = Self {
            base_offset: i64::from_be_bytes(array(&input[0..8])),
            bytes,
            leader_epoch: i32::from_be_bytes(array(&input[EPOCH_AT..16])),
            crc: u32::from_be_bytes(array(&input[CRC_AT..CHECKED_AT])),
            attributes,
            last_offset_delta: i32::from_be_bytes(array(&input[23..27])),
            base_timestamp: i64::from_be_bytes(array(&input[27..35])),
            max_timestamp: i64::from_be_bytes(array(&input[35..43])),
            producer_id: i64::from_be_bytes(array(&input[43..51])),
            producer_epoch: i16::from_be_bytes(array(&input[51..53])),
            base_sequence: i32::from_be_bytes(array(&input[53..57])),
            count: i32::from_be_bytes(array(&input[57..61])),
            compression: Compression::from_id((attributes & CODEC_MASK) as u8)?,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FormatError> {
        let bad = |field, value, rule| Err(FormatError::Header { field, value, rule });
        if self.base_offset < 0 || self.base_offset.checked_add(i64::from(i32::MAX)).is_none() {
            return bad("base offset", self.base_offset, "must be between 0 and 2^63 - 2^31");
        }
        if self.last_offset_delta < 0 {
            let value = i64::from(self.last_offset_delta);
            return bad("last offset delta", value, "must not be negative");
        }
        if self.count < 0 || i64::from(self.count) > i64::from(self.last_offset_delta) + 1 {
            let rule = "must be between 0 and the last offset delta + 1";
            return bad("count", i64::from(self.count), rule);
        }
        if self.producer_id < -1 {
            return bad("producer id", self.producer_id, "must be at least -1");
        }
        let is_idempotent = self.is_idempotent();
        if (self.producer_epoch < -1) || (is_idempotent && self.producer_epoch < 0) {
            let value = i64::from(self.producer_epoch);
            return bad("producer epoch", value, "must not be negative beside a producer id");
        }
        if (self.base_sequence < -1) || (is_idempotent && self.base_sequence < 0) {
            // Control batches carry a producer id and no sequence.
            if !self.is_control() || self.base_sequence != -1 {
                let value = i64::from(self.base_sequence);
                return bad("base sequence", value, "must not be negative beside a producer id");
            }
        }
        Ok(())
    }

    /// What holds in addition for a batch that a producer sends: no record has been removed.
    pub(super) fn check_whole(&self) -> Result<(), FormatError> {
        if self.count < 1 || self.count - 1 != self.last_offset_delta {
            let rule = "must be at least 1, and the last offset delta + 1";
            let value = i64::from(self.count);
            return Err(FormatError::Header { field: "count", value, rule });
        }
        Ok(())
    }
}

/// The bytes of a field whose length is known.
fn array<const N: usize>(field: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(field);
    out
}
