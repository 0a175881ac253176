//! The shard map: who holds what. Group 0 replicates it; every node holds a copy, clients cache it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use voussoir_ring::range::RangeMap;

use super::place::{self, MAX_PLACE_BYTES};

/// Shards of one map, at most.
pub const MAX_SHARDS: usize = 4096;
/// Nodes of one map, at most: three that vote in group 0 and the learners that raft allows.
pub const MAX_NODES: usize = 19;
/// Replicas of one shard, at most.
pub const MAX_REPLICAS: usize = 5;

/// Bytes of the map as JSON, and of every other answer of a node, at most. Each shard has two
/// places; keys are rarely made of characters that JSON escapes.
pub const MAX_MAP_BYTES: usize = 16 << 20;
const _: () = assert!(MAX_SHARDS * (2 * MAX_PLACE_BYTES + 1024) < MAX_MAP_BYTES);

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub peers: SocketAddr,
    pub http: SocketAddr,
}

/// One shard: a range of places, and the raft group of the same number that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// The first place.
    pub start: String,
    /// The first place behind it; `None` for the last shard.
    pub end: Option<String>,
    /// Raised each time the range changes. A request that names another epoch is not applied.
    pub epoch: u64,
    /// Who is to hold it, the preferred leader first. The shard's leader makes it so.
    pub nodes: Vec<u64>,
    /// The voters that its raft group began with.
    pub founders: Vec<u64>,
    /// Nodes that have given it away and deleted their replica. Invariant: none of `nodes`, for
    /// good. A replica that came back empty could vote twice in one term.
    pub left: BTreeSet<u64>,
    /// The shard that it was split from; `None` for a first one. Kept for good: a shard with an
    /// origin opens with the pairs that were sealed there, and never empty.
    pub origin: Option<u64>,
    /// The shard has said that it is open: each of its voters then was begun, or is a minority.
    pub is_open: bool,
    /// The part from this place on is going to another shard.
    pub split: Option<Split>,
}

/// A split that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    pub at: String,
    pub to: u64,
    /// It is to be taken back, unless the part was sealed before its shard has heard of that.
    pub is_aborted: bool,
}

impl ShardInfo {
    /// The shard that it is being filled from. It owns nothing yet.
    pub fn fills_from(&self) -> Option<u64> {
        self.origin.filter(|_| !self.is_open)
    }
}

/// The map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMap {
    /// Raised by each change; 0 before the first.
    pub version: u64,
    pub nodes: BTreeMap<u64, Address>,
    pub shards: BTreeMap<u64, ShardInfo>,
    /// The greatest number that a shard ever had: none is given twice.
    pub last_shard: u64,
}

/// A change of the map. Each names what it expects, so that one that is sent again, or comes late,
/// is refused or changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The first map: `hashes` shards of hashes and one of ordered keys, each on `replicas` nodes.
    Begin { nodes: BTreeMap<u64, Address>, hashes: u32, replicas: usize },
    /// A node that may hold shards from now on, or another address of one that no shard names.
    AddNode { id: u64, address: Address },
    /// `new` is to take the place of `old` in a shard.
    Move { shard: u64, old: u64, new: u64 },
    /// The part of a shard from `at` on becomes a shard of its own, on `nodes`.
    Split { shard: u64, epoch: u64, at: String, nodes: Vec<u64> },
    /// The split that made this shard is to be taken back.
    Abort { shard: u64 },
    /// From a leader: a shard holds all that it was to be filled with, and serves it.
    Opened { shard: u64 },
    /// From a leader: nothing was sealed for a shard, nor will be. The map forgets it.
    Aborted { shard: u64 },
}

impl Change {
    /// Whether it says what a shard's log holds. Nobody is believed that: whoever proposes it asks
    /// the shard.
    pub fn is_report(&self) -> bool {
        matches!(self, Self::Opened { .. } | Self::Aborted { .. })
    }

    /// Whether an operator may ask for it.
    pub fn is_for_operators(&self) -> bool {
        !self.is_report() && !matches!(self, Self::Begin { .. })
    }
}

/// Why a change was refused; the map is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    #[error("there is a map already")]
    Begun,
    #[error("the map has no such shard")]
    NoShard,
    #[error("the map has no such node")]
    NoNode,
    #[error("the node has another address")]
    OtherAddress,
    #[error("the shard is not held by the nodes that the change expects")]
    OtherNodes,
    #[error("the node has held the shard before: a replica never comes back to a node")]
    CameBack,
    #[error("the shard's range is not the one that the change expects")]
    OtherEpoch,
    #[error("the shard is being split or filled, or is not open yet")]
    InProgress,
    #[error("the split is done: the shard is open")]
    IsOpen,
    #[error("the shard cannot be split there")]
    BadPlace,
    #[error("a limit of the map is reached")]
    TooMany,
}

impl ShardMap {
    /// Applies a change, the same on every node. One that was applied before changes nothing.
    ///
    /// # Errors
    /// [`Refused`]; the map is as it was.
    pub fn apply(&mut self, change: Change) -> Result<(), Refused> {
        let is_new = match change {
            Change::Begin { nodes, hashes, replicas } => self.begin(nodes, hashes, replicas)?,
            Change::AddNode { id, address } => self.add_node(id, address)?,
            Change::Move { shard, old, new } => self.exchange(shard, old, new)?,
            Change::Split { shard, epoch, at, nodes } => self.split(shard, epoch, at, nodes)?,
            Change::Abort { shard } => self.abort(shard)?,
            Change::Opened { shard } => self.opened(shard)?,
            Change::Aborted { shard } => self.aborted(shard)?,
        };
        self.version += u64::from(is_new);
        Ok(())
    }

    fn begin(
        &mut self,
        nodes: BTreeMap<u64, Address>,
        hashes: u32,
        replicas: usize,
    ) -> Result<bool, Refused> {
        if self.version > 0 {
            return Err(Refused::Begun);
        }
        if nodes.is_empty() || nodes.len() > MAX_NODES || hashes as usize >= MAX_SHARDS {
            return Err(Refused::TooMany);
        }
        let starts = place::first_starts(hashes);
        let ids: Vec<u64> = nodes.keys().copied().collect();
        let replicas = replicas.clamp(1, MAX_REPLICAS.min(ids.len()));
        let ends = starts.iter().skip(1).cloned().map(Some).chain([None]);
        for (nth, (start, end)) in starts.iter().cloned().zip(ends).enumerate() {
            // Each node is the preferred leader of as many shards as any other, within one.
            let held: Vec<u64> =
                (0..replicas).map(|replica| ids[(nth + replica) % ids.len()]).collect();
            let info = ShardInfo {
                start,
                end,
                epoch: 1,
                founders: held.clone(),
                nodes: held,
                left: BTreeSet::new(),
                origin: None,
                is_open: false,
                split: None,
            };
            self.shards.insert(nth as u64 + 1, info);
        }
        self.last_shard = starts.len() as u64;
        self.nodes = nodes;
        Ok(true)
    }

    fn add_node(&mut self, id: u64, address: Address) -> Result<bool, Refused> {
        let is_named = |info: &ShardInfo| {
            [&info.nodes, &info.founders].iter().any(|nodes| nodes.contains(&id))
                || info.left.contains(&id)
        };
        match self.nodes.get(&id) {
            Some(known) if *known == address => return Ok(false),
            Some(_) if self.shards.values().any(is_named) => return Err(Refused::OtherAddress),
            None if self.nodes.len() >= MAX_NODES => return Err(Refused::TooMany),
            Some(_) | None => {}
        }
        self.nodes.insert(id, address);
        Ok(true)
    }

    /// A shard that is not open has no group that could exchange its members, and one of its
    /// founders that is moved away would never begin.
    fn exchange(&mut self, shard: u64, old: u64, new: u64) -> Result<bool, Refused> {
        if !self.nodes.contains_key(&new) {
            return Err(Refused::NoNode);
        }
        let info = self.shards.get_mut(&shard).ok_or(Refused::NoShard)?;
        if info.left.contains(&new) {
            return Err(Refused::CameBack);
        }
        if info.nodes.contains(&new) && info.left.contains(&old) {
            return Ok(false);
        }
        if !info.is_open {
            return Err(Refused::InProgress);
        }
        let at = info.nodes.iter().position(|node| *node == old).ok_or(Refused::OtherNodes)?;
        if info.nodes.contains(&new) {
            return Err(Refused::OtherNodes);
        }
        info.nodes[at] = new;
        info.left.insert(old);
        Ok(true)
    }

    fn split(
        &mut self,
        shard: u64,
        epoch: u64,
        at: String,
        nodes: Vec<u64>,
    ) -> Result<bool, Refused> {
        let distinct: BTreeSet<&u64> = nodes.iter().collect();
        if nodes.is_empty() || distinct.len() != nodes.len() || nodes.len() > MAX_REPLICAS {
            return Err(Refused::OtherNodes);
        }
        if !nodes.iter().all(|node| self.nodes.contains_key(node)) {
            return Err(Refused::NoNode);
        }
        if self.shards.len() >= MAX_SHARDS {
            return Err(Refused::TooMany);
        }
        let to = self.last_shard + 1;
        let info = self.shards.get_mut(&shard).ok_or(Refused::NoShard)?;
        if info.epoch != epoch {
            return Err(Refused::OtherEpoch);
        }
        if info.split.is_some() || !info.is_open {
            return Err(Refused::InProgress);
        }
        let is_inside = at > info.start && info.end.as_ref().is_none_or(|end| at < *end);
        if !is_inside || at.len() > MAX_PLACE_BYTES {
            return Err(Refused::BadPlace);
        }
        let right = ShardInfo {
            start: at.clone(),
            end: info.end.clone(),
            epoch: epoch + 1,
            founders: nodes.clone(),
            nodes,
            left: BTreeSet::new(),
            origin: Some(shard),
            is_open: false,
            split: None,
        };
        info.split = Some(Split { at, to, is_aborted: false });
        self.shards.insert(to, right);
        self.last_shard = to;
        Ok(true)
    }

    /// The split that fills a shard, while it is under way.
    fn split_of(&mut self, shard: u64) -> Result<&mut Option<Split>, Refused> {
        let info = self.shards.get(&shard).ok_or(Refused::NoShard)?;
        let from = info.fills_from().ok_or(Refused::IsOpen)?;
        let source = self.shards.get_mut(&from).ok_or(Refused::NoShard)?;
        Ok(&mut source.split)
    }

    fn abort(&mut self, shard: u64) -> Result<bool, Refused> {
        match self.split_of(shard)? {
            Some(split) => Ok(!std::mem::replace(&mut split.is_aborted, true)),
            None => Err(Refused::NoShard),
        }
    }

    fn aborted(&mut self, shard: u64) -> Result<bool, Refused> {
        if !self.shards.contains_key(&shard) && shard <= self.last_shard {
            return Ok(false);
        }
        let split = self.split_of(shard)?;
        split.take_if(|split| split.is_aborted).ok_or(Refused::InProgress)?;
        self.shards.remove(&shard);
        Ok(true)
    }

    fn opened(&mut self, shard: u64) -> Result<bool, Refused> {
        let info = self.shards.get_mut(&shard).ok_or(Refused::NoShard)?;
        let from = info.fills_from();
        let is_new = !std::mem::replace(&mut info.is_open, true);
        let (start, epoch) = (info.start.clone(), info.epoch);
        // Both were written by one change.
        if let Some(source) = from.and_then(|from| self.shards.get_mut(&from)) {
            (source.end, source.epoch, source.split) = (Some(start), epoch, None);
        }
        Ok(is_new)
    }
}

/// A map, ready for look-ups.
#[derive(Debug)]
pub struct Routes {
    pub map: ShardMap,
    /// The shards that own something, in the order of their places.
    ranges: Option<RangeMap>,
    /// The shard of each range, by the range's number.
    shards: BTreeMap<u64, u64>,
}

impl Routes {
    pub fn new(map: ShardMap) -> Self {
        let owning = map.shards.iter().filter(|(_, info)| info.fills_from().is_none());
        let mut owning: Vec<(&u64, &ShardInfo)> = owning.collect();
        owning.sort_by(|(_, one), (_, other)| one.start.cmp(&other.start));
        let ranges = ranges(map.version, &owning);
        let numbers = ranges.iter().flat_map(RangeMap::ranges).map(|range| range.id);
        let shards = numbers.zip(owning.iter().map(|(id, _)| **id)).collect();
        Self { map, ranges, shards }
    }

    /// The shard that owns a place. `None` before there is a map.
    pub fn find(&self, place: &str) -> Option<(u64, &ShardInfo)> {
        let range = self.ranges.as_ref()?.range(place.as_bytes());
        let shard = self.shard_of(range.id)?;
        Some((shard, self.map.shards.get(&shard)?))
    }

    /// The ranges, for counting load.
    pub fn ranges(&self) -> Option<&RangeMap> {
        self.ranges.as_ref()
    }

    /// The shard that a range of [`ranges`](Self::ranges) belongs to.
    pub fn shard_of(&self, range: u64) -> Option<u64> {
        self.shards.get(&range).copied()
    }
}

fn ranges(version: u64, owning: &[(&u64, &ShardInfo)]) -> Option<RangeMap> {
    let (_, first) = owning.first()?;
    let mut ranges = RangeMap::new(version, &first.nodes).ok()?;
    for (_, info) in &owning[1..] {
        ranges = ranges.split(info.start.as_bytes()).ok()?;
        let right = ranges.range(info.start.as_bytes()).id;
        ranges = ranges.assign(right, &info.nodes).ok()?;
    }
    Some(ranges)
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
