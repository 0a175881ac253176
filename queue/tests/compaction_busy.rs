//! Compaction in a store that is busy now and then.

mod support;

use std::sync::Arc;

use parking_lot::Mutex;
use support::{batch, read_all, ready};
use voussoir_queue::store::{Done, MemoryPartition, PartitionLog, PartitionStore, Write};
use voussoir_queue::{Bytes, Compaction, Config, Durability, Partition, Record, StoreError};

/// A store that is busy every other time that it is asked, as a journal is under load.
#[derive(Debug)]
struct Busy {
    inner: MemoryPartition,
    asked: Mutex<u32>,
}

impl Busy {
    fn is_busy(&self) -> bool {
        let mut asked = self.asked.lock();
        *asked += 1;
        *asked % 2 == 1
    }
}

fn busy(done: Done) {
    done.complete(Err(StoreError::Busy { why: "test".to_owned() }));
}

impl PartitionStore for Busy {
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
        if write.replace.is_some() && self.is_busy() {
            return busy(done);
        }
        self.inner.submit(write, done);
    }
    fn discard_copy(&self, done: Done) {
        if self.is_busy() { busy(done) } else { self.inner.discard_copy(done) }
    }
    fn append_copy(&self, batches: Vec<Bytes>, done: Done) {
        if self.is_busy() { busy(done) } else { self.inner.append_copy(batches, done) }
    }
}

/// Under load a journal is busy now and then: a copy that is given up for it is never finished.
#[tokio::test(start_paused = true)]
async fn a_busy_store_does_not_end_a_compaction() {
    let store = Busy { inner: MemoryPartition::new(64 << 20), asked: Mutex::new(0) };
    let mut config = Config::default();
    config.max_compaction_bytes_per_second = u64::MAX;
    let partition = Partition::open(store, config).expect("it opens");
    let put = |key: String, value: String| Record::new(value).key(key);
    let append = |records: &[Record]| {
        let appending = partition.append(batch(records, None), Durability::Synced);
        ready(appending).expect("it is appended");
    };
    for at in 0..40 {
        append(&[put("a".into(), at.to_string()), put(format!("k{at}"), "x".repeat(50_000))]);
    }
    append(&[put("end".into(), String::new())]);
    let mut policy = Compaction::default();
    policy.min_lag = std::time::Duration::ZERO;
    let done = partition.compact(policy, 0).await.expect("it is compacted");
    assert_eq!((done.rounds, done.removed_records), (1, 39));
    assert_eq!(read_all(&partition, 1 << 20).len(), 42);
}
