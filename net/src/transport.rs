//! The two traits: what sends, and what receives.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::{CallError, Events, Parts, Rejected, SendError, ServeError};

/// Which of the two connections to a peer a message takes.
///
/// They are independent: nothing on [`Class::Small`] ever waits behind a byte of
/// [`Class::Bulk`], and there is no order between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Short messages that others wait for: heartbeats, votes, log entries, requests.
    Small,
    /// Long messages that may take their time: snapshots, moved partitions, repairs.
    Bulk,
}

impl Class {
    /// Both classes.
    pub const ALL: [Self; 2] = [Self::Small, Self::Bulk];
}

/// Where a message goes at its peer: to which service, by which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Channel {
    /// The number under which the peer's handler is registered. Which number means what is for
    /// the process to agree on with its peers.
    pub service: u16,
    /// The connection to take.
    pub class: Class,
}

impl Channel {
    /// A channel of short messages.
    pub const fn small(service: u16) -> Self {
        Self { service, class: Class::Small }
    }

    /// A channel of long messages.
    pub const fn bulk(service: u16) -> Self {
        Self { service, class: Class::Bulk }
    }
}

/// Bytes between peers that are named by `u64`.
///
/// Guarantees of every implementation, checked by [`testing::conformance`](crate::testing):
///
/// * A message is delivered at most once, whole, and to the service that it names.
/// * Messages to one peer in one class are delivered in the order in which `send` and `call` took
///   them, for as long as one connection stands. When it breaks, those not yet delivered may be
///   lost, a run of the last ones; `Event::Down` says so. Nothing is sent a second time.
/// * What a peer does not take in time is bounded: the queue fills up and `send` says `Full`.
///   No peer, however slow or hostile, holds up another.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// The id of this node.
    fn local(&self) -> u64;

    /// The longest message of a class that this node sends and takes, in bytes; a peer may take
    /// less. Unlimited by default.
    fn max_message_bytes(&self, class: Class) -> usize {
        let _ = class;
        usize::MAX
    }

    /// Sends one message to a peer and forgets it. Never blocks; no runtime context is needed.
    ///
    /// `Ok` means that the message has been queued or written, not that it arrives.
    ///
    /// # Errors
    /// Every [`SendError`] but `Expired`; nothing was sent then.
    fn send(&self, peer: u64, channel: Channel, parts: Parts) -> Result<(), SendError>;

    /// Sends a request to a peer and waits for the answer until the deadline.
    ///
    /// The peer learns how much time is left, and drops its handler's future when it is over.
    ///
    /// # Errors
    /// [`CallError::NotSent`] when nothing left this process, [`CallError::Rejected`] when the
    /// peer did nothing and said so, [`CallError::Unknown`] when the request left and no answer
    /// came.
    ///
    /// # Cancel safety
    /// The request is submitted at the first poll. Dropping the future after that withdraws the
    /// request if it has not left; otherwise its outcome is unknown, and the peer is told to drop
    /// the handler's future. Nothing else is affected.
    async fn call(
        &self,
        peer: u64,
        channel: Channel,
        parts: Parts,
        deadline: Instant,
    ) -> Result<Bytes, CallError>;

    /// Registers the handler of a service, for messages of both classes from every peer.
    ///
    /// # Errors
    /// [`ServeError`]; the handlers registered before stay as they were.
    fn serve(&self, service: u16, handler: Arc<dyn Handler>) -> Result<(), ServeError>;

    /// Removes the handler of a service and says whether there was one. Calls that it has begun
    /// go on; further messages are dropped, further calls get [`Rejected::UnknownService`].
    fn withdraw(&self, service: u16) -> bool;

    /// Everything that happens to connections from now on, after one
    /// [`Event::Up`](crate::Event::Up) for each connection that stands now.
    fn events(&self) -> Events;
}

/// Receiver of the messages of one service.
///
/// Both methods are called on the task that reads the connection, so what they do holds up the
/// messages behind: hand long work on to a task or a thread of its own.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Takes a one-way message. Must not block: put it where its owner finds it, and return.
    ///
    /// `body` shares the buffer into which it was read (usually 64 KiB for many small messages);
    /// copy what is to be kept for long.
    fn message(&self, from: u64, class: Class, body: Bytes);

    /// Answers a request. The default rejects, for services that only take messages.
    ///
    /// The future is dropped at the deadline of the caller, when the caller gives up, and when
    /// its connection breaks. It is polled once on the task that reads the connection and, if it
    /// is not ready then, moved to a task of its own.
    ///
    /// # Errors
    /// [`Rejected`] must mean that nothing was done because of the request. A failure after
    /// something was done belongs into the bytes of the answer.
    ///
    /// # Cancel safety
    /// Implementations must bear being dropped at every `.await`.
    async fn call(&self, from: u64, body: Bytes) -> Result<Parts, Rejected> {
        let _ = (from, body);
        Err(Rejected::UnknownService)
    }
}
