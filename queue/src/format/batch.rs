//! A batch, and the records in it.

use bytes::{Bytes, BytesMut};

use super::header::{CHECKED_AT, EPOCH_AT};
use super::{
    FormatError, HEADER_BYTES, Header, NO_TIMESTAMP, Record, TimestampType, builder, record,
};

/// A batch of records, as it lies on disk and goes over wires.
///
/// Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
    header: Header,
}

impl Batch {
    /// Reads a batch that a producer has sent, which must be all of `bytes`, and checks everything
    /// about it but the inside of compressed records: length, version, checksum, counts, producer
    /// fields, and each uncompressed record.
    ///
    /// # Errors
    /// See [`FormatError`].
    pub fn decode(bytes: Bytes) -> Result<Self, FormatError> {
        let header = Header::read(&bytes)?;
        let computed = crc_fast::crc32_iscsi(&bytes[CHECKED_AT..]);
        if computed != header.crc {
            return Err(FormatError::Crc { stored: header.crc, computed });
        }
        header.check_whole()?;
        let batch = Self { bytes, header };
        if header.compression.is_none() {
            batch.check_records(&batch.bytes[HEADER_BYTES..])?;
        }
        Ok(batch)
    }

    /// Takes the first batch off `input`, a sequence of batches as in Kafka's requests. `None`
    /// when `input` ends before the batch does, as a response to a fetch may.
    ///
    /// # Errors
    /// See [`FormatError`]; `input` is then unchanged.
    pub fn decode_first(input: &mut Bytes) -> Result<Option<Self>, FormatError> {
        match Header::length_of(input)? {
            Some(bytes) if bytes <= input.len() => {
                let batch = Self::decode(input.slice(..bytes))?;
                let _ = input.split_to(bytes);
                Ok(Some(batch))
            }
            _ => Ok(None),
        }
    }

    /// A batch that the store has read and verified.
    pub(crate) fn from_store(bytes: Bytes) -> Result<Self, FormatError> {
        let header = Header::read(&bytes)?;
        Ok(Self { bytes, header })
    }

    pub(super) fn from_builder(bytes: Bytes) -> Result<Self, FormatError> {
        Self::from_store(bytes)
    }

    /// Its header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Offset of the first record.
    pub fn base_offset(&self) -> u64 {
        self.header.base_offset as u64
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> u64 {
        self.header.last_offset() as u64
    }

    /// The whole batch.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The same batch at another place of a log. Copies the bytes only when they are shared.
    #[must_use]
    pub(crate) fn placed(self, base_offset: u64, leader_epoch: i32) -> Self {
        let Self { bytes, mut header } = self;
        header.base_offset = base_offset.cast_signed();
        header.leader_epoch = leader_epoch;
        let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        bytes[..8].copy_from_slice(&header.base_offset.to_be_bytes());
        bytes[EPOCH_AT..EPOCH_AT + 4].copy_from_slice(&leader_epoch.to_be_bytes());
        Self { bytes: bytes.freeze(), header }
    }

    /// The batch with only these of its records: at the same offsets, of the same producer, packed
    /// in the same way.
    ///
    /// # Errors
    /// The codec is missing, or the records take more than a batch may.
    pub(crate) fn subset(
        &self,
        records: impl Iterator<Item = Record>,
    ) -> Result<Self, FormatError> {
        builder::subset(&self.bytes[..HEADER_BYTES], &self.header, records)
    }

    /// The records. Uncompressed ones are slices of the batch; others are unpacked, to at most
    /// `max_bytes`: see [`MAX_UNPACKED_BYTES`](super::MAX_UNPACKED_BYTES).
    ///
    /// # Errors
    /// The codec is missing or rejects the bytes, or there are more than `max_bytes` of them.
    pub fn records(&self, max_bytes: usize) -> Result<Records, FormatError> {
        let packed = self.bytes.slice(HEADER_BYTES..);
        let body = self.header.compression.unpack(packed, max_bytes)?;
        Ok(Records { header: self.header, body, at: 0, next: 0, last_delta: -1, failed: false })
    }

    /// Checks records of which none is missing. `body` is uncompressed.
    fn check_records(&self, mut body: &[u8]) -> Result<(), FormatError> {
        let mut max_timestamp = NO_TIMESTAMP;
        for index in 0..self.header.count as u32 {
            let bad = |detail| FormatError::Record { index, detail };
            let taken = record::take(&mut body).map_err(bad)?;
            if i64::from(taken.deltas.offset) != i64::from(index) {
                return Err(bad("its offset is not the next one"));
            }
            let timestamp = self.header.base_timestamp.checked_add(taken.deltas.timestamp);
            let timestamp = timestamp.ok_or_else(|| bad("its timestamp is out of range"))?;
            max_timestamp = max_timestamp.max(timestamp);
        }
        if !body.is_empty() {
            return Err(FormatError::Trailing { bytes: body.len() });
        }
        let is_create = self.header.timestamp_type() == TimestampType::Create;
        if is_create && max_timestamp != self.header.max_timestamp {
            let value = self.header.max_timestamp;
            let rule = "must be the largest timestamp of the records";
            return Err(FormatError::Header { field: "max timestamp", value, rule });
        }
        Ok(())
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Batch").field(&self.header).finish()
    }
}

/// The records of a batch, in order. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Records {
    header: Header,
    body: Bytes,
    at: usize,
    /// Number of the next record. Invariant: `next <= header.count`.
    next: i32,
    /// Offset delta of the record before, -1 at the start.
    last_delta: i32,
    failed: bool,
}

impl Records {
    fn read(&mut self) -> Result<Option<Record>, FormatError> {
        let mut rest = &self.body[self.at..];
        if self.next == self.header.count {
            let trailing = FormatError::Trailing { bytes: rest.len() };
            return if rest.is_empty() { Ok(None) } else { Err(trailing) };
        }
        let index = self.next as u32;
        let bad = |detail| FormatError::Record { index, detail };
        let taken = record::take(&mut rest).map_err(bad)?;
        let deltas = taken.deltas;
        if deltas.offset <= self.last_delta || deltas.offset > self.header.last_offset_delta {
            return Err(bad("its offset is not between those around it"));
        }
        let timestamp = match self.header.timestamp_type() {
            TimestampType::Create => self.header.base_timestamp.checked_add(deltas.timestamp),
            TimestampType::LogAppend => Some(self.header.max_timestamp),
        };
        let slice = |part: Option<&[u8]>| part.map(|part| self.body.slice_ref(part));
        let record = Record {
            offset: self.header.base_offset as u64 + deltas.offset as u64,
            timestamp: timestamp.ok_or_else(|| bad("its timestamp is out of range"))?,
            key: slice(taken.key),
            value: slice(taken.value),
            headers: taken.headers(&self.body),
        };
        self.at = self.body.len() - rest.len();
        self.next += 1;
        self.last_delta = deltas.offset;
        Ok(Some(record))
    }
}

impl Iterator for Records {
    type Item = Result<Record, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let read = self.read();
        self.failed = !matches!(read, Ok(Some(_)));
        read.transpose()
    }
}

impl std::iter::FusedIterator for Records {}
