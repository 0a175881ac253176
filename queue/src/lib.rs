#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod config;
mod core;
mod error;
pub mod format;
mod partition;
pub mod store;

pub use bytes::Bytes;
pub use config::Config;
pub use error::{ConfigError, FetchError, OpenError, Outcome, ProduceError, StoreError};
pub use format::{Batch, BatchBuilder, Compression, Record};
pub use partition::{
    AppendFuture, Appended, Fetched, Partition, Records, Retention, Seek, Stats, WaitFuture,
};
pub use store::Durability;
