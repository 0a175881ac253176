//! `kill -9` of a process that has a queue in it, over real files: producers, one that sends its
//! last batches again after each restart, two groups, transactions that move records from one topic
//! to another, and a work queue.
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
use voussoir_queue::work::{WorkConfig, WorkQueue};
use voussoir_queue::{
    BatchBuilder, ConsumerConfig, Durability, Guarantee, ProducerConfig, Queue, QueueConfig,
    Record, TopicConfig,
};

const DIRECTORY: &str = "VOUSSOIR_QUEUE_KILL_DIRECTORY";
const PARTITIONS: u32 = 3;
/// The producer that gives its sequences itself.
const OWN_ID: i64 = 1 << 40;
/// Batches that it sends again: of one on its way when the process died it knows nothing.
const SENT_AGAIN: u64 = 4;

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
        for (name, partitions) in [("in", PARTITIONS), ("out", PARTITIONS), ("own", 1), ("jobs", 1)]
        {
            if queue.topic(name).is_err() {
                let create = queue.create_topic(name, TopicConfig::partitions(partitions));
                create.await.expect("it is created");
            }
        }
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(move_for_ever(queue.clone()));
        tasks.spawn(read_for_ever(queue.clone()));
        tasks.spawn(send_again_for_ever(queue.clone()));
        let work = work_queue(&queue);
        (0..2).for_each(|_| drop(tasks.spawn(work_for_ever(work.clone()))));
        tasks.spawn(send_for_ever(queue.clone(), "jobs"));
        (0..3).for_each(|_| drop(tasks.spawn(send_for_ever(queue.clone(), "in"))));
        let ended = tasks.join_next().await.expect("a task");
        panic!("no task ends before the process: {ended:?}");
    });
}

fn work_queue(queue: &Queue) -> WorkQueue {
    let mut config = WorkConfig::default();
    config.visibility_timeout = Duration::from_secs(2);
    config.max_deliveries = 1_000_000;
    config.min_backoff = Duration::ZERO;
    config.max_backoff = Duration::from_millis(20);
    queue.work_queue("jobs", 0, "workers", config).expect("the work queue opens")
}

/// Tells the parent, which reads as much as it wants before it kills: the pipe may be closed.
fn tell(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "\ntold {line}").and_then(|()| out.flush());
}

async fn send_for_ever(queue: Queue, topic: &'static str) -> Result<(), Failure> {
    let topic = queue.topic(topic)?;
    let producer = queue.producer(ProducerConfig::default()).await?;
    loop {
        let value = format!("{:016x}", fastrand::u64(..));
        // Jobs have no key: those of one key are worked on one after the other.
        let record = Record::new(value.clone());
        let record = if topic.name() == "in" { record.key(value.clone()) } else { record };
        let delivered = producer.send(&topic, record).await?;
        let (partition, offset) = (delivered.partition.partition, delivered.offset);
        tell(format_args!("{} {partition} {offset} {value}", topic.name()));
    }
}

/// Sequences are offsets here: each batch has one record, and nobody else writes.
async fn send_again_for_ever(queue: Queue) -> Result<(), Failure> {
    let partition = queue.topic("own")?.partition(0)?.clone();
    for sequence in partition.offsets().end.saturating_sub(SENT_AGAIN).. {
        let mut batch = BatchBuilder::new().producer(OWN_ID, 0, i32::try_from(sequence)?);
        batch.push(&Record::new(format!("{sequence:016x}")))?;
        let appended = partition.append(batch.finish()?, Durability::Synced).await?;
        assert_eq!(appended.base_offset, sequence, "the answer of its first attempt");
        let verb = if appended.is_duplicate { "again" } else { "own" };
        tell(format_args!("{verb} 0 {sequence} {sequence:016x}"));
    }
    Ok(())
}

/// A member that has processed what it was given when it polls again.
async fn read_for_ever(queue: Queue) -> Result<(), Failure> {
    let mut config = ConsumerConfig::group("readers", ["in"]);
    config.max_poll_records = 20;
    let mut reader = queue.consumer(config)?;
    loop {
        for read in reader.poll(Duration::from_millis(50)).await?.records {
            let value = String::from_utf8_lossy(read.record.value.as_deref().unwrap_or_default());
            tell(format_args!("read {} {} {value}", read.partition.partition, read.record.offset));
        }
    }
}

async fn work_for_ever(work: WorkQueue) -> Result<(), Failure> {
    loop {
        for job in work.receive(5, Duration::from_millis(50)).await? {
            let (offset, deliveries) = (job.record.offset, job.deliveries);
            tell(format_args!("got {deliveries} {offset} {offset:016x}"));
            if fastrand::u8(..5) == 0 {
                work.nack(&job.receipt, None).await?;
                continue;
            }
            work.ack(&job.receipt).await?;
            tell(format_args!("done 0 {offset} {offset:016x}"));
        }
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

/// What a child has said: a verb, a number (mostly a partition), an offset, and a value.
type Told = (String, u32, u64, String);

/// Lets a child run until it has said so many things, kills it, and returns all that it said.
fn run_and_kill(directory: &Path, things: usize) -> Vec<Told> {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut told = Vec::new();
    let parse = |line: &str| {
        let mut words = line.strip_prefix("told ")?.split(' ');
        let (verb, number, offset) = (words.next()?, words.next()?, words.next()?);
        // A line that was torn by the kill is none.
        let value = words.next().filter(|value| value.len() == 16)?;
        Some((verb.to_owned(), number.parse().ok()?, offset.parse().ok()?, value.to_owned()))
    };
    while told.len() < things {
        let line = lines.next().expect("the child runs on").expect("text");
        told.extend(parse(&line));
    }
    child.kill().expect("it is killed");
    child.wait().expect("it has ended");
    // What was written to the pipe before was said as well.
    told.extend(lines.map_while(Result::ok).filter_map(|line| parse(&line)));
    told
}

fn values(queue: &Queue, topic: &str) -> BTreeMap<(u32, u64), String> {
    let topic = queue.topic(topic).expect("a topic");
    let mut values = BTreeMap::new();
    for number in 0..topic.partitions() {
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

/// What all children have said, and what must be so after each of their deaths.
#[derive(Default)]
struct Ledger {
    /// Records that were acknowledged, by topic and place.
    acked: BTreeMap<(String, u32, u64), String>,
    /// Places that the readers were given.
    read: BTreeSet<(u32, u64)>,
    /// Jobs that workers were given, and those whose acknowledgement was answered.
    got: BTreeSet<u64>,
    done: BTreeSet<u64>,
    moved: usize,
    sent_again: usize,
    redelivered: usize,
    read_twice: usize,
}

impl Ledger {
    fn note(&mut self, told: Vec<Told>) {
        for (verb, number, offset, value) in told {
            match verb.as_str() {
                "in" | "jobs" | "own" => {
                    let place = (verb, number, offset);
                    let other = self.acked.insert(place, value);
                    assert_eq!(other, None, "{number}/{offset} was given twice");
                }
                "again" => self.sent_again += 1,
                "read" => self.read_twice += usize::from(!self.read.insert((number, offset))),
                "got" => {
                    assert!(!self.done.contains(&offset), "job {offset} was done, and came again");
                    self.redelivered += usize::from(number > 1);
                    self.got.insert(offset);
                }
                "done" => drop(self.done.insert(offset)),
                other => panic!("the child says {other:?}"),
            }
        }
    }

    fn check(&mut self, queue: &Queue) {
        for topic in ["in", "jobs", "own"] {
            let records = values(queue, topic);
            for ((_, partition, offset), value) in
                self.acked.iter().filter(|((name, ..), _)| name == topic)
            {
                let found = records.get(&(*partition, *offset));
                assert_eq!(found, Some(value), "{topic} {partition}/{offset} was acknowledged");
            }
            let distinct: BTreeSet<_> = records.values().collect();
            assert_eq!(distinct.len(), records.len(), "no record of {topic} is there twice");
            if topic == "own" {
                let wanted = (0..records.len() as u64).map(|number| format!("{number:016x}"));
                assert!(records.values().cloned().eq(wanted), "its sequences have no gap");
            }
        }
        let moved = values(queue, "out");
        let distinct: BTreeSet<_> = moved.values().cloned().collect();
        assert_eq!(distinct.len(), moved.len(), "no record was moved twice");
        let below = |group: &str| {
            let places = queue.lag(group).into_iter().flatten().flat_map(|lag| {
                let partition = lag.partition.partition;
                (0..lag.position).map(move |offset| (partition, offset))
            });
            places.collect::<BTreeSet<(u32, u64)>>()
        };
        let stored = below("movers").into_iter().map(|(partition, at)| format!("{partition}/{at}"));
        assert_eq!(distinct, stored.collect(), "the ledger of the transactions is exact");
        assert!(moved.len() >= self.moved, "what was moved stays so");
        self.moved = moved.len();
        let unread: Vec<_> = below("readers").difference(&self.read).copied().collect();
        assert_eq!(unread, [], "offsets were stored of records that nobody was given");
    }

    /// Every job was either acknowledged or comes again, and none does both.
    async fn check_jobs(&self, queue: &Queue) {
        let work = work_queue(queue);
        let mut left = BTreeSet::new();
        // Ends: leases of the dead have ended, and nothing has come for twice their time.
        loop {
            let jobs = work.receive(100, Duration::from_secs(4)).await.expect("it works");
            if jobs.is_empty() {
                break;
            }
            left.extend(jobs.iter().map(|job| job.record.offset));
            let receipts: Vec<_> = jobs.into_iter().map(|job| job.receipt).collect();
            assert!(work.ack_all(&receipts).await.iter().all(Result::is_ok));
        }
        let twice: Vec<_> = left.intersection(&self.done).collect();
        assert!(twice.is_empty(), "done, and came again: {twice:?}");
        for ((_, offset), _) in values(queue, "jobs") {
            let is_known = left.contains(&offset) || self.got.contains(&offset);
            assert!(is_known, "job {offset} was given to nobody");
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_and_does_nothing_twice() {
    let kills = std::env::var("VOUSSOIR_KILLS").ok().and_then(|text| text.parse().ok());
    let kills: usize = kills.unwrap_or(4);
    let directory = std::env::temp_dir().join(format!("queue-kill-{}", std::process::id()));
    let mut ledger = Ledger::default();
    for _ in 0..kills {
        ledger.note(run_and_kill(&directory, fastrand::usize(100..2_000)));
        ledger.check(&open(&directory));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(ledger.check_jobs(&open(&directory)));
    let Ledger { acked, read, done, moved, sent_again, redelivered, read_twice, .. } = &ledger;
    println!(
        "{kills} kills: {} records acknowledged, {sent_again} sent again, {moved} moved, {} read \
         ({read_twice} twice), {} jobs done, {redelivered} delivered again",
        acked.len(),
        read.len(),
        done.len(),
    );
    for (what, count) in [
        ("a record was acknowledged", acked.len()),
        ("a batch was sent again and known", *sent_again),
        ("a record was moved", *moved),
        ("a record was read", read.len()),
        ("a job was done", done.len()),
        ("a job was delivered again", *redelivered),
    ] {
        assert!(count > 0, "it never happened that {what}");
    }
    std::fs::remove_dir_all(&directory).expect("it is removed");
}
