//! The bytes of CRDTs, full states and deltas alike, version 1. All integers are little-endian;
//! dots and timestamps are those of [`version::codec`](crate::version::codec).
//!
//! | part | bytes |
//! |---|---|
//! | head | version u8 = 1, kind u8, reserved u16 = 0 |
//! | kind 1, [`GCounter`] | shares |
//! | kind 2, [`PnCounter`] | shares added, shares subtracted |
//! | kind 3, [`LwwRegister`] | is_written u8 (0 or 1), then timestamp, length u32, bytes |
//! | kind 4, [`Causal`] | shape, vector, count u32 of single dots, these dots, store |
//! | shares | count u32, then so many: node u64, incarnation u64, share u64 above 0 |
//! | shape | 1 flag, 2 values, 3 set; 4 map, followed by the shape under its keys; u8 each |
//! | flag | count u32, dots |
//! | values | count u32, then so many: dot, length u32, bytes |
//! | set | count u32, then so many: length u32, bytes, flag that is not empty |
//! | map | count u32, then so many: length u32, bytes, store that is not empty |
//!
//! Dots, actors, elements and keys are strictly ascending: each value has one encoding. A decoder
//! allocates no more than the bytes that it was given account for, and what it accepts keeps every
//! invariant of the type, so it may be merged.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Causal, Crdt, DotContext, DotStore, Flag, GCounter, LwwRegister, Map, PnCounter};
use super::{Set, Values};
use crate::version::codec::{
    DecodeError, decode_timestamp, encode_timestamp, nothing_more, put_dot, put_head, put_vector,
    take_dot, take_head, take_vector,
};
use crate::version::{Actor, Dot, Siblings, codec::Limits as VersionLimits};

const DOT_BYTES: usize = 24;

/// What a decoder accepts at most.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Actors of a counter, or of the context of a causal value. Default 1,024.
    pub max_actors: usize,
    /// Dots, elements and keys of one value, all together. Default 65,536.
    pub max_entries: usize,
    /// Length of a value, element or key, in bytes. Default 1 MiB.
    pub max_value_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_actors: 1_024, max_entries: 65_536, max_value_bytes: 1 << 20 }
    }
}

/// A CRDT with bytes of its own: what a table or a message holds.
pub trait Encoded: Crdt + Default {
    /// The bytes of the state or delta.
    fn encode(&self) -> Bytes;

    /// A state or delta out of its bytes. Values share their memory.
    ///
    /// # Errors
    /// [`DecodeError`]: the bytes are not exactly one value of this type within the limits.
    fn decode(bytes: Bytes, limits: &Limits) -> Result<Self, DecodeError>;
}

/// The value of a table's key whose siblings are states of one CRDT: their merge.
///
/// A writer holds a replica of the value of its own, under an actor of its own, as every maker of
/// changes does: it merges what it has read into it, changes it, makes it durable, and writes its
/// whole state with the context that it has read. A write of unknown outcome is then made up for by
/// its next one, and no dot is used twice.
///
/// # Errors
/// [`DecodeError`]: a sibling is no state of this type.
///
/// # Example
/// ```
/// use voussoir_quorum::crdt::{Crdt, PnCounter, codec};
/// use voussoir_quorum::crdt::codec::Encoded;
/// use voussoir_quorum::version::{Actor, Dot, Siblings};
/// let (one, two) = (Actor::new(1, 1), Actor::new(2, 1));
/// let mut key = Siblings::new();
/// for (actor, likes) in [(one, 3), (two, 4)] {
///     let mut own = PnCounter::new();
///     own.add(actor, likes).unwrap();
///     key.put_blind(Dot::new(actor, 1), own.encode()).unwrap(); // neither has seen the other
/// }
/// let likes: PnCounter = codec::merge_siblings(&key, &codec::Limits::default())?;
/// assert_eq!(likes.value(), 7);
/// # Ok::<(), voussoir_quorum::version::codec::DecodeError>(())
/// ```
pub fn merge_siblings<C: Encoded>(
    siblings: &Siblings<Bytes>,
    limits: &Limits,
) -> Result<C, DecodeError> {
    let mut merged = C::default();
    for value in siblings.values() {
        merged.merge(&C::decode(value.clone(), limits)?);
    }
    Ok(merged)
}

impl Encoded for GCounter {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_head(&mut out, 1);
        put_shares(&mut out, self);
        out.freeze()
    }

    fn decode(mut bytes: Bytes, limits: &Limits) -> Result<Self, DecodeError> {
        take_head(&mut bytes, 1)?;
        let counter = take_shares(&mut bytes, limits)?;
        nothing_more(&bytes)?;
        Ok(counter)
    }
}

impl Encoded for PnCounter {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_head(&mut out, 2);
        put_shares(&mut out, &self.added);
        put_shares(&mut out, &self.subtracted);
        out.freeze()
    }

    fn decode(mut bytes: Bytes, limits: &Limits) -> Result<Self, DecodeError> {
        take_head(&mut bytes, 2)?;
        let added = take_shares(&mut bytes, limits)?;
        let subtracted = take_shares(&mut bytes, limits)?;
        nothing_more(&bytes)?;
        Ok(Self { added, subtracted })
    }
}

impl Encoded for LwwRegister<Bytes> {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_head(&mut out, 3);
        out.put_u8(self.value.is_some().into());
        if let Some((timestamp, value)) = &self.value {
            out.put_slice(&encode_timestamp(*timestamp));
            put_bytes(&mut out, value);
        }
        out.freeze()
    }

    fn decode(mut bytes: Bytes, limits: &Limits) -> Result<Self, DecodeError> {
        take_head(&mut bytes, 3)?;
        let value = match bytes.try_get_u8().map_err(|_| DecodeError::Truncated)? {
            0 => None,
            1 => {
                let mut timestamp = [0; 28];
                bytes.try_copy_to_slice(&mut timestamp).map_err(|_| DecodeError::Truncated)?;
                Some((decode_timestamp(timestamp)?, take_bytes(&mut bytes, limits)?))
            }
            _ => return Err(DecodeError::Invalid("flag")),
        };
        nothing_more(&bytes)?;
        Ok(Self { value })
    }
}

impl<S: EncodedStore> Encoded for Causal<S> {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_head(&mut out, 4);
        S::put_shape(&mut out);
        put_vector(&mut out, &self.context.vector);
        out.put_u32_le(self.context.cloud.len() as u32);
        for dot in &self.context.cloud {
            put_dot(&mut out, *dot);
        }
        self.store.put(&mut out);
        out.freeze()
    }

    fn decode(mut bytes: Bytes, limits: &Limits) -> Result<Self, DecodeError> {
        take_head(&mut bytes, 4)?;
        S::take_shape(&mut bytes)?;
        let max_actors = limits.max_actors;
        let vector_limits = VersionLimits { max_actors, ..VersionLimits::default() };
        let vector = take_vector(&mut bytes, &vector_limits)?;
        let mut taking = Taking { bytes, limits, entries: 0 };
        let cloud = taking.dots()?;
        if cloud.iter().any(|dot| dot.counter < vector.get(dot.actor) + 2) {
            return Err(DecodeError::Invalid("single dot"));
        }
        let context = DotContext { vector, cloud };
        let store = S::take(&mut taking)?;
        nothing_more(&taking.bytes)?;
        // One dot stands for one change: it lives at one place, and has been seen.
        let (mut live, mut is_valid) = (BTreeSet::new(), true);
        store.for_each_dot(&mut |dot| is_valid &= context.contains(dot) && live.insert(dot));
        if !is_valid {
            return Err(DecodeError::Invalid("live dot"));
        }
        Ok(Self { store, context })
    }
}

/// A [`DotStore`] with bytes. Sealed: [`Flag`], [`Values`], [`Set`] and [`Map`].
pub trait EncodedStore: DotStore + Parts {}

impl<S: Parts> EncodedStore for S {}

/// How deep maps may nest is the type's, so a decoder's stack is bounded by the program.
#[doc(hidden)]
pub trait Parts: DotStore {
    fn put_shape(out: &mut BytesMut);
    fn take_shape(bytes: &mut Bytes) -> Result<(), DecodeError>;
    fn put(&self, out: &mut BytesMut);
    fn take(from: &mut Taking<'_>) -> Result<Self, DecodeError>;
}

/// Bytes that are being decoded.
#[doc(hidden)]
#[derive(Debug)]
pub struct Taking<'a> {
    bytes: Bytes,
    limits: &'a Limits,
    /// Dots, elements and keys so far. Invariant: at most `max_entries`.
    entries: usize,
}

impl Taking<'_> {
    /// A count of parts that take at least `part_bytes` each.
    fn count(&mut self, part_bytes: usize) -> Result<usize, DecodeError> {
        let count = self.bytes.try_get_u32_le().map_err(|_| DecodeError::Truncated)? as usize;
        self.entries = self.entries.saturating_add(count);
        if self.entries > self.limits.max_entries {
            return Err(DecodeError::AboveLimit("count of entries"));
        }
        if count.saturating_mul(part_bytes) > self.bytes.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(count)
    }

    fn dots(&mut self) -> Result<BTreeSet<Dot>, DecodeError> {
        let mut dots = BTreeSet::new();
        for _ in 0..self.count(DOT_BYTES)? {
            let dot = take_dot(&mut self.bytes)?;
            if dots.last().is_some_and(|last| *last >= dot) {
                return Err(DecodeError::Invalid("order of dots"));
            }
            dots.insert(dot);
        }
        Ok(dots)
    }

    /// Entries with ascending names, none of them empty.
    fn named<S: Parts>(&mut self) -> Result<BTreeMap<Bytes, S>, DecodeError> {
        let mut entries = BTreeMap::new();
        for _ in 0..self.count(8)? {
            let name = take_bytes(&mut self.bytes, self.limits)?;
            if entries.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return Err(DecodeError::Invalid("order of names"));
            }
            let store = S::take(self)?;
            if store.is_empty() {
                return Err(DecodeError::Invalid("entry without a dot"));
            }
            entries.insert(name, store);
        }
        Ok(entries)
    }
}

impl Parts for Flag {
    fn put_shape(out: &mut BytesMut) {
        out.put_u8(1);
    }
    fn take_shape(bytes: &mut Bytes) -> Result<(), DecodeError> {
        shape(bytes, 1)
    }
    fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.dots.len() as u32);
        for dot in &self.dots {
            put_dot(out, *dot);
        }
    }
    fn take(from: &mut Taking<'_>) -> Result<Self, DecodeError> {
        Ok(Self { dots: from.dots()? })
    }
}

impl Parts for Values<Bytes> {
    fn put_shape(out: &mut BytesMut) {
        out.put_u8(2);
    }
    fn take_shape(bytes: &mut Bytes) -> Result<(), DecodeError> {
        shape(bytes, 2)
    }
    fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.values.len() as u32);
        for (dot, value) in &self.values {
            put_dot(out, *dot);
            put_bytes(out, value);
        }
    }
    fn take(from: &mut Taking<'_>) -> Result<Self, DecodeError> {
        let mut values = BTreeMap::new();
        for _ in 0..from.count(DOT_BYTES + 4)? {
            let dot = take_dot(&mut from.bytes)?;
            if values.last_key_value().is_some_and(|(last, _)| *last >= dot) {
                return Err(DecodeError::Invalid("order of dots"));
            }
            values.insert(dot, take_bytes(&mut from.bytes, from.limits)?);
        }
        Ok(Self { values })
    }
}

impl Parts for Set<Bytes> {
    fn put_shape(out: &mut BytesMut) {
        out.put_u8(3);
    }
    fn take_shape(bytes: &mut Bytes) -> Result<(), DecodeError> {
        shape(bytes, 3)
    }
    fn put(&self, out: &mut BytesMut) {
        put_named(out, &self.elements);
    }
    fn take(from: &mut Taking<'_>) -> Result<Self, DecodeError> {
        Ok(Self { elements: from.named()? })
    }
}

impl<S: Parts> Parts for Map<Bytes, S> {
    fn put_shape(out: &mut BytesMut) {
        out.put_u8(4);
        S::put_shape(out);
    }
    fn take_shape(bytes: &mut Bytes) -> Result<(), DecodeError> {
        shape(bytes, 4)?;
        S::take_shape(bytes)
    }
    fn put(&self, out: &mut BytesMut) {
        put_named(out, &self.entries);
    }
    fn take(from: &mut Taking<'_>) -> Result<Self, DecodeError> {
        Ok(Self { entries: from.named()? })
    }
}

fn put_named<S: Parts>(out: &mut BytesMut, entries: &BTreeMap<Bytes, S>) {
    out.put_u32_le(entries.len() as u32);
    for (name, store) in entries {
        put_bytes(out, name);
        store.put(out);
    }
}

fn put_shares(out: &mut BytesMut, counter: &GCounter) {
    out.put_u32_le(counter.shares.len() as u32);
    for (actor, share) in &counter.shares {
        put_dot(out, Dot::new(*actor, *share));
    }
}

fn take_shares(bytes: &mut Bytes, limits: &Limits) -> Result<GCounter, DecodeError> {
    let count = bytes.try_get_u32_le().map_err(|_| DecodeError::Truncated)? as usize;
    if count > limits.max_actors {
        return Err(DecodeError::AboveLimit("count of actors"));
    }
    if count.saturating_mul(DOT_BYTES) > bytes.len() {
        return Err(DecodeError::Truncated);
    }
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        let actor = Actor::new(bytes.get_u64_le(), bytes.get_u64_le());
        let share = bytes.get_u64_le();
        if share == 0 || shares.last_key_value().is_some_and(|(last, _)| *last >= actor) {
            return Err(DecodeError::Invalid("share"));
        }
        shares.insert(actor, share);
    }
    Ok(GCounter { shares })
}

fn put_bytes(out: &mut BytesMut, value: &Bytes) {
    out.put_u32_le(value.len() as u32);
    out.put_slice(value);
}

fn take_bytes(bytes: &mut Bytes, limits: &Limits) -> Result<Bytes, DecodeError> {
    let len = bytes.try_get_u32_le().map_err(|_| DecodeError::Truncated)? as usize;
    if len > limits.max_value_bytes {
        return Err(DecodeError::AboveLimit("length of a value"));
    }
    if len > bytes.len() {
        return Err(DecodeError::Truncated);
    }
    Ok(bytes.split_to(len))
}

fn shape(bytes: &mut Bytes, expected: u8) -> Result<(), DecodeError> {
    match bytes.try_get_u8() {
        Ok(found) if found == expected => Ok(()),
        Ok(_) => Err(DecodeError::Invalid("shape")),
        Err(_) => Err(DecodeError::Truncated),
    }
}
