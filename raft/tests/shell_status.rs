//! What operators and stale reads are told: followers, freshness, and what a restart still knows.

mod cluster;

use std::time::Duration;

use cluster::{Cluster, append, soon, timeout};
use voussoir_raft::{FollowerState, Role};

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_node_that_is_restarted_alone_shows_what_it_knew_to_be_committed() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for text in ["a", "b", "c"] {
        timeout(cluster.raft(leader).propose(append(text))).await.unwrap();
    }
    // The commit index is stored lazily.
    tokio::time::sleep(300 * MS).await;
    for id in 1..=3 {
        timeout(cluster.raft(id).shutdown()).await;
    }
    for id in 1..=3 {
        cluster.restart(id).await;
        let status = cluster.until(id, |status| status.applied >= 4).await;
        assert_eq!((status.role, status.leader), (Role::Follower, None), "there is no quorum");
        assert_eq!(cluster.text(id), "abc");
        let fresh = cluster.raft(id).freshness();
        assert_eq!((fresh.applied, fresh.age), (4, None), "it has heard of nobody");
        timeout(cluster.raft(id).shutdown()).await;
    }
}

/// Nothing but what is written goes to the disk: a node at rest stays at rest.
#[tokio::test(start_paused = true)]
async fn the_commit_index_is_stored_once_and_not_again() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    timeout(cluster.raft(leader).propose(append("a"))).await.unwrap();
    tokio::time::sleep(300 * MS).await;
    let turns = |id| cluster.raft(id).stats().turns;
    let before: Vec<u64> = (1..=3).map(turns).collect();
    let writes: Vec<u64> = (1..=3).map(|id| cluster.raft(id).stats().writes).collect();
    tokio::time::sleep(10_000 * MS).await;
    for (at, id) in (1..=3).enumerate() {
        assert_eq!(cluster.raft(id).stats().writes, writes[at], "node {id}");
        let turned = turns(id) - before[at];
        assert!(turned < 1000, "node {id}: {turned} turns in 200 heartbeats");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_shows_how_far_its_followers_are() {
    let eager = |config: &mut voussoir_raft::Config| {
        config.snapshot_after_entries = 10;
        config.keep_entries = 0;
    };
    let cluster = Cluster::tuned(3, eager).await;
    let leader = cluster.leader().await;
    let (late, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    assert!(cluster.raft(late).followers().is_empty(), "it leads nobody");
    timeout(cluster.raft(leader).propose(append("a"))).await.unwrap();
    tokio::time::sleep(200 * MS).await;
    let before = cluster.status(leader).last;
    cluster.network.isolate(late, 1..=3);
    for _ in 0..30 {
        timeout(cluster.raft(leader).propose(append("."))).await.unwrap();
    }
    tokio::time::sleep(1000 * MS).await;
    let followers = cluster.raft(leader).followers();
    assert_eq!(followers.len(), 2);
    let of = |id| followers.iter().find(|follower| follower.id == id).unwrap();
    let last = cluster.status(leader).last;
    let good = of(other);
    assert_eq!((good.matched, good.next, good.state), (last, last + 1, FollowerState::Replicating));
    assert_eq!((good.inflight, good.inflight_bytes), (0, 0));
    assert!(good.silent_ns < 200_000_000, "{good:?}");
    let behind = of(late);
    assert!(behind.matched <= before && behind.next > behind.matched, "{behind:?}");
    assert_ne!(behind.state, FollowerState::Replicating);
    assert!(behind.silent_ns >= 900_000_000, "{behind:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_says_how_old_it_may_be() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let cut = leader % 3 + 1;
    timeout(cluster.raft(leader).propose(append("a"))).await.unwrap();
    timeout(cluster.raft(cut).read(soon())).await.unwrap();
    tokio::time::sleep(500 * MS).await;
    for id in 1..=3 {
        let fresh = cluster.raft(id).freshness();
        assert_eq!(fresh.applied, cluster.status(id).applied);
        assert!(fresh.age.is_some_and(|age| age <= 100 * MS), "node {id}: {fresh:?}");
    }
    cluster.network.isolate(cut, 1..=3);
    timeout(cluster.raft(leader).propose(append("b"))).await.unwrap();
    tokio::time::sleep(3000 * MS).await;
    let fresh = cluster.raft(cut).freshness();
    assert!(fresh.age.is_some_and(|age| age >= 3000 * MS && age < 3200 * MS), "{fresh:?}");
    // Its machine is stuck: it hears of the leader again, and is no fresher for it.
    cluster.nodes[&cut].machine.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    cluster.network.heal();
    cluster.leader().await;
    tokio::time::sleep(1000 * MS).await;
    let stuck = cluster.raft(cut).freshness();
    assert!(stuck.age.is_some_and(|age| age >= 4000 * MS), "{stuck:?}");
    cluster.nodes[&cut].machine.gate.add_permits(100);
    tokio::time::sleep(500 * MS).await;
    let fresh = cluster.raft(cut).freshness();
    assert!(fresh.age.is_some_and(|age| age <= 100 * MS), "{fresh:?}");
    assert_eq!(cluster.text(cut), "ab");
}

/// It leads for a while yet, for all that it knows.
#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_is_as_fresh_as_the_last_answers() {
    let patient = |config: &mut voussoir_raft::Config| {
        config.max_election_timeout = 900 * MS;
    };
    let cluster = Cluster::tuned(3, patient).await;
    let leader = cluster.leader().await;
    timeout(cluster.raft(leader).propose(append("a"))).await.unwrap();
    tokio::time::sleep(300 * MS).await;
    cluster.network.isolate(leader, 1..=3);
    tokio::time::sleep(700 * MS).await;
    assert_eq!(cluster.status(leader).role, Role::Leader, "it waits for answers");
    let fresh = cluster.raft(leader).freshness();
    assert!(fresh.age.is_some_and(|age| age >= 700 * MS && age <= 900 * MS), "{fresh:?}");
}

/// Nobody times out here: what happens was asked for.
#[tokio::test(start_paused = true)]
async fn an_operator_has_a_node_campaign() {
    let patient = |config: &mut voussoir_raft::Config| {
        let hour = Duration::from_secs(3600);
        (config.min_election_timeout, config.max_election_timeout) = (hour, hour);
        config.disk_stall = hour;
    };
    let cluster = Cluster::tuned(3, patient).await;
    tokio::time::sleep(10_000 * MS).await;
    assert!((1..=3).all(|id| cluster.status(id).leader.is_none()), "nobody has campaigned");
    cluster.raft(2).campaign().unwrap();
    assert_eq!(cluster.leader().await, 2);
    let term = cluster.status(2).term;

    // Who hears a leader refuses, and the leader itself has nothing to win.
    let turns = cluster.raft(2).stats().turns;
    for id in [3, 2, 2, 2] {
        cluster.raft(id).campaign().unwrap();
    }
    tokio::time::sleep(10 * MS).await;
    assert!(cluster.raft(2).stats().turns <= turns + 4, "requests that wait are one");
    tokio::time::sleep(1000 * MS).await;
    assert_eq!(cluster.led_by(3).await, 2);
    assert_eq!(cluster.status(2).term, term);

    // The leader is gone and the others may not know it for an hour.
    timeout(cluster.raft(2).shutdown()).await;
    assert_eq!(cluster.raft(2).campaign(), Err(voussoir_raft::StopReason::ShutDown));
    tokio::time::sleep(10_000 * MS).await;
    assert_eq!(cluster.status(1).leader, Some(2));
    // A node that still believes in the leader does not vote: each is asked in turn.
    for _ in 0..3 {
        for id in [3, 1] {
            cluster.raft(id).campaign().unwrap();
            tokio::time::sleep(10 * MS).await;
        }
    }
    let leader = cluster.led_by_other_than(2, 2).await;
    timeout(cluster.raft(leader).propose(append("a"))).await.unwrap();
}

// A loop that waits until its node leads would go round for ever on a node that is dead.
#[tokio::test(start_paused = true)]
async fn a_node_that_has_stopped_does_not_show_that_it_leads() {
    for panics in [false, true] {
        let cluster = Cluster::new(3).await;
        let leader = cluster.leader().await;
        let mut status = cluster.raft(leader).status();
        if panics {
            for id in (1..=3).filter(|id| *id != leader) {
                cluster.nodes[&id].machine.immune();
            }
            timeout(cluster.raft(leader).propose(append("panic"))).await.unwrap_err();
        } else {
            timeout(cluster.raft(leader).shutdown()).await;
        }
        timeout(status.wait_for(|status| status.role != Role::Leader)).await.unwrap();
        assert!(cluster.raft(leader).stopped().is_some(), "it was replaced before it stopped");
        assert_eq!((status.borrow().role, status.borrow().leader), (Role::Follower, None));
        assert!(timeout(status.wait_for(|status| status.role == Role::Leader)).await.is_err());
    }
}
