//! A partition in memory and in a journal: what is promised, one test for each promise.

mod support;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use support::{batch, journal, one, partition, poll, read_all, ready, work};
use voussoir_journal::MemoryFiles;
use voussoir_queue::format::FormatError;
use voussoir_queue::store::{
    Done, JournalStore, MemoryPartition, PartitionLog, PartitionStore, Write,
};
use voussoir_queue::{
    Bytes, Config, Durability, FetchError, OpenError, Outcome, Partition, ProduceError, Record,
    Retention, Seek, StoreError,
};

fn in_memory() -> Partition {
    Partition::open(MemoryPartition::new(64 << 20), Config::default()).expect("it opens")
}

/// What fits into a journal of small segments.
fn small() -> Config {
    let mut config = Config::default();
    (config.max_producers, config.max_index_entries) = (10, 16);
    config
}

fn append(partition: &Partition, value: &str) -> u64 {
    ready(partition.append(one(value), Durability::Synced)).expect("it is appended").base_offset
}

fn values(records: Vec<Record>) -> Vec<String> {
    let text = |record: Record| String::from_utf8(record.value.expect("a value").to_vec());
    records.into_iter().map(|record| text(record).expect("text")).collect()
}

/// Holds writes back until the test lets them go.
#[derive(Clone, Debug)]
struct Held {
    inner: MemoryPartition,
    held: Arc<Mutex<Vec<(Write, Done)>>>,
}

impl Held {
    fn new() -> Self {
        Self { inner: MemoryPartition::new(64 << 20), held: Arc::default() }
    }

    fn take(&self) -> Vec<(Write, Done)> {
        std::mem::take(&mut *self.held.lock())
    }

    /// Lets the write that is held go on.
    fn let_go(&self) {
        for (write, done) in self.take() {
            self.inner.submit(write, done);
        }
    }
}

impl PartitionStore for Held {
    fn log(&self) -> Arc<dyn PartitionLog> {
        self.inner.log()
    }
    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        self.inner.snapshot()
    }
    fn max_write_bytes(&self) -> usize {
        self.inner.max_write_bytes()
    }
    fn submit(&self, write: Write, done: Done) {
        self.held.lock().push((write, done));
    }
}

fn held() -> (Held, Partition) {
    let store = Held::new();
    let partition = Partition::open(store.clone(), Config::default()).expect("it opens");
    (store, partition)
}

#[test]
fn batches_are_in_the_order_of_the_calls() {
    let (store, partition) = held();
    let mut first = partition.append(one("a"), Durability::Synced);
    let mut others: Vec<_> =
        ["b", "c", "d"].map(|value| partition.append(one(value), Durability::Buffered)).into();
    assert!(poll(&mut first).is_none());
    assert_eq!(partition.offsets(), 0..0, "nothing is shown before it is acknowledged");
    let writes = store.held.lock().len();
    assert_eq!(writes, 1, "one write at a time");
    store.let_go();
    assert_eq!(poll(&mut first).map(|answer| answer.expect("appended").base_offset), Some(0));
    let batches: Vec<usize> = store.held.lock().iter().map(|held| held.0.batches.len()).collect();
    assert_eq!(batches, [3], "what has waited shares a write");
    store.let_go();
    let offsets =
        others.iter_mut().map(|other| poll(other).expect("written").map(|a| a.base_offset));
    assert_eq!(offsets.collect::<Result<Vec<_>, _>>(), Ok(vec![1, 2, 3]));
    assert_eq!(values(read_all(&partition, 1)), ["a", "b", "c", "d"]);
}

#[test]
fn a_dropped_append_goes_on() {
    let (store, partition) = held();
    drop(partition.append(one("a"), Durability::Synced));
    drop(partition.append(one("b"), Durability::Synced));
    store.let_go();
    store.let_go();
    assert_eq!(values(read_all(&partition, 1)), ["a", "b"]);
    assert_eq!(partition.stats().pending_bytes, 0);
}

/// A sequence that is recorded before its batch is durable makes the retry a duplicate of nothing.
#[test]
fn a_write_that_fails_is_not_remembered() {
    let (store, partition) = held();
    let sent = batch(&[Record::new("a")], Some((7, 0, 0)));
    let mut answer = partition.append(sent.clone(), Durability::Synced);
    let mut next =
        partition.append(batch(&[Record::new("b")], Some((7, 0, 1))), Durability::Synced);
    let (_, done) = store.take().pop().expect("a write");
    done.complete(Err(StoreError::Full { why: "test".to_owned() }));
    let error = poll(&mut answer).expect("answered").expect_err("it failed");
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, true));
    let gap = ProduceError::OutOfOrder { id: 7, expected: 0, found: 1 };
    assert_eq!(poll(&mut next), Some(Err(gap)), "nothing goes in without what was before it");
    let mut again = partition.append(sent, Durability::Synced);
    store.let_go();
    let appended = poll(&mut again).expect("answered").expect("it is appended");
    assert!(!appended.is_duplicate && appended.base_offset == 0);
}

#[test]
fn a_repeated_batch_waits_for_its_first_attempt() {
    let (store, partition) = held();
    let sent = batch(&[Record::new("a"), Record::new("b")], Some((7, 0, 0)));
    let mut first = partition.append(sent.clone(), Durability::Buffered);
    let mut second = partition.append(sent.clone(), Durability::Buffered);
    assert!(poll(&mut second).is_none(), "the first attempt is on its way");
    store.let_go();
    assert!(!poll(&mut first).expect("answered").expect("appended").is_duplicate);
    let repeated = poll(&mut second).expect("answered").expect("it was appended");
    assert!(repeated.is_duplicate && (repeated.base_offset, repeated.last_offset) == (0, 1));
    // Asked for more than the first attempt was given.
    let mut synced = partition.append(sent.clone(), Durability::Synced);
    assert!(poll(&mut synced).is_none(), "it is not synced yet");
    let durability: Vec<Durability> = store.held.lock().iter().map(|h| h.0.durability).collect();
    assert_eq!(durability, [Durability::Synced]);
    store.let_go();
    assert!(poll(&mut synced).expect("answered").expect("it was appended").is_duplicate);
    assert!(ready(partition.append(sent, Durability::Synced)).expect("at once").is_duplicate);
    assert_eq!(partition.offsets(), 0..2);
}

#[test]
fn a_store_that_drops_a_write_stops_the_partition() {
    let (store, partition) = held();
    append_and_let_go(&store, &partition, "kept");
    let mut answer = partition.append(one("lost"), Durability::Synced);
    let mut queued = partition.append(one("queued"), Durability::Synced);
    let mut reader = partition.wait_for(1);
    assert!(poll(&mut reader).is_none());
    drop(store.take());
    let error = poll(&mut answer).expect("answered").expect_err("nobody knows");
    assert_eq!(error.outcome(), Outcome::Unknown);
    let error = poll(&mut queued).expect("answered").expect_err("it was never written");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert_eq!(poll(&mut reader), Some(Err(FetchError::Closed)));
    let later = ready(partition.append(one("later"), Durability::Synced));
    assert!(matches!(later, Err(ProduceError::Store(StoreError::Stopped { .. }))));
    assert_eq!(values(read_all(&partition, 1)), ["kept"], "reading goes on");
    assert_eq!(partition.stats().pending_bytes, 0);
}

fn append_and_let_go(store: &Held, partition: &Partition, value: &str) {
    let mut answer = partition.append(one(value), Durability::Synced);
    store.let_go();
    poll(&mut answer).expect("answered").expect("it is appended");
}

#[test]
fn a_store_that_panics_leaves_the_partition_stopped() {
    #[derive(Debug)]
    struct Panics(MemoryPartition);
    impl PartitionStore for Panics {
        fn log(&self) -> Arc<dyn PartitionLog> {
            self.0.log()
        }
        fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
            self.0.snapshot()
        }
        fn max_write_bytes(&self) -> usize {
            self.0.max_write_bytes()
        }
        fn submit(&self, _: Write, _: Done) {
            panic!("a store that panics");
        }
    }
    let store = Panics(MemoryPartition::new(1 << 20));
    let partition = Partition::open(store, Config::default()).expect("it opens");
    let call = || drop(partition.append(one("a"), Durability::Synced));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err());
    let later = ready(partition.append(one("b"), Durability::Synced));
    assert!(matches!(later, Err(ProduceError::Store(StoreError::Stopped { .. }))), "{later:?}");
}

/// KAFKA-7190: producer state that goes with retention makes a producer unknown.
#[test]
fn producer_state_outlives_retention() {
    let journal = journal(Arc::new(MemoryFiles::new()), 8);
    let mut now = 0;
    for (sequence, round) in (0..).zip(0..5_u64) {
        let partition = partition(&journal, small());
        let sent = batch(&[Record::new("a")], Some((7, 0, sequence)));
        let mut answer = partition.append(sent.clone(), Durability::Synced);
        work(&journal, &mut now);
        poll(&mut answer).expect("answered").expect("its producer is known");
        let mut releasing = Box::pin(partition.release_before(u64::MAX));
        assert!(poll(&mut releasing).is_none());
        work(&journal, &mut now);
        assert_eq!(poll(&mut releasing), Some(Ok(round + 1)));
        assert_eq!(partition.offsets(), round + 1..round + 1);
        let repeated = ready(partition.append(sent, Durability::Synced)).expect("it is known");
        assert!(repeated.is_duplicate && repeated.base_offset == round);
    }
}

/// A full store takes a release and has no room for a snapshot.
#[test]
fn a_full_store_can_be_released() {
    let store = Held::new();
    let mut config = Config::default();
    config.snapshot_every = 2;
    let partition = Partition::open(store.clone(), config.clone()).expect("it opens");
    for value in ["a", "b", "c", "d"] {
        append_and_let_go(&store, &partition, value);
    }
    let full = || Err(StoreError::Full { why: "test".to_owned() });
    let mut releasing = Box::pin(partition.release_before(4));
    assert!(poll(&mut releasing).is_none());
    let (write, done) = store.take().pop().expect("a write");
    assert!(write.snapshot.is_some(), "it goes beyond the last snapshot, of two batches");
    done.complete(full());
    let (write, done) = store.take().pop().expect("a second attempt");
    assert_eq!((write.snapshot.is_some(), write.release), (false, Some(2)));
    store.inner.submit(write, done);
    assert_eq!(poll(&mut releasing), Some(Ok(2)));
    assert_eq!(values(read_all(&partition, 1)), ["c", "d"]);
    // What was released without a snapshot is gone after a restart too.
    let reopened = Partition::open(store.inner.clone(), config).expect("it opens again");
    assert_eq!(reopened.offsets(), 2..4);
    assert_eq!(values(read_all(&reopened, 1)), ["c", "d"]);
    // Nothing more can go: now the caller is told.
    let mut releasing = Box::pin(partition.release_before(4));
    assert!(poll(&mut releasing).is_none());
    let (_, done) = store.take().pop().expect("a write");
    done.complete(full());
    assert!(matches!(poll(&mut releasing), Some(Err(FetchError::Store(StoreError::Full { .. })))));
    append_and_let_go(&store, &partition, "e");
}

#[test]
fn readers_are_woken_by_offset() {
    struct Counts(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let partition = in_memory();
    let mut readers: Vec<_> = [2, 0, 1].map(|offset| partition.wait_for(offset)).into();
    let wakes: Vec<_> =
        (0..3).map(|_| Arc::new(Counts(std::sync::atomic::AtomicUsize::default()))).collect();
    for (reader, wake) in readers.iter_mut().zip(&wakes) {
        let waker = std::task::Waker::from(Arc::clone(wake));
        let mut context = std::task::Context::from_waker(&waker);
        let polled = std::pin::Pin::new(reader).poll(&mut context);
        assert!(polled.is_pending());
    }
    use std::future::Future;
    let woken = || -> Vec<usize> {
        wakes.iter().map(|w| w.0.load(std::sync::atomic::Ordering::Relaxed)).collect()
    };
    append(&partition, "0");
    assert_eq!(woken(), [0, 1, 0], "only the reader of offset 0");
    append(&partition, "1");
    assert_eq!(woken(), [0, 1, 1]);
    assert_eq!(partition.stats().waiters, 1);
    drop(readers);
    assert_eq!(partition.stats().waiters, 0, "a dropped reader gives its place back");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_waits_no_longer_than_it_was_told() {
    let partition = in_memory();
    let started = tokio::time::Instant::now();
    let wait = Duration::from_millis(300);
    let fetched = partition.fetch_wait(0, 1_000, wait).await.expect("nothing is wrong");
    assert!(fetched.batches.is_empty() && fetched.next_offset == 0);
    assert_eq!(started.elapsed(), wait);
    let writer = partition.clone();
    let writing = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        writer.append(one("a"), Durability::Synced).await
    });
    let fetched = partition.fetch_wait(0, 1_000, Duration::from_secs(60)).await.expect("a record");
    assert_eq!(fetched.next_offset, 1);
    assert_eq!(started.elapsed(), wait + Duration::from_millis(10));
    writing.await.expect("it ran").expect("it is appended");
    let beyond = partition.fetch(2, 1);
    assert_eq!(beyond.err(), Some(FetchError::OutOfRange { offset: 2, start: 0, end: 1 }));
}

#[test]
fn what_cannot_be_appended_is_a_typed_error() {
    let mut config = Config::default();
    config.max_pending_bytes = 1 << 20;
    let store = Held::new();
    let partition = Partition::open(store.clone(), config).expect("it opens");
    let mut control = one("a").bytes().to_vec();
    control[22] |= 1 << 5;
    let mut transactional = one("a").bytes().to_vec();
    transactional[22] |= 1 << 4;
    for (mut bytes, what) in [(control, "control"), (transactional, "transactional")] {
        let crc = crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        let sent = voussoir_queue::Batch::decode(bytes.into()).expect("a batch");
        let result = ready(partition.append(sent, Durability::Synced));
        assert_eq!(result, Err(ProduceError::Unsupported { what }));
    }
    let large = batch(&[Record::new(vec![0; 600_000])], None);
    let _first = partition.append(large.clone(), Durability::Synced);
    let second = ready(partition.append(large, Durability::Synced));
    assert!(matches!(second, Err(ProduceError::Busy { limit: 1_048_576, .. })), "{second:?}");
    assert_eq!(partition.stats().rejected, 3);
    // A journal of small segments takes smaller batches.
    let journal = journal(Arc::new(MemoryFiles::new()), 8);
    let partition = support::partition(&journal, small());
    let large = batch(&[Record::new(vec![0; 60_000])], None);
    let result = ready(partition.append(large, Durability::Synced));
    assert!(
        matches!(result, Err(ProduceError::Format(FormatError::TooLarge { .. }))),
        "{result:?}"
    );
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[test]
fn retention_by_size_and_by_age() {
    let journal = journal(Arc::new(MemoryFiles::new()), 32);
    let mut now = 0;
    let partition = partition(&journal, small());
    for at in 0..100_i64 {
        let record = Record::new(vec![b'x'; 4_000]).timestamp(1_000 + at);
        let mut answer = partition.append(batch(&[record], None), Durability::Synced);
        work(&journal, &mut now);
        poll(&mut answer).expect("answered").expect("it is appended");
    }
    let mut retention = Retention::default();
    assert_eq!(partition.retention_offset(retention, 2_000), Ok(0));
    retention.max_age = Some(Duration::from_millis(960));
    assert_eq!(partition.retention_offset(retention, 2_000), Ok(40));
    retention.max_bytes = Some(100_000);
    let keep_from = partition.retention_offset(retention, 2_000).expect("it can be read");
    assert!((60..=75).contains(&keep_from), "{keep_from}");
    let mut releasing = Box::pin(partition.release_before(keep_from));
    assert!(poll(&mut releasing).is_none());
    work(&journal, &mut now);
    assert_eq!(poll(&mut releasing), Some(Ok(keep_from)));
    assert!(
        (100_000..180_000).contains(&partition.stats().stored_bytes),
        "{:?}",
        partition.stats()
    );
    assert_eq!(partition.seek(Seek::Earliest), Ok(keep_from));
    assert_eq!(partition.seek(Seek::Offset(0)), Ok(keep_from));
    assert_eq!(partition.seek(Seek::Timestamp(0)), Ok(keep_from));
    assert_eq!(partition.seek(Seek::Timestamp(1_090)), Ok(90));
    assert_eq!(partition.seek(Seek::Latest), Ok(100));
    let gone = partition.fetch(0, 1).expect_err("it was released");
    assert_eq!(gone, FetchError::OutOfRange { offset: 0, start: keep_from, end: 100 });
}

/// A record without a timestamp has no age.
#[test]
fn retention_by_age_keeps_what_has_no_timestamp() {
    let partition = in_memory();
    for record in [Record::new("old").timestamp(1), Record::new("timeless")] {
        ready(partition.append(batch(&[record], None), Durability::Synced)).expect("appended");
    }
    let mut retention = Retention::default();
    retention.max_age = Some(Duration::from_secs(1));
    assert_eq!(partition.retention_offset(retention, 1_000_000), Ok(1));
}

#[test]
fn retention_by_size_works_in_memory() {
    let partition = in_memory();
    for _ in 0..10 {
        let record = Record::new(vec![b'x'; 1_000]);
        ready(partition.append(batch(&[record], None), Durability::Synced)).expect("appended");
    }
    let mut retention = Retention::default();
    retention.max_bytes = Some(3_000);
    assert_eq!(partition.retention_offset(retention, 0), Ok(7));
    assert_eq!(ready(partition.release_before(7)), Ok(7));
}

/// What a buffered answer says is in the store holds: a reader sees it at once, and the batch of a
/// full journal is answered as rejected and given to no other.
#[test]
fn a_buffered_batch_is_in_the_store_when_it_is_answered() {
    let journal = journal(Arc::new(MemoryFiles::new()), 8);
    let mut now = 0;
    let mut config = small();
    config.tail_cache_bytes = 0;
    let partition = partition(&journal, config);
    let (mut answered, mut rejected) = (0, 0);
    for at in 0..200_u64 {
        let record = Record::new(vec![at as u8; 4_000]);
        let mut answer = partition.append(batch(&[record], None), Durability::Buffered);
        let early = poll(&mut answer);
        work(&journal, &mut now);
        let is_early = early.is_some();
        match early.or_else(|| poll(&mut answer)).expect("answered") {
            Ok(appended) => {
                assert!(!is_early, "answered before the journal has written it");
                assert_eq!(appended.base_offset, answered);
                let fetched = partition.fetch(appended.base_offset, 1).expect("it can be read");
                assert_eq!(fetched.batches.len(), 1);
                answered += 1;
            }
            Err(ProduceError::Store(StoreError::Full { .. })) => rejected += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(answered > 20 && rejected > 20, "{answered} answered, {rejected} rejected");
    assert_eq!(partition.offsets(), 0..answered);
}

/// Snapshots follow on bytes too: a store that is filled by few large batches can be released.
#[test]
fn a_journal_that_is_full_of_large_batches_can_be_released() {
    let journal = journal(Arc::new(MemoryFiles::new()), 24);
    let mut now = 0;
    let partition = partition(&journal, small());
    let mut appended = 0;
    // Ends: the journal has 24 segments.
    loop {
        let record = Record::new(vec![b'x'; 8_000]);
        let mut answer = partition.append(batch(&[record], None), Durability::Synced);
        work(&journal, &mut now);
        match poll(&mut answer).expect("answered") {
            Ok(_) => appended += 1,
            Err(ProduceError::Store(StoreError::Full { .. })) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let mut releasing = Box::pin(partition.release_before(appended));
    assert!(poll(&mut releasing).is_none());
    work(&journal, &mut now);
    let start = poll(&mut releasing).expect("answered").expect("something is released");
    assert!(start > appended / 2, "{start} of {appended}");
}

#[test]
fn a_store_with_something_else_in_it_does_not_open() {
    let store = MemoryPartition::new(1 << 20);
    let mut write = Write::default();
    write.batches = vec![Bytes::from_static(b"something else")];
    store.submit(write, Done::new(|result| result.expect("it is written")));
    let opened = Partition::open(store, Config::default());
    assert!(matches!(opened, Err(OpenError::Damaged { position: 0, .. })), "{opened:?}");
    let store = MemoryPartition::new(1 << 20);
    let mut write = Write::default();
    write.snapshot = Some(Bytes::from_static(b"\x02"));
    store.submit(write, Done::new(|result| result.expect("it is written")));
    let opened = Partition::open(store, Config::default());
    assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{opened:?}");
}

/// Limits that were lowered hold from the opening on.
#[test]
fn a_state_above_lower_limits_is_trimmed() {
    let store = MemoryPartition::new(1 << 20);
    let mut config = Config::default();
    config.snapshot_every = 1;
    let partition = Partition::open(store.clone(), config.clone()).expect("it opens");
    for id in 0..20 {
        let sent = batch(&[Record::new("a")], Some((id, 0, 0)));
        ready(partition.append(sent, Durability::Synced)).expect("it is appended");
    }
    (config.max_producers, config.max_index_entries) = (3, 2);
    let partition = Partition::open(store, config).expect("it opens again");
    assert_eq!(partition.stats().producers, 3);
    let latest = batch(&[Record::new("a")], Some((19, 0, 0)));
    assert!(ready(partition.append(latest, Durability::Synced)).expect("known").is_duplicate);
    let oldest = batch(&[Record::new("a")], Some((0, 0, 0)));
    let forgotten = ready(partition.append(oldest, Durability::Synced));
    assert_eq!(forgotten, Err(ProduceError::UnknownProducer { id: 0 }));
    assert_eq!(read_all(&partition, 1).len(), 20);
}

/// A snapshot that does not fit into a write would fail the first release.
#[test]
fn limits_that_the_store_cannot_keep_do_not_open() {
    let journal = journal(Arc::new(MemoryFiles::new()), 8);
    let store = JournalStore::new(&journal, "topic").expect("a namespace");
    let opened = Partition::open(store.partition(0).expect("a partition"), Config::default());
    assert!(matches!(opened, Err(OpenError::Config(_))), "{opened:?}");
}

#[test]
fn one_queue_has_a_namespace() {
    let journal = journal(Arc::new(MemoryFiles::new()), 8);
    let store = JournalStore::new(&journal, "topic").expect("it is free");
    let partition = store.partition(3).expect("a partition");
    drop(store);
    let second = JournalStore::new(&journal, "topic");
    assert!(matches!(second, Err(StoreError::Rejected { .. })), "a partition is still there");
    drop(partition);
    JournalStore::new(&journal, "topic").expect("it is free again");
}

/// Between the answers to a write of unknown outcome and the end of the partition: a caller that
/// goes on in its waker, or another thread, must not get the same offsets again.
#[test]
fn nothing_is_written_between_an_unknown_outcome_and_the_stop() {
    struct GoesOn {
        partition: Partition,
        is_release: bool,
        answers: Mutex<Vec<ProduceError>>,
        releases: Mutex<Vec<Result<u64, FetchError>>>,
    }
    impl std::task::Wake for GoesOn {
        fn wake(self: Arc<Self>) {
            if self.is_release {
                let released = poll(&mut Box::pin(self.partition.release_before(1)));
                self.releases.lock().extend(released);
                return;
            }
            let answer = poll(&mut self.partition.append(one("later"), Durability::Synced));
            self.answers.lock().extend(answer.and_then(Result::err));
        }
    }
    for is_release in [false, true] {
        let (store, partition) = held();
        append_and_let_go(&store, &partition, "kept");
        let mut answer = partition.append(one("a"), Durability::Synced);
        let mut queued = partition.append(one("queued"), Durability::Synced);
        let goes_on = Arc::new(GoesOn {
            partition: partition.clone(),
            is_release,
            answers: Mutex::default(),
            releases: Mutex::default(),
        });
        let waker = std::task::Waker::from(Arc::clone(&goes_on));
        let mut context = std::task::Context::from_waker(&waker);
        assert!(Future::poll(std::pin::Pin::new(&mut answer), &mut context).is_pending());
        drop(store.take());
        assert!(store.take().is_empty(), "nothing is submitted after an unknown outcome");
        assert!(poll(&mut answer).expect("answered").is_err());
        assert!(poll(&mut queued).expect("answered").is_err());
        let (answers, releases) = (goes_on.answers.lock(), goes_on.releases.lock());
        let stopped = if is_release {
            matches!(releases[..], [Err(FetchError::Store(StoreError::Stopped { .. }))])
        } else {
            matches!(answers[..], [ProduceError::Store(StoreError::Stopped { .. })])
        };
        assert!(stopped, "{answers:?} {releases:?}");
    }
}
