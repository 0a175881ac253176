#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod config;
mod error;
mod event;
mod parts;
mod resolver;
mod transport;

pub use config::{Config, Limits};
pub use error::{
    BindError, CallError, ConfigError, Lost, Outcome, Refused, SendError, ServeError,
};
pub use event::{DownReason, Event, Events, Publisher, Refusal, Violation};
pub use parts::Parts;
pub use resolver::{Peers, Resolver};
pub use tokio::time::Instant;
pub use transport::{Channel, Class, Handler, Transport};
