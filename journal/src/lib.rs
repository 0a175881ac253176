#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod commit;
mod config;
mod core;
mod error;
pub mod files;
mod follow;
pub mod format;
mod inspect;
mod journal;
mod log;
mod recovery;
#[cfg(feature = "testing")]
pub mod testing;

pub use commit::{Batch, BatchBuilder, Commit, Receipt, Rejected};
pub use config::{Durability, Options};
pub use error::{Error, Fault, FullCause, LogName, OpenError, Outcome, ReadError};
pub use files::{DiskFiles, File, Files, MemoryFiles};
pub use follow::Follow;
pub use inspect::{Problem, Progress, Report, Role, SegmentInfo, inspect};
pub use journal::{CommitFuture, Journal, LogInfo, Stats, Work};
pub use log::{Extent, Health, Log};
