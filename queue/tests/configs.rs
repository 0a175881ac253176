//! Whatever validates works, and nothing else does.

mod support;

use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use support::{batch, poll, read_all, ready};
use voussoir_queue::format::MAX_BATCH_BYTES;
use voussoir_queue::store::MemoryPartition;
use voussoir_queue::{
    Assignor, BatchBuilder, Compaction, Config, ConsumerConfig, Durability, FetchError, Guarantee,
    OpenError, Partition, ProduceError, ProducerConfig, Queue, Record, Seek, TopicConfig,
};
use voussoir_sim::Situations;

static SITUATIONS: [&str; 5] = [
    "accepted",
    "rejected",
    "a reader had to go",
    "a producer had to go",
    "a compaction took several rounds",
];

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(2),
        3..300_usize,
        Just(8_192),
        Just(8_193),
        Just(MAX_BATCH_BYTES - 1),
        Just(MAX_BATCH_BYTES),
        Just(usize::MAX),
    ]
}

#[test]
fn whatever_validates_works() {
    let situations = Situations::new(&SITUATIONS);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_500) };
    let every = prop_oneof![Just(0), Just(1), 2..50_u64, Just(u64::MAX)];
    let sized = || prop_oneof![3 => 1..50_usize, 1 => sizes()];
    let pending = prop_oneof![2 => Just(MAX_BATCH_BYTES), 1 => sizes()];
    let rate = prop_oneof![Just(0), Just(1), 2..1_000_u64, Just(u64::MAX)];
    let cases = (sized(), sized(), sizes(), pending, sized(), every, sized(), rate);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    let result = TestRunner::new(config).run(&cases, |fields| {
        let mut config = Config::default();
        (config.max_producers, config.max_index_entries, config.tail_cache_bytes) =
            (fields.0, fields.1, fields.2);
        (config.max_pending_bytes, config.max_waiters, config.snapshot_every) =
            (fields.3, fields.4, fields.5);
        (config.max_compaction_map_bytes, config.max_compaction_bytes_per_second) =
            (fields.6, fields.7);
        let is_valid = config.validate().is_ok();
        situations.reached(if is_valid { "accepted" } else { "rejected" });
        let store = MemoryPartition::new(16 << 20);
        let partition = match Partition::open(store.clone(), config.clone()) {
            Ok(partition) => partition,
            Err(OpenError::Config(error)) => {
                prop_assert!(!is_valid, "{}", error);
                return Ok(());
            }
            Err(error) => panic!("{error}"),
        };
        prop_assert!(is_valid);
        works(&partition, &config, &situations);
        let compacting = partition.compact(Compaction::default(), 1_000);
        let done = runtime.block_on(compacting).expect("it is compacted");
        situations.add("a compaction took several rounds", u64::from(done.rounds > 1));
        prop_assert!(done.removed_records >= 10);
        let reopened = Partition::open(store, config).expect("it opens again");
        prop_assert_eq!(reopened.offsets(), partition.offsets());
        prop_assert_eq!(read_all(&reopened, 1), read_all(&partition, usize::MAX));
        Ok(())
    });
    result.expect("whatever validates works");
    situations.assert_all_reached();
}

fn works(partition: &Partition, config: &Config, situations: &Situations) {
    let mut offset = 0;
    for at in 0..60 {
        let record = Record::new(format!("{at}")).key(format!("k{}", at % 9)).timestamp(at);
        let batch = batch(
            &[record.clone(), record],
            Some((at % 20, 0, i32::try_from(at / 20 * 2).expect("small"))),
        );
        match ready(partition.append(batch, Durability::Synced)) {
            Ok(appended) => {
                assert_eq!(appended.base_offset, offset);
                offset += 2;
            }
            Err(ProduceError::UnknownProducer { .. }) if config.max_producers < 20 => {
                situations.reached("a producer had to go");
            }
            Err(error) => panic!("{error}"),
        }
    }
    // The largest batch of all.
    let mut largest = BatchBuilder::new();
    largest.push(&Record::new(vec![0; MAX_BATCH_BYTES - 61 - 11])).expect("it fits");
    let largest = largest.finish().expect("a batch");
    assert_eq!(largest.bytes().len(), MAX_BATCH_BYTES);
    ready(partition.append(largest, Durability::Buffered)).expect("it is appended");
    for record in read_all(partition, 100) {
        if record.timestamp >= 0 {
            let found = partition.seek(Seek::Timestamp(record.timestamp)).expect("it is found");
            assert!(found == record.offset || found + 1 == record.offset);
        }
    }
    let end = partition.offsets().end;
    let mut readers: Vec<_> = (0..60).map(|_| partition.wait_for(end)).collect();
    for (at, reader) in readers.iter_mut().enumerate() {
        match poll(reader) {
            None => assert!(at < config.max_waiters),
            Some(Err(FetchError::TooManyWaiters { limit })) => {
                assert!(at >= limit && limit == config.max_waiters);
                situations.reached("a reader had to go");
            }
            Some(other) => panic!("{other:?}"),
        }
    }
    ready(partition.release_before(end / 2)).expect("it is released");
}

/// A configuration of each further type, over its whole range.
#[test]
fn whatever_validates_works_for_queues_producers_and_consumers() {
    static SITUATIONS: [&str; 6] = [
        "a queue accepted",
        "a queue rejected",
        "a producer accepted",
        "a producer rejected",
        "a consumer accepted",
        "a consumer rejected",
    ];
    let situations = Situations::new(&SITUATIONS);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) };
    let sizes = || prop_oneof![Just(0), Just(1), 2..200_usize, Just(10_000), Just(usize::MAX)];
    let times = || {
        let ms = prop_oneof![Just(0), Just(9), Just(10), 11..2_000_u64, Just(86_400_000)];
        (ms, any::<bool>()).prop_map(|(ms, more)| {
            std::time::Duration::from_millis(ms) + std::time::Duration::from_nanos(more.into())
        })
    };
    let producer = prop_oneof![Just(1), Just(MAX_BATCH_BYTES), sizes()];
    let cases = (
        (sizes(), sizes(), sizes(), sizes(), sizes()),
        (producer, prop_oneof![Just(1 << 29), Just((1 << 29) + 1), sizes()]),
        (times(), times(), sizes(), sizes(), 0..4_usize, 0..3_usize),
    );
    let result = TestRunner::new(config).run(&cases, |(queue, producer, consumer)| {
        queue_works(queue, producer, consumer, &situations);
        Ok(())
    });
    result.expect("whatever validates works");
    situations.assert_all_reached();
}

type ConsumerFields = (std::time::Duration, std::time::Duration, usize, usize, usize, usize);

fn queue_works(
    queue: (usize, usize, usize, usize, usize),
    producer: (usize, usize),
    consumer: ConsumerFields,
    situations: &Situations,
) {
    let mut config = support::small();
    (config.max_topics, config.max_partitions, config.max_groups) = (queue.0, queue.1, queue.2);
    (config.max_members, config.max_waiting_commits) = (queue.3, queue.4);
    let journal = support::journal(std::sync::Arc::new(voussoir_journal::MemoryFiles::new()), 16);
    let is_valid = config.validate().is_ok();
    situations.reached(if is_valid { "a queue accepted" } else { "a queue rejected" });
    let opened = Queue::open(&journal, "q", config);
    assert_eq!(opened.is_ok(), is_valid);
    let queue = match opened {
        Ok(queue) => queue,
        Err(_) => Queue::open(&journal, "q", support::small()).expect("the queue opens"),
    };
    let create = queue.create_topic("t", TopicConfig::default());
    let topic = support::now_or_work(&journal, create).expect("it is created");

    let mut config = ProducerConfig::default();
    config.delivery_timeout = None;
    (config.max_batch_bytes, config.max_in_flight_bytes) = producer;
    let is_valid = config.validate().is_ok();
    situations.reached(if is_valid { "a producer accepted" } else { "a producer rejected" });
    let made = support::now_or_work(&journal, queue.producer(config));
    assert_eq!(made.is_ok(), is_valid);
    let mut sent = 0;
    if let Ok(producer) = made {
        for at in 0..5 {
            let sending = producer.send(&topic, Record::new(vec![0; 50 * at]));
            support::now_or_work(&journal, sending).expect("it is delivered");
            sent += 1;
        }
    }

    let mut config = ConsumerConfig::group("g", ["t"]);
    (config.session_timeout, config.rebalance_timeout) = (consumer.0, consumer.1);
    (config.max_poll_records, config.fetch_bytes) = (consumer.2, consumer.3);
    let assignors =
        [Assignor::Range, Assignor::RoundRobin, Assignor::Sticky, Assignor::CooperativeSticky];
    config.assignor = assignors[consumer.4];
    config.guarantee =
        [Guarantee::AtMostOnce, Guarantee::AtLeastOnce, Guarantee::Manual][consumer.5];
    let is_valid = config.validate().is_ok();
    situations.reached(if is_valid { "a consumer accepted" } else { "a consumer rejected" });
    let made = queue.consumer(config);
    assert_eq!(made.is_ok(), is_valid);
    let Ok(mut consumer) = made else { return };
    let (mut read, mut now) = (0, 1);
    // Ends: a poll that is given time to join reads a record at least.
    for _ in 0..40 {
        let polling = consumer.poll(std::time::Duration::ZERO);
        read += support::now_or_work(&journal, polling).expect("a poll").records.len();
        support::work(&journal, &mut now);
    }
    // A session of ten milliseconds may end in between; then records are read again.
    assert!(read >= sent, "{read} of {sent}");
}
