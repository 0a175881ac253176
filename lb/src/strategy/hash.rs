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

    fn by_address(&self, client: IpAddr) -> Option<usize> {
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
            if let Some(member) = self.member_at(hash) {
                return Some(member);
            }
        }
        None
    }

    fn by_key(&self, key: &[u8]) -> Option<usize> {
        (0..=u64::from(MAX_TRIES)).find_map(|seed| self.member_at(xxh3_64_with_seed(key, seed)))
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
        let found = if self.by_client {
            ctx.client.and_then(|client| self.by_address(client))
        } else {
            ctx.key.and_then(|key| self.by_key(key))
        };
        let draw = || self.fallback.draw(random.u64() as u32, random);
        Selection::new(found.unwrap_or_else(draw))
    }
}
