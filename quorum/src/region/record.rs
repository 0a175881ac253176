//! What a node keeps of its region, so that a restart cannot forget that it is part of one.
//!
//! The record, version 1, little-endian: version u8, 1 u8 if all floors are known and else 0,
//! reserved 6 bytes, region u64, epoch of the map u64, epoch since which the map has the region
//! u64, digest of the map u64, the floors as in messages, and for each of them the epoch since
//! which the map has its region u64.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::RegionConfig;
use super::floors::Floors;
use super::wire::{put_floors, take_floors};
use crate::merkle::HashKey;
use crate::store::Change;
use crate::version::codec::{self, DecodeError};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 40;

/// The key of the record. The keys of tables, registers and other records begin with another byte.
pub(crate) const KEY: &[u8] = b"r";

/// Why a store and the map of the configuration do not go together. The store has not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The store is of a region, and the configuration has none: tombstones would be dropped that
    /// another region does not hold yet.
    #[error("the store is of region {region}; the configuration must have regions")]
    Missing {
        /// The store's region.
        region: u64,
    },
    /// The store is of another region.
    #[error("the store is of region {found}, not of region {configured}")]
    OtherRegion {
        /// The store's region.
        found: u64,
        /// That of the configuration.
        configured: u64,
    },
    /// The map of the configuration is an earlier one than that of the store.
    #[error(
        "the store has seen the map {found}, the configuration has the earlier map {configured}"
    )]
    Earlier {
        /// The epoch of the store's map.
        found: u64,
        /// That of the configuration.
        configured: u64,
    },
    /// The map of the configuration has the same epoch as that of the store, and other regions, or
    /// regions since other epochs. A changed map takes the next epoch.
    #[error("the store has seen another map {epoch} than that of the configuration")]
    Different {
        /// The epoch of both.
        epoch: u64,
    },
    /// The region was taken out and added again since the store was part of it. What was deleted
    /// meanwhile may live here. Begin its nodes anew, on empty stores, with
    /// [`Node::create`](crate::Node::create).
    #[error(
        "region {region} was added again with the map {since}, and the store is of the map \
         {found}: what was deleted meanwhile may live here; begin its nodes on empty stores"
    )]
    Evicted {
        /// The region.
        region: u64,
        /// The epoch of the map that has added it again.
        since: u64,
        /// The epoch of the store's map; 0: it was part of none.
        found: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegionRecord {
    region: u64,
    epoch: u64,
    since: u64,
    /// Of the map.
    digest: u64,
    /// Whether `floors` are all that the replicas of the region were told.
    pub(super) is_informed: bool,
    pub(super) floors: Floors,
    /// Since when the map has had their regions. One that was taken out and added again begins
    /// with a new membership.
    floors_since: BTreeMap<u64, u64>,
}

impl RegionRecord {
    /// Of a store that holds nothing. `is_first`: its region begins with it, and so do all regions
    /// if it is of the first map. Otherwise it has to learn what is over.
    pub(crate) fn of(config: &RegionConfig, is_first: bool) -> Self {
        let since = config.member(config.own).map_or(1, |member| member.since);
        Self {
            region: config.own,
            epoch: config.epoch,
            since,
            digest: config.digest(HashKey::new([0; 16])),
            is_informed: is_first && since == 1,
            floors: Floors::new(),
            floors_since: BTreeMap::new(),
        }
    }

    /// The same with floors, all of them if `is_informed`.
    pub(super) fn with_floors(
        &self,
        config: &RegionConfig,
        floors: Floors,
        is_informed: bool,
    ) -> Self {
        let since = |region: &u64| Some((*region, config.member(*region)?.since));
        let floors_since: BTreeMap<u64, u64> = floors.keys().filter_map(since).collect();
        let mut floors = floors;
        floors.retain(|region, _| floors_since.contains_key(region));
        Self { is_informed, floors, floors_since, ..self.clone() }
    }

    /// Those of its floors that hold for the regions of a map.
    fn floors_in(&self, config: &RegionConfig) -> Floors {
        let holds = |region: &u64, lineage| {
            config.member(*region).is_some_and(|member| {
                let is_same = self.floors_since.get(region) == Some(&member.since);
                // Who names another cluster in the map has renamed it; the name keeps out the rest.
                is_same && (!member.lineage.is_named() || member.lineage == lineage)
            })
        };
        let mut floors = self.floors.clone();
        floors.retain(|region, stamp| holds(region, stamp.lineage));
        floors
    }

    pub(crate) fn change(&self) -> Change {
        let mut out = BytesMut::with_capacity(HEAD_BYTES + 4 + 40 * self.floors.len());
        out.put_u8(VERSION);
        out.put_u8(u8::from(self.is_informed));
        out.put_bytes(0, 6);
        for part in [self.region, self.epoch, self.since, self.digest] {
            out.put_u64_le(part);
        }
        put_floors(&mut out, &self.floors);
        self.floors_since.values().for_each(|since| out.put_u64_le(*since));
        Change { key: Bytes::from_static(KEY), record: Some(out.freeze()) }
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        if bytes.len() < HEAD_BYTES {
            return Err(DecodeError::Truncated);
        }
        bytes.advance(1);
        let is_informed = bytes.get_u8();
        if is_informed > 1 || bytes.split_to(6)[..] != [0; 6] {
            return Err(DecodeError::Invalid("reserved field"));
        }
        let (region, epoch, since, digest) =
            (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le());
        let floors = take_floors(&mut bytes)?;
        if bytes.len() < 8 * floors.len() {
            return Err(DecodeError::Truncated);
        }
        let floors_since = floors.keys().map(|region| (*region, bytes.get_u64_le())).collect();
        codec::nothing_more(&bytes)?;
        let is_valid =
            region > 0 && (1..=epoch).contains(&since) && epoch <= RegionConfig::MAX_EPOCH;
        if !is_valid {
            return Err(DecodeError::Invalid("epoch of a map"));
        }
        let is_informed = is_informed == 1;
        Ok(Self { region, epoch, since, digest, is_informed, floors, floors_since })
    }
}

/// Checks the record of a store that has run before against the configuration. Returns the record
/// that it is to have.
pub(crate) fn check(
    found: Option<&RegionRecord>,
    config: Option<&RegionConfig>,
) -> Result<Option<RegionRecord>, MapError> {
    let Some(config) = config else {
        return match found {
            Some(found) => Err(MapError::Missing { region: found.region }),
            None => Ok(None),
        };
    };
    let wanted = RegionRecord::of(config, true);
    let (region, configured) = (wanted.region, wanted.epoch);
    let Some(found) = found else {
        // Its tombstones were collected without the other regions, which had none of its values.
        if wanted.since > 1 {
            return Err(MapError::Evicted { region, since: wanted.since, found: 0 });
        }
        return Ok(Some(wanted));
    };
    if found.region != region {
        return Err(MapError::OtherRegion { found: found.region, configured: region });
    }
    if found.epoch > configured {
        return Err(MapError::Earlier { found: found.epoch, configured });
    }
    if found.epoch < wanted.since {
        return Err(MapError::Evicted { region, since: wanted.since, found: found.epoch });
    }
    if found.epoch == configured && found.digest != wanted.digest {
        return Err(MapError::Different { epoch: configured });
    }
    Ok(Some(wanted.with_floors(config, found.floors_in(config), found.is_informed)))
}

/// The record that a store gets when it is cleared. `found`: its own, where it could be read.
///
/// # Errors
/// As [`check`]. A store without a readable record that is not empty may be of a region that was
/// taken out.
pub(crate) fn check_lost(
    found: Option<&RegionRecord>,
    is_empty: bool,
    config: Option<&RegionConfig>,
) -> Result<Option<RegionRecord>, MapError> {
    if found.is_some() || !is_empty {
        check(found, config)?;
    }
    Ok(config.map(|config| RegionRecord::of(config, false)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{Lineage, Stamp};

    #[test]
    fn the_record_has_golden_bytes_and_odd_ones_are_refused() {
        let stamp = Stamp { lineage: Lineage::new(7), epoch: 8, branch: 9 };
        let record = RegionRecord {
            region: 2,
            epoch: 5,
            since: 3,
            digest: 6,
            is_informed: true,
            floors: Floors::from([(4, stamp)]),
            floors_since: BTreeMap::from([(4, 1)]),
        };
        let bytes = record.change().record.unwrap();
        let mut golden = [0; 84];
        (golden[0], golden[1], golden[8], golden[16], golden[24]) = (1, 1, 2, 5, 3);
        (golden[32], golden[40], golden[44], golden[52]) = (6, 1, 4, 7);
        (golden[60], golden[68], golden[76]) = (8, 9, 1);
        assert_eq!(bytes[..], golden);
        assert_eq!(RegionRecord::decode(bytes.clone()), Ok(record));
        for len in 0..bytes.len() {
            assert!(RegionRecord::decode(bytes.slice(..len)).is_err());
        }
        let odd = [(0, 2), (1, 2), (2, 1), (8, 0), (24, 0), (24, 6), (23, 0x40), (40, 2)];
        for (at, byte) in odd {
            let mut bytes = golden;
            bytes[at] = byte;
            assert!(RegionRecord::decode(Bytes::copy_from_slice(&bytes)).is_err(), "{at} {byte}");
        }
    }
}
