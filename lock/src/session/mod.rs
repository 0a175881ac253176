//! The client: a session, its keep-alive, and what it holds.

mod acquire;
mod guard;
mod keep;
mod requests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

pub use self::acquire::{Acquire, AcquireMany, LockError};
pub use self::guard::{Guard, Permit, Released};

use self::requests::Requests;
use crate::clock::{BootClock, Clock, after};
use crate::error::ConfigError;
use crate::lease::{BeginError, Lease, LeaseConfig, LeaseEnded};
use crate::service::{Fenced, GrantKind, LockService, ServiceError};

/// A client of a lock service, alive by one renewal for all its locks. Cheap to clone.
///
/// A task renews it at a third of its time to live and retries to the end. When no renewal was
/// confirmed in time, the session is **lost**, by its own deadline and for good: guards give no
/// permit any more, futures that run under them are dropped, and a new session is opened by whoever
/// wants to go on. When the last clone and the last guard are dropped, the session is closed in the
/// background; that is a hint, and the time to live is the guarantee.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use voussoir_lock::{Fence, LeaseConfig, MemoryLocks, Session};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let service = MemoryLocks::start();
/// let second = Duration::from_secs(1);
/// let session = Session::open(service, LeaseConfig::default(), second).await?;
/// let mut ledger = Fence::new(Vec::new());
///
/// let guard = session.lock("ledger").within(second).await?;
/// ledger.enter(guard.permit()?.token())?.push("entry");
/// guard.release(second).await;
/// # Ok(())
/// # }
/// ```
pub struct Session<K: GrantKind = Fenced> {
    pub(crate) handle: Arc<Handle<K>>,
}

/// What sessions and guards share; the tasks of a session do not hold it, and end with it.
pub(crate) struct Handle<K: GrantKind> {
    pub(crate) shared: Arc<Shared<K>>,
}

pub(crate) struct Shared<K: GrantKind> {
    pub(crate) service: Arc<dyn LockService<Grants = K>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) id: u64,
    pub(crate) ttl: Duration,
    pub(crate) lease: Lease,
    /// When the request that opened the session was sent, by `clock`.
    pub(crate) opened_at: u64,
    pub(crate) requests: Requests,
    /// Rings when a release was put into `requests`.
    pub(crate) release: Notify,
    /// False once the session has ended for its client: it was lost or closed.
    pub(crate) is_live: watch::Sender<bool>,
    /// Set once the last handle is gone.
    pub(crate) is_left: watch::Sender<bool>,
}

/// The session has ended for its client: it was lost or closed. Final. Its locks may belong to
/// others; open a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session has ended, and its locks may belong to others")]
pub struct SessionLost;

impl From<LeaseEnded> for SessionLost {
    fn from(_: LeaseEnded) -> Self {
        Self
    }
}

/// Why a session was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The caller: the configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The service refused, or was not reached in time. What it may have opened ends by itself.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// Every answer took longer than the session lives. Take a longer time to live.
    #[error("the service takes longer to answer than the session lives")]
    TooSlow,
}

impl<K: GrantKind> Session<K> {
    /// Opens a session, at most `within` this time. Its tasks run on the current tokio runtime,
    /// with timers enabled.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped future may have opened a session, which ends by itself.
    pub async fn open<S>(
        service: Arc<S>,
        config: LeaseConfig,
        within: Duration,
    ) -> Result<Self, OpenError>
    where
        S: LockService<Grants = K>,
    {
        Self::open_with_clock(service, config, within, Arc::new(BootClock)).await
    }

    /// The same for any service of the kind, with a clock: it must not step, and must count on
    /// while the machine is suspended.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// As [`open`](Self::open).
    pub async fn open_with_clock(
        service: Arc<dyn LockService<Grants = K>>,
        config: LeaseConfig,
        within: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        config.validate()?;
        let deadline = after(within);
        let mut retries = Retries::new();
        // Ends: the deadline passes.
        let (id, lease, opened_at) = loop {
            let sent_at = clock.now();
            let error = match by(deadline, service.open_session(config.ttl, deadline)).await {
                Ok(id) => match Lease::granted(&config, sent_at, clock.now()) {
                    Ok(lease) => break (id, lease, sent_at),
                    Err(BeginError::Config(error)) => return Err(error.into()),
                    Err(BeginError::TooLate) => OpenError::TooSlow,
                },
                Err(error) if error.is_retryable() => error.into(),
                Err(error) => return Err(error.into()),
            };
            if !retries.pause(deadline).await {
                return Err(error);
            }
        };
        let shared = Arc::new(Shared {
            service,
            clock,
            id,
            ttl: config.ttl,
            lease,
            opened_at,
            requests: Requests::default(),
            release: Notify::new(),
            is_live: watch::Sender::new(true),
            is_left: watch::Sender::new(false),
        });
        tokio::spawn(keep::keep_alive(Arc::clone(&shared)));
        tokio::spawn(keep::release_in_background(Arc::clone(&shared)));
        Ok(Self { handle: Arc::new(Handle { shared }) })
    }

    /// Its id at the service.
    pub fn id(&self) -> u64 {
        self.handle.shared.id
    }

    /// Begins to ask for a lock, exclusively. Names have at most 1,024 bytes.
    pub fn lock(&self, name: impl Into<Bytes>) -> Acquire<'_, K> {
        Acquire::new(&self.handle, name.into())
    }

    /// Begins to ask for several locks together. They are taken in the order of their names,
    /// whatever the order they are given in, so that two who ask for the same locks by this do not
    /// wait for each other.
    pub fn lock_many<N: Into<Bytes>>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> AcquireMany<'_, K> {
        AcquireMany::new(&self.handle, names.into_iter().map(Into::into).collect())
    }

    /// Whether the session lives, as far as its own deadline says.
    ///
    /// # Errors
    /// [`SessionLost`].
    pub fn check(&self) -> Result<(), SessionLost> {
        self.handle.shared.check()
    }

    /// Until when the session lives without a further renewal, in ns of its clock; `None` once it
    /// has ended.
    pub fn deadline(&self) -> Option<u64> {
        self.handle.shared.lease.deadline()
    }

    /// Returns when the session has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn lost(&self) {
        self.handle.shared.ended().await;
    }

    /// Ends the session, and with it all that it holds and waits for: at once for this process,
    /// and `within` this time at the service. Futures under [`Guard::run`] in other tasks may be
    /// dropped a moment after others got the lock: let them end before.
    ///
    /// # Errors
    /// [`ServiceError`]: the service may keep the locks for the time to live.
    ///
    /// # Cancel safety
    /// Once polled, the session has ended for this process.
    pub async fn close(&self, within: Duration) -> Result<(), ServiceError> {
        let shared = &self.handle.shared;
        shared.end();
        let deadline = after(within);
        match retry(deadline, || shared.service.close_session(shared.id, deadline)).await {
            Err(error) if error.is_end_of_session() => Ok(()),
            closed => closed,
        }
    }
}

impl<K: GrantKind> Shared<K> {
    pub(crate) fn check(&self) -> Result<(), SessionLost> {
        Ok(self.lease.check(self.clock.now())?)
    }

    /// The session has ended for this process. Tells everybody who waits.
    pub(crate) fn end(&self) {
        self.lease.end();
        self.is_live.send_replace(false);
    }

    /// Returns when the session has ended.
    pub(crate) async fn ended(&self) {
        // The sender is part of `self`: it is not dropped meanwhile.
        let _ = self.is_live.subscribe().wait_for(|is_live| !is_live).await;
    }
}

impl<K: GrantKind> Clone for Session<K> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle) }
    }
}

impl<K: GrantKind> Drop for Handle<K> {
    fn drop(&mut self) {
        self.shared.is_left.send_replace(true);
    }
}

impl<K: GrantKind> fmt::Debug for Session<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deadline = self.deadline();
        f.debug_struct("Session").field("id", &self.id()).field("deadline", &deadline).finish()
    }
}

/// A call of the service, given up at its deadline also if the service does not keep to it.
pub(crate) async fn by<T>(
    deadline: Instant,
    call: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    let ended = timeout_at(deadline, call).await;
    ended.unwrap_or_else(|_| Err(ServiceError::unknown("the deadline has passed")))
}

/// Calls the service until it answers or refuses for good, with pauses, at most to the deadline.
/// Returns the last error then.
pub(crate) async fn retry<T, C>(
    deadline: Instant,
    mut call: impl FnMut() -> C,
) -> Result<T, ServiceError>
where
    C: Future<Output = Result<T, ServiceError>>,
{
    let mut retries = Retries::new();
    // Ends: the deadline passes.
    loop {
        match by(deadline, call()).await {
            Err(error) if error.is_retryable() && retries.pause(deadline).await => {}
            answer => return answer,
        }
    }
}

/// Pauses between attempts: from 5 ms, doubled, to `max`, each drawn between its half and itself.
pub(crate) struct Retries {
    pause: Duration,
    max: Duration,
}

impl Retries {
    pub(crate) fn new() -> Self {
        Self::up_to(Duration::from_millis(200))
    }

    pub(crate) fn up_to(max: Duration) -> Self {
        Self { pause: max.min(Duration::from_millis(5)), max }
    }

    /// Waits before the next attempt. False at once if that would be after the deadline.
    pub(crate) async fn pause(&mut self, deadline: Instant) -> bool {
        let pause = self.pause.mul_f64(fastrand::f64().midpoint(1.0));
        if Instant::now() + pause >= deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(self.max);
        true
    }

    /// Waits before the next attempt, for a caller whose end comes from elsewhere.
    pub(crate) async fn wait(&mut self) {
        self.pause(Instant::now() + Duration::from_secs(3600)).await;
    }
}
