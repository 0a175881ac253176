//! What each command does.

use std::io::{BufRead, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use voussoir_journal::{DiskFiles, Journal};
use voussoir_queue::work::WorkConfig;
use voussoir_queue::{
    Compaction, Consumer, ConsumerConfig, ConsumerRecord, Durability, Partition, ProducerConfig,
    Queue, QueueConfig, Record, Retention, SendFuture, TopicConfig, TopicPartition,
};

use crate::Error;
use crate::args::{Cli, Command, Consume, Produce, Work};
use crate::bench;

/// How long a read waits for records that are there: it only has to read them.
const READ_WAIT: Duration = Duration::from_millis(20);
/// Sends whose answers are waited for at a time.
const IN_FLIGHT: usize = 1_000;
/// Bytes that `verify` reads, and those that it lets a batch unpack to.
const READ_BYTES: usize = 4 << 20;
const UNPACKED_BYTES: usize = 64 << 20;
/// Dead letters that are listed at a time.
const LETTERS: usize = 100;

/// Runs the command.
///
/// # Errors
/// The queue cannot be opened, read or written; the text says why.
pub(crate) async fn run(
    cli: &Cli,
    input: &mut impl BufRead,
    out: &mut impl Write,
) -> Result<(), Error> {
    // Only what makes or fills topics makes a journal where there is none.
    if !matches!(cli.command, Command::Create { .. } | Command::Bench(_)) {
        let dir = cli.dir.display();
        DiskFiles::existing(&cli.dir).map_err(|error| format!("{dir}: {error}"))?;
    }
    let journal = Journal::open(&cli.dir, voussoir_journal::Config::default())?;
    let queue = Queue::open(&journal, &cli.namespace, QueueConfig::default())?;
    let done = match &cli.command {
        Command::Topics => topics(&queue, out),
        Command::Compact => compact(&queue, out).await,
        Command::Create {
            topic,
            partitions,
            retention_bytes,
            retention_hours,
            compact,
            tombstone_hours,
        } => {
            let mut config = TopicConfig::partitions(*partitions);
            let mut retention = Retention::default();
            retention.max_bytes = *retention_bytes;
            let age = |hours: u64| Duration::from_secs(hours.saturating_mul(3_600));
            retention.max_age = retention_hours.map(age);
            config.retention = retention;
            config.compaction = compact.then(|| {
                let mut compaction = Compaction::default();
                compaction.min_tombstone_age = age(*tombstone_hours);
                compaction
            });
            queue.create_topic(topic, config).await.map(drop).map_err(Error::from)
        }
        Command::Delete { topic } => queue.delete_topic(topic).await.map_err(Error::from),
        Command::Produce(produce) => self::produce(&queue, produce, input, out).await,
        Command::Consume(consume) => self::consume(&queue, consume, out).await,
        Command::Groups => groups(&queue, out),
        Command::Lag { group } => lag(&queue, group, out),
        Command::DeadLetters(work) => dead_letters(&queue, work, out),
        Command::Redrive { work, id } => redrive(&queue, work, *id, out).await,
        Command::Verify => verify(&queue, out),
        Command::Bench(bench) => bench::run(&queue, bench, out).await,
    };
    drop(queue);
    // What was acknowledged is on the disk; an error here is about the rest.
    let closed = journal.close();
    done?;
    Ok(closed?)
}

fn topics(queue: &Queue, out: &mut impl Write) -> Result<(), Error> {
    writeln!(
        out,
        "{:<40} {:<14} {:>9} {:>14} {:>14} {:>14} {:>14}",
        "topic", "policy", "partition", "start", "end", "compacted", "bytes"
    )?;
    let mut failed = 0;
    for topic in queue.topics() {
        let policy = policy(&topic.config());
        for number in 0..topic.partitions() {
            let name = topic.name();
            match topic.partition(number) {
                Ok(partition) => {
                    let stats = partition.stats();
                    let (start, end) = (stats.start_offset, stats.end_offset);
                    let (compacted, bytes) = (stats.compacted_offset, stats.stored_bytes);
                    write!(out, "{name:<40} {policy:<14} {number:>9} {start:>14} {end:>14} ")?;
                    writeln!(out, "{compacted:>14} {bytes:>14}")?;
                }
                Err(error) => {
                    failed += 1;
                    writeln!(out, "{name:<40} {policy:<14} {number:>9} {error}")?;
                }
            }
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(format!("{failed} partitions cannot be opened").into()),
    }
}

/// What a topic removes, in the words of Kafka's `cleanup.policy`.
fn policy(config: &TopicConfig) -> &'static str {
    match (config.retention == Retention::default(), config.compaction.is_some()) {
        (true, false) => "keep",
        (false, false) => "delete",
        (true, true) => "compact",
        (false, true) => "compact,delete",
    }
}

async fn compact(queue: &Queue, out: &mut impl Write) -> Result<(), Error> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    let (mut partitions, mut failed) = (0, 0);
    for topic in queue.topics() {
        let Some(compaction) = topic.config().compaction else { continue };
        for number in 0..topic.partitions() {
            let name = topic.name();
            partitions += 1;
            let compacting =
                async { Ok(topic.partition(number)?.compact(compaction, now_ms).await?) };
            let done: Result<_, Error> = compacting.await;
            match done {
                Ok(done) => {
                    let removed = done.removed_records;
                    writeln!(out, "{name}/{number}: {removed} records removed")?;
                }
                Err(error) => {
                    failed += 1;
                    writeln!(out, "{name}/{number}: {error}")?;
                }
            }
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(format!("{failed} of {partitions} partitions were not compacted").into()),
    }
}

async fn produce(
    queue: &Queue,
    produce: &Produce,
    input: &mut impl BufRead,
    out: &mut impl Write,
) -> Result<(), Error> {
    let topic = queue.topic(&produce.topic)?;
    let mut config = ProducerConfig::default();
    config.compression = produce.compression.into();
    let producer = queue.producer(config).await?;
    let began = Instant::now();
    let (mut sent, mut shown) = (0_u64, Instant::now());
    let mut waiting: Vec<SendFuture> = Vec::new();
    let mut line = Vec::new();
    // Ends with the input.
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let record = record(text, produce.key_separator.as_deref());
        let send = match produce.partition {
            Some(_) => producer.try_enqueue(&topic, produce.partition, record, Durability::Synced),
            None => producer.enqueue(&topic, record, Durability::Synced).await,
        };
        waiting.push(send?);
        if waiting.len() >= IN_FLIGHT {
            sent += answers(&mut waiting).await?;
        }
        if shown.elapsed() >= Duration::from_secs(1) {
            shown = Instant::now();
            eprintln!("{sent} records acknowledged");
        }
    }
    sent += answers(&mut waiting).await?;
    let seconds = began.elapsed().as_secs_f64();
    writeln!(out, "{sent} records acknowledged in {seconds:.2} s")?;
    Ok(())
}

async fn answers(waiting: &mut Vec<SendFuture>) -> Result<u64, Error> {
    let mut count = 0;
    for send in waiting.drain(..) {
        send.await?;
        count += 1;
    }
    Ok(count)
}

/// A line as a record: what is before the first separator is its key.
fn record(line: &[u8], separator: Option<&str>) -> Record {
    let separator = separator.filter(|text| !text.is_empty()).map(str::as_bytes);
    let found = separator.and_then(|separator| {
        let at = line.windows(separator.len()).position(|window| window == separator)?;
        Some((&line[..at], &line[at + separator.len()..]))
    });
    match found {
        Some((key, value)) => Record::new(value.to_vec()).key(key.to_vec()),
        None => Record::new(line.to_vec()),
    }
}

async fn consume(queue: &Queue, consume: &Consume, out: &mut impl Write) -> Result<(), Error> {
    let topic = queue.topic(&consume.topic)?;
    let mut config = match &consume.group {
        Some(group) => ConsumerConfig::group(group, [&consume.topic]),
        None => ConsumerConfig::default(),
    };
    let mut left = consume.max.unwrap_or(u64::MAX);
    if let Some(max) = consume.max.and_then(|max| usize::try_from(max).ok()) {
        // A group's offsets are stored for what was returned: no more than is printed.
        config.max_poll_records = config.max_poll_records.min(max.max(1));
    }
    let mut consumer = queue.consumer(config)?;
    if consume.group.is_none() {
        let places =
            (0..topic.partitions()).map(|number| TopicPartition::new(topic.name(), number));
        let places: Vec<_> = places.collect();
        consumer.assign(&places)?;
        for place in &places {
            consumer.seek(place, consume.from)?;
        }
    }
    // Ends: each round prints a record, or finds that none is left.
    while left > 0 {
        let polled = consumer.poll(READ_WAIT).await?;
        for read in polled.records.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            print(read, out)?;
        }
        left = left.saturating_sub(polled.records.len() as u64);
        if polled.records.is_empty() && is_at_end(&consumer) {
            break;
        }
    }
    Ok(consumer.close().await?)
}

/// Whether it has its partitions and has read them.
fn is_at_end(consumer: &Consumer) -> bool {
    !consumer.assignment().is_empty() && consumer.lag().iter().all(|lag| lag.offsets() == 0)
}

fn print(read: &ConsumerRecord, out: &mut impl Write) -> Result<(), Error> {
    let Record { key, value, offset, .. } = &read.record;
    let text = |bytes: &Option<_>| bytes.as_ref().map_or("-".to_owned(), lossy);
    writeln!(out, "{}\t{offset}\t{}\t{}", read.partition.partition, text(key), text(value))?;
    Ok(())
}

fn lossy(bytes: &voussoir_queue::Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn groups(queue: &Queue, out: &mut impl Write) -> Result<(), Error> {
    for group in queue.groups() {
        let lags = queue.lag(&group).unwrap_or_default();
        let behind: u64 = lags.iter().map(voussoir_queue::Lag::offsets).sum();
        writeln!(out, "{group}\t{behind} behind")?;
    }
    Ok(())
}

fn lag(queue: &Queue, group: &str, out: &mut impl Write) -> Result<(), Error> {
    let lags = queue.lag(group).ok_or_else(|| format!("group {group} has stored no offset"))?;
    for lag in lags {
        let behind = lag.offsets();
        writeln!(out, "{}\t{} of {}\t{behind} behind", lag.partition, lag.position, lag.end)?;
    }
    Ok(())
}

fn dead_letters(queue: &Queue, work: &Work, out: &mut impl Write) -> Result<(), Error> {
    let worked = open(queue, work)?;
    let mut from = 0;
    // Ends: each round goes beyond the letters that it has read.
    loop {
        let letters = worked.dead_letters(from, LETTERS)?;
        let Some(last) = letters.last() else { return Ok(()) };
        from = last.id + 1;
        for letter in letters {
            let value = letter.record.value.as_ref().map_or("-".to_owned(), lossy);
            let (id, count, reason) = (letter.id, letter.deliveries, letter.reason);
            writeln!(out, "{id}\t{count} deliveries\t{reason:?}\t{value}")?;
        }
    }
}

async fn redrive(
    queue: &Queue,
    work: &Work,
    id: Option<u64>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let worked = open(queue, work)?;
    let mut redriven = 0;
    if let Some(id) = id {
        worked.redrive(id).await?;
        redriven = 1;
    } else {
        let mut from = 0;
        // Ends: each round goes beyond the letters that it has read.
        while let letters = worked.dead_letters(from, LETTERS)?
            && let Some(last) = letters.last()
        {
            from = last.id + 1;
            for letter in letters.iter().filter(|letter| !letter.is_redriven) {
                worked.redrive(letter.id).await?;
                redriven += 1;
            }
        }
    }
    writeln!(out, "{redriven} dead letters will be delivered again")?;
    Ok(())
}

fn open(queue: &Queue, work: &Work) -> Result<voussoir_queue::work::WorkQueue, Error> {
    Ok(queue.work_queue(&work.topic, work.partition, &work.group, WorkConfig::default())?)
}

fn verify(queue: &Queue, out: &mut impl Write) -> Result<(), Error> {
    let (mut batches, mut records, mut problems) = (0, 0, 0);
    for topic in queue.topics() {
        for number in 0..topic.partitions() {
            let place = TopicPartition::new(topic.name(), number);
            let partition = topic.partition(number).map_err(Error::from);
            let counted = partition.and_then(|partition| count(&partition));
            match counted {
                Ok((more_batches, more_records)) => {
                    batches += more_batches;
                    records += more_records;
                }
                Err(error) => {
                    problems += 1;
                    writeln!(out, "{place}: {error}")?;
                }
            }
        }
    }
    writeln!(out, "{batches} batches, {records} records, {problems} partitions with a problem")?;
    match problems {
        0 => Ok(()),
        problems => Err(format!("{problems} partitions have a problem").into()),
    }
}

/// Batches and records of a partition, each unpacked.
fn count(partition: &Partition) -> Result<(u64, u64), Error> {
    let (mut batches, mut records) = (0, 0);
    let offsets = partition.offsets();
    let mut offset = offsets.start;
    // Ends: each round reads a batch at least.
    while offset < offsets.end {
        let fetched = partition.fetch(offset, READ_BYTES)?;
        for record in fetched.records(UNPACKED_BYTES) {
            record?;
            records += 1;
        }
        batches += fetched.batches.len() as u64;
        if fetched.next_offset <= offset {
            return Err(format!("nothing is read at offset {offset}").into());
        }
        offset = fetched.next_offset;
    }
    Ok((batches, records))
}
