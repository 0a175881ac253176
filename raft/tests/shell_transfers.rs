//! Snapshots on their way: how fast they leave, and what operators see of them.

mod cluster;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::{Cluster, append, soon, timeout};
use tokio::time::{Instant, sleep};
use voussoir_raft::memory::NetworkNode;
use voussoir_raft::{
    AttachError, Change, Config, FollowerState, Inbox, Message, SendError, SnapshotAnswer,
    SnapshotPart, SnapshotProgress, Transport,
};

/// Bytes of each command.
const COMMAND: usize = 100_000;
/// Bytes per second.
const RATE: u64 = 32 << 20;

thread_local! {
    /// When chunks left, to whom, and how many bytes they have.
    static LEFT: RefCell<Vec<(Instant, u64, u64)>> = const { RefCell::new(Vec::new()) };
}

/// Notes when chunks leave. Each takes some time to be answered.
struct Watched(Arc<NetworkNode>);

#[async_trait]
impl Transport for Watched {
    fn local(&self) -> u64 {
        self.0.local()
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        self.0.attach(group, inbox)
    }

    fn detach(&self, group: u64) {
        self.0.detach(group);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        self.0.send(to, group, message)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        self.0.send_all(to, messages)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        if let SnapshotPart::Chunk { data, .. } = &part {
            LEFT.with_borrow_mut(|left| left.push((Instant::now(), to, data.len() as u64)));
        }
        sleep(Duration::from_millis(30)).await;
        self.0.snapshot(to, group, part, timeout).await
    }
}

/// A leader, and the nodes that need its snapshot of `commands` commands.
async fn behind(
    nodes: u64,
    late: u64,
    commands: u64,
    tune: impl Fn(&mut Config) + 'static,
) -> (Cluster, u64, Vec<u64>) {
    let tuned = move |config: &mut Config| {
        (config.snapshot_after_entries, config.keep_entries) = (commands, 0);
        tune(config);
    };
    let wrap = |node| Arc::new(Watched(node)) as Arc<dyn Transport>;
    let cluster = Cluster::wrapped(nodes, tuned, wrap).await;
    let leader = cluster.leader().await;
    let late: Vec<u64> = (1..=nodes).filter(|id| *id != leader).take(late as usize).collect();
    for id in &late {
        cluster.network.isolate(*id, 1..=nodes);
    }
    for _ in 0..commands {
        timeout(cluster.raft(leader).propose(append(&"s".repeat(COMMAND)))).await.unwrap();
    }
    cluster.until(leader, |status| status.snapshot > 0).await;
    LEFT.take();
    cluster.network.heal();
    (cluster, leader, late)
}

/// Bytes of the snapshot of a leader: of all commands that it covers, which begin behind the no-op
/// of the only term.
fn length(cluster: &Cluster, leader: u64) -> u64 {
    (cluster.status(leader).snapshot - 1) * COMMAND as u64
}

/// The limit holds for all transfers of a node together, and is used.
#[tokio::test(start_paused = true)]
async fn snapshots_leave_at_the_rate_that_is_set() {
    let (cluster, leader, late) = behind(5, 2, 40, |config| {
        config.snapshot_bytes_per_second = Some(RATE);
        config.max_snapshots_sending = 2;
    })
    .await;
    let commit = cluster.status(leader).commit;
    for id in &late {
        cluster.until(*id, |status| status.applied >= commit).await;
    }
    let left = LEFT.take();
    let to = |id| left.iter().filter(|(_, to, _)| *to == id).map(|(.., bytes)| bytes).sum::<u64>();
    let total = length(&cluster, leader);
    assert!(late.iter().all(|id| to(*id) == total), "{total}: {left:?}");
    for (at, (begun, ..)) in left.iter().enumerate() {
        let mut bytes = 0;
        for (now, _, more) in &left[at..] {
            // What left since `begun`, the chunk that leaves now excepted.
            let allowed = RATE as f64 * (*now - *begun + Duration::from_millis(5)).as_secs_f64();
            assert!(bytes as f64 <= allowed, "{bytes} bytes in {:?}: {left:?}", *now - *begun);
            bytes += more;
        }
    }
    let all: u64 = left.iter().map(|(.., bytes)| bytes).sum();
    let took = (left[left.len() - 1].0 - left[0].0).as_secs_f64();
    assert!(took < 1.05 * all as f64 / RATE as f64, "{all} bytes took {took} s: {left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_shows_how_far_a_snapshot_has_come() {
    let (cluster, leader, late) =
        behind(3, 1, 40, |config| config.snapshot_bytes_per_second = Some(RATE)).await;
    let (late, status) = (late[0], cluster.status(leader));
    let mut seen: Vec<SnapshotProgress> = Vec::new();
    while cluster.status(late).applied < status.commit {
        for follower in cluster.raft(leader).followers() {
            let Some(progress) = follower.sending else { continue };
            assert_eq!((follower.id, follower.state), (late, FollowerState::Snapshot));
            seen.push(progress);
        }
        sleep(Duration::from_millis(20)).await;
    }
    let total = length(&cluster, leader);
    let is_of = |it: &SnapshotProgress| it.index == status.snapshot && it.total_bytes == total;
    assert!(seen.iter().all(is_of), "{seen:?}");
    let far = |it: &SnapshotProgress| (it.acknowledged_chunks, it.acknowledged_bytes);
    assert!(seen.is_sorted_by_key(far), "{seen:?}");
    let chunk = voussoir_raft::MAX_CHUNK_BYTES as u64;
    for chunks in 0..total / chunk {
        let at = seen.iter().map(far).any(|far| far == (chunks, chunks * chunk));
        assert!(at, "not shown after {chunks} chunks: {seen:?}");
    }
    let chunks = total.div_ceil(chunk);
    assert!(seen.iter().all(|it| it.total_chunks == chunks), "{seen:?}");
    let followers = cluster.raft(leader).followers();
    assert!(followers.iter().all(|follower| follower.sending.is_none()), "{followers:?}");
}

/// The rate is for those who are of use.
#[tokio::test(start_paused = true)]
async fn a_transfer_ends_when_its_receiver_is_removed() {
    let (cluster, leader, late) = behind(5, 2, 20, |config| {
        config.dynamic = true;
        config.snapshot_bytes_per_second = Some(64 << 10);
    })
    .await;
    let receiver = || LEFT.with_borrow(|left| left.last().map(|(_, to, _)| *to));
    while receiver().is_none() {
        sleep(Duration::from_millis(10)).await;
    }
    let removed = receiver().expect("the only transfer of two that are needed");
    let other = late.into_iter().find(|id| *id != removed).expect("two of them need it");
    let raft = cluster.raft(leader);
    timeout(raft.change(Change::new().remove(removed), soon())).await.unwrap();
    // A chunk takes sixteen seconds at this rate.
    sleep(Duration::from_millis(100)).await;
    LEFT.take();
    sleep(Duration::from_secs(60)).await;
    let left = LEFT.take();
    assert!(left.len() >= 2 && left.iter().all(|(_, to, _)| *to == other), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_ends_with_the_term_of_its_leader() {
    let (cluster, leader, late) =
        behind(3, 1, 20, |config| config.snapshot_bytes_per_second = Some(64 << 10)).await;
    let begun = || LEFT.with_borrow(|left| !left.is_empty());
    while !begun() {
        sleep(Duration::from_millis(10)).await;
    }
    let next = (1..=3).find(|id| ![leader, late[0]].contains(id)).expect("there are three");
    let raft = cluster.raft(leader);
    timeout(raft.transfer_leadership(Some(next), soon())).await.unwrap();
    let sent = raft.stats().chunks_sent;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(raft.stats().chunks_sent, sent, "the receiver takes nothing of that term");
}
