//! What is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use voussoir_queue::backend::{Backend, Embedded, Subscription};
use voussoir_queue::{ProducerConfig, Record, Topic};

use crate::bars::{Bars, Side};
use crate::logs::processor_seconds;
use crate::median;
use crate::report::{Figure, Report};
use crate::subjects::{Sender, Subjects};

/// The first round does not count: connections, caches, segments.
pub const ROUNDS: usize = 5;
pub const TIME: Duration = Duration::from_millis(600);
pub const PRODUCERS: usize = 64;

/// Keeps two batches on their way, and returns us for each.
async fn time(send: &mut Sender) -> f64 {
    let (start, mut done) = (Instant::now(), 0);
    let mut before = send();
    // Ends: after `TIME`.
    while start.elapsed() < TIME {
        let next = send();
        before.await;
        (before, done) = (next, done + 1);
    }
    before.await;
    start.elapsed().as_secs_f64() * 1e6 / f64::from(done + 1)
}

pub async fn batches(subjects: &Subjects, report: &mut Report, bars: &mut Bars) {
    for bytes in [100, 1_024] {
        for (records, beats_redis) in [(1, 1.3), (100, 2.0), (1_000, 8.0)] {
            let mut senders = subjects.senders(records, bytes).await;
            let mut rounds = vec![Vec::new(); senders.len()];
            for round in 0..=ROUNDS {
                for ((_, send), rounds) in senders.iter_mut().zip(&mut rounds) {
                    let us = time(send).await;
                    if round > 0 {
                        rounds.push(us);
                    }
                }
            }
            let name = format!("a batch of {records} x {bytes} B, synced");
            let ours = rounds[0].clone();
            for ((rival, _), theirs) in senders.iter().zip(&rounds).skip(1) {
                report.beside(
                    &name,
                    Figure::from(ours.clone()),
                    rival,
                    Figure::from(theirs.clone()),
                    "us",
                );
                let target = match *rival {
                    "a bare journal" => 0.92,
                    "JetStream, unsynced" => 1.0,
                    _ => beats_redis,
                };
                let name = format!("{records} x {bytes} B to {rival}");
                bars.add_ratio(&name, theirs, &ours, Side::AtLeast, target);
            }
        }
    }
}

/// us for each of the records that tasks send, one at a time each, and their number.
async fn together<F: Future<Output = ()> + Send + 'static>(
    send: impl Fn(usize) -> F + Clone + Send + 'static,
) -> (f64, u32) {
    let (mut tasks, start) = (JoinSet::new(), Instant::now());
    for task in 0..PRODUCERS {
        let send = send.clone();
        tasks.spawn(async move {
            let mut done = 0_u32;
            // Ends: after `TIME`.
            while start.elapsed() < TIME {
                send(task).await;
                done += 1;
            }
            done
        });
    }
    let mut done = 0;
    while let Some(ended) = tasks.join_next().await {
        done += ended.expect("a task");
    }
    (start.elapsed().as_secs_f64() * 1e6 / f64::from(done), done)
}

/// us for each record of 64 tasks that send by one producer to a topic, and their number.
async fn by_producer(subjects: &Subjects, topic: &Topic) -> (f64, u32) {
    let producer = subjects.queue.producer(ProducerConfig::default()).await.expect("a producer");
    let topic = topic.clone();
    together(move |task| {
        let (producer, topic) = (producer.clone(), topic.clone());
        async move {
            // Keys spread the records over the partitions.
            let key = format!("{task} {:?}", Instant::now());
            let record = Record::new(vec![b'v'; 100]).key(key);
            drop(producer.send(&topic, record).await.expect("it is delivered"));
        }
    })
    .await
}

pub async fn producers(subjects: &Subjects, report: &mut Report, bars: &mut Bars) {
    let topic = subjects.topic("producers", 1).await;
    let mut rounds = vec![Vec::new(); 5];
    let mut names = Vec::new();
    for round in 0..=ROUNDS {
        let mut seen = vec![by_producer(subjects, &topic).await.0];
        let folder = subjects.folder().join(format!("raft-engine-{round}"));
        let threads = move || crate::logs::raft_engine_threads(&folder);
        seen.push(tokio::task::spawn_blocking(threads).await.expect("no panic"));
        names.clear();
        names.push("raft-engine, 64 threads");
        for (name, send) in subjects.senders_of_one(round).await {
            let send = Arc::new(std::sync::Mutex::new(send));
            seen.push(
                together(move |_| {
                    let sent = (send.lock().expect("no panic"))();
                    async move { sent.await }
                })
                .await
                .0,
            );
            names.push(name);
        }
        if round > 0 {
            rounds.iter_mut().zip(seen).for_each(|(rounds, us)| rounds.push(us));
        }
    }
    let ours = rounds[0].clone();
    for (rival, theirs) in names.iter().zip(&rounds[1..]) {
        let name = "a record of 100 B, 64 producers, synced";
        report.beside(name, Figure::from(ours.clone()), rival, Figure::from(theirs.clone()), "us");
        let target = match *rival {
            "JetStream, unsynced" => 1.0,
            "raft-engine, 64 threads" => 1.6,
            _ => continue,
        };
        let name = format!("64 producers to {rival}");
        bars.add_ratio(&name, theirs, &ours, Side::AtLeast, target);
    }
}

/// What 64 tasks cost that send by one producer.
#[derive(Default)]
struct Costs {
    us: Vec<f64>,
    /// us of all processors for each record.
    cpu_us: Vec<f64>,
    records_a_sync: Vec<f64>,
    bytes_a_sync: Vec<f64>,
}

impl Costs {
    async fn measure(&mut self, subjects: &Subjects, topic: &Topic, counts: bool) {
        let (before, processors) = (subjects.stats(), processor_seconds());
        let (us, records) = by_producer(subjects, topic).await;
        let (stats, processors) = (subjects.stats(), processor_seconds() - processors);
        let syncs = (stats.syncs - before.syncs).max(1) as f64;
        let bytes = stats.bytes_written - before.bytes_written;
        if counts {
            self.us.push(us);
            self.cpu_us.push(processors * 1e6 / f64::from(records));
            self.records_a_sync.push(f64::from(records) / syncs);
            self.bytes_a_sync.push(bytes as f64 / syncs);
        }
    }
}

pub async fn partitions(subjects: &Subjects, report: &mut Report, bars: &mut Bars) {
    let one = subjects.topic("one-partition", 1).await;
    let many = subjects.topic("partitions", 1_000).await;
    let (mut of_one, mut of_many) = (Costs::default(), Costs::default());
    for round in 0..=ROUNDS {
        of_one.measure(subjects, &one, round > 0).await;
        of_many.measure(subjects, &many, round > 0).await;
    }
    let rows = [
        ("1,000 partitions, 64 producers, a record", &of_many.us, &of_one.us, "us"),
        ("... processor time for a record", &of_many.cpu_us, &of_one.cpu_us, "us"),
        ("... records for each sync", &of_many.records_a_sync, &of_one.records_a_sync, ""),
        ("... bytes for each sync", &of_many.bytes_a_sync, &of_one.bytes_a_sync, ""),
    ];
    for (name, many, one, unit) in rows {
        report.beside(
            name,
            Figure::from(many.clone()),
            "one partition",
            Figure::from(one.clone()),
            unit,
        );
    }
    let name = "1,000 partitions to one";
    bars.add_ratio(name, &of_one.us, &of_many.us, Side::AtLeast, 0.9);
}

/// Times from the call of `send` to the return of the poll that has the record, in us.
async fn ways(backend: Arc<dyn Backend>, topic: &str) -> Vec<f64> {
    const RECORDS: usize = 400;
    backend.create_topic(topic, 1).await.expect("a topic");
    let producer = backend.producer().await.expect("a producer");
    let subscription = Subscription::new(topic, [topic]);
    let mut consumer = backend.consumer(subscription).await.expect("a consumer");
    consumer.poll(Duration::from_millis(200)).await.expect("it joins");
    let (start, name) = (Instant::now(), topic.to_owned());
    let sending = tokio::spawn(async move {
        for _ in 0..RECORDS {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let mut value = start.elapsed().as_nanos().to_string().into_bytes();
            value.resize(100, b' ');
            producer.send_one(&name, Record::new(value)).await.expect("it is stored");
        }
    });
    let mut times = Vec::new();
    while times.len() < RECORDS {
        for read in consumer.poll(Duration::from_secs(1)).await.expect("it works") {
            let value = read.record.value.unwrap_or_default();
            let sent = String::from_utf8_lossy(&value).trim_end().parse::<u64>().expect("a time");
            times.push((start.elapsed().as_nanos() as u64).saturating_sub(sent) as f64 / 1e3);
        }
        consumer.commit().await.expect("it is committed");
    }
    sending.await.expect("it has sent");
    times
}

pub async fn latency(subjects: &Subjects, report: &mut Report) {
    let embedded: Arc<dyn Backend> = Arc::new(Embedded::new(subjects.queue.clone()));
    let jetstream = subjects.jetstream().map(|jetstream| Arc::new(jetstream) as Arc<dyn Backend>);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let p99 = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() * 99 / 100]
    };
    for round in 0..=ROUNDS {
        let topic = format!("ways-{}-{round}", std::process::id());
        let mine = ways(Arc::clone(&embedded), &topic).await;
        let other = match &jetstream {
            Some(jetstream) => Some(ways(Arc::clone(jetstream), &topic).await),
            None => None,
        };
        if round > 0 {
            ours.push((median(mine.clone()), p99(mine)));
            theirs.extend(other.map(|other| (median(other.clone()), p99(other))));
        }
    }
    let split = |rounds: &[(f64, f64)]| -> (Vec<f64>, Vec<f64>) { rounds.iter().copied().unzip() };
    let (mine, other) = (split(&ours), split(&theirs));
    for (name, mine, other) in [("p50", mine.0, other.0), ("p99", mine.1, other.1)] {
        let name = format!("from send to poll, {name}");
        if other.is_empty() {
            report.alone(&name, Figure::from(mine), "us");
        } else {
            report.beside(
                &name,
                Figure::from(mine),
                "JetStream, unsynced",
                Figure::from(other),
                "us",
            );
        }
    }
}
