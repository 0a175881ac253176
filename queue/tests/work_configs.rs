//! Whatever configuration of a work queue validates works, and nothing else opens.

mod support;

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use support::{batch, ready};
use voussoir_queue::store::MemoryPartition;
use voussoir_queue::work::{MemoryWork, WorkConfig, WorkQueue};
use voussoir_queue::{Config, Durability, OpenError, Partition, Record};
use voussoir_sim::Situations;

static SITUATIONS: [&str; 3] = ["accepted", "rejected", "a dead letter"];

const DAY: u64 = 24 * 3_600 * 1_000;

fn times() -> impl Strategy<Value = Duration> {
    let ms = prop_oneof![0..5_u64, Just(1_000), Just(366 * DAY), Just(367 * DAY), Just(u64::MAX)];
    ms.prop_map(Duration::from_millis)
}

fn counts() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..6_usize, 1 => Just(8_192), 1 => Just(8_193), 1 => Just(usize::MAX)]
}

fn configs() -> impl Strategy<Value = WorkConfig> {
    let times = (times(), times(), times(), times());
    let counts = (counts(), counts(), counts(), counts());
    let deliveries = prop_oneof![0..4_u32, Just(1_000_000), Just(1_000_001)];
    let every = prop_oneof![0..3_u64, Just(u64::MAX)];
    (times, counts, deliveries, every, any::<bool>()).prop_map(
        |(times, counts, most, every, keys)| {
            let mut config = WorkConfig::default();
            config.visibility_timeout = times.0;
            (config.min_backoff, config.max_backoff, config.max_delay) =
                (times.1, times.2, times.3);
            (config.max_records, config.max_bytes) = (counts.0, counts.1);
            (config.max_dead_letters, config.max_waiting) = (counts.2, counts.3);
            (config.max_deliveries, config.checkpoint_every, config.ordered_keys) =
                (most, every, keys);
            config
        },
    )
}

/// Some records are acknowledged, one is rejected, and another life goes on with the rest.
fn use_it(config: &WorkConfig, situations: &Situations) {
    let source = Partition::open(MemoryPartition::new(1 << 20), Config::default());
    let source = source.expect("the source opens");
    let records: Vec<Record> = (0..4).map(|at| Record::new("x").key(format!("k{at}"))).collect();
    ready(source.append(batch(&records, None), Durability::Synced)).expect("it is appended");
    let store = MemoryWork::new();
    // Time stands still: leases of a millisecond do not end.
    let open = || {
        let clock = || 1_700_000_000_000_000_000;
        WorkQueue::open_with_clock(source.clone(), store.clone(), config.clone(), clock)
    };
    let work = open().expect("what validates opens");
    for round in 0..4 {
        let received = ready(work.receive(1, Duration::from_secs(1))).expect("it receives");
        let receipt = received[0].receipt;
        let settled = if round == 1 {
            ready(work.reject(&receipt, "bad"))
        } else {
            ready(work.ack(&receipt))
        };
        settled.expect("the lease runs");
    }
    assert_eq!(work.stats().floor, 4);
    let (floor, dead) = (work.stats().floor, work.stats().dead_letters);
    situations.add("a dead letter", dead as u64);
    drop(work);
    let stats = open().expect("it opens again").stats();
    assert_eq!((stats.floor, stats.dead_letters), (floor, dead));
}

#[test]
fn whatever_validates_works() {
    let situations = Situations::new(&SITUATIONS);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_500) };
    let result = TestRunner::new(config).run(&configs(), |config| {
        match config.validate() {
            Ok(()) => {
                situations.reached("accepted");
                use_it(&config, &situations);
            }
            Err(error) => {
                situations.reached("rejected");
                let source = Partition::open(MemoryPartition::new(1 << 20), Config::default());
                let source = source.expect("the source opens");
                let opened = WorkQueue::open(source, MemoryWork::new(), config);
                assert_eq!(opened.err(), Some(OpenError::Config(error)));
            }
        }
        Ok(())
    });
    result.expect("each configuration works");
    situations.assert_all_reached();
}
