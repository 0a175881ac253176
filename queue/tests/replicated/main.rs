//! Replicated partitions: three nodes of a group, on paused time and a network in memory.
//!
//! `VOUSSOIR_REPLICATED_SEEDS` sets the number of seeds (40), `VOUSSOIR_SEED` plays one.

mod doubles;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use doubles::{Events, Stalling, Stalls};
use fastrand::Rng;
use tokio::time::{Instant, sleep};
use voussoir_queue::format::MAX_UNPACKED_BYTES;
use voussoir_queue::raft::{LeadError, ReplicaConfig, ReplicatedPartition};
use voussoir_queue::{
    Batch, BatchBuilder, Compaction, Durability, FetchError, Outcome, Partition, ProduceError,
    Record, StoreError,
};
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::{Config, Doubt, LogStore, Node, NodeConfig, ProposeError, StopReason};

const GROUP: u64 = 9;
const NODES: [u64; 3] = [1, 2, 3];

/// The group on three nodes, of which some may be down.
struct Cluster {
    network: Network,
    stores: BTreeMap<u64, MemoryStore>,
    nodes: BTreeMap<u64, (Node, ReplicatedPartition)>,
    stalls: Arc<Stalls>,
    seed: u64,
    max_bytes: u64,
    snapshot_after: u64,
    /// A node that takes a minute to notice that it has lost its majority, or its leader.
    slow: Option<u64>,
}

impl Cluster {
    async fn new(seed: u64, max_bytes: u64, snapshot_after: u64) -> Self {
        let (stores, nodes) = (BTreeMap::new(), BTreeMap::new());
        let network = Network::new();
        let slow = None;
        let stalls = Arc::default();
        let mut cluster =
            Self { network, stores, nodes, stalls, seed, max_bytes, snapshot_after, slow };
        for id in NODES {
            cluster.start(id).await;
        }
        cluster
    }

    async fn start(&mut self, id: u64) {
        let node = Node::start(NodeConfig::default(), self.network.node(id)).unwrap();
        let (log, stalls) = (self.stores.entry(id).or_default().clone(), Arc::clone(&self.stalls));
        let log = Stalling { id, log, stalls };
        let mut group = Config::new(id, NODES);
        (group.group, group.seed) = (GROUP, Some(self.seed * 7 + id));
        group.snapshot_after_entries = self.snapshot_after;
        group.keep_entries = self.snapshot_after.min(group.keep_entries);
        group.proposal_timeout = Duration::from_secs(2);
        if self.slow == Some(id) {
            let minute = Duration::from_secs(60);
            (group.min_election_timeout, group.max_election_timeout) = (minute, minute);
            group.disk_stall = minute;
        }
        let mut config = ReplicaConfig::default();
        config.max_bytes = self.max_bytes;
        config.partition.max_producers = 10;
        config.partition.max_index_entries = 10;
        let part = ReplicatedPartition::start(&node, group, Arc::new(log), config);
        let part = part.await.unwrap();
        self.nodes.insert(id, (node, part));
    }

    async fn stop(&mut self, id: u64) {
        if let Some((node, _)) = self.nodes.remove(&id) {
            node.shutdown().await;
        }
    }

    fn stall(&self, ids: impl IntoIterator<Item = u64>) {
        self.stalls.lock().extend(ids.into_iter().map(|id| (id, Vec::new())));
    }

    fn resume(&self) {
        for (id, writes) in std::mem::take(&mut *self.stalls.lock()) {
            for (write, done) in writes {
                self.stores[&id].write(write, done);
            }
        }
    }

    fn part(&self, id: u64) -> &ReplicatedPartition {
        &self.nodes[&id].1
    }

    /// A node that leads and knows what is committed.
    async fn leader(&self) -> u64 {
        // Ends: a majority is up, so that one of the nodes leads before long.
        for _ in 0..1_000 {
            for (id, (_, part)) in &self.nodes {
                if part.lead(soon(500)).await.is_ok() {
                    return *id;
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("nobody leads");
    }

    /// Appends until it is known that the batch is in the log: at whoever leads, again and again.
    async fn append(&self, batch: &Batch) -> (u64, bool) {
        for _ in 0..1_000 {
            let leader = self.leader().await;
            match self.part(leader).append(batch.clone(), soon(3_000)).await {
                Ok(appended) => return (appended.base_offset, appended.is_duplicate),
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        }
        panic!("the batch is never appended");
    }

    /// All nodes show the same records, and these are returned.
    async fn agreed(&self) -> Vec<(u64, String)> {
        let mut logs = Vec::new();
        for (_, part) in self.nodes.values() {
            part.sync(soon(20_000)).await.expect("a quorum is there");
            logs.push(records(part.reader()));
        }
        assert!(logs.windows(2).all(|two| two[0] == two[1]), "the nodes differ: {logs:?}");
        logs.remove(0)
    }
}

fn soon(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

fn batch(producer: i64, sequence: i32, value: &str) -> Batch {
    let mut builder = BatchBuilder::new().producer(producer, 0, sequence);
    builder.push(&Record::new(value.to_owned()).key("k")).unwrap();
    builder.finish().unwrap()
}

/// The offsets and values of a partition.
fn records(partition: &Partition) -> Vec<(u64, String)> {
    let (mut found, mut at) = (Vec::new(), partition.offsets().start);
    // Ends: each fetch has at least one batch, until the end.
    while at < partition.offsets().end {
        let fetched = partition.fetch(at, 1 << 20).unwrap();
        for record in fetched.records(MAX_UNPACKED_BYTES) {
            let record = record.unwrap();
            let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
            found.push((record.offset, value));
        }
        at = fetched.next_offset;
    }
    found
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_was_acknowledged_outlives_its_leader() {
    let mut cluster = Cluster::new(1, 64 << 20, 1_000).await;
    assert_eq!(cluster.append(&batch(1, 0, "first")).await, (0, false));
    assert_eq!(cluster.append(&batch(1, 1, "second")).await, (1, false));
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    // The answer was lost with the leader, as far as the producer knows.
    assert_eq!(cluster.append(&batch(1, 1, "second")).await, (1, true), "its first offset");
    assert_eq!(cluster.append(&batch(1, 2, "third")).await, (2, false));
    cluster.start(leader).await;
    let wanted: Vec<_> = (0_u64..).zip(["first", "second", "third"].map(str::to_owned)).collect();
    assert_eq!(cluster.agreed().await, wanted);
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_an_error_at_the_next_leader_too() {
    let mut cluster = Cluster::new(2, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    let leader = cluster.leader().await;
    let gap = cluster.part(leader).append(batch(1, 2, "third"), soon(3_000)).await;
    let error = gap.unwrap_err();
    assert!(matches!(&error, LeadError::Produce(ProduceError::OutOfOrder { .. })), "{error:?}");
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, false));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_acknowledges_nothing_and_writes_nothing_old() {
    let cluster = Cluster::new(3, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    let old = cluster.leader().await;
    let held = cluster.part(old).lead(soon(1_000)).await.unwrap();
    cluster.network.isolate(old, NODES);
    let lost = cluster.part(old).append(batch(2, 0, "cut off"), soon(10_000)).await.unwrap_err();
    assert_eq!(lost.outcome(), Outcome::Unknown, "{lost:?}");
    // The others go on, and the old leader is told so when it comes back.
    let mut next = None;
    for id in NODES.into_iter().filter(|id| *id != old).cycle().take(1_000) {
        if let Ok(appended) = cluster.part(id).append(batch(1, 1, "second"), soon(3_000)).await {
            next = Some(appended.base_offset);
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(next, Some(1));
    let stopped = held.append(batch(1, 1, "of the past"), Durability::Synced).await.unwrap_err();
    assert!(matches!(&stopped, ProduceError::Store(StoreError::Stopped { .. })), "{stopped:?}");
    cluster.network.heal();
    let refused = cluster.part(old).append(batch(3, 0, "too late"), soon(1)).await;
    assert!(refused.is_err(), "{refused:?}");
    let values: Vec<_> = cluster.agreed().await.into_iter().map(|(_, value)| value).collect();
    assert_eq!(values[..2], ["first", "second"]);
    assert!(!values.contains(&"of the past".to_owned()), "{values:?}");
}

#[tokio::test(start_paused = true)]
async fn a_write_against_an_older_log_is_rejected_by_every_node() {
    let cluster = Cluster::new(4, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    let old = cluster.leader().await;
    let other = NODES.into_iter().find(|id| *id != old).unwrap();
    let held = cluster.part(old).lead(soon(1_000)).await.unwrap();
    // Away and back again: the node leads, and what is held is about the log of its first term.
    hand_over(&cluster, old, other).await;
    let second = cluster.part(other).append(batch(1, 1, "second"), soon(3_000)).await.unwrap();
    assert_eq!(second.base_offset, 1);
    hand_over(&cluster, other, old).await;
    let error = held.append(batch(2, 0, "of the past"), Durability::Synced).await.unwrap_err();
    assert!(matches!(&error, ProduceError::Store(StoreError::Stopped { .. })), "{error:?}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert_eq!(cluster.append(&batch(2, 0, "third")).await, (2, false));
    let wanted: Vec<_> = (0_u64..).zip(["first", "second", "third"].map(str::to_owned)).collect();
    assert_eq!(cluster.agreed().await, wanted);
}

async fn hand_over(cluster: &Cluster, from: u64, to: u64) {
    let raft = cluster.part(from).raft();
    assert_eq!(raft.transfer_leadership(Some(to), soon(5_000)).await, Ok(to));
    // It may not know yet itself.
    let mut status = cluster.part(to).raft().status();
    status.wait_for(|status| status.leader == Some(to)).await.unwrap();
}

/// Makes `id` lead. From now on it leads for a minute without a majority.
async fn lead_by_slow(cluster: &mut Cluster, id: u64) {
    elect_slow(cluster, id).await;
    cluster.part(id).lead(soon(1_000)).await.unwrap();
}

async fn elect_slow(cluster: &mut Cluster, id: u64) {
    cluster.slow = Some(id);
    cluster.stop(id).await;
    cluster.start(id).await;
    let leader = cluster.leader().await;
    cluster.part(id).sync(soon(5_000)).await.unwrap();
    hand_over(cluster, leader, id).await;
}

/// The other nodes get what `leader` sends, and it gets no answer.
fn deafen(cluster: &Cluster, leader: u64) {
    for id in NODES.into_iter().filter(|id| *id != leader) {
        cluster.network.cut(id, leader);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_goes_on_after_a_write_whose_outcome_it_does_not_know() {
    let mut cluster = Cluster::new(11, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    lead_by_slow(&mut cluster, 1).await;
    let term = cluster.part(1).raft().status().borrow().term;
    deafen(&cluster, 1);
    let lost = cluster.part(1).append(batch(1, 1, "second"), soon(10_000)).await.unwrap_err();
    assert_eq!((lost.outcome(), lost.is_retryable()), (Outcome::Unknown, true), "{lost:?}");
    cluster.network.heal();
    assert_eq!(cluster.append(&batch(1, 1, "second")).await, (1, true), "its first offset");
    assert_eq!(cluster.append(&batch(1, 2, "third")).await, (2, false));
    assert_eq!(cluster.part(1).raft().status().borrow().term, term, "no other has led");
}

/// The disks of both followers hang, and their nodes answer. A release moves no end, so no later
/// write tells a partition that was opened without it.
#[tokio::test(start_paused = true)]
async fn a_release_of_unknown_outcome_is_known_to_what_is_opened_next() {
    let mut cluster = Cluster::new(14, 64 << 20, 1_000).await;
    for sequence in 0..10 {
        cluster.append(&batch(1, sequence, "released")).await;
    }
    lead_by_slow(&mut cluster, 1).await;
    let held = cluster.part(1).lead(soon(1_000)).await.unwrap();
    let term = cluster.part(1).raft().status().borrow().term;
    cluster.stall([2, 3]);
    held.release_before(8).await.unwrap_err();
    let part = cluster.part(1).clone();
    let opening = tokio::spawn(async move { part.lead(soon(1_900)).await });
    sleep(Duration::from_secs(1)).await;
    cluster.resume();
    let opened = opening.await.unwrap().unwrap();
    cluster.part(1).sync(soon(5_000)).await.unwrap();
    assert_eq!(cluster.part(1).reader().offsets().start, 8, "it was committed");
    assert_eq!(opened.offsets().start, 8);
    assert_eq!(cluster.part(1).raft().status().borrow().term, term, "no other has led");
}

#[tokio::test(start_paused = true)]
async fn readers_of_a_node_that_has_stopped_are_told() {
    for fails in [false, true] {
        let mut cluster = Cluster::new(15, 64 << 20, 1_000).await;
        cluster.append(&batch(1, 0, "first")).await;
        let leader = cluster.leader().await;
        let held = cluster.part(leader).lead(soon(1_000)).await.unwrap();
        let reader = cluster.part(leader).reader().clone();
        let wait = |partition: &Partition| tokio::spawn(partition.wait_for(1));
        let waiting = [wait(&held), wait(&reader)];
        sleep(Duration::from_millis(10)).await;
        if fails {
            let mut later = vec![0; 40];
            later[0] = 2;
            cluster.part(leader).raft().propose(later.into()).await.unwrap_err();
        } else {
            let (node, part) = cluster.nodes.remove(&leader).unwrap();
            node.shutdown().await;
            let error = part.append(batch(1, 1, "second"), soon(1_000)).await.unwrap_err();
            assert_eq!((error.outcome(), error.leader()), (Outcome::NotApplied, None), "{error:?}");
        }
        for waits in waiting {
            let told = tokio::time::timeout(Duration::from_secs(30), waits).await;
            assert_eq!(told.expect("it is told").unwrap(), Err(FetchError::Closed));
        }
        let looks = reader.fetch_wait(1, 1 << 20, Duration::from_secs(1)).await;
        assert_eq!(looks.unwrap_err(), FetchError::Closed);
        assert_eq!(records(&reader), [(0, "first".to_owned())], "what it holds can be read");
    }
}

/// One that never writes would wait for the log of the old term for ever.
#[tokio::test(start_paused = true)]
async fn what_a_leader_opened_is_closed_once_it_hears_of_another() {
    let cluster = Cluster::new(16, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    let old = cluster.leader().await;
    let held = cluster.part(old).lead(soon(1_000)).await.unwrap();
    let waits = tokio::spawn(held.wait_for(1));
    let next = NODES.into_iter().find(|id| *id != old).unwrap();
    hand_over(&cluster, old, next).await;
    let error = cluster.part(old).lead(soon(1_000)).await.unwrap_err();
    assert_eq!(error, LeadError::NotLeader { leader: Some(next) });
    let told = tokio::time::timeout(Duration::from_secs(30), waits).await;
    assert_eq!(told.expect("it is told").unwrap(), Err(FetchError::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_leaders_is_no_error() {
    let counts = Arc::<[AtomicUsize; 2]>::default();
    let _counted = tracing::subscriber::set_default(Events(Arc::clone(&counts)));
    let cluster = Cluster::new(18, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    let old = cluster.leader().await;
    let held = cluster.part(old).lead(soon(1_000)).await.unwrap();
    hand_over(&cluster, old, NODES.into_iter().find(|id| *id != old).unwrap()).await;
    let stopped = held.append(batch(1, 1, "second"), Durability::Synced).await.unwrap_err();
    assert!(matches!(stopped, ProduceError::Store(StoreError::Stopped { .. })), "{stopped:?}");
    let counts = [0, 1].map(|at: usize| counts[at].load(Ordering::SeqCst));
    assert_eq!(counts, [1, 0], "warnings and errors");
}

/// A call that asks the group for long, because nobody hears its node, holds up no other.
#[tokio::test(start_paused = true)]
async fn whoever_leads_is_told_at_once_while_another_call_asks_the_group() {
    let mut cluster = Cluster::new(17, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    elect_slow(&mut cluster, 1).await;
    cluster.network.cut(1, 2);
    cluster.network.cut(1, 3);
    let part = cluster.part(1).clone();
    let asks = tokio::spawn(async move { part.lead(soon(60_000)).await });
    let mut status = cluster.part(1).raft().status();
    let other = status.wait_for(|status| status.leader.is_some_and(|id| id != 1));
    let other = tokio::time::timeout(Duration::from_secs(30), other).await;
    let leader = other.expect("the others elect one").unwrap().leader;
    assert!(!asks.is_finished());
    let began = Instant::now();
    let error = cluster.part(1).append(batch(1, 1, "second"), soon(5_000)).await.unwrap_err();
    assert_eq!(error, LeadError::NotLeader { leader });
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_first_applies_what_is_committed() {
    let cluster = Cluster::new(12, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    let old = cluster.leader().await;
    let leads = NODES.into_iter().filter(|id| *id != old).map(|id| {
        let part = cluster.part(id).clone();
        tokio::spawn(async move {
            let mut status = part.raft().status();
            status.wait_for(|status| status.leader == Some(id)).await.unwrap();
            part.lead(soon(5_000)).await.map(|partition| partition.offsets().end)
        })
    });
    let mut leads: Vec<_> = leads.collect();
    deafen(&cluster, old);
    // The others have it, and the next leader commits it with the first entry of its term.
    let lost = cluster.part(old).append(batch(1, 1, "second"), soon(3_000)).await;
    assert_eq!(lost.unwrap_err().outcome(), Outcome::Unknown);
    // Ends: one of the two leads.
    while !leads.iter().any(tokio::task::JoinHandle::is_finished) {
        sleep(Duration::from_millis(10)).await;
    }
    let at = leads.iter().position(tokio::task::JoinHandle::is_finished).unwrap();
    assert_eq!(leads.remove(at).await.unwrap(), Ok(2));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_replaced_unknowingly_calls_no_sequence_a_gap() {
    let mut cluster = Cluster::new(9, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    lead_by_slow(&mut cluster, 1).await;
    cluster.network.isolate(1, NODES);
    let mut second = None;
    for id in [2, 3].into_iter().cycle().take(1_000) {
        second = cluster.part(id).append(batch(1, 1, "second"), soon(3_000)).await.ok();
        if second.is_some() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(second.map(|appended| appended.base_offset), Some(1));
    assert_eq!(cluster.part(1).raft().status().borrow().leader, Some(1), "it knows of no other");
    let error = cluster.part(1).append(batch(1, 2, "third"), soon(1_000)).await.unwrap_err();
    assert!(matches!(&error, LeadError::Read(_)), "{error:?}");
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, true));
    cluster.network.heal();
    assert_eq!(cluster.append(&batch(1, 2, "third")).await, (2, false));
}

#[tokio::test(start_paused = true)]
async fn a_command_of_a_later_version_stops_nodes_and_what_is_none_is_passed_over() {
    let cluster = Cluster::new(10, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    let leader = cluster.leader().await;
    cluster.part(leader).raft().propose("no command".into()).await.unwrap();
    assert_eq!(cluster.append(&batch(1, 1, "second")).await, (1, false));
    assert_eq!(cluster.agreed().await.len(), 2);
    let leader = cluster.leader().await;
    let mut later = vec![0; 40];
    later[0] = 2;
    let stopped = cluster.part(leader).raft().propose(later.into()).await.unwrap_err();
    let is_machine = |reason: &StopReason| matches!(reason, StopReason::Machine(_));
    let why = matches!(&stopped, ProposeError::Unknown(Doubt::Stopped(why)) if is_machine(why));
    assert!(why, "{stopped:?}");
    let error = cluster.part(leader).append(batch(1, 2, "third"), soon(1_000)).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied, "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn followers_wake_their_readers_and_reject_writes() {
    let cluster = Cluster::new(5, 64 << 20, 1_000).await;
    let leader = cluster.leader().await;
    let follower = NODES.into_iter().find(|id| *id != leader).unwrap();
    let reader = cluster.part(follower).reader().clone();
    let began = Instant::now();
    let waiting = tokio::spawn({
        let reader = reader.clone();
        async move { reader.fetch_wait(0, 1 << 20, Duration::from_secs(60)).await }
    });
    let error = reader.append(batch(1, 0, "here"), Durability::Synced).await.unwrap_err();
    assert!(matches!(&error, ProduceError::Store(StoreError::Rejected { .. })), "{error:?}");
    let refused = cluster.part(follower).append(batch(1, 0, "here"), soon(1_000)).await;
    assert_eq!(refused, Err(LeadError::NotLeader { leader: Some(leader) }));
    let (offset, _) = cluster.append(&batch(1, 0, "there")).await;
    let fetched = waiting.await.unwrap().unwrap();
    assert_eq!((fetched.batches.len(), fetched.next_offset), (1, offset + 1));
    assert!(began.elapsed() < Duration::from_secs(30), "it was not woken, its time was over");
    // What a client was told at the leader it reads at the follower.
    let (offset, _) = cluster.append(&batch(1, 1, "again")).await;
    let woken = tokio::time::timeout(Duration::from_secs(30), reader.wait_for(offset)).await;
    woken.expect("it is woken").unwrap();
    assert_eq!(records(&reader).last().unwrap(), &(1, "again".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_follower_behind_the_log_is_rebuilt_with_producers_whose_batches_are_gone() {
    let mut cluster = Cluster::new(6, 64 << 20, 8).await;
    cluster.append(&batch(1, 0, "of producer 1")).await;
    let leader = cluster.leader().await;
    let follower = NODES.into_iter().find(|id| *id != leader).unwrap();
    cluster.stop(follower).await;
    for sequence in 0..40 {
        cluster.append(&batch(2, sequence, "of producer 2")).await;
    }
    let leader = cluster.leader().await;
    let partition = cluster.part(leader).lead(soon(1_000)).await.unwrap();
    assert_eq!(partition.release_before(30).await.unwrap(), 30);
    for sequence in 40..60 {
        cluster.append(&batch(2, sequence, "of producer 2")).await;
    }
    cluster.start(follower).await;
    let all = cluster.agreed().await;
    assert_eq!((all[0].0, all.len()), (30, 31));
    let reader = cluster.part(follower).reader();
    assert!(matches!(reader.fetch(3, 100), Err(FetchError::OutOfRange { .. })));
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    let again = cluster.append(&batch(1, 0, "of producer 1")).await;
    assert_eq!(again, (0, true), "it is known, though its batch was released");
}

#[tokio::test(start_paused = true)]
async fn a_full_partition_rejects_on_every_node_until_it_is_released() {
    let cluster = Cluster::new(7, 1 << 20, 1_000).await;
    let large = "v".repeat(300 << 10);
    for sequence in 0..3 {
        cluster.append(&batch(1, sequence, &large)).await;
    }
    let leader = cluster.leader().await;
    let full = cluster.part(leader).append(batch(1, 3, &large), soon(3_000)).await.unwrap_err();
    let is_full = matches!(&full, LeadError::Produce(ProduceError::Store(StoreError::Full { .. })));
    assert!(is_full && full.outcome() == Outcome::NotApplied, "{full:?}");
    let partition = cluster.part(leader).lead(soon(1_000)).await.unwrap();
    partition.release_before(2).await.unwrap();
    assert_eq!(cluster.append(&batch(1, 3, &large)).await, (3, false));
    assert_eq!(cluster.agreed().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn transactions_and_compaction_are_refused_by_type() {
    let cluster = Cluster::new(8, 64 << 20, 1_000).await;
    cluster.append(&batch(1, 0, "first")).await;
    let leader = cluster.leader().await;
    let partition = cluster.part(leader).lead(soon(1_000)).await.unwrap();
    let mut bytes = batch(2, 0, "in a transaction").bytes().to_vec();
    // The bit of transactions in the attributes, and the checksum behind it again.
    bytes[22] |= 1 << 4;
    let crc = crc_fast::crc32_iscsi(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    let batch = Batch::decode(bytes.into()).unwrap();
    let error = cluster.part(leader).append(batch, soon(1_000)).await.unwrap_err();
    let is_refused = matches!(&error, LeadError::Produce(ProduceError::Unsupported { .. }));
    assert!(is_refused && error.outcome() == Outcome::NotApplied, "{error:?}");
    // Two batches, so that there is something to compact: the last one always stays.
    cluster.append(&self::batch(1, 1, "second")).await;
    let compacted = partition.compact(Compaction::default(), 0).await;
    assert!(compacted.is_err(), "{compacted:?}");
    assert_eq!(cluster.agreed().await.len(), 2);
}

/// A producer: it sends the batch of `sequence` until that is acknowledged.
#[derive(Default)]
struct Client {
    sequence: i32,
    /// The outcome of an attempt with `sequence` is not known.
    is_unknown: bool,
    /// Some attempt with `sequence` was refused.
    is_refused: bool,
    /// (value, offset) of what was acknowledged.
    acknowledged: Vec<(String, u64)>,
}

impl Client {
    fn batch(&self, id: i64) -> Batch {
        batch(id, self.sequence, &self.value(id))
    }

    fn value(&self, id: i64) -> String {
        format!("{id}-{}", self.sequence)
    }

    fn acknowledge(&mut self, id: i64, base_offset: u64) {
        self.acknowledged.push((self.value(id), base_offset));
        self.sequence += 1;
        (self.is_unknown, self.is_refused) = (false, false);
    }
}

/// Counts of what the seeds led to.
#[derive(Debug, Default)]
struct Situations {
    stopped: u32,
    cut_off: u32,
    deaf: u32,
    unknown: u32,
    known_again: u32,
    refused: u32,
    never_sent_again: u32,
    released: u32,
    read_while_behind: u32,
}

#[test]
fn no_failover_loses_or_doubles_what_was_acknowledged() {
    let number = |name: &str| -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().expect("a number"))
    };
    let mut seen = Situations::default();
    if let Some(seed) = number("VOUSSOIR_SEED") {
        return play(seed, &mut seen);
    }
    for seed in 0..number("VOUSSOIR_REPLICATED_SEEDS").unwrap_or(40) {
        println!("seed {seed}: VOUSSOIR_SEED={seed} cargo test -p voussoir-queue --features raft");
        play(seed, &mut seen);
    }
    println!("{seen:?}");
    let Situations { stopped, cut_off, deaf, unknown, known_again, refused, .. } = seen;
    let Situations { never_sent_again, released, read_while_behind, .. } = seen;
    let of_answers = [unknown, known_again, refused, never_sent_again];
    let others = [stopped, cut_off, deaf, released, read_while_behind];
    let is_reached = of_answers.iter().chain(&others).all(|count| *count > 0);
    assert!(is_reached, "a situation was never reached: {seen:?}");
}

fn play(seed: u64, seen: &mut Situations) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut rng = Rng::with_seed(seed);
        let mut cluster = Cluster::new(seed, 8 << 20, rng.u64(4..30)).await;
        let mut clients: BTreeMap<i64, Client> =
            (1..=3).map(|id| (id, Client::default())).collect();
        let mut read = BTreeMap::new();
        for _ in 0..60 {
            round(&mut cluster, &mut rng, &mut clients, seen).await;
            look(&cluster, &mut rng, &mut read, seen);
            if rng.u8(..) < 20 {
                release(&cluster, &mut rng, seen).await;
            }
        }
        cluster.network.heal();
        for (id, client) in &mut clients {
            if client.is_unknown {
                let (base_offset, _) = cluster.append(&client.batch(*id)).await;
                client.acknowledge(*id, base_offset);
            } else {
                seen.never_sent_again += u32::from(client.is_refused);
            }
        }
        judge(&clients, &read, &cluster.agreed().await);
    });
}

/// Some producers send a batch each, while something befalls the leader.
async fn round(
    cluster: &mut Cluster,
    rng: &mut Rng,
    clients: &mut BTreeMap<i64, Client>,
    seen: &mut Situations,
) {
    let leader = cluster.leader().await;
    let mut answers = Vec::new();
    for (id, client) in clients.iter() {
        if rng.bool() {
            let to = if rng.u8(..) < 230 { leader } else { rng.u64(1..=3) };
            let (part, sent) = (cluster.part(to).clone(), client.batch(*id));
            let deadline = soon(rng.u64(500..4_000));
            let answer = tokio::spawn(async move { part.append(sent, deadline).await });
            answers.push((*id, answer));
        }
    }
    trouble(cluster, rng, leader, seen).await;
    for (id, answer) in answers {
        let client = clients.get_mut(&id).unwrap();
        match answer.await.unwrap() {
            Ok(appended) => {
                seen.known_again += u32::from(client.is_unknown && appended.is_duplicate);
                client.acknowledge(id, appended.base_offset);
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error:?}");
                let is_unknown = error.outcome() == Outcome::Unknown;
                client.is_unknown |= is_unknown;
                client.is_refused |= !is_unknown;
                seen.unknown += u32::from(is_unknown);
                seen.refused += u32::from(!is_unknown);
            }
        }
    }
    cluster.network.heal();
}

async fn trouble(cluster: &mut Cluster, rng: &mut Rng, leader: u64, seen: &mut Situations) {
    let kind = rng.u8(..);
    if kind < 40 {
        // Some way into the appends.
        for _ in 0..rng.u8(0..12) {
            tokio::task::yield_now().await;
        }
    }
    match kind {
        0..20 => {
            cluster.stop(leader).await;
            sleep(Duration::from_millis(rng.u64(0..600))).await;
            cluster.start(leader).await;
            seen.stopped += 1;
        }
        20..40 => {
            cluster.network.isolate(leader, NODES);
            sleep(Duration::from_millis(rng.u64(0..3_000))).await;
            seen.cut_off += 1;
        }
        40..60 => {
            deafen(cluster, leader);
            sleep(Duration::from_millis(rng.u64(0..3_000))).await;
            seen.deaf += 1;
        }
        _ => {}
    }
    if rng.bool() {
        cluster.network.heal();
    }
}

/// Reads what a node shows at the moment. Nobody may ever find anything else at those offsets.
fn look(cluster: &Cluster, rng: &mut Rng, read: &mut BTreeMap<u64, String>, seen: &mut Situations) {
    let all = records(cluster.part(rng.u64(1..=3)).reader());
    let newest = read.last_key_value().map_or(0, |(offset, _)| *offset);
    seen.read_while_behind += u32::from(all.last().is_some_and(|(offset, _)| *offset < newest));
    for (offset, value) in all {
        let before = read.entry(offset).or_insert_with(|| value.clone());
        assert_eq!(*before, value, "offset {offset} has changed");
    }
}

async fn release(cluster: &Cluster, rng: &mut Rng, seen: &mut Situations) {
    let leader = cluster.leader().await;
    let end = cluster.part(leader).reader().offsets().end;
    if let Ok(partition) = cluster.part(leader).lead(soon(1_000)).await {
        let released = partition.release_before(rng.u64(0..=end)).await;
        seen.released += u32::from(released.is_ok());
    }
}

/// Each record that was acknowledged is at its offset, once, unless it was released; nothing else
/// is, also of what was refused and not sent again; and what was ever read is still so.
fn judge(clients: &BTreeMap<i64, Client>, read: &BTreeMap<u64, String>, all: &[(u64, String)]) {
    let start = all.first().map_or(u64::MAX, |(offset, _)| *offset);
    let acknowledged = clients.values().flat_map(|client| &client.acknowledged);
    let by_offset: BTreeMap<u64, String> =
        acknowledged.clone().map(|(value, offset)| (*offset, value.clone())).collect();
    assert_eq!(by_offset.len(), acknowledged.count(), "an offset was given twice");
    let wanted: Vec<_> = by_offset.clone().into_iter().filter(|(at, _)| *at >= start).collect();
    assert_eq!(all, wanted);
    for (offset, value) in read {
        assert_eq!(by_offset.get(offset), Some(value), "what was read at {offset}");
    }
    for client in clients.values() {
        let offsets = client.acknowledged.iter().map(|(_, offset)| *offset);
        assert!(offsets.is_sorted_by(|a, b| a < b), "a producer's order");
    }
}
