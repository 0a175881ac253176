//! The seam to where events are.

use std::collections::BTreeSet;
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
    /// The state of a partition cannot be read: it is garbled, or of a later version. The runner
    /// goes on with other partitions; events of this one wait for a member that can read it.
    #[error(
        "the state of partition {partition} cannot be read, and its events wait: run the version \
         that has written it, or restore it"
    )]
    Garbled {
        /// The partition.
        partition: u32,
    },
    /// The event cannot be published: a name is empty or longer than 200 bytes, or it is too long.
    #[error("`{0}` of the event is empty or too long")]
    Misfit(&'static str),
    /// One commit of the queue's journal cannot hold what a commit of the bus may. Nothing was
    /// created; open the journal with larger segments.
    #[error(
        "a commit of the bus may have {needed_bytes} bytes, and one of the journal takes \
         {found_bytes}: open the journal with larger `segment_bytes`"
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

    /// Its bytes, as [`Subscription::max_commit_bytes`] counts them: of keys, values, events with
    /// their keys, and letters, and 64 for each.
    pub fn len_bytes(&self) -> usize {
        let state = self.state.iter().map(|(_, key, value)| state_bytes(key, value.as_ref()));
        let events = self.publish.iter().map(event_bytes);
        state.chain(events).chain(self.dead.iter().map(letter_bytes)).sum()
    }
}

/// What each change, event and letter counts in a commit, beside its bytes.
const OVERHEAD_BYTES: usize = 64;

pub(super) fn state_bytes(key: &Bytes, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + OVERHEAD_BYTES
}

pub(super) fn event_bytes(event: &Event) -> usize {
    event.len_bytes() + event.key.len() + OVERHEAD_BYTES
}

pub(super) fn letter_bytes(letter: &DeadLetter) -> usize {
    letter.len_bytes() + letter.event.key.len() + OVERHEAD_BYTES
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
    /// The next deliveries, waiting at most `max_wait` for one. None are events of the partitions
    /// `full`, which wait where they are. The runner has committed all that came before, or given
    /// it back.
    ///
    /// # Errors
    /// [`BusError`].
    ///
    /// # Cancel safety
    /// Safe: what this call has not returned the next one returns.
    async fn poll(
        &mut self,
        max_wait: Duration,
        full: &BTreeSet<u32>,
    ) -> Result<Vec<Delivery>, BusError>;

    /// Takes back the last `count` events of the latest poll: commits do not say that they are
    /// read, and polls return them again, others before them too if that is simpler.
    ///
    /// # Errors
    /// [`BusError`]; the subscription is not used any more.
    fn give_back(&mut self, count: usize) -> Result<(), BusError>;

    /// Makes all of `commit` durable, and that all events are read that polls have returned and
    /// that were not given back: everything, or nothing. A commit of more than
    /// [`max_commit_bytes`](Self::max_commit_bytes) is not applied.
    ///
    /// # Errors
    /// [`BusError`]; the subscription is not used any more.
    ///
    /// # Cancel safety
    /// Dropped, it may be durable; the subscription is not used any more.
    async fn commit(&mut self, commit: Commit) -> Result<(), BusError>;

    /// The most bytes of a commit ([`Commit::len_bytes`]). At least 3.25 MiB: below it, one event
    /// with the joins that it belongs to may fit into no commit.
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
