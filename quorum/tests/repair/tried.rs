//! Operations over nodes are tried until their deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::table::{CallError, TableConfig};
use voussoir_quorum::*;

use super::support::Cluster;

fn config() -> NodeConfig {
    let mut config = NodeConfig::with_replicas(1..=3);
    (config.collect_every, config.repair_every) = (None, None);
    config
}

/// One replica is being rebuilt. The only other one that counts is away for a moment.
#[tokio::test(start_paused = true)]
async fn operations_beside_a_rebuild_wait_for_the_replicas_that_are_left() {
    let mut cluster = Cluster::with_config(&config()).await;
    let table = cluster.table(1);
    let state = table.put_blind("k", "v").await.unwrap();
    cluster.restart(3, true).await;
    cluster.set_away(&[2]);
    let began = Instant::now();
    let put = tokio::spawn({
        let table = table.clone();
        async move { table.put("k", state.context(), "w").await }
    });
    let get = tokio::spawn({
        let table = table.clone();
        async move { table.get("l").await }
    });
    sleep(Duration::from_millis(400)).await;
    assert!(!put.is_finished() && !get.is_finished());
    cluster.set_away(&[]);
    put.await.unwrap().unwrap();
    get.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_millis(660), "{:?}", began.elapsed());
    assert_eq!(cluster.values(2, "k").await, ["w"], "written once");
    sleep(Duration::from_millis(10)).await;
    let stats = table.stats();
    assert_eq!(stats.operations, 0);
    assert!((4..40).contains(&stats.retried), "{stats:?}");
}

/// The first operation of a table asks who the replicas are, and of registers.
#[tokio::test(start_paused = true)]
async fn the_replicas_are_asked_for_until_the_deadline() {
    let cluster = Cluster::with_config(&config()).await;
    cluster.set_away(&[1, 2, 3]);
    let table = Table::new(TableConfig::with_replicas(1..=3), cluster.link()).unwrap();
    let registers =
        Registers::new(9, RegisterConfig::with_acceptors(1..=3), cluster.link()).unwrap();
    let put = tokio::spawn(async move { table.put_blind("k", "v").await });
    let change = tokio::spawn(async move { registers.put("r", "v").await });
    sleep(Duration::from_millis(400)).await;
    assert!(!put.is_finished() && !change.is_finished());
    cluster.set_away(&[]);
    put.await.unwrap().unwrap();
    assert_eq!(change.await.unwrap(), Ok(1));
    // Nobody comes back: it has an end.
    cluster.set_away(&[1, 2, 3]);
    let table = Table::new(TableConfig::with_replicas(1..=3), cluster.link()).unwrap();
    let began = Instant::now();
    table.get("k").await.unwrap_err();
    assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
}

/// Node 2 turns reads away until a time.
struct Full {
    link: Arc<dyn Link>,
    until: Instant,
    turned_away: AtomicU64,
}

#[async_trait]
impl Link for Full {
    async fn call(
        &self,
        to: u64,
        class: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let is_read = matches!(request[1], 1 | 11);
        if to == 2 && is_read && Instant::now() < self.until {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            // Version 1, "busy", epoch 1.
            return Ok(Bytes::from_static(&[1, 6, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
        }
        self.link.call(to, class, request, deadline).await
    }
}

/// A node that has no room for a request is not asked again soon, as one is that was not reached.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_busy_is_left_alone_for_a_while() {
    let cluster = Cluster::with_config(&config()).await;
    cluster.set_away(&[3]);
    for _ in 0..20 {
        let (link, until) = (cluster.link(), Instant::now() + Duration::from_millis(75));
        let link = Arc::new(Full { link, until, turned_away: AtomicU64::new(0) });
        let table = Table::new(TableConfig::with_replicas(1..=3), link.clone()).unwrap();
        let began = Instant::now();
        table.get("k").await.unwrap();
        assert_eq!(link.turned_away.load(Ordering::Relaxed), 1);
        let elapsed = began.elapsed().as_millis();
        assert!((80..=170).contains(&elapsed), "{elapsed} ms");
    }
}

/// Fails the first long calls.
struct Flaky {
    link: Arc<dyn Link>,
    fails: AtomicU64,
}

#[async_trait]
impl Link for Flaky {
    async fn call(
        &self,
        to: u64,
        class: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let less = |fails: u64| fails.checked_sub(1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        if class == Class::Bulk && self.fails.fetch_update(set, get, less).is_ok() {
            return Err(CallError::Unknown);
        }
        self.link.call(to, class, request, deadline).await
    }
}

/// The answer to a write is too long for the connection of short ones, and the calls that fetch it
/// fail. The write was made: it is not made again, and its state is asked for again.
#[tokio::test(start_paused = true)]
async fn the_state_of_a_write_with_a_long_answer_is_asked_for_again() {
    let cluster = Cluster::with_config(&config()).await;
    cluster.table(1).put_blind("k", vec![7; 500_000]).await.unwrap();
    let link = Arc::new(Flaky { link: cluster.link(), fails: AtomicU64::new(4) });
    let table = Table::new(TableConfig::with_replicas(1..=3), link).unwrap();
    let state = table.put_blind("k", "short").await.unwrap();
    assert_eq!(state.len(), 2, "one sibling for the one write");
}
