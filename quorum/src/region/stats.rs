//! What a node knows of another region.

use std::time::Duration;

use super::Outbox;

/// Whether a region is heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerState {
    /// Nothing was heard of it since the start.
    #[default]
    Unknown,
    /// It answered last.
    Reached,
    /// It did not answer last.
    Away,
    /// Its nodes have another map of the regions: one of the two is being restarted, or is to be.
    ///
    /// With the epoch of the own map: it has other regions, or the nodes have other keys of digests
    /// ([`NodeConfig::digest_key`](crate::NodeConfig::digest_key)).
    OtherMap {
        /// The epoch of their map.
        epoch: u64,
        /// Whether their map has the own region. If not, and theirs is the later one, the own
        /// region was taken out: it is heard by nobody.
        is_member: bool,
    },
    /// The node that was asked last is of another region than the map says.
    OtherRegion {
        /// Its region.
        region: u64,
    },
    /// A membership that was over when tombstones were last collected, or of another cluster than
    /// the region's: nothing is exchanged with its nodes, which may hold what was deleted since.
    Over {
        /// Whether it is that of this node, which was removed from its region and does not know it.
        /// If not, the node that was asked last was.
        is_own: bool,
    },
    /// A node id is a replica in both regions: their writes would have the same names. Nothing is
    /// exchanged.
    SharedNodes,
}

/// A node's view of another region. Sum up what all nodes of a region say: each ships what it has
/// given its dots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionStats {
    /// The other region.
    pub region: u64,
    /// Whether it is heard.
    pub state: PeerState,
    /// For how long it may lack a write of this node: the age of the oldest one that it has not
    /// acknowledged. Zero: it lacks none.
    pub lag: Duration,
    /// Keys that wait to be shipped, or are on their way.
    pub pending_keys: usize,
    /// Whether it may lack writes that no pending key names, until a comparison has ended: after a
    /// start, or because more keys waited than are kept.
    pub needs_comparison: bool,
    /// Keys that it has acknowledged.
    pub shipped_keys: u64,
    /// Bytes of states and comparisons, both directions.
    pub bytes: u64,
    /// Comparisons that were made to the end.
    pub comparisons: u64,
    /// Keys that a comparison has made equal.
    pub repaired_keys: u64,
    /// Keys that were left to a comparison, because more than `max_pending_keys` waited.
    pub dropped_keys: u64,
    /// How often a key was refused, by it or by the own region, for together the values are too
    /// long. The regions differ in such a key until a client has merged its siblings.
    pub refused_keys: u64,
}

impl RegionStats {
    pub(super) fn of(region: u64) -> Self {
        Self { region, ..Self::default() }
    }

    pub(super) fn with(self, state: PeerState, outbox: &Outbox, now: u64) -> Self {
        Self {
            state,
            lag: Duration::from_nanos(outbox.lag(now)),
            pending_keys: outbox.pending(),
            needs_comparison: outbox.needs_comparison(),
            dropped_keys: outbox.dropped(),
            refused_keys: self.refused_keys + outbox.refused(),
            ..self
        }
    }
}
