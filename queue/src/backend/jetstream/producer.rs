//! A producer: publishes with an id, and publishes again with the same id until it is answered.
//!
//! Only while the client is connected: what is published before it has connected again is parked in
//! the client, and would be stored whenever it has, also when the server has forgotten the id. What
//! was handed to the client just before it noticed that the connection is lost is parked still: one
//! attempt, which is a second record if the connection stays away for `duplicate_window`.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_nats::HeaderMap;
use async_nats::connection::State;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Error as ServerError, ErrorCode};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use super::{JetStream, MAX_IN_FLIGHT, wire};
use crate::backend::{BackendError, Position, Producer};
use crate::format::Record;
use crate::partitioner::{Murmur2, Partitioner};

/// Records of one call that are on their way at the same time.
const ROUND: usize = 512;
/// Topics whose number of partitions is remembered.
const MAX_TOPICS: usize = 1_000;
/// Before a record is published again that the server has not taken.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct JetStreamProducer {
    backend: JetStream,
    /// Begins the ids of this producer's messages: no other producer has it.
    unique: String,
    next: AtomicU64,
    /// Partitions by topic.
    topics: Mutex<HashMap<String, u32>>,
    in_flight: Semaphore,
}

/// A record that is not answered yet.
struct Pending {
    /// Its place among the records of the call.
    at: usize,
    partition: u32,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
    /// An attempt had no answer: it may have been stored.
    is_unknown: bool,
}

/// What became of an attempt.
enum Attempt {
    Stored(u64),
    /// It was not stored by this attempt; another one may be.
    Again(String),
    /// It may have been stored: only another attempt with the same id says.
    Unclear(String),
    /// No stream has the subject.
    NoStream,
    Failed(BackendError),
}

impl JetStreamProducer {
    pub(super) fn new(backend: JetStream) -> Self {
        // An inbox is unique, and so is what follows its prefix.
        let inbox = backend.shared.client.new_inbox();
        let unique = inbox.rsplit('.').next().unwrap_or(&inbox).to_owned();
        Self {
            backend,
            unique,
            next: AtomicU64::new(0),
            topics: Mutex::default(),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
        }
    }

    async fn partitions(&self, topic: &str) -> Result<u32, BackendError> {
        if let Some(partitions) = self.topics.lock().get(topic) {
            return Ok(*partitions);
        }
        let partitions = self.backend.partitions(topic).await?;
        let mut topics = self.topics.lock();
        if topics.len() >= MAX_TOPICS {
            topics.clear();
        }
        topics.insert(topic.to_owned(), partitions);
        Ok(partitions)
    }

    fn pending(&self, at: usize, record: &Record, subject: &str, partitions: u32) -> Pending {
        let number = self.next.fetch_add(1, Relaxed);
        let (headers, payload) = wire::to_message(record, || format!("p:{}-{number}", self.unique));
        let partition = Murmur2.partition("", record, partitions);
        let partition = partition.unwrap_or((number % u64::from(partitions)) as u32);
        let subject = format!("{subject}.{partition}");
        Pending { at, partition, subject, headers, payload, is_unknown: false }
    }

    /// Publishes once, without waiting for the answer.
    async fn publish(&self, pending: &Pending) -> Result<PublishAckFuture, PublishError> {
        let message = PublishMessage::build()
            .payload(pending.payload.clone())
            .headers(pending.headers.clone());
        self.backend.shared.context.send_publish(pending.subject.clone(), message).await
    }

    /// Publishes all that are not answered, in order, and waits for the answers: for all at once,
    /// since the time of each begins when it is waited for.
    async fn round(&self, waiting: &[Pending], deadline: Instant) -> Vec<Attempt> {
        let (mut sent, mut unsent) = (Vec::with_capacity(waiting.len()), Vec::new());
        for pending in waiting {
            // None behind one that is not published: the order of a key is that of the call.
            let state = self.backend.shared.client.connection_state();
            if !unsent.is_empty() || state != State::Connected {
                unsent.push(Attempt::Again(format!("the connection is {state:?}")));
                continue;
            }
            sent.push(timeout_at(deadline, self.publish(pending)).await);
        }
        let late = || Attempt::Unclear("delivery_timeout is over".to_owned());
        let answered = join_all(sent.into_iter().map(|sent| async move {
            let answer = match sent {
                Ok(Ok(future)) => timeout_at(deadline, future.into_future()).await,
                Ok(Err(error)) => Ok(Err(error)),
                Err(elapsed) => Err(elapsed),
            };
            match answer {
                Ok(Ok(ack)) => Attempt::Stored(ack.sequence),
                Ok(Err(error)) => attempt(&error),
                Err(_elapsed) => late(),
            }
        }));
        let mut all = answered.await;
        all.append(&mut unsent);
        all
    }

    /// Sends at most [`ROUND`] records, each until it is answered or the time is over.
    async fn deliver(
        &self,
        topic: &str,
        mut waiting: Vec<Pending>,
        answers: &mut [Option<Result<Position, BackendError>>],
    ) {
        // All at once: two calls that each hold a part and wait for the rest would wait for ever.
        let permits = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        let deadline = Instant::now() + self.backend.shared.config.delivery_timeout;
        let Ok(_room) = timeout_at(deadline, self.in_flight.acquire_many(permits)).await else {
            for pending in waiting {
                let why = "earlier records wait for their answers".to_owned();
                answers[pending.at] = Some(Err(BackendError::Unavailable { why }));
            }
            return;
        };
        // Ends: at the deadline, or when all are answered.
        loop {
            let attempts = self.round(&waiting, deadline).await;
            let (mut again, mut has_no_stream) = (Vec::new(), false);
            for (mut pending, attempt) in waiting.into_iter().zip(attempts) {
                let why = match attempt {
                    Attempt::Stored(offset) => {
                        let partition = pending.partition;
                        answers[pending.at] = Some(Ok(Position { partition, offset }));
                        continue;
                    }
                    Attempt::Failed(error) => {
                        let earlier = || BackendError::Unknown { why: error.to_string() };
                        let error = if pending.is_unknown { earlier() } else { error };
                        answers[pending.at] = Some(Err(error));
                        continue;
                    }
                    Attempt::Unclear(why) => {
                        pending.is_unknown = true;
                        why
                    }
                    Attempt::Again(why) => why,
                    Attempt::NoStream => {
                        has_no_stream = true;
                        "no stream has the subject".to_owned()
                    }
                };
                // What is answered if there is no time for another attempt.
                answers[pending.at] = Some(Err(if pending.is_unknown {
                    BackendError::Unknown { why }
                } else {
                    BackendError::Unavailable { why }
                }));
                again.push(pending);
            }
            waiting = again;
            if waiting.is_empty() || Instant::now() + PAUSE >= deadline {
                return;
            }
            if has_no_stream && self.is_gone(topic).await {
                for pending in waiting.iter().filter(|pending| !pending.is_unknown) {
                    let topic = topic.to_owned();
                    answers[pending.at] = Some(Err(BackendError::UnknownTopic { topic }));
                }
                return;
            }
            sleep_until(Instant::now() + PAUSE).await;
        }
    }

    /// Whether the topic was deleted, rather than without a leader for now.
    async fn is_gone(&self, topic: &str) -> bool {
        self.topics.lock().remove(topic);
        matches!(self.partitions(topic).await, Err(BackendError::UnknownTopic { .. }))
    }
}

/// What the error of an attempt says about the record.
fn attempt(error: &PublishError) -> Attempt {
    let why = error.to_string();
    let said = error.source().and_then(|source| source.downcast_ref::<ServerError>());
    match (error.kind(), said) {
        (PublishErrorKind::StreamNotFound, _) => Attempt::NoStream,
        (PublishErrorKind::MaxPayloadExceeded, _) => {
            Attempt::Failed(BackendError::Rejected { why })
        }
        (_, Some(said)) => match said.error_code() {
            ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::CLUSTER_NOT_LEADER => Attempt::Again(why),
            // Out of room: the application decides how long it waits.
            ErrorCode::INSUFFICIENT_RESOURCES
            | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
            | ErrorCode::STREAM_STORE_FAILED => Attempt::Failed(BackendError::Unavailable { why }),
            _ => Attempt::Failed(BackendError::Rejected { why }),
        },
        // No answer, or one that says nothing.
        _ => Attempt::Unclear(why),
    }
}

#[async_trait]
impl Producer for JetStreamProducer {
    async fn send(&self, topic: &str, records: Vec<Record>) -> Vec<Result<Position, BackendError>> {
        let known = self.backend.names(topic);
        let known = match known {
            Ok((_, subject)) => {
                self.partitions(topic).await.map(|partitions| (subject, partitions))
            }
            Err(error) => Err(error),
        };
        let (subject, partitions) = match known {
            Ok(known) => known,
            Err(error) => return records.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut answers: Vec<Option<Result<Position, BackendError>>> = vec![None; records.len()];
        let mut at = 0;
        for chunk in records.chunks(ROUND) {
            let waiting = chunk.iter().map(|record| {
                at += 1;
                self.pending(at - 1, record, &subject, partitions)
            });
            let waiting = waiting.collect();
            self.deliver(topic, waiting, &mut answers).await;
        }
        let nothing = || BackendError::Unknown { why: "no answer".to_owned() };
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(nothing()))).collect()
    }
}

impl fmt::Debug for JetStreamProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamProducer").field("unique", &self.unique).finish_non_exhaustive()
    }
}
