//! Leader election over a lock: the holder leads, its token is the term, its value is told to all.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::time::Instant;

use crate::clock::after;
use crate::fence::FencingToken;
use crate::service::{Fenced, GrantKind, LockService, ServiceError};
use crate::session::{Guard, LockError, Permit, Released, Retries, Session, SessionLost, by};

/// The longest that finished work waits until its leadership is known to be resigned.
const RESIGN: Duration = Duration::from_secs(1);

/// An election of one leader at a time, among the sessions that campaign under its name.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use voussoir_lock::{Election, LeaseConfig, MemoryLocks, Session};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (service, second) = (MemoryLocks::start(), Duration::from_secs(1));
/// let session = Session::open(service, LeaseConfig::default(), second).await?;
/// let election = Election::new(&session, "scheduler");
/// let mut observer = election.observe();
/// assert_eq!(observer.next(second).await?, None, "nobody leads yet");
///
/// let done = election.run_while_leader("10.0.0.1:80", second, async |leadership| {
///     let leader = observer.next(second).await?.expect("we lead");
///     assert_eq!(leader.term, leadership.term().get());
///     assert_eq!(leader.value, "10.0.0.1:80");
///     Ok::<_, voussoir_lock::ServiceError>("the work")
/// });
/// assert_eq!(done.await??, "the work");
/// # Ok(())
/// # }
/// ```
pub struct Election<K: GrantKind = Fenced> {
    session: Session<K>,
    name: Bytes,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The session that leads.
    pub session: u64,
    /// The token of its grant: greater than that of every earlier leader, if the service is
    /// [`Fenced`].
    pub term: u64,
    /// What it has proclaimed last; empty if it has proclaimed nothing yet.
    pub value: Bytes,
}

/// The leadership of this session. Dropped, it is resigned in the background.
#[must_use = "dropping it resigns"]
pub struct Leadership<K: GrantKind = Fenced> {
    guard: Guard<K>,
}

impl<K: GrantKind> Election<K> {
    /// The election of this name, by a lock of the same name.
    pub fn new(session: &Session<K>, name: impl Into<Bytes>) -> Self {
        Self { session: session.clone(), name: name.into() }
    }

    /// Waits until this session leads and has proclaimed `value`, at most 4,088 bytes; both at most
    /// `within` this time. Candidates lead in the order in which they came.
    ///
    /// # Errors
    /// [`LockError`]; this session does not lead then, and does not wait to.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped future no longer campaigns.
    pub async fn campaign(
        &self,
        value: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Leadership<K>, LockError> {
        let deadline = after(within);
        let guard = self.session.lock(self.name.clone()).within(within).await?;
        let leadership = Leadership { guard };
        let left = deadline.saturating_duration_since(Instant::now());
        let proclaimed = leadership.guard.run(leadership.proclaim(value, left)).await?;
        match proclaimed {
            Ok(()) => Ok(leadership),
            Err(ServiceError::Rejected(rejection)) => Err(rejection.into()),
            Err(error) => Err(LockError::Unavailable(error)),
        }
    }

    /// Campaigns, and runs `work` for as long as this session leads: the future is dropped when the
    /// leadership is lost, before the service lets others lead. Resigns after it, and waits until
    /// the service has confirmed that, at most a second and at most `within`; without an answer it
    /// is resigned in the background.
    ///
    /// # Errors
    /// [`LockError`]: this session was not elected, or was, and lost the leadership before `work`
    /// ended (`SessionLost`).
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped future drops `work` and resigns in the background.
    pub async fn run_while_leader<T>(
        &self,
        value: impl Into<Bytes>,
        within: Duration,
        work: impl AsyncFnOnce(&Leadership<K>) -> T,
    ) -> Result<T, LockError> {
        let leadership = self.campaign(value, within).await?;
        let done = leadership.guard.run(work(&leadership)).await?;
        // It is released in the background if the service does not answer.
        let _ = leadership.resign(within.min(RESIGN)).await;
        Ok(done)
    }

    /// An observer of this election.
    pub fn observe(&self) -> Observer<K> {
        Observer::new(Arc::clone(&self.session.handle.shared.service), self.name.clone())
    }
}

impl<K: GrantKind> Leadership<K> {
    /// Replaces what observers see of this leader, at most 4,088 bytes, `within` this time.
    ///
    /// # Errors
    /// [`ServiceError`]: its outcome says whether it may have been proclaimed.
    ///
    /// # Cancel safety
    /// A dropped future may have proclaimed the value. One that is proclaimed later replaces it.
    pub async fn proclaim(
        &self,
        value: impl Into<Bytes>,
        within: Duration,
    ) -> Result<(), ServiceError> {
        let value = encode(self.guard.number(), &value.into());
        self.guard.set_value(value, within).await
    }

    /// Gives the leadership to the next candidate, and waits `within` this time until the service
    /// has confirmed it.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped future goes on in the background.
    pub async fn resign(self, within: Duration) -> Released {
        self.guard.release(within).await
    }

    /// The right to act as the leader now.
    ///
    /// # Errors
    /// [`SessionLost`]: others may lead.
    pub fn permit(&self) -> Result<Permit<'_, K>, SessionLost> {
        self.guard.permit()
    }

    /// Runs a future for as long as this session leads, as [`Guard::run`] does.
    ///
    /// # Errors
    /// [`SessionLost`]: the future was dropped before its end.
    ///
    /// # Cancel safety
    /// Dropped, it drops the future.
    pub async fn run<F: Future>(&self, future: F) -> Result<F::Output, SessionLost> {
        self.guard.run(future).await
    }

    /// Returns when the leadership is lost: its session has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn lost(&self) {
        self.guard.lost().await;
    }
}

impl Leadership<Fenced> {
    /// The term: greater than that of every earlier leader. What a guarded resource checks.
    pub fn term(&self) -> FencingToken {
        self.guard.token()
    }
}

/// Sees who leads. Needs no session.
pub struct Observer<K: GrantKind = Fenced> {
    service: Arc<dyn LockService<Grants = K>>,
    name: Bytes,
    /// Version of the lock that `seen` was told of; `None` before the first.
    version: Option<u64>,
    seen: Option<Leader>,
}

impl<K: GrantKind> Observer<K> {
    /// An observer of the election of this name.
    pub fn new(service: Arc<dyn LockService<Grants = K>>, name: impl Into<Bytes>) -> Self {
        Self { service, name: name.into(), version: None, seen: None }
    }

    /// At first who leads now, then the next change: another leader, another value, or `None` when
    /// nobody leads. Changes in quick succession may be seen as one. `within` bounds the wait; when
    /// it is over, the latest is told again.
    ///
    /// # Errors
    /// [`ServiceError`]: the service was not reached in time. Call it again.
    ///
    /// # Cancel safety
    /// Cancel safe: a change that was not told is told by the next call.
    pub async fn next(&mut self, within: Duration) -> Result<Option<Leader>, ServiceError> {
        let deadline = after(within);
        let mut retries = Retries::new();
        // Ends: the deadline passes.
        loop {
            let known = self.version;
            // A service that hangs is asked again meanwhile.
            let until = deadline.min(Instant::now() + Duration::from_secs(10));
            let answer = self.service.view(&self.name, known, until);
            // It may take the whole time by right: a little more than that is silence.
            match by(until + Duration::from_millis(100), answer).await {
                Ok(view) => {
                    let holder = view.holders.first();
                    let leader = holder.map(|holder| Leader {
                        session: holder.session,
                        term: holder.token,
                        value: decode(holder.token, &view.value),
                    });
                    let is_new = known.is_none() || self.seen != leader;
                    self.version = Some(view.version);
                    // A service that does not wait to the end is not asked without a pause.
                    let is_early = Instant::now() < until;
                    let is_over = Instant::now() >= deadline;
                    if is_new || is_over || is_early && !retries.pause(deadline).await {
                        self.seen.clone_from(&leader);
                        return Ok(leader);
                    }
                }
                Err(error) if error.is_retryable() && retries.pause(deadline).await => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The value of the lock: the term of whoever has set it, for it outlives the leader.
fn encode(term: u64, value: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + value.len());
    out.put_u64_le(term);
    out.put_slice(value);
    out.freeze()
}

/// What the leader of `term` has proclaimed; empty if the value is of an earlier leader.
fn decode(term: u64, value: &Bytes) -> Bytes {
    let mut value = value.clone();
    match value.try_get_u64_le() {
        Ok(by) if by == term => value,
        _ => Bytes::new(),
    }
}

impl<K: GrantKind> fmt::Debug for Election<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<K: GrantKind> fmt::Debug for Leadership<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("guard", &self.guard).finish()
    }
}

impl<K: GrantKind> fmt::Debug for Observer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("name", &self.name).finish_non_exhaustive()
    }
}
