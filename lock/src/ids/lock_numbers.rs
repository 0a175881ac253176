//! Worker numbers that are leased through a lock service.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::numbers::{WorkerError, WorkerGrant, WorkerNumbers};
use crate::clock::after;
use crate::core::Rejection;
use crate::service::{Fenced, ServiceError};
use crate::session::{Guard, LockError, Released, Session, by};

/// Worker numbers of a lock service: each is a lock, its epoch is the fencing token, and its
/// ceiling is the value of the lock, which only the holder can set and which outlives it. They are
/// as durable as the service: with `RaftLocks` they survive every crash that the group survives.
///
/// A number is held by the session. When that ends, because the process has crashed, was paused or
/// is cut off, the number is free for others after the time to live; ids that this process makes
/// until its ceiling stay different from theirs. A session that has ended grants no numbers: open
/// another one, and make this anew.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use voussoir_lock::ids::{LockNumbers, Snowflake, SnowflakeConfig, WorkerLease};
/// use voussoir_lock::{Clock, LeaseConfig, MemoryLocks, Session, WallClock};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let second = Duration::from_secs(1);
/// // In production RaftLocks or NetLocks.
/// let session = Session::open(MemoryLocks::start(), LeaseConfig::default(), second).await?;
/// let numbers = Arc::new(LockNumbers::new(&session, "orders", second));
///
/// let layout = SnowflakeConfig::default();
/// let (clock, ahead) = (Arc::new(WallClock), 3 * second);
/// let (lease, window) = WorkerLease::acquire(numbers, layout.workers(), ahead, clock).await?;
/// let ids = Snowflake::new(layout, window)?;
/// println!("{}", ids.next(WallClock.now())?);
/// lease.release().await?;
/// # Ok(())
/// # }
/// ```
pub struct LockNumbers {
    session: Session<Fenced>,
    prefix: String,
    within: Duration,
    held: Mutex<BTreeMap<u32, Held>>,
}

/// A number that was granted here.
#[derive(Clone)]
struct Held {
    epoch: u64,
    /// Locked while the ceiling is raised: of two raises at a time, the one with the lower ceiling
    /// could be the last to be written.
    number: Arc<tokio::sync::Mutex<Number>>,
}

struct Number {
    /// `None` once it was given back.
    guard: Option<Guard<Fenced>>,
    /// The greatest ceiling that the service has confirmed, in ms since the UNIX epoch.
    ceiling_ms: u64,
}

impl LockNumbers {
    /// Numbers under the locks `PREFIX/worker-NUMBER`, which nobody else uses. Each call of the
    /// service takes at most `within`.
    pub fn new(session: &Session<Fenced>, prefix: impl Into<String>, within: Duration) -> Self {
        Self { session: session.clone(), prefix: prefix.into(), within, held: Mutex::default() }
    }

    fn name(&self, worker: u32) -> Bytes {
        format!("{}/worker-{worker}", self.prefix).into()
    }

    /// Nothing panics while the numbers are locked.
    fn held(&self) -> MutexGuard<'_, BTreeMap<u32, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, worker: u32, epoch: u64) -> Result<Held, WorkerError> {
        let held = self.held().get(&worker).filter(|held| held.epoch == epoch).cloned();
        held.ok_or(WorkerError::Lost)
    }

    /// The ceiling of a number that this session holds.
    async fn ceiling_ms(&self, worker: u32) -> Result<u64, WorkerError> {
        let (service, deadline) = (&self.session.handle.shared.service, after(self.within));
        let name = self.name(worker);
        let view = by(deadline, service.view(&name, None, deadline)).await;
        let value = view.map_err(unavailable)?.value;
        if value.is_empty() {
            return Ok(0);
        }
        let ceiling = <[u8; 8]>::try_from(&value[..]).map(u64::from_le_bytes);
        let name = String::from_utf8_lossy(&name);
        ceiling.map_err(|_| unavailable(format!("the value of the lock {name} is no ceiling")))
    }
}

#[async_trait]
impl WorkerNumbers for LockNumbers {
    async fn acquire(&self, workers: u32) -> Result<WorkerGrant, WorkerError> {
        // Processes that begin together ask for different numbers first.
        let first = fastrand::u32(..workers.max(1));
        for number in 0..workers {
            let worker = (first + number) % workers;
            let lock = self.session.lock(self.name(worker));
            let guard = match lock.try_within(self.within).await {
                Ok(Some(guard)) => guard,
                Ok(None) | Err(LockError::TimedOut) => continue,
                Err(error) => return Err(unavailable(error)),
            };
            // Nobody else can set it from now on.
            let ceiling_ms = self.ceiling_ms(worker).await?;
            let epoch = guard.token().get();
            let number = Number { guard: Some(guard), ceiling_ms };
            let held = Held { epoch, number: Arc::new(tokio::sync::Mutex::new(number)) };
            self.held().insert(worker, held);
            return Ok(WorkerGrant::new(worker, epoch, ceiling_ms));
        }
        Err(WorkerError::AllTaken)
    }

    async fn raise(&self, worker: u32, epoch: u64, ceiling_ms: u64) -> Result<(), WorkerError> {
        let held = self.find(worker, epoch)?;
        let mut number = held.number.lock().await;
        let guard = number.guard.as_ref().ok_or(WorkerError::Lost)?;
        // Whatever is written replaces what stands there.
        let ceiling_ms = ceiling_ms.max(number.ceiling_ms);
        let set = guard.set_value(ceiling_ms.to_le_bytes().to_vec(), self.within).await;
        match set {
            Ok(()) => {
                number.ceiling_ms = ceiling_ms;
                Ok(())
            }
            Err(ServiceError::Rejected(Rejection::NotHeld | Rejection::NoSession)) => {
                Err(WorkerError::Lost)
            }
            // Its session has ended by its own deadline: it is not confirmed any more.
            Err(_) if guard.permit().is_err() => Err(WorkerError::Lost),
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn release(&self, worker: u32, epoch: u64) -> Result<(), WorkerError> {
        let held = self.find(worker, epoch)?;
        // Ends: a raise that is under way takes at most `within`.
        let guard = held.number.lock().await.guard.take().ok_or(WorkerError::Lost)?;
        self.held().remove(&worker);
        match guard.release(self.within).await {
            Released::Released | Released::StillHeld => Ok(()),
            Released::AlreadyLost => Err(WorkerError::Lost),
            Released::Unknown(error) => Err(unavailable(error)),
        }
    }
}

fn unavailable(error: impl ToString) -> WorkerError {
    WorkerError::Unavailable(error.to_string())
}

impl fmt::Debug for LockNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<u32> = self.held().keys().copied().collect();
        f.debug_struct("LockNumbers")
            .field("prefix", &self.prefix)
            .field("numbers", &numbers)
            .finish_non_exhaustive()
    }
}
