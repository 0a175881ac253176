//! Kafka's RecordBatch, version 2 of the message format: the unit on disk and on every wire.
//!
//! All integers are big-endian. A batch is a header of 61 bytes and its records:
//!
//! | at | field | type | in the CRC |
//! |---:|---|---|---|
//! | 0 | base offset, given by the log | i64 | no |
//! | 8 | bytes that follow this field | i32 | no |
//! | 12 | leader epoch of the partition, given by the log | i32 | no |
//! | 16 | magic, 2 | i8 | no |
//! | 17 | CRC-32C of everything from 21 on | u32 | |
//! | 21 | attributes: bits 0-2 codec, 3 timestamp type, 4 transactional, 5 control, 6 delete horizon | i16 | yes |
//! | 23 | offset of the last record, relative to the base offset | i32 | yes |
//! | 27 | timestamp of the first record, ms since the UNIX epoch | i64 | yes |
//! | 35 | largest timestamp of a record | i64 | yes |
//! | 43 | producer id, -1 for none | i64 | yes |
//! | 51 | producer epoch, -1 for none | i16 | yes |
//! | 53 | sequence of the first record, -1 for none | i32 | yes |
//! | 57 | number of records | i32 | yes |
//! | 61 | records, compressed as one block when there is a codec | | yes |
//!
//! A record, in zigzag varints: bytes that follow, attributes (one byte, 0), timestamp delta,
//! offset delta, key, value, number of headers, headers. Keys and values are a length (-1 for null)
//! and bytes; a header is a key (UTF-8, not null) and a value.
//!
//! The base offset and the leader epoch are outside the checksum, so the log assigns them without
//! computing it again. The journal's own checksum covers them on disk.

mod batch;
mod builder;
mod compression;
mod error;
mod header;
mod record;
mod varint;

pub use batch::{Batch, Records};
pub use builder::BatchBuilder;
pub use compression::Compression;
pub use error::FormatError;
pub use header::{Header, TimestampType};
pub use record::{Record, RecordHeader};

/// Bytes before the records of a batch.
pub const HEADER_BYTES: usize = 61;
/// The largest batch that a log takes, in bytes: a batch is one record of one journal batch of
/// 1 MiB, of which 4 bytes are the journal's. Kafka's default `message.max.bytes`, 1,048,588, is
/// 16 bytes more: lower it in clients that fill their batches.
pub const MAX_BATCH_BYTES: usize = 1_048_572;
/// Largest number of bytes that the records of one batch may have after decompression, by default.
pub const MAX_UNPACKED_BYTES: usize = 64 << 20;
/// The timestamp of a record that has none.
pub const NO_TIMESTAMP: i64 = -1;
/// The producer id, producer epoch or sequence of a batch that has none.
pub const NONE: i64 = -1;

/// Bytes of the batch of one record.
pub(crate) fn batch_bytes(record: &Record) -> usize {
    HEADER_BYTES + record::bytes(record, record::Deltas { timestamp: 0, offset: 0 })
}
