#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod config;
mod core;
mod error;
mod event;
pub mod memory;
mod parts;
mod resolver;
mod serving;
mod stats;
mod tcp;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tls;
mod transport;
mod wire;

pub use async_trait::async_trait;
pub use bytes::Bytes;
pub use config::{Config, Limits};
pub use error::{
    BindError, CallError, ConfigError, Lost, Outcome, Rejected, SendError, ServeError,
};
pub use event::{DownReason, Event, Events, HandshakeError, Publisher, Violation};
pub use parts::Parts;
pub use resolver::{Peers, Resolver};
pub use stats::Stats;
pub use tcp::{Queue, Tcp};
pub use tls::TlsError;
#[cfg(feature = "tls")]
pub use tls::{Name, Tls, TlsConfig, TlsConfigError};
pub use tokio::time::Instant;
pub use transport::{Channel, Class, Handler, Transport};
