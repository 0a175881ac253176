//! Anti-entropy between nodes: what differs is found and repaired whatever was lost, and what is
//! equal costs nearly nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::support::{Cluster, dot, merge};
use voussoir_quorum::version::{Siblings, VersionVector};
use voussoir_quorum::*;
use voussoir_sim::{Rng, Situations};

static SITUATIONS: [&str; 10] = [
    "a write was missed",
    "a delete was missed",
    "a register was changed without a replica",
    "tombstones were collected",
    "a node was restarted",
    "a node was compared while its store was still being read",
    "a lost node was rebuilt",
    "a repair found a difference",
    "a repair was dropped on its way",
    "a repair found nothing",
];

/// No hints, and nothing by itself.
fn config() -> NodeConfig {
    let mut config = NodeConfig::with_replicas(1..=3);
    (config.max_hints, config.collect_every, config.repair_every) = (0, None, None);
    config
}

fn registers(cluster: &Cluster) -> Registers {
    Registers::new(7, RegisterConfig::with_acceptors(1..=3), cluster.link()).unwrap()
}

async fn assert_equal(cluster: &Cluster, what: &str) {
    let one = cluster.records(1).await;
    for id in 2..=3 {
        let other = cluster.records(id).await;
        let differs = |(key, record): &(&Bytes, &Bytes)| one.get(*key) != Some(*record);
        let first = other.iter().find(differs).map(|(key, _)| key);
        assert!(one == other, "{what}: nodes 1 and {id} differ, {first:?}");
    }
}

/// riak_kv #1656: the hints are lost, the replica was away, and nobody reads the keys.
#[tokio::test(start_paused = true)]
async fn what_no_hint_is_left_of_is_repaired() {
    let cluster = Cluster::with_config(&config()).await;
    let (table, registers) = (cluster.table(1), registers(&cluster));
    for key in 0..100 {
        table.put_blind(format!("old {key}"), "v").await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.set_away(&[3]);
    for key in 0..300 {
        table.put_blind(format!("{key}"), "v").await.unwrap();
    }
    for key in 0..50 {
        let old = table.get(format!("old {key}")).await.unwrap();
        table.delete(format!("old {key}"), old.context()).await.unwrap();
        registers.put(format!("{key}"), "v").await.unwrap();
    }
    cluster.set_away(&[]);
    // Whichever of the two begins: the one that lacks it, or the one that has it.
    for (id, part) in [(3, 1), (1, 2)] {
        if part == 2 {
            cluster.set_away(&[3]);
            registers.put("late", "v").await.unwrap();
            table.put_blind("late", "v").await.unwrap();
            cluster.set_away(&[]);
        }
        let repaired = cluster.nodes[&id].repair(&cluster.link()).await.unwrap();
        let expected = if part == 1 { 400 } else { 2 };
        assert_eq!((repaired.repaired, repaired.left), (expected, 0), "{repaired:?}");
        assert_eq!(repaired.replicas, 2);
        assert_equal(&cluster, "after the repair").await;
    }
    cluster.take_bytes();
    for id in 1..=3 {
        let again = cluster.nodes[&id].repair(&cluster.link()).await.unwrap();
        assert_eq!((again.differing, again.replicas), (0, 2), "repairing twice moves nothing");
    }
    assert!(cluster.take_bytes() < 6 * 600, "each asked one question");
    assert_eq!(cluster.nodes[&2].repair_stats().keys, Some(100 + 300 + 50 + 2));
    assert_eq!(cluster.nodes[&3].repair_stats().total.repaired, 400);
    // The acceptor that was repaired has promised what the proposers had asked for, and no more:
    // it is one of the next majority.
    assert_eq!(cluster.promised(3).await, cluster.promised(1).await);
    cluster.set_away(&[1]);
    for key in 0..50 {
        let (version, value) = self::registers(&cluster).get(format!("{key}")).await.unwrap();
        assert_eq!((version, value.as_deref()), (1, Some(&b"v"[..])));
    }
}

/// Maintenance compares by itself, at the pace that it was given.
#[tokio::test(start_paused = true)]
async fn maintenance_repairs_within_its_rate() {
    let mut config = config();
    config.repair_every = Some(Duration::from_secs(10));
    config.repair_bytes_per_second = 64 << 10;
    let cluster = Cluster::with_config(&config).await;
    let link = cluster.link();
    cluster.set_away(&[3]);
    let table = cluster.table(1);
    for key in 0..64 {
        table.put_blind(format!("{key}"), vec![7; 64 << 10]).await.unwrap();
    }
    cluster.set_away(&[]);
    cluster.nodes[&1].maintain(&link);
    tokio::time::sleep(Duration::from_secs(25)).await;
    let found = cluster.records(3).await.len();
    assert!((1..=32).contains(&found), "{found} keys of 64 KiB in at most 25 s");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_equal(&cluster, "after the repair").await;
}

/// scylladb #5251's kin: a node that starts compares what its store holds, and not what is new.
#[tokio::test(start_paused = true)]
async fn a_node_that_has_started_compares_what_its_store_holds() {
    let mut config = config();
    config.rebuild_bytes_per_second = 64 << 10;
    let mut cluster = Cluster::with_config(&config).await;
    let table = cluster.table(1);
    for key in 0..200 {
        table.put_blind(format!("{key}"), vec![7; 2_000]).await.unwrap();
        registers(&cluster).put(format!("{key}"), "v").await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.restart(2, false).await;
    assert_eq!(cluster.nodes[&2].repair_stats().keys, None, "the store is being read");
    let early = cluster.nodes[&2].repair(&cluster.link()).await;
    assert_eq!(early, Err(RepairError::Reading));
    let early = cluster.nodes[&1].repair(&cluster.link()).await.unwrap();
    assert_eq!((early.replicas, early.differing), (1, 0), "it is not compared yet");
    // Keys are written, and their records removed, while the store is being read.
    for key in (0..200).step_by(3) {
        let value = table.get(format!("{key}")).await.unwrap();
        if key % 2 == 0 {
            table.put(format!("{key}"), value.context(), "new").await.unwrap();
        } else {
            table.delete(format!("{key}"), value.context()).await.unwrap();
        }
    }
    let collected = cluster.nodes[&1].collect_tombstones(&cluster.link()).await;
    assert_eq!(collected, Ok(33));
    assert_eq!(cluster.nodes[&2].repair_stats().keys, None, "the store is still being read");
    tokio::time::sleep(Duration::from_secs(60)).await;
    for id in [2, 1] {
        assert_eq!(cluster.nodes[&id].repair_stats().keys, Some(400 - 33), "node {id}");
        let repaired = cluster.nodes[&id].repair(&cluster.link()).await.unwrap();
        assert_eq!((repaired.replicas, repaired.differing), (2, 0), "node {id}");
    }
}

/// The figures of the README. `VOUSSOIR_REPAIR_KEYS=1000000` has the size that they are stated for;
/// the limits are the same for every size.
#[tokio::test(start_paused = true)]
async fn equal_nodes_exchange_little_and_differences_cost_what_they_are() {
    let keys = std::env::var("VOUSSOIR_REPAIR_KEYS").map_or(20_000, |n| n.parse().unwrap());
    let cluster = Cluster::with_config(&config()).await;
    let state = |key: u64, counter| {
        let value = Bytes::from(vec![key as u8; 100]);
        Siblings::from_parts(VersionVector::new(), BTreeMap::from([(dot(9, counter), value)]))
    };
    for key in 0..keys {
        let merge = merge(&format!("key {key}"), &state(key, key + 1));
        for id in [1, 2] {
            cluster.nodes[&id].answer(merge.clone()).await.unwrap();
        }
    }
    cluster.set_away(&[3]);
    let node = &cluster.nodes[&1];
    let equal = node.repair(&cluster.link()).await.unwrap();
    let bytes = cluster.take_bytes();
    println!("{keys} equal keys: {bytes} bytes");
    assert_eq!((equal.replicas, equal.differing), (1, 0));
    assert!(bytes <= 16 << 10, "{bytes} bytes for equal replicas");
    for key in 0..100 {
        let key = key * (keys / 100);
        let id = 1 + key % 2;
        let merge = merge(&format!("key {key}"), &state(key, 2 * keys + key));
        cluster.nodes[&id].answer(merge).await.unwrap();
    }
    let repaired = node.repair(&cluster.link()).await.unwrap();
    let bytes = cluster.take_bytes();
    println!("100 of {keys} keys differ: {bytes} bytes, counted as {}", repaired.bytes);
    assert_eq!((repaired.differing, repaired.repaired), (100, 100));
    assert!(bytes <= 256 << 10, "{bytes} bytes for 100 keys");
    assert!(repaired.bytes > bytes / 2, "what is paced is what is sent: {}", repaired.bytes);
    let again = node.repair(&cluster.link()).await.unwrap();
    assert_eq!((again.differing, again.repaired), (0, 0));
    assert!(cluster.take_bytes() <= 16 << 10, "repairing twice moves nothing");
}

/// One life of three nodes: whatever was missed, all agree after a repair, and what was deleted
/// stays deleted.
struct Life<'a> {
    seed: u64,
    rng: Rng,
    situations: &'a Situations,
    cluster: Cluster,
    away: Option<u64>,
    /// Keys that were written once and deleted once: they must not come back.
    deleted: BTreeSet<String>,
}

impl Life<'_> {
    async fn turn(&mut self, turn: u64) {
        let (table, node) = (self.cluster.table(1 + self.rng.below(3)), 1 + self.rng.below(3));
        let key = format!("{}", self.rng.below(12));
        let is_away = u64::from(self.away.is_some());
        match self.rng.below(16) {
            0..=4 => {
                let seen = table.get(key.clone()).await.unwrap();
                table.put(key, seen.context(), format!("{turn}")).await.unwrap();
                self.situations.add("a write was missed", is_away);
            }
            5 | 6 => self.delete(&table, node, format!("deleted {turn}")).await,
            7 | 8 => {
                registers(&self.cluster).put(key, format!("{turn}")).await.unwrap();
                self.situations.add("a register was changed without a replica", is_away);
            }
            9 | 10 => {
                self.away = self.away.is_none().then_some(node);
                self.cluster.set_away(self.away.as_slice());
            }
            11 => {
                let link = self.cluster.link();
                let collected = self.cluster.nodes[&node].collect_tombstones(&link).await;
                let is_collected = matches!(collected, Ok(1..));
                self.situations.add("tombstones were collected", is_collected.into());
            }
            12 => {
                self.cluster.restart(node, false).await;
                self.situations.reached("a node was restarted");
            }
            13 if self.away.is_none() => {
                tokio::time::sleep(Duration::from_secs(2)).await;
                self.cluster.restart(node, true).await;
                self.cluster.nodes[&node].rebuild(&self.cluster.link()).await.unwrap();
                self.situations.reached("a lost node was rebuilt");
            }
            14 => {
                let link = self.cluster.link();
                let mut repair = Box::pin(self.cluster.nodes[&node].repair(&link));
                let is_ended = super::support::poll(&mut repair, self.rng.below(20) as usize).await;
                self.situations.add("a repair was dropped on its way", (!is_ended).into());
            }
            _ => self.repair(node).await,
        }
    }

    async fn delete(&mut self, table: &Table, node: u64, key: String) {
        let value = table.put_blind(key.clone(), "v").await.unwrap();
        if self.rng.chance(500_000) {
            tokio::time::sleep(Duration::from_secs(2)).await;
            self.away = Some(node);
            self.cluster.set_away(&[node]);
        }
        table.delete(key.clone(), value.context()).await.unwrap();
        self.situations.add("a delete was missed", self.away.is_some().into());
        self.deleted.insert(key);
    }

    async fn repair(&mut self, node: u64) {
        match self.cluster.nodes[&node].repair(&self.cluster.link()).await {
            Ok(repaired) => {
                self.situations.add("a repair found a difference", repaired.repaired);
                let is_equal = repaired.replicas > 0 && repaired.differing == 0;
                self.situations.add("a repair found nothing", is_equal.into());
            }
            Err(error) => {
                assert_eq!(error, RepairError::Reading, "seed {}", self.seed);
                let early = "a node was compared while its store was still being read";
                self.situations.reached(early);
            }
        }
    }

    /// The faults have ended: one repair by each node, and all agree.
    async fn settle(self) {
        let Self { seed, cluster, deleted, .. } = self;
        cluster.set_away(&[]);
        tokio::time::sleep(Duration::from_secs(10)).await;
        // A register whose acceptor has promised a higher ballot is settled by its next change.
        for key in 0..12 {
            registers(&cluster).get(format!("{key}")).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        for id in 1..=3 {
            let repaired = cluster.nodes[&id].repair(&cluster.link()).await.unwrap();
            assert_eq!((repaired.replicas, repaired.left), (2, 0), "seed {seed}: {repaired:?}");
        }
        assert_equal(&cluster, &format!("seed {seed}")).await;
        for id in 1..=3 {
            let again = cluster.nodes[&id].repair(&cluster.link()).await.unwrap();
            assert_eq!(again.differing, 0, "seed {seed}: the trees are those of the stores");
            for key in &deleted {
                assert_eq!(cluster.values(id, key).await, [""; 0], "seed {seed}: {key} came back");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_agree_after_a_repair_whatever_was_missed() {
    let situations = Situations::new(&SITUATIONS);
    let seeds = std::env::var("VOUSSOIR_SEEDS").map_or(40, |n| n.parse().unwrap());
    for seed in 0..seeds {
        let cluster = Cluster::with_config(&config()).await;
        let (rng, away, deleted) = (Rng::new(seed), None, BTreeSet::new());
        let mut life = Life { seed, rng, situations: &situations, cluster, away, deleted };
        for turn in 0..120 {
            life.turn(turn).await;
        }
        life.settle().await;
    }
    println!("{situations}");
    situations.assert_all_reached();
}
