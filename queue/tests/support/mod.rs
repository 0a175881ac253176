//! What the tests of partitions share.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use voussoir_journal::{Config, Files, Journal};
use voussoir_queue::format::MAX_UNPACKED_BYTES;
use voussoir_queue::store::JournalStore;
use voussoir_queue::{Batch, BatchBuilder, Partition, Record};

/// For the small segments of the tests' journals.
pub(crate) fn small() -> voussoir_queue::QueueConfig {
    let mut config = voussoir_queue::QueueConfig::default();
    config.partition.max_producers = 10;
    config.partition.max_index_entries = 10;
    config
}

/// Polls a future once.
pub(crate) fn poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// A future that is ready by now.
pub(crate) fn ready<F: Future>(future: F) -> F::Output {
    poll(&mut Box::pin(future)).expect("it is ready")
}

/// A journal of small segments that is moved by hand.
pub(crate) fn journal(files: Arc<dyn Files>, segments: u64) -> Journal {
    let mut config = Config::manual();
    config.segment_bytes = 64 << 10;
    config.max_bytes = segments * config.segment_bytes;
    config.identity = Some(7);
    Journal::open_with(files, config).expect("the journal opens")
}

pub(crate) fn partition(journal: &Journal, config: voussoir_queue::Config) -> Partition {
    let store = JournalStore::new(journal, "topic").expect("a namespace");
    let store = store.partition(0).expect("a partition");
    Partition::open(store, config).expect("the partition opens")
}

/// Lets the journal do what it has to do.
pub(crate) fn work(journal: &Journal, now: &mut u64) {
    // Ends: the journal is idle when everything is written and marked.
    for _ in 0..1_000 {
        *now += 200_000;
        if journal.work(*now) == voussoir_journal::Work::Idle {
            return;
        }
    }
    panic!("the journal is never idle");
}

pub(crate) fn batch(records: &[Record], producer: Option<(i64, i16, i32)>) -> Batch {
    let mut builder = BatchBuilder::new();
    if let Some((id, epoch, sequence)) = producer {
        builder = builder.producer(id, epoch, sequence);
    }
    for record in records {
        builder.push(record).expect("there is room");
    }
    builder.finish().expect("a batch")
}

pub(crate) fn one(value: &str) -> Batch {
    batch(&[Record::new(value.to_owned())], None)
}

/// All records from the start of the partition on, read in steps of `max_bytes`.
pub(crate) fn read_all(partition: &Partition, max_bytes: usize) -> Vec<Record> {
    let mut records = Vec::new();
    let mut offset = partition.offsets().start;
    // Ends: each fetch before the end returns a batch.
    while offset < partition.offsets().end {
        let fetched = partition.fetch(offset, max_bytes).expect("it can be read");
        let read = fetched.records(MAX_UNPACKED_BYTES);
        records.extend(read.map(|record| record.expect("a record")));
        assert!(fetched.next_offset > offset, "a fetch at {offset} returned nothing");
        offset = fetched.next_offset;
    }
    records
}

/// The first record at `offset` or behind it, as a reader finds it that reads one batch at a time.
pub(crate) fn first_at(partition: &Partition, mut offset: u64) -> Option<Record> {
    // Ends: each fetch before the end leads on. A batch may have lost the records that are wanted.
    while offset < partition.offsets().end {
        let fetched = partition.fetch(offset, 1).expect("it can be read");
        assert!(fetched.next_offset > offset, "a reader at {offset} goes on");
        if let Some(record) = fetched.records(MAX_UNPACKED_BYTES).next() {
            return Some(record.expect("a record"));
        }
        offset = fetched.next_offset;
    }
    None
}

/// Lets the journal work until the future is ready.
pub(crate) fn now_or_work<F: Future>(journal: &Journal, future: F) -> F::Output {
    let mut future = Box::pin(future);
    let mut now = 1;
    // Ends: what waits for the journal is ready after a few of its writes.
    for _ in 0..100 {
        if let Some(output) = poll(&mut future) {
            return output;
        }
        work(journal, &mut now);
    }
    panic!("the future is never ready");
}
