//! A network in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;

use crate::message::Message;
use crate::transport::{AttachError, Inbox, SendError, SnapshotAnswer, SnapshotPart, Transport};

/// A network of nodes in one process: sending puts the message straight into the receiver's
/// inbox. Clones are the same network.
///
/// Links can be cut, for tests; delays, loss and reordering are for the simulation in `testing`,
/// or `voussoir-net`'s network in memory.
///
/// # Example
/// ```
/// use voussoir_raft::Transport;
/// use voussoir_raft::memory::Network;
///
/// let network = Network::new();
/// assert_eq!(network.node(3).local(), 3);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Network {
    hub: Arc<RwLock<Hub>>,
}

#[derive(Default)]
struct Hub {
    inboxes: BTreeMap<(u64, u64), Arc<dyn Inbox>>,
    /// From, to.
    cut: BTreeSet<(u64, u64)>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("cut", &self.cut).finish_non_exhaustive()
    }
}

impl Network {
    /// A network without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport of node `id`.
    pub fn node(&self, id: u64) -> Arc<NetworkNode> {
        Arc::new(NetworkNode { id, network: self.clone() })
    }

    /// From now on nothing gets from `from` to `to`. The other direction stays as it is.
    pub fn cut(&self, from: u64, to: u64) {
        self.hub.write().cut.insert((from, to));
        for (node, peer) in [(from, to), (to, from)] {
            for inbox in self.inboxes(|id, _| id == node) {
                inbox.unreachable(peer);
            }
        }
    }

    /// Cuts `node` off from all of `peers`, in both directions.
    pub fn isolate(&self, node: u64, peers: impl IntoIterator<Item = u64>) {
        for peer in peers.into_iter().filter(|peer| *peer != node) {
            self.cut(node, peer);
            self.cut(peer, node);
        }
    }

    /// Restores every link.
    pub fn heal(&self) {
        self.hub.write().cut.clear();
    }

    /// The inboxes of those nodes and groups that `wanted` names.
    fn inboxes(&self, wanted: impl Fn(u64, u64) -> bool) -> Vec<Arc<dyn Inbox>> {
        let hub = self.hub.read();
        let found = hub.inboxes.iter().filter(|((node, group), _)| wanted(*node, *group));
        found.map(|(_, inbox)| Arc::clone(inbox)).collect()
    }

    /// The inbox at the end of a link that stands.
    fn route(&self, from: u64, to: u64, group: u64) -> Result<Arc<dyn Inbox>, SendError> {
        let hub = self.hub.read();
        if hub.cut.contains(&(from, to)) {
            return Err(SendError::Down);
        }
        hub.inboxes.get(&(to, group)).cloned().ok_or(SendError::UnknownPeer)
    }
}

/// One node's end of a [`Network`].
#[derive(Debug)]
pub struct NetworkNode {
    id: u64,
    network: Network,
}

#[async_trait]
impl Transport for NetworkNode {
    fn local(&self) -> u64 {
        self.id
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        let mut hub = self.network.hub.write();
        if hub.inboxes.contains_key(&(self.id, group)) {
            return Err(AttachError::Attached { group });
        }
        hub.inboxes.insert((self.id, group), inbox);
        Ok(())
    }

    fn detach(&self, group: u64) {
        // Dropped without the lock: an inbox may hold a node that uses the network.
        let inbox = self.network.hub.write().inboxes.remove(&(self.id, group));
        drop(inbox);
        for peer in self.network.inboxes(|_, of| of == group) {
            peer.unreachable(self.id);
        }
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        self.network.route(self.id, to, group)?.message(self.id, message);
        Ok(())
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        let send = |(group, message)| self.send(to, group, message);
        messages.into_iter().map(send).fold(Ok(()), Result::and)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        let inbox = self.network.route(self.id, to, group)?;
        let answer = tokio::time::timeout(timeout, inbox.snapshot(self.id, part)).await;
        let answer = answer.map_err(|_| SendError::NoAnswer)?;
        if self.network.hub.read().cut.contains(&(to, self.id)) {
            return Err(SendError::NoAnswer);
        }
        Ok(answer)
    }
}
