//! Dead letters: how one is stored, and what its reader gets.
//!
//! A dead letter is two records of the store. The first is a batch of the one record, with its key,
//! headers, timestamp and offset. The second says how it died, version 1, little-endian: version
//! (1 byte), deliveries (4), time in ns since the UNIX epoch (8), reason (1 byte: 0 out of
//! deliveries, 1 rejected, 2 scheduled too late), what the worker said (UTF-8, up to the end).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::core::Reason;
use crate::format::{Batch, BatchBuilder, FormatError, MAX_BATCH_BYTES, Record};

const VERSION: u8 = 1;
/// The most that is kept of what a worker said.
const MAX_REASON_BYTES: usize = 1_024;
/// What a stored dead letter has besides its batch: the second record and what frames both.
pub(super) const OVERHEAD_BYTES: usize =
    MAX_REASON_BYTES + 14 + 2 * crate::store::BATCH_OVERHEAD_BYTES;

/// Why a record is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeathReason {
    /// It was delivered [`max_deliveries`](super::WorkConfig::max_deliveries) times and not
    /// acknowledged.
    MaxDeliveries,
    /// A worker rejected it.
    Rejected {
        /// What the worker said, cut off after 1,024 bytes.
        why: String,
    },
    /// It was scheduled for later than [`max_delay`](super::WorkConfig::max_delay) allows.
    ScheduledTooLate,
}

/// A record that is not delivered any more, until it is redriven.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its id: ids rise, and a dead letter that dies again keeps its own.
    pub id: u64,
    /// The record, with its key, headers, timestamp, and its offset in the source.
    pub record: Record,
    /// Deliveries before it died first.
    pub deliveries: u32,
    /// Why it died first.
    pub reason: DeathReason,
    /// When it died first, in ns since the UNIX epoch.
    pub died_at: u64,
    /// Whether it has been redriven and is being delivered again.
    pub is_redriven: bool,
}

/// A dead letter as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredLetter {
    /// The batch of the one record.
    pub batch: Bytes,
    /// How it died.
    pub cause: Bytes,
}

/// The first 1,024 bytes of `text`, or up to three less to end with a whole character.
pub(super) fn cut(text: &str) -> &str {
    // Ends: 0 is a boundary.
    let mut end = text.len().min(MAX_REASON_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The batch of one record, and its offset kept.
fn batch_of(record: &Record) -> Result<Batch, FormatError> {
    let mut builder = BatchBuilder::new();
    builder.push_stored(record)?;
    Ok(builder.finish()?.placed(record.offset, 0))
}

pub(super) fn encode(
    record: &Record,
    deliveries: u32,
    reason: &Reason,
    now: u64,
) -> Result<StoredLetter, FormatError> {
    let (kind, text) = match reason {
        Reason::MaxDeliveries => (0, ""),
        Reason::Rejected(text) => (1, text.as_str()),
        Reason::ScheduledTooLate => (2, ""),
    };
    let text = cut(text);
    let mut cause = BytesMut::with_capacity(14 + text.len());
    cause.put_u8(VERSION);
    cause.put_u32_le(deliveries);
    cause.put_u64_le(now);
    cause.put_u8(kind);
    cause.put_slice(text.as_bytes());
    Ok(StoredLetter { batch: batch_of(record)?.bytes().clone(), cause: cause.freeze() })
}

pub(super) fn decode(
    id: u64,
    is_redriven: bool,
    stored: StoredLetter,
) -> Result<DeadLetter, String> {
    let StoredLetter { batch, mut cause } = stored;
    let batch = Batch::from_store(batch).map_err(|error| error.to_string())?;
    let records = batch.records(MAX_BATCH_BYTES).map_err(|error| error.to_string())?;
    let record = records.last().ok_or("its batch is empty")?.map_err(|error| error.to_string())?;
    if cause.remaining() < 14 {
        return Err("its cause is cut off".to_owned());
    }
    if cause.get_u8() != VERSION {
        return Err("its cause has a version that this build does not know".to_owned());
    }
    let (deliveries, died_at) = (cause.get_u32_le(), cause.get_u64_le());
    let reason = match cause.get_u8() {
        0 => DeathReason::MaxDeliveries,
        1 => DeathReason::Rejected { why: String::from_utf8_lossy(&cause).into_owned() },
        2 => DeathReason::ScheduledTooLate,
        other => return Err(format!("its cause is of the unknown kind {other}")),
    };
    Ok(DeadLetter { id, record, deliveries, reason, died_at, is_redriven })
}
