//! Producers: partitions, batches, limits, time-outs.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{now_or_work, poll, read_all, small, work};
use voussoir_journal::Journal;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Op, When};
use voussoir_queue::{
    Durability, Outcome, Partitioner, ProduceError, Producer, ProducerConfig, Queue, QueueConfig,
    Record, SendError, StoreError, Topic, TopicConfig, TopicError,
};

struct Setup {
    disk: CrashFiles,
    journal: Journal,
    queue: Queue,
    topic: Topic,
}

fn setup_with(partitions: u32, config: QueueConfig) -> Setup {
    let disk = CrashFiles::new(9);
    let journal = support::journal(disk.mount(), 64);
    let queue = Queue::open(&journal, "q", config).expect("the queue opens");
    let create = queue.create_topic("t", TopicConfig::partitions(partitions));
    let topic = now_or_work(&journal, create).expect("it is created");
    Setup { disk, journal, queue, topic }
}

fn setup(partitions: u32) -> Setup {
    setup_with(partitions, small())
}

/// Without a time-out: no runtime is needed.
fn patient() -> ProducerConfig {
    let mut config = ProducerConfig::default();
    config.delivery_timeout = None;
    config
}

fn producer(setup: &Setup, config: ProducerConfig) -> Producer {
    now_or_work(&setup.journal, setup.queue.producer(config)).expect("a producer")
}

#[test]
fn a_record_leaves_at_once_and_the_next_ones_share_a_batch() {
    let setup = setup(1);
    let producer = producer(&setup, patient());
    let enqueue = |value: String| {
        let record = Record::new(value).timestamp(7);
        producer.try_enqueue(&setup.topic, Some(0), record, Durability::Synced).expect("room")
    };
    let mut deliveries: Vec<_> = (0..10).map(|at| enqueue(format!("{at}"))).collect();
    let mut now = 0;
    work(&setup.journal, &mut now);
    for (offset, delivery) in (0..).zip(&mut deliveries) {
        let delivered = poll(delivery).expect("answered").expect("delivered");
        assert_eq!(delivered.offset, offset);
    }
    let partition = setup.topic.partition(0).expect("one");
    let fetched = partition.fetch(0, 1 << 20).expect("it is read");
    let counts: Vec<i32> = fetched.batches.iter().map(|batch| batch.header().count).collect();
    assert_eq!(counts, [1, 9], "the first does not linger, the others do not wait for each other");
    assert!(fetched.batches.iter().all(|batch| batch.header().is_idempotent()));
    assert_eq!(fetched.batches[1].header().base_sequence, 1);
    assert_eq!(producer.in_flight_bytes(), 0);
}

#[test]
fn keys_have_their_partition_and_the_rest_goes_round() {
    let setup = setup(3);
    let producer = producer(&setup, patient());
    for at in 0..30 {
        let record = Record::new("v").key(format!("key-{}", at % 5));
        now_or_work(&setup.journal, producer.send(&setup.topic, record)).expect("delivered");
    }
    let keys = |partition: u32| {
        let records = read_all(&setup.topic.partition(partition).expect("one"), 1 << 20);
        records.into_iter().map(|record| record.key.expect("a key")).collect::<Vec<_>>()
    };
    let mut seen = std::collections::BTreeMap::new();
    for partition in 0..3 {
        for key in keys(partition) {
            assert_eq!(*seen.entry(key).or_insert(partition), partition);
        }
    }
    assert_eq!(seen.len(), 5);
    let before: Vec<u64> =
        (0..3).map(|at| setup.topic.partition(at).expect("one").offsets().end).collect();
    for _ in 0..9 {
        let record = Record::new("keyless");
        now_or_work(&setup.journal, producer.send(&setup.topic, record)).expect("delivered");
    }
    for (at, before) in (0..).zip(before) {
        assert_eq!(setup.topic.partition(at).expect("one").offsets().end, before + 3);
    }
}

#[test]
fn a_partitioner_of_the_user_is_asked_and_not_trusted() {
    struct Fixed(u32);
    impl Partitioner for Fixed {
        fn partition(&self, topic: &str, _record: &Record, partitions: u32) -> Option<u32> {
            assert_eq!((topic, partitions), ("t", 3));
            Some(self.0)
        }
    }
    let setup = setup(3);
    let with = |fixed| setup.queue.producer_with(patient(), Arc::new(Fixed(fixed)));
    let producer = now_or_work(&setup.journal, with(2)).expect("a producer");
    let sent = now_or_work(&setup.journal, producer.send(&setup.topic, Record::new("v")));
    assert_eq!(sent.expect("delivered").partition.partition, 2);
    let producer = now_or_work(&setup.journal, with(3)).expect("a producer");
    let sent = now_or_work(&setup.journal, producer.send(&setup.topic, Record::new("v")));
    let error = sent.expect_err("there is no such partition");
    assert!(
        matches!(error, SendError::Topic(TopicError::UnknownPartition { partition: 3, .. })),
        "{error}"
    );
}

#[test]
fn bytes_on_their_way_are_bounded() {
    let setup = setup(1);
    let mut config = patient();
    // Each record counts with 512 bytes more.
    config.max_in_flight_bytes = 2_000;
    let producer = producer(&setup, config);
    let record = || Record::new(vec![0; 300]);
    let mut deliveries = Vec::new();
    let error = loop {
        match producer.try_enqueue(&setup.topic, None, record(), Durability::Synced) {
            Ok(delivery) => deliveries.push(delivery),
            Err(error) => break error,
        }
    };
    assert_eq!(error, SendError::Full { limit: 2_000 });
    assert_eq!(deliveries.len(), 2);
    let mut waiting = Box::pin(producer.enqueue(&setup.topic, record(), Durability::Synced));
    assert!(poll(&mut waiting).is_none(), "it waits for room");
    let mut given_up = Box::pin(producer.enqueue(&setup.topic, record(), Durability::Synced));
    assert!(poll(&mut given_up).is_none());
    drop(given_up);
    let mut flushing = Box::pin(producer.flush());
    assert!(poll(&mut flushing).is_none());
    let mut now = 0;
    work(&setup.journal, &mut now);
    let delivery = poll(&mut waiting).expect("there is room").expect("it is queued");
    drop(delivery);
    now_or_work(&setup.journal, flushing);
    assert_eq!(producer.in_flight_bytes(), 0);
    // The one that was given up was never queued; the dropped answer changes nothing.
    assert_eq!(setup.topic.partition(0).expect("one").offsets(), 0..3);
}

/// A flush that took all the room as it came made every other call wait for the slowest record.
#[test]
fn a_flush_takes_no_room() {
    let setup = setup(2);
    let producer = producer(&setup, patient());
    let enqueue = |partition| {
        let record = Record::new("x");
        producer.try_enqueue(&setup.topic, Some(partition), record, Durability::Synced)
    };
    let mut first = enqueue(0).expect("there is room");
    let mut given_up = Box::pin(producer.flush());
    assert!(poll(&mut given_up).is_none());
    drop(given_up);
    let in_flight_bytes = producer.in_flight_bytes();
    let mut flushing = Box::pin(producer.flush());
    assert!(poll(&mut flushing).is_none(), "the record is older than both");
    assert_eq!(producer.in_flight_bytes(), in_flight_bytes);
    let mut beside = enqueue(1).expect("there is room beside a flush");
    assert!(poll(&mut flushing).is_none());
    let mut now = 0;
    work(&setup.journal, &mut now);
    assert!(poll(&mut flushing).is_some());
    assert!(poll(&mut first).is_some_and(|answer| answer.is_ok()));
    assert!(poll(&mut beside).is_some_and(|answer| answer.is_ok()));
    assert!(poll(&mut Box::pin(producer.flush())).is_some(), "nothing is left to wait for");
}

#[tokio::test(start_paused = true)]
async fn a_delivery_time_out_says_whether_the_record_may_be_in_the_log() {
    let setup = setup(1);
    let mut config = ProducerConfig::default();
    config.delivery_timeout = Some(Duration::from_secs(1));
    let producer = producer(&setup, config);
    let enqueue = |value| {
        let record = Record::new(value);
        producer.try_enqueue(&setup.topic, Some(0), record, Durability::Synced).expect("room")
    };
    // Nobody works for the journal.
    let (sent, queued) = (enqueue("sent"), enqueue("queued"));
    let sent = sent.await.expect_err("too late");
    assert_eq!((sent.outcome(), sent.is_retryable()), (Outcome::Unknown, true));
    let queued = queued.await.expect_err("too late");
    assert_eq!(queued, SendError::TimedOut { outcome: Outcome::NotApplied });
    let mut now = 0;
    work(&setup.journal, &mut now);
    let records = read_all(&setup.topic.partition(0).expect("one"), 1 << 20);
    let values: Vec<_> = records.iter().filter_map(|record| record.value.as_deref()).collect();
    assert_eq!(values, [b"sent"], "what was taken back is not written");
    assert_eq!(producer.in_flight_bytes(), 0);
}

#[test]
fn a_failed_batch_takes_no_sequences() {
    // librdkafka#3720: after an error the client goes on with other sequences, and doubles.
    let setup = setup(1);
    let producer = producer(&setup, patient());
    let send = |value: &'static str| producer.send(&setup.topic, Record::new(value));
    now_or_work(&setup.journal, send("a")).expect("delivered");
    let too_large = Record::new(vec![0; 100_000]);
    let error = now_or_work(&setup.journal, producer.send(&setup.topic, too_large));
    let error = error.expect_err("no batch takes it");
    assert!(matches!(error, SendError::Produce(ProduceError::Format(_))), "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    now_or_work(&setup.journal, send("b")).expect("delivered");
    setup.disk.inject(Fault::new(Op::Write, When::From(0), Effect::Fail));
    let error = now_or_work(&setup.journal, send("c")).expect_err("the disk fails");
    assert_eq!(error.outcome(), Outcome::Unknown);
    let error = now_or_work(&setup.journal, send("d")).expect_err("the partition has stopped");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    let records = read_all(&setup.topic.partition(0).expect("one"), 1 << 20);
    assert_eq!(records.len(), 2);
}

#[test]
fn a_producer_that_a_partition_forgot_goes_on_with_a_new_id() {
    let mut config = small();
    config.partition.max_producers = 1;
    let setup = setup_with(1, config);
    let first = producer(&setup, patient());
    let second = producer(&setup, patient());
    for at in 0..10 {
        let producer = if at % 2 == 0 { &first } else { &second };
        let sent = producer.send(&setup.topic, Record::new(format!("{at}")));
        assert_eq!(now_or_work(&setup.journal, sent).expect("delivered").offset, at);
    }
    let records = read_all(&setup.topic.partition(0).expect("one"), 1 << 20);
    assert_eq!(records.len(), 10, "nothing is doubled");
}

#[test]
fn a_full_store_rejects_records_and_takes_the_next_ones_when_it_has_room() {
    let setup = setup(1);
    let producer = producer(&setup, patient());
    let send = || producer.send(&setup.topic, Record::new(vec![0; 8_000]));
    let mut sent = 0;
    let error = loop {
        match now_or_work(&setup.journal, send()) {
            Ok(delivered) => {
                assert_eq!(delivered.offset, sent);
                sent += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, SendError::Produce(ProduceError::Store(StoreError::Full { .. }))),
        "{error}"
    );
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, true));
    let partition = setup.topic.partition(0).expect("one");
    now_or_work(&setup.journal, partition.release_before(sent)).expect("it is released");
    // No sequence is missing: the rejected record took none.
    let mut delivered = now_or_work(&setup.journal, send());
    for _ in 0..10 {
        if !matches!(&delivered, Err(error) if error.is_retryable()) {
            break;
        }
        delivered = now_or_work(&setup.journal, send());
    }
    assert_eq!(delivered.expect("there is room").offset, sent);
}

/// `try_enqueue` is no `async` function: a thread without a runtime may call it, time-out or not.
#[test]
fn a_plain_thread_queues_with_a_time_out() {
    let setup = setup(1);
    let producer = producer(&setup, ProducerConfig::default());
    let record = Record::new("v");
    let sent = producer.try_enqueue(&setup.topic, Some(0), record, Durability::Synced);
    let mut delivery = sent.expect("there is room");
    let mut now = 0;
    work(&setup.journal, &mut now);
    assert_eq!(poll(&mut delivery).expect("answered").expect("delivered").offset, 0);
}

/// The answers of a stopped partition come at once, one for each batch that waits.
#[test]
fn many_batches_that_are_rejected_at_once_take_no_stack() {
    let setup = setup(1);
    let mut config = patient();
    config.max_batch_bytes = 1;
    let producer = producer(&setup, config);
    let send = || producer.try_enqueue(&setup.topic, Some(0), Record::new("v"), Durability::Synced);
    let mut deliveries: Vec<_> = (0..50_000).map(|_| send().expect("there is room")).collect();
    setup.disk.inject(Fault::new(Op::Write, When::From(0), Effect::Fail));
    let mut now = 0;
    work(&setup.journal, &mut now);
    for delivery in &mut deliveries {
        assert!(poll(delivery).expect("answered").is_err());
    }
    assert_eq!(producer.in_flight_bytes(), 0);
}
