//! What a node has refused because it is of another cluster, or of another past of its own.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::membership::{Lineage, Membership};

/// A node or a client of another cluster, or of another past of the same one: a copy that has gone
/// on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stranger {
    /// The node that answered so. None: it was a request, and requests do not say from whom.
    pub node: Option<u64>,
    /// The name of its cluster.
    pub lineage: Lineage,
}

/// What was refused since the node's start. Anything but zeros is a mistake in a configuration: an
/// address, an id, or the disk of another cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Strangers {
    /// Requests of others. Nothing was done for them.
    pub requests: u64,
    /// Answers of others, and memberships that they told. They count for nothing.
    pub answers: u64,
    /// The last of them.
    pub last: Option<Stranger>,
}

#[derive(Debug, Default)]
pub(super) struct Seen {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: Strangers,
    /// What the nodes last said that this one asks. Invariant: at most
    /// [`Membership::MAX_MEMBERS`] and one more that is to be added.
    nodes: BTreeMap<u64, Lineage>,
}

impl Seen {
    pub(super) fn stats(&self) -> Strangers {
        self.state.lock().all
    }

    /// A request of another cluster has come.
    pub(super) fn request(&self, own: u64, lineage: Lineage) {
        let mut state = self.state.lock();
        state.all.requests += 1;
        state.all.last = Some(Stranger { node: None, lineage });
        warn(own, state.all.requests, "a request", lineage);
    }

    /// A node has answered that it is of another cluster, or a membership of one was told.
    pub(super) fn answer(&self, own: u64, node: Option<u64>, lineage: Lineage) {
        let mut state = self.state.lock();
        state.all.answers += 1;
        state.all.last = Some(Stranger { node, lineage });
        if let Some(node) = node
            && (state.nodes.len() <= Membership::MAX_MEMBERS || state.nodes.contains_key(&node))
        {
            state.nodes.insert(node, lineage);
        }
        warn(own, state.all.answers, "an answer", lineage);
    }

    /// A node has answered as one of this cluster.
    pub(super) fn is_of_us(&self, node: u64) {
        self.state.lock().nodes.remove(&node);
    }

    /// The cluster of a node, if it last said that it is of another one.
    pub(super) fn of(&self, node: u64) -> Option<Lineage> {
        self.state.lock().nodes.get(&node).copied()
    }
}

/// The first one, the second, the fourth and so on: a mistake repeats itself with each request.
fn warn(node: u64, count: u64, what: &str, lineage: Lineage) {
    if count.is_power_of_two() {
        tracing::warn!(
            target: "voussoir::quorum", node, %lineage, count, "refused {what} of another cluster"
        );
    }
}
