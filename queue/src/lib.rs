#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod broadcast;
mod config;
mod core;
mod error;
pub mod format;
#[cfg(feature = "journal")]
mod ledger;
mod partition;
#[cfg(feature = "journal")]
mod queue;
pub mod routing;
pub mod store;
pub mod work;

pub use bytes::Bytes;
pub use config::{Config, QueueConfig, Retention, TopicConfig};
pub use error::{
    ConfigError, FetchError, OpenError, Outcome, ProduceError, StoreError, TopicError,
};
pub use format::{Batch, BatchBuilder, Compression, Record};
pub use partition::{AppendFuture, Appended, Fetched, Partition, Records, Seek, Stats, WaitFuture};
#[cfg(feature = "journal")]
pub use queue::{Queue, Topic, TopicPartition};
pub use store::Durability;
