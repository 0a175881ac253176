//! The batches of this crate and those of `kafka-protocol`, read by each other, field by field; and
//! bytes that are no batch.

use bytes::{Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records as kafka;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use voussoir_queue::format::{
    Batch, BatchBuilder, Compression, FormatError, HEADER_BYTES, MAX_BATCH_BYTES,
    MAX_UNPACKED_BYTES, NO_TIMESTAMP, Record, RecordHeader, TimestampType,
};
use voussoir_sim::Situations;

/// The codecs whose features are on.
fn codecs() -> Vec<Compression> {
    let on = |codec: &Compression| match codec {
        Compression::None => true,
        Compression::Gzip => cfg!(feature = "gzip"),
        Compression::Snappy => cfg!(feature = "snappy"),
        Compression::Lz4 => cfg!(feature = "lz4"),
        Compression::Zstd => cfg!(feature = "zstd"),
    };
    Compression::ALL.into_iter().filter(on).collect()
}

fn theirs(codec: Compression) -> kafka::Compression {
    match codec {
        Compression::None => kafka::Compression::None,
        Compression::Gzip => kafka::Compression::Gzip,
        Compression::Snappy => kafka::Compression::Snappy,
        Compression::Lz4 => kafka::Compression::Lz4,
        Compression::Zstd => kafka::Compression::Zstd,
    }
}

fn ours(records: &[Record], codec: Compression, producer: Option<(i64, i16, i32)>) -> Batch {
    let mut builder = BatchBuilder::new().compression(codec);
    if let Some((id, epoch, sequence)) = producer {
        builder = builder.producer(id, epoch, sequence);
    }
    for record in records {
        builder.push(record).expect("there is room");
    }
    builder.finish().expect("a batch")
}

fn unpacked(batch: &Batch) -> Vec<Record> {
    let records = batch.records(MAX_UNPACKED_BYTES).expect("they unpack");
    records.collect::<Result<_, _>>().expect("each record")
}

/// The record as `kafka-protocol` has it.
fn to_theirs(
    record: &Record,
    at: usize,
    (id, epoch, sequence): (i64, i16, i32),
    log_append: bool,
) -> kafka::Record {
    let mut headers = IndexMap::new();
    for header in &record.headers {
        headers.insert(StrBytes::from_string(header.key().to_owned()), header.value().cloned());
    }
    kafka::Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: id,
        producer_epoch: epoch,
        timestamp_type: if log_append {
            kafka::TimestampType::LogAppend
        } else {
            kafka::TimestampType::Creation
        },
        offset: i64::try_from(at).expect("small"),
        // They count on from -1 as well.
        sequence: sequence.wrapping_add(i32::try_from(at).expect("small")),
        timestamp: record.timestamp,
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
    }
}

fn block() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
        1 => (0..200_u8, 0..90_000_usize).prop_map(|(byte, len)| Bytes::from(vec![byte; len])),
    ]
}

fn record() -> impl Strategy<Value = Record> {
    let headers = prop::collection::btree_map("[a-zé]{0,6}", prop::option::of(block()), 0..4);
    let timestamp = prop_oneof![Just(0), Just(1_700_000_000_000), 0..i64::from(u32::MAX) * 1000];
    (prop::option::of(block()), prop::option::of(block()), headers, timestamp).prop_map(
        |(key, value, headers, timestamp)| {
            let mut record = Record::new(Bytes::new()).timestamp(timestamp);
            (record.key, record.value) = (key, value);
            let headers = headers.into_iter();
            record.headers = headers.map(|(key, value)| RecordHeader::new(&key, value)).collect();
            record
        },
    )
}

#[derive(Clone, Debug)]
struct Case {
    records: Vec<Record>,
    codec: Compression,
    producer: (i64, i16, i32),
}

fn case() -> impl Strategy<Value = Case> {
    let producer = prop_oneof![
        Just((-1, -1, -1)),
        (0..i64::MAX, 0..i16::MAX, 0..1_000_000_i32).prop_map(|(id, epoch, at)| (id, epoch, at)),
    ];
    let records = prop::collection::vec(record(), 1..8);
    (records, prop::sample::select(codecs()), producer)
        .prop_map(|(records, codec, producer)| Case { records, codec, producer })
}

static BOTH_WAYS: [&str; 6] = [
    "a tombstone",
    "a record without a key",
    "a header without a value",
    "timestamps that go back",
    "a batch of more than 64 KiB",
    "an idempotent producer",
];

fn note(case: &Case, situations: &Situations) {
    let count = |is: &dyn Fn(&Record) -> bool| case.records.iter().filter(|r| is(r)).count() as u64;
    situations.add("a tombstone", count(&|record| record.value.is_none()));
    situations.add("a record without a key", count(&|record| record.key.is_none()));
    let bare = |record: &Record| record.headers.iter().any(|header| header.value().is_none());
    situations.add("a header without a value", count(&bare));
    let back = case.records.windows(2).filter(|two| two[1].timestamp < two[0].timestamp);
    situations.add("timestamps that go back", back.count() as u64);
    situations.add("an idempotent producer", u64::from(case.producer.0 >= 0));
    let bytes = |block: &Option<Bytes>| block.as_ref().map_or(0, Bytes::len);
    let bytes: usize = case.records.iter().map(|r| bytes(&r.key) + bytes(&r.value)).sum();
    situations.add("a batch of more than 64 KiB", u64::from(bytes > 64 << 10));
}

#[test]
fn a_kafka_client_reads_our_batches_and_we_read_theirs() {
    let situations = Situations::new(&BOTH_WAYS);
    let config = Config { failure_persistence: None, ..Config::with_cases(400) };
    let result = TestRunner::new(config).run(&case(), |case| {
        note(&case, &situations);
        let Case { records, codec, producer } = &case;
        let expected: Vec<kafka::Record> = records
            .iter()
            .enumerate()
            .map(|(at, record)| to_theirs(record, at, *producer, false))
            .collect();

        let batch = ours(records, *codec, (producer.0 >= 0).then_some(*producer));
        let mut bytes = batch.bytes().clone();
        let read = kafka::RecordBatchDecoder::decode(&mut bytes).expect("they read ours");
        prop_assert_eq!(read.compression, theirs(*codec));
        prop_assert_eq!(&read.records, &expected);

        let mut bytes = BytesMut::new();
        let options = kafka::RecordEncodeOptions { version: 2, compression: theirs(*codec) };
        kafka::RecordBatchEncoder::encode(&mut bytes, &expected, &options).expect("they write");
        let decoded = Batch::decode(bytes.freeze()).expect("we read theirs");
        let header = decoded.header();
        prop_assert_eq!(header.compression, *codec);
        prop_assert_eq!(header.count as usize, records.len());
        let fields = (header.producer_id, header.producer_epoch, header.base_sequence);
        prop_assert_eq!(fields, *producer);
        // The base timestamp is that of the first record, and in their encoder the smallest one;
        // every reader takes both.
        let first = records[0].timestamp;
        prop_assert_eq!(batch.header().base_timestamp, first);
        let is_rising = records.iter().all(|record| record.timestamp >= first);
        prop_assert_eq!(header.max_timestamp, batch.header().max_timestamp);
        for (at, (mut read, sent)) in unpacked(&decoded).into_iter().zip(records).enumerate() {
            prop_assert_eq!(read.offset, at as u64);
            read.offset = sent.offset;
            prop_assert_eq!(&read, sent);
        }
        if codec == &Compression::None && is_rising {
            prop_assert_eq!(decoded.bytes(), batch.bytes(), "the same bytes");
        }
        Ok(())
    });
    result.expect("both agree");
    situations.assert_all_reached();
}

/// Pins the format: these bytes are on disks.
#[test]
fn golden_bytes() {
    let records = [
        Record::new("v").key("k").timestamp(1_700_000_000_000).header("h", "1"),
        Record::tombstone("k").timestamp(1_700_000_000_001),
    ];
    let batch = ours(&records, Compression::None, Some((7, 1, 3)));
    let golden = concat!(
        "0000000000000000", // base offset
        "00000046",         // bytes that follow
        "ffffffff",         // leader epoch
        "02",               // magic
        "CRCCRCCR",         // checksum
        "0000",             // attributes
        "00000001",         // last offset delta
        "0000018bcfe56800", // base timestamp
        "0000018bcfe56801", // largest timestamp
        "0000000000000007", // producer id
        "0001",             // producer epoch
        "00000003",         // base sequence
        "00000002",         // records
        "18000000026b02760202680231",
        "0e000202026b0100",
    );
    let crc = format!("{:08x}", batch.header().crc);
    let hex = batch.bytes().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    assert_eq!(hex, golden.replace("CRCCRCCR", &crc));
    assert_eq!(crc, "db64ca19");
    assert_eq!(Batch::decode(batch.bytes().clone()), Ok(batch));
}

/// The batch with some bytes replaced, and the checksum as it should be.
fn forged(batch: &Batch, at: usize, bytes: &[u8]) -> Bytes {
    let mut forged = batch.bytes().to_vec();
    forged[at..at + bytes.len()].copy_from_slice(bytes);
    with_crc(forged)
}

/// CRC-32C, one bit at a time.
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

fn with_crc(mut bytes: Vec<u8>) -> Bytes {
    let crc = crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

fn field(forged: Bytes) -> &'static str {
    match Batch::decode(forged) {
        Err(FormatError::Header { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_batch_is_a_typed_error() {
    let records = [Record::new("a").timestamp(5), Record::new("b").timestamp(9)];
    let batch = ours(&records, Compression::None, None);
    let whole = batch.bytes();
    for end in 0..whole.len() {
        let result = Batch::decode(whole.slice(..end));
        assert!(matches!(result, Err(FormatError::Truncated { .. })), "{end}: {result:?}");
        assert_eq!(Batch::decode_first(&mut whole.slice(..end)), Ok(None), "{end}");
    }
    let mut longer = whole.to_vec();
    longer.push(0);
    assert_eq!(Batch::decode(longer.into()), Err(FormatError::Trailing { bytes: 1 }));
    assert_eq!(Batch::decode(forged(&batch, 16, &[1])), Err(FormatError::Magic { found: 1 }));
    // Each bit under the checksum.
    for bit in 21 * 8..whole.len() * 8 {
        let mut flipped = whole.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let result = Batch::decode(flipped.into());
        assert!(matches!(result, Err(FormatError::Crc { .. } | FormatError::Header { .. })));
    }
    let huge = forged(&batch, 8, &i32::MAX.to_be_bytes());
    assert!(matches!(Batch::decode(huge), Err(FormatError::TooLarge { .. })));
    assert_eq!(field(forged(&batch, 8, &(-1_i32).to_be_bytes())), "length");
    assert_eq!(field(forged(&batch, 8, &48_i32.to_be_bytes())), "length");
    assert_eq!(field(forged(&batch, 0, &(-1_i64).to_be_bytes())), "base offset");
    assert_eq!(field(forged(&batch, 0, &i64::MAX.to_be_bytes())), "base offset");
    assert_eq!(field(forged(&batch, 22, &[5])), "codec");
    assert_eq!(field(forged(&batch, 23, &(-1_i32).to_be_bytes())), "last offset delta");
    assert_eq!(field(forged(&batch, 35, &8_i64.to_be_bytes())), "max timestamp");
    assert_eq!(field(forged(&batch, 43, &(-2_i64).to_be_bytes())), "producer id");
    assert_eq!(field(forged(&batch, 43, &1_i64.to_be_bytes())), "producer epoch");
    for count in [-1, 0, 1, 3, i32::MAX] {
        assert_eq!(field(forged(&batch, 57, &i32::to_be_bytes(count))), "count", "{count}");
    }
    // Count and last offset agree with each other, and not with the records.
    let mut more = whole.to_vec();
    more[23..27].copy_from_slice(&2_i32.to_be_bytes());
    more[57..61].copy_from_slice(&3_i32.to_be_bytes());
    let result = Batch::decode(with_crc(more));
    assert!(matches!(result, Err(FormatError::Record { index: 2, .. })), "{result:?}");
    let mut fewer = whole.to_vec();
    fewer[23..27].copy_from_slice(&0_i32.to_be_bytes());
    fewer[57..61].copy_from_slice(&1_i32.to_be_bytes());
    let result = Batch::decode(with_crc(fewer));
    assert!(matches!(result, Err(FormatError::Trailing { .. })), "{result:?}");
    assert_eq!(
        BatchBuilder::new().finish().err().map(|e| matches!(e, FormatError::Header { .. })),
        Some(true)
    );
}

/// Any bytes behind a correct header: an error or records, no panic, no allocation by a length.
#[test]
fn no_body_makes_the_decoder_panic() {
    let config = Config { failure_persistence: None, ..Config::with_cases(20_000) };
    let body = prop::collection::vec(any::<u8>(), 0..60);
    let cases = (body, 1..4_i32, 0..5_u8, any::<i64>());
    let result = TestRunner::new(config).run(&cases, |(body, count, codec, timestamp)| {
        let head = ours(&[Record::new("")], Compression::None, None);
        let mut bytes = head.bytes()[..HEADER_BYTES].to_vec();
        bytes.extend(body);
        let counted = (bytes.len() - 12) as u32;
        bytes[8..12].copy_from_slice(&counted.to_be_bytes());
        bytes[22] = codec;
        bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
        bytes[27..35].copy_from_slice(&timestamp.to_be_bytes());
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
        let records = Batch::decode(with_crc(bytes)).and_then(|batch| batch.records(1 << 20));
        if let Ok(records) = records {
            prop_assert!(records.count() <= count as usize + 1);
        }
        Ok(())
    });
    result.expect("no panic");
}

#[test]
fn a_batch_that_unpacks_to_more_than_asked_for_is_rejected() {
    let record = Record::new(vec![b'x'; 500_000]);
    for codec in codecs().into_iter().skip(1) {
        let batch = ours(std::slice::from_ref(&record), codec, None);
        assert!(batch.bytes().len() < 100_000, "{codec:?}");
        let result = batch.records(400_000).map(|_| ());
        assert!(matches!(result, Err(FormatError::TooLarge { .. })), "{codec:?}: {result:?}");
        assert_eq!(unpacked(&batch).len(), 1, "{codec:?}");
        // Cut off within the compressed block.
        let mut bytes = batch.bytes()[..batch.bytes().len() - 9].to_vec();
        let counted = (bytes.len() - 12) as u32;
        bytes[8..12].copy_from_slice(&counted.to_be_bytes());
        let cut = Batch::decode(with_crc(bytes)).expect("the header is in order");
        let failed = match cut.records(MAX_UNPACKED_BYTES) {
            Ok(mut records) => records.any(|record| record.is_err()),
            Err(_) => true,
        };
        assert!(failed, "{codec:?}");
    }
}

#[test]
fn the_limit_is_that_of_a_journal_batch() {
    let mut builder = BatchBuilder::new();
    let room = MAX_BATCH_BYTES - builder.len_bytes();
    // Around the value: three bytes of its length, three of the record's, and five other fields.
    let fits = Record::new(vec![0; room - 11]).timestamp(NO_TIMESTAMP);
    assert!(builder.has_room(&fits));
    let over = Record::new(vec![0; room - 10]);
    assert!(!builder.has_room(&over));
    let error = builder.push(&over).expect_err("one byte too many");
    assert_eq!(error, FormatError::TooLarge { bytes: 1_048_573, limit: 1_048_572 });
    assert!(builder.is_empty(), "a record that was rejected has left nothing");
    builder.push(&fits).expect("it fits");
    assert_eq!(builder.finish().expect("a batch").bytes().len(), MAX_BATCH_BYTES);
}

#[test]
fn a_sequence_of_batches_is_taken_apart() {
    let one = ours(&[Record::new("1")], Compression::None, None);
    let two = ours(&[Record::new("2"), Record::new("3")], Compression::None, None);
    let mut wire = BytesMut::new();
    wire.extend_from_slice(one.bytes());
    wire.extend_from_slice(two.bytes());
    wire.extend_from_slice(&one.bytes()[..40]);
    let mut wire = wire.freeze();
    assert_eq!(Batch::decode_first(&mut wire), Ok(Some(one)));
    assert_eq!(Batch::decode_first(&mut wire), Ok(Some(two)));
    assert_eq!(Batch::decode_first(&mut wire), Ok(None));
    assert_eq!(wire.len(), 40);
}

#[test]
fn timestamps_of_the_log_hold_for_all_records() {
    let batch = ours(&[Record::new("1").timestamp(3)], Compression::None, None);
    let mut bytes = forged(&batch, 22, &[8]).to_vec();
    bytes[35..43].copy_from_slice(&77_i64.to_be_bytes());
    let batch = Batch::decode(with_crc(bytes)).expect("a batch");
    assert_eq!(batch.header().timestamp_type(), TimestampType::LogAppend);
    assert_eq!(unpacked(&batch)[0].timestamp, 77);
}
