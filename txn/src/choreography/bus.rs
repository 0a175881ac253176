//! The seam to where events are.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::event::{DeadLetter, Event};

/// The bus failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// What was asked for did not happen, and will not. The runner subscribes again.
    #[error("the bus failed: {0}")]
    NotApplied(String),
    /// What was asked for may have happened. The runner subscribes again, and reads what did.
    #[error("the bus failed, and what was asked for may have happened: {0}")]
    Unknown(String),
    /// Another process runs the participant. The runner subscribes again, after a pause.
    #[error("another subscription of the participant has taken over")]
    Fenced,
    /// The event cannot be published: a name is empty or longer than 200 bytes, or it is too long.
    #[error("`{0}` of the event is empty or too long")]
    Misfit(&'static str),
    /// One commit of the queue's journal cannot hold what a commit of the bus may. Nothing was
    /// created; open the journal with larger segments.
    #[error(
        "a commit of the bus may have {needed_bytes} bytes, and one of the journal takes \
         {found_bytes}: open the journal with `segment_bytes` of at least 32 MiB"
    )]
    Segments {
        /// What the journal takes.
        found_bytes: usize,
        /// What the bus needs.
        needed_bytes: usize,
    },
}

/// What a subscription is given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// It reads this partition from now on. What commits have left as its state.
    Assigned {
        /// The partition.
        partition: u32,
        /// Keys and values.
        state: Vec<(Bytes, Bytes)>,
    },
    /// It no longer reads this partition: forget what belongs to it.
    Lost {
        /// The partition.
        partition: u32,
    },
    /// The next event of a partition. It may come again, until a commit.
    Event {
        /// The partition.
        partition: u32,
        /// The event.
        event: Event,
    },
}

/// What has to be durable together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Commit {
    /// Changes of the state: partition, key and value; `None` deletes.
    pub state: Vec<(u32, Bytes, Option<Bytes>)>,
    /// Events to publish, those of one key in order.
    pub publish: Vec<Event>,
    /// Events that were given up.
    pub dead: Vec<DeadLetter>,
}

impl Commit {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.state.is_empty() && self.publish.is_empty() && self.dead.is_empty()
    }
}

/// Where events are. Called without any lock held.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Publishes events that are no reaction: durable on return.
    ///
    /// # Errors
    /// [`BusError`].
    ///
    /// # Cancel safety
    /// Dropped, some may be published: publish them again under the same ids.
    async fn publish(&self, events: &[Event]) -> Result<(), BusError>;

    /// Begins to read for a participant, from where its last commit has left off.
    ///
    /// # Errors
    /// [`BusError`].
    ///
    /// # Cancel safety
    /// Dropped, an older subscription may be fenced.
    async fn subscribe(&self, participant: &str) -> Result<Box<dyn Subscription>, BusError>;

    /// Reads everything that is there, for a watcher.
    ///
    /// # Errors
    /// [`BusError`].
    ///
    /// # Cancel safety
    /// Safe.
    async fn tail(&self) -> Result<Box<dyn Tail>, BusError>;
}

/// A participant's way to the bus. One task owns it.
#[async_trait]
pub trait Subscription: Send {
    /// The next deliveries, waiting at most `max_wait` for one. The runner has committed all that
    /// came before.
    ///
    /// # Errors
    /// [`BusError`].
    ///
    /// # Cancel safety
    /// Safe: what this call has not returned the next one returns.
    async fn poll(&mut self, max_wait: Duration) -> Result<Vec<Delivery>, BusError>;

    /// Makes all of `commit` durable, and that all events that polls have returned are read:
    /// everything, or nothing.
    ///
    /// # Errors
    /// [`BusError`]; the subscription is not used any more.
    ///
    /// # Cancel safety
    /// Dropped, it may be durable; the subscription is not used any more.
    async fn commit(&mut self, commit: Commit) -> Result<(), BusError>;

    /// Bytes of the largest commit: keys, values and events, with 64 bytes for each.
    fn max_commit_bytes(&self) -> usize {
        4 << 20
    }
}

/// What a watcher sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// An event.
    Event(Event),
    /// An event that was given up.
    Dead(DeadLetter),
}

/// Reads all events and dead letters from the first that is kept on.
#[async_trait]
pub trait Tail: Send {
    /// The next ones, waiting at most `max_wait` for one.
    ///
    /// # Errors
    /// [`BusError`].
    ///
    /// # Cancel safety
    /// Safe: what this call has not returned the next one returns.
    async fn next(&mut self, max_wait: Duration) -> Result<Vec<Observed>, BusError>;
}
