//! A rebuild beside clients: what it leaves to them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::store::{Change, StoreError};
use voussoir_quorum::*;

use super::support::Cluster;

/// How long a write takes.
const WRITE: Duration = Duration::from_millis(5);

/// A store in memory that notes when its writes begin.
struct Noted {
    records: MemoryStore,
    writes: Mutex<Vec<Instant>>,
}

#[async_trait]
impl ReplicaStore for Noted {
    async fn get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.records.get(keys).await
    }

    async fn apply(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        self.writes.lock().unwrap().push(Instant::now());
        sleep(WRITE).await;
        self.records.apply(batch).await
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: &[u8],
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.records.scan(prefix, after, max_bytes).await
    }

    async fn clear(&self) -> Result<(), StoreError> {
        self.records.clear().await
    }
}

/// The disk of a node that is rebuilt is free half of the time, and never busy for long: others may
/// share it, and the processors.
#[tokio::test(start_paused = true)]
async fn a_rebuild_rests_for_as_long_as_it_works() {
    let mut config = NodeConfig::with_replicas(1..=3);
    (config.collect_every, config.repair_every) = (None, None);
    let cluster = Cluster::with_config(&config).await;
    let table = cluster.table(1);
    for key in 0..5_000 {
        table.put_blind(format!("{key}"), vec![7; 100]).await.unwrap();
    }
    let store = Arc::new(Noted { records: MemoryStore::new(), writes: Mutex::default() });
    let node = Node::start_lost(3, store.clone(), config).await.unwrap();
    cluster.replace(3, &node);
    node.rebuild(&cluster.link()).await.unwrap();
    assert_eq!(store.records.scan(b"t", b"", usize::MAX).await.unwrap().len(), 5_000);
    // Without the first and the last ones, which say what the node is.
    let writes = store.writes.lock().unwrap();
    let writes = &writes[3..writes.len() - 1];
    let (first, last) = (writes[0], writes[writes.len() - 1]);
    let (busy, all) = (WRITE * (writes.len() - 1) as u32, last - first);
    let share = busy.as_secs_f64() / all.as_secs_f64();
    let mut longest = 0;
    let mut run = 0;
    for pair in writes.windows(2) {
        run = if pair[1] - pair[0] < 2 * WRITE { run + 1 } else { 0 };
        longest = longest.max(run + 1);
    }
    println!(
        "busy for {share:.2} of the time, in {} writes, at most {longest} in a row",
        writes.len()
    );
    assert!((0.3..0.6).contains(&share), "busy for {share} of the time");
    assert!(longest <= 6, "{longest} writes in a row");
}
