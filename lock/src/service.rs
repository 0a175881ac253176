//! The seam to a lock service: what a back end does, and what clients build on.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::core::{LockView, Mode, Rejection};

/// What a service's grants are good for: [`Fenced`] or [`Advisory`].
///
/// It is a type, so that a guarded resource which asks for fencing does not compile with a service
/// that cannot give it.
pub trait GrantKind: Send + Sync + 'static {}

/// Every grant has a token that is greater than that of every earlier grant of the same lock,
/// across deletion, restart and failover. A resource that checks it is safe from a holder that was
/// paused past its lease.
///
/// ```
/// # use voussoir_lock::{Fence, Fenced, Guard};
/// fn write(ledger: &mut Fence<Vec<u8>>, guard: &Guard<Fenced>) {
///     ledger.enter(guard.token()).expect("nobody came later").push(1);
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {}

/// Grants are a hint: two holders at a time are possible, for example after the service has lost
/// its data, and nothing at the resource can tell them apart. Good for saving work, not for
/// correctness. A resource that asks for fencing does not take them:
///
/// ```compile_fail,E0599
/// # use voussoir_lock::{Advisory, Fence, Guard};
/// fn write(ledger: &mut Fence<Vec<u8>>, guard: &Guard<Advisory>) {
///     ledger.enter(guard.token()).expect("nobody came later").push(1);
/// }
/// ```
///
/// ```compile_fail,E0599
/// # use voussoir_lock::{Advisory, Fence, Guard};
/// fn write(ledger: &mut Fence<Vec<u8>>, guard: &Guard<Advisory>) {
///     let permit = guard.permit().expect("it is held");
///     ledger.enter(permit.token()).expect("nobody came later").push(1);
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advisory {}

impl GrantKind for Fenced {}
impl GrantKind for Advisory {}

/// Takes a lock, or a place in its queue. Sent again unchanged after an unknown outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquisition {
    /// The session that wants the lock.
    pub session: u64,
    /// The number of the acquisition, unique in its session for good.
    pub request: u64,
    /// Requests of the session below this have ended and are not sent again, unless they hold or
    /// wait for a lock now. At most `request`.
    pub floor: u64,
    /// The lock.
    pub name: Bytes,
    /// How it is held.
    pub mode: Mode,
    /// Whether to wait for it; otherwise the answer is [`Acquired::Busy`] instead of a place in
    /// the queue.
    pub wait: bool,
    /// If the session expires while it holds the lock, nobody gets the lock for this long.
    pub lock_delay: Duration,
}

/// The answer to an acquisition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The session holds the lock.
    Granted {
        /// Of a [`Fenced`] service the fencing token. Otherwise a number that tells this grant
        /// from others of the session.
        token: u64,
    },
    /// The deadline has passed, and the acquisition waits on. Ask again, or
    /// [`release`](LockService::release) it.
    Queued,
    /// The lock is not free. The acquisition has ended.
    Busy,
}

/// The value of a lock, set by who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewValue {
    /// The session that holds the lock.
    pub session: u64,
    /// The token of its grant.
    pub token: u64,
    /// Greater than that of every value which this holder has set before; from 1 on. A value that
    /// arrives after a later one changes nothing.
    pub number: u64,
    /// The lock.
    pub name: Bytes,
    /// At most 4 KiB. Empty: the lock has no value.
    pub value: Bytes,
}

/// A lock service: our own on Raft or in memory, or a back end of another make.
///
/// **Every method may be called again** after an error whose
/// [`outcome`](ServiceError::outcome) is unknown, and does nothing twice:
/// acquisitions, releases and values are known by their session and number, renewals and ends of
/// sessions by the session. Only a session that was opened without anybody learning its id is left
/// over; it ends by itself after its time to live.
///
/// A session ends when it is closed, or was not renewed for its time to live **as the service
/// counts it, from a moment after the renewal was sent**. With it ends all that it holds and waits
/// for. Its id is never used again.
///
/// Each method answers by its deadline. It does not retry for longer than makes sense to itself:
/// [`Session`](crate::Session) repeats what [`is_retryable`](ServiceError::is_retryable).
#[async_trait]
pub trait LockService: Send + Sync + 'static {
    /// What its grants are good for.
    type Grants: GrantKind;

    /// Opens a session and returns its id. `ttl` is from 100 ms to 1 h.
    ///
    /// # Errors
    /// [`ServiceError`].
    ///
    /// # Cancel safety
    /// A dropped future may have opened a session, which ends by itself.
    async fn open_session(&self, ttl: Duration, deadline: Instant) -> Result<u64, ServiceError>;

    /// Renews a session: it lives for its whole time to live again.
    ///
    /// # Errors
    /// [`ServiceError`]; `Rejected(NoSession)` is final for the session and all its locks.
    ///
    /// # Cancel safety
    /// A dropped future may have renewed it.
    async fn renew_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError>;

    /// Ends a session whose client has stopped using its locks: without lock-delay. One that has
    /// ended before is closed too.
    ///
    /// # Errors
    /// [`ServiceError`].
    ///
    /// # Cancel safety
    /// A dropped future may have closed it.
    async fn close_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError>;

    /// Takes a lock or a place in its queue, and waits until the lock is granted, at most to the
    /// deadline. Those that wait are served in the order in which they came.
    ///
    /// # Errors
    /// [`ServiceError`].
    ///
    /// # Cancel safety
    /// A dropped future may have taken the lock or a place: the caller releases it.
    async fn acquire(
        &self,
        acquisition: &Acquisition,
        deadline: Instant,
    ) -> Result<Acquired, ServiceError>;

    /// Ends an acquisition, whether it holds, waits, or has never arrived: one that arrives later
    /// is refused.
    ///
    /// # Errors
    /// [`ServiceError`]; after `Rejected(NoSession)` it has ended as well.
    ///
    /// # Cancel safety
    /// A dropped future may have ended it.
    async fn release(
        &self,
        session: u64,
        request: u64,
        deadline: Instant,
    ) -> Result<(), ServiceError>;

    /// Sets the value of a lock that the session holds. The value outlives the grant.
    ///
    /// # Errors
    /// [`ServiceError`]; `Rejected(NotHeld)` if the session does not hold the lock by this token.
    ///
    /// # Cancel safety
    /// A dropped future may have set it.
    async fn set_value(&self, value: &NewValue, deadline: Instant) -> Result<(), ServiceError>;

    /// The lock as it is now, at least as new as everything that was answered before the call.
    /// With `known`, waits until its [`version`](LockView::version) is another one, at most to the
    /// deadline, and then shows it as it is. Changes in quick succession may be seen as one.
    ///
    /// # Errors
    /// [`ServiceError`].
    ///
    /// # Cancel safety
    /// Changes nothing.
    async fn view(
        &self,
        name: &Bytes,
        known: Option<u64>,
        deadline: Instant,
    ) -> Result<LockView, ServiceError>;

    /// Waits until this node knows of a leader other than `but`, at most to the deadline, and
    /// returns the leader that it knows of: for a client that does not reach `but`. By default
    /// returns `None` at once, for services whose nodes do not follow a leader.
    ///
    /// # Cancel safety
    /// Changes nothing.
    async fn wait_for_leader(&self, but: Option<u64>, deadline: Instant) -> Option<u64> {
        let _ = (but, deadline);
        None
    }
}

/// What became of an operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did not happen and never will.
    NotApplied,
    /// It may have happened, or may still happen.
    Unknown,
}

/// Why a service did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The service refused, for a reason that is the caller's to know. Nothing was changed.
    #[error("the lock service refused: {0}")]
    Rejected(#[from] Rejection),
    /// This node does not lead. Nothing was changed. Retry at `leader`, or later.
    #[error("this node does not lead the lock service")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<u64>,
    },
    /// The service was not reached, or is too busy. Nothing was changed. Retry after a pause.
    #[error("the lock service is unavailable: {reason}")]
    Unavailable {
        /// What was in the way.
        reason: String,
    },
    /// The service keeps its data in a format of another version of this crate. Nothing was
    /// changed. Not to be retried: deploy the version that fits.
    #[error("the lock service has data of format {}, and this version has format {expected}",
        .found.map_or("unknown".to_owned(), |found| found.to_string()))]
    Format {
        /// The version that was found; `None` if there is none where one should be.
        found: Option<i32>,
        /// The version of this crate.
        expected: i32,
    },
    /// No answer came. It may have been done, or may still be. Retry it unchanged: nothing is done
    /// twice.
    #[error("the lock service did not answer: {reason}")]
    Unknown {
        /// What is known.
        reason: String,
    },
}

impl ServiceError {
    /// Nothing was changed; `reason` was in the way.
    pub fn unavailable(reason: impl ToString) -> Self {
        Self::Unavailable { reason: reason.to_string() }
    }

    /// It may have been done.
    pub fn unknown(reason: impl ToString) -> Self {
        Self::Unknown { reason: reason.to_string() }
    }

    /// What became of the operation.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Rejected(reason) => reason.is_retryable(),
            Self::Format { .. } => false,
            _ => true,
        }
    }

    /// Whether the session has ended, for good.
    pub(crate) fn is_end_of_session(&self) -> bool {
        matches!(self, Self::Rejected(Rejection::NoSession))
    }
}

impl Rejection {
    /// Whether the same command may succeed later: there was no room for it.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::TooManySessions | Self::TooManyRequests | Self::QueueFull | Self::TooManyLocks
        )
    }
}
