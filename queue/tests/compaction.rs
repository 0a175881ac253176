//! Compaction by key: what is promised, one test for each promise, and the bugs of others.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use support::{batch, first_at, journal, now_or_work, poll, read_all, ready, small, work};
use voussoir_journal::{Journal, MemoryFiles};
use voussoir_queue::format::MAX_UNPACKED_BYTES;
use voussoir_queue::store::{
    Done, Extent, JournalStore, MemoryPartition, PartitionLog, PartitionStore, Write,
};
use voussoir_queue::work::WorkConfig;
use voussoir_queue::{
    Batch, BatchBuilder, Bytes, Compacted, Compaction, Compression, Config, ConsumerConfig,
    Durability, FetchError, Partition, ProducerConfig, Queue, Record, Retention, Seek,
    SessionToken, StoreError, TopicConfig, TopicPartition,
};

const HOUR_MS: i64 = 3_600_000;

fn fast() -> Config {
    let mut config = Config::default();
    (config.max_producers, config.max_index_entries) = (10, 16);
    config.max_compaction_bytes_per_second = u64::MAX;
    config
}

fn in_memory() -> Partition {
    Partition::open(MemoryPartition::new(64 << 20), fast()).expect("it opens")
}

fn policy(min_lag_ms: u64, min_tombstone_age_ms: u64) -> Compaction {
    let mut policy = Compaction::default();
    policy.min_lag = Duration::from_millis(min_lag_ms);
    policy.min_tombstone_age = Duration::from_millis(min_tombstone_age_ms);
    policy
}

fn put(key: &str, value: &str) -> Record {
    Record::new(value.to_owned()).key(key.to_owned())
}

fn append(partition: &Partition, records: &[Record]) -> u64 {
    let appending = partition.append(batch(records, None), Durability::Synced);
    ready(appending).expect("it is appended").base_offset
}

/// Compacts a partition whose store answers at once.
fn compact(partition: &Partition, policy: Compaction, now_ms: i64) -> Compacted {
    let mut compacting = Box::pin(partition.compact(policy, now_ms));
    // Ends: it yields once for each part that it reads.
    for _ in 0..100_000 {
        if let Some(done) = poll(&mut compacting) {
            return done.expect("it is compacted");
        }
    }
    panic!("the compaction never ends");
}

/// (key, value or tombstone) of a record, with its offset.
type Found = (u64, Option<Bytes>, Option<Bytes>);

fn found(partition: &Partition) -> Vec<Found> {
    let records = read_all(partition, 1 << 20).into_iter();
    records.map(|record| (record.offset, record.key, record.value)).collect()
}

fn offsets(partition: &Partition) -> Vec<u64> {
    found(partition).into_iter().map(|(offset, ..)| offset).collect()
}

/// What compaction up to `end` leaves of `records`.
fn model(records: &[Record], end: u64) -> Vec<Found> {
    let mut last: HashMap<&Bytes, u64> = HashMap::new();
    for (record, offset) in records.iter().zip(0..end) {
        if let Some(key) = &record.key {
            last.insert(key, offset);
        }
    }
    let stays = |(record, offset): &(&Record, u64)| {
        let key = record.key.as_ref();
        key.and_then(|key| last.get(key)).is_none_or(|last| offset >= last)
    };
    let kept = records.iter().zip(0..).filter(stays);
    kept.map(|(record, offset)| (offset, record.key.clone(), record.value.clone())).collect()
}

/// Each offset, with a record or without, leads to the first record at or behind it.
fn check_every_offset(partition: &Partition) {
    let all = read_all(partition, 1 << 20);
    assert_eq!(read_all(partition, 1), all, "small reads find the same");
    for offset in partition.offsets() {
        let expected = all.iter().find(|record| record.offset >= offset).cloned();
        assert_eq!(first_at(partition, offset), expected, "at {offset}");
    }
    for timestamp in [0, 30, 70, 99, 100] {
        let found = partition.seek(Seek::Timestamp(timestamp)).expect("it can be read");
        let expected = all.iter().find(|record| record.timestamp >= timestamp);
        let expected = expected.map_or(partition.offsets().end, |record| record.offset);
        assert_eq!(found, expected, "timestamp {timestamp}");
    }
}

#[test]
fn the_last_record_of_each_key_stays_at_its_offset() {
    let mut removed = 0;
    for seed in 0..150 {
        let mut random = fastrand::Rng::with_seed(seed);
        let store = MemoryPartition::new(64 << 20);
        let mut config = fast();
        config.max_index_entries = random.usize(2..20);
        config.tail_cache_bytes = random.usize(..2_000);
        config.max_compaction_map_bytes = random.usize(..2_000);
        let mut partition = Partition::open(store.clone(), config.clone()).expect("it opens");
        let (keys, mut sent) = (random.u32(1..40), Vec::new());
        let mut compacted_offset = 0;
        for _ in 0..random.usize(1..6) {
            for _ in 0..random.usize(1..40) {
                let codecs = [Compression::None, Compression::Gzip, Compression::Zstd];
                let mut builder =
                    BatchBuilder::new().compression(codecs[random.usize(..codecs.len())]);
                for _ in 0..random.usize(1..5) {
                    let value = format!("{}", sent.len());
                    let mut record = Record::new(value).timestamp(random.i64(0..100));
                    if random.u8(..10) > 0 {
                        record = record.key(format!("k{}", random.u32(..keys)));
                    }
                    builder.push(&record).expect("there is room");
                    sent.push(record);
                }
                let batch = builder.finish().expect("a batch");
                ready(partition.append(batch, Durability::Synced)).expect("it is appended");
            }
            let done = compact(&partition, policy(0, 1_000), 1_000);
            assert!(done.compacted_offset >= compacted_offset, "seed {seed}");
            compacted_offset = done.compacted_offset;
            removed += done.removed_records;
            assert_eq!(found(&partition), model(&sent, compacted_offset), "seed {seed}");
            check_every_offset(&partition);
            if random.bool() {
                partition = Partition::open(store.clone(), config.clone()).expect("it opens");
                assert_eq!(found(&partition), model(&sent, compacted_offset), "seed {seed}");
                check_every_offset(&partition);
            }
        }
        let again = compact(&partition, policy(0, 1_000), 1_000);
        assert_eq!(again.removed_records, 0, "seed {seed}: once is enough");
    }
    assert!(removed > 1_000, "{removed} records");
}

/// KAFKA-8522: tombstones stayed for ever, because their age was that of a file that each cleaning
/// wrote again. And KAFKA-4545: they went too early where records had old timestamps.
#[test]
fn a_tombstone_stays_for_its_time_and_no_longer() {
    let partition = in_memory();
    append(&partition, &[put("a", "1"), put("b", "1")]);
    append(&partition, &[Record::tombstone("a").timestamp(1)]);
    append(&partition, &[put("end", "")]);
    let policy = policy(0, 24 * HOUR_MS as u64);
    assert_eq!(compact(&partition, policy, 100 * HOUR_MS).removed_records, 1);
    assert_eq!(offsets(&partition), [1, 2, 3], "the tombstone is as old as its compaction");
    for hour in 101..124 {
        append(&partition, &[put("c", "more")]);
        compact(&partition, policy, hour * HOUR_MS);
        assert!(offsets(&partition).contains(&2), "hour {hour}");
    }
    compact(&partition, policy, 124 * HOUR_MS);
    assert!(!offsets(&partition).contains(&2), "though others were compacted meanwhile");
    assert!(offsets(&partition).contains(&1), "other keys stay");
}

/// A tombstone that goes must not bring back what it removed, however often the log was compacted
/// in parts.
#[test]
fn what_a_tombstone_has_removed_does_not_come_back() {
    let mut config = fast();
    config.max_compaction_map_bytes = 1;
    let partition = Partition::open(MemoryPartition::new(64 << 20), config).expect("it opens");
    append(&partition, &[put("a", "old"), put("b", "1"), put("a", "older"), put("c", "1")]);
    append(&partition, &[Record::tombstone("a"), put("b", "2")]);
    append(&partition, &[put("end", "")]);
    for now in [0, 10, 20, 30] {
        compact(&partition, policy(0, 10), now);
        let values = found(&partition);
        let of_a: Vec<_> = values.iter().filter(|at| at.1.as_deref() == Some(b"a")).collect();
        assert!(of_a.iter().all(|(_, _, value)| value.is_none()), "at {now}: {of_a:?}");
    }
    assert_eq!(offsets(&partition), [3, 5, 6]);
}

/// A producer whose clock runs ahead by years stopped the cleaner for as long (its segment is never
/// older than the lag).
#[test]
fn a_record_that_is_younger_than_the_lag_stays() {
    let partition = in_memory();
    append(&partition, &[put("a", "1").timestamp(1_000)]);
    append(&partition, &[put("a", "2").timestamp(2_000)]);
    append(&partition, &[put("a", "3").timestamp(3_000)]);
    append(&partition, &[put("end", "").timestamp(4_000)]);
    compact(&partition, policy(1_500, 0), 3_000);
    assert_eq!(offsets(&partition), [0, 1, 2, 3], "of the last 1,500 ms nothing is removed");
    compact(&partition, policy(1_500, 0), 3_600);
    assert_eq!(offsets(&partition), [1, 2, 3]);
    compact(&partition, policy(1_500, 0), 4_600);
    assert_eq!(offsets(&partition), [2, 3]);
    let ahead = 1_000 * 365 * 24 * HOUR_MS;
    append(&partition, &[put("b", "1").timestamp(ahead)]);
    append(&partition, &[put("b", "2").timestamp(5_000)]);
    append(&partition, &[put("end", "").timestamp(5_000)]);
    compact(&partition, policy(1_500, 0), 7_000);
    assert_eq!(offsets(&partition), [2, 3, 5, 6], "one in the far future does not stop it");
}

/// The cleaner died of a segment with more keys than its buffer took (KAFKA-3587).
#[test]
fn keys_that_do_not_fit_take_several_rounds() {
    for max_compaction_map_bytes in [0, 100, 1_000, 10_000] {
        let mut config = fast();
        config.max_compaction_map_bytes = max_compaction_map_bytes;
        let partition = Partition::open(MemoryPartition::new(64 << 20), config).expect("it opens");
        let records: Vec<Record> =
            (0..100).map(|at| put(&format!("k{}", at % 50), &format!("{at}"))).collect();
        append(&partition, &records);
        append(&partition, &[put("end", "")]);
        let done = compact(&partition, policy(0, 0), 0);
        assert_eq!((done.compacted_offset, done.removed_records), (100, 50));
        assert_eq!(offsets(&partition), (50..=100).collect::<Vec<_>>());
        let expected = match max_compaction_map_bytes {
            0 | 100 => 100,
            1_000 => 7,
            _ => 1,
        };
        assert_eq!(done.rounds, expected, "{max_compaction_map_bytes}");
    }
}

/// A round may end within a batch. When the next compaction takes nothing more, because the rest is
/// too young for it, that batch stays all the same.
#[test]
fn a_batch_that_is_compacted_in_part_stays() {
    let journal = journal(Arc::new(MemoryFiles::new()), 64);
    let mut config = fast();
    config.max_compaction_map_bytes = 1;
    let partition = support::partition(&journal, config);
    let mut now = 0;
    let records = [Record::tombstone("x"), put("a", "1"), put("b", "1")];
    for records in [&records.map(|record| record.timestamp(900))[..], &[put("end", "")]] {
        drop(partition.append(batch(records, None), Durability::Synced));
        work(&journal, &mut now);
    }
    let mut compacting = Box::pin(partition.compact(policy(0, 0), 900));
    // Ends: the first round does.
    for _ in 0..100 {
        assert!(poll(&mut compacting).is_none(), "there are three keys");
        if partition.stats().compacted_offset == 1 {
            break;
        }
        work(&journal, &mut now);
    }
    drop(compacting);
    work(&journal, &mut now);
    let compacting = partition.compact(policy(1_000, 0), 1_000);
    assert_eq!(now_or_work(&journal, compacting).expect("it is compacted").removed_records, 1);
    assert_eq!(offsets(&partition), [1, 2, 3]);
    work(&journal, &mut now);
    check_every_offset(&partition);
}

#[test]
fn records_without_a_key_stay() {
    let partition = in_memory();
    append(&partition, &[Record::new("1"), put("a", "1"), Record::new("2"), put("a", "2")]);
    append(&partition, &[Record::new("3")]);
    compact(&partition, policy(0, 0), 0);
    assert_eq!(offsets(&partition), [0, 2, 3, 4]);
}

/// A producer whose batches the cleaner had removed was unknown to the broker.
#[test]
fn a_producer_goes_on_after_its_batches_were_removed() {
    let store = MemoryPartition::new(64 << 20);
    let partition = Partition::open(store.clone(), fast()).expect("it opens");
    let sent = |sequence| batch(&[put("a", "x")], Some((7, 0, sequence)));
    for sequence in 0..4 {
        ready(partition.append(sent(sequence), Durability::Synced)).expect("it is appended");
    }
    append(&partition, &[put("a", "last")]);
    append(&partition, &[put("end", "")]);
    compact(&partition, policy(0, 0), 0);
    assert_eq!(offsets(&partition), [4, 5]);
    drop(partition);
    let partition = Partition::open(store, fast()).expect("it opens");
    let again = ready(partition.append(sent(3), Durability::Synced)).expect("it is known");
    assert_eq!((again.base_offset, again.is_duplicate), (3, true));
    let next = ready(partition.append(sent(4), Durability::Synced)).expect("it follows");
    assert_eq!((next.base_offset, next.is_duplicate), (6, false));
}

/// Each read waits until the test lets it go.
#[derive(Clone, Debug)]
struct Gate {
    reads: Arc<Mutex<mpsc::Receiver<()>>>,
    arrived: mpsc::Sender<()>,
}

#[derive(Debug)]
struct Gated<S> {
    inner: S,
    gate: Arc<Mutex<Option<Gate>>>,
}

#[derive(Debug)]
struct GatedLog {
    inner: Arc<dyn PartitionLog>,
    gate: Arc<Mutex<Option<Gate>>>,
}

impl PartitionLog for GatedLog {
    fn generation(&self) -> u64 {
        self.inner.generation()
    }
    fn bounds(&self) -> std::ops::Range<u64> {
        self.inner.bounds()
    }
    fn read(
        &self,
        range: std::ops::Range<u64>,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>, StoreError> {
        let gate = self.gate.lock().take();
        if let Some(gate) = gate {
            gate.arrived.send(()).expect("the test listens");
            gate.reads.lock().recv().expect("the test opens it");
        }
        self.inner.read(range, max_bytes)
    }
    fn extents(&self) -> Vec<Extent> {
        self.inner.extents()
    }
}

impl<S: PartitionStore> PartitionStore for Gated<S> {
    fn log(&self) -> Arc<dyn PartitionLog> {
        Arc::new(GatedLog { inner: self.inner.log(), gate: Arc::clone(&self.gate) })
    }
    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        self.inner.snapshot()
    }
    fn max_write_bytes(&self) -> usize {
        self.inner.max_write_bytes()
    }
    fn submit(&self, write: Write, done: Done) {
        self.inner.submit(write, done);
    }
    fn discard_copy(&self, done: Done) {
        self.inner.discard_copy(done);
    }
    fn append_copy(&self, batches: Vec<Bytes>, done: Done) {
        self.inner.append_copy(batches, done);
    }
}

/// Ids of the logs that hold copies.
fn copies(journal: &Journal) -> usize {
    journal.logs().iter().filter(|log| log.name.id >> 63 == 1).count()
}

#[test]
fn a_reader_of_the_old_generation_goes_on_and_then_it_is_deleted() {
    let journal = journal(Arc::new(MemoryFiles::new()), 64);
    let store = JournalStore::new(&journal, "topic").expect("a namespace");
    let inner = store.partition(0).expect("a partition");
    let gate = Arc::new(Mutex::new(None));
    let store = Gated { inner, gate: Arc::clone(&gate) };
    let mut config = fast();
    config.tail_cache_bytes = 0;
    let partition = Partition::open(store, config).expect("it opens");
    let mut now = 0;
    let mut fill = |partition: &Partition, rounds: u64| {
        for at in 0..rounds {
            let records = [put("a", &format!("{at}")), put(&format!("k{at}"), "x")];
            drop(partition.append(batch(&records, None), Durability::Synced));
            work(&journal, &mut now);
        }
    };
    fill(&partition, 20);
    now_or_work(&journal, partition.compact(policy(0, 0), 0)).expect("it is compacted");
    assert_eq!(copies(&journal), 1);
    let before = found(&partition);
    // A reader has looked up a position of the first generation and is about to read there.
    let (open, reads) = mpsc::channel();
    let (arrived, arrivals) = mpsc::channel();
    *gate.lock() = Some(Gate { reads: Arc::new(Mutex::new(reads)), arrived });
    let reading = {
        let partition = partition.clone();
        std::thread::spawn(move || partition.fetch(0, usize::MAX))
    };
    arrivals.recv().expect("it is about to read");
    for _ in 0..2 {
        fill(&partition, 20);
        now_or_work(&journal, partition.compact(policy(0, 0), 0)).expect("it is compacted");
        let mut now = 1 << 40;
        work(&journal, &mut now);
    }
    assert_eq!(copies(&journal), 3, "both replaced generations wait for the reader");
    open.send(()).expect("it waits");
    let fetched = reading.join().expect("it ends").expect("what it looked up is there");
    let read = fetched.records(MAX_UNPACKED_BYTES).map(|record| record.expect("a record"));
    let read: Vec<Found> = read.map(|record| (record.offset, record.key, record.value)).collect();
    assert_eq!(read[..], before[..read.len()]);
    assert!(read.len() >= 20, "{} records", read.len());
    let mut now = 1 << 41;
    work(&journal, &mut now);
    assert_eq!(copies(&journal), 1, "then they are deleted");
    check_every_offset(&partition);
    // The parts of the uncompacted log that are in the copy have been released as well.
    let log = journal.log("topic", 0).expect("a log");
    assert_eq!(log.first(), partition_position(&journal));
}

/// Where the copy of the partition ends.
fn partition_position(journal: &Journal) -> u64 {
    journal.log("topic", 0).expect("a log").end() - 1
}

#[test]
fn a_release_during_a_compaction_is_not_undone() {
    let journal = journal(Arc::new(MemoryFiles::new()), 64);
    let partition = support::partition(&journal, fast());
    let mut now = 0;
    for at in 0..30 {
        let records = [put(&format!("k{}", at % 20), &format!("{at}"))];
        drop(partition.append(batch(&records, None), Durability::Synced));
        work(&journal, &mut now);
    }
    let mut compacting = Box::pin(partition.compact(policy(0, 0), 0));
    assert!(poll(&mut compacting).is_none(), "it has begun");
    let mut releasing = Box::pin(partition.release_before(15));
    assert!(poll(&mut releasing).is_none());
    work(&journal, &mut now);
    assert_eq!(poll(&mut releasing), Some(Ok(15)));
    let done = now_or_work(&journal, compacting).expect("it begins again");
    assert_eq!((done.rounds, done.compacted_offset), (1, 29));
    assert_eq!(partition.offsets(), 15..30);
    assert_eq!(offsets(&partition), (15..30).collect::<Vec<_>>());
    check_every_offset(&partition);
}

/// Whatever the compaction is doing when the release is looked up: what is before it goes, what is
/// behind it stays.
#[test]
fn a_release_at_any_moment_of_a_compaction_lets_go_of_what_is_before_it() {
    for steps in 0..10 {
        let journal = journal(Arc::new(MemoryFiles::new()), 64);
        let partition = support::partition(&journal, fast());
        let (mut now, mut sent) = (0, Vec::new());
        for at in 0..60 {
            let key = if at % 3 == 0 { format!("k{at}") } else { format!("k{}", at % 5) };
            sent.push(put(&key, &format!("{at}")));
            let sent = batch(&sent[at..], None);
            drop(partition.append(sent, Durability::Synced));
            work(&journal, &mut now);
        }
        let mut compacting = Box::pin(partition.compact(policy(0, 0), 0));
        let mut done = poll(&mut compacting);
        for _ in 0..steps {
            work(&journal, &mut now);
            if done.is_none() {
                done = poll(&mut compacting);
            }
        }
        let releasing = partition.release_before(30);
        assert_eq!(now_or_work(&journal, releasing), Ok(30), "after {steps} steps");
        let done = done.unwrap_or_else(|| now_or_work(&journal, compacting));
        let compacted_offset = done.expect("it is compacted").compacted_offset;
        let mut expected = model(&sent, compacted_offset);
        expected.retain(|(offset, ..)| *offset >= 30);
        assert_eq!(found(&partition), expected, "after {steps} steps");
        assert_eq!(partition.offsets(), 30..60);
        check_every_offset(&partition);
    }
}

#[test]
fn a_release_ends_at_a_batch_or_in_a_gap() {
    let partition = in_memory();
    for at in 0..10 {
        append(&partition, &[put(if at % 3 == 0 { "kept" } else { "gone" }, &format!("{at}"))]);
        append(&partition, &[put(&format!("k{at}"), "x")]);
    }
    compact(&partition, policy(0, 0), 0);
    let all = offsets(&partition);
    for upto in 0..20 {
        let start = ready(partition.release_before(upto)).expect("released");
        assert_eq!((start, partition.offsets().start), (upto, upto), "each batch is a record");
        let left: Vec<u64> = all.iter().copied().filter(|offset| *offset >= upto).collect();
        assert_eq!(offsets(&partition), left);
        check_every_offset(&partition);
    }
}

#[test]
fn a_full_store_is_left_as_it_was() {
    let store = MemoryPartition::new(3_000);
    let partition = Partition::open(store, fast()).expect("it opens");
    let value = "x".repeat(100);
    for at in 0..12 {
        append(&partition, &[put(&format!("k{}", at % 11), &value)]);
    }
    let before = found(&partition);
    let mut compacting = Box::pin(partition.compact(policy(0, 0), 0));
    let result = (0..100).find_map(|_| poll(&mut compacting)).expect("it ends");
    assert!(matches!(result, Err(FetchError::Store(StoreError::Full { .. }))), "{result:?}");
    assert!(result.expect_err("full").is_retryable());
    drop(compacting);
    assert_eq!(found(&partition), before);
    append(&partition, &[put("after", "the copy's room is free again")]);
    ready(partition.release_before(8)).expect("released");
    assert_eq!(compact(&partition, policy(0, 0), 0).removed_records, 0);
    assert_eq!(offsets(&partition), [8, 9, 10, 11, 12]);
}

#[test]
fn a_batch_that_cannot_be_unpacked_is_an_error_and_nothing_is_removed() {
    let partition = in_memory();
    append(&partition, &[put("a", "1")]);
    // A batch whose packed records are no gzip, with the checksum of its bytes.
    let mut builder = BatchBuilder::new().compression(Compression::Gzip);
    builder.push(&put("b", &"y".repeat(100))).expect("it fits");
    let mut bytes = builder.finish().expect("a batch").bytes().to_vec();
    bytes[61..].fill(0);
    let crc = crc_fast::crc32_iscsi(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    let damaged = Batch::decode(bytes.into()).expect("what is inside is not looked at");
    ready(partition.append(damaged, Durability::Synced)).expect("it is appended");
    append(&partition, &[put("a", "2")]);
    append(&partition, &[put("end", "")]);
    let mut compacting = Box::pin(partition.compact(policy(0, 0), 0));
    let result = (0..100).find_map(|_| poll(&mut compacting)).expect("it ends");
    let expected = matches!(result, Err(FetchError::Undecodable { offset: 1, next_offset: 2, .. }));
    assert!(expected, "{result:?}");
    drop(compacting);
    assert!(partition.fetch(0, 1).is_ok() && partition.stats().compacted_offset == 0);
    ready(partition.release_before(2)).expect("released");
    compact(&partition, policy(0, 0), 0);
    assert_eq!(offsets(&partition), [2, 3]);
}

#[test]
fn one_compaction_at_a_time_and_a_dropped_one_leaves_nothing() {
    let journal = journal(Arc::new(MemoryFiles::new()), 64);
    let partition = support::partition(&journal, fast());
    let mut now = 0;
    for at in 0..30 {
        drop(partition.append(batch(&[put("a", &format!("{at}"))], None), Durability::Synced));
        work(&journal, &mut now);
    }
    // Dropped after each number of steps, also while its last write is on its way.
    for steps in 0..8 {
        drop(partition.append(batch(&[put("a", "more")], None), Durability::Synced));
        work(&journal, &mut now);
        let mut compacting = Box::pin(partition.compact(policy(0, 0), 0));
        for _ in 0..=steps {
            if poll(&mut compacting).is_some() {
                break;
            }
            let busy = ready(partition.compact(policy(0, 0), 0));
            assert!(matches!(busy, Err(FetchError::Store(StoreError::Busy { .. }))), "{busy:?}");
            work(&journal, &mut now);
        }
        drop(compacting);
        work(&journal, &mut now);
        check_every_offset(&partition);
    }
    now_or_work(&journal, partition.compact(policy(0, 0), 0)).expect("none is under way");
    let end = partition.offsets().end;
    assert_eq!(offsets(&partition), [end - 2, end - 1]);
    work(&journal, &mut now);
    assert_eq!(copies(&journal), 1);
    drop(partition);
    let partition = support::partition(&journal, fast());
    assert_eq!(offsets(&partition), [end - 2, end - 1]);
}

fn queue(journal: &Journal) -> Queue {
    let mut config = small();
    config.partition.max_compaction_bytes_per_second = u64::MAX;
    Queue::open(journal, "q", config).expect("the queue opens")
}

fn compacted_topic() -> TopicConfig {
    let mut config = TopicConfig::partitions(1);
    config.compaction = Some(policy(0, 0));
    config
}

fn send(journal: &Journal, queue: &Queue, records: impl IntoIterator<Item = Record>) {
    let topic = queue.topic("t").expect("a topic");
    let mut config = ProducerConfig::default();
    config.delivery_timeout = None;
    let producer = now_or_work(journal, queue.producer(config)).expect("a producer");
    for record in records {
        now_or_work(journal, producer.send(&topic, record)).expect("it is sent");
    }
}

/// quix-streams#1017, redpanda#24187: who waited for an offset that compaction had taken waited for
/// ever. druid#16689: the lag of a group was never 0.
#[tokio::test(start_paused = true)]
async fn a_group_in_a_gap_catches_up_and_a_session_sees_it() {
    let journal = journal(Arc::new(MemoryFiles::new()), 64);
    let queue = queue(&journal);
    now_or_work(&journal, queue.create_topic("t", compacted_topic())).expect("created");
    send(&journal, &queue, (0..20).map(|at| put("a", &format!("{at}"))));
    // The group has stored an offset whose record goes, and a session has written one that does.
    let read = |max: usize| {
        let mut config = ConsumerConfig::group("g", ["t"]);
        config.max_poll_records = max;
        queue.consumer(config).expect("a consumer")
    };
    let mut consumer = read(5);
    let polled = now_or_work(&journal, consumer.poll(Duration::from_secs(1))).expect("a poll");
    assert_eq!(polled.records.len(), 5);
    now_or_work(&journal, consumer.close()).expect("stored");
    let mut token = SessionToken::new();
    let place = TopicPartition::new("t", 0);
    queue.add_to_token(&mut token, &place, 12).expect("it is there");
    assert_eq!(now_or_work(&journal, queue.apply_compaction(0)), []);
    let partition = queue.topic("t").expect("a topic").partition(0).expect("one");
    assert_eq!(offsets(&partition), [18, 19]);
    assert!(!queue.has_read("g", &token));
    let mut consumer = read(500);
    let polled = now_or_work(&journal, consumer.poll(Duration::from_secs(1))).expect("a poll");
    let read: Vec<u64> = polled.records.iter().map(|record| record.record.offset).collect();
    assert_eq!(read, [18, 19]);
    now_or_work(&journal, consumer.close()).expect("stored");
    let lags = queue.lag("g").expect("offsets are stored");
    assert_eq!(lags.iter().map(voussoir_queue::Lag::offsets).sum::<u64>(), 0);
    assert!(queue.has_read("g", &token), "the record of the session is among those it is past");
}

#[tokio::test(start_paused = true)]
async fn a_work_queue_is_done_where_records_were_removed() {
    let journal = journal(Arc::new(MemoryFiles::new()), 64);
    let queue = queue(&journal);
    now_or_work(&journal, queue.create_topic("t", compacted_topic())).expect("created");
    send(&journal, &queue, (0..30).map(|at| put(&format!("k{}", at % 3), &format!("{at}"))));
    assert_eq!(now_or_work(&journal, queue.apply_compaction(0)), []);
    let mut config = WorkConfig::default();
    (config.max_records, config.max_dead_letters) = (50, 20);
    let work_queue = queue.work_queue("t", 0, "workers", config).expect("a work queue");
    let mut got = Vec::new();
    for _ in 0..4 {
        let receiving = work_queue.receive(1, Duration::from_secs(60));
        for delivery in now_or_work(&journal, receiving).expect("received") {
            got.push(delivery.record.offset);
            now_or_work(&journal, work_queue.ack(&delivery.receipt)).expect("settled");
        }
    }
    assert_eq!(got, [26, 27, 28, 29]);
    assert_eq!(work_queue.stats().floor, 30, "offsets without a record hold nothing up");
}

/// A transaction is memory until it commits: compaction sees all of it, or nothing.
#[tokio::test(start_paused = true)]
async fn an_open_or_aborted_transaction_removes_nothing() {
    let journal = journal(Arc::new(MemoryFiles::new()), 64);
    let queue = queue(&journal);
    now_or_work(&journal, queue.create_topic("t", compacted_topic())).expect("created");
    let topic = queue.topic("t").expect("a topic");
    let partition = topic.partition(0).expect("one");
    send(&journal, &queue, [put("a", "kept"), put("b", "1"), put("b", "2"), put("end", "")]);
    let making = queue.transactional("t");
    let mut producer = now_or_work(&journal, making).expect("a producer");
    let mut aborted = producer.begin();
    aborted.send(&topic, 0, &put("a", "aborted")).expect("it fits");
    now_or_work(&journal, partition.compact(policy(0, 0), 0)).expect("it is compacted");
    assert_eq!(offsets(&partition), [0, 2, 3]);
    aborted.abort();
    let mut open = producer.begin();
    open.send(&topic, 0, &put("a", "committed")).expect("it fits");
    send(&journal, &queue, [put("c", "1"), put("c", "2"), put("end", "")]);
    now_or_work(&journal, partition.compact(policy(0, 0), 0)).expect("it is compacted");
    assert_eq!(offsets(&partition), [0, 2, 3, 5, 6], "the open one has not replaced anything");
    now_or_work(&journal, open.commit()).expect("committed");
    send(&journal, &queue, [put("end", "")]);
    now_or_work(&journal, partition.compact(policy(0, 0), 0)).expect("it is compacted");
    assert_eq!(offsets(&partition), [2, 5, 6, 7, 8]);
    let values: BTreeMap<_, _> =
        found(&partition).into_iter().map(|(_, key, value)| (key, value)).collect();
    assert_eq!(values[&Some("a".into())], Some("committed".into()));
}

/// A log from elsewhere may have batches with Kafka's marks of transactions: without the markers of
/// its broker nobody knows what became of them.
#[test]
fn compaction_stops_before_a_batch_of_a_transaction() {
    let store = MemoryPartition::new(64 << 20);
    let mut base_offset = 0_u64;
    let records = [("a", "1"), ("a", "2"), ("b", "1"), ("a", "open"), ("b", "2"), ("end", "")];
    let batches = records.iter().map(|(key, value)| {
        let mut bytes = batch(&[put(key, value)], None).bytes().to_vec();
        bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
        if *value == "open" {
            bytes[22] |= 1 << 4;
            let crc = crc_fast::crc32_iscsi(&bytes[21..]);
            bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        }
        base_offset += 1;
        Bytes::from(bytes)
    });
    let mut write = Write::default();
    write.batches = batches.collect();
    store.submit(write, Done::new(|result| result.expect("it is written")));
    let partition = Partition::open(store, fast()).expect("it opens");
    let done = compact(&partition, policy(0, 0), 0);
    assert_eq!((done.compacted_offset, done.removed_records), (3, 1));
    assert_eq!(offsets(&partition), [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_policy_outlives_a_restart_and_goes_with_its_topic() {
    let journal = journal(Arc::new(MemoryFiles::new()), 64);
    let mut config = compacted_topic();
    config.retention = Retention::default();
    config.retention.max_age = Some(Duration::from_secs(10));
    {
        let queue = queue(&journal);
        now_or_work(&journal, queue.create_topic("t", config)).expect("created");
        let plain = queue.create_topic("plain", TopicConfig::default());
        now_or_work(&journal, plain).expect("created");
        let records = (0..40).map(|at| put("a", &format!("{at}")).timestamp(at * 1_000));
        send(&journal, &queue, records);
    }
    let queue = queue(&journal);
    assert_eq!(queue.topic("t").expect("a topic").config(), config);
    assert_eq!(queue.topic("plain").expect("a topic").config(), TopicConfig::default());
    let partition = queue.topic("t").expect("a topic").partition(0).expect("one");
    assert_eq!(now_or_work(&journal, queue.apply_retention(30_000)), []);
    assert_eq!(partition.offsets(), 20..40);
    assert_eq!(now_or_work(&journal, queue.apply_compaction(30_000)), []);
    assert_eq!((offsets(&partition), partition.offsets()), (vec![38, 39], 20..40));
    let before = journal.stats().commits;
    send(&journal, &queue, [put("a", "40").timestamp(40_000)]);
    let sent = journal.stats().commits - before;
    assert_eq!(now_or_work(&journal, queue.apply_compaction(30_000)), []);
    let commits = journal.stats().commits - before - sent;
    assert!(commits > 0, "most of what is left has not been compacted");
    assert_eq!(now_or_work(&journal, queue.apply_retention(100_000)), []);
    assert_eq!(partition.offsets(), 41..41, "compacted records are released as others are");
    send(&journal, &queue, [put("a", "41"), put("a", "42"), put("end", "")]);
    now_or_work(&journal, partition.compact(policy(0, 0), 0)).expect("it is compacted");
    // A compaction is under way when its topic goes.
    send(&journal, &queue, [put("a", "43"), put("end", "")]);
    let mut compacting = Box::pin(partition.compact(policy(0, 0), 0));
    assert!(poll(&mut compacting).is_none());
    let mut now = 1 << 42;
    work(&journal, &mut now);
    assert!(copies(&journal) >= 1);
    now_or_work(&journal, queue.delete_topic("t")).expect("deleted");
    let result = now_or_work(&journal, compacting);
    assert!(matches!(result, Err(FetchError::Store(_) | FetchError::Closed)), "{result:?}");
    work(&journal, &mut now);
    assert_eq!(copies(&journal), 0, "the copies go with the topic");
}

#[tokio::test(start_paused = true)]
async fn a_compaction_keeps_to_its_bytes_per_second() {
    let mut config = fast();
    config.max_compaction_bytes_per_second = 10_000;
    let partition = Partition::open(MemoryPartition::new(64 << 20), config).expect("it opens");
    for at in 0..100 {
        append(&partition, &[put("a", &"x".repeat(900)).timestamp(at)]);
    }
    append(&partition, &[put("end", "")]);
    let began = tokio::time::Instant::now();
    partition.compact(policy(0, 0), 0).await.expect("it is compacted");
    let seconds = began.elapsed().as_secs();
    // 100 batches of about 980 bytes, read twice.
    assert!((18..22).contains(&seconds), "{seconds} s");
    assert_eq!(offsets(&partition), [99, 100]);
}
