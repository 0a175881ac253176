//! The check of fencing tokens in front of logs of a `voussoir-journal`.

use std::fmt;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use voussoir_journal::{
    Commit, CommitFuture, Durability, Error, Health, Journal, Lease, Log, ReadError, Receipt,
};

use crate::fence::{FencingToken, StaleToken};
use crate::service::Outcome;

/// The first byte of a record. Raise it when the layout changes.
const FORMAT: u8 = 1;
/// Bytes of a record: version, and the token in little-endian.
const RECORD_BYTES: usize = 9;

/// Refuses the commits of holders that have lost their lock, in front of logs of a journal. The
/// greatest token is kept in a log of its own, in the same commit as the first effect under it:
/// after a crash both are there, or neither.
///
/// A holder has entered once [`enter`](Self::enter) or its first [`commit`](Self::commit) returns.
/// Until then commits of earlier holders may be under way, and those of other logs may be written
/// behind its own, for a journal keeps the order of the commits of one log only; from then on
/// nothing of them comes. Entering costs one commit more, which waits for all that is under way in
/// the journal.
///
/// What is guarded is what goes by this fence: log 0 of the namespace holds the tokens, and all
/// other logs are the caller's, of any namespace. Who commits to them by the journal itself is not
/// asked for a token.
///
/// For an exclusive lock, as [`Fence`](crate::Fence) is. One fence is open for a namespace at a
/// time; two would not know of each other's tokens. What one has handed in before it was dropped
/// has ended when the next has been opened.
///
/// # Example
/// ```no_run
/// use voussoir_journal::{Commit, Config, Journal};
/// use voussoir_lock::Guard;
/// use voussoir_lock::journal::JournalFence;
///
/// # async fn run(guard: &Guard) -> Result<(), Box<dyn std::error::Error>> {
/// let journal = Journal::open("data", Config::default())?;
/// let fence = JournalFence::open(&journal, "ledger")?;
/// let entries = journal.log("ledger", 1)?;
///
/// fence.enter(guard.permit()?.token()).await?; // before the first read
/// let entry = Commit::new().append(&entries, ["entry"]);
/// fence.commit(guard.permit()?.token(), entry).await?;
/// # Ok(())
/// # }
/// ```
pub struct JournalFence {
    journal: Journal,
    tokens: Log,
    state: Mutex<State>,
    /// Keeps another fence from this namespace.
    _lease: Lease,
}

#[derive(Debug)]
struct State {
    /// The greatest token that was handed in. It never falls.
    latest: u64,
    /// The greatest token whose record is durable, and before which nothing of a smaller one is
    /// under way. Invariant: `entered <= latest`.
    entered: u64,
}

/// Why a commit was not done, or may not have been.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalFenceError {
    /// A later holder has entered. Nothing was done. Final for this one.
    #[error(transparent)]
    Stale(#[from] StaleToken),
    /// The journal. Its outcome says whether the commit may be found later.
    #[error(transparent)]
    Journal(#[from] Error),
    /// The commit was done, and the journal failed before it was known that all commits of smaller
    /// tokens have ended. The holder has not entered: look at what is there once the journal works.
    #[error("the commit was done, and commits of older tokens may not have ended: {0}")]
    NotEntered(#[source] Error),
    /// The record of the latest token cannot be read. Nothing was done; with any token the guarded
    /// logs would be open to holders of the past.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log of the tokens is damaged, so a later token may have been lost. Nothing was done.
    /// Delete the log once no holder of the past lives any more.
    #[error("the log {log} of fencing tokens is damaged: {health:?}")]
    Damaged {
        /// The log.
        log: String,
        /// What is wrong with it.
        health: Health,
    },
    /// The record of the latest token is none of this version. Nothing was done.
    #[error("the log {log} holds no fencing token of this version")]
    Format {
        /// The log.
        log: String,
    },
}

impl JournalFenceError {
    /// Whether the commit may have been done.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Journal(error) if error.outcome() == voussoir_journal::Outcome::Unknown => {
                Outcome::Unknown
            }
            Self::NotEntered(_) => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }
}

impl JournalFence {
    /// The fence in log 0 of this namespace, with the latest token that was recorded there. Blocks
    /// for one commit of the journal, and reads one record.
    ///
    /// # Errors
    /// [`JournalFenceError`]; [`Error::Leased`] while another fence has the namespace.
    pub fn open(journal: &Journal, namespace: &str) -> Result<Self, JournalFenceError> {
        let lease = journal.lease(namespace)?;
        let tokens = journal.log(namespace, 0)?;
        let log = tokens.name().to_string();
        match tokens.health() {
            Health::Intact => {}
            health => return Err(JournalFenceError::Damaged { log, health }),
        }
        // Futures of an earlier fence may have been dropped with their commits under way, and the
        // greatest token among these.
        journal.commit_blocking(Commit::new())?;
        let bounds = tokens.bounds();
        let latest = if bounds.is_empty() {
            0
        } else {
            let record = tokens.read(bounds.end - 1)?;
            decode(&record).ok_or(JournalFenceError::Format { log })?
        };
        let state = Mutex::new(State { latest, entered: latest });
        Ok(Self { journal: journal.clone(), tokens, state, _lease: lease })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in a critical section panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the commit if no greater token has come, and shuts smaller ones out. Returns when it is
    /// durable ([`Durability::Synced`], whatever it asked for), and when all that smaller tokens
    /// have handed in is written or was refused.
    ///
    /// # Errors
    /// [`JournalFenceError`].
    ///
    /// # Cancel safety
    /// A dropped future may have entered, and its commit may be done.
    pub async fn commit(
        &self,
        token: FencingToken,
        commit: Commit,
    ) -> Result<Receipt, JournalFenceError> {
        let token = token.get();
        let mut commit = commit.durability(Durability::Synced);
        // Submitted under the lock: what passes the check is with the journal before the next token
        // passes it.
        let (is_new, barrier, submitted) = {
            let mut state = self.state();
            if token < state.latest {
                return Err(StaleToken { token, latest: state.latest }.into());
            }
            state.latest = token;
            let is_new = token > state.entered;
            let mut barrier = None;
            if is_new {
                barrier = self.barrier()?;
                // Until the record is durable each commit carries it: one that is found after a
                // crash without its token would let an older holder write behind it.
                let before = self.tokens.end();
                commit = commit.append(&self.tokens, [encode(token)]).release(&self.tokens, before);
            }
            (is_new, barrier, self.journal.commit(commit))
        };
        let receipt = submitted.await?;
        if let Some(barrier) = barrier {
            barrier.await.map_err(JournalFenceError::NotEntered)?;
        }
        if is_new {
            let mut state = self.state();
            state.entered = state.entered.max(token);
        }
        Ok(receipt)
    }

    /// A commit without changes, which is done when all that the journal has accepted before is
    /// written; `None` if it is done.
    fn barrier(&self) -> Result<Option<CommitFuture>, Error> {
        let mut barrier = self.journal.commit(Commit::new());
        // Without room for it nothing is done; the commit behind it might find room. Its caller
        // polls it again with a waker of its own.
        match Pin::new(&mut barrier).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(told) => told.map(|_| None),
            Poll::Pending => Ok(Some(barrier)),
        }
    }

    /// Shuts smaller tokens out, durably: before the first read of what is guarded. Returns when
    /// all that they have handed in can be read, or was refused; nothing of them comes later.
    ///
    /// # Errors
    /// [`JournalFenceError`].
    ///
    /// # Cancel safety
    /// A dropped future may have entered.
    pub async fn enter(&self, token: FencingToken) -> Result<(), JournalFenceError> {
        self.commit(token, Commit::new()).await.map(drop)
    }

    /// The latest token that has entered; 0 before the first.
    pub fn latest(&self) -> u64 {
        self.state().latest
    }
}

impl fmt::Debug for JournalFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalFence")
            .field("log", self.tokens.name())
            .field("state", &*self.state())
            .finish_non_exhaustive()
    }
}

fn encode(token: u64) -> [u8; RECORD_BYTES] {
    let mut record = [FORMAT; RECORD_BYTES];
    record[1..].copy_from_slice(&token.to_le_bytes());
    record
}

fn decode(record: &[u8]) -> Option<u64> {
    let (format, token) = record.split_first()?;
    (*format == FORMAT).then_some(u64::from_le_bytes(token.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Journals of other versions hold these bytes.
    #[test]
    fn the_bytes_of_a_token_stay_the_same() {
        assert_eq!(encode(0x0102), [1, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode(&encode(u64::MAX)), Some(u64::MAX));
        for record in [&b""[..], b"\x01", b"\x02\0\0\0\0\0\0\0\0", b"\x01\0\0\0\0\0\0\0\0\0"] {
            assert_eq!(decode(record), None, "{record:?}");
        }
    }
}
