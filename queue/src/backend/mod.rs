//! Application code that does not know which queue it runs on.
//!
//! An application that is written against [`Backend`], [`Producer`] and [`Consumer`] begins with
//! the queue inside its own process ([`Embedded`]) and moves to several nodes of its own
//! (`Replicated`, feature `replicated`), or to a cluster of servers (`JetStream`, feature
//! `jetstream`), by changing the line that makes the back end. The verbs are
//! those that an embedded log, Kafka's clients and JetStream have in common:
//!
//! | verb | embedded and replicated queue | Kafka | JetStream |
//! |---|---|---|---|
//! | [`Producer::send`] | append, synced | produce with `acks=all`, idempotent | publish with `Nats-Msg-Id`, wait for the answer |
//! | [`Consumer::poll`] | member of a group | member of a group | fetch from a durable pull consumer |
//! | [`Consumer::commit`] | store offsets | commit offsets | acknowledge each message, and wait for the answer |
//! | [`Consumer::commit_with`] | one commit of the journal; replicated: refused | transaction with offsets | refused |
//! | [`Consumer::rewind`] | seek to the stored offsets | seek to the committed offsets | negative acknowledgement |
//!
//! # What each back end guarantees
//!
//! Always: a record that was answered with a [`Position`] is delivered to each group, also when
//! members of the group die; a send is not doubled by the retries that the back end makes itself;
//! an error says by [`BackendError::outcome`] whether the call may have happened; records of one
//! key go to one partition, by the hash that Kafka's clients use.
//!
//! Beyond that, an application states each [`Need`] it has with [`Backend::require`] when it
//! starts, and a back end that does not meet it refuses by name, before anything is written:
//!
//! | need | embedded | replicated | JetStream |
//! |---|---|---|---|
//! | [`Need::SyncedSend`] | yes | yes: on the disks of a majority | no: the server syncs every 2 minutes by default; yes when the operator says that `sync_interval` is `always` (`JetStreamConfig::is_synced`) |
//! | [`Need::KeyOrder`] | yes | yes | no: members of a group share all partitions; yes with `JetStreamConfig::max_unacknowledged = 1`, one record at a time for the whole group |
//! | [`Need::ExactlyOnce`] | yes | no: no commit spans records and offsets | no: no transaction holds both messages and acknowledgements |
//! | [`Need::FencedCommits`] | yes: by the group's generation | yes: the same | no: the acknowledgement of a late member counts |
//! | [`Need::MessageIds`] | no: offsets and ids of producers, but no ids of messages | no: the same | yes, for up to `JetStreamConfig::duplicate_window` (2 minutes) |
//! | [`Need::DeliveryCounts`] | no: [`WorkQueue`](crate::work::WorkQueue) counts | no | yes |
//! | [`Need::DeletedGroups`] | yes | yes | no: delete the durable consumers by the server's own tools |
//!
//! `testing::conformance` (feature `testing`) is what every back end has to do, those
//! of this crate and one of yours.

mod embedded;
mod error;
#[cfg(feature = "jetstream")]
pub mod jetstream;
#[cfg(feature = "replicated")]
pub mod replicated;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use embedded::Embedded;
pub use error::{BackendError, Refused};

use crate::config::{Start, check, check_name};
use crate::error::ConfigError;
use crate::format::Record;

/// The header by which a record says its own id: see [`Need::MessageIds`].
pub const MESSAGE_ID: &str = "voussoir-message-id";

/// Why an engine that knows producers and sequences does not give [`Need::MessageIds`].
const NO_MESSAGE_IDS: &str = "it knows producers and sequences, not ids of messages; after an \
                              unknown outcome look for the record behind the last known position";

/// Refuses a record with an id of its own: it would be stored as often as it is sent, and its
/// sender relies on the id.
fn refuse_message_id(backend: &'static str, record: &Record) -> Result<(), Refused> {
    match record.last_header(MESSAGE_ID) {
        Some(_) => {
            let why = "a record with this header would be stored as often as it is sent";
            Err(Refused::new(backend, Need::MessageIds(Duration::ZERO), why))
        }
        None => Ok(()),
    }
}

/// Whether a back end can serve a subscription.
fn check_subscription(
    backend: &impl Backend,
    subscription: &Subscription,
) -> Result<(), BackendError> {
    subscription.validate()?;
    if subscription.delivery == Delivery::ExactlyOnce {
        backend.provides(Need::ExactlyOnce)?;
    }
    Ok(())
}

/// Something that an application relies on and that not every back end gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Need {
    /// `send` answers when the record is on stable storage: it survives a power loss of every
    /// machine at once.
    SyncedSend,
    /// A group is given the records of one key in the order of their positions. A record that
    /// comes again comes before the later ones of its key, which then come again, too.
    KeyOrder,
    /// [`Delivery::ExactlyOnce`] and [`Consumer::commit_with`].
    ExactlyOnce,
    /// A member of a group whose records were given to another one cannot commit them any more.
    FencedCommits,
    /// Of several records of a topic with the same [`MESSAGE_ID`], sent within this time of the
    /// first, one is stored, and all are answered with its position. So a record whose outcome is
    /// unknown can be sent again, also after a restart.
    MessageIds(Duration),
    /// [`Received::deliveries`] is given.
    DeliveryCounts,
    /// [`Backend::delete_group`].
    DeletedGroups,
}

/// What a consumer promises about a record when its process dies at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Delivery {
    /// A record is never returned by two polls. What was returned and not processed is lost.
    AtMostOnce,
    /// A record comes again until it is committed.
    #[default]
    AtLeastOnce,
    /// As `AtLeastOnce`, and [`Consumer::commit_with`] stores results together with the fact that
    /// their records were processed. Needs [`Need::ExactlyOnce`].
    ExactlyOnce,
}

/// What a consumer reads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subscription {
    /// The group whose members share the records, 1 to 249 bytes.
    pub group: String,
    /// The topics, 1 to 100. They have to exist.
    pub topics: Vec<String>,
    /// What happens to records when the process dies. Default [`Delivery::AtLeastOnce`].
    pub delivery: Delivery,
    /// Where a group that is new begins. Default [`Start::Earliest`]; `Start::Stored` is no
    /// place to begin and is rejected.
    pub start: Start,
    /// How long the application may take from one poll to the next, and from a poll to its commit.
    /// After it other members may be given the records. 100 ms to 1 day, default 1 minute. All
    /// members of a group have the same.
    pub processing_timeout: Duration,
    /// Records that a poll returns at most. 1 to 10,000, default 500.
    pub max_poll_records: usize,
}

impl Subscription {
    /// A member of `group` that reads `topics`, at least once, from the beginning.
    pub fn new<T: Into<String>>(group: &str, topics: impl IntoIterator<Item = T>) -> Self {
        Self {
            group: group.to_owned(),
            topics: topics.into_iter().map(Into::into).collect(),
            delivery: Delivery::default(),
            start: Start::default(),
            processing_timeout: Duration::from_secs(60),
            max_poll_records: 500,
        }
    }

    /// Sets what happens to records when the process dies.
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// Checks each field.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_name("group", &self.group)?;
        let times = Duration::from_millis(100)..=Duration::from_secs(86_400);
        check(&[
            ((1..=100).contains(&self.topics.len()), "topics", "must be 1 to 100"),
            (self.start != Start::Stored, "start", "must be `Earliest` or `Latest`"),
            (
                times.contains(&self.processing_timeout),
                "processing_timeout",
                "must be between 100 ms and 1 day",
            ),
            (
                (1..=10_000).contains(&self.max_poll_records),
                "max_poll_records",
                "must be between 1 and 10000",
            ),
        ])
    }
}

/// Where a record is in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The partition.
    pub partition: u32,
    /// Rises from one record of the partition to the next, with gaps.
    pub offset: u64,
}

/// A record that a poll has returned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// The topic.
    pub topic: Arc<str>,
    /// Where it is.
    pub position: Position,
    /// The record. Its `offset` is that of the position.
    pub record: Record,
    /// How often it was delivered, this time included, if the back end counts.
    pub deliveries: Option<u64>,
}

/// A record that [`Consumer::commit_with`] sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The topic.
    pub topic: String,
    /// The record.
    pub record: Record,
}

impl Output {
    /// A record for a topic.
    pub fn new(topic: &str, record: Record) -> Self {
        Self { topic: topic.to_owned(), record }
    }
}

/// A queue, wherever it runs.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync {
    /// Its name, for messages.
    fn name(&self) -> &'static str;

    /// Checks whether it meets a need. Never waits.
    ///
    /// # Errors
    /// It does not; the error says what to do instead.
    fn provides(&self, need: Need) -> Result<(), Refused>;

    /// Creates a topic, durably, unless there is one with as many partitions.
    ///
    /// # Errors
    /// [`BackendError::Mismatch`] when the topic has other settings; or see [`BackendError`].
    ///
    /// # Cancel safety
    /// The topic may be created all the same.
    async fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), BackendError>;

    /// A producer for all topics.
    ///
    /// # Errors
    /// See [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    async fn producer(&self) -> Result<Arc<dyn Producer>, BackendError>;

    /// A member of a group.
    ///
    /// # Errors
    /// A topic is not there, the delivery is refused, or see [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe; the group may exist afterwards.
    async fn consumer(&self, subscription: Subscription)
    -> Result<Box<dyn Consumer>, BackendError>;

    /// Deletes a group: all that it has stored, in every topic. It must have no members. One of the
    /// same name begins anew. Nothing happens where there is no such group.
    ///
    /// # Errors
    /// [`BackendError::Refused`] without [`Need::DeletedGroups`]; [`BackendError::Rejected`] while
    /// the group has members; otherwise see [`BackendError`].
    ///
    /// # Cancel safety
    /// The group may be deleted all the same, or a part of what it has stored: delete it again.
    async fn delete_group(&self, group: &str) -> Result<(), BackendError>;

    /// Checks all needs of an application, when it starts.
    ///
    /// # Errors
    /// The first that is not met.
    fn require(&self, needs: &[Need]) -> Result<(), Refused> {
        needs.iter().try_for_each(|need| self.provides(*need))
    }
}

/// Sends records. Any number of tasks share it.
#[async_trait]
pub trait Producer: fmt::Debug + Send + Sync {
    /// Sends records in order, and answers each of them, in order, when it is stored.
    ///
    /// What fails for a passing reason is sent again by the back end, which does not store it twice
    /// by that, until its own time-out. After an error with
    /// [`Outcome::Unknown`](crate::Outcome::Unknown) another call may store the record a second
    /// time, unless it has a [`MESSAGE_ID`].
    ///
    /// Records of one key are in order if none of them failed.
    ///
    /// # Errors
    /// For each record, see [`BackendError`].
    ///
    /// # Cancel safety
    /// The records may be stored all the same.
    async fn send(&self, topic: &str, records: Vec<Record>) -> Vec<Result<Position, BackendError>>;

    /// Sends one record.
    ///
    /// # Errors
    /// See [`BackendError`].
    ///
    /// # Cancel safety
    /// The record may be stored all the same.
    async fn send_one(&self, topic: &str, record: Record) -> Result<Position, BackendError> {
        let answers = self.send(topic, vec![record]).await;
        let nothing = || BackendError::Unknown { why: "the back end gave no answer".to_owned() };
        answers.into_iter().next().unwrap_or_else(|| Err(nothing()))
    }
}

/// A member of a group. One task owns it. Dropped without [`close`](Self::close), it leaves the
/// group; what it has not committed comes again, at the latest after `processing_timeout`.
#[async_trait]
pub trait Consumer: fmt::Debug + Send {
    /// The next records, waiting at most `max_wait` for the first one.
    ///
    /// # Errors
    /// See [`BackendError`]. The consumer can be polled again.
    ///
    /// # Cancel safety
    /// The next poll returns what this one has not; with [`Delivery::AtMostOnce`] records that were
    /// being committed are not returned again.
    async fn poll(&mut self, max_wait: Duration) -> Result<Vec<Received>, BackendError>;

    /// Stores that all records which polls have returned are processed. Nothing to do for
    /// [`Delivery::AtMostOnce`].
    ///
    /// # Errors
    /// See [`BackendError`]. After one whose outcome is `NotApplied` the consumer has been rewound:
    /// all that was not committed comes again. After `Unknown` some may come again.
    ///
    /// # Cancel safety
    /// It may have been committed.
    async fn commit(&mut self) -> Result<(), BackendError>;

    /// As [`commit`](Self::commit), and stores these records: both or neither. For
    /// [`Delivery::ExactlyOnce`] only.
    ///
    /// # Errors
    /// [`BackendError::Refused`] where there are no transactions; otherwise as for `commit`.
    ///
    /// # Cancel safety
    /// It may have been committed.
    async fn commit_with(&mut self, outputs: Vec<Output>) -> Result<(), BackendError>;

    /// Goes back: all records that were not committed come again.
    ///
    /// # Errors
    /// See [`BackendError`].
    ///
    /// # Cancel safety
    /// Call it again.
    async fn rewind(&mut self) -> Result<(), BackendError>;

    /// Leaves the group without a commit. Other members are given at once what was not committed.
    ///
    /// # Errors
    /// See [`BackendError`]; the consumer has left, and what it held comes after
    /// `processing_timeout`.
    ///
    /// # Cancel safety
    /// As dropping it.
    async fn close(self: Box<Self>) -> Result<(), BackendError>;
}
