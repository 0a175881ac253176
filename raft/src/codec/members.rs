//! The membership as bytes. The table stands in the parent module.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::{DecodeError, Reader, VERSION};
use crate::membership::{MAX_LEARNERS, Membership};
use crate::types::MAX_VOTERS;

/// The bytes of a membership: the payload of a configuration entry.
pub fn encode_members(members: &Membership) -> Bytes {
    let lists = [members.voters(), members.outgoing(), members.learners()];
    let ids: usize = lists.iter().map(|list| list.len()).sum();
    let mut out = BytesMut::with_capacity(8 + ids * 8 + members.addresses().len() * 32);
    out.put_u8(VERSION);
    for list in lists {
        out.put_u8(list.len() as u8);
    }
    out.put_u16_le(members.addresses().len() as u16);
    out.put_u16_le(0);
    for id in lists.into_iter().flatten() {
        out.put_u64_le(*id);
    }
    for (id, address) in members.addresses() {
        out.put_u64_le(*id);
        out.put_u16_le(address.len() as u16);
        out.put_slice(address.as_bytes());
    }
    out.freeze()
}

/// Reads a membership.
///
/// # Errors
/// [`DecodeError`] when the bytes are not exactly one that a group can have, or nobody's.
pub fn decode_members(bytes: Bytes) -> Result<Membership, DecodeError> {
    let mut all = Reader { bytes };
    all.version()?;
    let counts = [all.u8()?, all.u8()?, all.u8()?].map(usize::from);
    let addressed = all.u16()?;
    all.u16()?;
    let [voters, outgoing, learners] = counts;
    if voters.max(outgoing) > MAX_VOTERS || learners > MAX_LEARNERS {
        return Err(DecodeError::Field("number of members"));
    }
    let mut list = |count| (0..count).map(|_| all.u64()).collect::<Result<Vec<u64>, _>>();
    let (voters, outgoing, learners) = (list(voters)?, list(outgoing)?, list(learners)?);
    let mut addresses = BTreeMap::new();
    for _ in 0..addressed {
        let (id, len) = (all.u64()?, all.u16()?);
        let address = String::from_utf8(all.take(usize::from(len))?.to_vec());
        let address = address.map_err(|_| DecodeError::Field("address"))?;
        if addresses.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(DecodeError::Field("order of addresses"));
        }
        addresses.insert(id, address);
    }
    if !all.bytes.is_empty() {
        return Err(DecodeError::Trailing);
    }
    Membership::from_parts(voters, outgoing, learners, addresses)
        .ok_or(DecodeError::Field("members"))
}
