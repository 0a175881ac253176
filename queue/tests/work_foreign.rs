//! Work queues over batches of other producers: what is stored as it is cannot always be written
//! again, or read.

mod support;

use std::time::Duration;

use support::{batch, one};
use voussoir_queue::store::MemoryPartition;
use voussoir_queue::work::{DeathReason, Delivery, MemoryWork, WorkConfig, WorkError, WorkQueue};
use voussoir_queue::{Batch, Bytes, Config, Durability, Partition, Record};

const NO_WAIT: Duration = Duration::ZERO;
/// Where the fields of a batch's header begin.
const ATTRIBUTES_AT: usize = 21;
const BASE_TIMESTAMP_AT: usize = 27;
const MAX_TIMESTAMP_AT: usize = 35;
const HEADER_BYTES: usize = 61;
const LOG_APPEND_TIME: u8 = 8;

fn source() -> Partition {
    Partition::open(MemoryPartition::new(64 << 20), Config::default()).expect("it opens")
}

fn open(source: &Partition, store: &MemoryWork) -> WorkQueue {
    let mut config = WorkConfig::default();
    (config.max_deliveries, config.min_backoff) = (2, NO_WAIT);
    WorkQueue::open(source.clone(), store.clone(), config).expect("the work queue opens")
}

async fn append(source: &Partition, batch: Batch) {
    source.append(batch, Durability::Synced).await.expect("it is appended");
}

async fn receive(work: &WorkQueue) -> Vec<Delivery> {
    work.receive(10, NO_WAIT).await.expect("it receives")
}

fn values(deliveries: &[Delivery]) -> Vec<&[u8]> {
    deliveries.iter().map(|delivery| delivery.record.value.as_deref().unwrap_or(b"-")).collect()
}

/// The batch that another producer makes of the edited bytes: its length and checksum are right.
fn foreign(batch: &Batch, edit: impl FnOnce(&mut Vec<u8>)) -> Batch {
    let mut bytes = batch.bytes().to_vec();
    edit(&mut bytes);
    let counted = u32::try_from(bytes.len() - 12).expect("a small batch");
    bytes[8..12].copy_from_slice(&counted.to_be_bytes());
    let crc = u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[21..]));
    bytes[17..21].copy_from_slice(&crc.expect("32 bits").to_be_bytes());
    Batch::decode(Bytes::from(bytes)).expect("another producer's batch is taken")
}

fn put(bytes: &mut [u8], at: usize, value: i64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

#[tokio::test(start_paused = true)]
async fn a_record_from_before_1970_becomes_a_dead_letter() {
    let (source, store) = (source(), MemoryWork::new());
    let created = foreign(&one("created"), |bytes| put(bytes, BASE_TIMESTAMP_AT, -5));
    let appended = foreign(&one("appended"), |bytes| {
        bytes[ATTRIBUTES_AT + 1] |= LOG_APPEND_TIME;
        put(bytes, MAX_TIMESTAMP_AT, -2);
    });
    append(&source, created).await;
    append(&source, appended).await;
    append(&source, one("good")).await;
    let work = open(&source, &store);
    let first = receive(&work).await;
    assert_eq!(values(&first), [&b"created"[..], b"appended", b"good"]);
    work.reject(&first[0].receipt, "bad").await.expect("it becomes a dead letter");
    work.nack(&first[1].receipt, None).await.expect("the lease runs");
    // Another life lets the second one run out of deliveries.
    drop(work);
    let work = open(&source, &store);
    let second = receive(&work).await;
    assert_eq!(values(&second), [&b"appended"[..], b"good"]);
    drop(work);
    let work = open(&source, &store);
    assert!(receive(&work).await.is_empty(), "both are out of deliveries");
    let letters = work.dead_letters(0, 10).expect("they can be read");
    let timestamps: Vec<i64> = letters.iter().map(|letter| letter.record.timestamp).collect();
    assert_eq!(timestamps, [-5, -2, -1]);
    assert_eq!(letters[1].reason, DeathReason::MaxDeliveries);
    work.redrive(1).await.expect("it is listed");
    assert_eq!(receive(&work).await[0].record.timestamp, -2);
}

/// The batch of one record without a key, compressed by another producer.
#[cfg(feature = "gzip")]
fn compressed(value: &[u8]) -> Batch {
    use std::io::Write;

    const GZIP: u8 = 1;
    /// A length as a varint of four bytes.
    fn length(bytes: usize) -> [u8; 4] {
        let bits = bytes << 1;
        let part = |at: usize| u8::try_from(bits >> (7 * at) & 0x7f).expect("7 bits") | 0x80;
        [part(0), part(1), part(2), part(3) & 0x7f]
    }
    // Attributes, timestamp, offset, no key, the value, no headers.
    let body = [&[0, 0, 0, 1][..], &length(value.len()), value, &[0]].concat();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&length(body.len())).expect("it takes bytes");
    encoder.write_all(&body).expect("it takes bytes");
    let packed = encoder.finish().expect("it ends");
    foreign(&one("x"), |bytes| {
        bytes.truncate(HEADER_BYTES);
        bytes.extend_from_slice(&packed);
        bytes[ATTRIBUTES_AT + 1] |= GZIP;
    })
}

#[cfg(feature = "gzip")]
#[tokio::test(start_paused = true)]
async fn a_record_that_is_too_large_for_a_dead_letter_says_so_and_stops_nothing() {
    let (source, store) = (source(), MemoryWork::new());
    append(&source, compressed(&vec![b'x'; 3 << 20])).await;
    append(&source, one("good")).await;
    let work = open(&source, &store);
    for deliveries in 1..=4 {
        let both = receive(&work).await;
        let large = both.iter().find(|delivery| delivery.record.offset == 0).expect("delivered");
        assert_eq!(large.deliveries, deliveries, "also beyond max_deliveries");
        let refused = work.reject(&large.receipt, "bad").await;
        assert_eq!(refused, Err(WorkError::CannotDie { offset: 0 }));
        for good in both.iter().filter(|delivery| delivery.record.offset == 1) {
            work.ack(&good.receipt).await.expect("the work queue goes on");
        }
        work.nack(&large.receipt, None).await.expect("its lease goes on");
        let late = work.reject(&large.receipt, "bad").await;
        assert_eq!(late, Err(WorkError::LeaseLost { offset: 0 }));
    }
    assert_eq!((work.stats().dead_letters, work.stats().acked), (0, 1));
}

/// A batch of three records that says lz4 and is not.
#[cfg(feature = "lz4")]
fn garbage() -> Batch {
    const LZ4: u8 = 3;
    let records = [Record::new("x"), Record::new("y"), Record::new("z")];
    foreign(&batch(&records, None), |bytes| bytes[ATTRIBUTES_AT + 1] |= LZ4)
}

#[cfg(feature = "lz4")]
#[tokio::test(start_paused = true)]
async fn a_batch_that_cannot_be_unpacked_is_skipped_and_counted() {
    for before in [0, 1, 4] {
        let (source, store) = (source(), MemoryWork::new());
        for _ in 0..before {
            append(&source, one("good")).await;
        }
        append(&source, garbage()).await;
        append(&source, one("behind")).await;
        append(&source, garbage()).await;
        let work = open(&source, &store);
        let mut all = receive(&work).await;
        all.extend(receive(&work).await);
        assert_eq!(all.len(), before + 1);
        assert_eq!(all[before].record.value.as_deref(), Some(&b"behind"[..]));
        for delivery in &all {
            work.ack(&delivery.receipt).await.expect("the lease runs");
        }
        let stats = work.stats();
        assert_eq!((stats.skipped, stats.lag), (6, 0), "{stats:?}");
        append(&source, one("later")).await;
        assert_eq!(values(&receive(&work).await), [b"later"]);
    }
}

#[cfg(not(feature = "zstd"))]
#[tokio::test(start_paused = true)]
async fn a_batch_whose_codec_is_missing_is_not_skipped() {
    use voussoir_queue::FetchError;

    const ZSTD: u8 = 4;
    let (source, store) = (source(), MemoryWork::new());
    append(&source, one("good")).await;
    let records = [Record::new("x"), Record::new("y")];
    append(&source, foreign(&batch(&records, None), |bytes| bytes[ATTRIBUTES_AT + 1] |= ZSTD))
        .await;
    let work = open(&source, &store);
    assert_eq!(values(&receive(&work).await), [b"good"]);
    let error = work.receive(10, NO_WAIT).await.expect_err("nothing is skipped");
    let WorkError::Source(FetchError::Undecodable { offset, next_offset, .. }) = error else {
        panic!("{error}");
    };
    assert_eq!((offset, next_offset, work.stats().skipped), (1, 3, 0));
}
