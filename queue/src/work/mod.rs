//! Work queues: records that workers lease one by one, acknowledge, and get again when they fail.
//!
//! A work queue is a shared group over a partition: any number of workers receive from it at once,
//! whatever the number of partitions. What happens to each record is kept in a log of its own, in
//! the journal of the partition.

mod clock;
mod config;
mod core;
mod dead;
mod error;
#[cfg(feature = "journal")]
mod journal;
mod pump;
mod queue;
mod schedule;
mod shell;
mod store;

#[cfg(feature = "journal")]
pub(crate) use clock::time_of_day;
pub use clock::{Clock, TokioClock};
pub use config::WorkConfig;
pub use dead::{DeadLetter, DeathReason, StoredLetter};
pub use error::WorkError;
#[cfg(feature = "journal")]
pub use journal::JournalWork;
pub use queue::{Delivery, Receipt, WorkQueue, WorkStats};
pub use schedule::DELIVER_AT;
pub use store::{MemoryWork, WorkStore, WorkWrite};
