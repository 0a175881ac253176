//! Topics: created, found again, deleted, and apart from each other.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{now_or_work, one, read_all, ready, small, work};
use voussoir_journal::files::crash::{CrashFiles, Loss};
use voussoir_journal::{Files, Journal, MemoryFiles};
use voussoir_queue::{
    Consumer, ConsumerConfig, Durability, FetchError, Guarantee, OpenError, ProduceError, Queue,
    QueueConfig, Record, StoreError, TopicConfig, TopicError, TopicPartition,
};

fn open(files: Arc<dyn Files>) -> (Journal, Queue) {
    let journal = support::journal(files, 64);
    let queue = Queue::open(&journal, "q", small()).expect("the queue opens");
    (journal, queue)
}

fn append(journal: &Journal, queue: &Queue, topic: &str, partition: u32, value: &str) -> u64 {
    let topic = queue.topic(topic).expect("a topic");
    let partition = topic.partition(partition).expect("a partition");
    let appended = now_or_work(journal, partition.append(one(value), Durability::Synced));
    appended.expect("it is appended").base_offset
}

#[test]
fn topics_are_found_after_a_restart() {
    let disk = CrashFiles::new(1);
    let (journal, queue) = open(disk.mount());
    let create = queue.create_topic("orders", TopicConfig::partitions(3));
    let orders = now_or_work(&journal, create).expect("it is created");
    assert_eq!((orders.name(), orders.partitions()), ("orders", 3));
    let mut config = TopicConfig::partitions(1);
    config.retention.max_age = Some(Duration::from_secs(60));
    config.retention.max_bytes = Some(1_000);
    now_or_work(&journal, queue.create_topic("audit", config)).expect("it is created");
    append(&journal, &queue, "orders", 2, "a");
    assert_eq!(append(&journal, &queue, "orders", 2, "b"), 1);
    assert_eq!(append(&journal, &queue, "audit", 0, "c"), 0);
    drop((queue, orders, journal));

    let (_journal, queue) = open(disk.mount());
    let names: Vec<_> = queue.topics().iter().map(|topic| topic.name().to_owned()).collect();
    assert_eq!(names, ["audit", "orders"]);
    assert_eq!(queue.topic("audit").expect("a topic").config(), config);
    let orders = queue.topic("orders").expect("a topic");
    let records = read_all(&orders.partition(2).expect("a partition"), 1 << 20);
    let values: Vec<_> = records.into_iter().map(|record| record.value.expect("one")).collect();
    assert_eq!(values, ["a", "b"]);
    assert_eq!(orders.partition(0).expect("a partition").offsets(), 0..0);
    assert!(matches!(
        orders.partition(3),
        Err(TopicError::UnknownPartition { partition: 3, partitions: 3, .. })
    ));
}

#[test]
fn a_topic_that_is_created_again_has_nothing_of_the_old_one() {
    let disk = CrashFiles::new(2);
    let (journal, queue) = open(disk.mount());
    let created = now_or_work(&journal, queue.create_topic("t", TopicConfig::default()));
    let old = created.expect("it is created").partition(0).expect("a partition");
    append(&journal, &queue, "t", 0, "old");
    let mut reader = Box::pin(old.wait_for(1));
    assert!(support::poll(&mut reader).is_none());
    now_or_work(&journal, queue.delete_topic("t")).expect("it is deleted");
    assert_eq!(support::poll(&mut reader), Some(Err(FetchError::Closed)));
    let late = now_or_work(&journal, old.append(one("late"), Durability::Synced));
    assert!(late.is_err(), "a deleted topic takes no records");
    assert!(matches!(queue.topic("t"), Err(TopicError::Unknown { .. })));
    let again = now_or_work(&journal, queue.delete_topic("t"));
    assert!(matches!(again, Err(TopicError::Unknown { .. })), "{again:?}");
    let created = now_or_work(&journal, queue.create_topic("t", TopicConfig::default()));
    let fresh = created.expect("it is created").partition(0).expect("a partition");
    assert_eq!(fresh.offsets(), 0..0);
    append(&journal, &queue, "t", 0, "new");
    drop((queue, journal, old, fresh, reader));

    let (_journal, queue) = open(disk.mount());
    let topic = queue.topic("t").expect("a topic");
    let records = read_all(&topic.partition(0).expect("a partition"), 1 << 20);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].value.as_deref(), Some(&b"new"[..]));
}

#[test]
fn what_is_no_topic_is_a_typed_error() {
    let disk = CrashFiles::new(3);
    let (journal, queue) = open(disk.mount());
    let long = "x".repeat(250);
    for name in ["", ".", "..", "a/b", "ä", &long] {
        let error = ready(queue.create_topic(name, TopicConfig::default())).expect_err("no name");
        assert!(matches!(error, TopicError::InvalidName { .. }), "{error}");
    }
    let none = ready(queue.create_topic("t", TopicConfig::partitions(0)));
    assert!(matches!(none, Err(TopicError::Config(_))), "{none:?}");
    now_or_work(&journal, queue.create_topic("t", TopicConfig::default())).expect("created");
    let twice = now_or_work(&journal, queue.create_topic("t", TopicConfig::default()));
    assert!(matches!(twice, Err(TopicError::Exists { .. })), "{twice:?}");
    let second = Queue::open(&journal, "q", small());
    assert!(matches!(second, Err(OpenError::Store(StoreError::Rejected { .. }))), "{second:?}");
    // A snapshot of a thousand producers does not fit into a commit of so small a journal.
    let large = Queue::open(&journal, "other", QueueConfig::default());
    assert!(matches!(large, Err(OpenError::Config(_))), "{large:?}");
}

#[test]
fn limits_of_topics_and_partitions_hold_also_within_one_commit() {
    let disk = CrashFiles::new(4);
    let journal = support::journal(disk.mount(), 64);
    let mut config = small();
    config.max_topics = 2;
    config.max_partitions = 5;
    let queue = Queue::open(&journal, "q", config).expect("the queue opens");
    // Four at once, of which the first is written alone and the others share a commit.
    let create = |name, partitions| queue.create_topic(name, TopicConfig::partitions(partitions));
    let mut creating = [
        Box::pin(create("a", 2)),
        Box::pin(create("b", 4)),
        Box::pin(create("c", 3)),
        Box::pin(create("d", 1)),
    ];
    let mut polled = creating.each_mut().map(support::poll);
    let mut now = 0;
    for _ in 0..4 {
        work(&journal, &mut now);
        for (result, creating) in polled.iter_mut().zip(&mut creating) {
            if result.is_none() {
                *result = support::poll(creating);
            }
        }
    }
    let [a, b, c, d] = polled.map(|result| result.expect("it is answered"));
    assert!(a.is_ok() && c.is_ok(), "{a:?} {c:?}");
    assert!(matches!(b, Err(TopicError::TooMany { field: "max_partitions", limit: 5 })), "{b:?}");
    assert!(matches!(d, Err(TopicError::TooMany { field: "max_topics", limit: 2 })), "{d:?}");
}

#[test]
fn retention_of_each_topic_is_applied() {
    let disk = CrashFiles::new(5);
    let (journal, queue) = open(disk.mount());
    let mut config = TopicConfig::partitions(2);
    config.retention.max_age = Some(Duration::from_secs(1));
    now_or_work(&journal, queue.create_topic("young", config)).expect("it is created");
    now_or_work(&journal, queue.create_topic("all", TopicConfig::default())).expect("created");
    for (topic, partition, ms) in [("young", 1, 1_000), ("young", 1, 5_000), ("all", 0, 1_000)] {
        let topic = queue.topic(topic).expect("a topic");
        let batch = support::batch(&[Record::new("x").timestamp(ms)], None);
        let partition = topic.partition(partition).expect("a partition");
        now_or_work(&journal, partition.append(batch, Durability::Synced)).expect("appended");
    }
    let failed = now_or_work(&journal, queue.apply_retention(5_500));
    assert!(failed.is_empty(), "{failed:?}");
    let offsets = |topic, partition| {
        queue.topic(topic).expect("a topic").partition(partition).expect("one").offsets()
    };
    assert_eq!((offsets("young", 0), offsets("young", 1), offsets("all", 0)), (0..0, 1..2, 0..1));
}

/// Kafka has `message.timestamp.after.max.ms` for this: one record in microseconds, of the year
/// 55,000, would keep all that is behind it for ever.
#[test]
fn a_timestamp_of_the_future_does_not_end_retention() {
    let disk = CrashFiles::new(8);
    let (journal, queue) = open(disk.mount());
    let mut config = TopicConfig::partitions(1);
    config.retention.max_age = Some(Duration::from_secs(1));
    let topic = now_or_work(&journal, queue.create_topic("t", config)).expect("it is created");
    let partition = topic.partition(0).expect("one");
    let (second, day) = (1_000, 86_400_000);
    for ms in [second, 1_000 * day, 2 * second, 1_000 * day, 1_000 * day, 5 * second] {
        let batch = support::batch(&[Record::new("x").timestamp(ms)], None);
        now_or_work(&journal, partition.append(batch, Durability::Synced)).expect("appended");
    }
    let kept_at = |ms| {
        assert!(now_or_work(&journal, queue.apply_retention(ms)).is_empty());
        partition.offsets().start
    };
    assert_eq!(kept_at(2 * second), 0);
    // As old as what is behind them: the first one is, the others may be of the 5th second.
    assert_eq!(kept_at(5 * second), 3);
    assert_eq!(kept_at(5 * second + 500), 3);
    assert_eq!(kept_at(7 * second), 6);
}

/// What is too old is read, which may be hours of data: heartbeats do not wait for it.
#[test]
fn retention_by_age_lets_other_tasks_run() {
    let disk = CrashFiles::new(9);
    let (journal, queue) = open(disk.mount());
    let mut config = TopicConfig::partitions(1);
    config.retention.max_age = Some(Duration::from_secs(1));
    let topic = now_or_work(&journal, queue.create_topic("t", config)).expect("it is created");
    let partition = topic.partition(0).expect("one");
    for _ in 0..120 {
        let record = Record::new(vec![1; 10_000]).timestamp(1_000);
        let batch = support::batch(&[record], None);
        now_or_work(&journal, partition.append(batch, Durability::Synced)).expect("appended");
    }
    let mut applying = Box::pin(queue.apply_retention(10_000));
    for _ in 0..3 {
        assert!(support::poll(&mut applying).is_none());
        assert_eq!(journal.stats().pending_bytes, 0, "it is still reading");
    }
    assert!(now_or_work(&journal, applying).is_empty());
    assert_eq!(partition.offsets(), 120..120);
}

#[test]
fn a_damaged_partition_keeps_no_other_from_opening() {
    let disk = CrashFiles::new(6);
    let (journal, queue) = open(disk.mount());
    now_or_work(&journal, queue.create_topic("t", TopicConfig::partitions(2))).expect("created");
    append(&journal, &queue, "t", 0, "a");
    append(&journal, &queue, "t", 1, "b");
    drop(queue);
    // What no partition writes, in the log of the first one.
    let log = journal.log("q", 2).expect("a log");
    let commit = voussoir_journal::Commit::new().append(&log, ["no batch"]);
    now_or_work(&journal, journal.commit(commit)).expect("it is written");
    let queue = Queue::open(&journal, "q", small()).expect("the queue opens");
    let topic = queue.topic("t").expect("a topic");
    let error = topic.partition(0).expect_err("it is damaged");
    assert!(matches!(error, TopicError::Open(OpenError::Damaged { position: 1, .. })), "{error}");
    assert_eq!(topic.partition(1).expect("a partition").offsets(), 0..1);
}

/// `commit_to` is a small record of the table's log, which must not keep a segment for each.
#[test]
fn the_table_of_a_queue_does_not_fill_the_journal() {
    let disk = CrashFiles::new(7);
    let journal = support::journal(disk.mount(), 24);
    let queue = Queue::open(&journal, "q", small()).expect("the queue opens");
    let create = queue.create_topic("t", TopicConfig::default());
    let topic = now_or_work(&journal, create).expect("it is created");
    let partition = topic.partition(0).expect("one");
    let place = TopicPartition::new("t", 0);
    let mut config = ConsumerConfig::default();
    config.group = Some("g".to_owned());
    config.guarantee = Guarantee::Manual;
    let mut consumer = queue.consumer(config).expect("a consumer");
    consumer.assign(std::slice::from_ref(&place)).expect("it is there");
    for round in 1..=100_u64 {
        for _ in 0..7 {
            let batch = support::batch(&[Record::new(vec![7; 8_000])], None);
            let appended = now_or_work(&journal, partition.append(batch, Durability::Synced));
            appended.unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        let end = partition.offsets().end;
        now_or_work(&journal, consumer.commit_to(&[(place.clone(), end)])).expect("stored");
        now_or_work(&journal, partition.release_before(end)).expect("it is released");
    }
    drop((consumer, partition, topic, queue));
    let queue = Queue::open(&journal, "q", small()).expect("the queue opens");
    let lags = queue.lag("g").expect("an offset is stored");
    assert_eq!(lags[0].position, 700, "what was cleaned says the same");
}

#[test]
fn deleting_a_topic_leaves_no_log_and_nothing_makes_one_again() {
    let disk = CrashFiles::new(8);
    let (journal, queue) = open(disk.mount());
    now_or_work(&journal, queue.create_topic("t", TopicConfig::partitions(3))).expect("created");
    for partition in 0..3 {
        append(&journal, &queue, "t", partition, "a");
    }
    drop(queue);
    let log = journal.log("q", 2).expect("a log");
    let commit = voussoir_journal::Commit::new().append(&log, ["no batch"]);
    now_or_work(&journal, journal.commit(commit)).expect("it is written");
    let queue = Queue::open(&journal, "q", small()).expect("the queue opens");
    let topic = queue.topic("t").expect("a topic");
    assert!(topic.partition(0).is_err(), "it is damaged");
    let (closed, held) = (topic.partition(1).expect("one"), topic.partition(2).expect("one"));
    closed.close();
    now_or_work(&journal, queue.delete_topic("t")).expect("it is deleted");
    for partition in [closed, held] {
        let released = now_or_work(&journal, partition.release_before(1));
        assert!(matches!(released, Err(FetchError::Store(StoreError::Stopped { .. }))));
    }
    for id in 2..8 {
        assert!(!journal.log("q", id).expect("a log").exists(), "log {id} is left");
    }
}

/// A commit of the journal takes 2,048 operations, and a topic may have ten times as many logs.
#[test]
fn a_large_topic_is_written_in_transactions_and_deleted() {
    let mut config = voussoir_journal::Config::manual();
    // The bytes of two of these transactions fit into one commit.
    config.segment_bytes = 32 << 20;
    let files = Arc::new(MemoryFiles::new());
    let journal = Journal::open_with(files, config).expect("the journal opens");
    let queue = Queue::open(&journal, "q", small()).expect("the queue opens");
    let create = queue.create_topic("t", TopicConfig::partitions(2_200));
    let topic = now_or_work(&journal, create).expect("it is created");
    let mut producers = ["a", "b", "c"]
        .map(|name| now_or_work(&journal, queue.transactional(name)).expect("a producer"));
    let halves = [0..1, 0..1_100, 1_100..2_200];
    let mut committing: Vec<_> = Vec::new();
    for (producer, half) in producers.iter_mut().zip(halves) {
        let mut transaction = producer.begin();
        for partition in half {
            transaction.send(&topic, partition, &Record::new("v")).expect("it fits");
        }
        let mut commit = Box::pin(transaction.commit());
        assert!(support::poll(&mut commit).is_none());
        committing.push(commit);
    }
    for commit in committing {
        now_or_work(&journal, commit).expect("it is committed");
    }
    now_or_work(&journal, queue.delete_topic("t")).expect("it is deleted");
    assert!(!journal.log("q", 2).expect("a log").exists());
    assert!(matches!(queue.topic("t"), Err(TopicError::Unknown { .. })));
}

/// A full store in which the topic "many" has 40 partitions of a few records each.
fn full_store() -> (Journal, Queue) {
    let journal = support::journal(Arc::new(MemoryFiles::new()), 24);
    let queue = Queue::open(&journal, "q", small()).expect("the queue opens");
    for (name, partitions) in [("many", 40), ("one", 1)] {
        let create = queue.create_topic(name, TopicConfig::partitions(partitions));
        now_or_work(&journal, create).expect("it is created");
    }
    let value = "x".repeat(900);
    // Ends: the journal has 24 segments.
    for number in 0.. {
        let topic = queue.topic("many").expect("a topic");
        let partition = topic.partition(number % 40).expect("a partition");
        let appended = now_or_work(&journal, partition.append(one(&value), Durability::Synced));
        match appended {
            Ok(_) => {}
            Err(ProduceError::Store(StoreError::Full { .. })) => break,
            Err(error) => panic!("{error}"),
        }
    }
    (journal, queue)
}

#[test]
fn a_topic_of_a_full_store_is_deleted_and_its_space_comes_back() {
    let (journal, queue) = full_store();
    now_or_work(&journal, queue.delete_topic("many")).expect("it is deleted");
    let value = "y".repeat(900);
    for _ in 0..1_000 {
        append(&journal, &queue, "one", 0, &value);
    }
}

#[test]
fn all_partitions_of_a_full_store_are_released() {
    let (journal, queue) = full_store();
    let topic = queue.topic("many").expect("a topic");
    for number in 0..40 {
        let partition = topic.partition(number).expect("a partition");
        let end = partition.offsets().end;
        let released = now_or_work(&journal, partition.release_before(end));
        assert_eq!(released.expect("it is released"), end, "partition {number}");
    }
    let value = "y".repeat(900);
    for _ in 0..1_000 {
        append(&journal, &queue, "one", 0, &value);
    }
}

fn reader(queue: &Queue, group: &str, places: &[TopicPartition]) -> Consumer {
    let mut config = ConsumerConfig::default();
    (config.group, config.guarantee) = (Some(group.to_owned()), Guarantee::Manual);
    let mut reader = queue.consumer(config).expect("a consumer");
    reader.assign(places).expect("they are there");
    reader
}

#[test]
fn what_groups_have_stored_about_a_deleted_topic_goes_with_it() {
    let disk = CrashFiles::new(10);
    let (journal, queue) = open(disk.mount());
    for name in ["t", "other"] {
        let creating = queue.create_topic(name, TopicConfig::partitions(2));
        now_or_work(&journal, creating).expect("it is created");
    }
    let (t, other) = (TopicPartition::new("t", 1), TopicPartition::new("other", 0));
    let mut only = reader(&queue, "only", std::slice::from_ref(&t));
    let mut both = reader(&queue, "both", &[t.clone(), other]);
    now_or_work(&journal, only.commit()).expect("it is stored");
    now_or_work(&journal, both.commit()).expect("it is stored");
    assert_eq!(queue.groups(), ["both", "only"]);
    now_or_work(&journal, queue.delete_topic("t")).expect("it is deleted");
    assert_eq!(queue.groups(), ["both"]);
    // Members that have not heard of it bring nothing back.
    now_or_work(&journal, only.commit()).expect("there is nothing to store");
    now_or_work(&journal, both.commit()).expect("it is stored");
    assert_eq!(queue.groups(), ["both"]);
    let expired = now_or_work(&journal, queue.expire_groups(Duration::ZERO));
    assert_eq!(expired.as_deref(), Ok(&["both".to_owned()][..]), "there is no other group");
}

/// Groups have stored more than one commit takes. Wherever the power goes off, a topic of the same
/// name that is created behind it has nothing of this one, and no group is left.
#[test]
fn a_deletion_that_loses_power_leaves_no_offset() {
    let (mut parts, mut there, mut gone) = (0, 0, 0);
    for seed in 0..40 {
        let disk = CrashFiles::new(seed);
        let (journal, queue) = open(disk.mount());
        let create = |queue: &Queue, journal: &Journal| {
            let creating = queue.create_topic("t", TopicConfig::partitions(2));
            now_or_work(journal, creating).expect("it is created");
        };
        create(&queue, &journal);
        let places = [0, 1].map(|partition| TopicPartition::new("t", partition));
        for group in 0..200 {
            let mut reader = reader(&queue, &format!("group {group:50}"), &places);
            now_or_work(&journal, reader.commit()).expect("it is stored");
        }
        let mut deleting = Box::pin(queue.delete_topic("t"));
        let mut now = 0;
        for _ in 0..seed {
            if support::poll(&mut deleting).is_some() {
                break;
            }
            work(&journal, &mut now);
        }
        drop(deleting);
        let left = queue.groups().len();
        parts += u32::from((1..200).contains(&left));
        disk.power_loss(Loss::Any);
        drop((queue, journal));
        disk.heal();
        let (journal, queue) = open(disk.mount());
        if queue.topic("t").is_ok() {
            there += 1;
            now_or_work(&journal, queue.delete_topic("t")).expect("it is deleted");
        } else {
            gone += 1;
        }
        assert_eq!(queue.groups(), Vec::<String>::new(), "seed {seed}");
        create(&queue, &journal);
        assert_eq!(queue.groups(), Vec::<String>::new(), "seed {seed}");
        let expired = now_or_work(&journal, queue.expire_groups(Duration::ZERO));
        assert_eq!(expired, Ok(Vec::new()), "seed {seed}");
    }
    assert!(parts > 0 && there > 0 && gone > 0, "{parts} {there} {gone}");
}
