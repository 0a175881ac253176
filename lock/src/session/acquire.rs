//! Asking for locks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::guard::{Guard, Place};
use super::{Handle, Retries, SessionLost, by};
use crate::clock::after;
use crate::core::{Mode, Rejection};
use crate::service::{Acquired, Acquisition, GrantKind, ServiceError};

/// Why a lock was not acquired. Nothing is held then, and a place in a queue is given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The time to wait is over, and others hold the lock. Retry later.
    #[error("others hold the lock, and the time to wait is over")]
    TimedOut,
    /// The session has ended. Open a new one.
    #[error(transparent)]
    SessionLost(#[from] SessionLost),
    /// The service refused: a limit, or a field out of range. Look at
    /// [`Rejection::is_retryable`].
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The service was not reached in time. Retry later.
    #[error(transparent)]
    Unavailable(ServiceError),
    /// The same name stands twice in [`lock_many`](crate::Session::lock_many).
    #[error("a lock is named twice")]
    NamedTwice,
}

impl LockError {
    fn of(error: ServiceError) -> Self {
        match error {
            ServiceError::Rejected(rejection) => rejection.into(),
            error => Self::Unavailable(error),
        }
    }

    /// Whether the same call may succeed later in the same session.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::TimedOut | Self::Unavailable(_) => true,
            Self::Rejected(rejection) => rejection.is_retryable(),
            Self::SessionLost(_) | Self::NamedTwice => false,
        }
    }
}

/// A lock that is being asked for. See [`Session::lock`](crate::Session::lock).
#[must_use = "nothing is asked for until `within` or `try_within`"]
pub struct Acquire<'a, K: GrantKind> {
    handle: &'a Arc<Handle<K>>,
    name: Bytes,
    mode: Mode,
    lock_delay: Duration,
}

impl<'a, K: GrantKind> Acquire<'a, K> {
    pub(super) fn new(handle: &'a Arc<Handle<K>>, name: Bytes) -> Self {
        Self { handle, name, mode: Mode::Exclusive, lock_delay: Duration::ZERO }
    }

    /// Holds it together with others that hold it shared.
    pub fn shared(mut self) -> Self {
        self.mode = Mode::Shared;
        self
    }

    /// Takes one of `of` slots: a semaphore. Those with another `of` exclude each other. A
    /// semaphore has no fencing against another of its holders, only against earlier ones.
    pub fn slot(mut self, of: u32) -> Self {
        self.mode = Mode::Slot { of };
        self
    }

    /// If the session expires while it holds the lock, nobody gets it for this long, at most one
    /// minute, and up to half as long again for each change of the service's leader: for resources
    /// that cannot check a fencing token. A release ends it at once.
    pub fn lock_delay(mut self, lock_delay: Duration) -> Self {
        self.lock_delay = lock_delay;
        self
    }

    /// Waits for the lock, at most `within` this time. Those that wait are served in the order in
    /// which they came.
    ///
    /// # Errors
    /// [`LockError`].
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped future leaves the queue in the background, and gives a grant that it
    /// has not seen back.
    pub async fn within(self, within: Duration) -> Result<Guard<K>, LockError> {
        let deadline = after(within);
        let guard = acquire(self.handle, &self.name, self.mode, self.lock_delay, true, deadline);
        guard.await?.ok_or(LockError::TimedOut)
    }

    /// Takes the lock if it is free now; `None` if others hold it. The service has `within` this
    /// time to answer.
    ///
    /// # Errors
    /// [`LockError`], other than `TimedOut`.
    ///
    /// # Cancel safety
    /// As [`within`](Self::within).
    pub async fn try_within(self, within: Duration) -> Result<Option<Guard<K>>, LockError> {
        let deadline = after(within);
        acquire(self.handle, &self.name, self.mode, self.lock_delay, false, deadline).await
    }
}

/// Several locks that are being asked for. See [`Session::lock_many`](crate::Session::lock_many).
#[must_use = "nothing is asked for until `within`"]
pub struct AcquireMany<'a, K: GrantKind> {
    handle: &'a Arc<Handle<K>>,
    names: Vec<Bytes>,
}

impl<'a, K: GrantKind> AcquireMany<'a, K> {
    pub(super) fn new(handle: &'a Arc<Handle<K>>, names: Vec<Bytes>) -> Self {
        Self { handle, names }
    }

    /// Waits for all of them, exclusively and at most `within` this time. The guards are in the
    /// order in which the names were given. All or none: those that were taken before a failure
    /// are released in the background.
    ///
    /// # Errors
    /// [`LockError`].
    ///
    /// # Cancel safety
    /// Cancel safe, as [`Acquire::within`].
    pub async fn within(self, within: Duration) -> Result<Vec<Guard<K>>, LockError> {
        let deadline = after(within);
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_unstable_by_key(|at| &self.names[*at]);
        if order.windows(2).any(|pair| self.names[pair[0]] == self.names[pair[1]]) {
            return Err(LockError::NamedTwice);
        }
        let mut guards: Vec<Option<Guard<K>>> = self.names.iter().map(|_| None).collect();
        for at in order {
            let (name, delay) = (&self.names[at], Duration::ZERO);
            let guard = acquire(self.handle, name, Mode::Exclusive, delay, true, deadline).await?;
            guards[at] = Some(guard.ok_or(LockError::TimedOut)?);
        }
        Ok(guards.into_iter().flatten().collect())
    }
}

/// The time to answer, at first, of a service that is only to say whether a request waits. It is
/// doubled at each attempt, for one that is farther away.
const HURRY: Duration = Duration::from_millis(10);

/// `None` if it is not granted by the deadline, or is not free and shall not wait.
async fn acquire<K: GrantKind>(
    handle: &Arc<Handle<K>>,
    name: &Bytes,
    mode: Mode,
    lock_delay: Duration,
    wait: bool,
    deadline: Instant,
) -> Result<Option<Guard<K>>, LockError> {
    let shared = &handle.shared;
    let place = Place::new(Arc::clone(handle));
    let (mut retries, mut is_queued) = (Retries::new(), false);
    // A service that hangs is asked again, within the time that a session survives without it.
    let (mut patience, mut is_hurried) = (shared.ttl, false);
    // Ends: the deadline passes, or the session ends.
    loop {
        shared.check()?;
        let acquisition = Acquisition {
            session: shared.id,
            request: place.request(),
            floor: shared.requests.floor().min(place.request()),
            name: name.clone(),
            mode,
            wait,
            lock_delay,
        };
        let until = deadline.min(Instant::now() + patience);
        let asked = by(until, shared.service.acquire(&acquisition, until));
        let answer = tokio::select! {
            biased;
            () = shared.ended() => return Err(SessionLost.into()),
            answer = asked => answer,
            // While it is not known to have arrived, the service keeps what came after it: it is
            // asked at once whether it waits.
            () = shared.requests.holds_up_others(place.request()), if !is_hurried => {
                (patience, is_hurried) = (HURRY, true);
                continue;
            }
        };
        patience = (2 * patience).min(shared.ttl);
        let error = match answer {
            Ok(Acquired::Granted { token }) => {
                let guard = place.granted(name.clone(), token);
                shared.check()?;
                return Ok(Some(guard));
            }
            Ok(Acquired::Busy) => {
                place.ended();
                return Ok(None);
            }
            Ok(Acquired::Queued) if Instant::now() >= deadline => return Ok(None),
            Ok(Acquired::Queued) => {
                place.arrived();
                patience = shared.ttl;
                // A service that does not wait to the end is not asked without a pause.
                if Instant::now() < until && !retries.pause(deadline).await {
                    return Ok(None);
                }
                is_queued = true;
                continue;
            }
            // An earlier attempt of it, by us or by the service's client, found the lock taken, and
            // its answer was lost.
            Err(ServiceError::Rejected(Rejection::StaleRequest)) if !wait => {
                place.ended();
                return Ok(None);
            }
            Err(error) if error.is_end_of_session() => {
                shared.end();
                return Err(SessionLost.into());
            }
            Err(ServiceError::Rejected(rejection)) if !rejection.is_retryable() => {
                return Err(rejection.into());
            }
            Err(error) => error,
        };
        if !retries.pause(deadline).await {
            // The last that was heard is that others hold the lock, and the wait is over.
            if is_queued {
                return Ok(None);
            }
            return Err(LockError::of(error));
        }
        is_queued = false;
    }
}

impl<K: GrantKind> fmt::Debug for Acquire<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, mode, .. } = self;
        f.debug_struct("Acquire").field("name", name).field("mode", mode).finish_non_exhaustive()
    }
}

impl<K: GrantKind> fmt::Debug for AcquireMany<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcquireMany").field("names", &self.names).finish_non_exhaustive()
    }
}
