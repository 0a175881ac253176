//! Publish and subscribe: each subscriber at its own pace, and none of them too far behind.

mod support;

use std::time::Duration;

use support::batch;
use voussoir_queue::broadcast::{SlowPolicy, SubscribeError, Subscription};
use voussoir_queue::format::MAX_UNPACKED_BYTES;
use voussoir_queue::store::MemoryPartition;
use voussoir_queue::{Config, Durability, Fetched, Partition, Record, Seek};

const NO_WAIT: Duration = Duration::ZERO;

fn partition() -> Partition {
    Partition::open(MemoryPartition::new(64 << 20), Config::default()).expect("it opens")
}

async fn append(partition: &Partition, count: u64) {
    for _ in 0..count {
        let batch = batch(&[Record::new("x")], None);
        partition.append(batch, Durability::Synced).await.expect("it is appended");
    }
}

fn offsets(fetched: &Fetched) -> Vec<u64> {
    let records = fetched.records(MAX_UNPACKED_BYTES);
    records.map(|record| record.expect("a record").offset).collect()
}

fn subscribe(partition: &Partition, max_lag: u64, policy: SlowPolicy) -> Subscription {
    Subscription::new(partition, Seek::Latest, max_lag, policy).expect("it subscribes")
}

#[tokio::test(start_paused = true)]
async fn each_subscriber_gets_every_record_at_its_own_pace() {
    let partition = partition();
    let mut quick = subscribe(&partition, 10, SlowPolicy::Disconnect);
    let mut slow = subscribe(&partition, 10, SlowPolicy::Disconnect);
    for at in 0..8 {
        append(&partition, 1).await;
        let fetched = quick.next(1 << 20, NO_WAIT).await.expect("a record");
        assert_eq!(offsets(&fetched), [at]);
    }
    let all = slow.next(1 << 20, NO_WAIT).await.expect("records");
    assert_eq!(offsets(&all), (0..8).collect::<Vec<u64>>());
    let none = slow.next(1 << 20, Duration::from_secs(1)).await.expect("it waits");
    assert!(none.batches.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_skips_what_is_beyond_its_limit() {
    let partition = partition();
    let mut reader = subscribe(&partition, 5, SlowPolicy::Skip);
    append(&partition, 5).await;
    assert_eq!(offsets(&reader.next(1, NO_WAIT).await.expect("one")), [0], "at its limit");
    append(&partition, 20).await;
    let fetched = reader.next(1 << 20, NO_WAIT).await.expect("records");
    assert_eq!(offsets(&fetched), (20..25).collect::<Vec<u64>>());
    assert_eq!((reader.skipped(), reader.offset()), (19, 25));
    // Retention is a limit as well.
    append(&partition, 4).await;
    partition.release_before(28).await.expect("it is released");
    let fetched = reader.next(1 << 20, NO_WAIT).await.expect("records");
    assert_eq!((offsets(&fetched), reader.skipped()), (vec![28], 22));
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_is_disconnected_for_good() {
    let partition = partition();
    let mut reader = subscribe(&partition, 5, SlowPolicy::Disconnect);
    append(&partition, 6).await;
    let error = SubscribeError::TooSlow { lag: 6, limit: 5 };
    assert_eq!(reader.next(1 << 20, NO_WAIT).await.err(), Some(error.clone()));
    partition.release_before(6).await.expect("it is released");
    assert_eq!(reader.next(1 << 20, NO_WAIT).await.err(), Some(error), "also when nothing is left");
}
