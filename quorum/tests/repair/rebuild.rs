//! A rebuild beside clients: what it leaves to them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::store::{Change, StoreError};
use voussoir_quorum::table::CallError;
use voussoir_quorum::*;

use super::support::Cluster;

/// How long a write takes.
const WRITE: Duration = Duration::from_millis(5);

/// A store in memory that notes when its writes begin and how many changes they have, and refuses
/// some.
#[derive(Default)]
struct Noted {
    records: MemoryStore,
    writes: Mutex<Vec<(Instant, usize)>>,
    /// Each write of several changes with this number, counted from 1, is refused. 0: none is.
    refuses: u64,
    several: AtomicU64,
}

#[async_trait]
impl ReplicaStore for Noted {
    async fn get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.records.get(keys).await
    }

    async fn apply(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        self.writes.lock().unwrap().push((Instant::now(), batch.len()));
        sleep(WRITE).await;
        if batch.len() > 1 && self.refuses > 0 {
            let number = self.several.fetch_add(1, Ordering::Relaxed) + 1;
            if number.is_multiple_of(self.refuses) {
                return Err(StoreError::NotApplied("the disk is full".to_owned()));
            }
        }
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
    let store = Arc::new(Noted::default());
    rebuild(5_000, &store).await;
    // Without the first and the last ones, which say what the node is.
    let writes = store.writes.lock().unwrap();
    let writes = &writes[3..writes.len() - 1];
    let (first, last) = (writes[0].0, writes[writes.len() - 1].0);
    let (busy, all) = (WRITE * (writes.len() - 1) as u32, last - first);
    let share = busy.as_secs_f64() / all.as_secs_f64();
    let (mut longest, mut most) = (0, 0);
    let (mut run, mut changes) = (0, 0);
    for pair in writes.windows(2) {
        let is_behind = pair[1].0 - pair[0].0 < 2 * WRITE;
        (run, changes) = if is_behind { (run + 1, changes + pair[0].1) } else { (0, 0) };
        longest = longest.max(run + 1);
        most = most.max(changes + pair[1].1);
    }
    println!(
        "busy for {share:.2} of the time, in {} writes, at most {longest} in a row, of {most} keys",
        writes.len()
    );
    assert!((0.3..0.6).contains(&share), "busy for {share} of the time");
    assert!(longest <= 6, "{longest} writes in a row");
    assert!(most <= 800, "{most} keys without a rest");
}

/// A link on which each call takes a while. It notes when they begin, and whom they call.
struct Slow {
    link: Arc<dyn Link>,
    calls: Mutex<Vec<(u64, Instant)>>,
}

/// How long a page is on its way.
const CALL: Duration = Duration::from_millis(4);

#[async_trait]
impl Link for Slow {
    async fn call(
        &self,
        to: u64,
        class: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        self.calls.lock().unwrap().push((to, Instant::now()));
        sleep(CALL).await;
        self.link.call(to, class, request, deadline).await
    }
}

/// The second source has nothing new, so nothing is written: it is not asked for one page after the
/// other.
#[tokio::test(start_paused = true)]
async fn the_sources_of_a_rebuild_rest_for_as_long_as_they_work() {
    let store = Arc::new(Noted::default());
    let calls = rebuild(5_000, &store).await;
    for source in [1, 2] {
        let calls: Vec<Instant> =
            calls.iter().filter(|(to, _)| *to == source).map(|(_, began)| *began).collect();
        // Without what it is asked before its pages.
        let pages = &calls[calls.len() - 12..];
        let span = pages[pages.len() - 1] - pages[0];
        let share = (CALL * (pages.len() - 1) as u32).as_secs_f64() / span.as_secs_f64();
        println!("source {source} works for {share:.2} of the time");
        assert!(share < 0.6, "source {source}: {share}");
    }
}

/// What was not written is merged again: the node is whole when it has all of it.
#[tokio::test(start_paused = true)]
async fn a_rebuild_goes_on_when_the_disk_was_full() {
    for refuses in [2, 3] {
        let store = Arc::new(Noted { refuses, ..Noted::default() });
        rebuild(2_000, &store).await;
        let refused = store.several.load(Ordering::Relaxed) / refuses;
        println!("{refused} writes refused");
        assert!(refused > 2, "some were refused: {refused}");
    }
}

/// A node of three is rebuilt on this store, which then has all keys.
/// Returns whom it called for that, and when.
async fn rebuild(keys: usize, store: &Arc<Noted>) -> Vec<(u64, Instant)> {
    let mut config = NodeConfig::with_replicas(1..=3);
    (config.collect_every, config.repair_every) = (None, None);
    let cluster = Cluster::with_config(&config).await;
    let table = cluster.table(1);
    for key in 0..keys {
        table.put_blind(format!("{key}"), vec![7; 100]).await.unwrap();
    }
    let own: Arc<dyn ReplicaStore> = store.clone();
    let node = Node::start_lost(3, own, config).await.unwrap();
    cluster.replace(3, &node);
    let slow = Arc::new(Slow { link: cluster.link(), calls: Mutex::default() });
    let link: Arc<dyn Link> = slow.clone();
    node.rebuild(&link).await.unwrap();
    assert!(node.is_whole());
    assert_eq!(store.records.scan(b"t", b"", usize::MAX).await.unwrap().len(), keys);
    std::mem::take(&mut *slow.calls.lock().unwrap())
}
