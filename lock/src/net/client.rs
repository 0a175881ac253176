//! A client that follows the leader.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use voussoir_net::{Channel, Handler, Parts, Transport, async_trait};

use super::server::LockServer;
use super::wire::{Request, Response};
use crate::core::{Answer, Command, LockView, Rejection};
use crate::memory::{acquired, unexpected};
use crate::service::{Acquired, Acquisition, Fenced, LockService, NewValue, Outcome, ServiceError};
use crate::session::Retries;

/// The longest that one attempt waits for an answer which should come at once. A node that is
/// paused or cut off costs this much, then another is asked.
const ATTEMPT: Duration = Duration::from_secs(1);
/// The longest that one attempt waits for a lock or a change.
const SLICE: Duration = Duration::from_secs(2);
/// What is left for the way of an answer.
const WAY: Duration = Duration::from_millis(200);
/// With less time than this left, a wait is over.
const LAST: Duration = Duration::from_millis(5);

/// A lock service in other processes, over a transport. Every call goes to the node that led last,
/// goes where that one points, and tries the others when it is silent, until the deadline: while
/// nobody leads, it waits at a node that hears of the next leader at once. As requests are known by
/// their numbers, nothing is done twice by that.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use voussoir_lock::net::{LockServer, NetLocks};
/// use voussoir_lock::{LeaseConfig, MemoryLocks, Session};
/// use voussoir_net::{Config, memory::Network};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// const LOCKS: u16 = 7; // the number of the service, the same on every node
/// let network = Network::new(Config::default())?;
/// let (server, client) = (network.join(1), network.join(100));
/// LockServer::serve(&server, LOCKS, MemoryLocks::start())?;
///
/// let locks = NetLocks::new(Arc::new(client), LOCKS, [1]);
/// let second = Duration::from_secs(1);
/// let session = Session::open(locks, LeaseConfig::default(), second).await?;
/// let guard = session.lock("ledger").within(second).await?;
/// guard.release(second).await;
/// # Ok(())
/// # }
/// ```
pub struct NetLocks {
    transport: Arc<dyn Transport>,
    /// Number of the service.
    number: u16,
    nodes: Vec<u64>,
    /// Answers for the node of this process, which no transport sends to.
    local: Option<LockServer>,
    /// Place in `nodes` of the node that is asked first.
    leader: AtomicUsize,
}

impl NetLocks {
    /// A client of the service that these nodes serve under `number`. At least one node.
    ///
    /// # Panics
    /// Without nodes.
    pub fn new(
        transport: Arc<dyn Transport>,
        number: u16,
        nodes: impl Into<Vec<u64>>,
    ) -> Arc<Self> {
        Arc::new(Self::build(transport, number, nodes.into(), None))
    }

    /// The same in a process that is one of the nodes: `local` is its own service.
    ///
    /// # Panics
    /// Without nodes.
    pub fn with_local(
        transport: Arc<dyn Transport>,
        number: u16,
        nodes: impl Into<Vec<u64>>,
        local: Arc<dyn LockService<Grants = Fenced>>,
    ) -> Arc<Self> {
        let local = Some(LockServer::of(local));
        Arc::new(Self::build(transport, number, nodes.into(), local))
    }

    fn build(
        transport: Arc<dyn Transport>,
        number: u16,
        nodes: Vec<u64>,
        local: Option<LockServer>,
    ) -> Self {
        assert!(!nodes.is_empty(), "a lock service has at least one node");
        // The leader is often on the shortest way: begin anywhere, so that not all ask the first.
        let leader = AtomicUsize::new(fastrand::usize(..nodes.len()));
        Self { transport, number, nodes, local, leader }
    }

    /// One attempt at one node. An error is that of the way to it; its own is an answer.
    async fn ask(
        &self,
        node: u64,
        request: &Request,
        within: Duration,
        until: Instant,
    ) -> Result<Response, ServiceError> {
        let body = request.encode(within);
        let answer = match &self.local {
            Some(local) if node == self.transport.local() => {
                let answered = timeout_at(until, local.call(node, body)).await;
                let parts = answered.map_err(ServiceError::unknown)?;
                parts.map_err(ServiceError::unavailable)?.to_bytes()
            }
            _ => {
                // A connection takes a limited number of calls: waits leave that of the others,
                // renewals among them, alone.
                let is_wait = request.waits();
                let channel = if is_wait { Channel::bulk } else { Channel::small }(self.number);
                let sent = self.transport.call(node, channel, Parts::new(body), until);
                sent.await.map_err(|error| match error.outcome() {
                    voussoir_net::Outcome::NotApplied => ServiceError::unavailable(error),
                    voussoir_net::Outcome::Unknown => ServiceError::unknown(error),
                })?
            }
        };
        Response::decode(&answer).map_err(ServiceError::unknown)
    }

    /// Asks until there is an answer. Of a wait that is over at its node, but not here, `is_over`
    /// is false.
    async fn call(
        &self,
        request: &Request,
        deadline: Instant,
        is_over: impl Fn(&Response) -> bool + Send,
    ) -> Result<Response, ServiceError> {
        if !request.is_in_range() {
            return Err(Rejection::OutOfRange.into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // A node that is silent leaves time to ask the others.
        let most = (left / 3).min(if request.waits() { SLICE } else { ATTEMPT });
        let (mut retries, mut hops) = (Retries::new(), 0_u32);
        // The node that was last found to be gone, and not only slow.
        let mut lost = None;
        // The latest answer, while the wait goes on; the first error that left the outcome unknown.
        let (mut heard, mut doubt) = (None, None);
        // Ends: the deadline passes.
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let until = Instant::now() + left.min(most + WAY);
            let within = left.min(most + WAY).saturating_sub((left / 5).min(WAY));
            let at = self.leader.load(Ordering::Relaxed) % self.nodes.len();
            let asked_at = Instant::now();
            let answer = self.ask(self.nodes[at], request, within, until).await;
            let is_last = deadline.saturating_duration_since(Instant::now()) < LAST;
            let is_cut_off = answer.is_err() && Instant::now() < until;
            let error = match answer.and_then(Response::into_result) {
                Ok(response) if is_last || is_over(&response) => return Ok(response),
                Ok(response) => {
                    // A service that does not wait to the end is not asked without a pause. Of one
                    // that does, clocks and the way of the answer make up less than half.
                    if asked_at.elapsed() < within / 2 && !retries.pause(deadline).await {
                        return Ok(response);
                    }
                    heard = Some(response);
                    continue;
                }
                Err(error) if error.is_end_of_session() => return Err(error),
                Err(error) if !error.is_retryable() => return Err(doubt.unwrap_or(error)),
                Err(error) => error,
            };
            if error.outcome() == Outcome::Unknown {
                doubt.get_or_insert_with(|| error.clone());
            }
            if is_cut_off {
                lost = Some(self.nodes[at]);
            }
            let mut has_waited = false;
            let pointed = match error {
                ServiceError::NotLeader { leader } if leader.is_none() || leader == lost => {
                    let begun = Instant::now();
                    let heard_of = self.await_leader(at, lost, deadline).await;
                    has_waited = begun.elapsed() >= LAST;
                    heard_of
                }
                ServiceError::NotLeader { leader } => leader,
                _ => None,
            };
            let pointed = pointed.and_then(|to| self.nodes.iter().position(|node| *node == to));
            hops += 1;
            if has_waited {
                // The leader may be elected now: no pause is due, and later ones are short again.
                (retries, hops) = (Retries::new(), 1);
            }
            // Nodes that point at each other are asked in pauses.
            let is_due_at_once = has_waited || pointed.is_some() && hops <= 2;
            let is_at_end = !is_due_at_once && !retries.pause(deadline).await;
            // The rest was too short for an answer: what was heard before it stands.
            if is_at_end && let Some(response) = heard.take() {
                return Ok(response);
            }
            let next = pointed.unwrap_or((at + 1) % self.nodes.len());
            // Others may have found the leader meanwhile.
            let swap = |from, to| {
                self.leader.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
            };
            let _ = swap(at, next);
            if is_at_end {
                return Err(doubt.unwrap_or(error));
            }
        }
    }

    /// The leader as the node at `at` knows it, once it is another than the one that is `lost`, or
    /// after a while.
    async fn await_leader(&self, at: usize, lost: Option<u64>, deadline: Instant) -> Option<u64> {
        let begun = Instant::now();
        let left = deadline.saturating_duration_since(begun);
        let within = (left / 3).min(ATTEMPT);
        let (request, until) = (Request::Leader { but: lost }, begun + left.min(within + WAY));
        let answer = self.ask(self.nodes[at], &request, within, until).await;
        match answer {
            Ok(Response::Failed(ServiceError::NotLeader { leader })) => leader,
            _ => None,
        }
    }

    async fn command(&self, command: Command, deadline: Instant) -> Result<Answer, ServiceError> {
        match self.call(&Request::Command(command), deadline, |_| true).await? {
            Response::Answer(answer) => Ok(answer),
            response => Err(ServiceError::unknown(format!("{response:?} is no answer"))),
        }
    }
}

#[async_trait]
impl LockService for NetLocks {
    type Grants = Fenced;

    async fn open_session(&self, ttl: Duration, deadline: Instant) -> Result<u64, ServiceError> {
        let command = Command::OpenSession { ttl_ms: ttl.as_millis() as u64 };
        match self.command(command, deadline).await? {
            Answer::Opened { session } => Ok(session),
            answer => Err(unexpected(answer)),
        }
    }

    async fn renew_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        self.call(&Request::Renew { session }, deadline, |_| true).await.map(drop)
    }

    async fn close_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        self.command(Command::CloseSession { session }, deadline).await.map(drop)
    }

    async fn acquire(
        &self,
        acquisition: &Acquisition,
        deadline: Instant,
    ) -> Result<Acquired, ServiceError> {
        let request = Request::Command(acquisition.command());
        let is_over = |response: &Response| !matches!(response, Response::Answer(Answer::Queued));
        match self.call(&request, deadline, is_over).await? {
            Response::Answer(answer) => acquired(answer),
            response => Err(ServiceError::unknown(format!("{response:?} is no answer"))),
        }
    }

    async fn release(
        &self,
        session: u64,
        request: u64,
        deadline: Instant,
    ) -> Result<(), ServiceError> {
        self.command(Command::Release { session, request }, deadline).await.map(drop)
    }

    async fn set_value(&self, value: &NewValue, deadline: Instant) -> Result<(), ServiceError> {
        self.command(value.command(), deadline).await.map(drop)
    }

    async fn view(
        &self,
        name: &Bytes,
        known: Option<u64>,
        deadline: Instant,
    ) -> Result<LockView, ServiceError> {
        let request = Request::View { name: name.clone(), known };
        let is_over = |response: &Response| match response {
            Response::View(view) => known != Some(view.version),
            _ => true,
        };
        match self.call(&request, deadline, is_over).await? {
            Response::View(view) => Ok(view),
            response => Err(ServiceError::unknown(format!("{response:?} is no view"))),
        }
    }
}

impl fmt::Debug for NetLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetLocks").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}
