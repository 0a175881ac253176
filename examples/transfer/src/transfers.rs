//! Transfers as transactions over the banks.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use voussoir_txn::two_phase::postgres::BranchError;
use voussoir_txn::two_phase::{
    Ack, BeginError, CommitError, Coordinator, CoordinatorConfig, DecisionLog, EnlistError,
    OpenCoordinatorError, Participant, ParticipantError, TxnOutcome,
};

use crate::bank::{Bank, PartError, Transfer, work};
use crate::reach::Reach;

/// Longest time of one transfer, from its begin to its commit. No statement waits longer.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time of a vote, and of applying a decision. A slower call is repeated.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause before a bank that was away is told a decision again.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The limit for a prepared transaction, counted from when the service and both banks are up: a
/// call that still waits for a bank that died, one pause, one search, and the call that settles it.
#[cfg(feature = "demo")]
pub(crate) fn settle_bound(recover_every: Duration) -> Duration {
    CALL_TIMEOUT + MAX_PAUSE + recover_every + CALL_TIMEOUT
}

/// What became of a request since the start of the process.
#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
    repeated: AtomicU64,
    refused: AtomicU64,
    unavailable: AtomicU64,
    unknown: AtomicU64,
}

/// The answer to `GET /stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Numbers {
    /// Transfers that were done, and those that were asked for again.
    pub(crate) done: u64,
    pub(crate) repeated: u64,
    /// For want of money or accounts, or by a rule.
    pub(crate) refused: u64,
    /// Not done; may be asked for again.
    pub(crate) unavailable: u64,
    /// Of unknown outcome; to be asked for again.
    pub(crate) unknown: u64,
    /// Transactions that have not ended.
    pub(crate) active: usize,
    /// Branches that a bank decided alone, until an operator forgets them.
    pub(crate) heuristics: usize,
}

/// A transfer was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// It will never be done under this id; nothing was changed.
    #[error(transparent)]
    Refused(PartError),
    /// It was not done by this attempt.
    #[error("{0}")]
    Unavailable(String),
    /// It was done, or will be, or not: ask again with the same id.
    #[error("{0}")]
    Unknown(String),
}

fn unavailable(error: impl ToString) -> TransferError {
    TransferError::Unavailable(error.to_string())
}

impl From<BeginError> for TransferError {
    fn from(error: BeginError) -> Self {
        unavailable(error)
    }
}

impl From<EnlistError> for TransferError {
    fn from(error: EnlistError) -> Self {
        unavailable(error)
    }
}

impl From<ParticipantError> for TransferError {
    fn from(error: ParticipantError) -> Self {
        unavailable(error)
    }
}

impl From<BranchError> for TransferError {
    fn from(error: BranchError) -> Self {
        Self::Unavailable(crate::chain(&error))
    }
}

impl From<CommitError> for TransferError {
    fn from(error: CommitError) -> Self {
        match error.outcome() {
            TxnOutcome::NotApplied => unavailable(error),
            TxnOutcome::Unknown => Self::Unknown(error.to_string()),
        }
    }
}

/// Whether a transfer was done by this request or an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Now,
    Before,
}

/// Transfers money. Clones are the same service.
#[derive(Clone, Debug)]
pub(crate) struct Transfers {
    coordinator: Coordinator,
    banks: [Reach; 2],
    under_way: Arc<Mutex<HashSet<String>>>,
    counters: Arc<Counters>,
}

impl Transfers {
    /// Takes up what an earlier process left prepared. `participants` are the banks as the
    /// coordinator sees them.
    ///
    /// # Errors
    /// The name cannot be used, or the log cannot be read.
    ///
    /// # Cancel safety
    /// Dropped, an epoch of the log may be used up.
    pub(crate) async fn open(
        name: &str,
        recover_every: Duration,
        banks: [Reach; 2],
        participants: [Arc<dyn Participant>; 2],
        log: impl DecisionLog,
    ) -> Result<Self, OpenCoordinatorError> {
        let mut config = CoordinatorConfig::default();
        config.active_timeout = TRANSFER_TIMEOUT;
        config.prepare_timeout = CALL_TIMEOUT;
        config.finish_timeout = CALL_TIMEOUT;
        config.max_pause = MAX_PAUSE;
        config.recover_every = recover_every;
        let mut builder = Coordinator::builder(name).config(config);
        for (bank, participant) in Bank::ALL.into_iter().zip(participants) {
            builder = builder.participant(bank.name(), participant);
        }
        let coordinator = builder.open(log).await?;
        let (under_way, counters) = (Arc::default(), Arc::default());
        Ok(Self { coordinator, banks, under_way, counters })
    }

    pub(crate) fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    pub(crate) fn numbers(&self) -> Numbers {
        let Counters { done, repeated, refused, unavailable, unknown } = &*self.counters;
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Numbers {
            done: now(done),
            repeated: now(repeated),
            refused: now(refused),
            unavailable: now(unavailable),
            unknown: now(unknown),
            active: self.coordinator.active(),
            heuristics: self.coordinator.heuristics().len(),
        }
    }

    /// Transfers, once for each id. Returns when the commit is decided and durable.
    ///
    /// # Errors
    /// [`TransferError`].
    ///
    /// # Cancel safety
    /// Dropped before the commit nothing is changed; dropped later its outcome is unknown.
    pub(crate) async fn transfer(
        &self,
        id: &str,
        transfer: &Transfer,
    ) -> Result<Done, TransferError> {
        let result = self.attempt(id, transfer).await;
        let Counters { done, repeated, refused, unavailable, unknown } = &*self.counters;
        let counter = match &result {
            Ok(Done::Now) => done,
            Ok(Done::Before) => repeated,
            Err(TransferError::Refused(_)) => refused,
            Err(TransferError::Unavailable(_)) => unavailable,
            Err(TransferError::Unknown(_)) => unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    async fn attempt(&self, id: &str, transfer: &Transfer) -> Result<Done, TransferError> {
        // Two attempts side by side could be told different things.
        let Some(_under_way) = UnderWay::enter(&self.under_way, id) else {
            let why = "an earlier request of this transfer is under way";
            return Err(TransferError::Unknown(why.to_owned()));
        };
        let mut txn = self.coordinator.begin()?;
        for part in transfer.parts() {
            let gid = txn.enlist(part.bank.name())?;
            let bank = self.banks[part.bank as usize].get()?;
            let branch = bank.begin(&gid, txn.time_left()).await?;
            match work(&branch, id, transfer, &part).await {
                Ok(()) => {}
                // What was done in another bank is undone with the transaction, which is dropped.
                Err(PartError::Before) => return Ok(Done::Before),
                Err(error @ PartError::InDoubt) => {
                    return Err(TransferError::Unknown(error.to_string()));
                }
                Err(PartError::Postgres(error)) => {
                    return Err(TransferError::Unavailable(crate::chain(&error)));
                }
                Err(error) => return Err(TransferError::Refused(error)),
            }
        }
        txn.commit(Ack::Decided).await?;
        Ok(Done::Now)
    }
}

/// An id in the set of those under way.
struct UnderWay {
    ids: Arc<Mutex<HashSet<String>>>,
    id: String,
}

impl UnderWay {
    fn enter(ids: &Arc<Mutex<HashSet<String>>>, id: &str) -> Option<Self> {
        let is_new = ids.lock().insert(id.to_owned());
        is_new.then(|| Self { ids: Arc::clone(ids), id: id.to_owned() })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.ids.lock().remove(&self.id);
    }
}
