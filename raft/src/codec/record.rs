//! Records of the log as bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::{DecodeError, Reader, VERSION, decode_members, encode_members};
use crate::types::{Entry, EntryKind, HardState, SnapshotMeta};

/// The length of what precedes the payload in the record of an entry, in bytes.
pub const ENTRY_HEAD_BYTES: usize = 24;
const HEAD: usize = ENTRY_HEAD_BYTES;

fn head(second: u8, third: u32, first_word: u64, second_word: u64) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    bytes[0] = VERSION;
    bytes[1] = second;
    bytes[2..4].copy_from_slice(&(HEAD as u16).to_le_bytes());
    bytes[4..8].copy_from_slice(&third.to_le_bytes());
    bytes[8..16].copy_from_slice(&first_word.to_le_bytes());
    bytes[16..24].copy_from_slice(&second_word.to_le_bytes());
    bytes
}

struct Head {
    second: u8,
    third: u32,
    first_word: u64,
    second_word: u64,
    rest: Bytes,
}

fn read_head(bytes: Bytes) -> Result<Head, DecodeError> {
    let mut all = Reader { bytes };
    all.version()?;
    let second = all.u8()?;
    let len = usize::from(all.u16()?);
    let left = len.checked_sub(4).ok_or(DecodeError::Field("head length"))?;
    let mut fields = Reader { bytes: all.take(left)? };
    let third = fields.u32()?;
    let (first_word, second_word) = (fields.u64()?, fields.u64()?);
    Ok(Head { second, third, first_word, second_word, rest: all.bytes })
}

/// The head of an entry's record; `entry.data` follows it. For stores that write in pieces.
pub fn encode_entry_head(entry: &Entry) -> [u8; ENTRY_HEAD_BYTES] {
    head(entry.kind.code(), 0, entry.term, entry.index)
}

/// The record of an entry, copied into one piece.
pub fn encode_entry(entry: &Entry) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD + entry.data.len());
    out.put_slice(&encode_entry_head(entry));
    out.put_slice(&entry.data);
    out.freeze()
}

/// Reads the record of an entry. The payload shares the memory of `bytes`.
///
/// # Errors
/// [`DecodeError`] when it is none.
pub fn decode_entry(bytes: Bytes) -> Result<Entry, DecodeError> {
    let Head { second, first_word: term, second_word: index, rest: data, .. } = read_head(bytes)?;
    let kind = EntryKind::from_code(second)?;
    if term == 0 {
        return Err(DecodeError::Field("term"));
    }
    if index == 0 || index == u64::MAX {
        return Err(DecodeError::Field("index"));
    }
    Ok(Entry { term, index, kind, data })
}

/// The record of a hard state.
pub fn encode_hard_state(state: HardState) -> Bytes {
    let vote = state.vote.unwrap_or(0);
    Bytes::copy_from_slice(&head(u8::from(state.vote.is_some()), 0, state.term, vote))
}

/// Reads the record of a hard state.
///
/// # Errors
/// [`DecodeError`] when it is none.
pub fn decode_hard_state(bytes: Bytes) -> Result<HardState, DecodeError> {
    let Head { second, first_word: term, second_word: vote, rest, .. } = read_head(bytes)?;
    let vote = match second {
        0 => None,
        1 => Some(vote),
        _ => return Err(DecodeError::Field("vote")),
    };
    if rest.is_empty() { Ok(HardState { term, vote }) } else { Err(DecodeError::Trailing) }
}

/// The record that names a snapshot.
pub fn encode_snapshot(meta: &SnapshotMeta) -> Bytes {
    let members = encode_members(&meta.members);
    let mut out = BytesMut::with_capacity(HEAD + members.len());
    out.put_slice(&head(0, members.len() as u32, meta.index, meta.term));
    out.put_slice(&members);
    out.freeze()
}

/// Reads the record that names a snapshot.
///
/// # Errors
/// [`DecodeError`] when it is none.
pub fn decode_snapshot(bytes: Bytes) -> Result<SnapshotMeta, DecodeError> {
    let Head { third, first_word: index, second_word: term, rest, .. } = read_head(bytes)?;
    if index == u64::MAX {
        return Err(DecodeError::Field("index"));
    }
    if rest.len() != third as usize {
        return Err(DecodeError::Field("length of the membership"));
    }
    Ok(SnapshotMeta { index, term, members: decode_members(rest)? })
}
