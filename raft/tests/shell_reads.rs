//! Reads end when their caller chose, give back what they held, and never show less than they say.

mod cluster;
mod hooked;

use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cluster::{Cluster, append, soon, timeout};
use hooked::{Hooked, Hooks};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use voussoir_raft::memory::{Network, NetworkNode};
use voussoir_raft::{
    AppendHead, Chunks, Command, Config, Entry, EntryKind, Heartbeat, Inbox, MachineError, Message,
    Raft, ReadError, ReadReply, SnapshotAnswer, SnapshotMeta, SnapshotName, SnapshotPart,
    StateMachine, Transport, WholeSnapshot,
};

const MS: Duration = Duration::from_millis(1);

fn four_reads(config: &mut Config) {
    config.max_reads = 4;
}

type Reading<'a> = Pin<Box<dyn Future<Output = Result<u64, ReadError>> + Send + 'a>>;

/// Four reads that have all reached the node's loop and wait there.
async fn four(raft: &Raft) -> Vec<Reading<'_>> {
    // The node's loop has to hear of reads that were withdrawn before.
    tokio::time::sleep(MS).await;
    let before = raft.stats().reads;
    let mut reads: Vec<Reading<'_>> = Vec::new();
    for _ in 0..4 {
        let mut read: Reading<'_> = Box::pin(raft.read(soon()));
        let first = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
        assert!(first.is_pending(), "the loop has had no turn");
        reads.push(read);
    }
    timeout(async {
        while raft.stats().reads < before + 4 {
            tokio::time::sleep(MS).await;
        }
    })
    .await;
    reads
}

/// One more read is handed to the core, and ends at its deadline.
async fn a_fifth_is_taken(raft: &Raft) -> ReadError {
    tokio::time::sleep(MS).await;
    let (before, began) = (raft.stats().reads, Instant::now());
    let error = timeout(raft.read(began + 100 * MS)).await.unwrap_err();
    assert!(began.elapsed() <= 101 * MS, "{:?}", began.elapsed());
    assert_eq!(raft.stats().reads, before + 1, "there is room again");
    error
}

#[tokio::test(start_paused = true)]
async fn dropped_reads_that_wait_for_the_machine_do_not_block_a_fifth() {
    let cluster = Cluster::tuned(3, four_reads).await;
    let leader = cluster.leader().await;
    let raft = cluster.raft(leader);
    let gate = &cluster.nodes[&leader].machine.gate;
    gate.forget_permits(Semaphore::MAX_PERMITS);
    let slow = raft.clone();
    let proposed = tokio::spawn(async move { slow.propose(append("a")).await });
    let other = leader % 3 + 1;
    timeout(async {
        while cluster.text(other) != "a" {
            tokio::time::sleep(10 * MS).await;
        }
    })
    .await;
    for _ in 0..3 {
        let reads = four(raft).await;
        tokio::time::sleep(200 * MS).await;
        drop(reads);
        assert_eq!(a_fifth_is_taken(raft).await, ReadError::TimedOut);
    }
    gate.add_permits(10);
    assert_eq!(timeout(proposed).await.unwrap().unwrap(), "a");
    timeout(raft.read(soon())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropped_reads_that_wait_for_a_quorum_do_not_block_a_fifth() {
    let cluster = Cluster::tuned(3, four_reads).await;
    let leader = cluster.leader().await;
    for id in [leader, leader % 3 + 1] {
        let raft = cluster.raft(id);
        timeout(raft.read(soon())).await.unwrap();
        // Nobody notices within an election timeout.
        for peer in 1..=3 {
            cluster.network.cut(peer, id);
        }
        let reads = four(raft).await;
        drop(reads);
        assert_eq!(a_fifth_is_taken(raft).await, ReadError::TimedOut, "not Busy, node {id}");
        cluster.network.heal();
        cluster.leader().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_without_room_ends_at_its_deadline() {
    let cluster = Cluster::tuned(3, four_reads).await;
    let leader = cluster.leader().await;
    let raft = cluster.raft(leader);
    cluster.nodes[&leader].machine.gate.forget_permits(Semaphore::MAX_PERMITS);
    let slow = raft.clone();
    let _proposed = tokio::spawn(async move { slow.propose(append("a")).await });
    tokio::time::sleep(50 * MS).await;
    let held = four(raft).await;
    let began = Instant::now();
    assert_eq!(timeout(raft.read(began + 30 * MS)).await, Err(ReadError::TimedOut));
    assert!((30..=31).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    drop(held);
}

/// Entries are read back when the test gives leave.
struct Gated(Arc<Semaphore>);

#[async_trait]
impl Hooks for Gated {
    async fn before_read(&self) {
        self.0.acquire().await.expect("it stays open").forget();
    }
}

/// Shows the index that it has applied; restores when the test gives leave.
#[derive(Clone)]
struct Shown {
    index: Arc<Mutex<u64>>,
    restores: Arc<Semaphore>,
}

#[async_trait]
impl StateMachine for Shown {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        for command in commands {
            let mut index = self.index.lock();
            assert_eq!(command.index, *index + 1, "no entry without the ones before it");
            *index = command.index;
        }
        Ok(commands.iter().map(|_| Bytes::new()).collect())
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        Ok(Box::new(WholeSnapshot::new(self.index.lock().to_string())))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        self.restores.acquire().await?.forget();
        let state = WholeSnapshot::collect(chunks).await?;
        *self.index.lock() = std::str::from_utf8(&state)?.parse()?;
        Ok(())
    }
}

/// Node 1 of three; the test speaks for node 2, the leader of term 5.
struct Follower {
    raft: Raft,
    leader: Arc<NetworkNode>,
    asked: Arc<Questions>,
    /// Entries that may be read back.
    reads: Arc<Semaphore>,
    machine: Shown,
}

/// The questions of reads that node 1 sends to its leader.
#[derive(Default)]
struct Questions(Mutex<Vec<ReadReply>>);

#[async_trait]
impl Inbox for Questions {
    fn message(&self, _: u64, message: Message) {
        if let Message::ReadRequest(asked) = message {
            let (nonce, context) = (asked.nonce, asked.context);
            self.0.lock().push(ReadReply { term: asked.term, nonce, context, index: None });
        }
    }

    fn unreachable(&self, _: u64) {}

    async fn snapshot(&self, _: u64, _: SnapshotPart) -> SnapshotAnswer {
        SnapshotAnswer::Rejected
    }
}

impl Follower {
    async fn start() -> Self {
        let network = Network::new();
        let mut config = Config::new(1, [1, 2, 3]);
        config.seed = Some(7);
        // What is durable leaves the memory at once.
        config.max_window_bytes = 1;
        let reads = Arc::new(Semaphore::new(0));
        let machine = Shown { index: Arc::default(), restores: Arc::new(Semaphore::new(0)) };
        let (leader, asked) = (network.node(2), Arc::new(Questions::default()));
        leader.attach(0, Arc::clone(&asked) as Arc<dyn Inbox>).unwrap();
        let log = Arc::new(Hooked::new(Gated(Arc::clone(&reads))));
        let node = Raft::start(config, log, Box::new(machine.clone()), network.node(1));
        let raft = timeout(node).await.unwrap();
        Self { raft, leader, asked, reads, machine }
    }

    fn beat(&self, commit: u64) {
        let beat = Heartbeat { term: 5, round: 1, commit };
        self.leader.send(1, 0, Message::Heartbeat(beat)).unwrap();
    }

    fn append(&self, range: Range<u64>, commit: u64) {
        let prev_term = if range.start == 1 { 0 } else { 5 };
        let head = AppendHead {
            term: 5,
            session: 1,
            prev_index: range.start - 1,
            prev_term,
            commit,
            probe: false,
        };
        let kind = EntryKind::Command;
        let entry = |index| Entry { term: 5, index, kind, data: append("x") };
        let entries = range.map(entry).collect();
        self.leader.send(1, 0, Message::Append { head, entries }).unwrap();
    }

    async fn until(&self, holds: impl FnMut(&voussoir_raft::Status) -> bool) {
        timeout(self.raft.status().wait_for(holds)).await.unwrap();
    }

    /// Sends the snapshot of the first `index` entries.
    async fn snapshot(&self, index: u64) {
        let meta = SnapshotMeta { index, term: 5, members: vec![1, 2, 3].into() };
        let name = SnapshotName { meta, identity: 9 };
        let parts = [
            SnapshotPart::Open { term: 5, name, chunks: 1 },
            SnapshotPart::Chunk { identity: 9, number: 0, data: index.to_string().into() },
            SnapshotPart::Close { identity: 9 },
        ];
        for part in parts {
            let answer = self.leader.snapshot(1, 0, part, 10_000 * MS).await.unwrap();
            assert_ne!(answer, SnapshotAnswer::Rejected);
        }
    }

    /// The leader confirms the next read that node 1 asks for.
    async fn confirm(&self, index: u64) {
        let question = timeout(async {
            loop {
                if let Some(question) = self.asked.0.lock().pop() {
                    return question;
                }
                tokio::time::sleep(MS).await;
            }
        });
        let reply = ReadReply { index: Some(index), ..question.await };
        self.leader.send(1, 0, Message::ReadReply(reply)).unwrap();
    }
}

/// Source: a follower said `read() == 20` while its machine showed 10: the entries up to 20 had
/// been released for a snapshot that was not restored yet, and were reported as applied.
#[tokio::test(start_paused = true)]
async fn a_read_waits_for_the_snapshot_that_took_the_place_of_its_entries() {
    let node = Follower::start().await;
    node.append(1..11, 0);
    node.beat(10);
    node.until(|status| status.applied == 10).await;
    node.append(11..21, 0);
    node.until(|status| status.durable == 20).await;
    node.beat(20);
    node.until(|status| status.commit == 20).await;

    let mut read = pin!(node.raft.read(soon()));
    let first = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
    assert!(first.is_pending());
    node.confirm(20).await;
    // Entries that are lent from memory follow those that will be gone: the machine must not see
    // them alone.
    node.append(21..26, 25);
    node.until(|status| status.commit == 25).await;
    node.snapshot(30).await;
    node.until(|status| status.snapshot == 30).await;
    node.reads.add_permits(100);
    let early = tokio::time::timeout(100 * MS, &mut read).await;
    let shown = *node.machine.index.lock();
    assert!(early.is_err(), "read() answered {early:?} while the machine shows {shown}");

    node.machine.restores.add_permits(1);
    assert_eq!(timeout(read).await, Ok(30));
    assert_eq!(*node.machine.index.lock(), 30);
    node.append(31..33, 0);
    node.until(|status| status.durable == 32).await;
    node.beat(32);
    node.until(|status| status.applied == 32).await;
    assert_eq!(*node.machine.index.lock(), 32);
}

/// Under a lease reads at the leader send nothing. One that is cut off answers until its lease is
/// over, and then its reads end at their deadline.
#[tokio::test(start_paused = true)]
async fn a_lease_answers_reads_without_a_message_and_ends_without_a_majority() {
    let leasing = |config: &mut Config| config.max_clock_drift_ppm = Some(1000);
    let cluster = Cluster::tuned(3, leasing).await;
    let leader = cluster.leader().await;
    let raft = cluster.raft(leader);
    timeout(raft.propose(append("a"))).await.unwrap();
    let index = timeout(raft.read(soon())).await.unwrap();
    tokio::time::sleep(101 * MS).await;
    let before = raft.stats();
    for _ in 0..100 {
        assert_eq!(timeout(raft.read(soon())).await, Ok(index));
    }
    let after = raft.stats();
    assert_eq!(after.lease_reads - before.lease_reads, 100);
    assert_eq!(after.messages_sent, before.messages_sent);
    // A follower asks the leader only, and it answers by its lease.
    let follower = leader % 3 + 1;
    assert_eq!(timeout(cluster.raft(follower).read(soon())).await, Ok(index));
    assert_eq!(raft.stats().lease_reads, after.lease_reads + 1);

    cluster.network.isolate(leader, 1..=3);
    let cut_at = Instant::now();
    let mut lasted = Duration::ZERO;
    while raft.read(Instant::now() + MS).await.is_ok() {
        lasted = cut_at.elapsed();
        tokio::time::sleep(MS).await;
    }
    assert!(lasted < 200 * MS && lasted > 100 * MS, "{lasted:?}");
    let read = raft.read(Instant::now() + 10 * MS).await;
    assert!(matches!(read, Err(ReadError::TimedOut)), "{read:?}");
}
