//! What can be tuned of a node.

use std::time::Duration;

use crate::ConfigError;
use crate::membership::{Levels, Lineage, sources_of};
use crate::merkle::HashKey;
use crate::region::RegionConfig;
use crate::table::Level;

/// Configuration of a [`Node`](super::Node).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeConfig {
    /// The replicas when the cluster is set up, this node included: 1 to 31 ids, each once. The
    /// same at all nodes, tables and registers. Once they were changed
    /// ([`Node::reconfigure`](super::Node::reconfigure)) each node keeps the latest membership in
    /// its store, and this list only says whom a node asks that has lost it, or joins: one of them
    /// must still run.
    pub replicas: Vec<u64>,
    /// The name of the cluster: [`Lineage::draw`] it once when the cluster is set up, and write it
    /// into the configuration of every node. A node keeps it in its store, hears no node and no
    /// client of another cluster, and does not start on a store of another one. Default
    /// [`Lineage::UNNAMED`]: the name that the store has; a node that joins or has lost its store
    /// takes the one that its replicas agree on.
    pub lineage: Lineage,
    /// The lowest level that any table writes with. A lost replica is rebuilt from N - W + 1
    /// others, so that several replicas need W of 2 or more. Default [`Level::Quorum`].
    pub write: Level,
    /// The lowest level that any table reads with that requires more than
    /// [`Guarantee::Eventual`](crate::table::Guarantee::Eventual). A change of the replicas ends
    /// once N - R + 1 old replicas have heard of it, so that no read of the old epoch is left: with
    /// [`Level::One`] all of them, and a dead replica can then be neither replaced nor removed.
    /// Default [`Level::Quorum`].
    pub read: Level,
    /// The longest that an operation of any table or register takes. A lost replica waits so long
    /// before it is rebuilt. From 1 ms to 1 hour. Default 1 s.
    pub timeout: Duration,
    /// Requests that wait for the node. Beyond it they are answered "busy", and nothing is done.
    /// From 64 to 1,000,000. Default 4,096.
    pub max_requests: usize,
    /// How much is written to the store at once, in bytes: a batch is as large as what has arrived
    /// while the one before it was written, up to this. From 64 KiB to 64 MiB. Default 4 MiB.
    pub max_batch_bytes: usize,
    /// Keys that another replica has missed, all replicas together. Beyond it they are left to
    /// read repair. From 0 to 10,000,000. Default 100,000.
    pub max_hints: usize,
    /// How often maintenance looks whether there is something to do. From 1 ms to 1 day. Default
    /// 1 s.
    pub maintain_every: Duration,
    /// How fast a node is rebuilt at most, in bytes per second. It also rests for as long as it
    /// works, so that what shares its processors and its disk goes on. From 64 KiB/s. Default
    /// 64 MiB/s.
    pub rebuild_bytes_per_second: u64,
    /// How often the node compares itself with each other replica and repairs what differs, on the
    /// average. None: only when [`Node::repair`](super::Node::repair) is called. From 1 ms to 30
    /// days. Default 1 minute.
    pub repair_every: Option<Duration>,
    /// How much is transferred to compare and to repair, in bytes per second. From 64 KiB/s.
    /// Default 8 MiB/s.
    pub repair_bytes_per_second: u64,
    /// Hides which keys have which digests from clients that would make two states of one digest.
    /// The same at all nodes. Set it to a secret where clients are not trusted. Default: zeros.
    pub digest_key: HashKey,
    /// How often tombstones are collected, on the average: all of them, at most at the rate of
    /// `repair_bytes_per_second`. None: never. From 1 ms to 30 days. Default 10 minutes.
    pub collect_every: Option<Duration>,
    /// The regions, if the replicas are those of one of several: see [`region`](crate::region).
    /// Once set, it is kept in the store, and a later start without it is refused. Default: none.
    pub regions: Option<RegionConfig>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            replicas: Vec::new(),
            lineage: Lineage::UNNAMED,
            write: Level::Quorum,
            read: Level::Quorum,
            timeout: Duration::from_secs(1),
            max_requests: 4_096,
            max_batch_bytes: 4 << 20,
            max_hints: 100_000,
            maintain_every: Duration::from_secs(1),
            rebuild_bytes_per_second: 64 << 20,
            repair_every: Some(Duration::from_secs(60)),
            repair_bytes_per_second: 8 << 20,
            digest_key: HashKey::new([0; 16]),
            collect_every: Some(Duration::from_secs(600)),
            regions: None,
        }
    }
}

impl NodeConfig {
    /// The default with these replicas.
    pub fn with_replicas(replicas: impl IntoIterator<Item = u64>) -> Self {
        Self { replicas: replicas.into_iter().collect(), ..Self::default() }
    }

    pub(super) fn levels(&self) -> Levels {
        Levels { read: self.read, write: self.write }
    }

    fn validate_with(&self, regions: &RegionConfig) -> Result<(), ConfigError> {
        regions.validate()?;
        if regions.timeout < self.timeout {
            let rule = "must have a `timeout` of at least that of the node";
            return Err(ConfigError { field: "regions", rule });
        }
        Ok(())
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (ids, ms) = (&self.replicas, Duration::from_millis(1));
        let is_repeated = (1..ids.len()).any(|at| ids[..at].contains(&ids[at]));
        let (hour, day) = (Duration::from_secs(3_600), Duration::from_secs(86_400));
        let is_in = |time: Duration, max: Duration| (ms..=max).contains(&time);
        let rules = [
            (
                "replicas",
                (1..=31).contains(&ids.len()) && !is_repeated,
                "must be 1 to 31 ids, each once",
            ),
            (
                "write",
                self.write.count(ids.len()) <= ids.len(),
                "must not ask for more than all `replicas`",
            ),
            (
                "write",
                ids.len() == 1 || sources_of(ids.len(), self.write) < ids.len(),
                "must be at least two of several `replicas`: a lost one could never be rebuilt",
            ),
            (
                "read",
                self.read.count(ids.len()) <= ids.len(),
                "must not ask for more than all `replicas`",
            ),
            ("timeout", is_in(self.timeout, hour), "must be from 1 ms to 1 hour"),
            (
                "max_requests",
                (64..=1_000_000).contains(&self.max_requests),
                "must be from 64 to 1,000,000",
            ),
            (
                "max_batch_bytes",
                (64 << 10..=64 << 20).contains(&self.max_batch_bytes),
                "must be from 64 KiB to 64 MiB",
            ),
            ("max_hints", self.max_hints <= 10_000_000, "must be at most 10,000,000"),
            ("maintain_every", is_in(self.maintain_every, day), "must be from 1 ms to 1 day"),
            (
                "rebuild_bytes_per_second",
                self.rebuild_bytes_per_second >= 64 << 10,
                "must be at least 64 KiB",
            ),
            (
                "repair_every",
                self.repair_every.is_none_or(|every| is_in(every, day * 30)),
                "must be from 1 ms to 30 days",
            ),
            (
                "repair_bytes_per_second",
                self.repair_bytes_per_second >= 64 << 10,
                "must be at least 64 KiB",
            ),
            (
                "collect_every",
                self.collect_every.is_none_or(|every| is_in(every, day * 30)),
                "must be from 1 ms to 30 days",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => self.regions.as_ref().map_or(Ok(()), |regions| self.validate_with(regions)),
        }
    }
}
