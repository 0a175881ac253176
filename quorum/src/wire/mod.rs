//! The bytes of requests and answers between nodes, and of the records of registers.
//! All integers are little-endian.
//!
//! | part | bytes |
//! |---|---|
//! | request, version 1 | version u8 = 1, kind u8, reserved u16, longest answer u32, epoch u64, body |
//! | request, version 2 | version u8 = 2, the same, membership u64 behind the epoch |
//! | request, version 3 | version u8 = 3, the same, lineage u64 (not 0), branch u64 behind them |
//! | answer | version u8 = 1, kind u8, reserved u16, epoch of the replica u64, body |
//! | key | length u16, not 0, bytes |
//! | value | length u32, bytes |
//! | option | 0 or 1 u8, then the part if it is 1 |
//! | siblings, vector, dot | as in [`codec`](crate::version::codec), siblings as a value |
//! | ballot | round u64, dot |
//! | state | version u64, option of a value, count u32, so many dots |
//! | accepted | option of a ballot and a state |
//! | membership | as in `membership/codec.rs` |
//!
//! The epoch is that of collected tombstones, the membership that of the replicas. A request of
//! version 1 is of the first membership, and that is how such a one is written. Requests of
//! versions 1 and 2 are of a cluster without a name. An answer is of the cluster and the past of
//! its request: a node does nothing for any other one.
//!
//! | request | kind | body |
//! |---|---|---|
//! | get | 1 | key |
//! | write | 2 | key, vector, option of a value |
//! | merge | 3 | key, siblings |
//! | forget | 4 | key, vector |
//! | epoch | 5 | epoch u64 |
//! | prepare | 6 | key, ballot |
//! | accept | 7 | key, ballot, next ballot, state |
//! | scan | 8 | space u8 (1 table, 2 registers), key after which it begins, of length 0: at the first |
//! | compare | 9 | question as in [`merkle::codec`](crate::merkle::codec), to the end |
//! | read | 10 | space u8, key |
//! | digest | 11 | key, key of the digests 16 bytes, shortest state with a digest u32 |
//! | membership | 12 | option of a membership |
//!
//! | answer | kind | body |
//! |---|---|---|
//! | value | 1 | siblings |
//! | written | 2 | siblings |
//! | merged, refused, not whole, busy | 3, 4, 5, 6 | |
//! | epoch, stale | 7, 8 | epoch u64 |
//! | promise | 9 | ballot, accepted |
//! | accepted | 10 | ballot |
//! | rejected | 11 | ballot, promised ballot |
//! | register not whole | 12 | ballot |
//! | page | 13 | count u32, so many keys and values |
//! | too long | 14 | 1 u8 if a write was made, else 0 |
//! | compared | 15 | answer as in [`merkle::codec`](crate::merkle::codec), to the end |
//! | digest | 16 | digest u128 |
//! | membership | 17 | bits u8 (1 whole, 2 ready), membership |
//! | other cluster | 18 | lineage u64 of the node, 0 if it has none |
//!
//! `busy`: nothing was done. `other cluster`: nothing was done, for the request is of another
//! cluster than the node, or of another past of it. `too long`: the answer is longer than the
//! caller takes; it asks again by its bulk connection, or reads what it has written. `membership`,
//! to any other request than the one for it: nothing was done, for the node serves another
//! membership than that of the request.

mod parts;
#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use self::parts::*;
pub(crate) use self::parts::{
    decode_record, encode_record, put_key, put_value, take_key, take_u64, take_value,
};
use crate::membership::{self, Lineage, Membership, Stamp};
use crate::merkle::{self, MerkleConfig};
use crate::paxos;
use crate::table;
use crate::version::codec::{self, DecodeError, Limits};

pub(crate) const VERSION: u8 = 1;
/// Of requests that name their membership.
const VERSION_WITH_MEMBERSHIP: u8 = 2;
/// Of requests that also name their cluster and its past.
const VERSION_WITH_LINEAGE: u8 = 3;
/// Length of the longest key of a table and of a register, in bytes. The shortest has one.
pub const MAX_KEY_BYTES: usize = 1_024;

/// Whether no node takes a request to write so long a key and value.
pub(crate) fn is_too_long(key_bytes: usize, value_bytes: usize) -> bool {
    key_bytes > MAX_KEY_BYTES || value_bytes > table::Replica::MAX_VALUE_BYTES
}

/// Whether no node takes a request with a context of so many actors.
pub(crate) fn has_too_many_actors(actors: usize) -> bool {
    actors > limits().max_actors
}

/// How the keys of registers begin that hold what follows an epoch of the membership.
pub(crate) const DECREES: &[u8] = b"\0voussoir\0membership\0";

/// The key of the register that holds what follows a membership. A cluster with a name has keys of
/// its own: what its disks hold of another one, whose copy it is, decides nothing.
pub(crate) fn decree_key(current: &Membership) -> Bytes {
    let lineage = current.lineage().get().to_be_bytes();
    let name: &[u8] = if current.lineage().is_named() { &lineage } else { &[] };
    [DECREES, &current.epoch().to_be_bytes(), name].concat().into()
}

/// A request with what it is wrapped in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// The longest answer that the caller takes, in bytes.
    pub(crate) max_answer_bytes: usize,
    /// Of collected tombstones.
    pub(crate) epoch: u64,
    /// Of the membership. The epoch is 1 or more.
    pub(crate) membership: Stamp,
    pub(crate) ask: Ask,
}

/// What is asked of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Table(table::Request),
    Register {
        key: Bytes,
        request: paxos::Request,
    },
    Scan {
        space: Space,
        /// Empty: from the first key on.
        after: Bytes,
    },
    /// The durable record of a key.
    Read {
        space: Space,
        key: Bytes,
    },
    /// About the tree of the keys in the store.
    Compare {
        question: merkle::Question,
    },
    /// Which membership the node serves, once it has taken the one that is offered if that is a
    /// later one.
    Membership {
        offer: Option<Membership>,
    },
}

/// Two spaces of keys that have nothing to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Table,
    Registers,
}

impl Space {
    /// The byte with which the keys of its records begin.
    pub(crate) fn prefix(self) -> u8 {
        match self {
            Self::Table => b't',
            Self::Registers => b'p',
        }
    }
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Table(table::Reply),
    Register(paxos::Reply),
    /// Keys and their records, in ascending order; none: there are no more.
    Page(Vec<(Bytes, Bytes)>),
    Compared(merkle::Answer),
    /// Which membership the node serves, durably. To another request: nothing was done.
    Membership {
        membership: Membership,
        is_whole: bool,
        /// Whether it has all that the end of a change needs of it.
        is_ready: bool,
    },
    /// Nothing was done: the node is of another cluster, or of another past of the same.
    OtherCluster {
        /// Of the node.
        lineage: Lineage,
    },
    /// Nothing was done.
    Busy,
    TooLong {
        is_written: bool,
    },
}

/// What the decoders of this module accept.
fn limits() -> Limits {
    Limits::default()
}

/// What two nodes ask each other about their trees at most. The keys are those of the store, which
/// begin with the byte of their space.
pub(crate) fn compare_limits() -> MerkleConfig {
    MerkleConfig { max_key_bytes: 1 + MAX_KEY_BYTES, ..MerkleConfig::default() }
}

impl Envelope {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(256);
        let Stamp { lineage, epoch: membership, branch } = self.membership;
        let version = match (lineage.is_named(), membership > Membership::FIRST_EPOCH) {
            (true, _) => VERSION_WITH_LINEAGE,
            (false, true) => VERSION_WITH_MEMBERSHIP,
            (false, false) => VERSION,
        };
        out.put_u8(version);
        out.put_u8(self.ask.kind());
        out.put_u16_le(0);
        out.put_u32_le(u32::try_from(self.max_answer_bytes).unwrap_or(u32::MAX));
        out.put_u64_le(self.epoch);
        if version >= VERSION_WITH_MEMBERSHIP {
            out.put_u64_le(membership);
        }
        if version >= VERSION_WITH_LINEAGE {
            out.put_u64_le(lineage.get());
            out.put_u64_le(branch);
        }
        match &self.ask {
            Ask::Table(request) => put_request(&mut out, request),
            Ask::Register { key, request } => {
                put_key(&mut out, key);
                match request {
                    paxos::Request::Prepare { ballot } => put_ballot(&mut out, ballot),
                    paxos::Request::Accept { ballot, state, next } => {
                        put_ballot(&mut out, ballot);
                        put_ballot(&mut out, next);
                        put_state(&mut out, state);
                    }
                }
            }
            Ask::Scan { space, after: key } | Ask::Read { space, key } => {
                out.put_u8(if *space == Space::Table { 1 } else { 2 });
                put_key(&mut out, key);
            }
            Ask::Compare { question } => {
                out.put_slice(&merkle::codec::encode_question(question, &compare_limits()));
            }
            Ask::Membership { offer } => {
                out.put_u8(u8::from(offer.is_some()));
                if let Some(offer) = offer {
                    membership::put_membership(&mut out, offer);
                }
            }
        }
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
        let kind = take_head(&mut bytes, VERSION_WITH_LINEAGE)?;
        let max_answer_bytes = take_u32(&mut bytes)? as usize;
        let epoch = take_u64(&mut bytes)?;
        let membership = take_stamp(&mut bytes, version)?;
        let ask = match kind {
            1..=5 | 11 => Ask::Table(take_request(&mut bytes, kind)?),
            6 => {
                let key = take_key(&mut bytes)?;
                let request = paxos::Request::Prepare { ballot: take_ballot(&mut bytes)? };
                Ask::Register { key, request }
            }
            7 => {
                let key = take_key(&mut bytes)?;
                let (ballot, next) = (take_ballot(&mut bytes)?, take_ballot(&mut bytes)?);
                let state = take_state(&mut bytes)?;
                Ask::Register { key, request: paxos::Request::Accept { ballot, state, next } }
            }
            8 => Ask::Scan { space: take_space(&mut bytes)?, after: take_place(&mut bytes)? },
            9 => {
                let question = bytes.split_to(bytes.len());
                Ask::Compare {
                    question: merkle::codec::decode_question(question, &compare_limits())?,
                }
            }
            10 => Ask::Read { space: take_space(&mut bytes)?, key: take_key(&mut bytes)? },
            12 => {
                let is_offered = take_bool(&mut bytes)?;
                let take = |bytes: &mut Bytes| membership::take_membership(bytes);
                Ask::Membership { offer: is_offered.then(|| take(&mut bytes)).transpose()? }
            }
            kind => return Err(DecodeError::Kind(kind)),
        };
        codec::nothing_more(&bytes)?;
        Ok(Self { max_answer_bytes, epoch, membership, ask })
    }
}

impl Ask {
    fn kind(&self) -> u8 {
        match self {
            Self::Table(table::Request::Get { .. }) => 1,
            Self::Table(table::Request::Write { .. }) => 2,
            Self::Table(table::Request::Merge { .. }) => 3,
            Self::Table(table::Request::Forget { .. }) => 4,
            Self::Table(table::Request::Epoch { .. }) => 5,
            Self::Register { request: paxos::Request::Prepare { .. }, .. } => 6,
            Self::Register { request: paxos::Request::Accept { .. }, .. } => 7,
            Self::Scan { .. } => 8,
            Self::Compare { .. } => 9,
            Self::Read { .. } => 10,
            Self::Table(table::Request::Digest { .. }) => 11,
            Self::Membership { .. } => 12,
        }
    }
}

impl Answer {
    pub(crate) fn encode(&self, epoch: u64) -> Bytes {
        let body_bytes = match self {
            Self::Page(page) => page.iter().map(|(key, record)| 6 + key.len() + record.len()).sum(),
            _ => 0,
        };
        let mut out = BytesMut::with_capacity(128 + body_bytes);
        out.put_u8(VERSION);
        out.put_u8(self.kind());
        out.put_u16_le(0);
        out.put_u64_le(epoch);
        match self {
            Self::Table(reply) => put_reply(&mut out, reply),
            Self::Register(reply) => put_register_reply(&mut out, reply),
            Self::Page(records) => {
                out.put_u32_le(records.len() as u32);
                for (key, record) in records {
                    put_key(&mut out, key);
                    put_value(&mut out, record);
                }
            }
            Self::Compared(answer) => {
                out.put_slice(&merkle::codec::encode_answer(answer, &compare_limits()));
            }
            Self::Membership { membership, is_whole, is_ready } => {
                out.put_u8(u8::from(*is_whole) | u8::from(*is_ready) << 1);
                membership::put_membership(&mut out, membership);
            }
            Self::Busy => {}
            Self::OtherCluster { lineage } => out.put_u64_le(lineage.get()),
            Self::TooLong { is_written } => out.put_u8(u8::from(*is_written)),
        }
        out.freeze()
    }

    /// The epoch of the replica, and its answer.
    pub(crate) fn decode(mut bytes: Bytes) -> Result<(u64, Self), DecodeError> {
        use table::Reply;
        let kind = take_head(&mut bytes, VERSION)?;
        let epoch = take_u64(&mut bytes)?;
        let answer = match kind {
            1 => Self::Table(Reply::Value { state: take_siblings(&mut bytes)? }),
            2 => Self::Table(Reply::Written { state: take_siblings(&mut bytes)? }),
            3 => Self::Table(Reply::Merged),
            4 => Self::Table(Reply::Refused),
            5 => Self::Table(Reply::NotWhole),
            6 => Self::Busy,
            7 => Self::Table(Reply::Epoch { epoch: take_u64(&mut bytes)? }),
            8 => Self::Table(Reply::Stale { epoch: take_u64(&mut bytes)? }),
            9..=12 => Self::Register(take_register_reply(&mut bytes, kind)?),
            13 => {
                let count = codec::take_count(&mut bytes, "count of records", usize::MAX, 6)?;
                let mut records = Vec::with_capacity(count.min(4_096));
                for _ in 0..count {
                    records.push((take_key(&mut bytes)?, take_value(&mut bytes)?));
                }
                Self::Page(records)
            }
            14 => Self::TooLong { is_written: take_bool(&mut bytes)? },
            15 => {
                let answer = bytes.split_to(bytes.len());
                Self::Compared(merkle::codec::decode_answer(answer, &compare_limits())?)
            }
            16 => Self::Table(Reply::Digest { digest: take_u128(&mut bytes)? }),
            17 => {
                let bits = take_u8(&mut bytes)?;
                if bits > 3 {
                    return Err(DecodeError::Invalid("bits of a membership"));
                }
                let membership = membership::take_membership(&mut bytes)?;
                Self::Membership { membership, is_whole: bits & 1 != 0, is_ready: bits & 2 != 0 }
            }
            18 => Self::OtherCluster { lineage: Lineage::new(take_u64(&mut bytes)?) },
            kind => return Err(DecodeError::Kind(kind)),
        };
        codec::nothing_more(&bytes)?;
        Ok((epoch, answer))
    }

    fn kind(&self) -> u8 {
        use table::Reply;
        match self {
            Self::Table(Reply::Value { .. }) => 1,
            Self::Table(Reply::Written { .. }) => 2,
            Self::Table(Reply::Merged) => 3,
            Self::Table(Reply::Refused) => 4,
            Self::Table(Reply::NotWhole) => 5,
            Self::Busy => 6,
            Self::Table(Reply::Epoch { .. }) => 7,
            Self::Table(Reply::Stale { .. }) => 8,
            Self::Register(paxos::Reply::Promise { .. }) => 9,
            Self::Register(paxos::Reply::Accepted { .. }) => 10,
            Self::Register(paxos::Reply::Rejected { .. }) => 11,
            Self::Register(paxos::Reply::NotWhole { .. }) => 12,
            Self::Page(_) => 13,
            Self::TooLong { .. } => 14,
            Self::Compared(_) => 15,
            Self::Table(Reply::Digest { .. }) => 16,
            Self::Membership { .. } => 17,
            Self::OtherCluster { .. } => 18,
        }
    }
}

/// What a request of a version says of the membership that it is of.
fn take_stamp(bytes: &mut Bytes, version: u8) -> Result<Stamp, DecodeError> {
    let mut stamp = Stamp { lineage: Lineage::UNNAMED, epoch: Membership::FIRST_EPOCH, branch: 0 };
    if version >= VERSION_WITH_MEMBERSHIP {
        stamp.epoch = take_u64(bytes)?;
    }
    if version >= VERSION_WITH_LINEAGE {
        stamp.lineage = Lineage::new(take_u64(bytes)?);
        stamp.branch = take_u64(bytes)?;
    }
    // Each stamp has one form: the first epoch without a name is of version 1.
    let first = if version == VERSION_WITH_MEMBERSHIP { 2 } else { Membership::FIRST_EPOCH };
    let is_named = version < VERSION_WITH_LINEAGE || stamp.lineage.is_named();
    if !is_named || !(first..=Membership::MAX_EPOCH).contains(&stamp.epoch) {
        return Err(DecodeError::Invalid("epoch of a membership"));
    }
    Ok(stamp)
}

fn take_space(bytes: &mut Bytes) -> Result<Space, DecodeError> {
    match take_u8(bytes)? {
        1 => Ok(Space::Table),
        2 => Ok(Space::Registers),
        _ => Err(DecodeError::Invalid("space")),
    }
}

/// The kind of a message of a version up to `max_version`.
pub(crate) fn take_head(bytes: &mut Bytes, max_version: u8) -> Result<u8, DecodeError> {
    let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
    if !(VERSION..=max_version).contains(&version) {
        return Err(DecodeError::Version(version));
    }
    if bytes.len() < 4 {
        return Err(DecodeError::Truncated);
    }
    bytes.advance(1);
    let kind = bytes.get_u8();
    if bytes.get_u16_le() != 0 {
        return Err(DecodeError::Invalid("reserved field"));
    }
    Ok(kind)
}
