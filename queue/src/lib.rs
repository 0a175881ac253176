#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "journal")]
pub mod backend;
pub mod broadcast;
mod config;
#[cfg(feature = "journal")]
mod consumer;
mod core;
mod error;
pub mod format;
#[cfg(feature = "journal")]
mod groups;
#[cfg(feature = "journal")]
mod lag;
#[cfg(feature = "metrics")]
mod metrics;
mod partition;
#[cfg(feature = "journal")]
mod partitioner;
#[cfg(feature = "journal")]
mod producer;
#[cfg(feature = "journal")]
mod queue;
#[cfg(feature = "raft")]
pub mod raft;
pub mod routing;
#[cfg(feature = "journal")]
mod session;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "journal")]
mod transaction;
#[cfg(feature = "journal")]
mod watch;
pub mod work;
#[cfg(feature = "journal")]
mod writer;

#[cfg(feature = "journal")]
pub use async_trait::async_trait;
pub use bytes::Bytes;
pub use config::{
    Compaction, Config, ConsumerConfig, Guarantee, ProducerConfig, QueueConfig, Retention, Start,
    TopicConfig,
};
#[cfg(feature = "stream")]
pub use consumer::RecordStream;
#[cfg(feature = "journal")]
pub use consumer::{CommitFuture, Consumer, ConsumerRecord, Polled};
pub use core::group::Assignor;
pub use error::{
    CommitError, ConfigError, ConsumeError, FetchError, OpenError, Outcome, ProduceError,
    SendError, StoreError, TopicError,
};
pub use format::{Batch, BatchBuilder, Compression, Record};
#[cfg(feature = "journal")]
pub use lag::Lag;
#[cfg(feature = "metrics")]
pub use metrics::QueueMetrics;
pub use partition::{
    AppendFuture, Appended, Compacted, Fetched, Partition, Records, Seek, Stats, WaitFuture,
};
#[cfg(feature = "journal")]
pub use partitioner::{Murmur2, Partitioner};
#[cfg(feature = "journal")]
pub use producer::{Delivered, Producer, SendFuture};
#[cfg(feature = "journal")]
pub use queue::{Queue, Topic, TopicPartition};
#[cfg(feature = "journal")]
pub use session::{SessionToken, TokenError};
pub use store::Durability;
#[cfg(feature = "journal")]
pub use transaction::{Committed, Transaction, TransactionalProducer};
