//! Range partitioning: keys in order, cut into ranges that are split, merged and moved.

use std::sync::Arc;

use crate::error::RangeError;
use crate::owners::{Degraded, Owners};
use crate::partitioner::Partitioner;

/// The longest boundary, in bytes.
pub const MAX_KEY_BYTES: usize = 4096;

/// The most ranges of one map.
pub const MAX_RANGES: usize = 1 << 20;

/// One range: all keys from `start` up to the start of the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyRange {
    /// A number that no other range of this map's history has.
    pub id: u64,
    /// The first key, inclusive; empty for the first range.
    pub start: Arc<[u8]>,
    /// Who holds it, the preferred node first.
    pub owners: Owners,
}

/// An immutable map of the whole keyspace to ranges. Every change makes a new map with the next
/// epoch; the ranges always cover every key exactly once.
///
/// Keys are compared as bytes, so neighbouring keys stay together and scans stay cheap. What a
/// split or a merge costs is a copy of the map (a pointer and a list for each range).
///
/// # Example
/// ```
/// use voussoir_ring::Partitioner;
/// use voussoir_ring::range::RangeMap;
/// let map = RangeMap::new(1, &[10, 11])?;
/// let map = map.split(b"m")?;
/// let right = map.range(b"z").id;
/// let map = map.assign(right, &[12, 10])?;
/// assert_eq!((map.owner(b"a"), map.owner(b"m"), map.epoch()), (10, 12, 3));
/// # Ok::<(), voussoir_ring::RangeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeMap {
    epoch: u64,
    next_id: u64,
    /// The first eight bytes of each start, big-endian: most comparisons need no more.
    heads: Vec<u64>,
    ranges: Vec<KeyRange>,
}

fn head(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}

fn owners(ids: &[u64]) -> Result<Owners, RangeError> {
    Owners::of(ids).filter(|owners| !owners.is_empty()).ok_or(RangeError::BadOwners)
}

impl RangeMap {
    /// One range that holds every key.
    ///
    /// # Errors
    /// [`RangeError::BadOwners`] for no owner, one named twice, or more than
    /// [`MAX_REPLICAS`](crate::MAX_REPLICAS).
    pub fn new(epoch: u64, ids: &[u64]) -> Result<Self, RangeError> {
        let first = KeyRange { id: 0, start: Arc::from([]), owners: owners(ids)? };
        Ok(Self { epoch, next_id: 1, heads: vec![0], ranges: vec![first] })
    }

    /// The number of this version.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// All ranges in the order of their keys.
    pub fn ranges(&self) -> &[KeyRange] {
        &self.ranges
    }

    /// The range that a key belongs to.
    pub fn range(&self, key: &[u8]) -> &KeyRange {
        &self.ranges[self.at(key)]
    }

    pub(crate) fn at(&self, key: &[u8]) -> usize {
        let head = head(key);
        let below = self.heads.partition_point(|&start| start < head);
        // A search here too: keys often share their first bytes (`customer/000017`).
        let tied = self.heads[below..].partition_point(|&start| start == head);
        let after = self.ranges[below..below + tied].partition_point(|range| *range.start <= *key);
        (below + after).saturating_sub(1)
    }

    /// Cuts the range that `key` belongs to, so that the right part starts at `key`. Both parts
    /// keep the owners and get new ids.
    ///
    /// # Errors
    /// [`RangeError::SplitAtStart`], [`RangeError::KeyTooLong`], [`RangeError::TooManyRanges`],
    /// [`RangeError::EpochExhausted`].
    pub fn split(&self, key: &[u8]) -> Result<Self, RangeError> {
        if key.len() > MAX_KEY_BYTES {
            return Err(RangeError::KeyTooLong(key.len()));
        }
        if self.ranges.len() >= MAX_RANGES {
            return Err(RangeError::TooManyRanges);
        }
        let at = self.at(key);
        if *self.ranges[at].start == *key {
            return Err(RangeError::SplitAtStart(self.ranges[at].id));
        }
        let mut map = self.next()?;
        let right = KeyRange { id: map.fresh_id(), start: key.into(), ..map.ranges[at].clone() };
        map.ranges[at].id = map.fresh_id();
        map.ranges.insert(at + 1, right);
        map.heads.insert(at + 1, head(key));
        Ok(map)
    }

    /// Joins a range and the one to its right, which must have the same owners in the same order.
    ///
    /// # Errors
    /// [`RangeError::UnknownRange`], [`RangeError::NoNeighbour`], [`RangeError::OwnersDiffer`],
    /// [`RangeError::EpochExhausted`].
    pub fn merge(&self, left: u64) -> Result<Self, RangeError> {
        let at = self.position(left)?;
        let right = self.ranges.get(at + 1).ok_or(RangeError::NoNeighbour(left))?;
        if right.owners != self.ranges[at].owners {
            return Err(RangeError::OwnersDiffer { left, right: right.id });
        }
        let mut map = self.next()?;
        map.ranges.remove(at + 1);
        map.heads.remove(at + 1);
        map.ranges[at].id = map.fresh_id();
        Ok(map)
    }

    /// Gives a range to other nodes.
    ///
    /// # Errors
    /// [`RangeError::UnknownRange`], [`RangeError::BadOwners`], [`RangeError::EpochExhausted`].
    pub fn assign(&self, id: u64, ids: &[u64]) -> Result<Self, RangeError> {
        let at = self.position(id)?;
        let owners = owners(ids)?;
        let mut map = self.next()?;
        map.ranges[at].owners = owners;
        Ok(map)
    }

    fn position(&self, id: u64) -> Result<usize, RangeError> {
        let found = self.ranges.iter().position(|range| range.id == id);
        found.ok_or(RangeError::UnknownRange(id))
    }

    fn next(&self) -> Result<Self, RangeError> {
        let epoch = self.epoch.checked_add(1).ok_or(RangeError::EpochExhausted)?;
        Ok(Self { epoch, ..self.clone() })
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }
}

impl Partitioner for RangeMap {
    fn owner(&self, key: &[u8]) -> u64 {
        self.range(key).owners.first().copied().unwrap_or_default()
    }

    /// The first `n` owners of the key's range.
    fn owners(&self, key: &[u8], n: usize) -> Owners {
        let held = &self.range(key).owners;
        let mut owners = Owners::empty();
        for &id in held.iter().take(n) {
            owners.push(id);
        }
        if owners.len() < n {
            owners.warn(Degraded::FewerNodes { wanted: n, found: owners.len() });
        }
        owners
    }
}
