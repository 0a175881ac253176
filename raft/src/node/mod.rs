//! Many groups on one node.

mod config;
mod elections;
pub(crate) mod hub;
pub(crate) mod peers;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinSet};

use self::hub::{Hub, NodeInbox, Seat};
use crate::config::Config;
use crate::error::ConfigError;
use crate::machine::StateMachine;
use crate::shell::{Raft, StartError};
use crate::store::LogStore;
use crate::transport::Transport;

pub use self::config::NodeConfig;

/// The group under which nodes speak to each other about all their groups. No group may have it.
pub const NODE_GROUP: u64 = u64::MAX;

/// A host of many groups: one transport for all, one message per peer and tick with all their
/// heartbeats, and groups that cost nothing while nothing happens in them. Cheap to clone.
///
/// Each group is a [`Raft`], with a log store and a state machine of its own; on a shared journal
/// all of them are made durable by the same sync. Groups come and go while the node runs. All
/// members of a group must be hosted so. When the last clone is dropped, all groups stop.
///
/// The transport must carry messages of 64 KiB.
///
/// # Example
/// See `examples/groups.rs`, and the section "Many groups" of the crate's front page.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: NodeConfig,
    transport: Arc<dyn Transport>,
    hub: Arc<Hub>,
    /// `None`: it is being started.
    groups: Mutex<BTreeMap<u64, Option<Raft>>>,
    tasks: [AbortHandle; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn stop(&self) {
        self.hub.close();
        self.transport.detach(NODE_GROUP);
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Node {
    /// Starts a node without groups. It runs on the current tokio runtime, with timers enabled: two
    /// tasks, and one or two for each group.
    ///
    /// # Errors
    /// [`StartError::Config`]; [`StartError::Transport`] when another node runs on the transport.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(config: NodeConfig, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        config.validate()?;
        // Another one in each life: what a peer believes of the last one ends with it.
        let life = Config::default().drawn_seed();
        let hub = Arc::new(Hub::new(&config, Arc::clone(&transport), life));
        transport.attach(NODE_GROUP, Arc::new(NodeInbox(Arc::downgrade(&hub))))?;
        let tasks = [
            tokio::spawn(Arc::clone(&hub).tick_loop()).abort_handle(),
            tokio::spawn(Arc::clone(&hub).send_loop()).abort_handle(),
        ];
        let groups = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { config, transport, hub, groups, tasks }) })
    }

    /// Starts this node's part of the group [`Config::group`], from what `log` holds, as
    /// [`Raft::start`] does. It stays until it is [stopped](Self::stop_group), also when every
    /// other handle is dropped, and when it has halted. Never give the number of a group that was
    /// deleted to another one: late messages of the first would reach the second.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then. After [`shutdown`](Self::shutdown) it is
    /// [`AttachError::Closed`](crate::AttachError::Closed).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped future has started nothing, and the group may be started again.
    pub async fn start_group(
        &self,
        config: Config,
        log: Arc<dyn LogStore>,
        machine: Box<dyn StateMachine>,
    ) -> Result<Raft, StartError> {
        let group = config.group;
        if group == NODE_GROUP {
            let rule = "must be below 2^64 - 1: nodes speak to each other under that";
            return Err(ConfigError { field: "group", rule }.into());
        }
        if config.heartbeat_interval != self.inner.config.heartbeat_interval {
            let rule = "must be that of the node: the heartbeats of all groups go together";
            return Err(ConfigError { field: "heartbeat_interval", rule }.into());
        }
        let place = Place::take(&self.inner, group)?;
        let seat = Arc::new(Seat::new(Arc::clone(&self.inner.hub), group));
        let raft = Raft::start_seated(config, log, machine, seat).await?;
        if self.inner.hub.is_closed() {
            // The node was shut down meanwhile, and did not wait for this group.
            raft.shutdown().await;
            return Err(crate::AttachError::Closed.into());
        }
        place.fill(raft.clone());
        Ok(raft)
    }

    /// The group `id`, if it runs here or has halted.
    pub fn group(&self, id: u64) -> Option<Raft> {
        self.inner.groups.lock().get(&id).cloned().flatten()
    }

    /// The groups here, ascending.
    pub fn groups(&self) -> Vec<u64> {
        let groups = self.inner.groups.lock();
        groups.iter().filter(|(_, raft)| raft.is_some()).map(|(id, _)| *id).collect()
    }

    /// Stops this node's part of a group as [`Raft::shutdown`] does, and returns whether there was
    /// one. What is durable stays.
    /// The followers of a group that has quiesced are told, so that they elect another leader.
    ///
    /// For good a group goes from this node when [`Raft::change`] has removed the node; its data
    /// are the log store's to delete.
    ///
    /// # Cancel safety
    /// The group stops, whether the future is polled to its end or not, once it has been polled
    /// first.
    pub async fn stop_group(&self, id: u64) -> bool {
        let raft = {
            let mut groups = self.inner.groups.lock();
            // One that is being started keeps its place.
            match groups.get(&id) {
                Some(Some(_)) => groups.remove(&id).flatten(),
                _ => None,
            }
        };
        let Some(raft) = raft else { return false };
        raft.shutdown().await;
        true
    }

    /// The other nodes that share a group with this one.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.inner.hub.peers()
    }

    /// Counts since the start.
    pub fn stats(&self) -> NodeStats {
        self.inner.hub.stats()
    }

    /// Stops all groups and the node, and returns when their tasks have ended.
    ///
    /// # Cancel safety
    /// All groups stop, whether the future is polled to its end or not, once it has been polled
    /// first. Call it again to wait for them.
    pub async fn shutdown(&self) {
        // First, so that no group comes while the others go.
        self.inner.hub.close();
        let mut stopping = JoinSet::new();
        for id in self.groups() {
            let node = self.clone();
            stopping.spawn(async move { node.stop_group(id).await });
        }
        while stopping.join_next().await.is_some() {}
        // The last word to the peers: who led here, leads no more.
        self.inner.hub.flush();
        self.inner.stop();
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("groups", &self.groups().len()).finish_non_exhaustive()
    }
}

/// A place among the groups of a node, given back when it was not filled.
struct Place<'a> {
    inner: &'a Inner,
    group: u64,
}

impl<'a> Place<'a> {
    fn take(inner: &'a Inner, group: u64) -> Result<Self, StartError> {
        let mut groups = inner.groups.lock();
        if groups.contains_key(&group) {
            return Err(crate::AttachError::Attached { group }.into());
        }
        if groups.len() >= inner.config.max_groups {
            return Err(StartError::TooManyGroups { max_groups: inner.config.max_groups });
        }
        groups.insert(group, None);
        Ok(Self { inner, group })
    }

    fn fill(self, raft: Raft) {
        self.inner.groups.lock().insert(self.group, Some(raft));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut groups = self.inner.groups.lock();
        if groups.get(&self.group).is_some_and(Option::is_none) {
            groups.remove(&self.group);
        }
    }
}

/// What is known of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Which.
    pub id: u64,
    /// It was heard within [`NodeConfig::suspect_after`].
    pub is_alive: bool,
}

/// Counts of a node; all but the first four since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStats {
    /// Groups that run here.
    pub groups: usize,
    /// Of these, groups that this node leads and that have not quiesced.
    pub beating: usize,
    /// Groups whose election is under way, [`NodeConfig::max_elections`] at most.
    pub campaigning: usize,
    /// Groups whose election is due and waits for one of those to end.
    pub waiting_to_campaign: usize,
    /// Messages between nodes that were handed to the transport.
    pub messages_sent: u64,
    /// Messages between nodes that came.
    pub messages_received: u64,
    /// Messages between nodes that the transport did not take, and bundles of entries and
    /// acknowledgements of groups that it did not take whole.
    pub sends_failed: u64,
    /// Heartbeats of groups, and answers to them, that were sent in these messages.
    pub beats_sent: u64,
    /// Those that came.
    pub beats_received: u64,
    /// Nodes that were silent for too long.
    pub nodes_suspected: u64,
    /// Nodes that were found to have been started again without a silence.
    pub nodes_restarted: u64,
}
