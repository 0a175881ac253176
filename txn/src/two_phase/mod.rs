//! Two-phase commit: all participants of a transaction commit, or none does.
//!
//! ```
//! use voussoir_txn::store::MemoryStore; // a JournalStore keeps decisions across restarts
//! use voussoir_txn::two_phase::{Ack, Coordinator, StoreLog};
//! # use std::sync::Arc;
//! # use voussoir_txn::two_phase::*;
//! # struct Database;
//! # #[voussoir_txn::async_trait]
//! # impl Participant for Database {
//! #     async fn prepare(&self, _: &Gid) -> Result<Vote, PrepareError> {
//! #         Ok(Vote::Prepared)
//! #     }
//! #     async fn finish(&self, _: &Gid, _: Decision) -> Result<Applied, ParticipantError> {
//! #         Ok(Applied::Done)
//! #     }
//! #     async fn in_doubt(&self, _: &str, _: usize) -> Result<Vec<InDoubt>, ParticipantError> {
//! #         Ok(Vec::new())
//! #     }
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (left, right) = (Arc::new(Database), Arc::new(Database));
//! let coordinator = Coordinator::builder("transfers")
//!     .participant("left", left)
//!     .participant("right", right)
//!     .open(StoreLog::new(MemoryStore::new()))
//!     .await?;
//! let mut txn = coordinator.begin()?;
//! let (debit, credit) = (txn.enlist("left")?, txn.enlist("right")?);
//! // … work under the ids `debit` and `credit` at the two databases …
//! # assert_ne!(debit, credit);
//! txn.commit(Ack::Decided).await?;
//! # Ok(())
//! # }
//! ```
//!
//! **Presumed abort**: only a commit is recorded, once, before any branch is told. A transaction
//! that is neither active nor recorded has aborted. A recovery lists the prepared branches of each
//! participant, then looks which transactions are active, and aborts the branches of the others. It
//! touches only branches of its own coordinator and of no later epoch, and goes on for as long as
//! the coordinator lives, because a branch may become prepared late.
//!
//! Between its vote and the decision a branch blocks what it has locked. With a log on one disk
//! that lasts as long as the coordinator is away: start it again on the same log. With decisions in
//! a group of `voussoir-raft` (feature `raft`, `two_phase::raft`) another node takes over.
//!
//! Sources: Gray, *Notes on Data Base Operating Systems* (1978); Mohan, Lindsay, Obermarck,
//! *Transaction Management in the R\* Distributed Database Management System* (TODS 1986).

mod config;
mod coordinator;
mod core;
mod error;
mod gid;
mod log;
mod participant;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub mod postgres;
#[cfg(feature = "raft")]
#[cfg_attr(docsrs, doc(cfg(feature = "raft")))]
pub mod raft;
mod recovery;
mod task;
#[cfg(test)]
mod tests;

pub use config::CoordinatorConfig;
pub use coordinator::{Coordinator, CoordinatorBuilder, Txn};
pub use core::{Ack, Decision, Heuristic};
pub use error::{
    BeginError, CommitError, EnlistError, OpenCoordinatorError, OtherCoordinator, Superseded,
    TxnOutcome,
};
pub use gid::{Gid, GidError, MAX_COORDINATOR_BYTES, TxnId};
pub use log::{Committed, DecisionLog, HeuristicOutcome, OpenedLog, StoreLog};
pub use participant::{Applied, InDoubt, Participant, ParticipantError, PrepareError, Vote};
pub use recovery::Recovered;
