//! What callers of a node rely on.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use voussoir_raft::{Config, Doubt, Message, Outcome, ProposeError, Role};

use crate::cluster::{Cluster, append, soon, timeout};
use crate::script::Script;

/// What happens while everybody waits for `future` for `wait` of virtual time.
async fn within<F: Future>(wait: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(wait, future).await.ok()
}

#[tokio::test(start_paused = true)]
async fn what_is_answered_is_applied() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let gate = &cluster.nodes[&leader].machine.gate;
    gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut asked = pin!(cluster.raft(leader).propose(append("a")));
    let early = within(Duration::from_secs(1), &mut asked).await;
    assert!(early.is_none(), "answered before it is applied: {early:?}");
    gate.add_permits(10);
    assert_eq!(timeout(asked).await.unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn what_is_unknown_is_not_sent_again() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        cluster.nodes[id].store.stall();
    }
    let error = timeout(cluster.raft(leader).propose(append("x"))).await.unwrap_err();
    assert_eq!(error, ProposeError::Unknown(Doubt::TimedOut));
    for id in &others {
        cluster.nodes[id].store.resume();
    }
    let leader = cluster.leader().await;
    let text = timeout(cluster.raft(leader).propose(append("y"))).await.unwrap();
    assert_eq!(text, "xy", "whether to send it again is for the caller to say");
}

#[tokio::test(start_paused = true)]
async fn the_answer_of_who_has_gone_is_for_nobody_else() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let raft = cluster.raft(leader);
    for _ in 0..3 {
        {
            let mut gone = pin!(raft.propose(append("a")));
            let first = poll_fn(|cx| Poll::Ready(gone.as_mut().poll(cx))).await;
            assert!(first.is_pending(), "the loop has had no turn");
        }
        let own = timeout(raft.propose(append("b"))).await.unwrap();
        assert!(own.ends_with(b"ab"), "somebody else's answer: {own:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_until_its_index_is_applied() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for id in [leader, leader % 3 + 1] {
        let gate = &cluster.nodes[&id].machine.gate;
        gate.forget_permits(Semaphore::MAX_PERMITS);
        let asked = cluster.raft(leader).clone();
        let asked = tokio::spawn(async move { asked.propose(append("a")).await });
        // The third node shows that it is committed.
        let third = (leader + 1) % 3 + 1;
        let before = cluster.text(third).len();
        while cluster.text(third).len() == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut read = pin!(cluster.raft(id).read(soon()));
        let early = within(Duration::from_millis(300), &mut read).await;
        assert!(early.is_none(), "node {id} shows {:?}: {early:?}", cluster.text(id));
        gate.add_permits(Semaphore::MAX_PERMITS);
        timeout(read).await.unwrap();
        assert_eq!(cluster.text(id), cluster.text(third));
        timeout(asked).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_decided_in_time_is_unknown() {
    let room_for_one = |config: &mut Config| {
        config.max_entry_bytes = 500;
        config.max_uncommitted_bytes = 600;
    };
    let cluster = Cluster::tuned(3, room_for_one).await;
    let old = cluster.leader().await;
    cluster.network.isolate(old, 1..=3);
    let before = Instant::now();
    let long = append(&"x".repeat(450));
    let error = timeout(cluster.raft(old).propose(long.clone())).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    let took = before.elapsed();
    assert!((5.0..5.5).contains(&took.as_secs_f64()), "{took:?}");
    // Its room has come back: the next one hears at once that nobody leads here.
    let before = Instant::now();
    let error = timeout(cluster.raft(old).propose(long)).await.unwrap_err();
    assert_eq!(error, ProposeError::NotLeader { leader: None });
    assert!(before.elapsed() < Duration::from_millis(100), "{:?}", before.elapsed());
}

/// The timer was set for the next election, and the first heartbeat is due before that.
#[tokio::test(start_paused = true)]
async fn a_new_leader_beats_from_the_start() {
    let mut script = Script::start().await;
    let beat = |message: &Message| matches!(message, Message::Heartbeat(_));
    script.win_election().await;
    timeout(script.sent(beat)).await;
    let first = Instant::now();
    timeout(script.sent(beat)).await;
    let interval = Config::default().heartbeat_interval;
    let took = first.elapsed();
    assert!(took <= 2 * interval, "{took:?} between two heartbeats, {interval:?} is set");
    assert_eq!(script.status().role, Role::Leader);
}

#[tokio::test(start_paused = true)]
async fn room_comes_back_with_every_answer() {
    let tight = |config: &mut Config| {
        config.max_entry_bytes = 500;
        config.max_uncommitted_bytes = 1000;
    };
    let cluster = Cluster::tuned(3, tight).await;
    let leader = cluster.leader().await;
    for _ in 0..20 {
        timeout(cluster.raft(leader).propose(append(&"-".repeat(450)))).await.unwrap();
    }
}
