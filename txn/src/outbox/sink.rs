//! The seam to where messages go.

use async_trait::async_trait;
use bytes::Bytes;

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Unique among all messages of all outboxes, and the same at every delivery: what an
    /// [`Inbox`](super::Inbox) tells a duplicate by.
    pub id: String,
    /// Grows from one message of a key to the next.
    pub number: u64,
    /// Where it goes.
    pub topic: String,
    /// Messages of one key are delivered in order.
    pub key: String,
    /// What it says.
    pub body: Bytes,
    /// The part of the keys that its key belongs to.
    pub lane: u32,
    /// Grows each time that another relay takes the lane. A sink that keeps the largest of each
    /// lane can refuse a relay that was replaced and does not know it.
    pub epoch: u64,
}

impl Message {
    /// A message, for tests of sinks.
    pub fn new(id: &str, number: u64, topic: &str, key: &str, body: impl Into<Bytes>) -> Self {
        let (id, topic, key) = (id.to_owned(), topic.to_owned(), key.to_owned());
        Self { id, number, topic, key, body: body.into(), lane: 0, epoch: 1 }
    }
}

/// A delivery failed. What was not delivered is tried again after a pause; other keys go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("after {delivered} messages: {why}")]
pub struct SinkError {
    /// Messages from the first on that the sink has, durably.
    pub delivered: usize,
    /// Why the next one was not taken.
    pub why: String,
}

impl SinkError {
    /// An error after the first `delivered` messages.
    pub fn new(delivered: usize, why: impl ToString) -> Self {
        Self { delivered, why: why.to_string() }
    }
}

/// Where messages go. Called from tasks of the relay, without any lock held; a call that panics, or
/// takes longer than [`RelayConfig::deliver_timeout`](super::RelayConfig::deliver_timeout), counts
/// as one that delivered nothing.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Takes messages of one key, in order, and returns when all are durable there. The same
    /// message may come again: its id is the same then.
    ///
    /// # Errors
    /// [`SinkError`] says how many were taken.
    ///
    /// # Cancel safety
    /// The future is dropped when it takes too long; its messages come again.
    async fn deliver(&self, messages: &[Message]) -> Result<(), SinkError>;
}
