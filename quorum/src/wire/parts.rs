//! The parts of messages and records.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{MAX_KEY_BYTES, VERSION, limits};
use crate::merkle::HashKey;
use crate::paxos::{self, Ballot, Record, State};
use crate::table::{Digester, Reply, Request};
use crate::version::codec::{self, DecodeError};
use crate::version::{Actor, Dot, Siblings};

/// What an acceptor keeps of a register: version u8 = 1, reserved 3 bytes, ballot, accepted.
pub(crate) fn encode_record(record: &Record) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    out.put_u32_le(u32::from(VERSION));
    put_ballot(&mut out, &record.promised);
    put_accepted(&mut out, record.accepted.as_ref());
    out.freeze()
}

pub(crate) fn decode_record(mut bytes: Bytes) -> Result<Record, DecodeError> {
    let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    if take_u32(&mut bytes)? != u32::from(VERSION) {
        return Err(DecodeError::Invalid("reserved field"));
    }
    let promised = take_ballot(&mut bytes)?;
    let accepted = take_accepted(&mut bytes)?;
    codec::nothing_more(&bytes)?;
    Ok(Record { promised, accepted })
}

pub(crate) fn put_key(out: &mut BytesMut, key: &[u8]) {
    out.put_u16_le(key.len() as u16);
    out.put_slice(key);
}

pub(crate) fn put_value(out: &mut BytesMut, value: &[u8]) {
    out.put_u32_le(value.len() as u32);
    out.put_slice(value);
}

fn put_option(out: &mut BytesMut, value: Option<&Bytes>) {
    out.put_u8(u8::from(value.is_some()));
    if let Some(value) = value {
        put_value(out, value);
    }
}

pub(super) fn put_request(out: &mut BytesMut, request: &Request) {
    match request {
        Request::Get { key } => put_key(out, key),
        Request::Digest { key, digester } => {
            put_key(out, key);
            out.put_slice(&digester.key.to_bytes());
            out.put_u32_le(digester.min_bytes);
        }
        Request::Write { key, seen, value } => {
            put_key(out, key);
            codec::put_vector(out, seen);
            put_option(out, value.as_ref());
        }
        Request::Merge { key, state } => {
            put_key(out, key);
            put_value(out, &codec::encode_siblings(state));
        }
        Request::Forget { key, context } => {
            put_key(out, key);
            codec::put_vector(out, context);
        }
        Request::Epoch { epoch } => out.put_u64_le(*epoch),
    }
}

pub(super) fn put_reply(out: &mut BytesMut, reply: &Reply) {
    match reply {
        Reply::Value { state } | Reply::Written { state } => {
            put_value(out, &codec::encode_siblings(state));
        }
        Reply::Digest { digest } => out.put_u128_le(*digest),
        Reply::Merged | Reply::Refused | Reply::NotWhole => {}
        Reply::Epoch { epoch } | Reply::Stale { epoch } => out.put_u64_le(*epoch),
    }
}

pub(super) fn put_register_reply(out: &mut BytesMut, reply: &paxos::Reply) {
    put_ballot(out, &reply.ballot());
    match reply {
        paxos::Reply::Promise { accepted, .. } => put_accepted(out, accepted.as_ref()),
        paxos::Reply::Rejected { promised, .. } => put_ballot(out, promised),
        paxos::Reply::Accepted { .. } | paxos::Reply::NotWhole { .. } => {}
    }
}

pub(super) fn put_ballot(out: &mut BytesMut, ballot: &Ballot) {
    out.put_u64_le(ballot.round);
    codec::put_dot(out, ballot.session);
}

pub(super) fn put_state(out: &mut BytesMut, state: &State) {
    out.put_u64_le(state.version);
    put_option(out, state.value.as_ref());
    out.put_u32_le(state.applied.len() as u32);
    state.applied.iter().for_each(|dot| codec::put_dot(out, *dot));
}

fn put_accepted(out: &mut BytesMut, accepted: Option<&(Ballot, State)>) {
    out.put_u8(u8::from(accepted.is_some()));
    if let Some((ballot, state)) = accepted {
        put_ballot(out, ballot);
        put_state(out, state);
    }
}

pub(super) fn take_u8(bytes: &mut Bytes) -> Result<u8, DecodeError> {
    bytes.try_get_u8().map_err(|_| DecodeError::Truncated)
}

pub(super) fn take_u32(bytes: &mut Bytes) -> Result<u32, DecodeError> {
    bytes.try_get_u32_le().map_err(|_| DecodeError::Truncated)
}

pub(crate) fn take_u64(bytes: &mut Bytes) -> Result<u64, DecodeError> {
    bytes.try_get_u64_le().map_err(|_| DecodeError::Truncated)
}

pub(super) fn take_u128(bytes: &mut Bytes) -> Result<u128, DecodeError> {
    bytes.try_get_u128_le().map_err(|_| DecodeError::Truncated)
}

pub(super) fn take_bool(bytes: &mut Bytes) -> Result<bool, DecodeError> {
    match take_u8(bytes)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Invalid("option")),
    }
}

fn take_slice(bytes: &mut Bytes, len: usize) -> Result<Bytes, DecodeError> {
    if len > bytes.len() { Err(DecodeError::Truncated) } else { Ok(bytes.split_to(len)) }
}

pub(crate) fn take_key(bytes: &mut Bytes) -> Result<Bytes, DecodeError> {
    let key = take_place(bytes)?;
    if key.is_empty() { Err(DecodeError::Invalid("length of a key")) } else { Ok(key) }
}

/// A key behind which a scan begins; an empty one: before all keys.
pub(super) fn take_place(bytes: &mut Bytes) -> Result<Bytes, DecodeError> {
    let len = usize::from(bytes.try_get_u16_le().map_err(|_| DecodeError::Truncated)?);
    if len > MAX_KEY_BYTES {
        return Err(DecodeError::AboveLimit("length of a key"));
    }
    // A key is kept for long, and the buffer of its message should not be.
    take_slice(bytes, len).map(|key| Bytes::copy_from_slice(&key))
}

pub(crate) fn take_value(bytes: &mut Bytes) -> Result<Bytes, DecodeError> {
    let len = take_u32(bytes)? as usize;
    take_slice(bytes, len)
}

fn take_option(bytes: &mut Bytes) -> Result<Option<Bytes>, DecodeError> {
    if !take_bool(bytes)? {
        return Ok(None);
    }
    let value = take_value(bytes)?;
    if value.len() > limits().max_value_bytes {
        return Err(DecodeError::AboveLimit("length of a value"));
    }
    Ok(Some(value))
}

pub(super) fn take_siblings(bytes: &mut Bytes) -> Result<Siblings<Bytes>, DecodeError> {
    codec::decode_siblings(take_value(bytes)?, &limits())
}

pub(super) fn take_request(bytes: &mut Bytes, kind: u8) -> Result<Request, DecodeError> {
    if kind == 5 {
        return Ok(Request::Epoch { epoch: take_u64(bytes)? });
    }
    let key = take_key(bytes)?;
    Ok(match kind {
        1 => Request::Get { key },
        2 => {
            let seen = codec::take_vector(bytes, &limits())?;
            Request::Write { key, seen, value: take_option(bytes)? }
        }
        3 => Request::Merge { key, state: take_siblings(bytes)? },
        4 => Request::Forget { key, context: codec::take_vector(bytes, &limits())? },
        11 => {
            let digest_key = take_u128(bytes)?.to_le_bytes();
            let (digest_key, min_bytes) = (HashKey::new(digest_key), take_u32(bytes)?);
            Request::Digest { key, digester: Digester { key: digest_key, min_bytes } }
        }
        kind => return Err(DecodeError::Kind(kind)),
    })
}

pub(super) fn take_register_reply(
    bytes: &mut Bytes,
    kind: u8,
) -> Result<paxos::Reply, DecodeError> {
    let ballot = take_ballot(bytes)?;
    Ok(match kind {
        9 => paxos::Reply::Promise { ballot, accepted: take_accepted(bytes)? },
        10 => paxos::Reply::Accepted { ballot },
        11 => paxos::Reply::Rejected { ballot, promised: take_ballot(bytes)? },
        12 => paxos::Reply::NotWhole { ballot },
        kind => return Err(DecodeError::Kind(kind)),
    })
}

/// Any ballot but one above the range; [`Ballot::ZERO`] stands for none.
pub(super) fn take_ballot(bytes: &mut Bytes) -> Result<Ballot, DecodeError> {
    let round = take_u64(bytes)?;
    let actor = Actor::new(take_u64(bytes)?, take_u64(bytes)?);
    let ballot = Ballot { round, session: Dot::new(actor, take_u64(bytes)?) };
    let is_good = ballot.is_valid() && ballot.session.is_valid();
    if is_good || ballot == Ballot::ZERO { Ok(ballot) } else { Err(DecodeError::Invalid("ballot")) }
}

pub(super) fn take_state(bytes: &mut Bytes) -> Result<State, DecodeError> {
    let version = take_u64(bytes)?;
    let value = take_option(bytes)?;
    let count = codec::take_count(bytes, "count of changes", 1_024, codec::DOT_BYTES)?;
    let applied = (0..count).map(|_| codec::take_dot(bytes)).collect::<Result<_, _>>()?;
    // A version at the end of the range would leave no room for the next change.
    if version > Dot::MAX_COUNTER || (count as u64) > version {
        return Err(DecodeError::Invalid("version of a state"));
    }
    Ok(State { version, value, applied })
}

fn take_accepted(bytes: &mut Bytes) -> Result<Option<(Ballot, State)>, DecodeError> {
    if !take_bool(bytes)? {
        return Ok(None);
    }
    Ok(Some((take_ballot(bytes)?, take_state(bytes)?)))
}
