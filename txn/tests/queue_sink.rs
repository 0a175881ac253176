//! A queue as the sink of an outbox, over a journal in memory.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use voussoir_journal::{Config, Journal, MemoryFiles};
use voussoir_queue::{Queue, QueueConfig, TopicConfig};
use voussoir_txn::outbox::*;

async fn queue() -> Queue {
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), Config::default()).unwrap();
    let queue = Queue::open(&journal, "q", QueueConfig::default()).unwrap();
    for topic in ["orders", "bills"] {
        queue.create_topic(topic, TopicConfig::partitions(3)).await.unwrap();
    }
    queue
}

fn message(number: u64, topic: &str) -> Message {
    Message::new(&format!("id {number}"), number, topic, "k", number.to_string())
}

/// Records of all partitions of a topic.
fn count(queue: &Queue, topic: &str) -> u64 {
    let topic = queue.topic(topic).unwrap();
    let offsets = (0..topic.partitions()).map(|at| topic.partition(at).unwrap().offsets());
    offsets.map(|offsets| offsets.end - offsets.start).sum()
}

/// A key whose messages change their topic is no failure, and one that names no topic ends there.
#[tokio::test]
async fn messages_of_one_key_go_to_the_topics_that_they_name() {
    let queue = queue().await;
    let sink = QueueSink::new(&queue, 100);
    let topics = ["orders", "bills", "bills", "orders", "none", "orders"];
    let all: Vec<Message> = (1..).zip(topics).map(|(at, topic)| message(at, topic)).collect();
    sink.deliver(&all[..4]).await.unwrap();
    assert_eq!((count(&queue, "orders"), count(&queue, "bills")), (2, 2));
    let error = sink.deliver(&all).await.unwrap_err();
    assert_eq!(error.delivered, 4, "{error}");
    assert_eq!((count(&queue, "orders"), count(&queue, "bills")), (2, 2), "nothing twice");
}

/// A runtime that ends before the task of a delivery has run leaves nobody waiting for it.
#[test]
fn a_delivery_whose_runtime_ends_holds_up_no_later_one() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let queue = first.block_on(queue());
    let sink = QueueSink::new(&queue, 100);
    let messages = [message(1, "orders")];
    first.block_on(async {
        let mut delivery = std::pin::pin!(sink.deliver(&messages));
        // Polled once: the task is there, and has not run.
        let polled = std::future::poll_fn(|cx| Poll::Ready(delivery.as_mut().poll(cx)));
        assert!(polled.await.is_pending());
    });
    drop(first);
    runtime().block_on(async {
        let again = tokio::time::timeout(Duration::from_secs(30), sink.deliver(&messages));
        again.await.expect("nobody holds it up").unwrap();
    });
    assert_eq!(count(&queue, "orders"), 1);
}
