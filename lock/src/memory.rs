//! The lock service of one process, in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::clock::{BootClock, Clock};
use crate::core::{Answer, Command, LockView, MAX_NAME_BYTES, Rejection, Renewal};
use crate::replica::Replica;
use crate::service::{Acquired, Acquisition, Fenced, LockService, NewValue, ServiceError};

/// A lock service that lives in one process, and as long as this value: the same state machine as
/// on Raft. For tests, for locks between the tasks of a process, and for a service that is one
/// process only.
///
/// Its tokens begin again with the process, and ids of sessions at random: a resource that outlives
/// it wants another service.
#[derive(Debug)]
pub struct MemoryLocks {
    replica: Replica,
    timers: JoinHandle<()>,
}

impl MemoryLocks {
    /// Starts the service on the current tokio runtime, with timers enabled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start() -> Arc<Self> {
        Self::start_with_clock(Arc::new(BootClock))
    }

    /// The same by another clock, in ns, that does not step.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_with_clock(clock: Arc<dyn Clock>) -> Arc<Self> {
        // A service that begins anew gives no session the id of one before it: `LockServer` may
        // serve it to clients of those.
        let replica = Replica::with_clock(clock).after(fastrand::u64(1 << 32..1 << 62));
        if let Answer::Reign { reign } = replica.apply_next(&Command::BeginReign) {
            replica.begin_reign(reign);
        }
        let timers = tokio::spawn(run_timers(replica.clone()));
        Arc::new(Self { replica, timers })
    }

    /// The state, to look at.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    fn apply(&self, command: &Command) -> Result<Answer, ServiceError> {
        match self.replica.apply_next(command) {
            Answer::Rejected(rejection) => Err(rejection.into()),
            answer => Ok(answer),
        }
    }
}

async fn run_timers(replica: Replica) {
    // Ends: aborted with the service.
    loop {
        replica.timer().await;
        // Ends: each turn takes one command that is due.
        while let Some(command) = replica.poll_timer() {
            replica.apply_next(&command);
        }
    }
}

impl Drop for MemoryLocks {
    fn drop(&mut self) {
        self.timers.abort();
    }
}

#[async_trait]
impl LockService for MemoryLocks {
    type Grants = Fenced;

    async fn open_session(&self, ttl: Duration, _deadline: Instant) -> Result<u64, ServiceError> {
        match self.apply(&Command::OpenSession { ttl_ms: ttl.as_millis() as u64 })? {
            Answer::Opened { session } => Ok(session),
            answer => Err(unexpected(answer)),
        }
    }

    async fn renew_session(&self, session: u64, _deadline: Instant) -> Result<(), ServiceError> {
        match self.replica.renew(session)? {
            Renewal::Renewed => Ok(()),
            Renewal::AfterCommand(command) => self.apply(&command).map(drop),
            Renewal::Ended => Err(Rejection::NoSession.into()),
        }
    }

    async fn close_session(&self, session: u64, _deadline: Instant) -> Result<(), ServiceError> {
        closed(self.apply(&Command::CloseSession { session }))
    }

    async fn acquire(
        &self,
        acquisition: &Acquisition,
        deadline: Instant,
    ) -> Result<Acquired, ServiceError> {
        match self.apply(&acquisition.command())? {
            Answer::Queued => {
                let Acquisition { session, request, .. } = *acquisition;
                self.replica.wait_for_grant(session, request, deadline).await
            }
            answer => acquired(answer),
        }
    }

    async fn release(
        &self,
        session: u64,
        request: u64,
        _deadline: Instant,
    ) -> Result<(), ServiceError> {
        self.apply(&Command::Release { session, request }).map(drop)
    }

    async fn set_value(&self, value: &NewValue, _deadline: Instant) -> Result<(), ServiceError> {
        self.apply(&value.command()).map(drop)
    }

    async fn view(
        &self,
        name: &Bytes,
        known: Option<u64>,
        deadline: Instant,
    ) -> Result<LockView, ServiceError> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Rejection::OutOfRange.into());
        }
        Ok(self.replica.wait_for_change(name, known, deadline).await)
    }
}

impl Acquisition {
    pub(crate) fn command(&self) -> Command {
        Command::Acquire {
            session: self.session,
            request: self.request,
            floor: self.floor,
            name: self.name.clone(),
            mode: self.mode,
            wait: self.wait,
            lock_delay_ms: self.lock_delay.as_millis().try_into().unwrap_or(u64::MAX),
        }
    }
}

impl NewValue {
    pub(crate) fn command(&self) -> Command {
        Command::SetValue {
            session: self.session,
            token: self.token,
            number: self.number,
            name: self.name.clone(),
            value: self.value.clone(),
        }
    }
}

/// A session that has ended before is closed too.
pub(crate) fn closed(answer: Result<Answer, ServiceError>) -> Result<(), ServiceError> {
    match answer {
        Err(error) if error.is_end_of_session() => Ok(()),
        answer => answer.map(drop),
    }
}

pub(crate) fn acquired(answer: Answer) -> Result<Acquired, ServiceError> {
    match answer {
        Answer::Granted { token } => Ok(Acquired::Granted { token }),
        Answer::Queued => Ok(Acquired::Queued),
        Answer::Busy => Ok(Acquired::Busy),
        answer => Err(unexpected(answer)),
    }
}

/// An answer that does not belong to its command: another version is at work.
pub(crate) fn unexpected(answer: Answer) -> ServiceError {
    ServiceError::unknown(format!("{answer:?} is no answer to this command"))
}
