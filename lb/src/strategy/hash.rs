//! Choice by the client's address or by a key.

use std::net::IpAddr;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::sampler::Sampler;
use super::{Group, Member, Select, Selection, Slot, Strategy};
use crate::context::Context;
use crate::random::Random;

/// nginx's `ip_hash`: the first three bytes of an IPv4 address, or the whole IPv6 address, choose
/// the endpoint. Clients of an endpoint that is down move to others, all other clients stay.
///
/// Without [`Context::client`] the choice is random.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct IpHash;

/// The hash of [`Context::key`] chooses the endpoint in proportion to the weights. Keys of an
/// endpoint that is down move to others, all other keys stay; a change of the set moves most keys
/// (see `MaglevHash` and `BoundedHash`, feature `ring`, for the opposite).
///
/// Without a key the choice is random.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct KeyHash;

/// Attempts to find an endpoint that may be chosen, as in nginx.
const MAX_TRIES: u32 = 20;

#[derive(Debug)]
struct Hashed {
    by_client: bool,
    slots: Box<[Slot]>,
    /// The sum of the weights up to and with each slot.
    ends: Box<[u64]>,
    /// The weight of every slot, if all have the same: then a division replaces the search.
    equal: Option<u64>,
    fallback: Sampler,
}

impl Hashed {
    fn new(group: Group<'_>, by_client: bool) -> Self {
        let mut total = 0;
        let add = |slot: &Slot| {
            total += u64::from(slot.weight);
            total
        };
        let first = group.slots.first().map(|slot| slot.weight);
        let is_equal = group.slots.iter().all(|slot| Some(slot.weight) == first);
        Self {
            by_client,
            equal: first.filter(|_| is_equal).map(u64::from),
            ends: group.slots.iter().map(add).collect(),
            slots: group.slots.into(),
            fallback: Sampler::new(group.members),
        }
    }

    /// The member in whose share of all weights the hash lies, if it may be chosen.
    #[inline]
    fn member_at(&self, hash: u64) -> Option<usize> {
        let at = hash % self.ends.last()?;
        let slot = match self.equal {
            Some(1) => at as usize,
            Some(weight) => (at / weight) as usize,
            None => self.ends.partition_point(|&end| end <= at),
        };
        self.slots[slot].member
    }

    /// nginx's hash of the address, hashed again until it finds a member that `is_open`.
    #[inline]
    fn by_address(&self, client: IpAddr, is_open: impl Fn(usize) -> bool) -> Option<usize> {
        let (v4, v6);
        let bytes: &[u8] = match client {
            IpAddr::V4(address) => {
                v4 = address.octets();
                &v4[..3]
            }
            IpAddr::V6(address) => {
                v6 = address.octets();
                &v6
            }
        };
        let mut hash: u64 = 89;
        for _ in 0..=MAX_TRIES {
            for &byte in bytes {
                hash = (hash * 113 + u64::from(byte)) % 6271;
            }
            if let Some(member) = self.member_at(hash)
                && is_open(member)
            {
                return Some(member);
            }
        }
        None
    }

    /// The key's hash, of one seed after the other until it finds a member that `is_open`.
    #[inline]
    fn by_key(&self, key: &[u8], is_open: impl Fn(usize) -> bool) -> Option<usize> {
        let member = |seed| self.member_at(xxh3_64_with_seed(key, seed));
        (0..=u64::from(MAX_TRIES)).find_map(|seed| member(seed).filter(|&at| is_open(at)))
    }

    /// A member that `is_open`, by the client or the key. `None` without one in the context, or
    /// where no hash finds such a member.
    #[inline]
    fn find(&self, ctx: &Context<'_>, is_open: impl Fn(usize) -> bool) -> Option<usize> {
        if self.by_client {
            ctx.client.and_then(|client| self.by_address(client, is_open))
        } else {
            ctx.key.and_then(|key| self.by_key(key, is_open))
        }
    }
}

impl Strategy for IpHash {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(Hashed::new(group, true))
    }

    fn is_keyed(&self) -> bool {
        true
    }
}

impl Strategy for KeyHash {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(Hashed::new(group, false))
    }

    fn is_keyed(&self) -> bool {
        true
    }
}

impl Select for Hashed {
    #[inline]
    fn select(&self, _: &[Member], ctx: &Context<'_>, _: u64, random: &Random) -> Selection {
        let draw = || self.fallback.draw(random.u64() as u32, random);
        Selection::new(self.find(ctx, |_| true).unwrap_or_else(draw))
    }

    /// Hashes again, as nginx does for a server that has failed: the requests of one endpoint go
    /// to all others by their weights, those of one key or client to the same one.
    fn select_other(
        &self,
        _: &[Member],
        ctx: &Context<'_>,
        _: u64,
        _: &Random,
        is_open: &dyn Fn(usize) -> bool,
    ) -> Option<Selection> {
        self.find(ctx, is_open).map(Selection::new)
    }
}
