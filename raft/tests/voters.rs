//! A log belongs to the voters under which it was begun, and a log that is known to be lost stays
//! lost.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, Text, append, timeout};
use tokio::time::Instant;
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::testing::FaultyStore;
use voussoir_raft::{Change, Config, HaltReason, LogStore, LogWrite, Raft, Role, StartError};

const MS: Duration = Duration::from_millis(1);

async fn start(
    voters: Vec<u64>,
    store: FaultyStore,
    network: &Network,
) -> Result<Raft, StartError> {
    let mut config = Config::new(1, voters);
    config.seed = Some(7);
    let machine = Box::new(Text::default());
    timeout(Raft::start(config, Arc::new(store), machine, network.node(1))).await
}

/// Two majorities of different groups need not overlap: a node that led alone after one start with
/// a wrong list of peers would acknowledge what the others never hear of, in a term of theirs.
#[tokio::test(start_paused = true)]
async fn a_node_does_not_start_with_other_voters_than_it_began_with() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    timeout(cluster.raft(leader).propose(append("a"))).await.expect("a majority is there");
    timeout(cluster.raft(1).shutdown()).await;
    let store = cluster.nodes[&1].store.clone();
    let network = Network::new();
    for voters in [vec![1], vec![1, 2], vec![1, 2, 3, 4], vec![1, 2, 4]] {
        store.crash();
        let started = start(voters.clone(), store.clone(), &network).await;
        assert!(matches!(started, Err(StartError::Restored(_))), "{voters:?}: {started:?}");
    }
    // The order of the list is no difference.
    store.crash();
    let again = start(vec![3, 1, 2], store, &network).await.expect("the same voters");
    timeout(again.shutdown()).await;
    cluster.restart(1).await;
    cluster.until(1, |status| status.applied >= 2).await;
    assert_eq!(cluster.text(1), "a");
}

/// A node that was away while the voters changed has a log that does not know them yet: it starts
/// with the list of the present ones all the same, and counts by its log.
#[tokio::test(start_paused = true)]
async fn where_the_membership_changes_the_log_knows_the_voters() {
    let tune = |config: &mut Config| {
        config.dynamic = true;
        config.voters = if config.id > 3 { Vec::new() } else { vec![1, 2, 3] };
    };
    let mut cluster = Cluster::tuned(4, tune).await;
    let leader = cluster.led_by(3).await;
    let behind = leader % 3 + 1;
    timeout(cluster.raft(behind).shutdown()).await;
    let change = Change::new().voter(4);
    let deadline = Instant::now() + Duration::from_secs(20);
    timeout(cluster.raft(leader).change(change, deadline)).await.expect("three are there");
    cluster.tune = Box::new(|config| config.dynamic = true);
    cluster.restart(behind).await;
    assert_eq!(cluster.raft(behind).members().borrow().voters(), [1, 2, 3]);
    cluster.until(behind, |status| status.members_index > 0).await;
    cluster.until(behind, |status| status.commit >= status.members_index).await;
    assert_eq!(cluster.raft(behind).members().borrow().voters(), [1, 2, 3, 4]);
}

/// Also before anything was committed: a vote is enough.
#[tokio::test(start_paused = true)]
async fn the_voters_are_written_with_the_first_vote_and_once() {
    let network = Network::new();
    let store = FaultyStore::new(Arc::new(MemoryStore::new()));
    let alone = start(vec![1], store.clone(), &network).await.expect("it starts");
    let mut status = alone.status();
    timeout(status.wait_for(|status| status.term >= 1)).await.expect("it runs");
    timeout(alone.shutdown()).await;
    let restored = store.restore().await.expect("it can be read");
    assert_eq!(restored.voters(), Some(&[1][..]));
    let other = start(vec![1, 2], store, &network).await;
    assert!(matches!(other, Err(StartError::Restored(_))), "{other:?}");
}

/// A follower that has lost what it acknowledged halts. When it is started again it must not be an
/// ordinary voter, also under a leader that does not remember.
#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_log_stays_halted_over_restarts() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for text in ["a", "b", "c"] {
        timeout(cluster.raft(leader).propose(append(text))).await.expect("a majority is there");
    }
    tokio::time::sleep(300 * MS).await;
    let lost = leader % 3 + 1;
    timeout(cluster.raft(lost).shutdown()).await;
    cluster.nodes.get_mut(&lost).expect("it is known").store =
        FaultyStore::new(Arc::new(MemoryStore::new()));
    cluster.restart(lost).await;
    let status = cluster.until(lost, |status| status.halted.is_some()).await;
    assert_eq!(status.halted, Some(HaltReason::LogLost));
    let store = cluster.nodes[&lost].store.clone();
    let mut restored = store.restore().await.expect("it can be read");
    for _ in 0..100 {
        if restored.is_damaged() {
            break;
        }
        tokio::time::sleep(10 * MS).await;
        restored = store.restore().await.expect("it can be read");
    }
    assert!(restored.is_damaged(), "the loss is recorded");
    // A leader that remembers nothing.
    for id in (1..=3).filter(|id| *id != lost) {
        cluster.restart(id).await;
    }
    cluster.restart(lost).await;
    assert_eq!(cluster.status(lost).halted, Some(HaltReason::Damaged));
    tokio::time::sleep(3000 * MS).await;
    assert_eq!(cluster.status(lost).halted, Some(HaltReason::Damaged));
    assert_ne!(cluster.status(lost).role, Role::Leader);
    let write = LogWrite { condemned: true, ..LogWrite::default() };
    assert!(!write.is_empty() && !write.is_only_commit_index());
}
