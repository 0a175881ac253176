//! Topics of replicated partitions: the same application on several nodes, any of which may stop.
//!
//! Each node of a cluster runs one [`Replicated`], on a [`Node`] of raft, a journal and a
//! transport. Every partition is a group of raft on all of them ([`ReplicatedPartition`]), and so
//! is a table of topics, groups, offsets and ids of producers. An application is in the process of
//! a node, or of each: it makes a [`Backend`] of its node's [`Replicated`], and that finds the
//! leaders.
//!
//! - **Leaders.** A node asks its own part of a group who leads. A request goes there by a call of
//!   the transport, and where the answer says that another one leads, to that one.
//! - **Sending.** A producer numbers the batches of each partition, and has one of a partition on
//!   its way. Until it is answered, or `delivery_timeout` is over, it sends the same batch with the
//!   same number, to whoever leads: it is in the log once. A batch whose outcome is unknown then is
//!   given up: later ones begin another epoch, so that the partition takes it no more once it has
//!   one of them.
//! - **Reading.** A consumer reads from its own node's part of a partition, which shows what is
//!   committed, and waits there for more.
//! - **Groups.** The leader of the table coordinates groups, as the embedded queue does: each
//!   generation is committed before anybody is told of it, and offsets of an earlier one are
//!   rejected. Offsets never go back. A member is told that it may read for 2 s from its request
//!   on; a leader that has just begun gives nothing out before that has passed everywhere, which is
//!   how long a group stands still when the leader of the table fails, besides the election. A
//!   leader confirms by a majority that it leads before it tells a member anything, and members ask
//!   twice a second.
//!
//! - **Retention.** A topic keeps all its records until [`Replicated::set_retention`] says
//!   otherwise; the leaders of its partitions let go of the others when the application calls
//!   [`Replicated::apply_retention`]. All batches are in the memory of each node, up to
//!   [`ReplicatedConfig::max_bytes`] of a partition.
//! - **Deletion.** A topic is gone when the table says so ([`Replicated::delete_topic`]). Each node
//!   stops the groups of partitions that no topic has, and deletes their logs, when it comes to
//!   know of it and when it has started again.

mod consumer;
mod desk;
mod producer;
mod topics;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use voussoir_journal::Journal;
use voussoir_net::{Channel, Class, Handler, Parts, Rejected, ServeError, Transport};
use voussoir_raft::Node;
use voussoir_raft::journal::{Identity, JournalStore};

use super::{
    Backend, BackendError, Consumer, NO_MESSAGE_IDS, Need, Producer, Refused, Subscription,
    check_subscription,
};
use crate::config::{ProducerConfig, QueueConfig, Retention, TopicConfig, check_name};
use crate::core::entry::TopicEntry;
use crate::error::{ConsumeError, FetchError, Outcome, ProduceError, StoreError};
use crate::format::Batch;
use crate::queue::TopicPartition;
use crate::raft::{LeadError, ReplicaConfig, ReplicaError, ReplicatedPartition};
use consumer::ReplicatedConsumer;
use desk::Desk;
use producer::ReplicatedProducer;
use topics::Topic;
use wire::{Request, Response};

const NAME: &str = "the replicated queue";
/// How long a member may read after a request that its coordinator has answered.
const READ_LEASE: Duration = Duration::from_secs(2);
/// The longest from one request of a member to the next, while it is polled.
const BEAT: Duration = Duration::from_millis(500);
/// The longest that one attempt at one node takes.
const ATTEMPT: Duration = Duration::from_secs(2);
/// The most bytes of the table, unless a partition may have more.
const TABLE_BYTES: u64 = 256 << 20;
/// Before another attempt.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest that a node does for a request from another one.
const MAX_WITHIN: Duration = Duration::from_secs(60);

/// How a node takes part in a cluster. The same on every node, but for [`group`](Self::group)`.id`.
/// Start from [`ReplicatedConfig::new`] and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReplicatedConfig {
    /// What the groups are like, and this node. The table has the number
    /// [`voussoir_raft::Config::group`], and partitions have those behind it: give no other group
    /// of the node or the journal a number from there on. What has the number of a partition that
    /// was deleted is stopped, and its data are deleted.
    pub group: voussoir_raft::Config,
    /// The cluster: a disk of another one is refused.
    pub cluster: u128,
    /// The service of the transport by which nodes ask each other.
    pub service: u16,
    /// Limits of partitions, topics and groups.
    pub limits: QueueConfig,
    /// The most bytes of batches that a partition holds, in the memory of each node. Default
    /// 64 MiB; at least 1 MiB. The table of topics, groups and offsets may have 256 MiB, or this if
    /// it is more. Of an offset, a group and a topic it takes about 400 bytes each.
    pub max_bytes: u64,
    /// What producers do with records. Default: 2 minutes of `delivery_timeout`; `None` waits for a
    /// majority as long as it takes.
    pub producer: ProducerConfig,
}

impl ReplicatedConfig {
    /// Node `id` of a cluster of `voters`, which ask each other by `service`.
    pub fn new(id: u64, voters: impl Into<Vec<u64>>, cluster: u128, service: u16) -> Self {
        let mut group = voussoir_raft::Config::new(id, voters);
        group.group = 0;
        Self {
            group,
            cluster,
            service,
            limits: QueueConfig::default(),
            max_bytes: 64 << 20,
            producer: ProducerConfig::default(),
        }
    }

    /// The most bytes of batches of the table: it may be short of room last of all.
    fn table_bytes(&self) -> u64 {
        self.max_bytes.max(TABLE_BYTES)
    }

    fn identity(&self, number: u32) -> Identity {
        let group = self.group.group + u64::from(number);
        Identity { cluster: self.cluster, node: self.group.id, group }
    }

    /// Starts this node's part of the partition of a number, 0 for the table.
    async fn start(
        &self,
        node: &Node,
        number: u32,
        log: JournalStore,
    ) -> Result<ReplicatedPartition, ReplicaError> {
        let mut group = self.group.clone();
        group.group = self.identity(number).group;
        let max_bytes = if number == 0 { self.table_bytes() } else { self.max_bytes };
        let partition = self.limits.partition.clone();
        let replica = ReplicaConfig { partition, max_bytes };
        ReplicatedPartition::start(node, group, Arc::new(log), replica).await
    }
}

/// Why a node takes no part in a cluster. Nothing runs then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicatedError {
    /// The caller: a configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] crate::error::ConfigError),
    /// The journal holds no data of the node, or another one's.
    #[error(transparent)]
    Journal(#[from] voussoir_raft::journal::OpenError),
    /// The table does not start.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// The transport serves something else under the number.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The runtime is stopping.
    #[error("the runtime is stopping")]
    Stopped,
}

/// A node of a cluster with replicated topics, as a back end. Clones are the same node. When the
/// last one, with its producers and consumers, is dropped, it answers nobody any more; the groups
/// of raft stay until their [`Node`] is shut down.
#[derive(Clone)]
pub struct Replicated {
    cluster: Arc<Cluster>,
}

struct Cluster {
    config: ReplicatedConfig,
    node: Node,
    net: Arc<dyn Transport>,
    journal: Journal,
    table: ReplicatedPartition,
    desk: Arc<Desk>,
    /// Those of the table that this node has come to.
    topics: RwLock<BTreeMap<Arc<str>, Topic>>,
    /// Behind the records of the table that `topics` shows.
    followed: watch::Sender<u64>,
    /// Names of consumers: what makes them differ.
    next_instance: AtomicU64,
    /// Set when this node serves the others.
    follower: OnceLock<AbortHandle>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.get() {
            follower.abort();
            self.net.withdraw(self.config.service);
        }
    }
}

impl Replicated {
    /// Creates the data of a node that has never run, in a journal that may hold other things. Call
    /// it from what sets a cluster up, not from what starts a node: a node that has run, and whose
    /// disk is empty, must not begin anew.
    ///
    /// # Errors
    /// There is data of this node, or the journal fails.
    pub fn create(journal: &Journal, config: &ReplicatedConfig) -> Result<(), ReplicatedError> {
        JournalStore::create(journal, config.identity(0))?;
        Ok(())
    }

    /// Starts this node. Its topics are there when the table has a leader.
    ///
    /// # Errors
    /// See [`ReplicatedError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// The table may have been started on `node`; shut that down.
    pub async fn start(
        node: &Node,
        net: Arc<dyn Transport>,
        journal: &Journal,
        config: ReplicatedConfig,
    ) -> Result<Self, ReplicatedError> {
        config.limits.validate()?;
        config.producer.validate()?;
        let log = JournalStore::open(journal, config.identity(0))?;
        let table = config.start(node, 0, log).await?;
        let desk = Desk::new(table.clone(), config.limits.clone(), config.table_bytes());
        let reader = table.reader().clone();
        let cluster = Arc::new(Cluster {
            config,
            node: node.clone(),
            net,
            journal: journal.clone(),
            table,
            desk,
            topics: RwLock::default(),
            followed: watch::Sender::new(0),
            next_instance: AtomicU64::new(0),
            follower: OnceLock::new(),
        });
        let server = Server { cluster: Arc::downgrade(&cluster) };
        cluster.net.serve(cluster.config.service, Arc::new(server))?;
        let follower = tokio::spawn(topics::follow(Arc::downgrade(&cluster), reader));
        cluster.follower.get_or_init(|| follower.abort_handle());
        Ok(Self { cluster })
    }

    /// The table: who leads it, and how far this node has come.
    pub fn table(&self) -> &ReplicatedPartition {
        &self.cluster.table
    }

    /// This node's part of a partition, once it knows the topic.
    pub fn partition(&self, topic: &str, partition: u32) -> Option<ReplicatedPartition> {
        let topics = self.cluster.topics.read();
        topics.get(topic)?.parts.get(partition as usize)?.clone()
    }

    /// Deletes a topic with all its records, and what groups have stored about it. Each node
    /// deletes its part when it comes to know of it, at the latest when it has started again: what
    /// is sent until then may be answered as stored, and is deleted with the rest. Readers that
    /// wait for its records wait for those of their other topics. A topic of the same name can be
    /// created again: it has nothing in common with this one.
    ///
    /// # Errors
    /// There is no such topic, or see [`BackendError`].
    ///
    /// # Cancel safety
    /// The topic may be deleted all the same.
    pub async fn delete_topic(&self, topic: &str) -> Result<(), BackendError> {
        let cluster = &self.cluster;
        let deadline = cluster.deadline();
        let first_number = cluster.first_number(topic, deadline).await?;
        let request = Request::DeleteTopic { name: topic.to_owned(), first_number };
        match cluster.ask_table(&request, deadline).await? {
            Response::Done => {
                // It is deleted, whether this node has come to know it or not.
                let _ = cluster.keep_up(deadline).await;
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    /// Says what [`apply_retention`](Self::apply_retention) keeps of a topic, from now on. A topic
    /// is created without a limit, and its partitions take no more than
    /// [`ReplicatedConfig::max_bytes`], so give it fewer.
    ///
    /// # Errors
    /// There is no such topic, or see [`BackendError`].
    ///
    /// # Cancel safety
    /// It may be so all the same.
    pub async fn set_retention(
        &self,
        topic: &str,
        retention: Retention,
    ) -> Result<(), BackendError> {
        TopicConfig { retention, ..TopicConfig::default() }.validate()?;
        let cluster = &self.cluster;
        let deadline = cluster.deadline();
        let first_number = cluster.first_number(topic, deadline).await?;
        let (max_bytes, max_age_ms) = TopicEntry::limits(retention);
        let name = topic.to_owned();
        let request = Request::SetRetention { name, first_number, max_bytes, max_age_ms };
        match cluster.ask_table(&request, deadline).await? {
            Response::Done => cluster.keep_up(deadline).await,
            Response::NoTopic => Err(BackendError::UnknownTopic { topic: topic.to_owned() }),
            _ => Err(unexpected()),
        }
    }

    /// Lets go of what the retention of each topic does not keep, at `now_ms` (ms since the UNIX
    /// epoch), in the partitions that this node leads. Returns the partitions that failed, and why:
    /// the others are done. Call it from time to time, on every node.
    ///
    /// # Cancel safety
    /// What was done stays done; the next call does the rest.
    pub async fn apply_retention(&self, now_ms: i64) -> Vec<(TopicPartition, BackendError)> {
        let mut failed = Vec::new();
        for (place, retention, part) in self.cluster.retained() {
            if part.leader() != Some(part.node()) {
                continue;
            }
            let deadline = self.cluster.deadline();
            if let Err(error) = retain(&part, retention, now_ms, deadline).await {
                failed.push((place, error));
            }
        }
        failed
    }
}

/// Deletion of groups.
impl Replicated {
    /// Deletes the groups without members that nobody has used for `unused_for`: no member has come
    /// or gone, and no offset was stored. What is used is known to an hour, by the clocks of the
    /// nodes that have led the table. Call it from time to time on any node, at least once in that
    /// time: it notes which groups have members. Kafka's brokers do it by themselves, after 7 days.
    /// A group that is never deleted keeps its place in the table for ever.
    ///
    /// # Errors
    /// See [`BackendError`]; some may be deleted then.
    ///
    /// # Cancel safety
    /// What was done stays done; the next call does the rest.
    pub async fn expire_groups(&self, unused_for: Duration) -> Result<(), BackendError> {
        let unused_ms = u64::try_from(unused_for.as_millis()).unwrap_or(u64::MAX);
        self.cluster.ask_in_parts(&Request::ExpireGroups { unused_ms }).await
    }
}

impl Cluster {
    /// Asks the table until all of a request is done.
    async fn ask_in_parts(&self, request: &Request) -> Result<(), BackendError> {
        // Ends: each round does a part, or fails at its deadline.
        loop {
            match self.ask_table(request, self.deadline()).await? {
                Response::More => {}
                Response::Done => return Ok(()),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Answers a request, as the node that it was sent to.
    async fn answer(&self, request: Request, deadline: Instant) -> Response {
        match request {
            Request::Append { number, batch } => {
                let Some((_, part)) = self.part(number) else {
                    let why = "the partition has not started on this node".to_owned();
                    return Response::NotNow { why };
                };
                match Batch::decode(batch) {
                    Ok(batch) => appended(part.append(batch, deadline).await),
                    Err(error) => Response::Rejected { why: error.to_string() },
                }
            }
            request => self.desk.answer(request, deadline).await,
        }
    }

    /// One attempt at one node.
    async fn attempt(&self, to: u64, request: &Request, deadline: Instant) -> Response {
        if to == self.config.group.id {
            return self.answer(request.clone(), deadline).await;
        }
        let within = deadline.saturating_duration_since(Instant::now());
        // The class of log entries: a batch is as long as they are, and so may be what is answered
        // to a member of many partitions.
        let channel = Channel { service: self.config.service, class: Class::Bulk };
        let parts = Parts::new(request.encode(within));
        match self.net.call(to, channel, parts, deadline).await {
            Ok(answer) => Response::decode(answer).unwrap_or_else(|| Response::Unknown {
                why: "the answer is of no version that this build knows".to_owned(),
            }),
            Err(error) if error.outcome() == voussoir_net::Outcome::NotApplied => {
                Response::NotNow { why: error.to_string() }
            }
            Err(error) => Response::Unknown { why: error.to_string() },
        }
    }

    /// Asks whoever leads `part`, until there is an answer that another attempt would not change,
    /// or the deadline is over. Returns the last answer, and whether an attempt may have been
    /// carried out without an answer.
    async fn ask(
        &self,
        part: &ReplicatedPartition,
        request: &Request,
        deadline: Instant,
    ) -> (Response, bool) {
        let mut is_unknown = false;
        let mut last = Response::NotNow { why: "nobody leads".to_owned() };
        let mut hint = None;
        // Ends: at the deadline, or with an answer.
        loop {
            if part.raft().stopped().is_some() {
                let why = "this node has stopped, or the topic was deleted".to_owned();
                return (Response::Unable { why }, is_unknown);
            }
            if let Some(leader) = hint.take().or_else(|| part.leader()) {
                let until = deadline.min(Instant::now() + ATTEMPT);
                let answer = self.attempt(leader, request, until).await;
                match &answer {
                    Response::NotLeader { leader: found } => {
                        hint = found.filter(|found| *found != leader);
                    }
                    Response::NotNow { .. } => {}
                    Response::Unknown { .. } => is_unknown = true,
                    _ => return (answer, is_unknown),
                }
                last = answer;
            }
            if Instant::now() + PAUSE >= deadline {
                return (last, is_unknown);
            }
            sleep_until(Instant::now() + PAUSE).await;
        }
    }

    /// As [`ask`](Self::ask), of the table, with what is no answer as an error.
    async fn ask_table(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, BackendError> {
        let (response, is_unknown) = self.ask(&self.table, request, deadline).await;
        let outcome = if is_unknown { Outcome::Unknown } else { Outcome::NotApplied };
        failure(response, outcome)
    }

    /// When what takes no time-out of its own has to be over.
    fn deadline(&self) -> Instant {
        let timeout = self.config.producer.delivery_timeout.unwrap_or(MAX_WITHIN);
        Instant::now() + timeout.min(MAX_WITHIN)
    }
}

/// An answer, or the error that it is, when an earlier attempt has this outcome.
fn failure(response: Response, earlier: Outcome) -> Result<Response, BackendError> {
    Err(match (response, earlier) {
        (Response::NotLeader { .. }, Outcome::NotApplied) => {
            BackendError::Unavailable { why: "the leader is changing".to_owned() }
        }
        (Response::NotNow { why } | Response::Unable { why }, Outcome::NotApplied) => {
            BackendError::Unavailable { why }
        }
        (Response::Rejected { why }, Outcome::NotApplied) => BackendError::Rejected { why },
        (Response::NotLeader { .. }, Outcome::Unknown) => {
            BackendError::Unknown { why: "the leader is changing".to_owned() }
        }
        (
            Response::NotNow { why } | Response::Unable { why } | Response::Rejected { why },
            Outcome::Unknown,
        ) => BackendError::Unknown { why },
        (Response::Unknown { why }, _) => BackendError::Unknown { why },
        (response, _) => return Ok(response),
    })
}

/// What became of a batch.
fn appended(result: Result<crate::partition::Appended, LeadError>) -> Response {
    match result {
        Ok(appended) => Response::Appended { base_offset: appended.base_offset },
        Err(LeadError::NotLeader { leader }) => Response::NotLeader { leader },
        Err(LeadError::Produce(ProduceError::UnknownProducer { .. })) => Response::Forgotten,
        Err(LeadError::Produce(ProduceError::Store(StoreError::Full { why }))) => {
            Response::Unable { why }
        }
        Err(error) => {
            let why = error.to_string();
            match error.outcome() {
                Outcome::Unknown => Response::Unknown { why },
                Outcome::NotApplied if error.is_retryable() => Response::NotNow { why },
                Outcome::NotApplied => Response::Rejected { why },
            }
        }
    }
}

/// Answers the other nodes.
struct Server {
    cluster: Weak<Cluster>,
}

#[async_trait]
impl Handler for Server {
    fn message(&self, _from: u64, _class: Class, _body: Bytes) {}

    async fn call(&self, from: u64, body: Bytes) -> Result<Parts, Rejected> {
        let cluster = self.cluster.upgrade().ok_or(Rejected::UnknownService)?;
        let response = match Request::decode(body) {
            Some((request, within)) => {
                cluster.answer(request, Instant::now() + within.min(MAX_WITHIN)).await
            }
            None => {
                tracing::debug!(target: "voussoir::queue", from, "a request was refused");
                let why = "the request is of no version that this node knows".to_owned();
                Response::Rejected { why }
            }
        };
        Ok(Parts::new(response.encode()))
    }
}

#[async_trait]
impl Backend for Replicated {
    fn name(&self) -> &'static str {
        NAME
    }

    fn provides(&self, need: Need) -> Result<(), Refused> {
        let why = match need {
            Need::SyncedSend | Need::KeyOrder | Need::FencedCommits | Need::DeletedGroups => {
                return Ok(());
            }
            Need::ExactlyOnce => {
                "records and offsets are in different groups of raft, which no commit spans; make \
                 what you do with a record idempotent"
            }
            Need::MessageIds(_) => NO_MESSAGE_IDS,
            Need::DeliveryCounts => "offsets count nothing",
        };
        Err(Refused::new(NAME, need, why))
    }

    async fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), BackendError> {
        let cluster = &self.cluster;
        let deadline = cluster.deadline();
        let request = Request::CreateTopic { name: topic.to_owned(), partitions };
        match cluster.ask_table(&request, deadline).await? {
            Response::Done => {
                // One of the same name that was deleted may be shown until then.
                cluster.keep_up(deadline).await?;
                cluster.topic(topic, deadline).await.map(|_| ())
            }
            Response::Mismatch { found } => Err(BackendError::Mismatch {
                what: format!("the topic {topic:?}"),
                field: "partitions",
                found: found.to_string(),
                wanted: partitions.to_string(),
            }),
            _ => Err(unexpected()),
        }
    }

    async fn producer(&self) -> Result<Arc<dyn Producer>, BackendError> {
        let deadline = self.cluster.deadline();
        let id = new_producer(&self.cluster, deadline).await?;
        Ok(Arc::new(ReplicatedProducer::new(Arc::clone(&self.cluster), id)))
    }

    async fn consumer(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        check_subscription(self, &subscription)?;
        let deadline = self.cluster.deadline();
        for name in &subscription.topics {
            self.cluster.topic(name, deadline).await?;
        }
        let number = self.cluster.next_instance.fetch_add(1, Relaxed);
        Ok(Box::new(ReplicatedConsumer::new(Arc::clone(&self.cluster), subscription, number)))
    }

    async fn delete_group(&self, group: &str) -> Result<(), BackendError> {
        check_name("group", group)?;
        let group = group.to_owned();
        self.cluster.ask_in_parts(&Request::DeleteGroup { group }).await
    }
}

async fn retain(
    part: &ReplicatedPartition,
    retention: Retention,
    now_ms: i64,
    deadline: Instant,
) -> Result<(), BackendError> {
    let partition = match part.lead(deadline).await {
        Ok(partition) => partition,
        // Whoever leads does it.
        Err(LeadError::NotLeader { .. }) => return Ok(()),
        Err(error) => {
            return Err(BackendError::of(&error, error.outcome(), error.is_retryable()));
        }
    };
    let fetch_failed = |error: FetchError| BackendError::from(ConsumeError::Fetch(error));
    let offset = partition.retention_offset_in_task(retention, now_ms).await;
    let released = partition.release_before(offset.map_err(fetch_failed)?).await;
    released.map_err(fetch_failed).map(|_| ())
}

async fn new_producer(cluster: &Cluster, deadline: Instant) -> Result<i64, BackendError> {
    match cluster.ask_table(&Request::NewProducer, deadline).await? {
        Response::Producer { id } => Ok(id),
        _ => Err(unexpected()),
    }
}

/// How long a member that is polled says nothing.
fn beat_after(session: Duration) -> Duration {
    (session / 10).min(BEAT)
}

/// An answer that does not belong to the request.
fn unexpected() -> BackendError {
    BackendError::Unknown { why: "the answer is to another request".to_owned() }
}

impl fmt::Debug for Replicated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicated").field("table", &self.cluster.table).finish_non_exhaustive()
    }
}
