//! Which regions there are, and how they are kept equal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ConfigError;
use crate::membership::Lineage;
use crate::merkle::HashKey;

/// One of the regions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionMember {
    /// Its id, at least 1. A region that was taken out keeps its id when it comes back.
    pub id: u64,
    /// The epoch of the map that has added it: 1 for a region of the first map.
    pub since: u64,
    /// The name of its cluster ([`NodeConfig::lineage`](crate::NodeConfig::lineage)). If it is
    /// named, no node of another cluster is heard for this region: not a copy of its disks either.
    /// Unnamed: any is, until tombstones are first collected.
    pub lineage: Lineage,
    /// Nodes that know who its replicas are; its first replicas do. At least one of them must run
    /// whenever the region is looked for: as long as it was not found, and after each start. They
    /// may change with a restart, in a map of the same epoch. 1 to 31 ids, of no other region.
    pub nodes: Vec<u64>,
}

/// The map of the regions, the same at all nodes but for `own`.
///
/// A changed map has the next epoch and is given to every node with a restart, one node after the
/// other. Nodes of different epochs hear nothing of each other's regions: shipping pauses, and
/// loses nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionConfig {
    /// The region of the node.
    pub own: u64,
    /// The number of this map: 1 for the first one, and one more with each that adds a region or
    /// takes one out. A node refuses to go back. At most 2^62 - 1.
    pub epoch: u64,
    /// All regions, the own one too: 1 to [`RegionConfig::MAX_REGIONS`], each once.
    ///
    /// A region that is added, or comes back after it was taken out, has `since` of this epoch,
    /// and its nodes are begun anew by [`Node::create`](crate::Node::create) on empty stores: what
    /// it held may have been deleted meanwhile. It is filled by comparison.
    pub regions: Vec<RegionMember>,
    /// Keys that wait to be shipped to one region. Beyond it they are left to a comparison. From 1
    /// to 10,000,000. Default 100,000.
    pub max_pending_keys: usize,
    /// Keys that are shipped with one message. From 1 to 1,024. Default 256.
    pub max_batch_keys: usize,
    /// How much is shipped to and compared with one region, in bytes per second, by each node.
    /// From 64 KiB/s. Default 16 MiB/s.
    pub bytes_per_second: u64,
    /// How often a node compares itself with one of each other region, on the average. It finds
    /// what the outbox of a node that is gone has not shipped. From 1 ms to 30 days. Default 1
    /// minute.
    pub compare_every: Duration,
    /// How long a message to another region and its answer take at most. At least the `timeout` of
    /// the nodes, which the receiver needs to reach its quorum. From 1 ms to 1 hour. Default 5 s.
    pub timeout: Duration,
}

impl RegionConfig {
    /// How many regions there may be.
    pub const MAX_REGIONS: usize = 16;
    /// The last epoch of a map.
    pub const MAX_EPOCH: u64 = (1 << 62) - 1;

    /// The first map: regions with the nodes of their replica sets.
    pub fn first(own: u64, regions: impl IntoIterator<Item = (u64, Vec<u64>)>) -> Self {
        let member = |(id, nodes)| RegionMember { id, since: 1, lineage: Lineage::UNNAMED, nodes };
        Self {
            own,
            epoch: 1,
            regions: regions.into_iter().map(member).collect(),
            max_pending_keys: 100_000,
            max_batch_keys: 256,
            bytes_per_second: 16 << 20,
            compare_every: Duration::from_secs(60),
            timeout: Duration::from_secs(5),
        }
    }

    /// The map that follows this one, without a region.
    #[must_use]
    pub fn without(mut self, region: u64) -> Self {
        self.regions.retain(|member| member.id != region);
        Self { epoch: self.epoch + 1, ..self }
    }

    /// The map that follows this one, with a new region, or with one that was taken out.
    #[must_use]
    pub fn with(mut self, region: u64, nodes: impl IntoIterator<Item = u64>) -> Self {
        let epoch = self.epoch + 1;
        let nodes = nodes.into_iter().collect();
        let lineage = Lineage::UNNAMED;
        self.regions.push(RegionMember { id: region, since: epoch, lineage, nodes });
        Self { epoch, ..self }
    }

    /// The map at a node of another region.
    #[must_use]
    pub fn at(self, own: u64) -> Self {
        Self { own, ..self }
    }

    /// The same, with the name of a region's cluster.
    #[must_use]
    pub fn with_lineage(mut self, region: u64, lineage: Lineage) -> Self {
        for member in self.regions.iter_mut().filter(|member| member.id == region) {
            member.lineage = lineage;
        }
        self
    }

    /// Tells two maps of one epoch apart: which regions there are, and since when.
    pub(crate) fn digest(&self, key: HashKey) -> u64 {
        let regions: BTreeMap<u64, u64> =
            self.regions.iter().map(|member| (member.id, member.since)).collect();
        let part = |(id, since): (&u64, &u64)| [id.to_le_bytes(), since.to_le_bytes()].concat();
        key.digest(&regions.iter().flat_map(part).collect::<Vec<u8>>()) as u64
    }

    /// The other regions.
    pub(crate) fn others(&self) -> impl Iterator<Item = &RegionMember> {
        self.regions.iter().filter(|region| region.id != self.own)
    }

    pub(crate) fn member(&self, id: u64) -> Option<&RegionMember> {
        self.regions.iter().find(|region| region.id == id)
    }

    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let ids: BTreeSet<u64> = self.regions.iter().map(|region| region.id).collect();
        let count = self.regions.len();
        let nodes: Vec<u64> = self.regions.iter().flat_map(|region| region.nodes.clone()).collect();
        let once: BTreeSet<u64> = nodes.iter().copied().collect();
        let (ms, hour) = (Duration::from_millis(1), Duration::from_secs(3_600));
        let rules = [
            ("own", ids.contains(&self.own), "must be one of `regions`"),
            ("epoch", (1..=Self::MAX_EPOCH).contains(&self.epoch), "must be from 1 to 2^62 - 1"),
            (
                "regions",
                (1..=Self::MAX_REGIONS).contains(&count) && ids.len() == count && !ids.contains(&0),
                "must be 1 to 16 ids of at least 1, each once",
            ),
            (
                "regions",
                self.regions.iter().all(|region| (1..=self.epoch).contains(&region.since)),
                "must have been added by this epoch or an earlier one",
            ),
            (
                "regions",
                self.regions.iter().all(|region| (1..=31).contains(&region.nodes.len()))
                    && once.len() == nodes.len(),
                "must have 1 to 31 nodes each, every node once",
            ),
            (
                "max_pending_keys",
                (1..=10_000_000).contains(&self.max_pending_keys),
                "must be from 1 to 10,000,000",
            ),
            (
                "max_batch_keys",
                (1..=1_024).contains(&self.max_batch_keys),
                "must be from 1 to 1,024",
            ),
            ("bytes_per_second", self.bytes_per_second >= 64 << 10, "must be at least 64 KiB"),
            (
                "compare_every",
                (ms..=hour * 720).contains(&self.compare_every),
                "must be from 1 ms to 30 days",
            ),
            ("timeout", (ms..=hour).contains(&self.timeout), "must be from 1 ms to 1 hour"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}
