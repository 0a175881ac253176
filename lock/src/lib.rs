#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
pub mod core;
mod error;
pub mod ids;

pub use async_trait::async_trait;
pub use clock::{Clock, WallClock};
pub use error::ConfigError;
