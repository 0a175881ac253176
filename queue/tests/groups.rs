//! Consumers and their groups, over a journal in memory, in paused time.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use voussoir_journal::files::crash::CrashFiles;
use voussoir_journal::{Journal, MemoryFiles};
use voussoir_queue::{
    Assignor, CommitError, ConsumeError, Consumer, ConsumerConfig, FetchError, Guarantee,
    ProducerConfig, Queue, QueueConfig, Record, Seek, SessionToken, Start, TokenError, Topic,
    TopicConfig, TopicPartition,
};

const SECOND: Duration = Duration::from_secs(1);

/// A queue in memory, whose journal works once in a millisecond.
fn open() -> Queue {
    let mut config = voussoir_journal::Config::manual();
    config.segment_bytes = 1 << 20;
    let files = std::sync::Arc::new(MemoryFiles::new());
    let journal = Journal::open_with(files, config).expect("the journal opens");
    let mut config = QueueConfig::default();
    config.partition.max_producers = 100;
    config.partition.max_index_entries = 100;
    let queue = Queue::open(&journal, "q", config).expect("the queue opens");
    tokio::spawn(async move {
        let mut now = 0;
        // Ends with the test's runtime.
        loop {
            support::work(&journal, &mut now);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    queue
}

async fn topic(queue: &Queue, name: &str, partitions: u32) -> Topic {
    queue.create_topic(name, TopicConfig::partitions(partitions)).await.expect("it is created")
}

/// Sends `count` records to each partition.
async fn fill(queue: &Queue, topic: &Topic, count: u64) {
    let producer = queue.producer(ProducerConfig::default()).await.expect("a producer");
    for partition in 0..topic.partitions() {
        for at in 0..count {
            let record = Record::new(format!("{partition}-{at}")).timestamp(at.cast_signed());
            let durability = voussoir_queue::Durability::Synced;
            let delivery = producer.try_enqueue(topic, Some(partition), record, durability);
            drop(delivery.expect("there is room"));
        }
    }
    producer.flush().await;
}

fn member(assignor: Assignor, guarantee: Guarantee) -> ConsumerConfig {
    let mut config = ConsumerConfig::group("g", ["t"]);
    (config.assignor, config.guarantee) = (assignor, guarantee);
    config.session_timeout = 10 * SECOND;
    config.rebalance_timeout = 5 * SECOND;
    config
}

/// Polls all consumers in turn until none has anything new, and returns what they read.
async fn settle(consumers: &mut [&mut Consumer]) -> Vec<Vec<String>> {
    let mut values = vec![Vec::new(); consumers.len()];
    let mut quiet = 0;
    // Ends: the group is stable after a few rounds, and the records are read by then.
    for _ in 0..200 {
        for (values, consumer) in values.iter_mut().zip(consumers.iter_mut()) {
            let polled = consumer.poll(Duration::from_millis(5)).await.expect("a poll");
            assert!(polled.assigned.iter().all(|given| !polled.revoking.contains(given)));
            let is_quiet = polled.records.is_empty() && polled.assigned.is_empty();
            quiet = if is_quiet && polled.revoking.is_empty() { quiet + 1 } else { 0 };
            let value = |record: Record| String::from_utf8(record.value.expect("one").into());
            let records = polled.records.into_iter().map(|read| read.record);
            values.extend(records.map(|record| value(record).expect("text")));
        }
        if quiet > 8 * consumers.len() {
            return values;
        }
    }
    panic!("the group is never quiet");
}

fn owned(consumer: &Consumer) -> BTreeSet<u32> {
    consumer.assignment().iter().map(|place| place.partition).collect()
}

#[tokio::test(start_paused = true)]
async fn members_share_the_partitions_and_read_each_record_once() {
    for assignor in
        [Assignor::Range, Assignor::RoundRobin, Assignor::Sticky, Assignor::CooperativeSticky]
    {
        let queue = open();
        let t = topic(&queue, "t", 5).await;
        fill(&queue, &t, 20).await;
        let config = member(assignor, Guarantee::AtLeastOnce);
        let mut first = queue.consumer(config.clone()).expect("a consumer");
        let alone = settle(&mut [&mut first]).await.remove(0);
        assert_eq!(alone.len(), 100, "{assignor:?}");
        let mut second = queue.consumer(config).expect("a consumer");
        settle(&mut [&mut first, &mut second]).await;
        assert_eq!(owned(&first).len() + owned(&second).len(), 5);
        assert!(owned(&first).is_disjoint(&owned(&second)));
        assert!(owned(&first).len().abs_diff(owned(&second).len()) == 1);
        fill(&queue, &t, 10).await;
        let shared = settle(&mut [&mut first, &mut second]).await.concat();
        assert_eq!(shared.len(), 50, "{assignor:?}: nothing twice, nothing skipped");
        assert_eq!(first.generation(), second.generation());
        let lags = queue.lag("g").expect("offsets are stored");
        assert!(lags.iter().all(|lag| lag.offsets() == 0));
        // The one that goes leaves its partitions to the other.
        second.close().await.expect("it has committed");
        settle(&mut [&mut first]).await;
        assert_eq!(owned(&first).len(), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_not_polled_is_removed_and_its_commit_is_rejected() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 5).await;
    let config = member(Assignor::Range, Guarantee::Manual);
    let mut slow = queue.consumer(config.clone()).expect("a consumer");
    settle(&mut [&mut slow]).await;
    tokio::time::advance(11 * SECOND).await;
    let mut quick = queue.consumer(config).expect("a consumer");
    let read = settle(&mut [&mut quick]).await.remove(0);
    assert_eq!((read.len(), owned(&quick).len()), (10, 2), "what was not committed is read again");
    let error = slow.commit().await.expect_err("it has lost its partitions");
    assert!(matches!(error, CommitError::StaleGeneration { .. }), "{error}");
    quick.commit().await.expect("it has them");
    let polled = slow.poll(Duration::from_millis(1)).await.expect("a poll");
    assert_eq!(polled.lost.len(), 2, "it is told");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_commits_is_asked_before_it_loses_partitions() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 5).await;
    let config = member(Assignor::CooperativeSticky, Guarantee::Manual);
    let mut first = queue.consumer(config.clone()).expect("a consumer");
    settle(&mut [&mut first]).await;
    let mut second = queue.consumer(config).expect("a consumer");
    let mut revoked = Vec::new();
    for _ in 0..20 {
        let polled = first.poll(Duration::from_millis(5)).await.expect("a poll");
        if !polled.revoking.is_empty() {
            assert!(polled.records.is_empty());
            first.commit().await.expect("the partitions are still its own");
            revoked.extend(polled.revoking);
        }
        let polled = second.poll(Duration::from_millis(5)).await.expect("a poll");
        assert!(polled.records.is_empty(), "they were committed: {polled:?}");
    }
    assert_eq!(revoked.len(), 1, "only what moves is given up");
    assert_eq!((owned(&first).len(), owned(&second).len()), (1, 1));
}

/// A poll that is dropped has told of nothing. What the member was given before it, and has to give
/// up by the next poll, was never its own for the caller: told of both at once, it might take the
/// one for the later, and go on working on what another member has.
#[tokio::test(start_paused = true)]
async fn what_is_given_and_goes_before_a_poll_tells_is_not_told() {
    // With `ExactlyOnce` a cooperative member that waits for the others tells what it keeps.
    let cases = [
        (Assignor::CooperativeSticky, Guarantee::Manual),
        (Assignor::Range, Guarantee::Manual),
        (Assignor::Range, Guarantee::ExactlyOnce),
    ];
    for (assignor, guarantee) in cases {
        let queue = open();
        topic(&queue, "t", 3).await;
        let mut config = member(assignor, guarantee);
        // It stores where it begins before a poll tells of anything: the poll is dropped then.
        config.start = Start::Latest;
        let mut first = queue.consumer(config.clone()).expect("a consumer");
        while owned(&first).is_empty() {
            assert!(poll_once(std::pin::pin!(first.poll(SECOND))).is_pending(), "{guarantee:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(owned(&first).len(), 3, "{guarantee:?}");
        let mut second = queue.consumer(config).expect("a consumer");
        assert!(poll_once(std::pin::pin!(second.poll(SECOND))).is_pending(), "it joins");
        while owned(&first).len() == 3 {
            let is_pending = poll_once(std::pin::pin!(first.poll(SECOND))).is_pending();
            assert!(is_pending, "{guarantee:?}: it tells of what it gives up");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (mut told, mut given) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let polled = first.poll(Duration::from_millis(5)).await.expect("a poll");
            assert_eq!((polled.revoking, polled.lost), (vec![], vec![]), "{guarantee:?}");
            told.extend(polled.assigned);
            given.extend(second.poll(Duration::from_millis(5)).await.expect("a poll").assigned);
        }
        told.sort();
        assert_eq!((told, given), (first.assignment(), second.assignment()), "{guarantee:?}");
        assert_eq!((owned(&first).len(), owned(&second).len()), (2, 1), "{guarantee:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guarantee_says_what_is_read_again() {
    let queue = open();
    for (guarantee, expected) in [(Guarantee::AtMostOnce, 8), (Guarantee::AtLeastOnce, 4)] {
        let reading = read_twice(&queue, guarantee, expected);
        let first = tokio::time::timeout(60 * SECOND, reading).await;
        assert_eq!(first, Ok(expected), "{guarantee:?}: what is read first by the next consumer");
    }
}

/// Reads two polls of four records, waits until `stored` is stored, goes without a word as in a
/// crash, and returns the first offset that the next consumer reads.
async fn read_twice(queue: &Queue, guarantee: Guarantee, stored: u64) -> u64 {
    let name = format!("{guarantee:?}");
    let t = topic(queue, &name, 1).await;
    fill(queue, &t, 10).await;
    let mut config = ConsumerConfig::group(&name, [&name]);
    (config.guarantee, config.max_poll_records) = (guarantee, 4);
    let mut consumer = queue.consumer(config.clone()).expect("a consumer");
    let mut read = 0;
    // The second poll with records says that those of the first have been processed.
    while read < 8 {
        read += consumer.poll(SECOND).await.expect("a poll").records.len();
    }
    while queue.lag(&name).is_none_or(|lags| lags[0].position < stored) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(consumer);
    let mut consumer = queue.consumer(config).expect("a consumer");
    loop {
        let polled = consumer.poll(SECOND).await.expect("a poll");
        if let Some(first) = polled.records.first() {
            return first.record.offset;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_static_member_that_comes_back_has_its_partitions() {
    let queue = open();
    topic(&queue, "t", 4).await;
    let config = |instance: &str| {
        let mut config = member(Assignor::CooperativeSticky, Guarantee::AtLeastOnce);
        config.instance = Some(instance.to_owned());
        config
    };
    let mut a = queue.consumer(config("a")).expect("a consumer");
    let mut b = queue.consumer(config("b")).expect("a consumer");
    settle(&mut [&mut a, &mut b]).await;
    let (of_a, of_b) = (owned(&a), owned(&b));
    drop(b);
    settle(&mut [&mut a]).await;
    assert_eq!(owned(&a), of_a, "nobody takes what waits for a static member");
    let mut b = queue.consumer(config("b")).expect("a consumer");
    settle(&mut [&mut a, &mut b]).await;
    assert_eq!((owned(&a), owned(&b)), (of_a.clone(), of_b));
    // When it stays away, its session ends.
    drop(b);
    tokio::time::advance(11 * SECOND).await;
    settle(&mut [&mut a]).await;
    assert_eq!(owned(&a).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn manual_assignment_seeks_and_pauses() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 5).await;
    let mut consumer = queue.consumer(ConsumerConfig::default()).expect("a consumer");
    let (p0, p1) = (TopicPartition::new("t", 0), TopicPartition::new("t", 1));
    consumer.assign(&[p0.clone(), p1.clone()]).expect("they exist");
    consumer.pause(&p0).expect("it reads it");
    consumer.seek(&p1, Seek::Timestamp(3)).expect("it is found");
    let polled = consumer.poll(SECOND).await.expect("a poll");
    let offsets: Vec<u64> = polled.records.iter().map(|read| read.record.offset).collect();
    assert_eq!(offsets, [3, 4]);
    assert!(polled.records.iter().all(|read| read.partition == p1));
    assert_eq!((consumer.position(&p0), consumer.position(&p1)), (Some(0), Some(5)));
    let lags: Vec<u64> = consumer.lag().iter().map(voussoir_queue::Lag::offsets).collect();
    assert_eq!(lags, [5, 0]);
    let polled = consumer.poll(SECOND).await.expect("a poll");
    assert!(polled.records.is_empty(), "what is paused is not read");
    consumer.resume(&p0).expect("it reads it");
    assert_eq!(consumer.poll(SECOND).await.expect("a poll").records.len(), 5);
    consumer.seek(&p0, Seek::Earliest).expect("it reads it");
    assert_eq!(consumer.poll(SECOND).await.expect("a poll").records.len(), 5);
    let error = consumer.commit().await.expect_err("it has no group");
    assert_eq!(error, CommitError::NoGroup);
    let error = consumer.seek(&TopicPartition::new("t", 2), Seek::Latest).expect_err("no");
    assert!(matches!(error, ConsumeError::NotAssigned { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_without_membership_commits_only_while_the_group_is_empty() {
    let queue = open();
    let t = topic(&queue, "t", 1).await;
    fill(&queue, &t, 3).await;
    let mut config = ConsumerConfig::default();
    config.group = Some("g".into());
    let mut reader = queue.consumer(config).expect("a consumer");
    let place = TopicPartition::new("t", 0);
    reader.assign(std::slice::from_ref(&place)).expect("it exists");
    reader.commit_to(&[(place.clone(), 2)]).await.expect("the group is empty");
    let mut member = queue.consumer(member(Assignor::Range, Guarantee::Manual)).expect("one");
    let read = settle(&mut [&mut member]).await.remove(0);
    assert_eq!(read, ["0-2"], "it goes on where the reader stored");
    let error = reader.commit().await.expect_err("the group has a member");
    assert!(matches!(error, CommitError::GroupActive { .. }), "{error}");
    drop(member);
    reader.commit_to(&[(place, 1)]).await.expect("the group is empty again");
}

#[tokio::test(start_paused = true)]
async fn topics_that_come_and_go_are_followed() {
    let queue = open();
    let mut config = member(Assignor::CooperativeSticky, Guarantee::AtLeastOnce);
    config.topics = vec!["t".into(), "u".into()];
    let mut consumer = queue.consumer(config).expect("a consumer");
    settle(&mut [&mut consumer]).await;
    assert!(consumer.assignment().is_empty());
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 3).await;
    assert_eq!(settle(&mut [&mut consumer]).await[0].len(), 6);
    queue.delete_topic("t").await.expect("it is deleted");
    // The wait that was under way may end with an error; the next poll goes on.
    let mut errors = 0;
    for _ in 0..20 {
        match consumer.poll(Duration::from_millis(5)).await {
            Ok(_) => {}
            Err(ConsumeError::Fetch(FetchError::Closed)) => errors += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(errors <= 1 && consumer.assignment().is_empty(), "{errors}");
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 2).await;
    assert_eq!(settle(&mut [&mut consumer]).await[0].len(), 4, "it is another topic");
}

#[tokio::test(start_paused = true)]
async fn an_offset_that_was_released_begins_where_the_configuration_says() {
    let queue = open();
    let place = TopicPartition::new("Latest", 0);
    for (start, expected) in [(Start::Earliest, 1), (Start::Latest, 0)] {
        let name = format!("{start:?}");
        let t = topic(&queue, &name, 1).await;
        fill(&queue, &t, 1).await;
        fill(&queue, &t, 1).await;
        let (partition, place) = (t.partition(0).expect("one"), TopicPartition::new(&name, 0));
        let mut config = ConsumerConfig::default();
        config.start = start;
        let mut consumer = queue.consumer(config).expect("a consumer");
        consumer.assign(std::slice::from_ref(&place)).expect("it exists");
        consumer.seek(&place, Seek::Offset(0)).expect("it reads it");
        partition.release_before(1).await.expect("it is released");
        let polled = consumer.poll(Duration::from_millis(1)).await.expect("a poll");
        assert_eq!(polled.records.len(), expected, "{start:?}");
    }
    let mut config = ConsumerConfig::default();
    config.start = Start::Stored;
    let mut consumer = queue.consumer(config).expect("a consumer");
    let error = consumer.assign(std::slice::from_ref(&place)).expect_err("nothing is stored");
    assert!(matches!(error, ConsumeError::NothingStored { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_poll_wakes_for_a_record_and_not_before() {
    let queue = open();
    let t = topic(&queue, "t", 3).await;
    let mut consumer = queue.consumer(member(Assignor::Range, Guarantee::Manual)).expect("one");
    settle(&mut [&mut consumer]).await;
    let sender = queue.clone();
    let sending = tokio::spawn(async move {
        tokio::time::sleep(3 * SECOND).await;
        fill(&sender, &t, 1).await;
    });
    let began = tokio::time::Instant::now();
    let polled = consumer.poll(60 * SECOND).await.expect("a poll");
    assert!(!polled.records.is_empty());
    assert!(began.elapsed() >= 3 * SECOND && began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
    sending.await.expect("it has sent");
}

#[tokio::test(start_paused = true)]
async fn rewinding_with_nothing_stored_goes_back_to_the_beginning_of_reading() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 3).await;
    let mut config = member(Assignor::Range, Guarantee::ExactlyOnce);
    config.start = Start::Latest;
    let mut consumer = queue.consumer(config).expect("a consumer");
    assert!(settle(&mut [&mut consumer]).await.concat().is_empty(), "it begins at the end");
    consumer.pause(&TopicPartition::new("t", 1)).expect("it reads the partition");
    fill(&queue, &t, 2).await;
    assert_eq!(settle(&mut [&mut consumer]).await.concat(), ["0-0", "0-1"]);
    // The transaction was not committed: nothing is stored.
    consumer.rewind().expect("it goes back");
    assert_eq!(consumer.position(&TopicPartition::new("t", 0)), Some(3));
    let again = settle(&mut [&mut consumer]).await.concat();
    assert_eq!(again, ["0-0", "0-1"], "nothing is skipped, and what is paused stays paused");
    drop(consumer);
    let mut config = member(Assignor::Range, Guarantee::ExactlyOnce);
    (config.group, config.start) = (Some("h".to_owned()), Start::Earliest);
    let mut consumer = queue.consumer(config).expect("a consumer");
    assert_eq!(settle(&mut [&mut consumer]).await.concat().len(), 10);
    consumer.seek(&TopicPartition::new("t", 0), Seek::Offset(1)).expect("it is there");
    assert_eq!(settle(&mut [&mut consumer]).await.concat().len(), 4);
    consumer.rewind().expect("it goes back");
    assert_eq!(consumer.position(&TopicPartition::new("t", 0)), Some(1), "to where it was sent");
}

/// A group that begins at the end has begun with its first poll, in every partition, whatever its
/// guarantee: the next member goes on from there (KIP-842).
#[tokio::test(start_paused = true)]
async fn a_group_that_began_at_the_end_passes_over_nothing() {
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::Manual, Guarantee::ExactlyOnce] {
        let queue = open();
        let t = topic(&queue, "t", 2).await;
        fill(&queue, &t, 2).await;
        let mut config = member(Assignor::CooperativeSticky, guarantee);
        config.start = Start::Latest;
        let mut first = queue.consumer(config.clone()).expect("a consumer");
        assert!(settle(&mut [&mut first]).await.concat().is_empty(), "it begins at the end");
        // It dies without having read anything.
        drop(first);
        fill(&queue, &t, 1).await;
        let mut second = queue.consumer(config).expect("a consumer");
        let mut came = settle(&mut [&mut second]).await.concat();
        came.sort_unstable();
        assert_eq!(came, ["0-0", "1-0"], "{guarantee:?}");
        assert_eq!(second.position(&TopicPartition::new("t", 1)), Some(3));
    }
}

/// A group that began at the end, and is slower than retention, reads what retention has left
/// (KIP-842: Kafka's `latest` passes over that, too).
#[tokio::test(start_paused = true)]
async fn a_group_that_began_at_the_end_reads_what_retention_has_left() {
    let queue = open();
    let t = topic(&queue, "t", 1).await;
    fill(&queue, &t, 2).await;
    let mut config = member(Assignor::CooperativeSticky, Guarantee::Manual);
    config.start = Start::Latest;
    let mut first = queue.consumer(config.clone()).expect("a consumer");
    assert!(settle(&mut [&mut first]).await.concat().is_empty(), "it begins at the end");
    drop(first);
    for _ in 0..5 {
        fill(&queue, &t, 1).await;
    }
    t.partition(0).expect("one").release_before(4).await.expect("it is released");
    let mut second = queue.consumer(config).expect("a consumer");
    assert_eq!(settle(&mut [&mut second]).await.concat().len(), 3, "of offsets 4 to 6");
}

/// Two processes with one static name do not take the place from each other for ever: the earlier
/// one is told (KIP-345).
#[tokio::test(start_paused = true)]
async fn a_static_member_that_was_replaced_is_told_and_takes_nothing_back() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    let mut config = member(Assignor::CooperativeSticky, Guarantee::AtLeastOnce);
    config.instance = Some("a".to_owned());
    let mut old = queue.consumer(config.clone()).expect("a consumer");
    settle(&mut [&mut old]).await;
    let mut new = queue.consumer(config.clone()).expect("a consumer");
    settle(&mut [&mut new]).await;
    assert_eq!(owned(&new).len(), 2);
    for _ in 0..3 {
        let error = old.poll(SECOND).await.expect_err("it has been replaced");
        assert_eq!(error, ConsumeError::Replaced { instance: "a".to_owned() });
        assert!(owned(&old).is_empty());
    }
    fill(&queue, &t, 1).await;
    assert_eq!(settle(&mut [&mut new]).await.concat().len(), 2);
    // One whose session has ended, and whose place nobody took, comes back.
    drop(old);
    tokio::time::advance(30 * SECOND).await;
    settle(&mut [&mut new]).await;
    assert_eq!(owned(&new).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_partition_keeps_no_member_from_the_others() {
    let disk = CrashFiles::new(11);
    let journal = support::journal(disk.mount(), 64);
    let queue = Queue::open(&journal, "q", support::small()).expect("the queue opens");
    let create = queue.create_topic("t", TopicConfig::partitions(3));
    let t = support::now_or_work(&journal, create).expect("it is created");
    for partition in 0..3 {
        let partition = t.partition(partition).expect("one");
        for value in ["a", "b"] {
            let sent = partition.append(support::one(value), voussoir_queue::Durability::Synced);
            support::now_or_work(&journal, sent).expect("it is appended");
        }
    }
    drop((queue, t));
    // What no partition writes, in the log of the first one.
    let log = journal.log("q", 2).expect("a log");
    let commit = voussoir_journal::Commit::new().append(&log, ["no batch"]);
    support::now_or_work(&journal, journal.commit(commit)).expect("it is written");
    let queue = Queue::open(&journal, "q", support::small()).expect("the queue opens");
    let mut config = member(Assignor::Range, Guarantee::AtLeastOnce);
    config.max_poll_records = 1;
    let mut consumer = queue.consumer(config).expect("a consumer");
    let (mut read, mut errors, mut now) = (0, 0, 0);
    for _ in 0..20 {
        match consumer.poll(Duration::ZERO).await {
            Ok(polled) => {
                read += polled.records.len();
                assert!(polled.records.is_empty() || errors == 0, "records come first");
            }
            Err(ConsumeError::Topic(voussoir_queue::TopicError::Open(_))) => errors += 1,
            Err(other) => panic!("{other}"),
        }
        support::work(&journal, &mut now);
    }
    assert_eq!(read, 4, "all of the partitions that opened");
    assert!(errors > 0, "the caller is told of the one that did not");
    assert_eq!(owned(&consumer), BTreeSet::from([1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_token_waits_for_the_group_that_works_on_what_was_written() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 3).await;
    let mut token = SessionToken::new();
    assert!(queue.has_read("view", &token), "nothing was seen");
    queue.add_to_token(&mut token, &TopicPartition::new("t", 1), 2).expect("it is there");
    queue.add_to_token(&mut token, &TopicPartition::new("t", 1), 0).expect("an older record");
    assert!(queue.add_to_token(&mut token, &TopicPartition::new("t", 2), 0).is_err());
    let mut token = SessionToken::decode(&token.encode()).expect("a token");
    assert!(!queue.has_read("view", &token));
    assert!(!queue.wait_until_read("view", &token, SECOND).await, "nobody reads");
    let waiting = {
        let (queue, token) = (queue.clone(), token.clone());
        tokio::spawn(async move { queue.wait_until_read("view", &token, 10 * SECOND).await })
    };
    let mut config = ConsumerConfig::group("view", ["t"]);
    (config.guarantee, config.max_poll_records) = (Guarantee::Manual, 100);
    let mut consumer = queue.consumer(config).expect("a consumer");
    let mut read = 0;
    while read < 6 {
        read += consumer.poll(SECOND).await.expect("a poll").records.len();
    }
    assert!(!queue.has_read("view", &token), "it was read and not worked on");
    consumer.commit().await.expect("stored");
    assert!(waiting.await.expect("it ends"));
    assert!(queue.has_read("view", &token) && !queue.has_read("other", &token));
    let mut other = SessionToken::new();
    queue.add_to_token(&mut other, &TopicPartition::new("t", 0), 3).expect("it is there");
    token.merge(&other);
    assert!(!queue.has_read("view", &token), "a merged token has seen both");
    // A topic that is deleted, and one of its name that follows it, hold up no session.
    queue.delete_topic("t").await.expect("deleted");
    topic(&queue, "t", 2).await;
    assert!(queue.has_read("view", &token));
}

#[test]
fn what_is_no_token_is_refused() {
    let head = |count: u16| [&[b'q', 1][..], &count.to_le_bytes()].concat();
    let entry = |number: u32| [&number.to_le_bytes()[..], &7_u64.to_le_bytes()].concat();
    let wrong = [
        (vec![], TokenError::Kind),
        (vec![b'c', 1, 0, 0], TokenError::Kind),
        (vec![b'q'], TokenError::Length(1)),
        (vec![b'q', 2, 0, 0], TokenError::Version(2)),
        (vec![b'q', 1, 0], TokenError::Length(3)),
        ([head(1), entry(1), vec![0]].concat(), TokenError::Length(17)),
        ([head(2), entry(1)].concat(), TokenError::Length(16)),
        (head(u16::MAX), TokenError::Length(4)),
        ([head(2), entry(2), entry(2)].concat(), TokenError::Order),
        ([head(2), entry(2), entry(1)].concat(), TokenError::Order),
    ];
    for (bytes, error) in wrong {
        assert_eq!(SessionToken::decode(&bytes), Err(error), "{bytes:?}");
    }
    let token = SessionToken::decode(&[head(2), entry(1), entry(2)].concat()).expect("a token");
    assert_eq!(token.encode(), [head(2), entry(1), entry(2)].concat());
}

/// What a member of a group that is being rebalanced reads it can commit: a rebalance that another
/// one begins costs it neither its records nor its place.
#[tokio::test(start_paused = true)]
async fn a_rebalance_fences_no_member_that_keeps_its_partitions() {
    let queue = open();
    let t = topic(&queue, "t", 4).await;
    fill(&queue, &t, 20).await;
    let mut config = member(Assignor::CooperativeSticky, Guarantee::ExactlyOnce);
    config.max_poll_records = 2;
    let mut first = queue.consumer(config.clone()).expect("a consumer");
    let mut producer = queue.transactional("first").await.expect("a producer");
    let mut read = 0;
    while read < 4 {
        read += first.poll(SECOND).await.expect("a poll").records.len();
    }
    // The second member joins, and the group waits for the first.
    let mut second = queue.consumer(config).expect("a consumer");
    assert!(support::poll(&mut Box::pin(second.poll(SECOND))).is_none(), "it waits");
    // The first joins in a poll that is dropped: what it has read is still its own.
    let generation = first.generation();
    assert!(support::poll(&mut Box::pin(first.poll(SECOND))).is_none(), "it has joined, and waits");
    let mut transaction = producer.begin();
    transaction.offsets(&first).expect("they fit");
    let late = transaction.commit().await.expect_err("the next generation has begun");
    assert!(matches!(late, CommitError::StaleGeneration { .. }), "{late}");
    assert!(first.still_holds(SECOND).await);
    let mut transaction = producer.begin();
    transaction.offsets(&first).expect("they fit");
    transaction.commit().await.expect("they are stored: the partitions are its own");
    assert!(first.generation() > generation);
    let lags = queue.lag("g").expect("offsets are stored");
    let stored: u64 = lags.iter().map(|lag| lag.position).sum();
    assert_eq!(stored, 4);
    // And what polls return from now on is of a generation that lasts.
    for _ in 0..20 {
        first.poll(SECOND).await.expect("a poll");
        let mut transaction = producer.begin();
        transaction.offsets(&first).expect("they fit");
        transaction.commit().await.expect("it is stored");
        let _ = support::poll(&mut Box::pin(second.poll(SECOND)));
    }
    assert_eq!((owned(&first).len(), owned(&second).len()), (2, 2));
    drop(second);
    let mut third = queue.consumer(member(Assignor::CooperativeSticky, Guarantee::ExactlyOnce));
    let third = third.as_mut().expect("a consumer");
    assert!(support::poll(&mut Box::pin(third.poll(SECOND))).is_none(), "it waits");
    tokio::time::sleep(6 * SECOND).await;
    let _ = support::poll(&mut Box::pin(third.poll(SECOND)));
    assert!(!first.still_holds(SECOND).await, "the group went on without it");
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
    future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}

/// It awaits the commit before it gives a partition up, and meanwhile another one takes its name.
#[tokio::test(start_paused = true)]
async fn a_static_member_that_is_replaced_while_it_commits_is_told() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 3).await;
    let config = member(Assignor::Range, Guarantee::AtLeastOnce);
    let mut named = config.clone();
    named.instance = Some("a".to_owned());
    let mut old = queue.consumer(named.clone()).expect("a consumer");
    let mut read = 0;
    while read < 6 {
        read += old.poll(SECOND).await.expect("a poll").records.len();
    }
    let mut other = queue.consumer(config).expect("a consumer");
    assert!(poll_once(std::pin::pin!(other.poll(SECOND))).is_pending(), "it joins");
    let mut new = queue.consumer(named).expect("a consumer");
    {
        let mut polled = std::pin::pin!(old.poll(SECOND));
        assert!(poll_once(polled.as_mut()).is_pending(), "it commits");
        assert!(poll_once(std::pin::pin!(new.poll(SECOND))).is_pending(), "it takes the place");
        let error = polled.await.expect_err("it has been replaced");
        assert_eq!(error, ConsumeError::Replaced { instance: "a".to_owned() });
    }
    settle(&mut [&mut new, &mut other]).await;
    assert_eq!((owned(&new).len(), owned(&other).len()), (1, 1));
    assert!(owned(&old).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_deleted_group_begins_anew_and_takes_no_late_commit() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 3).await;
    let config = member(Assignor::Range, Guarantee::Manual);
    let mut late = queue.consumer(config.clone()).expect("a consumer");
    assert_eq!(settle(&mut [&mut late]).await.concat().len(), 6);
    late.commit().await.expect("it is a member");
    let refused = queue.delete_group("g").await;
    assert_eq!(refused, Err(CommitError::GroupActive { group: "g".to_owned() }));
    // It is silent for longer than its session.
    tokio::time::advance(11 * SECOND).await;
    queue.delete_group("g").await.expect("it has no member");
    queue.delete_group("g").await.expect("there is no such group");
    assert_eq!((queue.groups(), queue.lag("g")), (Vec::new(), None));
    let mut new = queue.consumer(config).expect("a consumer");
    assert_eq!(settle(&mut [&mut new]).await.concat().len(), 6, "it begins anew");
    assert!(new.generation() > late.generation(), "{} again", new.generation());
    let error = late.commit().await.expect_err("its group is gone");
    assert!(matches!(error, CommitError::StaleGeneration { .. }), "{error}");
    assert_eq!(queue.groups(), Vec::<String>::new(), "nothing is stored");
}

#[tokio::test(start_paused = true)]
async fn a_commit_beyond_the_end_is_refused() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 3).await;
    let mut consumer = queue.consumer(member(Assignor::Range, Guarantee::Manual)).expect("one");
    settle(&mut [&mut consumer]).await;
    let place = |partition| TopicPartition::new("t", partition);
    for offset in [4, u64::MAX] {
        let error = consumer.commit_to(&[(place(0), 3), (place(1), offset)]).await;
        let error = error.expect_err("there are three records");
        let topic = "t".to_owned();
        assert_eq!(error, CommitError::BeyondEnd { topic, partition: 1, offset, end: 3 });
        assert_eq!(queue.groups(), Vec::<String>::new(), "nothing is stored");
    }
    consumer.commit_to(&[(place(0), 3), (place(1), 3)]).await.expect("those are the ends");
}

#[tokio::test(start_paused = true)]
async fn a_group_that_has_stored_nothing_has_not_caught_up() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    topic(&queue, "another", 1).await;
    fill(&queue, &t, 3).await;
    assert_eq!(queue.lag("g"), None, "there is no such group");
    let mut consumer = queue.consumer(member(Assignor::Range, Guarantee::Manual)).expect("one");
    assert_eq!(queue.lag("g"), None, "it has not joined");
    assert_eq!(settle(&mut [&mut consumer]).await.concat().len(), 6);
    let lag = |queue: &Queue| {
        let lags = queue.lag("g").expect("it has a member");
        assert!(lags.iter().all(|lag| &*lag.partition.topic == "t"), "{lags:?}");
        lags.iter().map(voussoir_queue::Lag::offsets).collect::<Vec<_>>()
    };
    assert_eq!(lag(&queue), [3, 3], "nothing is stored");
    consumer.commit_to(&[(TopicPartition::new("t", 1), 2)]).await.expect("it is stored");
    assert_eq!(lag(&queue), [3, 1]);
    consumer.commit().await.expect("it is stored");
    assert_eq!(lag(&queue), [0, 0]);
    consumer.close().await.expect("it leaves");
    assert_eq!(lag(&queue), [0, 0], "without members");
}

#[tokio::test(start_paused = true)]
async fn groups_that_nobody_uses_expire() {
    let queue = open();
    let t = topic(&queue, "t", 2).await;
    fill(&queue, &t, 3).await;
    let mut members = Vec::new();
    for group in ["left", "used"] {
        let mut config = member(Assignor::Range, Guarantee::Manual);
        config.group = Some(group.to_owned());
        let mut consumer = queue.consumer(config).expect("a consumer");
        settle(&mut [&mut consumer]).await;
        consumer.commit().await.expect("it is a member");
        members.push(consumer);
    }
    // One that never has members.
    let mut config = ConsumerConfig::default();
    config.group = Some("reader".to_owned());
    let mut reader = queue.consumer(config).expect("a consumer");
    let place = TopicPartition::new("t", 0);
    reader.assign(std::slice::from_ref(&place)).expect("it exists");
    reader.commit_to(&[(place, 2)]).await.expect("the group is empty");
    drop(members.remove(0));
    let day = 86_400 * SECOND;
    assert_eq!(queue.expire_groups(day).await, Ok(Vec::new()), "they were used lately");
    assert_eq!(queue.groups(), ["left", "reader", "used"]);
    let gone = queue.expire_groups(Duration::ZERO).await.expect("it is written");
    assert_eq!(gone, ["left", "reader"]);
    assert_eq!(queue.groups(), ["used"]);
    members[0].commit().await.expect("it is a member");
}
