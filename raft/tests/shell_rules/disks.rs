//! What a node makes of its disk.

use std::time::Duration;

use voussoir_raft::testing::FaultyStore;
use voussoir_raft::{
    Config, Doubt, HaltReason, Heartbeat, Message, Outcome, ProposeError, SendError, StopReason,
    Transport,
};

use crate::cluster::{Cluster, append, soon, timeout};

#[tokio::test(start_paused = true)]
async fn a_write_vouches_for_itself_alone() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let stores = || (1..=3).filter(|id| *id != leader).map(|id| &cluster.nodes[&id].store);
    stores().for_each(FaultyStore::stall);
    let mut asked = Vec::new();
    for (text, writes) in [("a", 1), ("b", 2)] {
        let raft = cluster.raft(leader).clone();
        asked.push(tokio::spawn(async move { raft.propose(append(text)).await }));
        timeout(async {
            while stores().any(|store| store.stalled() < writes) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    stores().for_each(|store| store.carry_out(1));
    let mut later = asked.pop().expect("two were asked");
    let first = asked.pop().expect("two were asked");
    assert_eq!(timeout(first).await.unwrap().unwrap(), "a");
    let early = tokio::time::timeout(Duration::from_millis(300), &mut later).await;
    assert!(early.is_err(), "its write is on one disk of three: {early:?}");
    stores().for_each(FaultyStore::resume);
    assert_eq!(timeout(later).await.unwrap().unwrap(), "ab");
}

/// Whoever has waited may open the store anew, or delete what it holds.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_node_is_that_of_its_writes_unless_the_disk_hangs() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let stall = Config::default().disk_stall;
    for (id, hangs) in [(leader % 3 + 1, false), ((leader + 1) % 3 + 1, true)] {
        let store = &cluster.nodes[&id].store;
        store.stall();
        let raft = cluster.raft(leader).clone();
        let asked = tokio::spawn(async move { raft.propose(append("a")).await });
        tokio::time::sleep(stall / 8).await;
        assert_eq!(store.stalled(), 1, "a write is under way");
        let shut = cluster.raft(id).shutdown();
        tokio::pin!(shut);
        assert!(tokio::time::timeout(stall / 2, &mut shut).await.is_err(), "it is waited for");
        assert!(cluster.raft(id).stopped().is_some(), "but the node has stopped");
        if !hangs {
            store.resume();
        }
        let limit = if hangs { stall } else { stall / 8 };
        assert!(tokio::time::timeout(limit, &mut shut).await.is_ok(), "not for ever: {hangs}");
        asked.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_write_fails_halts_and_the_others_go_on() {
    let cluster = Cluster::new(3).await;
    let old = cluster.leader().await;
    timeout(cluster.raft(old).propose(append("a"))).await.unwrap();
    cluster.nodes[&old].store.fail();
    let error = timeout(cluster.raft(old).propose(append("b"))).await.unwrap_err();
    let cause = Some("the store failed: injected".to_owned());
    let halted = StopReason::Halted { reason: HaltReason::PersistFailed, cause };
    assert_eq!(error, ProposeError::Unknown(Doubt::Stopped(halted.clone())));
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(cluster.raft(old).stopped(), Some(halted.clone()));
    let late = timeout(cluster.raft(old).propose(append("late"))).await.unwrap_err();
    assert_eq!(late, ProposeError::Stopped(halted));
    assert_eq!(cluster.status(old).halted, Some(HaltReason::PersistFailed));
    let new = cluster.led_by_other_than(old, 2).await;
    let text = timeout(cluster.raft(new).propose(append("c"))).await.unwrap();
    assert!(text == "ac" || text == "abc", "b is unknown: {text:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_halted_is_out_of_reach() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let hurt = leader % 3 + 1;
    let beat = Message::Heartbeat(Heartbeat { term: 1, round: 1, commit: 0 });
    let stranger = cluster.network.node(9);
    stranger.send(hurt, 0, beat.clone()).unwrap();
    cluster.nodes[&hurt].store.fail();
    timeout(cluster.raft(leader).propose(append("a"))).await.unwrap();
    let mut status = cluster.raft(hurt).status();
    timeout(async { while status.changed().await.is_ok() {} }).await;
    assert_eq!(status.borrow().halted, Some(HaltReason::PersistFailed));
    assert_eq!(stranger.send(hurt, 0, beat), Err(SendError::UnknownPeer));
}

#[tokio::test(start_paused = true)]
async fn the_log_is_cut_behind_a_stored_snapshot_only() {
    let eager = |config: &mut Config| {
        config.snapshot_after_entries = 10;
        config.keep_entries = 0;
    };
    let mut cluster = Cluster::tuned(1, eager).await;
    timeout(cluster.leader()).await;
    cluster.nodes[&1].store.hold_snapshots();
    for _ in 0..20 {
        timeout(cluster.raft(1).propose(append("."))).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // A snapshot was on its way to the disk all the time, and is lost.
    cluster.restart(1).await;
    timeout(cluster.leader()).await;
    timeout(cluster.raft(1).read(soon())).await.unwrap();
    assert_eq!(cluster.text(1), ".".repeat(20));
    let shot = timeout(cluster.until(1, |status| status.snapshot > 0)).await;
    assert!(shot.first > 1, "the next one is taken, and the log is cut behind it");
}
