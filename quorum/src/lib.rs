#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod abd;
mod caller;
mod client;
pub mod crdt;
pub mod detector;
mod error;
pub mod link;
pub mod membership;
pub mod merkle;
#[cfg(feature = "net")]
mod net;
mod node;
mod pace;
pub mod paxos;
pub mod region;
mod resend;
pub mod store;
pub mod table;
pub mod version;
mod wire;

pub use async_trait::async_trait;
pub use bytes::Bytes;
pub use client::{
    RegisterConfig, RegisterError, Registers, Session, SessionError, SessionToken, Table,
    TableError, TokenError,
};
pub use error::ConfigError;
pub use link::{Class, Link};
pub use membership::{Lineage, MemberChange, Membership};
#[cfg(feature = "net")]
pub use net::NetLink;
pub use node::{
    CollectError, HintStats, Node, NodeConfig, RebuildError, ReconfigureError, RepairError,
    RepairStats, Repaired, StartError, Status, Stranger, Strangers, TombstoneStats,
};
#[cfg(feature = "journal")]
pub use store::JournalStore;
pub use store::{MemoryStore, ReplicaStore};
pub use tokio::time::Instant;
pub use wire::MAX_KEY_BYTES;
