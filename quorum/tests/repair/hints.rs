//! Hints hand over what a replica missed.

use std::collections::BTreeMap;

use super::support::{Cluster, dot, merge};
use voussoir_quorum::table::{OperationError, TableConfig};
use voussoir_quorum::version::{Siblings, VersionVector};
use voussoir_quorum::*;

fn config(nodes: u64) -> NodeConfig {
    let mut config = NodeConfig::with_replicas(1..=nodes);
    config.collect_every = None;
    config
}

/// The replica of the coordinator itself misses a write like any other.
#[tokio::test(start_paused = true)]
async fn a_write_that_the_coordinators_own_replica_missed_is_handed_to_it() {
    let cluster = Cluster::with_config(&config(3)).await;
    let table = cluster.table(1);
    cluster.set_away(&[1]);
    table.put_blind("k", "v").await.unwrap();
    assert_eq!(cluster.nodes[&1].hint_stats().waiting, 1);
    cluster.set_away(&[]);
    assert_eq!(cluster.nodes[&1].hand_over_hints(&cluster.link()).await, 1);
    assert_eq!(cluster.values(1, "k").await, ["v"]);
    assert_eq!(cluster.nodes[&1].hint_stats().waiting, 0);
}

/// What is handed over is what the replicas hold that have the write, and not what this node has.
#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_hold_the_write_hands_over_what_others_hold() {
    let cluster = Cluster::with_config(&config(3)).await;
    let table = cluster.table(1);
    cluster.set_away(&[1, 3]);
    let error = table.put_blind("k", "v").await.unwrap_err();
    let unknown = OperationError::WriteUnknown { holders: 1, needed: 2 };
    assert_eq!(error, TableError::Failed(unknown));
    let node = &cluster.nodes[&1];
    assert_eq!(node.hint_stats().waiting, 2);
    cluster.set_away(&[2]);
    assert_eq!(node.hand_over_hints(&cluster.link()).await, 2, "two of three answer");
    assert_eq!(cluster.values(3, "k").await, [""; 0], "none of them holds it");

    cluster.set_away(&[1, 3]);
    table.put_blind("l", "v").await.unwrap_err();
    cluster.set_away(&[]);
    assert_eq!(node.hand_over_hints(&cluster.link()).await, 2);
    for id in 1..=3 {
        assert_eq!(cluster.values(id, "l").await, ["v"], "node {id}");
    }
}

/// An acknowledged write that only replicas hold which are away is still waited for.
#[tokio::test(start_paused = true)]
async fn a_hint_waits_until_a_replica_answers_that_holds_the_write() {
    let cluster = Cluster::with_config(&config(5)).await;
    cluster.set_away(&[1, 2]);
    cluster.table(1).put_blind("k", "v").await.unwrap();
    let node = &cluster.nodes[&1];
    assert_eq!(node.hint_stats().waiting, 2);
    cluster.set_away(&[3, 4, 5]);
    assert_eq!(node.hand_over_hints(&cluster.link()).await, 0);
    cluster.set_away(&[3, 4]);
    assert_eq!(node.hand_over_hints(&cluster.link()).await, 2);
    assert_eq!(node.hint_stats().waiting, 0);
    assert_eq!(cluster.values(2, "k").await, ["v"]);
}

/// A key that a replica refuses does not keep the others from it.
#[tokio::test(start_paused = true)]
async fn a_refused_key_holds_up_no_other() {
    let cluster = Cluster::with_config(&config(3)).await;
    // Together the values are longer than a replica merges.
    let long = |actor| {
        let value = |counter| (dot(actor, counter), Bytes::from(vec![0; 1 << 20]));
        Siblings::from_parts(VersionVector::new(), (1..=5).map(value).collect::<BTreeMap<_, _>>())
    };
    for (id, actor) in [(1, 8), (2, 8), (3, 9)] {
        cluster.nodes[&id].answer(merge("a", &long(actor))).await.unwrap();
    }
    let mut config = TableConfig::with_replicas(1..=3);
    config.local = Some(1);
    let table = Table::with_hints(config, cluster.link(), &cluster.nodes[&1]).unwrap();
    // It changes nothing, and is spread like every write.
    table.delete("a", &VersionVector::new()).await.unwrap();
    cluster.set_away(&[3]);
    table.put_blind("b", "v").await.unwrap();
    let node = &cluster.nodes[&1];
    assert_eq!(node.hint_stats().waiting, 2);
    cluster.set_away(&[]);
    assert_eq!(node.hand_over_hints(&cluster.link()).await, 1);
    assert_eq!(cluster.values(3, "b").await, ["v"]);
    assert_eq!((node.hint_stats().waiting, node.hint_stats().refused), (0, 1));
}

/// Whoever drops the future on its way loses no hint.
#[tokio::test(start_paused = true)]
async fn a_dropped_hand_over_keeps_the_hint() {
    let cluster = Cluster::with_config(&config(3)).await;
    cluster.set_away(&[3]);
    cluster.table(1).put_blind("k", "v").await.unwrap();
    cluster.set_away(&[]);
    let (node, link) = (&cluster.nodes[&1], cluster.link());
    for polls in 0..100 {
        let mut hand_over = Box::pin(node.hand_over_hints(&link));
        let is_ended = super::support::poll(&mut hand_over, polls).await;
        drop(hand_over);
        if is_ended {
            assert_eq!(cluster.values(3, "k").await, ["v"]);
            assert_eq!(node.hint_stats().waiting, 0);
            assert!(polls > 2, "it was dropped on its way");
            return;
        }
        assert_eq!(node.hint_stats().waiting, 1, "after {polls} polls");
    }
    panic!("it does not end");
}
