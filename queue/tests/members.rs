//! Members that lose their place, and what they are told, over a journal in memory, in paused time.

mod support;

use std::time::Duration;

use voussoir_journal::{Journal, MemoryFiles};
use voussoir_queue::backend::{Backend, BackendError, Embedded, Subscription};
use voussoir_queue::{
    Assignor, CommitError, ConsumeError, Consumer, ConsumerConfig, Guarantee, ProducerConfig,
    Queue, QueueConfig, Record, Start, Topic, TopicConfig, TopicPartition,
};

const SECOND: Duration = Duration::from_secs(1);

/// A queue in memory, whose journal works once in a millisecond.
fn open(max_members: usize) -> Queue {
    let mut config = voussoir_journal::Config::manual();
    config.segment_bytes = 1 << 20;
    let files = std::sync::Arc::new(MemoryFiles::new());
    let journal = Journal::open_with(files, config).expect("the journal opens");
    let mut config = QueueConfig::default();
    config.partition.max_producers = 100;
    config.partition.max_index_entries = 100;
    config.max_members = max_members;
    let queue = Queue::open(&journal, "q", config).expect("the queue opens");
    tokio::spawn(async move {
        let mut now = 0;
        loop {
            support::work(&journal, &mut now);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    queue
}

/// A topic with five records in each partition.
async fn topic(queue: &Queue, name: &str, partitions: u32) -> Topic {
    let config = TopicConfig::partitions(partitions);
    let topic = queue.create_topic(name, config).await.expect("it is created");
    let producer = queue.producer(ProducerConfig::default()).await.expect("a producer");
    for partition in 0..partitions {
        for at in 0..5 {
            let record = Record::new(format!("{partition}-{at}"));
            let durability = voussoir_queue::Durability::Synced;
            let sent = producer.try_enqueue(&topic, Some(partition), record, durability);
            drop(sent.expect("there is room"));
        }
    }
    producer.flush().await;
    topic
}

fn member(guarantee: Guarantee) -> ConsumerConfig {
    let mut config = ConsumerConfig::group("g", ["t"]);
    (config.assignor, config.guarantee) = (Assignor::CooperativeSticky, guarantee);
    config.session_timeout = 10 * SECOND;
    config.rebalance_timeout = 5 * SECOND;
    config
}

/// What polls tell.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    records: usize,
    assigned: Vec<TopicPartition>,
    revoking: Vec<TopicPartition>,
    lost: Vec<TopicPartition>,
    errors: Vec<ConsumeError>,
}

impl Told {
    async fn poll(&mut self, consumer: &mut Consumer) {
        match consumer.poll(Duration::from_millis(5)).await {
            Ok(polled) => {
                self.records += polled.records.len();
                self.assigned.extend(polled.assigned);
                self.revoking.extend(polled.revoking);
                self.lost.extend(polled.lost);
            }
            Err(error) => self.errors.push(error),
        }
    }
}

/// Polls a consumer until its group has settled.
async fn settle(consumer: &mut Consumer) -> Told {
    let mut told = Told::default();
    for _ in 0..60 {
        told.poll(consumer).await;
    }
    told
}

fn places(topic: &str, partitions: impl IntoIterator<Item = u32>) -> Vec<TopicPartition> {
    partitions.into_iter().map(|at| TopicPartition::new(topic, at)).collect()
}

#[track_caller]
fn assert_stale<T: std::fmt::Debug>(result: Result<T, CommitError>) {
    assert!(matches!(result, Err(CommitError::StaleGeneration { .. })), "{result:?}");
}

/// All that it has read is another member's: nothing is left to store, and that is no success.
#[tokio::test(start_paused = true)]
async fn a_member_that_has_lost_its_place_commits_nothing() {
    for is_static in [false, true] {
        let queue = open(8);
        let t = topic(&queue, "t", 2).await;
        let mut config = member(Guarantee::Manual);
        config.instance = is_static.then(|| "a".to_owned());
        let mut old = queue.consumer(config.clone()).expect("a consumer");
        old.commit().await.expect("it has lost nothing");
        assert_eq!(settle(&mut old).await.records, 10);
        if !is_static {
            tokio::time::advance(11 * SECOND).await;
        }
        let mut new = queue.consumer(config).expect("a consumer");
        assert_eq!(settle(&mut new).await.records, 10, "they are read again");
        let polled = old.poll(Duration::from_millis(1)).await;
        if is_static {
            let error = polled.expect_err("its place is taken");
            assert_eq!(error, ConsumeError::Replaced { instance: "a".to_owned() });
        } else {
            assert_eq!(polled.expect("a poll").lost.len(), 2, "it is told");
        }
        assert_stale(old.commit().await);
        assert_stale(old.commit_to(&[]).await);
        let mut producer = queue.transactional("tx").await.expect("a producer");
        let mut transaction = producer.begin();
        transaction.send(&t, 0, &Record::new("made of them")).expect("it fits");
        transaction.offsets(&old).expect("they fit");
        assert_stale(transaction.commit().await);
        new.commit().await.expect("it is the member");
    }
}

/// There are more members than partitions.
#[tokio::test(start_paused = true)]
async fn a_member_without_partitions_commits_nothing_in_its_generation() {
    let queue = open(8);
    topic(&queue, "t", 1).await;
    let mut one = queue.consumer(member(Guarantee::Manual)).expect("a consumer");
    let mut two = queue.consumer(member(Guarantee::Manual)).expect("a consumer");
    let (mut first, mut second) = (Told::default(), Told::default());
    for _ in 0..60 {
        first.poll(&mut one).await;
        second.poll(&mut two).await;
    }
    assert_eq!((one.assignment().len(), two.assignment().len()), (1, 0));
    two.commit().await.expect("it is a member");
    drop(one);
    settle(&mut two).await;
    two.commit().await.expect("it has them now");
}

/// A poll fails, since the place of the member is taken, and it hears of what it lost with an error
/// only.
#[tokio::test(start_paused = true)]
async fn a_back_end_commits_nothing_of_what_a_failing_poll_has_lost() {
    let queue = open(1);
    topic(&queue, "t", 1).await;
    let backend = Embedded::new(queue);
    let mut subscription = Subscription::new("g", ["t"]);
    subscription.processing_timeout = 10 * SECOND;
    let mut slow = backend.consumer(subscription.clone()).await.expect("a consumer");
    assert_eq!(slow.poll(SECOND).await.expect("a poll").len(), 5);
    tokio::time::advance(11 * SECOND).await;
    let mut quick = backend.consumer(subscription).await.expect("a consumer");
    assert_eq!(quick.poll(SECOND).await.expect("a poll").len(), 5, "they are read again");
    slow.poll(SECOND).await.expect_err("there is room for one member");
    let error = slow.commit().await.expect_err("they are the other one's");
    assert!(matches!(error, BackendError::Lost { .. }), "{error}");
    quick.commit().await.expect("it is the member");
}

/// The time-outs of a group are those of its first member: another one keeps to them.
#[tokio::test(start_paused = true)]
async fn a_member_that_is_polled_all_the_time_stays() {
    let queue = open(8);
    topic(&queue, "t", 2).await;
    let config = member(Guarantee::AtLeastOnce);
    let mut slower = config.clone();
    slower.session_timeout = 300 * SECOND;
    let mut one = queue.consumer(config).expect("a consumer");
    let mut two = queue.consumer(slower).expect("a consumer");
    let mut told = Told::default();
    for _ in 0..60 {
        told.poll(&mut one).await;
        told.poll(&mut two).await;
    }
    let generations = (one.generation(), two.generation());
    assert_eq!((one.assignment().len(), two.assignment().len()), (1, 1));
    let until = tokio::time::Instant::now() + 300 * SECOND;
    let poll = async |consumer: &mut Consumer| {
        while tokio::time::Instant::now() < until {
            let polled = consumer.poll(60 * SECOND).await.expect("a poll");
            assert_eq!(polled.lost, []);
        }
    };
    tokio::join!(poll(&mut one), poll(&mut two));
    assert_eq!((one.generation(), two.generation()), generations, "nobody was silent");
}

/// One partition can never be read. What comes and goes is told all the same.
#[tokio::test(start_paused = true)]
async fn a_partition_that_fails_keeps_no_news_back() {
    let queue = open(8);
    topic(&queue, "t", 2).await;
    let place = places("t", [1]);
    let mut config = ConsumerConfig::default();
    config.group = Some("g".to_owned());
    let mut reader = queue.consumer(config).expect("a consumer");
    reader.assign(&place).expect("it exists");
    reader.commit_to(&[(place[0].clone(), 5)]).await.expect("the group is empty");
    // Nothing is stored for the other one.
    let mut config = member(Guarantee::Manual);
    config.start = Start::Stored;
    let mut consumer = queue.consumer(config).expect("a consumer");
    let told = settle(&mut consumer).await;
    assert_eq!((told.assigned, told.lost), (place.clone(), vec![]));
    let is_it = |error: &ConsumeError| matches!(error, ConsumeError::NothingStored { .. });
    assert!(!told.errors.is_empty() && told.errors.iter().all(is_it), "{:?}", told.errors);
    tokio::time::advance(11 * SECOND).await;
    let told = settle(&mut consumer).await;
    assert_eq!((told.assigned, told.lost), (place.clone(), place), "it was silent, and came back");
    assert!(!told.errors.is_empty(), "it is told of the other one too");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_topic_is_told_as_lost() {
    let queue = open(8);
    topic(&queue, "t", 2).await;
    topic(&queue, "u", 1).await;
    let mut config = member(Guarantee::Manual);
    config.topics.push("u".to_owned());
    let mut consumer = queue.consumer(config).expect("a consumer");
    let told = settle(&mut consumer).await;
    assert_eq!((told.records, told.assigned.len()), (15, 3));
    queue.delete_topic("t").await.expect("it is deleted");
    let told = settle(&mut consumer).await;
    assert_eq!((told.assigned, told.revoking, told.lost), (vec![], vec![], places("t", 0..2)));
    assert_eq!(consumer.assignment(), places("u", [0]));
    topic(&queue, "t", 2).await;
    let told = settle(&mut consumer).await;
    assert_eq!((told.records, told.assigned, told.lost), (10, places("t", 0..2), vec![]));
    // Both between two polls.
    queue.delete_topic("t").await.expect("it is deleted");
    topic(&queue, "t", 2).await;
    let told = settle(&mut consumer).await;
    assert_eq!(told.lost, places("t", 0..2));
    assert_eq!(told.assigned, places("t", 0..2));
    assert_eq!(told.records, 10, "it is another topic");
}

/// Nobody else is given what was deleted: what was read beside it is not lost.
#[tokio::test(start_paused = true)]
async fn a_back_end_commits_what_it_read_beside_a_deleted_topic() {
    let queue = open(8);
    for name in ["t", "u"] {
        topic(&queue, name, 1).await;
    }
    let backend = Embedded::new(queue.clone());
    let mut subscription = Subscription::new("g", ["t", "u"]);
    subscription.processing_timeout = 10 * SECOND;
    let mut consumer = backend.consumer(subscription).await.expect("a consumer");
    assert_eq!(consumer.poll(SECOND).await.expect("a poll").len(), 10);
    queue.delete_topic("u").await.expect("it is deleted");
    assert_eq!(consumer.poll(SECOND).await.expect("a poll"), []);
    consumer.commit().await.expect("it is a member");
    let lag = queue.lag("g").expect("offsets are stored");
    assert_eq!((lag.len(), lag[0].position), (1, 5));
}
