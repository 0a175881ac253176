#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod behind;
mod cache;
mod clock;
mod close;
mod codec;
mod config;
mod core;
mod error;
mod flights;
mod insert;
mod load;
mod lookup;
#[cfg(feature = "metrics")]
mod metrics;
mod remote;
mod session;
mod source;
mod stats;
mod store;
mod tags;
#[cfg(feature = "testing")]
pub mod testing;
mod write;

pub use async_trait::async_trait;
#[cfg(feature = "journal")]
pub use behind::OpenError;
pub use behind::{OnFull, RejectedWrite, WriteBehind, WriteBehindConfig};
pub use cache::{Builder, Cache};
#[cfg(target_os = "linux")]
pub use clock::Coarse;
pub use clock::{Clock, Monotonic, TokioClock};
pub use close::Closed;
pub use codec::{Codec, CodecError, Plain, PlainCodec};
pub use config::{Config, OnPanic};
pub use core::peers::Invalidation;
pub use error::{ConfigError, LoadError, Outcome, SinkError, SourceError, WriteError};
pub use insert::Insert;
pub use load::{Key, Value};
#[cfg(feature = "metrics")]
pub use metrics::CacheMetrics;
pub use remote::bus::{Bus, BusConfig, BusError, LocalBus, Subscription};
pub use remote::level::{Fetched, LevelConfig, LevelError, OnOutage, Put, SecondLevel};
#[cfg(feature = "redis")]
pub use remote::{RedisBus, RedisLevel};
pub use session::{Session, SessionToken, TokenError};
pub use source::{ConditionalSource, Held, Loaded, Reloaded, Sink, Source, Write};
pub use stats::{LoadLatency, Stats};
pub use store::{Entry, HashedKey, Probe, QuickStore, Removed, Store, Weigher};
