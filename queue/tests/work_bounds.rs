//! What a work queue writes fits into a write of its store, and what it holds into its limits.

mod support;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::{batch, poll};
use voussoir_queue::store::{BATCH_OVERHEAD_BYTES, Done, MemoryPartition};
use voussoir_queue::work::{
    Delivery, MemoryWork, StoredLetter, WorkConfig, WorkError, WorkQueue, WorkStore, WorkWrite,
};
use voussoir_queue::{Bytes, Config, Durability, OpenError, Partition, Record, StoreError};

const NO_WAIT: Duration = Duration::ZERO;

/// A store that rejects writes above a limit, as a journal of small segments does.
#[derive(Clone, Debug)]
struct SmallStore {
    inner: MemoryWork,
    max: usize,
    /// Bytes of the largest write so far.
    largest: Arc<AtomicUsize>,
}

impl SmallStore {
    fn new(max: usize) -> Self {
        Self { inner: MemoryWork::new(), max, largest: Arc::default() }
    }
}

impl WorkStore for SmallStore {
    fn bounds(&self) -> Range<u64> {
        self.inner.bounds()
    }

    fn read(&self, range: Range<u64>, max: usize) -> Result<Vec<Bytes>, StoreError> {
        self.inner.read(range, max)
    }

    fn letters(&self) -> Range<u64> {
        self.inner.letters()
    }

    fn letter(&self, id: u64) -> Result<StoredLetter, StoreError> {
        self.inner.letter(id)
    }

    fn max_write_bytes(&self) -> usize {
        self.max
    }

    fn submit(&self, write: WorkWrite, done: Done) {
        let letters = write.letters.iter().flat_map(|letter| [&letter.batch, &letter.cause]);
        let parts = letters.chain(&write.checkpoint).chain([&write.events]);
        let bytes = parts.map(|part| part.len() + BATCH_OVERHEAD_BYTES).sum();
        self.largest.fetch_max(bytes, Ordering::Relaxed);
        if bytes > self.max {
            let why = format!("the write has {bytes} bytes, at most {}", self.max);
            return done.complete(Err(StoreError::Rejected { why }));
        }
        self.inner.submit(write, done);
    }
}

fn config() -> WorkConfig {
    let mut config = WorkConfig::default();
    (config.max_deliveries, config.min_backoff) = (1, NO_WAIT);
    (config.max_records, config.max_dead_letters, config.checkpoint_every) = (40, 40, 1);
    config
}

fn source() -> Partition {
    Partition::open(MemoryPartition::new(64 << 20), Config::default()).expect("it opens")
}

async fn append(source: &Partition, records: &[Record]) {
    source.append(batch(records, None), Durability::Synced).await.expect("it is appended");
}

async fn receive(work: &WorkQueue, max: usize) -> Vec<Delivery> {
    work.receive(max, NO_WAIT).await.expect("it receives")
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_fits_beside_a_checkpoint_or_is_refused() {
    const MAX: usize = 16_384;
    let (mut died, mut refused) = (0, 0);
    for bytes in (200..MAX).step_by(500) {
        let (source, store) = (source(), SmallStore::new(MAX));
        let work = WorkQueue::open(source.clone(), store.clone(), config()).expect("it opens");
        // Every second record is acknowledged, the rest marked: a large checkpoint.
        append(&source, &vec![Record::new("x"); 39]).await;
        append(&source, &[Record::new("x".repeat(bytes))]).await;
        let all = receive(&work, 40).await;
        for delivery in all.iter().skip(1).step_by(2).filter(|it| it.record.offset < 39) {
            work.ack(&delivery.receipt).await.expect("the lease runs");
        }
        let last = &all[39].receipt;
        match work.reject(last, "bad").await {
            Ok(()) => died += 1,
            Err(WorkError::CannotDie { offset: 39 }) => {
                refused += 1;
                work.ack(last).await.expect("its lease goes on");
            }
            Err(error) => panic!("a record of {bytes} bytes: {error}"),
        }
        assert!(store.largest.load(Ordering::Relaxed) <= MAX, "{bytes}");
        // Checkpoints have a quarter of a write here, events at most a quarter of the rest.
        assert!(refused == 0 || bytes > 7_000, "{bytes} bytes are refused");
    }
    assert!(died > 10 && refused > 0, "{died} died, {refused} were refused");
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_leaves_room_for_what_the_higher_one_left() {
    let (source, store) = (source(), SmallStore::new(30_000));
    let mut high = config();
    (high.max_records, high.max_deliveries) = (150, 1_000);
    append(&source, &[Record::new("x".repeat(4_100))]).await;
    append(&source, &vec![Record::new("x"); 149]).await;
    let work = WorkQueue::open(source.clone(), store.clone(), high).expect("it opens");
    let all = receive(&work, 150).await;
    for delivery in all.iter().skip(1).step_by(2) {
        work.ack(&delivery.receipt).await.expect("the lease runs");
    }
    drop(work);

    // The journal has smaller segments now, and the work queue lower limits.
    let mut low = config();
    (low.max_records, low.max_dead_letters, low.max_deliveries) = (1, 1, 1_000);
    let small = SmallStore { max: 8_000, ..store.clone() };
    let work = WorkQueue::open(source.clone(), small.clone(), low.clone()).expect("it opens");
    let large = receive(&work, 1).await.remove(0);
    let result = work.reject(&large.receipt, &"y".repeat(1_024)).await;
    assert_eq!(result, Err(WorkError::CannotDie { offset: 0 }));
    work.ack(&large.receipt).await.expect("its lease goes on");
    assert_eq!(receive(&work, 1).await.len(), 1);
    drop(work);

    // There is not even room for what is left of the checkpoint.
    let small = SmallStore { max: 4_000, ..store };
    let error = WorkQueue::open(source, small, low).expect_err("its checkpoint has no room");
    assert!(matches!(error, OpenError::Config(_)), "{error}");
}

/// A redrive takes its record into memory beside those of the source.
#[tokio::test(start_paused = true)]
async fn redriven_dead_letters_are_bounded_in_bytes() {
    let (source, store) = (source(), MemoryWork::new());
    let mut config = config();
    config.max_bytes = 40_000;
    let work = WorkQueue::open(source.clone(), store.clone(), config.clone()).expect("it opens");
    for _ in 0..10 {
        append(&source, &[Record::new("x".repeat(15_000))]).await;
        let delivery = receive(&work, 1).await.remove(0);
        work.reject(&delivery.receipt, "bad").await.expect("there is room");
    }
    let over = Err(WorkError::TooManyRedriven { limit: 40 });
    assert_eq!((work.redrive(0).await, work.redrive(1).await), (Ok(()), Ok(())));
    assert_eq!(work.redrive(2).await, over);
    assert!(work.stats().bytes <= 40_000, "{:?}", work.stats());
    drop(work);

    // They count after a restart too, until they are acknowledged.
    config.max_bytes = 1;
    let work = WorkQueue::open(source, store, config).expect("it opens");
    assert_eq!(work.redrive(2).await, over);
    for delivery in receive(&work, 2).await {
        assert_eq!(work.redrive(2).await, over, "another one is in memory");
        work.ack(&delivery.receipt).await.expect("the lease runs");
    }
    assert_eq!(work.redrive(2).await, Ok(()), "one is taken whatever its size");
    assert_eq!(work.redrive(3).await, over);
    // Polled once only: it is answered at once.
    let mut purging = Box::pin(work.purge(3));
    assert_eq!(poll(&mut purging), Some(Ok(())));
}
