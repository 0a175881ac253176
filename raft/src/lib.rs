#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod codec;
mod config;
pub mod core;
mod error;
#[cfg(feature = "journal")]
#[cfg_attr(docsrs, doc(cfg(feature = "journal")))]
pub mod journal;
mod machine;
mod membership;
pub mod memory;
mod message;
#[cfg(feature = "net")]
#[cfg_attr(docsrs, doc(cfg(feature = "net")))]
pub mod net;
mod node;
mod sessions;
mod shell;
mod store;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
mod transport;
mod types;

pub use self::core::Restored;
pub use async_trait::async_trait;
pub use bytes::Bytes;
pub use config::Config;
pub use error::{
    ChangeRejected, ConfigError, CoreError, ProposeRejected, ReadRejected, RestoredError,
};
pub use machine::{Chunks, Command, MachineError, StateMachine, WholeSnapshot};
pub use membership::{Change, MAX_ADDRESS_BYTES, MAX_LEARNERS, Membership};
pub use message::{
    AppendAck, AppendHead, AppendReject, GroupBeat, Heartbeat, HeartbeatReply, LogLost, Message,
    NodeBeat, Quiesce, ReadReply, ReadRequest, VoteReply, VoteRequest,
};
pub use node::{NODE_GROUP, Node, NodeConfig, NodeStats, PeerStatus};
pub use sessions::{Session, SessionAnswer, SessionError, SessionLimits, Sessions};
pub use shell::{
    ChangeError, Doubt, Freshness, Outcome, ProposeError, Raft, ReadError, StartError, Stats,
    StopReason, TransferError,
};
pub use store::{
    Cause, Completion, LogStore, LogWrite, MAX_CHUNK_BYTES, ReadFailed, Room, SnapshotName,
    SnapshotReader, SnapshotWriter, StoreError,
};
pub use transport::{AttachError, Inbox, SendError, SnapshotAnswer, SnapshotPart, Transport};
pub use types::{
    ENTRY_OVERHEAD, Entry, EntryKind, FollowerState, FollowerStatus, HaltReason, HardState,
    MAX_INDEX, MAX_TERM, MAX_TERM_STEP, MAX_VOTERS, Role, SnapshotMeta, SnapshotProgress, Status,
};
