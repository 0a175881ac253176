//! openraft 0.9: a store in memory, the other nodes called as functions.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::io::Cursor;
use std::ops::RangeBounds;
use std::sync::Arc;

use bytes::Bytes;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage, RaftStateMachine, Snapshot};
use openraft::{
    BasicNode, Config, Entry, EntryPayload, LogId, OptionalSend, Raft, RaftLogReader,
    RaftSnapshotBuilder, SnapshotMeta, SnapshotPolicy, StorageError, StoredMembership, Vote,
};
use parking_lot::Mutex;

openraft::declare_raft_types!(
    /// Commands and answers are bytes, as ours are.
    pub(crate) Types: D = Bytes, R = Bytes
);

type Peers = Arc<Mutex<HashMap<u64, Raft<Types>>>>;

/// Three nodes in this process.
pub(crate) struct Group {
    leader: Raft<Types>,
    peers: Peers,
}

impl Group {
    pub(crate) async fn start() -> Self {
        let config = Config {
            // Long runs without a snapshot, as the others have them.
            snapshot_policy: SnapshotPolicy::Never,
            heartbeat_interval: 100,
            election_timeout_min: 500,
            election_timeout_max: 1000,
            ..Config::default()
        };
        let config = Arc::new(config.validate().expect("a valid configuration"));
        let peers = Peers::default();
        for id in 1..=3 {
            let network = Network { peers: peers.clone() };
            let (log, machine) = (Log::default(), Machine::default());
            let raft = Raft::new(id, config.clone(), network, log, machine);
            let raft = raft.await.expect("a node starts");
            peers.lock().insert(id, raft);
        }
        let leader = peers.lock()[&1].clone();
        let members: BTreeMap<u64, BasicNode> =
            (1..=3).map(|id| (id, BasicNode::default())).collect();
        leader.initialize(members).await.expect("the first leader");
        let wait = leader.wait(None);
        wait.current_leader(1, "the first leader").await.expect("an election");
        Self { leader, peers }
    }

    pub(crate) async fn propose(&self, command: Bytes) {
        self.leader.client_write(command).await.expect("a committed write");
    }

    pub(crate) async fn stop(self) {
        let nodes: Vec<_> = self.peers.lock().drain().map(|(_, node)| node).collect();
        for node in nodes {
            node.shutdown().await.expect("a clean end");
        }
    }
}

struct Network {
    peers: Peers,
}

struct Connection {
    target: u64,
    peers: Peers,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _: &BasicNode) -> Connection {
        Connection { target, peers: self.peers.clone() }
    }
}

type Failed<E = RaftError<u64>> = RPCError<u64, BasicNode, E>;

impl Connection {
    fn node(&self) -> Result<Raft<Types>, Unreachable> {
        let gone = || Unreachable::new(&std::io::Error::other("stopped"));
        self.peers.lock().get(&self.target).cloned().ok_or_else(gone)
    }

    fn failed<E: std::error::Error>(error: &E) -> Failed<E> {
        RPCError::Unreachable(Unreachable::new(&std::io::Error::other(error.to_string())))
    }
}

impl RaftNetwork<Types> for Connection {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed> {
        self.node()?.append_entries(request).await.map_err(|e| Self::failed(&e))
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<RaftError<u64, InstallSnapshotError>>> {
        self.node()?.install_snapshot(request).await.map_err(|e| Self::failed(&e))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _: RPCOption,
    ) -> Result<VoteResponse<u64>, Failed> {
        self.node()?.vote(request).await.map_err(|e| Self::failed(&e))
    }
}

#[derive(Clone, Default)]
struct Log {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    vote: Option<Vote<u64>>,
    purged: Option<LogId<u64>>,
    entries: BTreeMap<u64, Entry<Types>>,
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, StorageError<u64>> {
        Ok(self.held.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u64>> {
        let held = self.held.lock();
        let last = held.entries.values().next_back().map(|entry| entry.log_id).or(held.purged);
        Ok(LogState { last_purged_log_id: held.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        self.held.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        Ok(self.held.lock().vote)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| (entry.log_id.index, entry));
        self.held.lock().entries.extend(entries);
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        self.held.lock().entries.split_off(&log_id.index);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        let mut held = self.held.lock();
        held.entries = held.entries.split_off(&(log_id.index + 1));
        held.purged = Some(log_id);
        Ok(())
    }
}

/// Counts bytes, as the machines of the others do.
#[derive(Clone, Default)]
struct Machine {
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, BasicNode>,
    bytes: u64,
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, BasicNode>), StorageError<u64>> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Bytes>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => self.bytes += command.len() as u64,
                EntryPayload::Membership(members) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), members);
                }
            }
            answers.push(Bytes::new());
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(
        &mut self,
    ) -> Result<Box<Cursor<Vec<u8>>>, StorageError<u64>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, BasicNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<u64>> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.bytes = snapshot.get_ref().len() as u64;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u64>> {
        Ok(None)
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u64>> {
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: "bench".to_owned(),
        };
        Ok(Snapshot { meta, snapshot: Box::default() })
    }
}
