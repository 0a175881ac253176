//! The pipeline: a log of orders, and a work queue over it for each service.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
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
        Ok(Self { orders: topic.partition(0)?, groups, _queue: queue })
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

    /// Starts workers of one service, which end when they are aborted or the queue is closed.
    pub(crate) fn start(
        &self,
        group: usize,
        service: &Arc<Service>,
        count: usize,
    ) -> Vec<JoinHandle<()>> {
        let worker = |_| tokio::spawn(work(self.groups[group].clone(), Arc::clone(service)));
        (0..count).map(worker).collect()
    }

    /// Delivers no more orders.
    pub(crate) fn close(&self) {
        self.groups.iter().for_each(WorkQueue::close);
    }
}

/// One worker: an order at a time.
async fn work(group: WorkQueue, service: Arc<Service>) {
    // Ends when the work queue is closed, or has stopped after a failed write.
    loop {
        match group.receive(1, WAIT).await {
            Ok(deliveries) => {
                for delivery in deliveries {
                    let settled = settle(&group, &service, &delivery).await;
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

/// Has the service do an order, and says what became of it.
async fn settle(
    group: &WorkQueue,
    service: &Service,
    delivery: &Delivery,
) -> Result<(), WorkError> {
    let receipt = &delivery.receipt;
    let order = match Order::read(&delivery.record) {
        Ok(order) => order,
        Err(error) => return group.reject(receipt, &error.to_string()).await,
    };
    match service.perform(&order).await {
        Ok(()) => group.ack(receipt).await,
        // Again, after a pause that doubles each time.
        Err(Failure::Temporary { .. }) => group.nack(receipt, None).await,
        Err(failure @ Failure::Permanent { .. }) => {
            group.reject(receipt, &failure.to_string()).await
        }
    }
}
