//! The bytes of a snapshot's transfer: parts and answers. The tables stand in the parent module.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{DecodeError, Frame, VERSION, decode_snapshot, encode_snapshot};
use crate::store::{MAX_CHUNK_BYTES, SnapshotName};
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

/// Encodes a part for a group. A chunk is not copied.
pub fn encode_part(group: u64, part: SnapshotPart) -> Frame {
    let (head, body) = match part {
        SnapshotPart::Open { term, name, chunks } => {
            let fields = [term, name.identity, chunks];
            (head(32, group, &fields), vec![encode_snapshot(&name.meta)])
        }
        SnapshotPart::Chunk { identity, number, data } => {
            (head(33, group, &[identity, number]), vec![data])
        }
        SnapshotPart::Close { identity } => (head(34, group, &[identity]), Vec::new()),
    };
    Frame { head, body }
}

/// Decodes a part and the group that it is for. A chunk shares the memory of `bytes`.
///
/// # Errors
/// [`DecodeError`] when the bytes are not exactly one part of a known version and kind.
pub fn decode_part(mut bytes: Bytes) -> Result<(u64, SnapshotPart), DecodeError> {
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
            if bytes.is_empty() || bytes.len() > MAX_CHUNK_BYTES {
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

/// Encodes the answer to a part.
pub fn encode_answer(answer: SnapshotAnswer) -> Bytes {
    match answer {
        SnapshotAnswer::Next { number } => head(35, 0, &[number]),
        SnapshotAnswer::Done => head(36, 0, &[]),
        SnapshotAnswer::Rejected => head(37, 0, &[]),
    }
}

/// Decodes the answer to a part.
///
/// # Errors
/// [`DecodeError`] when the bytes are not exactly one answer of a known version and kind.
pub fn decode_answer(mut bytes: Bytes) -> Result<SnapshotAnswer, DecodeError> {
    let (kind, _, mut fields) = open(&mut bytes)?;
    nothing_more(&bytes)?;
    match kind {
        35 => Ok(SnapshotAnswer::Next { number: field(&mut fields)? }),
        36 => Ok(SnapshotAnswer::Done),
        37 => Ok(SnapshotAnswer::Rejected),
        other => Err(DecodeError::Kind(other)),
    }
}
