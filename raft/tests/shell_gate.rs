//! What a node takes of the snapshots that peers and strangers offer it.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::{Text, timeout};
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::{
    Config, Heartbeat, Message, Raft, SnapshotAnswer, SnapshotMeta, SnapshotName, SnapshotPart,
    Transport,
};

/// Node 1 of three; nobody else runs. Node 2 leads term 5 as far as it knows.
struct Alone {
    network: Network,
    raft: Raft,
    machine: Text,
}

fn name(index: u64, term: u64, identity: u64, voters: &[u64]) -> SnapshotName {
    SnapshotName { meta: SnapshotMeta { index, term, members: voters.to_vec().into() }, identity }
}

fn open(name: &SnapshotName, term: u64) -> SnapshotPart {
    SnapshotPart::Open { term, name: name.clone(), chunks: 1 }
}

impl Alone {
    async fn start() -> Self {
        Self::tuned(|_| ()).await
    }

    async fn tuned(tune: impl Fn(&mut Config)) -> Self {
        let network = Network::new();
        let mut config = Config::new(1, [3, 1, 2]);
        config.seed = Some(7);
        tune(&mut config);
        let machine = Text::default();
        let log = Arc::new(MemoryStore::new());
        let raft = Raft::start(config, log, Box::new(machine.clone()), network.node(1));
        let raft = timeout(raft).await.unwrap();
        let beat = Heartbeat { term: 5, round: 1, commit: 0 };
        network.node(2).send(1, 0, Message::Heartbeat(beat)).unwrap();
        timeout(raft.status().wait_for(|status| status.term == 5)).await.unwrap();
        Self { network, raft, machine }
    }

    async fn says(&self, from: u64, part: SnapshotPart) -> SnapshotAnswer {
        let patience = Duration::from_secs(10);
        timeout(self.network.node(from).snapshot(1, 0, part, patience)).await.unwrap()
    }

    /// Everything of a transfer.
    async fn all_of(&self, from: u64, name: &SnapshotName, term: u64) -> Vec<SnapshotAnswer> {
        let identity = name.identity;
        let data = Bytes::from_static(b"foreign");
        vec![
            self.says(from, open(name, term)).await,
            self.says(from, SnapshotPart::Chunk { identity, number: 0, data }).await,
            self.says(from, SnapshotPart::Close { identity }).await,
        ]
    }

    async fn is_untouched(&self, refused: u64) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let status = self.raft.status().borrow().clone();
        assert_eq!((status.commit, status.snapshot), (0, 0), "{status:?}");
        assert_eq!(*self.machine.restored.lock(), 0);
        assert_eq!(self.raft.stats().snapshots_rejected, refused);
    }
}

const ALL_REFUSED: [SnapshotAnswer; 3] = [SnapshotAnswer::Rejected; 3];

/// Source: a node that was no voter replaced the state of a follower.
#[tokio::test(start_paused = true)]
async fn a_snapshot_of_a_stranger_is_refused_part_by_part() {
    let node = Alone::start().await;
    for stranger in [99, 0, u64::MAX, 1] {
        let answers = node.all_of(stranger, &name(50, 5, 9, &[1, 2, 3]), 5).await;
        assert_eq!(answers, ALL_REFUSED, "of node {stranger}");
    }
    node.is_untouched(12).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_cannot_be_of_this_group_is_refused() {
    let node = Alone::start().await;
    let strange = [
        (name(50, 5, 9, &[1, 2, 4]), "other voters"),
        (name(50, 5, 9, &[1, 2]), "fewer voters"),
        (name(50, 5, 9, &[]), "no voters"),
        (name(0, 5, 9, &[1, 2, 3]), "it covers nothing"),
        (name(50, 0, 9, &[1, 2, 3]), "no entry has term 0"),
        (name(50, 6, 9, &[1, 2, 3]), "an entry of a later term than its leader's"),
    ];
    let count = strange.len() as u64;
    for (name, why) in strange {
        assert_eq!(node.all_of(2, &name, 5).await, ALL_REFUSED, "{why}");
    }
    // Only the opening counts: no chunk belongs to a transfer that was never opened.
    node.is_untouched(count).await;
}

/// A node that may speak finds room, whatever nodes that may not speak have sent before.
#[tokio::test(start_paused = true)]
async fn messages_of_strangers_take_no_room_and_reach_no_core() {
    let node = Alone::tuned(|config| config.max_inbox_bytes = 1).await;
    let before = node.raft.status().borrow().clone();
    let beat = |term| Message::Heartbeat(Heartbeat { term, round: 1, commit: 0 });
    for stranger in [99, 0, u64::MAX, 1] {
        node.network.node(stranger).send(1, 0, beat(7)).unwrap();
    }
    // Nothing has been awaited: the loop has not looked yet.
    node.network.node(2).send(1, 0, beat(6)).unwrap();
    timeout(node.raft.status().wait_for(|status| status.term > 5)).await.unwrap();
    let status = node.raft.status().borrow().clone();
    assert_eq!((status.term, status.leader), (6, Some(2)));
    assert_eq!(status.rejected_inputs, before.rejected_inputs, "the core heard of none");
    let stats = node.raft.stats();
    assert_eq!((stats.messages_rejected, stats.messages_dropped), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn only_its_sender_goes_on_with_a_transfer() {
    let node = Alone::start().await;
    let name = name(50, 5, 9, &[2, 3, 1]);
    assert_eq!(node.says(2, open(&name, 5)).await, SnapshotAnswer::Next { number: 0 });
    let chunk = |data| SnapshotPart::Chunk { identity: 9, number: 0, data };
    let foreign = Bytes::from_static(b"foreign");
    assert_eq!(node.says(3, chunk(foreign)).await, SnapshotAnswer::Rejected);
    assert_eq!(node.says(3, SnapshotPart::Close { identity: 9 }).await, SnapshotAnswer::Rejected);
    let own = Bytes::from_static(b"own");
    assert_eq!(node.says(2, chunk(own)).await, SnapshotAnswer::Next { number: 1 });
    assert_eq!(node.says(2, SnapshotPart::Close { identity: 9 }).await, SnapshotAnswer::Done);
    let applied = |status: &voussoir_raft::Status| status.applied == 50;
    timeout(node.raft.status().wait_for(applied)).await.unwrap();
    assert_eq!(*node.machine.value.lock(), "own");
}
