//! Single faults of nodes that host several groups.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use voussoir_raft::{AttachError, Change, Message, NODE_GROUP, NodeBeat, StartError, Transport};

use super::hosts::{Features, Group, Hosts};

static TWO: [Group; 2] = [
    Group { id: 1, voters: &[1, 2, 3], learner: None },
    Group { id: 2, voters: &[1, 2, 3], learner: None },
];

async fn resting() -> Hosts {
    let hosts = Hosts::new(1, &TWO, Features::default()).await;
    assert!(hosts.until(Hosts::all_rest).await, "they come to rest");
    hosts
}

/// The leader cannot tell it, and the nodes still hear each other: they share another group.
#[tokio::test(start_paused = true)]
async fn a_member_at_rest_that_is_removed_finds_out() {
    let hosts = resting().await;
    let leader = hosts.leader(1).unwrap();
    let removed = leader % 3 + 1;
    *hosts.faults.muffled.lock() = Some((leader, removed, 1));
    let deadline = Instant::now() + Duration::from_secs(5);
    let change = Change::new().remove(removed);
    hosts.raft(leader, 1).unwrap().change(change, deadline).await.expect("two of three are there");
    sleep(Duration::from_secs(10)).await;
    let status = hosts.status(removed, 1).unwrap();
    assert!(status.removed.is_some() && !status.is_quiesced, "{status:?}");
    assert!(hosts.status(removed, 2).unwrap().is_quiesced, "the other group is not disturbed");
}

/// Its leader hears what it has written from where the write completes.
#[tokio::test(start_paused = true)]
async fn a_follower_takes_no_turn_to_acknowledge_what_it_has_written() {
    const COMMANDS: u64 = 100;
    let features = Features { is_slow: true, is_awake: true, ..Features::default() };
    let hosts = Hosts::new(1, &TWO, features).await;
    assert!(hosts.until(|hosts| hosts.leader(1).is_some()).await);
    sleep(Duration::from_secs(1)).await;
    let leader = hosts.leader(1).unwrap();
    let turns = || {
        let followers = (1..=3).filter(|id| *id != leader);
        followers.map(|id| hosts.raft(id, 1).unwrap().stats().turns).sum::<u64>()
    };
    let (raft, before) = (hosts.raft(leader, 1).unwrap(), turns());
    for _ in 0..COMMANDS {
        raft.propose("x".into()).await.unwrap();
    }
    let turns = turns() - before;
    println!("{turns} turns of two followers for {COMMANDS} commands");
    assert!(turns * 2 <= COMMANDS * 5, "{turns} turns of two followers for {COMMANDS} commands");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_not_acknowledged() {
    let hosts = Hosts::new(1, &TWO, Features { is_awake: true, ..Features::default() }).await;
    assert!(hosts.until(|hosts| hosts.leader(1).is_some()).await);
    sleep(Duration::from_secs(1)).await;
    let leader = hosts.leader(1).unwrap();
    let followers = (1..=3).filter(|id| *id != leader);
    let followers: Vec<_> =
        followers.map(|id| (hosts.raft(id, 1).unwrap(), hosts.disk(id, 1))).collect();
    for (_, disk) in &followers {
        disk.stall();
    }
    let raft = hosts.raft(leader, 1).unwrap();
    let (answer, ()) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(3), raft.propose("x".into())),
        async {
            // It fails outside the turn of its group, which knows nothing of it yet.
            for (raft, disk) in followers {
                while disk.stalled() == 0 {
                    tokio::task::yield_now().await;
                }
                let sent = raft.stats().messages_sent;
                disk.fail();
                sleep(Duration::from_secs(1)).await;
                assert_eq!(raft.stats().messages_sent, sent, "it said that it has the entry");
            }
        },
    );
    assert!(!matches!(answer, Ok(Ok(_))), "only one of three has it: {answer:?}");
    let applied = hosts.status(leader, 1).unwrap();
    assert!(applied.commit < applied.last, "{applied:?}");
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_panics_stops_the_groups_of_its_node() {
    let hosts = resting().await;
    let leader = hosts.leader(2).unwrap();
    let rafts = [1, 2].map(|group| hosts.raft(leader, group).unwrap());
    hosts.faults.panics_at.store(leader, Ordering::Relaxed);
    sleep(Duration::from_secs(1)).await;
    for raft in rafts {
        assert!(raft.stopped().is_some(), "nobody hears it, and it says that it runs: {raft:?}");
    }
    let led = hosts.until(|hosts| hosts.leader(2).is_some_and(|next| next != leader)).await;
    assert!(led, "the others go on");
}

#[tokio::test(start_paused = true)]
async fn no_group_comes_while_its_node_is_shut_down() {
    let mut hosts = resting().await;
    let node = hosts.nodes[&1].clone();
    let late = Group { id: 9, voters: &[1], learner: None };
    let (started, ()) = tokio::join!(
        biased;
        async {
            // The other side has begun to stop what runs.
            tokio::task::yield_now().await;
            hosts.start_group(1, &late).await
        },
        node.shutdown(),
    );
    let refused = started.unwrap_err();
    assert!(matches!(refused, StartError::Transport(AttachError::Closed)), "{refused}");
    assert!(node.groups().is_empty(), "{:?}", node.groups());
}

/// It comes together with the word of the leader, and in its place.
#[tokio::test(start_paused = true)]
async fn a_strangers_word_does_not_hide_that_of_the_leader() {
    let mut hosts = resting().await;
    let leader = hosts.leader(1).unwrap();
    let follower = leader % 3 + 1;
    let term = hosts.status(leader, 1).unwrap().term;
    let life = hosts.faults.lives.lock()[&leader];
    let word = |from: u64, life: u64, term: u64| {
        let beat = NodeBeat { life, resigned: vec![(1, term)], ..NodeBeat::default() };
        let sent = hosts.network.node(from).send(follower, NODE_GROUP, Message::Node(beat.into()));
        sent.unwrap();
    };
    word(9, 7, term + 5);
    sleep(Duration::from_millis(10)).await;
    assert!(hosts.status(follower, 1).unwrap().is_quiesced, "it is nobody");
    word(9, 7, term + 5);
    word(leader, life, term);
    sleep(Duration::from_millis(10)).await;
    assert!(!hosts.status(follower, 1).unwrap().is_quiesced, "its leadership is over");
    hosts.nodes.clear();
}
