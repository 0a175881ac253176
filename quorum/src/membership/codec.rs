//! The bytes of a membership, in messages and in stores, little-endian.
//!
//! Version 1, of a cluster without a name: version u8 = 1, joint u8 (0 or 1), reserved u16, epoch
//! u64, a set; if it is joint, the next set.
//! Version 2: version u8 = 2, then as before; behind the epoch lineage u64 (not 0), count of
//! branches u32, and so many u64.
//! A set: count u32, so many times id u64 and since u64, in ascending order of the ids.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Lineage, Member, Membership};
use crate::version::codec::{self, DecodeError};

const VERSION: u8 = 1;
const VERSION_WITH_LINEAGE: u8 = 2;
const MEMBER_BYTES: usize = 16;

pub(crate) fn encode(membership: &Membership) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    put_membership(&mut out, membership);
    out.freeze()
}

/// Reads bytes that are one membership.
pub(crate) fn decode(mut bytes: Bytes) -> Result<Membership, DecodeError> {
    let membership = take_membership(&mut bytes)?;
    codec::nothing_more(&bytes)?;
    Ok(membership)
}

pub(crate) fn put_membership(out: &mut BytesMut, membership: &Membership) {
    let is_named = membership.lineage.is_named();
    out.put_u8(if is_named { VERSION_WITH_LINEAGE } else { VERSION });
    out.put_u8(u8::from(membership.is_changing()));
    out.put_u16_le(0);
    out.put_u64_le(membership.epoch);
    if is_named {
        out.put_u64_le(membership.lineage.get());
        out.put_u32_le(membership.branches.len() as u32);
        membership.branches.iter().for_each(|branch| out.put_u64_le(*branch));
    }
    for set in membership.sets() {
        out.put_u32_le(set.len() as u32);
        for member in set {
            out.put_u64_le(member.id);
            out.put_u64_le(member.since);
        }
    }
}

pub(crate) fn take_membership(bytes: &mut Bytes) -> Result<Membership, DecodeError> {
    let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
    if !(VERSION..=VERSION_WITH_LINEAGE).contains(&version) {
        return Err(DecodeError::Version(version));
    }
    if bytes.len() < 12 {
        return Err(DecodeError::Truncated);
    }
    bytes.advance(1);
    let is_joint = match bytes.get_u8() {
        0 => false,
        1 => true,
        _ => return Err(DecodeError::Invalid("joint membership")),
    };
    if bytes.get_u16_le() != 0 {
        return Err(DecodeError::Invalid("reserved field"));
    }
    let epoch = bytes.get_u64_le();
    let (lineage, branches) =
        if version == VERSION { (Lineage::UNNAMED, Vec::new()) } else { take_lineage(bytes)? };
    let members = take_set(bytes, epoch)?;
    let next = if is_joint { Some(take_set(bytes, epoch)?) } else { None };
    // An epoch that is not known has no members, and every other one has.
    let is_empty = members.is_empty() || next.as_ref().is_some_and(Vec::is_empty);
    if epoch > Membership::MAX_EPOCH || is_empty != (epoch == 0) || (epoch == 0 && is_joint) {
        return Err(DecodeError::Invalid("membership"));
    }
    let membership = Membership { epoch, members, next, lineage, branches };
    if membership.branches.len() != membership.count_of_branches() {
        return Err(DecodeError::Invalid("count of branches"));
    }
    Ok(membership)
}

fn take_lineage(bytes: &mut Bytes) -> Result<(Lineage, Vec<u64>), DecodeError> {
    if bytes.len() < 8 {
        return Err(DecodeError::Truncated);
    }
    let lineage = Lineage::new(bytes.get_u64_le());
    if !lineage.is_named() {
        return Err(DecodeError::Invalid("lineage"));
    }
    let max = Membership::MAX_BRANCHES;
    let count = codec::take_count(bytes, "count of branches", max, 8)?;
    Ok((lineage, (0..count).map(|_| bytes.get_u64_le()).collect()))
}

fn take_set(bytes: &mut Bytes, epoch: u64) -> Result<Vec<Member>, DecodeError> {
    let max = Membership::MAX_MEMBERS;
    let count = codec::take_count(bytes, "count of members", max, MEMBER_BYTES)?;
    let mut members: Vec<Member> = Vec::with_capacity(count);
    for _ in 0..count {
        let member = Member { id: bytes.get_u64_le(), since: bytes.get_u64_le() };
        let is_ascending = members.last().is_none_or(|last| last.id < member.id);
        if !is_ascending || !(1..=epoch).contains(&member.since) {
            return Err(DecodeError::Invalid("member"));
        }
        members.push(member);
    }
    Ok(members)
}
