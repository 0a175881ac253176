#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod codec;
mod config;
pub mod core;
mod error;
mod message;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
mod types;

pub use config::Config;
pub use error::{ConfigError, ReadRefusal, Refusal};
pub use message::{
    AppendAck, AppendHead, AppendReject, Heartbeat, HeartbeatReply, Message, ReadReply,
    ReadRequest, VoteReply, VoteRequest,
};
pub use types::{
    ENTRY_OVERHEAD, Entry, EntryKind, HaltReason, HardState, MAX_VOTERS, Role, SnapshotMeta, Status,
};
