#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
pub mod core;
mod election;
mod error;
#[cfg(feature = "etcd")]
#[cfg_attr(docsrs, doc(cfg(feature = "etcd")))]
pub mod etcd;
mod fence;
pub mod ids;
#[cfg(feature = "journal")]
#[cfg_attr(docsrs, doc(cfg(feature = "journal")))]
pub mod journal;
mod lease;
mod memory;
#[cfg(feature = "net")]
#[cfg_attr(docsrs, doc(cfg(feature = "net")))]
pub mod net;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub mod postgres;
#[cfg(feature = "raft")]
#[cfg_attr(docsrs, doc(cfg(feature = "raft")))]
pub mod raft;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub mod redis;
mod replica;
mod service;
mod session;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod silence;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;

pub use async_trait::async_trait;
pub use bytes::Bytes;
pub use clock::{BootClock, Clock, TokioClock, WallClock};
pub use core::{Hold, LockView, Mode, Rejection};
pub use election::{Election, Leader, Leadership, Observer};
pub use error::ConfigError;
pub use fence::{Fence, FencingToken, StaleToken};
pub use lease::{BeginError, Lease, LeaseConfig, LeaseEnded};
pub use memory::MemoryLocks;
pub use replica::Replica;
pub use service::{
    Acquired, Acquisition, Advisory, Fenced, GrantKind, LockService, NewValue, Outcome,
    ServiceError,
};
pub use session::{
    Acquire, AcquireMany, Guard, LockError, OpenError, Permit, Released, Session, SessionLost,
};
pub use tokio::time::Instant;
