//! The bytes of a snapshot's transfer. All integers are little-endian.
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8 | kind |
//! | 2 | u16 | length of header and fields; what a reader does not know there is skipped |
//! | 4 | u32 | reserved: written as 0, not looked at |
//! | 8 | u64 | group; 0 in answers |
//! | 16 | | the fields of the kind |
//!
//! | kind | what | fields, and what follows them |
//! |---|---|---|
//! | 32 | `Open` | term u64, identity u64, chunks u64; the snapshot as a record of the log |
//! | 33 | `Chunk` | identity u64, number u64; the chunk |
//! | 34 | `Close` | identity u64 |
//! | 35 | `Next` | number u64 |
//! | 36 | `Done` | |
//! | 37 | `Refused` | |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use voussoir_net::Parts;

use crate::codec::{DecodeError, VERSION, decode_snapshot, encode_snapshot};
use crate::store::{CHUNK_BYTES_MAX, SnapshotName};
use crate::transport::{SnapshotAnswer, SnapshotPart};

const HEADER: usize = 16;

fn head(kind: u8, group: u64, fields: &[u64]) -> Bytes {
    let len = HEADER + 8 * fields.len();
    let mut out = BytesMut::with_capacity(len);
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_u16_le(len as u16);
    out.put_u32_le(0);
    out.put_u64_le(group);
    for field in fields {
        out.put_u64_le(*field);
    }
    out.freeze()
}

/// Takes the header off: kind, group, fields. What follows the fields is left.
fn open(bytes: &mut Bytes) -> Result<(u8, u64, Bytes), DecodeError> {
    let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    if bytes.len() < HEADER {
        return Err(DecodeError::Truncated);
    }
    let mut header = bytes.split_to(HEADER);
    header.advance(1);
    let (kind, len) = (header.get_u8(), usize::from(header.get_u16_le()));
    header.advance(4);
    let group = header.get_u64_le();
    let fields = len.checked_sub(HEADER).ok_or(DecodeError::Field("length"))?;
    if fields > bytes.len() {
        return Err(DecodeError::Truncated);
    }
    Ok((kind, group, bytes.split_to(fields)))
}

fn field(fields: &mut Bytes) -> Result<u64, DecodeError> {
    fields.try_get_u64_le().map_err(|_| DecodeError::Truncated)
}

fn nothing_more(bytes: &Bytes) -> Result<(), DecodeError> {
    if bytes.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
}

/// A part as bytes; the chunk is not copied.
pub(crate) fn encode_part(group: u64, part: SnapshotPart) -> Parts {
    match part {
        SnapshotPart::Open { term, name, chunks } => {
            let fields = [term, name.identity, chunks];
            Parts::new(head(32, group, &fields)).with([encode_snapshot(&name.meta)])
        }
        SnapshotPart::Chunk { identity, number, data } => {
            Parts::new(head(33, group, &[identity, number])).with([data])
        }
        SnapshotPart::Close { identity } => Parts::new(head(34, group, &[identity])),
    }
}

/// The group and the part.
pub(crate) fn decode_part(mut bytes: Bytes) -> Result<(u64, SnapshotPart), DecodeError> {
    let (kind, group, mut fields) = open(&mut bytes)?;
    let first = field(&mut fields)?;
    let part = match kind {
        32 => {
            let (identity, chunks) = (field(&mut fields)?, field(&mut fields)?);
            let meta = decode_snapshot(bytes)?;
            SnapshotPart::Open { term: first, name: SnapshotName { meta, identity }, chunks }
        }
        33 => {
            let number = field(&mut fields)?;
            if bytes.is_empty() || bytes.len() > CHUNK_BYTES_MAX {
                return Err(DecodeError::Field("length of the chunk"));
            }
            SnapshotPart::Chunk { identity: first, number, data: bytes }
        }
        34 => {
            nothing_more(&bytes)?;
            SnapshotPart::Close { identity: first }
        }
        other => return Err(DecodeError::Kind(other)),
    };
    Ok((group, part))
}

/// An answer as bytes.
pub(crate) fn encode_answer(answer: SnapshotAnswer) -> Parts {
    Parts::new(match answer {
        SnapshotAnswer::Next { number } => head(35, 0, &[number]),
        SnapshotAnswer::Done => head(36, 0, &[]),
        SnapshotAnswer::Refused => head(37, 0, &[]),
    })
}

/// An answer.
pub(crate) fn decode_answer(mut bytes: Bytes) -> Result<SnapshotAnswer, DecodeError> {
    let (kind, _, mut fields) = open(&mut bytes)?;
    nothing_more(&bytes)?;
    match kind {
        35 => Ok(SnapshotAnswer::Next { number: field(&mut fields)? }),
        36 => Ok(SnapshotAnswer::Done),
        37 => Ok(SnapshotAnswer::Refused),
        other => Err(DecodeError::Kind(other)),
    }
}
