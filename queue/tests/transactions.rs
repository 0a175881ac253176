//! Transactions: all or nothing, fenced, with the offsets of what they were made from.

mod support;

use support::{now_or_work, poll, read_all, small};
use voussoir_journal::Journal;
use voussoir_journal::files::crash::{CrashFiles, Loss};
use voussoir_queue::{
    CommitError, ConsumerConfig, Outcome, Queue, Record, TopicConfig, TopicPartition,
};

fn open(disk: &CrashFiles) -> (Journal, Queue) {
    let journal = support::journal(disk.mount(), 64);
    let queue = Queue::open(&journal, "q", small()).expect("the queue opens");
    (journal, queue)
}

fn with_topics(disk: &CrashFiles) -> (Journal, Queue) {
    let (journal, queue) = open(disk);
    for name in ["a", "b"] {
        let create = queue.create_topic(name, TopicConfig::partitions(2));
        now_or_work(&journal, create).expect("it is created");
    }
    (journal, queue)
}

fn values(queue: &Queue, topic: &str, partition: u32) -> Vec<String> {
    let topic = queue.topic(topic).expect("a topic");
    let records = read_all(&topic.partition(partition).expect("one"), 1 << 20);
    let value = |record: Record| String::from_utf8(record.value.expect("one").into());
    records.into_iter().map(|record| value(record).expect("text")).collect()
}

#[test]
fn a_transaction_is_in_all_partitions_or_in_none() {
    let disk = CrashFiles::new(1);
    let (journal, queue) = with_topics(&disk);
    let (a, b) = (queue.topic("a").expect("one"), queue.topic("b").expect("one"));
    let mut producer = now_or_work(&journal, queue.transactional("tx")).expect("a producer");
    let mut transaction = producer.begin();
    transaction.send(&a, 0, &Record::new("aborted")).expect("it fits");
    transaction.abort();
    let mut transaction = producer.begin();
    transaction.send(&a, 0, &Record::new("a0")).expect("it fits");
    transaction.send(&b, 1, &Record::new("b1")).expect("it fits");
    transaction.send(&a, 0, &Record::new("a0 too")).expect("it fits");
    assert!(values(&queue, "a", 0).is_empty(), "nobody sees an open transaction");
    let committed = now_or_work(&journal, transaction.commit()).expect("it is committed");
    assert_eq!((committed.number, producer.committed()), (1, 1));
    let places: Vec<_> = committed.appended.iter().map(|(place, _)| place.to_string()).collect();
    assert_eq!(places, ["a/0", "b/1"]);
    assert_eq!(values(&queue, "a", 0), ["a0", "a0 too"]);
    assert_eq!(values(&queue, "b", 1), ["b1"]);

    // The power goes off with a commit on its way.
    let mut transaction = producer.begin();
    for (topic, partition) in [(&a, 0), (&a, 1), (&b, 0), (&b, 1)] {
        transaction.send(topic, partition, &Record::new("torn")).expect("it fits");
    }
    let mut committing = Box::pin(transaction.commit());
    assert!(poll(&mut committing).is_none());
    drop(committing);
    disk.power_loss(Loss::Everything);
    disk.heal();
    drop((queue, a, b, journal));
    let (_journal, queue) = open(&disk);
    assert_eq!(values(&queue, "a", 0), ["a0", "a0 too"]);
    assert_eq!(values(&queue, "b", 1), ["b1"]);
}

#[test]
fn a_newer_producer_fences_the_older_one() {
    let disk = CrashFiles::new(2);
    let (journal, queue) = with_topics(&disk);
    let a = queue.topic("a").expect("one");
    let mut zombie = now_or_work(&journal, queue.transactional("tx")).expect("a producer");
    let mut transaction = zombie.begin();
    transaction.send(&a, 0, &Record::new("zombie")).expect("it fits");
    let mut producer = now_or_work(&journal, queue.transactional("tx")).expect("a producer");
    assert_eq!(producer.epoch(), 1);
    let error = now_or_work(&journal, transaction.commit()).expect_err("it is fenced");
    assert!(matches!(error, CommitError::Fenced { current: 1, .. }), "{error}");
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, false));
    assert!(values(&queue, "a", 0).is_empty());
    let mut transaction = producer.begin();
    transaction.send(&a, 0, &Record::new("new")).expect("it fits");
    now_or_work(&journal, transaction.commit()).expect("it is committed");
    // Another id is not concerned.
    let mut other = now_or_work(&journal, queue.transactional("other")).expect("a producer");
    assert_eq!((other.epoch(), other.committed()), (0, 0));
    drop(other.begin());
}

/// Both commits wait at once: the check and the write are one.
#[test]
fn a_fence_that_is_queued_before_a_commit_rejects_it() {
    let disk = CrashFiles::new(3);
    let (journal, queue) = with_topics(&disk);
    let a = queue.topic("a").expect("one");
    let mut old = now_or_work(&journal, queue.transactional("tx")).expect("a producer");
    let mut blocker = Box::pin(queue.create_topic("c", TopicConfig::default()));
    assert!(poll(&mut blocker).is_none());
    let mut fencing = Box::pin(queue.transactional("tx"));
    assert!(poll(&mut fencing).is_none());
    let mut transaction = old.begin();
    transaction.send(&a, 0, &Record::new("zombie")).expect("it fits");
    let error = now_or_work(&journal, transaction.commit()).expect_err("it is fenced");
    assert!(matches!(error, CommitError::Fenced { .. }), "{error}");
    assert!(values(&queue, "a", 0).is_empty());
}

#[test]
fn what_no_commit_holds_is_a_typed_error() {
    let disk = CrashFiles::new(4);
    let (journal, queue) = with_topics(&disk);
    let a = queue.topic("a").expect("one");
    let mut producer = now_or_work(&journal, queue.transactional("tx")).expect("a producer");
    let mut transaction = producer.begin();
    let record = Record::new(vec![b'x'; 1_000]);
    let error = loop {
        if let Err(error) = transaction.send(&a, 0, &record) {
            break error;
        }
    };
    assert!(matches!(error, CommitError::TooLarge { bytes, limit } if bytes > limit), "{error}");
    // What was taken before can be committed.
    let committed = now_or_work(&journal, transaction.commit()).expect("it is committed");
    assert!(committed.appended.iter().all(|(place, _)| place.to_string() == "a/0"));
    assert!(values(&queue, "a", 0).len() > 3);
}

#[test]
fn the_number_of_transactions_tells_what_became_of_the_last() {
    let disk = CrashFiles::new(5);
    let (journal, queue) = with_topics(&disk);
    let a = queue.topic("a").expect("one");
    let mut producer = now_or_work(&journal, queue.transactional("tx")).expect("a producer");
    for at in 0..3 {
        let mut transaction = producer.begin();
        transaction.send(&a, 0, &Record::new(format!("{at}"))).expect("it fits");
        now_or_work(&journal, transaction.commit()).expect("it is committed");
    }
    drop((producer, a, queue, journal));
    let (journal, queue) = open(&disk);
    let producer = now_or_work(&journal, queue.transactional("tx")).expect("a producer");
    assert_eq!((producer.committed(), producer.epoch()), (3, 1));
    assert_eq!(values(&queue, "a", 0).len(), 3);
}

#[test]
fn offsets_are_stored_with_the_records_or_not_at_all() {
    let disk = CrashFiles::new(6);
    let (journal, queue) = with_topics(&disk);
    let (a, b) = (queue.topic("a").expect("one"), queue.topic("b").expect("one"));
    let mut producer = now_or_work(&journal, queue.transactional("tx")).expect("a producer");
    let mut transaction = producer.begin();
    transaction.send(&a, 0, &Record::new("in")).expect("it fits");
    now_or_work(&journal, transaction.commit()).expect("it is committed");

    let mut config = ConsumerConfig::default();
    config.group = Some("g".into());
    config.guarantee = voussoir_queue::Guarantee::ExactlyOnce;
    let mut consumer = queue.consumer(config).expect("a consumer");
    let place = TopicPartition::new("a", 0);
    consumer.assign(std::slice::from_ref(&place)).expect("it is assigned");
    let polled = tokio_poll(&mut consumer);
    assert_eq!(polled.len(), 1);
    let alone = now_or_work(&journal, consumer.commit()).expect_err("only with a transaction");
    assert!(matches!(alone, CommitError::Guarantee { .. }), "{alone}");
    let mut transaction = producer.begin();
    transaction.send(&b, 0, &Record::new("out")).expect("it fits");
    transaction.offsets(&consumer).expect("they fit");
    transaction.abort();
    assert_eq!(queue.lag("g"), None, "nothing is stored");
    consumer.rewind().expect("it goes back");
    assert_eq!(tokio_poll(&mut consumer).len(), 1, "it is read again");
    let mut transaction = producer.begin();
    transaction.send(&b, 0, &Record::new("out")).expect("it fits");
    transaction.offsets(&consumer).expect("they fit");
    now_or_work(&journal, transaction.commit()).expect("it is committed");
    let lag = queue.lag("g").expect("offsets are stored");
    assert_eq!((lag.len(), lag[0].position, lag[0].offsets()), (1, 1, 0));
    assert_eq!(values(&queue, "b", 0), ["out"]);
}

fn tokio_poll(consumer: &mut voussoir_queue::Consumer) -> Vec<voussoir_queue::ConsumerRecord> {
    support::ready(consumer.poll(std::time::Duration::MAX)).expect("it is read").records
}

#[test]
fn records_of_transactions_have_an_age() {
    let disk = CrashFiles::new(8);
    let (journal, queue) = open(&disk);
    let mut config = TopicConfig::partitions(1);
    config.retention.max_age = Some(std::time::Duration::from_secs(60));
    let topic = now_or_work(&journal, queue.create_topic("t", config)).expect("it is created");
    let mut producer = now_or_work(&journal, queue.transactional("tx")).expect("a producer");
    for record in [Record::new("own time").timestamp(5), Record::new("no time")] {
        let mut transaction = producer.begin();
        transaction.send(&topic, 0, &record).expect("it fits");
        now_or_work(&journal, transaction.commit()).expect("it is committed");
    }
    let partition = topic.partition(0).expect("one");
    let times: Vec<i64> = read_all(&partition, 1 << 20).iter().map(|r| r.timestamp).collect();
    assert!(times[0] == 5 && times[1] > 1_600_000_000_000, "{times:?}");
    let failed = now_or_work(&journal, queue.apply_retention(times[1] + 60_001));
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(partition.offsets(), 2..2, "all are too old");
}

#[test]
fn bytes_of_transactions_that_wait_are_bounded() {
    let disk = CrashFiles::new(9);
    let (journal, queue) = with_topics(&disk);
    let topic = queue.topic("a").expect("one");
    let mut names = Vec::new();
    names.extend((0..40).map(|at| format!("tx{at}")));
    let mut producers: Vec<_> = names
        .iter()
        .map(|name| now_or_work(&journal, queue.transactional(name)).expect("a producer"))
        .collect();
    let (mut waiting, mut busy) = (Vec::new(), 0);
    for producer in &mut producers {
        let mut transaction = producer.begin();
        transaction.send(&topic, 0, &Record::new(vec![7; 4_000])).expect("it fits");
        let mut commit = Box::pin(transaction.commit());
        match poll(&mut commit) {
            Some(result) => {
                let error = result.expect_err("it waits for the journal");
                assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, true));
                busy += 1;
            }
            None => waiting.push(commit),
        }
    }
    // A commit of this journal has 16 KiB at most, an item half of it.
    assert!(waiting.len() <= 9 && busy >= 31, "{} wait", waiting.len());
    for commit in waiting {
        now_or_work(&journal, commit).expect("it is committed");
    }
    let mut transaction = producers[39].begin();
    transaction.send(&topic, 0, &Record::new("there is room again")).expect("it fits");
    now_or_work(&journal, transaction.commit()).expect("it is committed");
}
