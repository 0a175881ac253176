//! Disks, machines and networks that fail, on paused tokio time.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, Text, append, soon, timeout};
use tokio::time::Instant;
use voussoir_raft::memory::Network;
use voussoir_raft::testing::FaultyStore;
use voussoir_raft::{
    Config, HaltReason, ProposeError, Raft, ReadError, Role, StartError, StopReason,
};

/// Every call to a node that has stopped says why.
async fn all_calls_say(raft: &Raft, reason: &StopReason) {
    assert_eq!(raft.stopped().as_ref(), Some(reason));
    let propose = timeout(raft.propose(append("late"))).await.unwrap_err();
    assert_eq!(propose, ProposeError::Stopped(reason.clone()));
    let read = timeout(raft.read(soon())).await.unwrap_err();
    assert_eq!(read, ReadError::Stopped(reason.clone()));
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_hangs_makes_room_for_another() {
    let cluster = Cluster::new(3).await;
    let old = cluster.leader().await;
    timeout(cluster.raft(old).propose(append("a"))).await.unwrap();
    cluster.nodes[&old].store.stall();
    let hung = Instant::now();
    // Two disks are enough: it is committed all the same.
    timeout(cluster.raft(old).propose(append("b"))).await.unwrap();
    assert!(hung.elapsed() < Duration::from_millis(200), "nobody waits for the third disk");
    let new = cluster.led_by_other_than(old, 2).await;
    assert!(hung.elapsed() < Duration::from_secs(3), "{:?}", hung.elapsed());
    assert_eq!(timeout(cluster.raft(new).propose(append("c"))).await.unwrap(), "abc");
    assert!(cluster.nodes[&old].store.stalled() > 0);
    cluster.nodes[&old].store.resume();
    let leader = cluster.leader().await;
    timeout(cluster.raft(leader).read(soon())).await.unwrap();
    assert_eq!(cluster.converge(leader).await, "abc");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_while_two_of_three_disks_hang() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let followers: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &followers {
        cluster.nodes[id].store.stall();
    }
    let mut waiting = Box::pin(cluster.raft(leader).propose(append("a")));
    let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
    assert!(early.is_err(), "acknowledged before it is durable on a majority: {early:?}");
    for id in &followers {
        cluster.nodes[id].store.resume();
    }
    assert_eq!(timeout(waiting).await.unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_node_starts_halted() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let hurt = leader % 3 + 1;
    timeout(cluster.raft(leader).propose(append("a"))).await.unwrap();
    cluster.nodes[&hurt].store.damage();
    cluster.restart(hurt).await;
    let mut status = cluster.raft(hurt).status();
    timeout(async { while status.changed().await.is_ok() {} }).await;
    all_calls_say(
        cluster.raft(hurt),
        &StopReason::Halted { reason: HaltReason::Damaged, cause: None },
    )
    .await;
    assert_eq!(timeout(cluster.raft(leader).propose(append("b"))).await.unwrap(), "ab");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_fails_or_panics_stops_its_node() {
    for panics in [false, true] {
        let cluster = Cluster::new(3).await;
        let leader = cluster.leader().await;
        let follower = leader % 3 + 1;
        if panics {
            // A machine that fails on purpose must not do so everywhere.
            for id in (1..=3).filter(|id| *id != follower) {
                cluster.nodes[&id].machine.immune();
            }
            timeout(cluster.raft(leader).propose(append("panic"))).await.unwrap();
        } else {
            cluster.nodes[&follower].machine.gate.close();
            timeout(cluster.raft(leader).propose(append("a"))).await.unwrap();
        }
        let mut status = cluster.raft(follower).status();
        timeout(async { while status.changed().await.is_ok() {} }).await;
        let reason = cluster.raft(follower).stopped().unwrap();
        match reason {
            StopReason::Machine(_) => assert!(!panics),
            StopReason::Panicked => assert!(panics),
            other => panic!("{other:?}"),
        }
        all_calls_say(cluster.raft(follower), &reason).await;
        timeout(cluster.raft(leader).propose(append("b"))).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_machine_delays_neither_heartbeats_nor_commits() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let term = cluster.status(leader).term;
    let gate = &cluster.nodes[&leader].machine.gate;
    gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let slow = cluster.raft(leader).clone();
    let slow = tokio::spawn(async move { slow.propose(append("a")).await });
    let follower = leader % 3 + 1;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.text(follower), "a", "committed and applied elsewhere");
    let status = cluster.status(leader);
    assert_eq!((status.role, status.term), (Role::Leader, term), "it still leads");
    gate.add_permits(100);
    assert_eq!(timeout(slow).await.unwrap().unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn proposals_wait_for_room() {
    fn tight(config: &mut Config) {
        config.max_entry_bytes = 1000;
        config.max_uncommitted_bytes = 2000;
    }
    let cluster = Cluster::tuned(3, tight).await;
    let leader = cluster.leader().await;
    cluster.network.isolate(leader, 1..=3);
    let raft = cluster.raft(leader);
    let long = "x".repeat(900);
    let mut one = Box::pin(raft.propose(append(&long)));
    let mut two = Box::pin(raft.propose(append(&long)));
    let mut three = Box::pin(raft.propose(append(&long)));
    for waiting in [&mut one, &mut two, &mut three] {
        let early = tokio::time::timeout(Duration::from_millis(1), waiting).await;
        assert!(early.is_err(), "no quorum: {early:?}");
    }
    assert_eq!(raft.stats().proposals, 2, "the third waits outside");
    drop(two);
    drop(one);
    // The room is held by what is in the log, not by who waits for it.
    let early = tokio::time::timeout(Duration::from_millis(1), &mut three).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(raft.stats().proposals, 2);
    cluster.network.heal();
    let leader = cluster.leader().await;
    let _ = timeout(three).await;
    timeout(cluster.raft(leader).propose(append("b"))).await.unwrap();
    let long = timeout(raft.propose(append(&"x".repeat(1001)))).await.unwrap_err();
    assert_eq!(long, ProposeError::TooLarge { bytes: 1001, max_bytes: 1000 });
}

#[tokio::test(start_paused = true)]
async fn what_cannot_start_says_why() {
    let network = Network::new();
    let store = || Arc::new(FaultyStore::new(Arc::new(voussoir_raft::memory::MemoryStore::new())));
    let machine = || Box::new(Text::default());
    let config = Config::new(1, vec![1]);
    let wrong = Raft::start(config.clone(), store(), machine(), network.node(2)).await;
    assert!(matches!(wrong, Err(StartError::WrongNode { transport: 2, config: 1 })), "{wrong:?}");
    let nobody = Raft::start(Config::new(1, vec![2]), store(), machine(), network.node(1)).await;
    assert!(matches!(nobody, Err(StartError::Config(_))), "{nobody:?}");
    let one = Raft::start(config.clone(), store(), machine(), network.node(1)).await.unwrap();
    let two = Raft::start(config.clone(), store(), machine(), network.node(1)).await;
    assert!(matches!(two, Err(StartError::Transport(_))), "{two:?}");
    timeout(one.shutdown()).await;
    timeout(Raft::start(config, store(), machine(), network.node(1))).await.unwrap();
}
