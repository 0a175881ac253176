#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod changes;
mod commit;
mod config;
mod core;
mod engine;
mod error;
pub mod files;
mod follow;
pub mod format;
mod inspect;
mod journal;
mod lease;
mod log;
mod log_info;
mod recovery;
mod salvage;
#[cfg(feature = "testing")]
pub mod testing;

pub use commit::{Batch, BatchBuilder, Commit, Receipt, Rejected};
pub use config::{Config, Durability};
pub use engine::submit::Work;
pub use error::{ConfigError, Error, Fault, FullCause, LogName, OpenError, Outcome, ReadError};
pub use files::{DiskFiles, File, Files, MemoryFiles};
pub use follow::Follow;
pub use inspect::{Problem, Progress, Report, Role, SegmentInfo, inspect};
pub use journal::{CommitFuture, Journal, Stats};
pub use lease::Lease;
pub use log::Log;
pub use log_info::{Extent, Health, LogInfo};
pub use salvage::{
    FileRole, SalvageConfig, SalvageError, SalvageProgress, SalvageReport, SalvagedFile,
    SalvagedLog, salvage,
};
