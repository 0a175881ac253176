//! A store that cannot be read, for a moment or for good.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;
use voussoir_quorum::store::{Change, StoreError};
use voussoir_quorum::*;

use super::support::Cluster;

/// A store in memory whose reads fail as they are told.
#[derive(Default)]
struct Faulty {
    records: Arc<MemoryStore>,
    /// How so many of the next reads fail.
    fails: Mutex<Option<(u32, StoreError)>>,
}

impl Faulty {
    fn fail(&self, times: u32, error: StoreError) {
        *self.fails.lock() = Some((times, error));
    }

    fn check(&self) -> Result<(), StoreError> {
        match &mut *self.fails.lock() {
            Some((left @ 1.., error)) => {
                *left -= 1;
                Err(error.clone())
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl ReplicaStore for Faulty {
    async fn get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.check()?;
        self.records.get(keys).await
    }

    async fn apply(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        self.records.apply(batch).await
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: &[u8],
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.check()?;
        self.records.scan(prefix, after, max_bytes).await
    }

    async fn clear(&self) -> Result<(), StoreError> {
        self.records.clear().await
    }
}

fn config() -> NodeConfig {
    let mut config = NodeConfig::with_replicas(1..=3);
    (config.max_hints, config.collect_every, config.repair_every) = (0, None, None);
    config
}

/// Three nodes with ten keys, a tombstone and a register. The second one has been started again on
/// a store that can be told to fail.
async fn cluster() -> (Cluster, Arc<Faulty>, Node) {
    let cluster = Cluster::with_config(&config()).await;
    let table = cluster.table(1);
    for key in 0..10 {
        table.put_blind(format!("{key}"), "v").await.unwrap();
    }
    let seen = table.put_blind("gone", "v").await.unwrap();
    table.delete("gone", seen.context()).await.unwrap();
    registers(&cluster).put("r", "v").await.unwrap();
    sleep(Duration::from_secs(2)).await;
    cluster.nodes[&2].shutdown().await;
    let records = Arc::clone(&cluster.stores[&2]);
    let store = Arc::new(Faulty { records, fails: Mutex::default() });
    let node = Node::start(2, store.clone(), config()).await.unwrap();
    cluster.replace(2, &node);
    (cluster, store, node)
}

fn registers(cluster: &Cluster) -> Registers {
    Registers::new(9, RegisterConfig::with_acceptors(1..=3), cluster.link()).unwrap()
}

fn rotten() -> StoreError {
    StoreError::Damaged("a record is rotten".to_owned())
}

/// Too few open files, say: nothing is lost.
#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_read_for_a_moment_is_read_again() {
    let (cluster, store, node) = cluster().await;
    // Before the task that reads it has begun.
    store.fail(3, StoreError::Unknown("too many open files".to_owned()));
    sleep(Duration::from_millis(500)).await;
    assert_eq!(node.repair_stats().keys, None);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(node.repair_stats().keys, Some(12), "it is compared again");
    let repaired = cluster.nodes[&1].repair(&cluster.link()).await.unwrap();
    assert_eq!((repaired.replicas, repaired.differing), (2, 0));
    assert!(node.is_whole());
}

/// Whoever finds it: a node that counts for a record which it has lost would be one too many.
#[tokio::test(start_paused = true)]
async fn damage_halts_the_node_whoever_finds_it() {
    for found_by in ["its start", "a rebuild", "a read", "a repair", "a collection"] {
        let (mut cluster, store, node) = cluster().await;
        if found_by != "its start" {
            sleep(Duration::from_secs(1)).await;
            assert_eq!(node.repair_stats().keys, Some(12));
        }
        store.fail(u32::MAX, rotten());
        let link = cluster.link();
        match found_by {
            "a rebuild" => {
                cluster.restart(3, true).await;
                let failed = RebuildError::TooFewReplicas { read: 1, needed: 2 };
                assert_eq!(cluster.nodes[&3].rebuild(&link).await, Err(failed));
            }
            "a read" => {
                let found = registers(&cluster).get("r").await;
                assert_eq!(found, Ok((1, Some(Bytes::from_static(b"v")))), "of the others");
            }
            "a repair" => {
                cluster.set_away(&[2]);
                registers(&cluster).put("r", "w").await.unwrap();
                cluster.set_away(&[]);
                node.repair(&link).await.ok();
            }
            "a collection" => {
                node.collect_tombstones(&link).await.unwrap_err();
            }
            _ => {}
        }
        sleep(Duration::from_millis(10)).await;
        assert_eq!(*node.status().borrow(), Status::Halted(rotten()), "found by {found_by}");
        sleep(Duration::from_secs(5)).await;
        assert_eq!(Arc::strong_count(&store), 2, "no task is left that reads it");
    }
}
