//! `bench`: synced writes by one producer, then reads, in a topic of its own.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use voussoir_queue::{Durability, Producer, ProducerConfig, Queue, Record, Topic, TopicConfig};

use crate::Error;
use crate::args::Bench;

/// Bytes that a read takes at once.
const READ_BYTES: usize = 1 << 20;

/// Writes, reads, prints what was measured, and deletes the topic.
///
/// # Errors
/// A write or a read failed; the topic is deleted all the same, if it can be.
pub(crate) async fn run(queue: &Queue, bench: &Bench, out: &mut impl Write) -> Result<(), Error> {
    let name = format!("bench-{}", std::process::id());
    let topic = queue.create_topic(&name, TopicConfig::partitions(1)).await?;
    let measured = measure(queue, &topic, bench, out).await;
    let deleted = queue.delete_topic(&name).await;
    measured?;
    Ok(deleted?)
}

async fn measure(
    queue: &Queue,
    topic: &Topic,
    bench: &Bench,
    out: &mut impl Write,
) -> Result<(), Error> {
    let producer = queue.producer(ProducerConfig::default()).await?;
    let began = Instant::now();
    let mut latencies = write(&producer, topic, bench).await?;
    let seconds = began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies.get(index).or(latencies.last()).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    let count = latencies.len();
    let mib = count as f64 * f64::from(bench.record_bytes) / f64::from(1 << 20);
    writeln!(
        out,
        "written {count} records of {} B, synced, {} on their way: \
         {:.0}/s, {:.1} MiB/s, p50 {:.2} ms, p99 {:.2} ms",
        bench.record_bytes,
        bench.in_flight,
        count as f64 / seconds,
        mib / seconds,
        at(0.5),
        at(0.99),
    )?;
    let partition = topic.partition(0)?;
    let (began, offsets) = (Instant::now(), partition.offsets());
    let (mut offset, mut read) = (offsets.start, 0_u64);
    // Ends: each round reads a batch at least.
    while offset < offsets.end {
        let fetched = partition.fetch(offset, READ_BYTES)?;
        read += fetched.records(4 * READ_BYTES).flatten().count() as u64;
        offset = fetched.next_offset;
    }
    let seconds = began.elapsed().as_secs_f64();
    writeln!(out, "read {read} records: {:.0}/s", read as f64 / seconds)?;
    if read != count as u64 {
        return Err(format!("{count} records were acknowledged and {read} are there").into());
    }
    Ok(())
}

/// Keeps `in_flight` records on their way for the time given, and returns how long each took.
async fn write(producer: &Producer, topic: &Topic, bench: &Bench) -> Result<Vec<Duration>, Error> {
    let until = Instant::now() + Duration::from_secs(bench.seconds);
    let value = vec![b'v'; bench.record_bytes as usize];
    let mut latencies = Vec::new();
    let mut waiting = VecDeque::new();
    // Ends: after the time given nothing is sent, and each round takes an answer.
    loop {
        let has_room = waiting.len() < bench.in_flight as usize;
        if has_room && Instant::now() < until {
            let record = Record::new(value.clone());
            let sent = producer.enqueue(topic, record, Durability::Synced).await?;
            waiting.push_back((Instant::now(), sent));
        } else if let Some((sent_at, sent)) = waiting.pop_front() {
            sent.await?;
            latencies.push(sent_at.elapsed());
        } else {
            return Ok(latencies);
        }
    }
}
