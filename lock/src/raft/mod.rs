//! The lock service in a group of `voussoir-raft`.
//!
//! Sessions, locks and tokens are replicated. Renewals are not: the leader answers one after a
//! quorum round that began after it came, so no deposed leader promises time that its successor
//! does not know of. While nothing is locked or released, sessions cost no entries in the log.
//!
//! That needs a group without lease reads
//! ([`Config::max_clock_drift_ppm`](voussoir_raft::Config::max_clock_drift_ppm) is `None`, the
//! default). With them a renewal would be confirmed by the leader's lease, and depend on clocks: a
//! leader whose machine was suspended could promise time that its successor does not know of. In
//! such a group sessions are refused ([`Rejection::Unsupported`]).
//!
//! [`LockMachine`] is a state machine with locks only. In a group with other state, your machine
//! owns a [`Replica`], calls it for the commands of the lock service, and puts its snapshot beside
//! your own; [`RaftLocks::start_within`] takes what marks those commands as such.

mod driver;
mod machine;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use voussoir_raft::{ProposeError, Raft, Role, Status};

pub use self::machine::LockMachine;

use crate::core::{Answer, Command, LockView, MAX_NAME_BYTES, Rejection, Renewal};
use crate::memory::{acquired, closed, unexpected};
use crate::replica::Replica;
use crate::service::{Acquired, Acquisition, Fenced, LockService, NewValue, ServiceError};

/// Makes a command of the group of the bytes of a command of the lock service.
pub type Wrap = dyn Fn(Bytes) -> Bytes + Send + Sync;

/// The lock service on one node of a group. The leader answers everything; other nodes answer
/// [`view`](LockService::view), and for the rest say who leads: `NetLocks` (feature `net`)
/// follows the leader.
///
/// Ids of sessions are places in the log. A group that is made anew, without its log, is served
/// under another number, so that no client takes a new session for an old one of its own.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use voussoir_lock::raft::{LockMachine, RaftLocks};
/// use voussoir_lock::{LeaseConfig, Replica, Session};
/// use voussoir_raft::memory::{MemoryStore, Network};
/// use voussoir_raft::{Config, Raft};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (replica, second) = (Replica::new(), Duration::from_secs(1));
/// let machine = Box::new(LockMachine::new(replica.clone()));
/// // In production a log on a disk and a transport to the peers.
/// let (log, transport) = (Arc::new(MemoryStore::new()), Network::new().node(1));
/// let raft = Raft::start(Config::new(1, [1]), log, machine, transport).await?;
/// let locks = RaftLocks::start(raft, replica);
///
/// let session = Session::open(locks, LeaseConfig::default(), 5 * second).await?;
/// let guard = session.lock("ledger").within(second).await?;
/// guard.release(second).await;
/// # Ok(())
/// # }
/// ```
pub struct RaftLocks {
    group: Group,
    driver: JoinHandle<()>,
}

/// The group as the service uses it.
#[derive(Clone)]
struct Group {
    raft: Raft,
    replica: Replica,
    wrap: Arc<Wrap>,
}

impl RaftLocks {
    /// Starts the service of this node: `raft` runs a [`LockMachine`] with this `replica`. The task
    /// that keeps the timers runs on the current tokio runtime, and ends with this value or with
    /// the node.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(raft: Raft, replica: Replica) -> Arc<Self> {
        Self::start_within(raft, replica, Arc::new(|command| command))
    }

    /// Starts the service in a group of your own, without lease reads: `wrap` makes a command of
    /// the group of a command of the lock service. Your state machine takes it apart again, calls
    /// [`Replica::apply`] with the index of the command, and returns what that returns.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_within(raft: Raft, replica: Replica, wrap: Arc<Wrap>) -> Arc<Self> {
        let group = Group { raft, replica, wrap };
        let driver = tokio::spawn(driver::drive(group.clone()));
        Arc::new(Self { group, driver })
    }

    /// The state of this node, to look at.
    pub fn replica(&self) -> &Replica {
        &self.group.replica
    }
}

impl Group {
    async fn propose(&self, command: &Command, by: Instant) -> Result<Answer, ServiceError> {
        // What is in the log and no command stops every replica.
        let command = (self.wrap)(command.encode_checked()?);
        let proposed = timeout_at(by, self.raft.propose(command)).await;
        let Ok(proposed) = proposed else {
            return Err(ServiceError::unknown("it was not committed by the deadline"));
        };
        match proposed {
            Ok(answer) => match Answer::decode(&answer).map_err(ServiceError::unknown)? {
                Answer::Rejected(rejection) => Err(rejection.into()),
                answer => Ok(answer),
            },
            Err(ProposeError::NotLeader { leader }) => Err(ServiceError::NotLeader { leader }),
            Err(ProposeError::TooLarge { .. }) => Err(Rejection::OutOfRange.into()),
            Err(error @ ProposeError::Unknown(_)) => Err(ServiceError::unknown(error)),
            Err(error) => Err(ServiceError::unavailable(error)),
        }
    }

    /// Waits until this node has applied everything that was committed before the call, confirmed
    /// by a quorum.
    async fn catch_up(&self, by: Instant) -> Result<(), ServiceError> {
        self.raft.read(by).await.map(drop).map_err(ServiceError::unavailable)
    }

    /// Whether a read of this group is a quorum round, as sessions need it.
    fn asks_the_quorum(&self) -> Result<(), ServiceError> {
        if self.raft.reads_by_lease() { Err(Rejection::Unsupported.into()) } else { Ok(()) }
    }

    /// What to tell somebody who wants the leader, when this node is not ready as one.
    fn not_leading(&self) -> ServiceError {
        let status = self.raft.status();
        let status = status.borrow();
        if status.role == Role::Leader {
            return ServiceError::unavailable("the leader has only just begun");
        }
        ServiceError::NotLeader { leader: status.leader }
    }
}

impl Drop for RaftLocks {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[async_trait]
impl LockService for RaftLocks {
    type Grants = Fenced;

    async fn open_session(&self, ttl: Duration, deadline: Instant) -> Result<u64, ServiceError> {
        self.group.asks_the_quorum()?;
        let command = Command::OpenSession { ttl_ms: ttl.as_millis() as u64 };
        match self.group.propose(&command, deadline).await? {
            Answer::Opened { session } => Ok(session),
            answer => Err(unexpected(answer)),
        }
    }

    async fn renew_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        let group = &self.group;
        if group.raft.status().borrow().role != Role::Leader {
            return Err(group.not_leading());
        }
        group.asks_the_quorum()?;
        // After this, a later reign than ours is known here, and ours answers nothing more.
        group.catch_up(deadline).await?;
        match group.replica.renew(session).map_err(|_| group.not_leading())? {
            Renewal::Renewed => Ok(()),
            Renewal::AfterCommand(command) => group.propose(&command, deadline).await.map(drop),
            Renewal::Ended => Err(Rejection::NoSession.into()),
        }
    }

    async fn close_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        closed(self.group.propose(&Command::CloseSession { session }, deadline).await)
    }

    async fn acquire(
        &self,
        acquisition: &Acquisition,
        deadline: Instant,
    ) -> Result<Acquired, ServiceError> {
        let group = &self.group;
        let &Acquisition { session, request, .. } = acquisition;
        // One that is known already costs no entry in the log, however often it is sent.
        let answer = match group.replica.acquisition(session, request) {
            Ok(Some(_)) => {
                group.catch_up(deadline).await?;
                group.replica.acquisition(session, request)?
            }
            _ => None,
        };
        let answer = match answer {
            Some(answer) => answer,
            None => group.propose(&acquisition.command(), deadline).await?,
        };
        match answer {
            Answer::Queued => group.replica.wait_for_grant(session, request, deadline).await,
            answer => acquired(answer),
        }
    }

    async fn release(
        &self,
        session: u64,
        request: u64,
        deadline: Instant,
    ) -> Result<(), ServiceError> {
        let command = Command::Release { session, request };
        self.group.propose(&command, deadline).await.map(drop)
    }

    async fn set_value(&self, value: &NewValue, deadline: Instant) -> Result<(), ServiceError> {
        self.group.propose(&value.command(), deadline).await.map(drop)
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
        self.group.catch_up(deadline).await?;
        Ok(self.group.replica.wait_for_change(name, known, deadline).await)
    }

    async fn wait_for_leader(&self, but: Option<u64>, deadline: Instant) -> Option<u64> {
        let mut status = self.group.raft.status();
        let is_another = |status: &Status| status.leader.is_some() && status.leader != but;
        // Without one by the deadline, or when the node stops, what it knows is told.
        let _ = timeout_at(deadline, status.wait_for(is_another)).await;
        status.borrow().leader
    }
}

impl fmt::Debug for RaftLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Group { raft, replica, .. } = &self.group;
        f.debug_struct("RaftLocks")
            .field("raft", raft)
            .field("replica", replica)
            .finish_non_exhaustive()
    }
}
