//! A consumer as a stream: what was taken is what counts.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_core::Stream;
use voussoir_journal::{Config, Journal, MemoryFiles};
use voussoir_queue::*;

/// A queue with a topic of one batch of ten records.
async fn ten() -> Queue {
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), Config::default());
    let queue = Queue::open(&journal.expect("a journal"), "q", QueueConfig::default());
    let queue = queue.expect("a queue");
    let topic = queue.create_topic("t", TopicConfig::partitions(1)).await.expect("a topic");
    send(&topic, 0..10).await;
    queue
}

async fn send(topic: &Topic, numbers: std::ops::Range<u64>) {
    let mut batch = BatchBuilder::new();
    for number in numbers {
        batch.push(&Record::new(number.to_string())).expect("there is room");
    }
    let partition = topic.partition(0).expect("a partition");
    partition.append(batch.finish().expect("a batch"), Durability::Synced).await.expect("stored");
}

fn stream(queue: &Queue, guarantee: Guarantee) -> RecordStream {
    let mut config = ConsumerConfig::group("g", ["t"]);
    config.guarantee = guarantee;
    queue.consumer(config).expect("a consumer").into_stream().expect("a stream")
}

/// Where the group stands.
fn stored(queue: &Queue) -> u64 {
    queue.lag("g").and_then(|lags| Some(lags.first()?.position)).unwrap_or(0)
}

/// By the trait, as the combinators of other crates do.
async fn next(stream: &mut RecordStream) -> u64 {
    let item = poll_fn(|context| Pin::new(&mut *stream).poll_next(context));
    let item = tokio::time::timeout(Duration::from_secs(10), item).await.expect("there is one");
    item.expect("it never ends").expect("it can be read").record.offset
}

#[tokio::test]
async fn offsets_go_no_further_than_what_was_taken() {
    let queue = ten().await;
    let mut records = stream(&queue, Guarantee::AtLeastOnce);
    for offset in 0..4 {
        assert_eq!(next(&mut records).await, offset);
        assert!(stored(&queue) <= offset, "the record in hand is not processed yet");
    }
    drop(records);
    let from = stored(&queue);
    let mut records = stream(&queue, Guarantee::AtLeastOnce);
    let again = next(&mut records).await;
    // A commit that was under way may have been stored meanwhile: of what was taken before.
    assert!((from..4).contains(&again), "{again} came: what was taken last is read again");
    for offset in again + 1..6 {
        assert_eq!(next(&mut records).await, offset);
    }
    records.close().await.expect("it is committed");
    assert_eq!(stored(&queue), 6, "a close counts what was taken, and no more of the batch");
    let mut records = stream(&queue, Guarantee::AtMostOnce);
    assert_eq!(records.next().await.expect("a record").record.offset, 6);
    drop(records);
    assert_eq!(stored(&queue), 7, "at most once: the one that was taken is not read again");
}

#[tokio::test]
async fn a_stream_that_waits_is_woken_and_can_be_closed() {
    let queue = ten().await;
    let mut records = stream(&queue, Guarantee::AtLeastOnce);
    for offset in 0..10 {
        assert_eq!(next(&mut records).await, offset);
    }
    // Dropped while it waits, a call of `next` takes nothing with it.
    for _ in 0..3 {
        let waiting = poll_fn(|context| Poll::Ready(Pin::new(&mut records).poll_next(context)));
        assert!(waiting.await.is_pending(), "there is nothing");
        let short = tokio::time::timeout(Duration::from_millis(20), records.next()).await;
        assert!(short.is_err(), "there is nothing");
    }
    let topic = queue.topic("t").expect("a topic");
    let sending = tokio::spawn(async move { send(&topic, 10..12).await });
    let woken = tokio::time::timeout(Duration::from_secs(10), next(&mut records)).await;
    assert_eq!(woken, Ok(10));
    sending.await.expect("it is sent");
    assert_eq!(next(&mut records).await, 11);
    let waiting = poll_fn(|context| Poll::Ready(Pin::new(&mut records).poll_next(context)));
    assert!(waiting.await.is_pending(), "there is nothing");
    records.close().await.expect("a poll that waits holds nothing up");
    assert_eq!(stored(&queue), 12);
}

#[tokio::test]
async fn members_that_commit_themselves_are_no_streams() {
    let queue = ten().await;
    for guarantee in [Guarantee::Manual, Guarantee::ExactlyOnce] {
        let mut config = ConsumerConfig::group("g", ["t"]);
        config.guarantee = guarantee;
        let error = queue.consumer(config).expect("a consumer").into_stream();
        assert_eq!(error.expect_err("it could not commit in time").field, "guarantee");
    }
    // Without a group there is nothing to commit.
    let mut config = ConsumerConfig::default();
    config.guarantee = Guarantee::Manual;
    let mut consumer = queue.consumer(config).expect("a consumer");
    consumer.assign(&[TopicPartition::new("t", 0)]).expect("a partition");
    let mut records = consumer.into_stream().expect("a stream");
    assert_eq!(next(&mut records).await, 0);
    records.close().await.expect("there is nothing to commit");
}
