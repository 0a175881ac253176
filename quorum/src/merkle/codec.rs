//! The bytes of questions and answers, version 1. All integers are little-endian.
//!
//! | message | bytes |
//! |---|---|
//! | head | version u8 = 1, kind u8, depth u8, reserved u8 = 0, count u32 |
//! | kind 1, question for sums | count times: level u8, place u32 |
//! | kind 2, question for entries | count = 1: bucket u32, has_after u8 (0 or 1), after u128 |
//! | kind 3, question for keys | count times: id u128 |
//! | kind 4, sums | count times: 16 times u128 |
//! | kind 5, entries | count times: id u128, digest u128; then is_last u8 (0 or 1) |
//! | kind 6, keys | count times: length u32, bytes; length 2^32 - 1: the key is gone |
//!
//! A decoder allocates no more than the bytes that it was given account for. A message of a tree of
//! another depth is refused.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Answer, Entry, MerkleConfig, NodeId, Question};
use crate::version::codec::DecodeError;

const VERSION: u8 = 1;
const GONE: u32 = u32::MAX;

/// The bytes of a question.
pub fn encode_question(question: &Question, config: &MerkleConfig) -> Bytes {
    let mut out = BytesMut::new();
    match question {
        Question::Sums { nodes } => {
            head(&mut out, 1, config, nodes.len());
            for node in nodes {
                out.put_u8(node.level);
                out.put_u32_le(node.at);
            }
        }
        Question::Entries { bucket, after } => {
            head(&mut out, 2, config, 1);
            out.put_u32_le(*bucket);
            out.put_u8(after.is_some().into());
            out.put_u128_le(after.unwrap_or(0));
        }
        Question::Keys { ids } => {
            head(&mut out, 3, config, ids.len());
            for id in ids {
                out.put_u128_le(*id);
            }
        }
    }
    out.freeze()
}

/// A question out of its bytes.
///
/// # Errors
/// [`DecodeError`]: the bytes are not exactly one question within the limits of `config`.
pub fn decode_question(bytes: Bytes, config: &MerkleConfig) -> Result<Question, DecodeError> {
    let mut bytes = bytes;
    let (kind, count) = take_head(&mut bytes, config)?;
    let question = match kind {
        1 => {
            let count = fits(&bytes, count, config.max_nodes, 5, "count of nodes")?;
            let node = |_| {
                let node = NodeId { level: bytes.get_u8(), at: bytes.get_u32_le() };
                let width = 1_u64 << (4 * u32::from(node.level.min(8)));
                let is_known = node.level < config.depth && u64::from(node.at) < width;
                if is_known { Ok(node) } else { Err(DecodeError::Invalid("node")) }
            };
            Question::Sums { nodes: (0..count).map(node).collect::<Result<_, _>>()? }
        }
        2 => {
            fits(&bytes, count, 1, 21, "count of buckets")?;
            if count != 1 {
                return Err(DecodeError::Invalid("count of buckets"));
            }
            let bucket = bytes.get_u32_le();
            if u64::from(bucket) >= 1 << (4 * u32::from(config.depth)) {
                return Err(DecodeError::Invalid("bucket"));
            }
            let has_after = flag(bytes.get_u8())?;
            let after = bytes.get_u128_le();
            if !has_after && after != 0 {
                return Err(DecodeError::Invalid("id"));
            }
            Question::Entries { bucket, after: has_after.then_some(after) }
        }
        3 => {
            let count = fits(&bytes, count, config.max_keys, 16, "count of ids")?;
            Question::Keys { ids: (0..count).map(|_| bytes.get_u128_le()).collect() }
        }
        kind => return Err(DecodeError::Kind(kind)),
    };
    end(&bytes, question)
}

/// The bytes of an answer.
pub fn encode_answer(answer: &Answer, config: &MerkleConfig) -> Bytes {
    let mut out = BytesMut::new();
    match answer {
        Answer::Sums { sums } => {
            head(&mut out, 4, config, sums.len());
            for sum in sums.iter().flatten() {
                out.put_u128_le(*sum);
            }
        }
        Answer::Entries { entries, is_last } => {
            head(&mut out, 5, config, entries.len());
            for entry in entries {
                out.put_u128_le(entry.id);
                out.put_u128_le(entry.digest);
            }
            out.put_u8((*is_last).into());
        }
        Answer::Keys { keys } => {
            head(&mut out, 6, config, keys.len());
            for key in keys {
                out.put_u32_le(key.as_ref().map_or(GONE, |key| key.len() as u32));
                out.put_slice(key.as_deref().unwrap_or_default());
            }
        }
    }
    out.freeze()
}

/// An answer out of its bytes. Keys share the memory of `bytes`.
///
/// # Errors
/// [`DecodeError`]: the bytes are not exactly one answer within the limits of `config`.
pub fn decode_answer(bytes: Bytes, config: &MerkleConfig) -> Result<Answer, DecodeError> {
    let mut bytes = bytes;
    let (kind, count) = take_head(&mut bytes, config)?;
    let answer = match kind {
        4 => {
            let count = fits(&bytes, count, config.max_nodes, 256, "count of nodes")?;
            let mut sums = || std::array::from_fn(|_| bytes.get_u128_le());
            Answer::Sums { sums: (0..count).map(|_| sums()).collect() }
        }
        5 => {
            let count = fits(&bytes, count, config.max_entries, 32, "count of entries")?;
            let mut entry = || Entry { id: bytes.get_u128_le(), digest: bytes.get_u128_le() };
            let entries: Vec<Entry> = (0..count).map(|_| entry()).collect();
            if !entries.is_sorted_by(|one, two| one.id < two.id) {
                return Err(DecodeError::Invalid("order of entries"));
            }
            let is_last = flag(bytes.try_get_u8().map_err(|_| DecodeError::Truncated)?)?;
            Answer::Entries { entries, is_last }
        }
        6 => {
            let count = fits(&bytes, count, config.max_keys, 4, "count of keys")?;
            let key = |_| take_key(&mut bytes, config);
            Answer::Keys { keys: (0..count).map(key).collect::<Result<_, _>>()? }
        }
        kind => return Err(DecodeError::Kind(kind)),
    };
    end(&bytes, answer)
}

fn take_key(bytes: &mut Bytes, config: &MerkleConfig) -> Result<Option<Bytes>, DecodeError> {
    let len = bytes.try_get_u32_le().map_err(|_| DecodeError::Truncated)?;
    if len == GONE {
        return Ok(None);
    }
    let len = len as usize;
    if len > config.max_key_bytes {
        return Err(DecodeError::AboveLimit("length of a key"));
    }
    if len > bytes.len() {
        return Err(DecodeError::Truncated);
    }
    Ok(Some(bytes.split_to(len)))
}

fn head(out: &mut BytesMut, kind: u8, config: &MerkleConfig, count: usize) {
    out.put_slice(&[VERSION, kind, config.depth, 0]);
    out.put_u32_le(count as u32);
}

fn take_head(bytes: &mut Bytes, config: &MerkleConfig) -> Result<(u8, usize), DecodeError> {
    let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    if bytes.len() < 8 {
        return Err(DecodeError::Truncated);
    }
    let head = bytes.split_to(4);
    if head[2] != config.depth {
        return Err(DecodeError::Invalid("depth"));
    }
    if head[3] != 0 {
        return Err(DecodeError::Invalid("reserved field"));
    }
    Ok((head[1], bytes.get_u32_le() as usize))
}

/// Checks a count of parts that take at least `part_bytes` each.
fn fits(
    bytes: &Bytes,
    count: usize,
    max: usize,
    part_bytes: usize,
    what: &'static str,
) -> Result<usize, DecodeError> {
    if count > max {
        return Err(DecodeError::AboveLimit(what));
    }
    if count.saturating_mul(part_bytes) > bytes.len() {
        return Err(DecodeError::Truncated);
    }
    Ok(count)
}

fn flag(byte: u8) -> Result<bool, DecodeError> {
    if byte <= 1 { Ok(byte == 1) } else { Err(DecodeError::Invalid("flag")) }
}

fn end<T>(bytes: &Bytes, value: T) -> Result<T, DecodeError> {
    if bytes.is_empty() { Ok(value) } else { Err(DecodeError::Trailing) }
}
