//! The conformance suite of lock services: what every back end has to do, in front of the real
//! thing.

mod deaf;
mod fences;
mod kinds;
mod locks;
mod restarts;
mod sessions;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::clock::{BootClock, Clock};
use crate::core::{LockView, Mode};
use crate::lease::LeaseConfig;
use crate::service::{Acquired, Acquisition, GrantKind, LockService, ServiceError};
use crate::session::{Guard, Session};

pub use self::fences::{FencedError, FencedResource, fence_conformance};
pub use self::restarts::{Restart, restart_conformance};

/// What a back end promises beyond exclusive locks and sessions. Of what it does not promise, the
/// suite checks that the answer is `Rejected(Unsupported)`.
#[derive(Clone)]
#[non_exhaustive]
pub struct Capabilities {
    /// Tokens grow with each grant of a lock, also after nobody has used the lock for a while.
    pub grows_tokens: bool,
    /// Those that wait are served in the order in which they came, and `LockView::waiters` counts
    /// them.
    pub serves_in_order: bool,
    /// `Mode::Shared` and `Mode::Slot`.
    pub has_modes: bool,
    /// A lock-delay.
    pub has_lock_delay: bool,
    /// A value outlives the grant by which it was set. Without it, it ends with the grant.
    pub keeps_values: bool,
    /// Time to live of the sessions in the suite: at least 1 s, and one that the back end does not
    /// round up.
    pub ttl: Duration,
    /// How much later than at the end of its time to live the locks of a dead session may come
    /// free.
    pub slack: Duration,
    /// The clock of the sessions in the suite.
    pub clock: Arc<dyn Clock>,
}

impl Default for Capabilities {
    /// Everything; 1 s to live, 1 s of slack, and the [`BootClock`].
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self {
            grows_tokens: true,
            serves_in_order: true,
            has_modes: true,
            has_lock_delay: true,
            keeps_values: true,
            ttl: second,
            slack: second,
            clock: Arc::new(BootClock),
        }
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capabilities")
            .field("grows_tokens", &self.grows_tokens)
            .field("serves_in_order", &self.serves_in_order)
            .field("has_modes", &self.has_modes)
            .field("has_lock_delay", &self.has_lock_delay)
            .field("keeps_values", &self.keeps_values)
            .field("ttl", &self.ttl)
            .field("slack", &self.slack)
            .finish_non_exhaustive()
    }
}

/// What the suite has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The checks that passed, by name.
    pub passed: Vec<&'static str>,
    /// The checks that failed, by name, and what was seen.
    pub failed: Vec<(&'static str, String)>,
}

impl Report {
    /// # Panics
    /// If a check failed, with all that was seen.
    pub fn assert_passed(&self) {
        assert!(self.failed.is_empty(), "the lock service does not conform: {:#?}", self.failed);
        assert!(!self.passed.is_empty(), "nothing was checked");
    }
}

/// Runs every check at once, each on locks of its own. `connect` makes a client of one and the same
/// service, with connections of its own where it has any. Takes about four times `ttl`.
///
/// # Panics
/// If a check panics, which is a defect of the suite or of the service's client.
///
/// # Cancel safety
/// Dropped, it stops; sessions that it has opened end by themselves.
///
/// # Example
/// ```
/// use voussoir_lock::MemoryLocks;
/// use voussoir_lock::testing::{Capabilities, conformance};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let service = MemoryLocks::start();
/// conformance(async || service.clone(), &Capabilities::default()).await.assert_passed();
/// # }
/// ```
pub async fn conformance<S: LockService>(
    connect: impl AsyncFn() -> Arc<S>,
    capabilities: &Capabilities,
) -> Report {
    let (one, two) = (connect().await, connect().await);
    let bench = Arc::new(Bench {
        services: [one, two],
        capabilities: capabilities.clone(),
        run: fastrand::u64(..),
    });
    let mut checks = JoinSet::new();
    locks::add(&mut checks, &bench);
    sessions::add(&mut checks, &bench);
    kinds::add(&mut checks, &bench);
    let mut report = Report::default();
    // Ends: each check has its own end.
    while let Some(check) = checks.join_next().await {
        match check.expect("a check does not panic") {
            (name, Ok(())) => report.passed.push(name),
            (name, Err(seen)) => report.failed.push((name, seen)),
        }
    }
    report.passed.sort_unstable();
    report.failed.sort_unstable();
    report
}

/// The longest that a check waits for what should come at once.
const SOON: Duration = Duration::from_secs(5);
const MS: Duration = Duration::from_millis(1);

type Verdict = Result<(), String>;
type Checks = JoinSet<(&'static str, Verdict)>;

/// Adds checks, by the names of their functions.
macro_rules! checks {
    ($set:ident, $bench:ident: $($check:ident),+ $(,)?) => {
        $({
            let bench = Arc::clone($bench);
            let name = stringify!($check);
            $set.spawn(async move { (name, $check(&bench, name).await) });
        })+
    };
}
use checks;

/// The verdict of a check that has seen something else.
macro_rules! ensure {
    ($holds:expr, $($seen:tt)+) => {
        if !$holds {
            return Err(format!($($seen)+));
        }
    };
}
use ensure;

/// What a check works with.
struct Bench<K: GrantKind> {
    /// Two clients of the same service.
    services: [Arc<dyn LockService<Grants = K>>; 2],
    capabilities: Capabilities,
    /// Tells this run from others on the same service.
    run: u64,
}

impl<K: GrantKind> Bench<K> {
    /// A lock of a check's own.
    fn name(&self, check: &str) -> Bytes {
        format!("conformance/{:016x}/{check}", self.run).into()
    }

    async fn open(&self, client: usize) -> Result<Session<K>, String> {
        self.open_at(Arc::clone(&self.services[client])).await
    }

    async fn open_at(
        &self,
        service: Arc<dyn LockService<Grants = K>>,
    ) -> Result<Session<K>, String> {
        let config = LeaseConfig { ttl: self.capabilities.ttl, ..LeaseConfig::default() };
        let clock = Arc::clone(&self.capabilities.clock);
        let opened = Session::open_with_clock(service, config, SOON, clock).await;
        opened.map_err(|error| format!("no session: {error}"))
    }

    /// A session that nobody renews, and that lives for longer than the check.
    async fn open_raw(&self, client: usize) -> Result<u64, String> {
        self.open_for(client, 60 * SOON).await
    }

    /// A session that nobody renews, and that dies for it.
    async fn open_dying(&self, client: usize) -> Result<u64, String> {
        self.open_for(client, self.capabilities.ttl).await
    }

    async fn open_for(&self, client: usize, ttl: Duration) -> Result<u64, String> {
        let opened = self.services[client].open_session(ttl, soon()).await;
        opened.map_err(|error| format!("no session: {error}"))
    }

    async fn view(&self, name: &Bytes) -> Result<LockView, String> {
        self.services[1].view(name, None, soon()).await.map_err(|error| format!("no view: {error}"))
    }

    /// Waits until the lock looks so.
    async fn until(&self, name: &Bytes, looks: impl Fn(&LockView) -> bool) -> Verdict {
        let by = soon();
        // Ends: the deadline passes.
        loop {
            let view = self.view(name).await?;
            if looks(&view) {
                return Ok(());
            }
            ensure!(Instant::now() < by, "the lock stays as it is: {view:?}");
            sleep(2 * MS).await;
        }
    }
}

fn soon() -> Instant {
    Instant::now() + SOON
}

fn acquisition(session: u64, request: u64, name: &Bytes) -> Acquisition {
    Acquisition {
        session,
        request,
        floor: 1,
        name: name.clone(),
        mode: Mode::Exclusive,
        wait: true,
        lock_delay: Duration::ZERO,
    }
}

/// Takes a lock that is free.
async fn take<K: GrantKind>(session: &Session<K>, name: &Bytes) -> Result<Guard<K>, String> {
    let taken = session.lock(name.clone()).within(SOON).await;
    taken.map_err(|error| format!("a free lock was not granted: {error}"))
}

async fn grant<K: GrantKind>(
    service: &dyn LockService<Grants = K>,
    acquisition: &Acquisition,
) -> Result<u64, String> {
    match service.acquire(acquisition, soon()).await {
        Ok(Acquired::Granted { token }) => Ok(token),
        answer => Err(format!("a free lock was not granted: {answer:?}")),
    }
}

fn told(error: ServiceError) -> String {
    format!("the service failed: {error}")
}
