//! What a node keeps of its region, so that a restart cannot forget that it is part of one.
//!
//! The record, version 1, little-endian: version u8, reserved 7 bytes, region u64, epoch of the map
//! u64, epoch since which the map has the region u64.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::RegionConfig;
use crate::store::Change;
use crate::version::codec::DecodeError;

const VERSION: u8 = 1;
const BYTES: usize = 32;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionRecord {
    region: u64,
    epoch: u64,
    since: u64,
}

impl RegionRecord {
    pub(crate) fn of(config: &RegionConfig) -> Self {
        let since = config.member(config.own).map_or(1, |member| member.since);
        Self { region: config.own, epoch: config.epoch, since }
    }

    pub(crate) fn change(self) -> Change {
        let mut out = BytesMut::with_capacity(BYTES);
        out.put_u64_le(u64::from(VERSION));
        out.put_u64_le(self.region);
        out.put_u64_le(self.epoch);
        out.put_u64_le(self.since);
        Change { key: Bytes::from_static(KEY), record: Some(out.freeze()) }
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        if bytes.len() != BYTES {
            return Err(DecodeError::Truncated);
        }
        if bytes.get_u64_le() != u64::from(VERSION) {
            return Err(DecodeError::Invalid("reserved field"));
        }
        let record = Self {
            region: bytes.get_u64_le(),
            epoch: bytes.get_u64_le(),
            since: bytes.get_u64_le(),
        };
        let is_valid = record.region > 0
            && (1..=record.epoch).contains(&record.since)
            && record.epoch <= RegionConfig::MAX_EPOCH;
        if is_valid { Ok(record) } else { Err(DecodeError::Invalid("epoch of a map")) }
    }
}

/// Checks the record of a store that has run before against the configuration. Returns the record
/// to be written, if it is another one.
pub(crate) fn check(
    found: Option<RegionRecord>,
    config: Option<&RegionConfig>,
) -> Result<Option<RegionRecord>, MapError> {
    let Some(config) = config else {
        return match found {
            Some(found) => Err(MapError::Missing { region: found.region }),
            None => Ok(None),
        };
    };
    let wanted = RegionRecord::of(config);
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
    Ok((found != wanted).then_some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_has_golden_bytes_and_odd_ones_are_refused() {
        let record = RegionRecord { region: 2, epoch: 5, since: 3 };
        let bytes = record.change().record.unwrap();
        let mut golden = [0; 32];
        (golden[0], golden[8], golden[16], golden[24]) = (1, 2, 5, 3);
        assert_eq!(bytes[..], golden);
        assert_eq!(RegionRecord::decode(bytes.clone()), Ok(record));
        for len in 0..bytes.len() {
            assert!(RegionRecord::decode(bytes.slice(..len)).is_err());
        }
        for (at, byte) in [(0, 2), (1, 1), (8, 0), (24, 0), (24, 6), (23, 0x40)] {
            let mut bytes = golden;
            bytes[at] = byte;
            assert!(RegionRecord::decode(Bytes::copy_from_slice(&bytes)).is_err(), "{at} {byte}");
        }
    }
}
