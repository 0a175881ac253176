//! `kill -9` of a process that has a queue in it, over real files: producers, a group, and
//! transactions that move records from one topic to another.
//!
//! The page cache outlives a process, so this says nothing about power losses: `power_queue` does
//! that. `VOUSSOIR_KILLS` sets how many kills there are (default 4).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use voussoir_journal::Journal;
use voussoir_queue::format::MAX_UNPACKED_BYTES;
use voussoir_queue::{
    ConsumerConfig, Guarantee, ProducerConfig, Queue, QueueConfig, Record, TopicConfig,
};

const DIRECTORY: &str = "VOUSSOIR_QUEUE_KILL_DIRECTORY";
const PARTITIONS: u32 = 3;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn open(directory: &Path) -> Queue {
    let mut config = voussoir_journal::Config::default();
    config.segment_bytes = 4 << 20;
    config.max_bytes = 256 << 20;
    let journal = Journal::open(directory, config).expect("the journal opens");
    Queue::open(&journal, "q", QueueConfig::default()).expect("the queue opens")
}

/// Not a test by itself: the process that is killed.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let queue = open(&PathBuf::from(directory));
    runtime.block_on(async {
        for name in ["in", "out"] {
            if queue.topic(name).is_err() {
                let create = queue.create_topic(name, TopicConfig::partitions(PARTITIONS));
                create.await.expect("it is created");
            }
        }
        let moving = tokio::spawn(move_for_ever(queue.clone()));
        let sending = (0..3).map(|_| tokio::spawn(send_for_ever(queue.clone())));
        for task in sending.collect::<Vec<_>>() {
            task.await.expect("it ends with the process");
        }
        moving.await.expect("it ends with the process").expect("it ends with the process");
    });
}

async fn send_for_ever(queue: Queue) {
    let topic = queue.topic("in").expect("a topic");
    let producer = queue.producer(ProducerConfig::default()).await.expect("a producer");
    loop {
        let value = format!("{:016x}", fastrand::u64(..));
        let record = Record::new(value.clone()).key(value.clone());
        let delivered = producer.send(&topic, record).await.expect("it is delivered");
        let (partition, offset) = (delivered.partition.partition, delivered.offset);
        let mut out = std::io::stdout().lock();
        // The parent reads as many as it wants before it kills: the pipe may be closed.
        let _ = writeln!(out, "ack {partition} {offset} {value}").and_then(|()| out.flush());
    }
}

async fn move_for_ever(queue: Queue) -> Result<(), Failure> {
    let out = queue.topic("out")?;
    let mut mover = queue.transactional("mover").await?;
    let mut config = ConsumerConfig::group("movers", ["in"]);
    config.guarantee = Guarantee::ExactlyOnce;
    config.max_poll_records = 20;
    let mut reader = queue.consumer(config)?;
    loop {
        let polled = reader.poll(Duration::from_millis(50)).await?;
        if polled.records.is_empty() {
            continue;
        }
        let mut transaction = mover.begin();
        for read in polled.records {
            let (partition, offset) = (read.partition.partition, read.record.offset);
            let target = fastrand::u32(..PARTITIONS);
            transaction.send(&out, target, &Record::new(format!("{partition}/{offset}")))?;
        }
        transaction.offsets(&reader)?;
        transaction.commit().await?;
    }
}

/// Lets a child run for so many acknowledgements, kills it, and returns all that it acknowledged.
fn run_and_kill(directory: &Path, acknowledgements: usize) -> Vec<(u32, u64, String)> {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut acked = Vec::new();
    let parse = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "ack").skip(1);
        let partition = words.next()?.parse().ok()?;
        let offset = words.next()?.parse().ok()?;
        words.next().filter(|value| value.len() == 16).map(|v| (partition, offset, v.to_owned()))
    };
    while acked.len() < acknowledgements {
        let line = lines.next().expect("the child runs on").expect("text");
        acked.extend(parse(&line));
    }
    child.kill().expect("it is killed");
    child.wait().expect("it has ended");
    // What was written to the pipe before was acknowledged as well; the last line may be torn.
    acked.extend(lines.map_while(Result::ok).filter_map(|line| parse(&line)));
    acked
}

fn values(queue: &Queue, topic: &str) -> BTreeMap<(u32, u64), String> {
    let topic = queue.topic(topic).expect("a topic");
    let mut values = BTreeMap::new();
    for number in 0..PARTITIONS {
        let partition = topic.partition(number).expect("a partition");
        let mut offset = 0;
        while offset < partition.offsets().end {
            let fetched = partition.fetch(offset, 1 << 20).expect("it is read");
            for record in fetched.records(MAX_UNPACKED_BYTES) {
                let record = record.expect("a record");
                let value = String::from_utf8(record.value.expect("one").into()).expect("text");
                values.insert((number, record.offset), value);
            }
            offset = fetched.next_offset;
        }
    }
    values
}

#[test]
fn a_killed_process_loses_nothing_and_moves_nothing_twice() {
    let kills = std::env::var("VOUSSOIR_KILLS").ok().and_then(|text| text.parse().ok());
    let directory = std::env::temp_dir().join(format!("queue-kill-{}", std::process::id()));
    let mut acked: BTreeMap<(u32, u64), String> = BTreeMap::new();
    let mut moved_before = 0;
    for _ in 0..kills.unwrap_or(4) {
        for (partition, offset, value) in run_and_kill(&directory, fastrand::usize(20..400)) {
            let other = acked.insert((partition, offset), value);
            assert_eq!(other, None, "{partition}/{offset} was given twice");
        }
        let queue = open(&directory);
        let records = values(&queue, "in");
        for (place, value) in &acked {
            assert_eq!(records.get(place), Some(value), "{place:?} was acknowledged");
        }
        let distinct: BTreeSet<_> = records.values().collect();
        assert_eq!(distinct.len(), records.len(), "no record is there twice");
        let moved = values(&queue, "out");
        let distinct: BTreeSet<_> = moved.values().cloned().collect();
        assert_eq!(distinct.len(), moved.len(), "no record was moved twice");
        let stored = queue.lag("movers").into_iter().flat_map(|lag| {
            let partition = lag.partition.partition;
            (0..lag.position).map(move |offset| format!("{partition}/{offset}"))
        });
        assert_eq!(distinct, stored.collect(), "the ledger is exact");
        assert!(moved.len() >= moved_before);
        moved_before = moved.len();
    }
    assert!(moved_before > 0, "the mover has moved something");
    std::fs::remove_dir_all(&directory).expect("it is removed");
}
