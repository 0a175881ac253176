//! What is in memory stays within its limits, whatever others do: measured as the resident memory
//! of a process that does nothing else.
#![cfg(target_os = "linux")]

mod support;

use std::collections::VecDeque;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use support::{batch, now_or_work, one};
use voussoir_journal::{Journal, MemoryFiles};
use voussoir_queue::{
    ConsumeError, ConsumerConfig, Durability, Partition, ProduceError, ProducerConfig, Queue,
    QueueConfig, Record, SendError, TopicConfig,
};

const ALONE: &str = "VOUSSOIR_QUEUE_MEMORY_TEST";
const MIB: u64 = 1 << 20;

/// Whether this is the process in which only this test runs; else it is started, and awaited.
fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let this = std::env::current_exe().expect("a test has a file");
    let mut command = Command::new(this);
    command.args(["--exact", test, "--nocapture"]).env(ALONE, "1");
    let output = command.output().expect("it starts");
    let (out, err) = (&output.stdout, &output.stderr);
    println!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err));
    assert!(output.status.success(), "{test} has failed in a process of its own");
    false
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    let kib = line.split_whitespace().nth(1).expect("a number");
    kib.parse::<u64>().expect("a number") * 1_024
}

/// Says by how much the memory has grown, and that it is no more than `limit`.
fn assert_grown(what: &str, before: u64, limit: u64) {
    let grown = resident().saturating_sub(before);
    println!("{what}: {:.1} MiB more in memory", grown as f64 / MIB as f64);
    assert!(grown <= limit, "{what}: {grown} bytes, {limit} are the limit");
}

fn on_disk() -> (tempfile::TempDir, Queue) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = voussoir_journal::Config::default();
    config.segment_bytes = 4 << 20;
    config.max_bytes = 256 << 20;
    let journal = Journal::open(folder.path(), config).expect("the journal opens");
    let queue = Queue::open(&journal, "q", QueueConfig::default()).expect("the queue opens");
    (folder, queue)
}

/// A queue whose journal writes nothing unless the test lets it.
fn stalled() -> (Journal, Queue) {
    let mut config = voussoir_journal::Config::manual();
    config.segment_bytes = 4 << 20;
    config.max_bytes = 32 << 20;
    let files = Arc::new(MemoryFiles::new());
    let journal = Journal::open_with(files, config).expect("the journal opens");
    let queue = Queue::open(&journal, "q", QueueConfig::default()).expect("the queue opens");
    (journal, queue)
}

#[tokio::test]
async fn a_consumer_that_has_stopped_holds_no_records_in_memory() {
    if !is_alone("a_consumer_that_has_stopped_holds_no_records_in_memory") {
        return;
    }
    let (_folder, queue) = on_disk();
    let topic = queue.create_topic("t", TopicConfig::partitions(1)).await.expect("a topic");
    let producer = queue.producer(ProducerConfig::default()).await.expect("a producer");
    producer.send(&topic, Record::new("first")).await.expect("it is stored");
    let mut consumer = queue.consumer(ConsumerConfig::group("g", ["t"])).expect("a consumer");
    let mut read = 0;
    // Ends: the record is there, and the member joins within a few polls.
    while read == 0 {
        read += consumer.poll(Duration::from_secs(1)).await.expect("a poll").records.len();
    }
    let before = resident();
    for _ in 0..96 {
        for _ in 0..1_024 {
            let record = Record::new(vec![b'v'; 1_024]);
            let sent = producer.enqueue(&topic, record, Durability::Written).await;
            drop(sent.expect("it is queued"));
        }
        producer.flush().await;
    }
    assert_grown("96 MiB that a member of a group does not read", before, 32 * MIB);
    let lag: u64 = consumer.lag().iter().map(voussoir_queue::Lag::offsets).sum();
    assert!(lag >= 96 * 1_024, "{lag}: nothing is lost for it");
    let polled = consumer.poll(Duration::from_secs(1)).await.expect("a poll");
    assert!(!polled.records.is_empty());
    assert_grown("its next poll", before, 40 * MIB);
}

#[test]
fn a_producer_that_is_too_fast_is_told_so() {
    if !is_alone("a_producer_that_is_too_fast_is_told_so") {
        return;
    }
    let (journal, queue) = stalled();
    let topic = now_or_work(&journal, queue.create_topic("t", TopicConfig::partitions(2)));
    let topic = topic.expect("a topic");
    let producer = now_or_work(&journal, queue.producer(ProducerConfig::default()));
    let producer = producer.expect("a producer");
    let partition = topic.partition(0).expect("a partition");
    let before = resident();
    let mut batches = 0_u64;
    // Ends: the journal writes nothing, and what waits is bounded.
    let busy = loop {
        let mut append = partition.append(one("0123456789"), Durability::Synced);
        match support::poll(&mut append) {
            Some(answer) => break answer.expect_err("nothing is written"),
            None => batches += 1,
        }
    };
    assert!(matches!(busy, ProduceError::Busy { .. }), "{busy}");
    println!("{batches} batches of 10 B wait");
    assert_grown("batches of 10 B until the partition is busy", before, 64 * MIB);
    let before = resident();
    let mut records = 0_u64;
    let full = loop {
        let record = Record::new("0123456789");
        match producer.try_enqueue(&topic, Some(1), record, Durability::Synced) {
            Ok(sent) => drop(sent),
            Err(error) => break error,
        }
        records += 1;
    };
    assert!(matches!(full, SendError::Full { .. }), "{full}");
    println!("{records} records of 10 B wait");
    assert_grown("records of 10 B until the producer is full", before, 64 * MIB);
}

#[tokio::test]
async fn a_topic_of_a_million_small_batches_has_a_bounded_index() {
    if !is_alone("a_topic_of_a_million_small_batches_has_a_bounded_index") {
        return;
    }
    const BATCHES: u64 = 1_000_000;
    let (_folder, queue) = on_disk();
    let topic = queue.create_topic("t", TopicConfig::partitions(1)).await.expect("a topic");
    let partition: Partition = topic.partition(0).expect("a partition");
    let before = resident();
    let mut appends = VecDeque::new();
    for at in 0..BATCHES {
        let record = Record::new(at.to_be_bytes().to_vec());
        appends.push_back(partition.append(batch(&[record], None), Durability::Written));
        if appends.len() == 512 {
            let oldest = appends.pop_front().expect("512 of them");
            oldest.await.expect("it is appended");
        }
    }
    for append in appends {
        append.await.expect("it is appended");
    }
    assert_grown("a million batches of one record", before, 32 * MIB);
    for offset in [0, 1, 77_777, 500_000, BATCHES - 1] {
        let fetched = partition.fetch(offset, 1).expect("it can be read");
        assert_eq!((fetched.batches[0].base_offset(), fetched.next_offset), (offset, offset + 1));
    }
    assert_grown("reads all over it", before, 40 * MIB);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_groups_fit_and_one_more_is_refused() {
    if !is_alone("ten_thousand_groups_fit_and_one_more_is_refused") {
        return;
    }
    let (journal, queue) = stalled();
    tokio::spawn(async move {
        let mut now = 0;
        // Ends with the test's runtime.
        loop {
            support::work(&journal, &mut now);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    queue.create_topic("t", TopicConfig::partitions(1)).await.expect("a topic");
    let member = |at: usize| {
        let mut config = ConsumerConfig::group(&format!("group-{at}"), ["t"]);
        config.session_timeout = Duration::from_secs(86_400);
        queue.consumer(config)
    };
    let before = resident();
    let mut members = Vec::new();
    for at in 0..10_000 {
        let mut member = member(at).expect("there is room");
        // Ends: a member that is alone has its partition after a few polls.
        while member.assignment().is_empty() {
            member.poll(Duration::from_millis(2)).await.expect("a poll");
        }
        members.push(member);
    }
    assert_grown("10,000 groups of one member", before, 128 * MIB);
    let refused = match member(10_000) {
        Ok(mut one_more) => one_more.poll(Duration::from_millis(2)).await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(matches!(refused, Err(ConsumeError::TooManyGroups { limit: 10_000 })), "{refused:?}");
    drop(members);
    drop(member(10_001).expect("the groups without members are gone"));
}
