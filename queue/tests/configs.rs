//! Whatever validates works, and nothing else does.

mod support;

use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use support::{batch, poll, read_all, ready};
use voussoir_queue::format::MAX_BATCH_BYTES;
use voussoir_queue::store::MemoryPartition;
use voussoir_queue::{
    BatchBuilder, Config, Durability, FetchError, OpenError, Partition, ProduceError, Record, Seek,
};
use voussoir_sim::Situations;

static SITUATIONS: [&str; 4] =
    ["accepted", "rejected", "a reader had to go", "a producer had to go"];

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
    let cases = (sized(), sized(), sizes(), pending, sized(), every);
    let result = TestRunner::new(config).run(&cases, |fields| {
        let mut config = Config::default();
        (config.max_producers, config.max_index_entries, config.tail_cache_bytes) =
            (fields.0, fields.1, fields.2);
        (config.max_pending_bytes, config.max_waiters, config.snapshot_every) =
            (fields.3, fields.4, fields.5);
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
        let record = Record::new(format!("{at}")).timestamp(at);
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
