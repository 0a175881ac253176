//! Reads over nodes: what they move, and what they notice.

use std::time::Duration;

use super::support::Cluster;
use voussoir_quorum::*;

#[tokio::test(start_paused = true)]
async fn a_read_moves_a_long_value_once_and_notices_who_lacks_it() {
    let mut config = NodeConfig::with_replicas(1..=3);
    (config.max_hints, config.collect_every, config.repair_every) = (0, None, None);
    let cluster = Cluster::with_config(&config).await;
    let table = cluster.table(1);
    let mut state = table.put_blind("k", vec![7; 200_000]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.take_bytes();
    // Each replica sends its state once, and its digest once.
    for _ in 0..3 {
        assert_eq!(table.get("k").await.unwrap(), state);
        let bytes = cluster.take_bytes();
        assert!((200_000..201_000).contains(&bytes), "{bytes} bytes for a value of 200,000");
    }
    let stats = table.stats();
    assert_eq!((stats.digests, stats.unmatched_digests), (3, 0));
    for lacking in 1..=3 {
        cluster.set_away(&[lacking]);
        state = table.put("k", state.context(), vec![lacking as u8; 200_000]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.set_away(&[]);
        for _ in 0..3 {
            assert_eq!(table.get("k").await.unwrap(), state, "without replica {lacking}");
        }
        assert_eq!(cluster.state(lacking, "k").await, state, "a read has repaired it");
    }
    assert!(table.stats().unmatched_digests > 0);
}
