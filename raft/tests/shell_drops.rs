//! Every future of the shell, dropped at every point where it waits.

mod cluster;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use cluster::{Cluster, Text, append, soon, timeout};
use voussoir_raft::memory::{MemoryStore, Network, NetworkNode};
use voussoir_raft::{
    AttachError, Config, Inbox, Message, Raft, SendError, SnapshotAnswer, SnapshotPart, Transport,
};

/// Polls a future `polls` times, waiting for its wakes in between, and then drops it. `Some`: it
/// was ready before.
async fn cut<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // The last poll was in vain: dropped while it waits.
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Room for two commands: whoever loses some of it brings the next ones to a stop.
fn tight(config: &mut Config) {
    config.max_entry_bytes = 500;
    config.max_uncommitted_bytes = 1000;
    config.max_reads = 2;
}

async fn still_works(cluster: &Cluster) -> u64 {
    let leader = cluster.leader().await;
    let long = append(&"-".repeat(450));
    for _ in 0..3 {
        timeout(cluster.raft(leader).propose(long.clone())).await.unwrap();
        for id in cluster.nodes.keys() {
            timeout(cluster.raft(*id).read(soon())).await.unwrap();
        }
    }
    leader
}

#[tokio::test(start_paused = true)]
async fn dropped_proposals_and_reads_leave_nothing_behind() {
    let cluster = Cluster::tuned(3, tight).await;
    let leader = still_works(&cluster).await;
    let follower = leader % 3 + 1;
    let (mut proposed, mut read, mut forwarded) = (false, false, false);
    for polls in 0..10 {
        proposed |= cut(polls, cluster.raft(leader).propose(append("p"))).await.is_some();
        read |= cut(polls, cluster.raft(leader).read(soon())).await.is_some();
        forwarded |= cut(polls, cluster.raft(follower).read(soon())).await.is_some();
        still_works(&cluster).await;
    }
    assert!(proposed && read && forwarded, "polled often enough, each of them is ready");
    cluster.converge(leader).await;
}

#[tokio::test(start_paused = true)]
async fn dropped_waiters_for_room_leave_nothing_behind() {
    let cluster = Cluster::tuned(3, tight).await;
    let leader = still_works(&cluster).await;
    let raft = cluster.raft(leader);
    for polls in 0..6 {
        cluster.network.isolate(leader, 1..=3);
        let fill = append(&"f".repeat(450));
        let mut fills = [Box::pin(raft.propose(fill.clone())), Box::pin(raft.propose(fill))];
        for fill in &mut fills {
            assert!(cut(1, fill.as_mut()).await.is_none(), "there is no quorum");
        }
        let mut reads = [Box::pin(raft.read(soon())), Box::pin(raft.read(soon()))];
        for read in &mut reads {
            assert!(cut(1, read.as_mut()).await.is_none(), "there is no quorum");
        }
        let later = tokio::time::sleep(Duration::from_millis(1));
        tokio::select! {
            biased;
            _ = cut(polls, raft.propose(append(&"w".repeat(450)))) => {}
            _ = cut(polls, raft.read(soon())) => {}
            () = later => {}
        }
        drop((fills, reads));
        cluster.network.heal();
        // Whatever hung in the old term is decided before anything of the new one is.
        still_works(&cluster).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_is_dropped_still_shuts_down() {
    for polls in 1..4 {
        let cluster = Cluster::new(1).await;
        cluster.leader().await;
        let raft = cluster.raft(1).clone();
        let _ = cut(polls, raft.shutdown()).await;
        timeout(raft.shutdown()).await;
        assert!(raft.stopped().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_dropped_has_started_nothing() {
    let (network, store) = (Network::new(), Arc::new(MemoryStore::new()));
    let start = || {
        let machine = Box::new(Text::default());
        Raft::start(Config::new(1, vec![1]), store.clone(), machine, network.node(1))
    };
    for polls in 0..3 {
        match cut(polls, start()).await {
            None => {}
            Some(started) => timeout(started.unwrap().shutdown()).await,
        }
    }
    let raft = timeout(start()).await.unwrap();
    let led = |status: &voussoir_raft::Status| status.leader.is_some();
    timeout(raft.status().wait_for(led)).await.unwrap();
    assert_eq!(timeout(raft.propose(append("a"))).await.unwrap(), "a");
}

/// Loses answers to parts of snapshots, and drops what the receiver was doing, at ever other
/// points.
struct Impatient {
    node: Arc<NetworkNode>,
    calls: AtomicUsize,
}

#[async_trait]
impl Transport for Impatient {
    fn local(&self) -> u64 {
        self.node.local()
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        self.node.attach(group, inbox)
    }

    fn detach(&self, group: u64) {
        self.node.detach(group);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        self.node.send(to, group, message)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        self.node.send_all(to, messages)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        let polls = self.calls.fetch_add(1, Ordering::Relaxed) % 5;
        let call = self.node.snapshot(to, group, part, timeout);
        cut(polls, call).await.unwrap_or(Err(SendError::NoAnswer))
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_arrives_although_every_part_is_dropped_somewhere() {
    fn eager(config: &mut Config) {
        config.snapshot_after_entries = 10;
        config.keep_entries = 0;
        config.snapshot_window = 1;
    }
    let wrap = |node| Arc::new(Impatient { node, calls: AtomicUsize::new(0) }) as Arc<_>;
    let cluster = Cluster::wrapped(3, eager, wrap).await;
    let leader = cluster.leader().await;
    let late = leader % 3 + 1;
    cluster.network.isolate(late, 1..=3);
    let long = "s".repeat(100_000);
    for _ in 0..30 {
        timeout(cluster.raft(leader).propose(append(&long))).await.unwrap();
    }
    let shot = cluster.until(leader, |status| status.snapshot > 20).await;
    cluster.network.heal();
    cluster.until(late, |status| status.applied >= shot.commit).await;
    assert!(*cluster.nodes[&late].machine.restored.lock() >= 1);
    assert_eq!(cluster.converge(leader).await.len(), 30 * long.len());
    let sent = cluster.raft(leader).stats();
    assert!(sent.chunks_sent < 20, "what has arrived is not sent again: {sent:?}");
}
