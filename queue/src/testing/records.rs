//! Checks of sending: records, positions, partitions, errors.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Check, Lab, PATIENCE, Verdict, ensure, is_quiet, read, refused, said, send};
use crate::backend::{BackendError, Position};
use crate::format::{Record, RecordHeader};
use crate::partitioner::{Murmur2, Partitioner};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("records_come_back", |lab| Box::pin(records_come_back(lab))),
    ("positions_rise", |lab| Box::pin(positions_rise(lab))),
    ("unknown_topics", |lab| Box::pin(unknown_topics(lab))),
    ("topics_are_created_once", |lab| Box::pin(topics_are_created_once(lab))),
    ("an_unfit_record_fails_alone", |lab| Box::pin(an_unfit_record_fails_alone(lab))),
    ("a_poll_waits_and_is_woken", |lab| Box::pin(a_poll_waits_and_is_woken(lab))),
];

/// Keys, values, headers and timestamps are what they were, whatever bytes they are.
async fn records_come_back(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 1).await?;
    let bytes: Vec<u8> = (0..=255).collect();
    let mut full = Record::new(bytes.clone()).key(bytes.clone()).timestamp(1_700_000_000_123);
    full = full.header("a b=c%\r\n", bytes).header("twice", "1").header("twice", "2");
    full.headers.push(RecordHeader::new("none", None));
    let mut without_key = Record::new("v").timestamp(0);
    without_key.headers.push(RecordHeader::new("", Some("".into())));
    let sent = [
        full,
        without_key,
        Record::new("").key("").timestamp(1),
        Record::tombstone("gone").timestamp(2),
    ];
    let mut positions = Vec::new();
    for answer in producer.send(&topic, sent.to_vec()).await {
        positions.push(said("send", answer)?);
    }
    let mut consumer = lab.member("g", &topic).await?;
    let read = read(&mut consumer, sent.len()).await?;
    for ((mut sent, at), read) in sent.into_iter().zip(positions).zip(read) {
        sent.offset = at.offset;
        ensure(read.record == sent, || format!("{sent:?} came back as {:?}", read.record))?;
        ensure(read.position == at, || format!("{at:?} came back as {:?}", read.position))?;
        ensure(*read.topic == *topic, || format!("{topic} came back as {}", read.topic))?;
    }
    // A record without a time has that of its sending.
    let stamped = said("send", producer.send_one(&topic, Record::new("now")).await);
    stamped?;
    let read = super::read(&mut consumer, 1).await?;
    let timestamp = read.first().map_or(0, |read| read.record.timestamp);
    ensure(timestamp > 1_700_000_000_123, || format!("the timestamp of now is {timestamp}"))
}

/// Records are where the answer says, keys where Kafka's clients put them, and offsets of a
/// partition rise in the order of the calls.
async fn positions_rise(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 7).await?;
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    let mut sent: BTreeMap<Position, String> = BTreeMap::new();
    for round in 0..10 {
        let records: Vec<Record> = (0..8)
            .map(|number| Record::new(format!("{round}/{number}")).key(format!("key {number}")))
            .collect();
        let answers = producer.send(&topic, records.clone()).await;
        ensure(answers.len() == records.len(), || format!("{} answers", answers.len()))?;
        for (record, answer) in records.into_iter().zip(answers) {
            let at = said("send", answer)?;
            let wanted = Murmur2.partition(&topic, &record, 7);
            ensure(wanted == Some(at.partition), || format!("{record:?} is at {at:?}"))?;
            let before = last.insert(at.partition, at.offset);
            ensure(before < Some(at.offset), || format!("{at:?} comes after {before:?}"))?;
            let value = String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned();
            sent.insert(at, value);
        }
    }
    let mut consumer = lab.member("g", &topic).await?;
    for read in read(&mut consumer, sent.len()).await? {
        let value = String::from_utf8_lossy(&read.record.value.unwrap_or_default()).into_owned();
        let there = sent.remove(&read.position);
        ensure(there.as_ref() == Some(&value), || format!("{value}, not {there:?}"))?;
    }
    Ok(())
}

async fn unknown_topics(lab: Lab) -> Verdict {
    let producer = said("producer", lab.backend.producer().await)?;
    let topic = lab.name("nowhere");
    let records = vec![Record::new("1"), Record::new("2")];
    let answers = producer.send(&topic, records).await;
    ensure(answers.len() == 2, || format!("{} answers to two records", answers.len()))?;
    for answer in answers {
        let error = refused("a send to an unknown topic", answer)?;
        let is_named =
            matches!(&error, BackendError::UnknownTopic { topic: found } if *found == topic);
        ensure(is_named, || format!("a send to an unknown topic: {error}"))?;
    }
    let consumer = lab.backend.consumer(lab.subscription("g", &topic)).await;
    let error = refused("a consumer of an unknown topic", consumer)?;
    let is_named = matches!(error, BackendError::UnknownTopic { .. });
    ensure(is_named, || format!("a consumer of an unknown topic: {error}"))
}

async fn topics_are_created_once(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("with.dots_and-dashes", 2).await?;
    let first = said("send", producer.send_one(&topic, Record::new("1").key("k")).await)?;
    said("create_topic again", lab.backend.create_topic(&topic, 2).await)?;
    let second = said("send", producer.send_one(&topic, Record::new("2").key("k")).await)?;
    ensure(first < second, || "creating a topic again has emptied it".to_owned())?;
    let error = refused("a change of partitions", lab.backend.create_topic(&topic, 3).await)?;
    let is_mismatch = matches!(error, BackendError::Mismatch { .. });
    ensure(is_mismatch, || format!("a change of partitions: {error}"))?;
    for (name, partitions) in [("", 1), ("a b", 1), ("a*", 1), (&*"x".repeat(250), 1), ("ok", 0)] {
        refused("a topic that cannot be", lab.backend.create_topic(name, partitions).await)?;
    }
    Ok(())
}

/// A record that is too large is an error, and those around it are stored.
async fn an_unfit_record_fails_alone(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 1).await?;
    let large = Record::new(vec![7; 80 << 20]);
    let records = vec![Record::new("0").key("k"), large.key("k"), Record::new("1").key("k")];
    let mut answers = producer.send(&topic, records).await.into_iter();
    let (before, unfit, after) = (answers.next(), answers.next(), answers.next());
    let none = || "fewer answers than records".to_owned();
    said("send before it", before.ok_or_else(none)?)?;
    said("send behind it", after.ok_or_else(none)?)?;
    let error = refused("a record of 80 MiB", unfit.ok_or_else(none)?)?;
    ensure(!error.is_retryable(), || format!("it will never fit: {error}"))?;
    let mut consumer = lab.member("g", &topic).await?;
    let read = read(&mut consumer, 2).await?;
    ensure(super::numbers(&read) == [0, 1], || "the others are not there".to_owned())
}

/// A poll without records ends when it should, and one that waits returns soon after a send.
async fn a_poll_waits_and_is_woken(lab: Lab) -> Verdict {
    let (topic, producer) = lab.topic("t", 3).await?;
    let mut consumer = lab.member("g", &topic).await?;
    is_quiet(&mut consumer).await?;
    let began = Instant::now();
    let wait = Duration::from_millis(500);
    let none = said("poll", consumer.poll(wait).await)?;
    let took = began.elapsed();
    ensure(none.is_empty() && took >= wait / 2, || format!("it returned after {took:?}"))?;
    ensure(took < wait + Duration::from_secs(3), || format!("it took {took:?}"))?;
    let sending = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        send(&producer, &topic, 0..1, |_| "k".to_owned()).await
    });
    let began = Instant::now();
    let read = said("poll", consumer.poll(PATIENCE).await)?;
    let took = began.elapsed();
    sending.await.map_err(|error| error.to_string())??;
    ensure(read.len() == 1, || format!("{} records after {took:?}", read.len()))?;
    ensure(took < Duration::from_secs(5), || format!("it was woken after {took:?}"))
}
