//! Handles of one queue that are passed to another one: refused by type, and nothing happens.

mod support;

use std::time::Duration;

use support::{now_or_work, read_all, small};
use voussoir_journal::Journal;
use voussoir_journal::files::crash::CrashFiles;
use voussoir_queue::{
    CommitError, ConsumerConfig, Durability, Outcome, ProducerConfig, Queue, Record, SendError,
    Topic, TopicConfig, TopicError, TopicPartition,
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
