//! The bytes of versions and siblings, version 1. All integers are little-endian.
//!
//! | part | bytes |
//! |---|---|
//! | dot | node u64, incarnation u64, counter u64 |
//! | timestamp | physical u64, logical u32, node u64, incarnation u64 |
//! | vector | count u32, then so many dots, one for each actor, strictly ascending |
//! | siblings | version u8 = 1, kind u8 = 1, reserved u16 = 0, vector, count u32, then so many values, strictly ascending by dot: dot, length u32, bytes |
//! | context | version u8 = 1, kind u8 = 2, reserved u16 = 0, vector |
//!
//! Each value has one encoding, so equal siblings have equal bytes and a digest over them is equal
//! on all replicas. A decoder allocates no more than the bytes that it was given account for.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Actor, Dot, Siblings, Timestamp, VersionVector};

const VERSION: u8 = 1;
const SIBLINGS: u8 = 1;
const CONTEXT: u8 = 2;
pub(crate) const DOT_BYTES: usize = 24;
const TIMESTAMP_BYTES: usize = 28;

/// What a decoder accepts at most.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Actors of a vector. Default 1,024.
    pub max_actors: usize,
    /// Values of one key. Default 2,048: 31 replicas of a table with
    /// [`Replica::MAX_SIBLINGS`](crate::table::Replica::MAX_SIBLINGS) values of its own each.
    pub max_siblings: usize,
    /// Length of a value, in bytes. Default 1 MiB.
    pub max_value_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_actors: 1_024, max_siblings: 2_048, max_value_bytes: 1 << 20 }
    }
}

/// Why bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end before the value does.
    #[error("the bytes end too early")]
    Truncated,
    /// Bytes follow the value.
    #[error("bytes follow the value")]
    Trailing,
    /// Written by a later version.
    #[error("version {0} is not known")]
    Version(u8),
    /// Not what was expected.
    #[error("kind {0} is not expected here")]
    Kind(u8),
    /// A part has a value that no encoder writes.
    #[error("{0} is not valid")]
    Invalid(&'static str),
    /// A part exceeds its limit.
    #[error("{0} is above its limit")]
    AboveLimit(&'static str),
}

/// The bytes of siblings.
pub fn encode_siblings(siblings: &Siblings<Bytes>) -> Bytes {
    let mut out = BytesMut::with_capacity(siblings_bytes(siblings));
    put_head(&mut out, SIBLINGS);
    put_vector(&mut out, siblings.context());
    out.put_u32_le(siblings.len() as u32);
    for (dot, value) in siblings.iter() {
        put_dot(&mut out, dot);
        out.put_u32_le(value.len() as u32);
        out.put_slice(value);
    }
    out.freeze()
}

/// How many bytes [`encode_siblings`] makes.
pub(crate) fn siblings_bytes(siblings: &Siblings<Bytes>) -> usize {
    let values: usize = siblings.values().map(|value| DOT_BYTES + 4 + value.len()).sum();
    4 + 4 + siblings.context().len() * DOT_BYTES + 4 + values
}

/// Whether bytes that [`encode_siblings`] has made are those of siblings without a value. What no
/// encoder makes is none.
pub(crate) fn is_tombstone(bytes: &[u8]) -> bool {
    let count = |at: usize| {
        let count = bytes.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*count) as usize)
    };
    let is_empty = |actors: usize| {
        let values = 8 + actors.checked_mul(DOT_BYTES)?;
        Some(count(values)? == 0 && bytes.len() == values + 4)
    };
    count(4).filter(|actors| *actors > 0).and_then(is_empty) == Some(true)
}

/// Siblings out of their bytes. The values share the memory of `bytes`.
///
/// # Errors
/// [`DecodeError`]: the bytes are not exactly one value within the limits.
pub fn decode_siblings(mut bytes: Bytes, limits: &Limits) -> Result<Siblings<Bytes>, DecodeError> {
    take_head(&mut bytes, SIBLINGS)?;
    let context = take_vector(&mut bytes, limits)?;
    let count = take_count(&mut bytes, "count of values", limits.max_siblings, DOT_BYTES + 4)?;
    let mut values = BTreeMap::new();
    for _ in 0..count {
        let dot = take_dot(&mut bytes)?;
        let len = bytes.try_get_u32_le().map_err(|_| DecodeError::Truncated)? as usize;
        if len > limits.max_value_bytes {
            return Err(DecodeError::AboveLimit("length of a value"));
        }
        if len > bytes.len() {
            return Err(DecodeError::Truncated);
        }
        let is_ascending = values.last_key_value().is_none_or(|(last, _)| *last < dot);
        if !is_ascending || !context.contains(dot) {
            return Err(DecodeError::Invalid("dot of a value"));
        }
        values.insert(dot, bytes.split_to(len));
    }
    nothing_more(&bytes)?;
    Ok(Siblings::from_parts(context, values))
}

/// The bytes of a causal context, for a client to keep between its read and its write.
pub fn encode_context(context: &VersionVector) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + context.len() * DOT_BYTES);
    put_head(&mut out, CONTEXT);
    put_vector(&mut out, context);
    out.freeze()
}

/// A causal context out of its bytes.
///
/// # Errors
/// [`DecodeError`]: the bytes are not exactly one context within the limits.
pub fn decode_context(mut bytes: Bytes, limits: &Limits) -> Result<VersionVector, DecodeError> {
    take_head(&mut bytes, CONTEXT)?;
    let context = take_vector(&mut bytes, limits)?;
    nothing_more(&bytes)?;
    Ok(context)
}

/// The bytes of a timestamp.
pub fn encode_timestamp(timestamp: Timestamp) -> [u8; TIMESTAMP_BYTES] {
    let mut out = [0; TIMESTAMP_BYTES];
    let mut rest = &mut out[..];
    rest.put_u64_le(timestamp.physical);
    rest.put_u32_le(timestamp.logical);
    rest.put_u64_le(timestamp.actor.node);
    rest.put_u64_le(timestamp.actor.incarnation);
    out
}

/// A timestamp out of its bytes.
///
/// # Errors
/// [`DecodeError::Invalid`]: its physical time is out of range.
pub fn decode_timestamp(bytes: [u8; TIMESTAMP_BYTES]) -> Result<Timestamp, DecodeError> {
    let mut bytes = &bytes[..];
    let (physical, logical) = (bytes.get_u64_le(), bytes.get_u32_le());
    let actor = Actor::new(bytes.get_u64_le(), bytes.get_u64_le());
    if physical > Timestamp::MAX_PHYSICAL {
        return Err(DecodeError::Invalid("physical time"));
    }
    Ok(Timestamp { physical, logical, actor })
}

pub(crate) fn put_head(out: &mut BytesMut, kind: u8) {
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_u16_le(0);
}

pub(crate) fn put_dot(out: &mut BytesMut, dot: Dot) {
    out.put_u64_le(dot.actor.node);
    out.put_u64_le(dot.actor.incarnation);
    out.put_u64_le(dot.counter);
}

pub(crate) fn put_vector(out: &mut BytesMut, vector: &VersionVector) {
    out.put_u32_le(vector.len() as u32);
    vector.iter().for_each(|dot| put_dot(out, dot));
}

pub(crate) fn take_head(bytes: &mut Bytes, kind: u8) -> Result<(), DecodeError> {
    let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    if bytes.len() < 4 {
        return Err(DecodeError::Truncated);
    }
    let head = bytes.split_to(4);
    match (head[1], [head[2], head[3]]) {
        (found, _) if found != kind => Err(DecodeError::Kind(found)),
        (_, [0, 0]) => Ok(()),
        _ => Err(DecodeError::Invalid("reserved field")),
    }
}

pub(crate) fn take_dot(bytes: &mut Bytes) -> Result<Dot, DecodeError> {
    if bytes.len() < DOT_BYTES {
        return Err(DecodeError::Truncated);
    }
    let actor = Actor::new(bytes.get_u64_le(), bytes.get_u64_le());
    let dot = Dot::new(actor, bytes.get_u64_le());
    if dot.is_valid() { Ok(dot) } else { Err(DecodeError::Invalid("counter")) }
}

/// A count of parts that take at least `part_bytes` each.
pub(crate) fn take_count(
    bytes: &mut Bytes,
    what: &'static str,
    max: usize,
    part_bytes: usize,
) -> Result<usize, DecodeError> {
    let count = bytes.try_get_u32_le().map_err(|_| DecodeError::Truncated)? as usize;
    if count > max {
        return Err(DecodeError::AboveLimit(what));
    }
    if count.saturating_mul(part_bytes) > bytes.len() {
        return Err(DecodeError::Truncated);
    }
    Ok(count)
}

pub(crate) fn take_vector(
    bytes: &mut Bytes,
    limits: &Limits,
) -> Result<VersionVector, DecodeError> {
    let count = take_count(bytes, "count of actors", limits.max_actors, DOT_BYTES)?;
    let (mut vector, mut last) = (VersionVector::new(), None);
    for _ in 0..count {
        let dot = take_dot(bytes)?;
        if last.is_some_and(|last| last >= dot.actor) {
            return Err(DecodeError::Invalid("order of actors"));
        }
        last = Some(dot.actor);
        vector.insert(dot);
    }
    Ok(vector)
}

pub(crate) fn nothing_more(bytes: &Bytes) -> Result<(), DecodeError> {
    if bytes.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
}
