//! The bytes of messages between regions, version 1. All integers are little-endian.
//!
//! | part | bytes |
//! |---|---|
//! | question | version u8 = 1, kind u8, reserved u16 = 0, region of the sender u64, region that is asked u64, epoch of the sender's map u64, digest of it u64, node of the sender u64, its stamp, body |
//! | answer | version u8 = 1, kind u8, reserved u16 = 0, node u64, its stamp, body |
//! | stamp | of a membership: lineage u64 (0: none), epoch u64, branch u64 |
//! | floors | count u32, so many regions u64 and stamps, in ascending order of the regions |
//! | key, value, siblings, vector | as between nodes of one region |
//!
//! | question | kind | body |
//! |---|---|---|
//! | hello | 1 | |
//! | ship | 2 | epoch u64, count u32, so many keys and siblings |
//! | compare | 3 | question as in [`merkle::codec`](crate::merkle::codec), to the end |
//! | fetch | 4 | count u32, so many keys |
//! | hold | 5 | stamp, floors, count u32, so many keys and vectors |
//! | raise | 6 | stamp, epoch u64 |
//! | forget | 7 | stamp, epoch u64, count u32, so many keys and vectors |
//!
//! | answer | kind | body |
//! |---|---|---|
//! | welcome | 1 | epoch u64, 1 u8 if the node knows all floors, else 0, floors, membership |
//! | fates | 2 | epoch u64, count u32, so many u8 (1 held, 2 refused, 3 later): to ship, and to hold if one is refused |
//! | compared | 3 | answer as in [`merkle::codec`](crate::merkle::codec), to the end |
//! | fetched | 4 | count u32, so many siblings: of the first keys that were asked for |
//! | epoch | 5 | epoch u64: to raise, and to hold if all are held |
//! | done | 6 | to forget |
//! | other map | 7 | epoch of the map u64, 1 u8 if it has the sender's region, else 0 |
//! | later | 8 | nothing was done: the node is busy, not whole, or serves another membership |
//! | over | 9 | nothing was done: the sender's membership is over, or of another cluster |
//! | other region | 10 | nothing was done: region u64 that the node is of |
//!
//! The stamp of hold, raise and forget is that of the receiver's membership, and has to be the one
//! that it serves.
//! `epoch` is that of collected tombstones of the receiver's region. A sender takes it before it
//! reads the states that it sends, and the receiver refuses what is older than two collections.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Fate;
use super::RegionConfig;
use super::floors::Floors;
use crate::membership::{self, Lineage, Membership, Stamp};
use crate::merkle;
use crate::table::Value;
use crate::version::codec::{self, DecodeError, Limits};
use crate::wire::{compare_limits, put_key, put_value, take_head, take_key, take_u64, take_value};

const VERSION: u8 = 1;
/// Keys of one message.
pub(super) const MAX_KEYS: usize = 1_024;

/// A tombstone: a key and what was deleted under it.
pub(super) use crate::node::Tombstone;

/// A question with what it is wrapped in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) from: u64,
    /// The region that the sender means.
    pub(super) to: u64,
    /// The sender's.
    pub(super) map: MapStamp,
    pub(super) sender: Sender,
    pub(super) question: Question,
}

/// Which map of the regions a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapStamp {
    pub(super) epoch: u64,
    /// Of the regions and since when each is one, with the nodes' key of digests.
    pub(super) digest: u64,
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sender {
    pub(super) node: u64,
    /// Of the membership that it serves.
    pub(super) stamp: Stamp,
}

/// An answer with who gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) sender: Sender,
    pub(super) answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Who the replicas of the region are.
    Hello,
    /// Merge states into a write quorum of the region.
    Ship { epoch: u64, entries: Vec<(Bytes, Value)> },
    /// About the node's tree of the table.
    Compare { question: merkle::Question },
    /// The node's states of some keys.
    Fetch { keys: Vec<Bytes> },
    /// Merge tombstones into the node itself.
    Hold { membership: Stamp, floors: Floors, tombstones: Vec<Tombstone> },
    /// Raise the node's epoch of collected tombstones.
    Raise { membership: Stamp, epoch: u64 },
    /// Drop tombstones of the node itself.
    Forget { membership: Stamp, epoch: u64, tombstones: Vec<Tombstone> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// `is_informed`: whether the floors are all that there are.
    Welcome {
        epoch: u64,
        is_informed: bool,
        floors: Floors,
        membership: Membership,
    },
    /// In the order of what was sent.
    Fates {
        epoch: u64,
        fates: Vec<Fate>,
    },
    Compared(merkle::Answer),
    Fetched {
        states: Vec<Value>,
    },
    Epoch {
        epoch: u64,
    },
    Done,
    OtherMap {
        epoch: u64,
        is_member: bool,
    },
    Later,
    /// The membership of the asking node is over, or of another cluster.
    Over,
    OtherRegion {
        region: u64,
    },
}

impl Envelope {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(256);
        put_head(&mut out, self.question.kind());
        for part in [self.from, self.to, self.map.epoch, self.map.digest] {
            out.put_u64_le(part);
        }
        put_sender(&mut out, &self.sender);
        match &self.question {
            Question::Hello => {}
            Question::Ship { epoch, entries } => {
                out.put_u64_le(*epoch);
                out.put_u32_le(entries.len() as u32);
                for (key, state) in entries {
                    put_key(&mut out, key);
                    put_state(&mut out, state);
                }
            }
            Question::Compare { question } => {
                out.put_slice(&merkle::codec::encode_question(question, &compare_limits()));
            }
            Question::Fetch { keys } => {
                out.put_u32_le(keys.len() as u32);
                for key in keys {
                    put_key(&mut out, key);
                }
            }
            Question::Hold { membership, floors, tombstones } => {
                put_stamp(&mut out, membership);
                put_floors(&mut out, floors);
                put_tombstones(&mut out, tombstones);
            }
            Question::Raise { membership, epoch } => {
                put_stamp(&mut out, membership);
                out.put_u64_le(*epoch);
            }
            Question::Forget { membership, epoch, tombstones } => {
                put_stamp(&mut out, membership);
                out.put_u64_le(*epoch);
                put_tombstones(&mut out, tombstones);
            }
        }
        out.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let kind = take_head(&mut bytes, VERSION)?;
        let (from, to) = (take_u64(&mut bytes)?, take_u64(&mut bytes)?);
        let map = MapStamp { epoch: take_u64(&mut bytes)?, digest: take_u64(&mut bytes)? };
        let sender = take_sender(&mut bytes)?;
        let question = Question::decode(kind, &mut bytes)?;
        codec::nothing_more(&bytes)?;
        Ok(Self { from, to, map, sender, question })
    }
}

impl Question {
    fn decode(kind: u8, bytes: &mut Bytes) -> Result<Self, DecodeError> {
        Ok(match kind {
            1 => Self::Hello,
            2 => {
                let epoch = take_u64(bytes)?;
                let count = take_count(bytes, 2 + 4)?;
                let mut entries = Vec::with_capacity(count);
                for _ in 0..count {
                    entries.push((take_key(bytes)?, take_state(bytes)?));
                }
                Self::Ship { epoch, entries }
            }
            3 => {
                let question = bytes.split_to(bytes.len());
                let question = merkle::codec::decode_question(question, &compare_limits())?;
                Self::Compare { question }
            }
            4 => {
                let count = take_count(bytes, 2)?;
                let keys = (0..count).map(|_| take_key(bytes)).collect::<Result<_, _>>()?;
                Self::Fetch { keys }
            }
            5 => {
                let (membership, floors) = (take_stamp(bytes)?, take_floors(bytes)?);
                Self::Hold { membership, floors, tombstones: take_tombstones(bytes)? }
            }
            6 => Self::Raise { membership: take_stamp(bytes)?, epoch: take_u64(bytes)? },
            7 => Self::Forget {
                membership: take_stamp(bytes)?,
                epoch: take_u64(bytes)?,
                tombstones: take_tombstones(bytes)?,
            },
            kind => return Err(DecodeError::Kind(kind)),
        })
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Ship { .. } => 2,
            Self::Compare { .. } => 3,
            Self::Fetch { .. } => 4,
            Self::Hold { .. } => 5,
            Self::Raise { .. } => 6,
            Self::Forget { .. } => 7,
        }
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(96);
        put_head(&mut out, self.answer.kind());
        put_sender(&mut out, &self.sender);
        self.answer.put(&mut out);
        out.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let kind = take_head(&mut bytes, VERSION)?;
        let sender = take_sender(&mut bytes)?;
        let answer = Answer::decode(kind, &mut bytes)?;
        codec::nothing_more(&bytes)?;
        Ok(Self { sender, answer })
    }
}

impl Answer {
    fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Welcome { epoch, is_informed, floors, membership } => {
                out.put_u64_le(*epoch);
                out.put_u8(u8::from(*is_informed));
                put_floors(out, floors);
                membership::put_membership(out, membership);
            }
            Self::Fates { epoch, fates } => {
                out.put_u64_le(*epoch);
                out.put_u32_le(fates.len() as u32);
                for fate in fates {
                    out.put_u8(match fate {
                        Fate::Held => 1,
                        Fate::Refused => 2,
                        Fate::Later => 3,
                    });
                }
            }
            Self::Compared(answer) => {
                out.put_slice(&merkle::codec::encode_answer(answer, &compare_limits()));
            }
            Self::Fetched { states } => {
                out.put_u32_le(states.len() as u32);
                for state in states {
                    put_state(out, state);
                }
            }
            Self::Epoch { epoch } => out.put_u64_le(*epoch),
            Self::OtherMap { epoch, is_member } => {
                out.put_u64_le(*epoch);
                out.put_u8(u8::from(*is_member));
            }
            Self::OtherRegion { region } => out.put_u64_le(*region),
            Self::Done | Self::Later | Self::Over => {}
        }
    }

    fn decode(kind: u8, bytes: &mut Bytes) -> Result<Self, DecodeError> {
        Ok(match kind {
            1 => Self::Welcome {
                epoch: take_u64(bytes)?,
                is_informed: take_flag(bytes)?,
                floors: take_floors(bytes)?,
                membership: membership::take_membership(bytes)?,
            },
            2 => {
                let epoch = take_u64(bytes)?;
                let count = take_count(bytes, 1)?;
                let fate = |byte: &u8| match byte {
                    1 => Ok(Fate::Held),
                    2 => Ok(Fate::Refused),
                    3 => Ok(Fate::Later),
                    _ => Err(DecodeError::Invalid("fate")),
                };
                let fates = bytes.split_to(count).iter().map(fate).collect::<Result<_, _>>()?;
                Self::Fates { epoch, fates }
            }
            3 => {
                let answer = bytes.split_to(bytes.len());
                Self::Compared(merkle::codec::decode_answer(answer, &compare_limits())?)
            }
            4 => {
                let count = take_count(bytes, 4)?;
                let states = (0..count).map(|_| take_state(bytes)).collect::<Result<_, _>>()?;
                Self::Fetched { states }
            }
            5 => Self::Epoch { epoch: take_u64(bytes)? },
            6 => Self::Done,
            7 => Self::OtherMap { epoch: take_u64(bytes)?, is_member: take_flag(bytes)? },
            8 => Self::Later,
            9 => Self::Over,
            10 => Self::OtherRegion { region: take_u64(bytes)? },
            kind => return Err(DecodeError::Kind(kind)),
        })
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Welcome { .. } => 1,
            Self::Fates { .. } => 2,
            Self::Compared(_) => 3,
            Self::Fetched { .. } => 4,
            Self::Epoch { .. } => 5,
            Self::Done => 6,
            Self::OtherMap { .. } => 7,
            Self::Later => 8,
            Self::Over => 9,
            Self::OtherRegion { .. } => 10,
        }
    }
}

fn put_head(out: &mut BytesMut, kind: u8) {
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_u16_le(0);
}

fn put_state(out: &mut BytesMut, state: &Value) {
    put_value(out, &codec::encode_siblings(state));
}

fn take_state(bytes: &mut Bytes) -> Result<Value, DecodeError> {
    codec::decode_siblings(take_value(bytes)?, &Limits::default())
}

fn put_tombstones(out: &mut BytesMut, tombstones: &[Tombstone]) {
    out.put_u32_le(tombstones.len() as u32);
    for (key, context) in tombstones {
        put_key(out, key);
        codec::put_vector(out, context);
    }
}

fn take_tombstones(bytes: &mut Bytes) -> Result<Vec<Tombstone>, DecodeError> {
    let count = take_count(bytes, 2 + 4)?;
    let mut tombstones = Vec::with_capacity(count);
    for _ in 0..count {
        let key = take_key(bytes)?;
        tombstones.push((key, codec::take_vector(bytes, &Limits::default())?));
    }
    Ok(tombstones)
}

fn put_stamp(out: &mut BytesMut, stamp: &Stamp) {
    for part in [stamp.lineage.get(), stamp.epoch, stamp.branch] {
        out.put_u64_le(part);
    }
}

fn take_stamp(bytes: &mut Bytes) -> Result<Stamp, DecodeError> {
    let lineage = Lineage::new(take_u64(bytes)?);
    let stamp = Stamp { lineage, epoch: take_u64(bytes)?, branch: take_u64(bytes)? };
    if stamp.epoch > Membership::MAX_EPOCH {
        return Err(DecodeError::Invalid("epoch of a membership"));
    }
    Ok(stamp)
}

fn put_sender(out: &mut BytesMut, sender: &Sender) {
    out.put_u64_le(sender.node);
    put_stamp(out, &sender.stamp);
}

fn take_sender(bytes: &mut Bytes) -> Result<Sender, DecodeError> {
    Ok(Sender { node: take_u64(bytes)?, stamp: take_stamp(bytes)? })
}

/// Also those of the store's record.
pub(super) fn put_floors(out: &mut BytesMut, floors: &Floors) {
    out.put_u32_le(floors.len() as u32);
    for (region, stamp) in floors {
        out.put_u64_le(*region);
        put_stamp(out, stamp);
    }
}

pub(super) fn take_floors(bytes: &mut Bytes) -> Result<Floors, DecodeError> {
    let max = RegionConfig::MAX_REGIONS;
    let count = codec::take_count(bytes, "count of regions", max, 32)?;
    let mut floors = Floors::new();
    for _ in 0..count {
        let (region, stamp) = (take_u64(bytes)?, take_stamp(bytes)?);
        if floors.last_key_value().is_some_and(|(last, _)| *last >= region) {
            return Err(DecodeError::Invalid("order of regions"));
        }
        floors.insert(region, stamp);
    }
    Ok(floors)
}

fn take_flag(bytes: &mut Bytes) -> Result<bool, DecodeError> {
    match bytes.try_get_u8() {
        Ok(byte @ (0 | 1)) => Ok(byte == 1),
        Ok(_) => Err(DecodeError::Invalid("flag")),
        Err(_) => Err(DecodeError::Truncated),
    }
}

fn take_count(bytes: &mut Bytes, part_bytes: usize) -> Result<usize, DecodeError> {
    codec::take_count(bytes, "count of keys", MAX_KEYS, part_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::{Actor, Dot};

    fn state() -> Value {
        let mut state = Value::new();
        state.put_blind(Dot::new(Actor::new(1, 2), 3), Bytes::from_static(b"milk")).unwrap();
        state
    }

    fn stamp() -> Stamp {
        Stamp { lineage: Lineage::new(0x11), epoch: 5, branch: 0x12 }
    }

    fn envelope(question: Question) -> Envelope {
        let map = MapStamp { epoch: 3, digest: 0x13 };
        Envelope { from: 2, to: 1, map, sender: Sender { node: 6, stamp: stamp() }, question }
    }

    fn questions() -> Vec<Question> {
        let key = || Bytes::from_static(b"cart");
        let tombstones = || vec![(key(), state().context().clone())];
        vec![
            Question::Hello,
            Question::Ship { epoch: 4, entries: vec![(key(), state()), (key(), Value::new())] },
            Question::Compare { question: merkle::Question::Sums { nodes: Vec::new() } },
            Question::Fetch { keys: vec![key(), Bytes::from_static(b"c")] },
            Question::Hold {
                membership: stamp(),
                floors: Floors::from([(1, stamp()), (2, stamp())]),
                tombstones: tombstones(),
            },
            Question::Raise { membership: stamp(), epoch: 6 },
            Question::Forget { membership: stamp(), epoch: 6, tombstones: tombstones() },
        ]
    }

    fn answers() -> Vec<Answer> {
        vec![
            Answer::Welcome {
                epoch: 7,
                is_informed: true,
                floors: Floors::from([(1, stamp())]),
                membership: Membership::first([4, 5, 6]),
            },
            Answer::Fates { epoch: 7, fates: vec![Fate::Held, Fate::Refused, Fate::Later] },
            Answer::Compared(merkle::Answer::Keys { keys: vec![None] }),
            Answer::Fetched { states: vec![state(), Value::new()] },
            Answer::Epoch { epoch: 8 },
            Answer::Done,
            Answer::OtherMap { epoch: 9, is_member: true },
            Answer::Later,
            Answer::Over,
            Answer::OtherRegion { region: 3 },
        ]
    }

    /// Cut short, longer, or with another byte: refused, or the one encoding of something else.
    fn check(bytes: &Bytes, encoded_again: impl Fn(Bytes) -> Option<Bytes>) {
        assert_eq!(encoded_again(bytes.clone()).as_ref(), Some(bytes));
        let longer = [bytes, &b"\0"[..]].concat().into();
        assert_eq!(encoded_again(longer), None);
        for at in 0..bytes.len() {
            assert_eq!(encoded_again(bytes.slice(..at)), None, "cut at {at}");
            for bit in 0..8 {
                let mut changed = bytes.to_vec();
                changed[at] ^= 1 << bit;
                let changed = Bytes::from(changed);
                if let Some(again) = encoded_again(changed.clone()) {
                    assert_eq!(again, changed, "byte {at}");
                }
            }
        }
    }

    #[test]
    fn messages_have_one_encoding_and_changed_bytes_are_refused() {
        for question in questions() {
            let envelope = envelope(question);
            check(&envelope.encode(), |bytes| Some(Envelope::decode(bytes).ok()?.encode()));
        }
        for answer in answers() {
            let reply = Reply { sender: Sender { node: 6, stamp: stamp() }, answer };
            check(&reply.encode(), |bytes| Some(Reply::decode(bytes).ok()?.encode()));
        }
    }

    #[test]
    fn the_bytes_of_version_1_are_golden() {
        let envelope = envelope(questions().remove(1));
        let golden = concat!(
            "01020000",
            "0200000000000000",
            "0100000000000000",
            "0300000000000000",
            "1300000000000000",
            "0600000000000000",
            "1100000000000000",
            "0500000000000000",
            "1200000000000000",
            "0400000000000000",
            "02000000",
            "0400",
            "63617274",
            "44000000",
            "01010000",
            "01000000",
            "0100000000000000",
            "0200000000000000",
            "0300000000000000",
            "01000000",
            "0100000000000000",
            "0200000000000000",
            "0300000000000000",
            "04000000",
            "6d696c6b",
            "0400",
            "63617274",
            "0c000000",
            "01010000",
            "00000000",
            "00000000"
        );
        let byte = |hex| u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap();
        let golden: Vec<u8> = golden.as_bytes().chunks(2).map(byte).collect();
        assert_eq!(envelope.encode(), golden);
    }

    #[test]
    fn counts_above_their_limit_are_refused() {
        let keys = vec![Bytes::from_static(b"c"); MAX_KEYS + 1];
        let envelope = envelope(Question::Fetch { keys });
        let error = DecodeError::AboveLimit("count of keys");
        assert_eq!(Envelope::decode(envelope.encode()), Err(error));
    }
}
