#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
pub mod core;
mod error;
mod fence;
pub mod ids;
mod lease;

pub use async_trait::async_trait;
pub use clock::{Clock, WallClock};
pub use error::ConfigError;
pub use fence::{Fence, FencingToken, StaleToken};
pub use lease::{BeginError, Lease, LeaseConfig, LeaseEnded};
