//! Nodes on paused tokio time, with stores and a network in memory.

mod cluster;

use std::time::Duration;

use cluster::{Cluster, append, soon, timeout};
use voussoir_raft::{Outcome, ProposeError, ReadError, Role, StopReason};

#[tokio::test(start_paused = true)]
async fn one_voter_is_a_cluster() {
    let mut cluster = Cluster::new(1).await;
    let leader = timeout(cluster.leader()).await;
    assert_eq!(leader, 1);
    assert_eq!(timeout(cluster.raft(1).propose(append("a"))).await.unwrap(), "a");
    assert_eq!(timeout(cluster.raft(1).propose(append("b"))).await.unwrap(), "ab");
    cluster.restart(1).await;
    timeout(cluster.leader()).await;
    timeout(cluster.raft(1).read(soon())).await.unwrap();
    assert_eq!(cluster.text(1), "ab");
}

#[tokio::test(start_paused = true)]
async fn what_is_answered_is_everywhere() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for (text, answer) in [("a", "a"), ("b", "ab"), ("c", "abc")] {
        assert_eq!(timeout(cluster.raft(leader).propose(append(text))).await.unwrap(), answer);
        for id in 1..=3 {
            timeout(cluster.raft(id).read(soon())).await.unwrap();
            assert_eq!(cluster.text(id), answer, "a read on node {id}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_says_who_leads() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    let error = timeout(cluster.raft(follower).propose(append("a"))).await.unwrap_err();
    assert_eq!(error, ProposeError::NotLeader { leader: Some(leader) });
    assert_eq!((error.outcome(), error.leader()), (Outcome::NotApplied, Some(leader)));
}

#[tokio::test(start_paused = true)]
async fn the_others_go_on_without_a_leader_that_is_cut_off() {
    let cluster = Cluster::new(3).await;
    let old = cluster.leader().await;
    timeout(cluster.raft(old).propose(append("a"))).await.unwrap();
    cluster.network.isolate(old, 1..=3);
    let before = tokio::time::Instant::now();
    let stranded = tokio::spawn({
        let raft = cluster.raft(old).clone();
        async move { raft.propose(append("x")).await }
    });
    let new = cluster.led_by_other_than(old, 2).await;
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    assert_eq!(timeout(cluster.raft(new).propose(append("b"))).await.unwrap(), "ab");

    cluster.until(old, |status| status.role != Role::Leader).await;
    let (began, wait) = (tokio::time::Instant::now(), Duration::from_secs(1));
    let read = timeout(cluster.raft(old).read(began + wait)).await.unwrap_err();
    assert_eq!(read, ReadError::NoLeader, "it waits for a leader until its deadline");
    assert_eq!(began.elapsed(), wait);

    // One that still waits when the node is back is answered, whoever leads by then.
    let patient = tokio::spawn({
        let raft = cluster.raft(old).clone();
        async move { raft.read(soon()).await }
    });
    tokio::time::sleep(wait).await;
    assert!(!patient.is_finished());
    cluster.network.heal();
    timeout(patient).await.unwrap().unwrap();
    assert_eq!(cluster.text(old), "ab", "the read sees what was written elsewhere");
    cluster.leader().await;
    let lost = timeout(stranded).await.unwrap().unwrap_err();
    assert_eq!(lost, ProposeError::Superseded);
    assert_eq!(lost.outcome(), Outcome::NotApplied);
    assert_eq!(cluster.converge(new).await, "ab");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_cluster_knows_everything() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for text in ["a", "b", "c"] {
        timeout(cluster.raft(leader).propose(append(text))).await.unwrap();
    }
    let term = cluster.status(leader).term;
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    let leader = cluster.leader().await;
    assert!(cluster.status(leader).term > term);
    timeout(cluster.raft(leader).read(soon())).await.unwrap();
    assert_eq!(cluster.converge(leader).await, "abc");
}

fn eager_snapshots(config: &mut voussoir_raft::Config) {
    config.snapshot_after_entries = 10;
    config.keep_entries = 0;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_missed_too_much_gets_a_snapshot() {
    let mut cluster = Cluster::tuned(3, eager_snapshots).await;
    let leader = cluster.leader().await;
    let late = leader % 3 + 1;
    cluster.network.isolate(late, 1..=3);
    for _ in 0..50 {
        timeout(cluster.raft(leader).propose(append("."))).await.unwrap();
    }
    let shot = cluster.until(leader, |status| status.snapshot > 30).await;
    assert!(shot.first > 30, "the log was cut");
    cluster.network.heal();
    let caught_up = cluster.until(late, |status| status.applied >= shot.commit).await;
    assert!(caught_up.snapshot > 0);
    assert_eq!(*cluster.nodes[&late].machine.restored.lock(), 1);
    assert_eq!(cluster.converge(leader).await, ".".repeat(50));

    cluster.restart(late).await;
    let again = cluster.led_by(3).await;
    timeout(cluster.raft(late).read(soon())).await.unwrap();
    assert_eq!(cluster.converge(again).await, ".".repeat(50));
}

#[tokio::test(start_paused = true)]
async fn after_shutdown_every_call_says_so() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let raft = cluster.raft(leader).clone();
    timeout(raft.shutdown()).await;
    timeout(raft.shutdown()).await;
    assert_eq!(raft.stopped(), Some(StopReason::ShutDown));
    let propose = timeout(raft.propose(append("a"))).await.unwrap_err();
    assert_eq!(propose, ProposeError::Stopped(StopReason::ShutDown));
    assert_eq!(propose.outcome(), Outcome::NotApplied);
    let read = timeout(raft.read(soon())).await.unwrap_err();
    assert_eq!(read, ReadError::Stopped(StopReason::ShutDown));
    cluster.led_by(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_without_handles_stops() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let mut status = cluster.raft(leader).status();
    cluster.nodes.remove(&leader);
    timeout(async { while status.changed().await.is_ok() {} }).await;
    cluster.led_by(2).await;
}
