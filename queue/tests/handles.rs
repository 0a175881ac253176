//! Handles of one queue that are passed to another one: refused by type, and nothing happens.

mod support;

use std::time::Duration;

use support::{now_or_work, read_all, small};
use voussoir_journal::Journal;
use voussoir_journal::files::crash::CrashFiles;
use voussoir_queue::store::MemoryPartition;
use voussoir_queue::work::{MemoryWork, Receipt, WorkConfig, WorkError, WorkQueue};
use voussoir_queue::{
    CommitError, Config, ConsumerConfig, Durability, Outcome, Partition, ProducerConfig, Queue,
    Record, SendError, Topic, TopicConfig, TopicError, TopicPartition,
};

/// Two queues of one journal, each with a topic of two partitions: the partitions have the same
/// numbers in both.
fn two_queues(disk: &CrashFiles) -> (Journal, [(Queue, Topic); 2]) {
    let journal = support::journal(disk.mount(), 64);
    let queues = ["one", "two"].map(|name| {
        let queue = Queue::open(&journal, name, small()).expect("the queue opens");
        let creating = queue.create_topic(name, TopicConfig::partitions(2));
        let topic = now_or_work(&journal, creating).expect("it is created");
        (queue, topic)
    });
    (journal, queues)
}

fn records(topic: &Topic) -> usize {
    let partitions = (0..topic.partitions()).map(|at| topic.partition(at).expect("one"));
    partitions.map(|partition| read_all(&partition, 1 << 20).len()).sum()
}

#[test]
fn a_topic_of_another_queue_takes_no_record() {
    let disk = CrashFiles::new(1);
    let (journal, [(one, mine), (_two, other)]) = two_queues(&disk);
    let mut config = ProducerConfig::default();
    // It needs no clock of tokio.
    config.delivery_timeout = None;
    let producer = now_or_work(&journal, one.producer(config)).expect("a producer");
    let foreign = || TopicError::Foreign { name: "two".to_owned() };
    let is_refused = |error: SendError| {
        assert_eq!(error, SendError::Topic(foreign()));
        assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, false));
    };
    // As the first topic that the producer sees, and behind one of its own.
    for _ in 0..2 {
        for record in [Record::new("a"), Record::new("a").key("k")] {
            let sent = now_or_work(&journal, producer.send(&other, record.clone()));
            is_refused(sent.expect_err("it is of another queue"));
            for partition in [None, Some(0), Some(7)] {
                let tried =
                    producer.try_enqueue(&other, partition, record.clone(), Durability::Synced);
                is_refused(tried.map(drop).expect_err("it is of another queue"));
            }
        }
        now_or_work(&journal, producer.send(&mine, Record::new("mine"))).expect("it is sent");
    }
    let mut producer = now_or_work(&journal, one.transactional("tx")).expect("a producer");
    let mut transaction = producer.begin();
    let refused = transaction.send(&other, 0, &Record::new("a"));
    assert_eq!(refused, Err(CommitError::Topic(Box::new(foreign()))));
    transaction.send(&mine, 0, &Record::new("mine")).expect("it fits");
    let committed = now_or_work(&journal, transaction.commit()).expect("it is committed");
    assert_eq!(committed.appended.len(), 1);
    assert_eq!((records(&mine), records(&other)), (3, 0));
}

#[test]
fn offsets_of_another_queues_consumer_are_not_committed() {
    let disk = CrashFiles::new(2);
    let (journal, [(one, _), (two, other)]) = two_queues(&disk);
    let mut config = ConsumerConfig::default();
    config.group = Some("g".to_owned());
    let mut consumer = two.consumer(config).expect("a consumer");
    consumer.assign(&[TopicPartition::new("two", 0)]).expect("it is there");
    let partition = other.partition(0).expect("one");
    now_or_work(&journal, partition.append(support::one("a"), Durability::Synced)).expect("added");
    assert_eq!(support::ready(consumer.poll(Duration::MAX)).expect("it reads").records.len(), 1);
    let mut producer = now_or_work(&journal, one.transactional("tx")).expect("a producer");
    let mut transaction = producer.begin();
    assert_eq!(transaction.offsets(&consumer), Err(CommitError::ForeignConsumer));
    now_or_work(&journal, transaction.commit()).expect("there is nothing in it");
    assert_eq!((one.groups(), two.groups()), (Vec::new(), Vec::new()));
}

async fn work_queue(records: usize) -> (WorkQueue, Partition, MemoryWork) {
    let source = Partition::open(MemoryPartition::new(1 << 20), Config::default());
    let (source, store) = (source.expect("it opens"), MemoryWork::new());
    for at in 0..records {
        let appending = source.append(support::one(&at.to_string()), Durability::Synced);
        appending.await.expect("it is appended");
    }
    let work = WorkQueue::open(source.clone(), store.clone(), WorkConfig::default());
    (work.expect("the work queue opens"), source, store)
}

async fn receive(work: &WorkQueue) -> Vec<Receipt> {
    let received = work.receive(10, Duration::ZERO).await.expect("it receives");
    received.into_iter().map(|delivery| delivery.receipt).collect()
}

/// Each verb, with a receipt that `work` has not given.
async fn is_refused(work: &WorkQueue, receipt: &Receipt) {
    let lost = Err(WorkError::LeaseLost { offset: receipt.offset() });
    assert_eq!(work.ack(receipt).await, lost);
    assert_eq!(work.ack_all(&[*receipt]).await, std::slice::from_ref(&lost));
    assert_eq!(work.nack(receipt, None).await, lost);
    assert_eq!(work.reject(receipt, "bad").await, lost);
    assert_eq!(work.extend(receipt, Duration::from_secs(1)).await, lost);
}

#[tokio::test(start_paused = true)]
async fn a_receipt_of_another_work_queue_settles_nothing() {
    let ((urgent, source, store), (other, ..)) = (work_queue(3).await, work_queue(3).await);
    let (mine, foreign) = (receive(&urgent).await, receive(&other).await);
    assert_eq!((mine.len(), foreign.len()), (3, 3));
    for (mine, foreign) in mine.iter().zip(&foreign) {
        assert_eq!(mine.offset(), foreign.offset());
        assert_ne!(mine, foreign);
        is_refused(&urgent, foreign).await;
    }
    assert_eq!((urgent.stats().floor, urgent.stats().leased), (0, 3));
    assert_eq!(urgent.stats().dead_letters, 0);
    assert!(urgent.ack_all(&mine).await.iter().all(Result::is_ok));
    assert_eq!((urgent.stats().floor, other.stats().floor), (3, 0));

    // Nor does one of the same work queue that was opened before.
    let late = receive(&other).await;
    assert_eq!(late, [], "they are leased");
    let appending = source.append(support::one("late"), Durability::Synced);
    appending.await.expect("it is appended");
    let before = receive(&urgent).await;
    drop(urgent);
    let work = WorkQueue::open(source, store, WorkConfig::default()).expect("it opens again");
    let now = receive(&work).await;
    assert_eq!((before.len(), now.len()), (1, 1));
    is_refused(&work, &before[0]).await;
    work.ack(&now[0]).await.expect("it has given the receipt");
}
