//! What `QueueMetrics` exports, read back from a recorder.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use support::{journal, small, work};
use voussoir_journal::MemoryFiles;
use voussoir_queue::work::WorkConfig;
use voussoir_queue::{
    ConsumerConfig, Durability, Guarantee, ProducerConfig, Queue, QueueMetrics, Record,
    TopicConfig, TopicPartition,
};

const SECOND: Duration = Duration::from_secs(1);

/// `name{label=value,…}` and its value.
fn exported(snapshotter: &Snapshotter) -> BTreeMap<String, u64> {
    let all = snapshotter.snapshot().into_vec().into_iter();
    all.map(|(key, _, _, value)| {
        let key = key.key();
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let value = match value {
            DebugValue::Counter(count) => count,
            DebugValue::Gauge(level) => level.into_inner() as u64,
            DebugValue::Histogram(_) => panic!("there is no histogram"),
        };
        (format!("{}{{{}}}", key.name(), labels.join(",")), value)
    })
    .collect()
}

#[tokio::test(start_paused = true)]
async fn partitions_groups_and_work_queues_are_exported() {
    let journal = journal(Arc::new(MemoryFiles::new()), 1_000);
    let queue = Queue::open(&journal, "q", small()).expect("the queue opens");
    tokio::spawn(async move {
        let mut now = 0;
        // Ends with the test's runtime.
        loop {
            work(&journal, &mut now);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let topic = queue.create_topic("t", TopicConfig::partitions(2)).await.expect("created");
    let producer = queue.producer(ProducerConfig::default()).await.expect("a producer");
    for value in ["a", "b", "c"] {
        let sent = producer.try_enqueue(&topic, Some(1), Record::new(value), Durability::default());
        sent.expect("it is queued").await.expect("it is stored");
    }
    for (group, offset) in [("g", 1), ("g-2", 2), ("h", 3)] {
        let mut config = ConsumerConfig::group(group, ["t"]);
        config.topics.clear();
        config.guarantee = Guarantee::Manual;
        let mut consumer = queue.consumer(config).expect("a consumer");
        let place = TopicPartition::new("t", 1);
        consumer.assign(std::slice::from_ref(&place)).expect("it is there");
        consumer.commit_to(&[(place, offset)]).await.expect("it is stored");
    }
    assert_eq!(queue.groups(), ["g", "g-2", "h"]);
    let mut config = WorkConfig::default();
    (config.max_records, config.max_dead_letters) = (10, 10);
    let worked = queue.work_queue("t", 1, "workers", config).expect("it opens");
    let leased = worked.receive(2, SECOND).await.expect("records");
    worked.ack(&leased[0].receipt).await.expect("it is acknowledged");

    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let metrics = QueueMetrics::new("shop");
        metrics.export(&queue);
        metrics.export_work("workers", &worked);
    });
    let found = exported(&snapshotter);
    let place = "queue=shop,topic=t,partition=1";
    let expected = [
        (format!("voussoir_queue_end_offset{{{place}}}"), 3),
        (format!("voussoir_queue_start_offset{{{place}}}"), 0),
        (format!("voussoir_queue_appended_batches_total{{{place}}}"), 3),
        (format!("voussoir_queue_rejected_batches_total{{{place}}}"), 0),
        ("voussoir_queue_end_offset{queue=shop,topic=t,partition=0}".to_owned(), 0),
        (format!("voussoir_queue_lag{{{place},group=g}}"), 2),
        (format!("voussoir_queue_lag{{{place},group=g-2}}"), 1),
        (format!("voussoir_queue_lag{{{place},group=h}}"), 0),
        ("voussoir_queue_work_delivered_total{queue=shop,work=workers}".to_owned(), 2),
        ("voussoir_queue_work_acked_total{queue=shop,work=workers}".to_owned(), 1),
        ("voussoir_queue_work_leased{queue=shop,work=workers}".to_owned(), 1),
    ];
    for (name, value) in expected {
        assert_eq!(found.get(&name), Some(&value), "{name} in {found:#?}");
    }
    let stats = topic.partition(1).expect("a partition").stats();
    let stored = found[&format!("voussoir_queue_stored_bytes{{{place}}}")];
    assert_eq!(stored, stats.stored_bytes);
    assert_eq!(found.len(), 2 * 9 + 3 + 10, "each figure once");
}
