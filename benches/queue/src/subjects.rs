//! Who is measured, each in the way its users would write it.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tempfile::TempDir;
use voussoir_journal::{Commit, Config, Journal, Log, Stats};
use voussoir_queue::backend::jetstream::async_nats::{self, jetstream};
use voussoir_queue::backend::jetstream::{JetStream, JetStreamConfig};
use voussoir_queue::{
    BatchBuilder, Durability, Partition, Queue, QueueConfig, Record, Topic, TopicConfig,
};

use crate::redis::Redis;

/// What a subject keeps, in bytes; older records go, so that segments are used again.
const KEPT_BYTES: u64 = 128 << 20;
const STREAM: &str = "bench";

pub type Sent = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Everything that takes part. The journal and the queue have a journal each.
pub struct Subjects {
    folder: TempDir,
    bare: Journal,
    /// The journal of `queue`.
    journal: Journal,
    pub queue: Queue,
    redis: Option<Redis>,
    nats: Option<async_nats::Client>,
}

impl Subjects {
    pub async fn open() -> Self {
        let folder = tempfile::tempdir_in("target").expect("a folder");
        let journal = |name: &str| {
            let mut config = Config::default();
            config.max_bytes = 8 << 30;
            Journal::open(folder.path().join(name), config).expect("a journal")
        };
        let ours = journal("queue");
        let queue = Queue::open(&ours, "bench", QueueConfig::default());
        let redis = match std::env::var("REDIS_URL") {
            Ok(url) => Some(Redis::connect(&url).await),
            Err(_) => None,
        };
        let nats = match std::env::var("NATS_URL") {
            Ok(url) => Some(async_nats::connect(url).await.expect("NATS answers")),
            Err(_) => None,
        };
        for (variable, is_there) in [("REDIS_URL", redis.is_some()), ("NATS_URL", nats.is_some())] {
            if !is_there {
                println!("left out: {variable} names no server");
            }
        }
        let (bare, queue) = (journal("bare"), queue.expect("a queue"));
        Self { folder, bare, journal: ours, queue, redis, nats }
    }

    /// What the queue's journal has done.
    pub fn stats(&self) -> Stats {
        self.journal.stats()
    }

    /// For what is gone with them.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A back end over the NATS server.
    pub fn jetstream(&self) -> Option<JetStream> {
        let nats = self.nats.clone()?;
        Some(JetStream::new(nats, JetStreamConfig::default()).expect("a valid configuration"))
    }

    pub async fn topic(&self, name: &str, partitions: u32) -> Topic {
        let topic = self.queue.create_topic(name, TopicConfig::partitions(partitions)).await;
        topic.expect("a topic")
    }

    /// Those that send batches of so many records of so many bytes, by name. Each call begins to
    /// send one.
    pub async fn senders(&self, records: usize, bytes: usize) -> Vec<(&'static str, Sender)> {
        self.senders_named(&format!("batches-{records}-{bytes}"), records, bytes).await
    }

    async fn senders_named(
        &self,
        topic: &str,
        records: usize,
        bytes: usize,
    ) -> Vec<(&'static str, Sender)> {
        let value = vec![b'v'; bytes];
        let partition = self.topic(topic, 1).await.partition(0).expect("a partition").clone();
        let mut senders = vec![
            ("ours", ours(partition, records, value.clone(), Durability::Synced)),
            ("a bare journal", self.bare(records, &value)),
        ];
        if let Some(redis) = self.redis.clone() {
            let value: Arc<[u8]> = value.clone().into();
            let send = move || -> Sent {
                let (redis, value) = (redis.clone(), Arc::clone(&value));
                Box::pin(async move { redis.add(records, &value).await })
            };
            senders.push(("Redis Streams, appendfsync always", spawned(send)));
        }
        if let Some(nats) = self.nats.clone() {
            let context = jetstream::new(nats);
            let config = jetstream::stream::Config {
                name: STREAM.to_owned(),
                subjects: vec![STREAM.to_owned()],
                max_messages: 50_000,
                ..Default::default()
            };
            context.get_or_create_stream(config).await.expect("a stream");
            let send = move || -> Sent {
                let (context, value) = (context.clone(), value.clone());
                Box::pin(async move {
                    let mut sent = Vec::with_capacity(records);
                    for _ in 0..records {
                        let published = context.publish(STREAM, value.clone().into()).await;
                        sent.push(published.expect("it is sent"));
                    }
                    for sent in sent {
                        sent.await.expect("it is stored");
                    }
                })
            };
            senders.push(("JetStream, unsynced", spawned(send)));
        }
        senders
    }

    /// As [`senders`](Self::senders), of single records of 100 B, without ours.
    pub async fn senders_of_one(&self, round: usize) -> Vec<(&'static str, Sender)> {
        let all = self.senders_named(&format!("one-{round}"), 1, 100).await;
        all.into_iter().skip(1).collect()
    }

    /// A log of the bare journal with so many records of these bytes.
    pub async fn bare_log(&self, bytes: &[u8], records: u64) -> Log {
        let log = self.bare.log("reads", 1).expect("a log");
        for _ in 0..records {
            let commit = Commit::new().append(&log, [bytes]);
            self.bare.commit(commit).await.expect("a commit");
        }
        log
    }

    /// Commits of the bytes of the batch that ours writes.
    pub fn bare(&self, records: usize, value: &[u8]) -> Sender {
        static LOGS: AtomicU64 = AtomicU64::new(1);
        let (journal, batch) = (self.bare.clone(), batch(records, value));
        let log = journal.log("bench", LOGS.fetch_add(1, Relaxed)).expect("a log");
        let kept = KEPT_BYTES / batch.bytes().len() as u64;
        Box::new(move || {
            let commit = journal.commit(append(&log, batch.bytes(), kept));
            Box::pin(async move { drop(commit.await.expect("a commit")) })
        })
    }
}

/// Begins to send one batch, and returns the end of that.
pub type Sender = Box<dyn FnMut() -> Sent + Send>;

/// So that it begins with the call.
fn spawned(mut send: impl FnMut() -> Sent + Send + 'static) -> Sender {
    Box::new(move || {
        let task = tokio::spawn(send());
        Box::pin(async move { task.await.expect("it is sent") })
    })
}

fn append(log: &Log, bytes: &[u8], kept: u64) -> Commit {
    let commit = Commit::new().append(log, [bytes]);
    match log.end().checked_sub(kept) {
        Some(upto) if upto > log.first() + kept / 4 => commit.release(log, upto),
        _ => commit,
    }
}

pub fn batch(records: usize, value: &[u8]) -> voussoir_queue::Batch {
    let mut builder = BatchBuilder::with_capacity(records * (value.len() + 16));
    for _ in 0..records {
        builder.push(&Record::new(value.to_vec())).expect("there is room");
    }
    builder.finish().expect("a batch")
}

/// Builds a batch and appends it.
pub fn ours(
    partition: Partition,
    records: usize,
    value: Vec<u8>,
    durability: Durability,
) -> Sender {
    let bytes = (records * value.len()).max(1) as u64;
    let kept = KEPT_BYTES / bytes * records as u64;
    let mut released = 0;
    Box::new(move || {
        let appended = partition.append(batch(records, &value), durability);
        let upto = partition.offsets().end.saturating_sub(kept);
        let release = (upto > released + kept / 4).then(|| partition.clone());
        if release.is_some() {
            released = upto;
        }
        Box::pin(async move {
            appended.await.expect("it is appended");
            if let Some(partition) = release {
                partition.release_before(upto).await.expect("it is released");
            }
        })
    })
}
