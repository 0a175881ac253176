//! NATS JetStream as a back end, for those who outgrow one machine.
//!
//! A topic is a stream `PREFIX-TOPIC` with one subject for each partition, `PREFIX.TOPIC.0` and so
//! on; a group is a durable pull consumer of the stream, which its members share, with explicit
//! acknowledgement. `wire.rs` says how a record is written. Tested with nats-server 2.9.
//!
//! What it does not give, and why, is in the table of [`backend`](super). Two more things to know:
//! - A send that was answered is in the server's page cache, not on its disk: at the default
//!   `sync_interval` a power loss takes up to two minutes of answered records
//!   (nats-server issue 7564).
//! - The server names no owner of a partition. Members of a group work on the same partition at the
//!   same time, and a record that comes again may come behind later ones.

mod config;
mod consumer;
mod producer;
mod wire;

use std::fmt;
use std::sync::Arc;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{Context, ContextBuilder, GetStreamErrorKind};
use async_nats::jetstream::stream::{self, ConsumerErrorKind, Info};
use async_nats::jetstream::{ErrorCode, context::CreateStreamErrorKind};
use async_trait::async_trait;

pub use async_nats;
pub use config::JetStreamConfig;

use super::{
    Backend, BackendError, Consumer, Need, Producer, Refused, Subscription, check_subscription,
};
use crate::config::Start;
use crate::error::ConfigError;
use consumer::{JetStreamConsumer, Source};
use producer::JetStreamProducer;

const NAME: &str = "NATS JetStream";
const NO_DELETED_GROUPS: &str = "a group is a durable consumer of each stream; delete those by the \
                                 server's own tools";
/// Partitions of a topic: each is a subject in the configuration of its stream.
const MAX_PARTITIONS: u32 = 256;
/// Records of one producer that are sent and not answered. More wait.
const MAX_IN_FLIGHT: usize = 4_096;

/// Topics, producers and groups in a JetStream server or cluster.
#[derive(Clone)]
pub struct JetStream {
    shared: Arc<Shared>,
}

struct Shared {
    client: async_nats::Client,
    context: Context,
    config: JetStreamConfig,
}

impl JetStream {
    /// A back end over a connection, which brings its credentials, TLS and reconnection.
    ///
    /// # Errors
    /// The configuration breaks a rule.
    pub fn new(client: async_nats::Client, config: JetStreamConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let context = ContextBuilder::new()
            .timeout(config.request_timeout)
            .ack_timeout(config.request_timeout)
            .max_ack_inflight(2 * MAX_IN_FLIGHT)
            .build(client.clone());
        Ok(Self { shared: Arc::new(Shared { client, context, config }) })
    }

    /// The name of the stream of a topic, and the subject of its partitions without their number.
    fn names(&self, topic: &str) -> Result<(String, String), BackendError> {
        let prefix = &self.shared.config.prefix;
        if !crate::queue::is_topic_name(topic) {
            let why = format!("{topic:?} is no name: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'");
            return Err(BackendError::Rejected { why });
        }
        let names = wire::escape_name(topic).and_then(|name| {
            let stream = format!("{prefix}-{name}");
            (stream.len() <= wire::MAX_NAME_BYTES).then(|| (stream, format!("{prefix}.{name}")))
        });
        names.ok_or_else(|| {
            let why = format!("the name of the topic {topic:?} is too long for a stream");
            BackendError::Rejected { why }
        })
    }

    /// What the server says of a topic's stream.
    async fn stream(&self, topic: &str) -> Result<stream::Stream, BackendError> {
        let (name, subject) = self.names(topic)?;
        let stream =
            self.shared.context.get_stream(name).await.map_err(|error| match error.kind() {
                GetStreamErrorKind::JetStream(why)
                    if why.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    BackendError::UnknownTopic { topic: topic.to_owned() }
                }
                _ => BackendError::Unavailable { why: error.to_string() },
            })?;
        self.check_stream(topic, &subject, stream.cached_info())?;
        Ok(stream)
    }

    /// Whether a stream is one that this back end can keep its promises with.
    fn check_stream(&self, topic: &str, subject: &str, info: &Info) -> Result<(), BackendError> {
        let mismatch = |field, found: String, wanted: String| {
            Err(BackendError::Mismatch {
                what: format!("the topic {topic:?}"),
                field,
                found,
                wanted,
            })
        };
        let (found, wanted) = (info.config.duplicate_window, self.shared.config.duplicate_window);
        if found < wanted {
            return mismatch("duplicate_window", format!("{found:?}"), format!("{wanted:?}"));
        }
        let subjects = &info.config.subjects;
        let partitions = u32::try_from(subjects.len()).unwrap_or(u32::MAX);
        let are_ours = partitions <= MAX_PARTITIONS
            && (0..partitions).all(|number| subjects.contains(&format!("{subject}.{number}")));
        if !are_ours || partitions == 0 {
            let wanted = format!("one subject {subject}.N for each partition");
            return mismatch("subjects", format!("{subjects:?}"), wanted);
        }
        Ok(())
    }

    /// The number of partitions of a topic.
    async fn partitions(&self, topic: &str) -> Result<u32, BackendError> {
        let stream = self.stream(topic).await?;
        Ok(u32::try_from(stream.cached_info().config.subjects.len()).unwrap_or(MAX_PARTITIONS))
    }

    /// The durable consumer of a group on a topic, made unless it is there.
    async fn durable(
        &self,
        topic: &str,
        subscription: &Subscription,
    ) -> Result<PullConsumer, BackendError> {
        let stream = self.stream(topic).await?;
        let name = wire::escape_name(&subscription.group).ok_or(ConfigError {
            field: "group",
            rule: "must have at most 255 bytes, and three for each that is no letter or digit",
        })?;
        let max_ack_pending = i64::from(self.shared.config.max_unacknowledged);
        let config = pull::Config {
            durable_name: Some(name.clone()),
            deliver_policy: match subscription.start {
                Start::Latest => DeliverPolicy::New,
                _ => DeliverPolicy::All,
            },
            ack_policy: AckPolicy::Explicit,
            ack_wait: subscription.processing_timeout,
            max_ack_pending,
            ..pull::Config::default()
        };
        let made = stream.get_or_create_consumer(&name, config).await;
        let consumer: PullConsumer = made.map_err(|error| match error.kind() {
            ConsumerErrorKind::JetStream(_) | ConsumerErrorKind::InvalidConsumerType => {
                BackendError::Rejected { why: error.to_string() }
            }
            _ => BackendError::Unavailable { why: error.to_string() },
        })?;
        let found = &consumer.cached_info().config;
        let mismatch = |field, found: String, wanted: String| {
            let what = format!("the group {:?} on {topic:?}", subscription.group);
            Err(BackendError::Mismatch { what, field, found, wanted })
        };
        if found.ack_policy != AckPolicy::Explicit {
            return mismatch(
                "ack_policy",
                format!("{:?}", found.ack_policy),
                "explicit".to_owned(),
            );
        }
        if found.ack_wait != subscription.processing_timeout {
            let wanted = format!("{:?}", subscription.processing_timeout);
            return mismatch("processing_timeout", format!("{:?}", found.ack_wait), wanted);
        }
        if found.max_ack_pending != max_ack_pending {
            let (found, wanted) = (found.max_ack_pending.to_string(), max_ack_pending.to_string());
            return mismatch("max_unacknowledged", found, wanted);
        }
        Ok(consumer)
    }
}

#[async_trait]
impl Backend for JetStream {
    fn name(&self) -> &'static str {
        NAME
    }

    fn provides(&self, need: Need) -> Result<(), Refused> {
        let config = &self.shared.config;
        let (is_met, why) = match need {
            Need::SyncedSend => (
                config.is_synced,
                "the server answers before it syncs, unless its `sync_interval` is `always`: then \
                 set `is_synced`",
            ),
            Need::KeyOrder => (
                config.max_unacknowledged == 1,
                "members of a group share all partitions; set `max_unacknowledged` to 1 to have \
                 one record at a time",
            ),
            Need::ExactlyOnce => (
                false,
                "no transaction holds both messages and acknowledgements; make what you do with a \
                 record idempotent",
            ),
            Need::FencedCommits => (
                false,
                "the acknowledgement of a member whose time is over counts; have the resource \
                 that you write to refuse late writes",
            ),
            Need::MessageIds(window) => (
                window <= config.duplicate_window,
                "the server forgets ids after `duplicate_window`; make that longer",
            ),
            Need::DeliveryCounts => (true, ""),
            Need::DeletedGroups => (false, NO_DELETED_GROUPS),
        };
        if is_met { Ok(()) } else { Err(Refused::new(NAME, need, why)) }
    }

    async fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), BackendError> {
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            let rule = "must be between 1 and 256";
            return Err(ConfigError { field: "partitions", rule }.into());
        }
        let (name, subject) = self.names(topic)?;
        match self.partitions(topic).await {
            Ok(found) if found == partitions => return Ok(()),
            Ok(found) => {
                return Err(BackendError::Mismatch {
                    what: format!("the topic {topic:?}"),
                    field: "partitions",
                    found: found.to_string(),
                    wanted: partitions.to_string(),
                });
            }
            Err(BackendError::UnknownTopic { .. }) => {}
            Err(error) => return Err(error),
        }
        let config = stream::Config {
            name,
            subjects: (0..partitions).map(|number| format!("{subject}.{number}")).collect(),
            num_replicas: self.shared.config.replicas,
            duplicate_window: self.shared.config.duplicate_window,
            // -1 is without a limit.
            max_messages: -1,
            max_bytes: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            ..stream::Config::default()
        };
        match self.shared.context.create_stream(config).await {
            Ok(_) => Ok(()),
            Err(error) => Err(match error.kind() {
                CreateStreamErrorKind::TimedOut => BackendError::Unknown { why: error.to_string() },
                CreateStreamErrorKind::JetStreamUnavailable => {
                    BackendError::Unavailable { why: error.to_string() }
                }
                _ => BackendError::Rejected { why: error.to_string() },
            }),
        }
    }

    async fn producer(&self) -> Result<Arc<dyn Producer>, BackendError> {
        Ok(Arc::new(JetStreamProducer::new(self.clone())))
    }

    async fn consumer(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        check_subscription(self, &subscription)?;
        let mut sources = Vec::new();
        for topic in &subscription.topics {
            let durable = self.durable(topic, &subscription).await?;
            sources.push(Source::new(topic.as_str().into(), durable));
        }
        Ok(Box::new(JetStreamConsumer::new(self.clone(), subscription, sources)))
    }

    async fn delete_group(&self, _group: &str) -> Result<(), BackendError> {
        Err(Refused::new(NAME, Need::DeletedGroups, NO_DELETED_GROUPS).into())
    }
}

impl fmt::Debug for JetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStream").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
