//! From records to a batch.

use bytes::{BufMut, BytesMut};

use super::header::{CHECKED_AT, COUNT_AT, CRC_AT, LENGTH_AT, MAX_TIMESTAMP_AT, UNCOUNTED_BYTES};
use super::record::Deltas;
use super::{
    Batch, Compression, FormatError, HEADER_BYTES, Header, MAX_BATCH_BYTES, NO_TIMESTAMP, Record,
    record,
};

/// Collects the records of a [`Batch`].
///
/// # Example
/// ```
/// use voussoir_queue::format::{BatchBuilder, MAX_UNPACKED_BYTES, Record};
///
/// let mut builder = BatchBuilder::new();
/// builder.push(&Record::new("first").key("k"))?;
/// builder.push(&Record::new("second").header("trace", "17"))?;
/// let batch = builder.finish()?;
/// let records: Result<Vec<_>, _> = batch.records(MAX_UNPACKED_BYTES)?.collect();
/// assert_eq!(records?[1].value.as_deref(), Some(&b"second"[..]));
/// # Ok::<(), voussoir_queue::format::FormatError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "finish it"]
pub struct BatchBuilder {
    /// Room for the header, and the records.
    out: BytesMut,
    compression: Compression,
    producer: Option<(i64, i16, i32)>,
    base_timestamp: i64,
    max_timestamp: i64,
    count: i32,
    max_bytes: usize,
}

impl BatchBuilder {
    /// A builder for uncompressed records, at most [`MAX_BATCH_BYTES`] with the header.
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// As [`new`](Self::new), with memory for so many bytes of records from the beginning: what is
    /// added does not have to be moved while the batch grows.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + bytes.min(MAX_BATCH_BYTES));
        out.resize(HEADER_BYTES, 0);
        Self {
            out,
            compression: Compression::None,
            producer: None,
            base_timestamp: NO_TIMESTAMP,
            max_timestamp: NO_TIMESTAMP,
            count: 0,
            max_bytes: MAX_BATCH_BYTES,
        }
    }

    /// The codec of the records. The limit holds for the records before compression.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Marks the batch as one of an idempotent producer: its id, its epoch and the sequence of the
    /// first record, none of them negative.
    ///
    /// Give ids from a counter, each higher than all before: a partition that has forgotten an id
    /// (`max_producers`) takes no new one at or below it.
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        self.producer = Some((id, epoch, base_sequence));
        self
    }

    /// Lowers the limit of bytes, header included.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes.min(MAX_BATCH_BYTES);
        self
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the batch so far, before compression, with the header.
    pub fn len_bytes(&self) -> usize {
        self.out.len()
    }

    /// Whether the batch has room for `record` too.
    pub fn has_room(&self, record: &Record) -> bool {
        self.out.len() + record::bytes(record, self.deltas(record)) <= self.max_bytes
    }

    fn deltas(&self, record: &Record) -> Deltas {
        let base = if self.is_empty() { record.timestamp } else { self.base_timestamp };
        Deltas { timestamp: record.timestamp.wrapping_sub(base), offset: self.count }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] when there is no room, also for a record that would be the only
    /// one, and [`FormatError::Record`] when its timestamp is below -1 or it has more than 65,536
    /// headers. The builder is unchanged.
    pub fn push(&mut self, record: &Record) -> Result<(), FormatError> {
        if record.timestamp < NO_TIMESTAMP {
            let detail = "its timestamp is before 1970";
            return Err(FormatError::Record { index: self.count as u32, detail });
        }
        self.push_stored(record)
    }

    /// Adds a record that was read from a batch. Its timestamp may have any value: batches of other
    /// producers are stored with the timestamps that they have.
    ///
    /// # Errors
    /// As [`push`](Self::push), the timestamp aside.
    pub(crate) fn push_stored(&mut self, record: &Record) -> Result<(), FormatError> {
        let deltas = self.deltas(record);
        if record.headers.len() > record::MAX_HEADERS {
            let detail = "it has more than 65,536 headers";
            return Err(FormatError::Record { index: self.count as u32, detail });
        }
        let bytes = self.out.len() + record::bytes(record, deltas);
        if bytes > self.max_bytes {
            let limit = self.max_bytes as u64;
            return Err(FormatError::TooLarge { bytes: bytes as u64, limit });
        }
        if self.is_empty() {
            self.base_timestamp = record.timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        record::put(&mut self.out, record, deltas);
        self.count += 1;
        Ok(())
    }

    /// Compresses the records and computes the checksum.
    ///
    /// # Errors
    /// There is no record, a field of the producer is negative, or the codec is missing.
    pub fn finish(self) -> Result<Batch, FormatError> {
        let mut out = self.out;
        if self.compression != Compression::None {
            let packed = self.compression.pack(&out[HEADER_BYTES..])?;
            out.truncate(HEADER_BYTES);
            out.extend_from_slice(&packed);
        }
        let bytes = out.len();
        if bytes > MAX_BATCH_BYTES {
            let limit = MAX_BATCH_BYTES as u64;
            return Err(FormatError::TooLarge { bytes: bytes as u64, limit });
        }
        let (id, epoch, sequence) = self.producer.unwrap_or((-1, -1, -1));
        let mut head = &mut out[..HEADER_BYTES];
        head.put_i64(0);
        head.put_u32((bytes - UNCOUNTED_BYTES) as u32);
        head.put_i32(-1);
        head.put_i8(2);
        head.put_u32(0);
        head.put_i16(i16::from(self.compression.id()));
        head.put_i32(self.count - 1);
        head.put_i64(self.base_timestamp);
        head.put_i64(self.max_timestamp);
        head.put_i64(id);
        head.put_i16(epoch);
        head.put_i32(sequence);
        head.put_i32(self.count);
        let crc = crc_fast::crc32_iscsi(&out[CHECKED_AT..]);
        out[CRC_AT..CHECKED_AT].copy_from_slice(&crc.to_be_bytes());
        let batch = Batch::from_builder(out.freeze())?;
        batch.header().check_whole()?;
        Ok(batch)
    }
}

/// Some records of a batch with this header, as a batch. `head` has the header's bytes.
pub(super) fn subset(
    head: &[u8],
    header: &Header,
    records: impl Iterator<Item = Record>,
) -> Result<Batch, FormatError> {
    let mut out = BytesMut::from(head);
    let (mut count, mut max_timestamp) = (0_i32, NO_TIMESTAMP);
    for record in records {
        let timestamp = record.timestamp.wrapping_sub(header.base_timestamp);
        let offset = record.offset.wrapping_sub(header.base_offset as u64) as i32;
        record::put(&mut out, &record, Deltas { timestamp, offset });
        max_timestamp = max_timestamp.max(record.timestamp);
        count += 1;
    }
    if header.compression != Compression::None {
        let packed = header.compression.pack(&out[HEADER_BYTES..])?;
        out.truncate(HEADER_BYTES);
        out.extend_from_slice(&packed);
    }
    let bytes = out.len();
    if bytes > MAX_BATCH_BYTES {
        let limit = MAX_BATCH_BYTES as u64;
        return Err(FormatError::TooLarge { bytes: bytes as u64, limit });
    }
    out[LENGTH_AT..UNCOUNTED_BYTES]
        .copy_from_slice(&((bytes - UNCOUNTED_BYTES) as u32).to_be_bytes());
    out[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&max_timestamp.to_be_bytes());
    out[COUNT_AT..HEADER_BYTES].copy_from_slice(&count.to_be_bytes());
    let crc = crc_fast::crc32_iscsi(&out[CHECKED_AT..]);
    out[CRC_AT..CHECKED_AT].copy_from_slice(&crc.to_be_bytes());
    Batch::from_builder(out.freeze())
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}
