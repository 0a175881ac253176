//! The pipeline: a log of orders, and a work queue over it for each service.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use voussoir_journal::Journal;
use voussoir_queue::work::{Delivery, WorkConfig, WorkError, WorkQueue};
use voussoir_queue::{
    BatchBuilder, Durability, OpenError, Partition, Queue, QueueConfig, TopicConfig, TopicError,
};

use crate::order::Order;
use crate::services::{Failure, NAMES, Service};

const TOPIC: &str = "orders";
/// How long a worker waits for an order before it looks whether it is still wanted.
const WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the journal: {0}")]
    Journal(#[from] voussoir_journal::OpenError),
    #[error("the queue: {0}")]
    Open(#[from] OpenError),
    #[error("the topic: {0}")]
    Topic(#[from] TopicError),
    #[error("the order: {0}")]
    Encode(#[from] serde_json::Error),
    #[error("the order: {0}")]
    Batch(#[from] voussoir_queue::format::FormatError),
    #[error("the order may or may not be in the log: {0}")]
    Append(#[from] voussoir_queue::ProduceError),
    #[error("the workers of {service} have ended: {why}; start again, it goes on where it was")]
    WorkersEnded { service: &'static str, why: String },
    #[error(
        "{service} has {limit} dead letters, as many as there may be, and gets no further orders: \
         see `dead-letters`, then `redrive` or `purge` them"
    )]
    DeadLettersFull { service: &'static str, limit: usize },
}

/// How the workers of a service lease orders.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    /// An order that a worker died with is given to another one after this.
    pub(crate) lease: Duration,
    pub(crate) min_backoff: Duration,
    pub(crate) max_backoff: Duration,
    pub(crate) max_deliveries: u32,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            min_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(60),
            max_deliveries: 10,
        }
    }
}

pub(crate) struct Pipeline {
    orders: Partition,
    /// In the order of `NAMES`.
    groups: Vec<WorkQueue>,
    max_dead_letters: usize,
    lease: Duration,
    _queue: Queue,
}

impl Pipeline {
    /// Opens the log in `folder`, and goes on with what is in it.
    pub(crate) async fn open(folder: &Path, times: &Times) -> Result<Self, Error> {
        let journal = Journal::open(folder.join("journal"), voussoir_journal::Config::default())?;
        let queue = Queue::open(&journal, "shop", QueueConfig::default())?;
        let topic = match queue.topic(TOPIC) {
            Ok(topic) => topic,
            Err(_) => queue.create_topic(TOPIC, TopicConfig::partitions(1)).await?,
        };
        let mut config = WorkConfig::default();
        config.visibility_timeout = times.lease;
        (config.min_backoff, config.max_backoff) = (times.min_backoff, times.max_backoff);
        config.max_deliveries = times.max_deliveries;
        let group = |name: &&str| queue.work_queue(TOPIC, 0, name, config.clone());
        let groups = NAMES.iter().map(group).collect::<Result<_, _>>()?;
        let (orders, max_dead_letters) = (topic.partition(0)?, config.max_dead_letters);
        Ok(Self { orders, groups, max_dead_letters, lease: times.lease, _queue: queue })
    }

    /// Takes an order. When this returns, every service will get it, whatever loses power. After
    /// [`Error::Append`] of an unknown outcome send it again: services do an order once.
    pub(crate) async fn place(&self, order: &Order) -> Result<(), Error> {
        let mut batch = BatchBuilder::new();
        batch.push(&order.record()?)?;
        self.orders.append(batch.finish()?, Durability::Synced).await?;
        Ok(())
    }

    /// Lets go of the orders that every service has done. Dead letters are kept elsewhere.
    pub(crate) async fn release(&self) {
        let floors = self.groups.iter().map(|group| group.stats().floor);
        let released = self.orders.release_before(floors.min().unwrap_or(0)).await;
        if let Err(error) = released {
            // The next call releases more.
            eprintln!("orders that are done are not released: {error}");
        }
    }

    pub(crate) fn groups(&self) -> &[WorkQueue] {
        &self.groups
    }

    /// Checks that each service can have another dead letter: without room for one, what it cannot
    /// do keeps the place of what it could.
    pub(crate) fn check_room(&self) -> Result<(), Error> {
        let limit = self.max_dead_letters;
        let mut groups = NAMES.iter().zip(&self.groups);
        match groups.find(|(_, group)| group.stats().dead_letters >= limit) {
            Some((service, _)) => Err(Error::DeadLettersFull { service, limit }),
            None => Ok(()),
        }
    }

    /// Starts workers of one service, which end when they are aborted or the queue is closed.
    pub(crate) fn start(
        &self,
        group: usize,
        service: &Arc<Service>,
        count: usize,
    ) -> Vec<JoinHandle<()>> {
        // Before the lease ends, and with it the right to say what became of the order.
        let limit = self.lease / 2;
        let worker = |_| work(self.groups[group].clone(), Arc::clone(service), limit);
        (0..count).map(|nth| tokio::spawn(worker(nth))).collect()
    }

    /// Delivers no more orders.
    pub(crate) fn close(&self) {
        self.groups.iter().for_each(WorkQueue::close);
    }
}

/// One worker: an order at a time.
async fn work(group: WorkQueue, service: Arc<Service>, limit: Duration) {
    // Ends when the work queue is closed, or has stopped after a failed write.
    loop {
        match group.receive(1, WAIT).await {
            Ok(deliveries) => {
                for delivery in deliveries {
                    let settled = settle(&group, &service, &delivery, limit).await;
                    if let Err(error) = settled {
                        // The order is delivered again: the service does it once.
                        eprintln!("{}: {error}", service.name);
                    }
                }
            }
            Err(error) if error.is_retryable() => tokio::time::sleep(WAIT).await,
            Err(_) => return,
        }
    }
}

/// Has the service do an order within `limit`, and says what became of it.
async fn settle(
    group: &WorkQueue,
    service: &Service,
    delivery: &Delivery,
    limit: Duration,
) -> Result<(), WorkError> {
    let receipt = &delivery.receipt;
    let order = match Order::read(&delivery.record) {
        Ok(order) => order,
        Err(error) => return group.reject(receipt, &error.to_string()).await,
    };
    match timeout(limit, service.perform(&order)).await {
        Ok(Ok(())) => group.ack(receipt).await,
        // Again, after a pause that doubles each time.
        Err(_) | Ok(Err(Failure::Temporary { .. })) => group.nack(receipt, None).await,
        Ok(Err(failure @ Failure::Permanent { .. })) => {
            group.reject(receipt, &failure.to_string()).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its workers would wait for ever, and orders that it could do with them.
    #[tokio::test]
    async fn a_service_that_hangs_keeps_no_worker() {
        let folder = tempfile::tempdir().unwrap();
        let mut times = Times { lease: Duration::from_millis(200), ..Times::default() };
        (times.min_backoff, times.max_deliveries) = (Duration::from_millis(1), 2);
        let pipeline = Pipeline::open(folder.path(), &times).await.unwrap();
        let hangs = Arc::new(Service::new("payment", Duration::from_secs(3_600)));
        pipeline.start(0, &hangs, 1);
        let order = |id| Order { id, customer: "ada".to_owned(), article: "teapot".to_owned() };
        for id in 0..2 {
            pipeline.place(&order(id)).await.unwrap();
        }
        let both_given_up = async {
            while pipeline.groups()[0].stats().dead_letters < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(20), both_given_up).await.expect("the worker hangs");
        pipeline.check_room().unwrap();
        pipeline.close();
    }
}
