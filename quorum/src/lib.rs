#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod abd;
pub mod crdt;
pub mod detector;
mod error;
pub mod merkle;
pub mod paxos;
pub mod table;
pub mod version;

pub use bytes::Bytes;
pub use error::ConfigError;
