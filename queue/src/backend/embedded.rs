//! The queue of this process as a back end.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    Backend, BackendError, Consumer, Delivery, NO_MESSAGE_IDS, Need, Output, Position, Producer,
    Received, Refused, Subscription, check_subscription, refuse_message_id,
};
use crate::config::{ConsumerConfig, Guarantee, ProducerConfig, TopicConfig, check_name};
use crate::consumer::{self, Polled};
use crate::format::Record;
use crate::partitioner::{Murmur2, Partitioner};
use crate::producer::SendFuture;
use crate::queue::{Queue, TopicPartition};
use crate::store::Durability;

const NAME: &str = "the embedded queue";

/// The queue of this process: the default back end.
#[derive(Clone, Debug)]
pub struct Embedded {
    queue: Queue,
    producer: ProducerConfig,
}

impl Embedded {
    /// A back end over a queue. The queue can be used directly beside it.
    pub fn new(queue: Queue) -> Self {
        Self { queue, producer: ProducerConfig::default() }
    }

    /// Sets what its producers do with records.
    #[must_use]
    pub fn producer_config(mut self, config: ProducerConfig) -> Self {
        self.producer = config;
        self
    }
}

#[async_trait]
impl Backend for Embedded {
    fn name(&self) -> &'static str {
        NAME
    }

    fn provides(&self, need: Need) -> Result<(), Refused> {
        let why = match need {
            Need::SyncedSend
            | Need::KeyOrder
            | Need::ExactlyOnce
            | Need::FencedCommits
            | Need::DeletedGroups => return Ok(()),
            Need::MessageIds(_) => NO_MESSAGE_IDS,
            Need::DeliveryCounts => "offsets count nothing; use a WorkQueue over the topic",
        };
        Err(Refused::new(NAME, need, why))
    }

    async fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), BackendError> {
        use crate::error::TopicError;
        match self.queue.create_topic(topic, TopicConfig::partitions(partitions)).await {
            Ok(_) => Ok(()),
            Err(TopicError::Exists { .. }) => {
                let found = self.queue.topic(topic)?.partitions();
                if found == partitions {
                    return Ok(());
                }
                Err(BackendError::Mismatch {
                    what: format!("the topic {topic:?}"),
                    field: "partitions",
                    found: found.to_string(),
                    wanted: partitions.to_string(),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn producer(&self) -> Result<Arc<dyn Producer>, BackendError> {
        let inner = self.queue.producer(self.producer.clone()).await?;
        Ok(Arc::new(EmbeddedProducer { queue: self.queue.clone(), inner }))
    }

    async fn consumer(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        check_subscription(self, &subscription)?;
        for topic in &subscription.topics {
            self.queue.topic(topic)?;
        }
        let mut config = ConsumerConfig::group(&subscription.group, subscription.topics);
        config.guarantee = match subscription.delivery {
            Delivery::AtMostOnce => Guarantee::AtMostOnce,
            Delivery::AtLeastOnce => Guarantee::Manual,
            Delivery::ExactlyOnce => Guarantee::ExactlyOnce,
        };
        config.start = subscription.start;
        config.session_timeout = subscription.processing_timeout;
        config.rebalance_timeout = subscription.processing_timeout.min(config.rebalance_timeout);
        config.max_poll_records = subscription.max_poll_records;
        Ok(Box::new(EmbeddedConsumer {
            inner: self.queue.consumer(config)?,
            queue: self.queue.clone(),
            delivery: subscription.delivery,
            polled: BTreeSet::new(),
            revoking: BTreeSet::new(),
            has_lost: false,
            turn: AtomicU32::new(0),
        }))
    }

    async fn delete_group(&self, group: &str) -> Result<(), BackendError> {
        check_name("group", group)?;
        Ok(self.queue.delete_group(group).await?)
    }
}

struct EmbeddedProducer {
    queue: Queue,
    inner: crate::producer::Producer,
}

impl EmbeddedProducer {
    async fn enqueue(&self, topic: &str, record: Record) -> Result<SendFuture, BackendError> {
        refuse_message_id(NAME, &record)?;
        let topic = self.queue.topic(topic)?;
        Ok(self.inner.enqueue(&topic, record, Durability::Synced).await?)
    }
}

#[async_trait]
impl Producer for EmbeddedProducer {
    async fn send(&self, topic: &str, records: Vec<Record>) -> Vec<Result<Position, BackendError>> {
        let mut queued = Vec::with_capacity(records.len());
        for record in records {
            queued.push(self.enqueue(topic, record).await);
        }
        let mut answers = Vec::with_capacity(queued.len());
        for queued in queued {
            answers.push(match queued {
                Ok(queued) => match queued.await {
                    Ok(at) => Ok(Position { partition: at.partition.partition, offset: at.offset }),
                    Err(error) => Err(error.into()),
                },
                Err(error) => Err(error),
            });
        }
        answers
    }
}

struct EmbeddedConsumer {
    inner: consumer::Consumer,
    queue: Queue,
    delivery: Delivery,
    /// Partitions of records that were returned since the last commit.
    polled: BTreeSet<TopicPartition>,
    /// Partitions that the next poll of `inner` gives up.
    revoking: BTreeSet<TopicPartition>,
    /// Records that were returned since the last commit are another member's by now. A commit of
    /// results made of them would double what the other member makes.
    has_lost: bool,
    /// Partition of the next output without a key.
    turn: AtomicU32,
}

impl EmbeddedConsumer {
    fn forget(&mut self) {
        self.polled.clear();
        self.has_lost = false;
    }

    fn note(&mut self, polled: &Polled) {
        for lost in &polled.lost {
            // Nobody else is given what was deleted.
            if self.queue.topic(&lost.topic).is_err() {
                self.polled.remove(lost);
            }
            self.has_lost |= self.polled.contains(lost);
        }
        self.revoking = polled.revoking.iter().cloned().collect();
        if self.delivery != Delivery::AtMostOnce {
            self.polled.extend(polled.records.iter().map(|read| read.partition.clone()));
        }
    }

    /// Ends a commit: goes back when nothing was committed.
    fn settle(&mut self, result: Result<(), BackendError>) -> Result<(), BackendError> {
        self.forget();
        if result.as_ref().is_err_and(|error| error.outcome() == crate::Outcome::NotApplied) {
            self.inner.rewind()?;
        }
        result
    }

    fn check_lost(&self) -> Result<(), BackendError> {
        if self.has_lost {
            let why = "partitions that they came from were given to another member".to_owned();
            return Err(BackendError::Lost { why });
        }
        Ok(())
    }

    async fn transact(&mut self, outputs: Vec<Output>) -> Result<(), BackendError> {
        self.check_lost()?;
        let mut transaction = self.queue.transaction();
        for Output { topic, record } in outputs {
            refuse_message_id(NAME, &record)?;
            let topic = self.queue.topic(&topic)?;
            let partitions = topic.partitions();
            let partition = Murmur2.partition(topic.name(), &record, partitions);
            let partition =
                partition.unwrap_or_else(|| self.turn.fetch_add(1, Relaxed) % partitions);
            transaction.send(&topic, partition, &record)?;
        }
        transaction.offsets(&self.inner)?;
        transaction.commit().await?;
        Ok(())
    }
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    async fn poll(&mut self, max_wait: Duration) -> Result<Vec<Received>, BackendError> {
        let deadline = Instant::now().checked_add(max_wait);
        // Ends: at the deadline, or when there is something for the caller to do.
        loop {
            self.has_lost |= self.revoking.iter().any(|going| self.polled.contains(going));
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => max_wait,
            };
            let polled = self.inner.poll(left).await?;
            self.note(&polled);
            // A caller who has not committed yet may do so before the next poll.
            let must_commit = self.revoking.iter().any(|going| self.polled.contains(going));
            if !polled.records.is_empty() || left.is_zero() || must_commit {
                let received = |read: consumer::ConsumerRecord| Received {
                    topic: read.partition.topic,
                    position: Position {
                        partition: read.partition.partition,
                        offset: read.record.offset,
                    },
                    record: read.record,
                    deliveries: None,
                };
                return Ok(polled.records.into_iter().map(received).collect());
            }
        }
    }

    async fn commit(&mut self) -> Result<(), BackendError> {
        if self.polled.is_empty() {
            return Ok(());
        }
        let result = match self.delivery {
            Delivery::AtMostOnce => return Ok(()),
            Delivery::AtLeastOnce => match self.check_lost() {
                Ok(()) => self.inner.commit().await.map_err(Into::into),
                Err(error) => Err(error),
            },
            Delivery::ExactlyOnce => self.transact(Vec::new()).await,
        };
        self.settle(result)
    }

    async fn commit_with(&mut self, outputs: Vec<Output>) -> Result<(), BackendError> {
        let result = match self.delivery {
            // A member that has not joined yet has no generation to commit in.
            Delivery::ExactlyOnce if outputs.is_empty() => return self.commit().await,
            Delivery::ExactlyOnce => self.transact(outputs).await,
            _ => {
                let why = "the subscription's delivery is not `ExactlyOnce`";
                Err(Refused::new(NAME, Need::ExactlyOnce, why).into())
            }
        };
        self.settle(result)
    }

    async fn rewind(&mut self) -> Result<(), BackendError> {
        self.forget();
        Ok(self.inner.rewind()?)
    }

    async fn close(self: Box<Self>) -> Result<(), BackendError> {
        // Dropped, it leaves: `Manual` and `ExactlyOnce` store nothing then.
        Ok(())
    }
}

impl fmt::Debug for EmbeddedProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for EmbeddedConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
