//! The client over the network, with scripted and slow services, on paused time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use voussoir_lock::net::{LockServer, NetLocks};
use voussoir_lock::*;
use voussoir_net::Transport as _;
use voussoir_net::memory::{Faults, Memory, Network};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const LOCKS: u16 = 7;

fn network() -> Network {
    Network::new(voussoir_net::Config::default()).expect("a valid configuration")
}

fn memory() -> Arc<MemoryLocks> {
    MemoryLocks::start_with_clock(Arc::new(TokioClock::default()))
}

fn serve(net: &Network, id: u64, service: Arc<dyn LockService<Grants = Fenced>>) -> Memory {
    let node = net.join(id);
    LockServer::serve(&node, LOCKS, service).expect("it is not served");
    node
}

async fn open(service: &Arc<NetLocks>) -> Session {
    let mut config = LeaseConfig::default();
    config.ttl = SECOND;
    let clock = Arc::new(TokioClock::default());
    let opened = Session::open_with_clock(service.clone(), config, 5 * SECOND, clock).await;
    opened.expect("the service works")
}

/// Regression corpus 61: a session of a service that has lost its data is not one of the next.
#[tokio::test(start_paused = true)]
async fn a_service_that_begins_anew_does_not_know_the_sessions_before_it() {
    let net = network();
    let node = serve(&net, 1, memory());
    let one = open(&NetLocks::new(Arc::new(net.join(100)), LOCKS, [1])).await;
    let old = one.lock("a").within(SECOND).await.expect("it is free");
    assert!(node.withdraw(LOCKS));
    LockServer::serve(&node, LOCKS, memory()).expect("it is not served");
    let two = open(&NetLocks::new(Arc::new(net.join(101)), LOCKS, [1])).await;
    assert_ne!(two.id(), one.id());
    let new = two.lock("a").within(SECOND).await.expect("it is free");
    one.lost().await;
    old.permit().expect_err("the service does not know it");
    sleep(5 * SECOND).await;
    new.permit().expect("it is renewed");
}

/// Waits do not fill the connection that renewals and releases go by.
#[tokio::test(start_paused = true)]
async fn many_waiters_do_not_starve_the_renewals_of_their_session() {
    let net = network();
    let _node = serve(&net, 1, memory());
    let session = open(&NetLocks::new(Arc::new(net.join(100)), LOCKS, [1])).await;
    let first = session.lock("a").within(SECOND).await.expect("it is free");
    let mut waiters = Vec::new();
    for _ in 0..2_000 {
        let session = session.clone();
        waiters.push(tokio::spawn(async move {
            let guard = session.lock("a").within(600 * SECOND).await.expect("its turn comes");
            assert_eq!(guard.release(SECOND).await, Released::Released);
        }));
    }
    sleep(10 * SECOND).await;
    first.permit().expect("it is renewed");
    assert_eq!(first.release(SECOND).await, Released::Released);
    for waiter in waiters {
        waiter.await.expect("it is served");
    }
}

/// That the time to wait is over is not taken for a silent service, however far it is.
#[tokio::test(start_paused = true)]
async fn a_wait_that_is_over_is_timed_out_over_a_slow_network() {
    let net = network();
    let _node = serve(&net, 1, memory());
    let service = NetLocks::new(Arc::new(net.join(100)), LOCKS, [1]);
    net.set_all_faults(Faults::delay(20 * MS, 30 * MS));
    let session = open(&service).await;
    let _held = session.lock("a").within(SECOND).await.expect("it is free");
    for within in [500, 700, 1_000, 2_000, 2_300, 3_000, 5_000] {
        let begun = Instant::now();
        let waited = session.lock("a").within(within * MS).await;
        assert_eq!(waited.expect_err("it is held"), LockError::TimedOut, "{within} ms");
        assert!(begun.elapsed() <= within * MS, "{:?}", begun.elapsed());
    }
}

/// A node that is silent does not cost the whole time of a wait.
#[tokio::test(start_paused = true)]
async fn a_wait_asks_another_node_while_one_is_silent() {
    let net = network();
    let _nodes = [1, 2].map(net_node(&net));
    for _ in 0..8 {
        // The client begins at any of the nodes.
        let id = 100 + fastrand::u64(..1 << 40);
        let service = NetLocks::new(Arc::new(net.join(id)), LOCKS, [1, 2]);
        let by = Instant::now() + 2 * SECOND;
        let granted = service.acquire(&acquisition(), by).await;
        assert_eq!(granted, Ok(Acquired::Granted { token: 1 }));
    }
}

const SESSION: u64 = 5;

/// Node 1 answers nothing; node 2 grants everything.
fn net_node(net: &Network) -> impl Fn(u64) -> Memory {
    let net = net.clone();
    move |id| serve(&net, id, Scripted::new([], id == 1))
}

/// What has been unknown once stays so, whatever is said of later attempts.
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_not_forgotten_at_a_later_attempt() {
    let value =
        NewValue { session: SESSION, token: 1, number: 1, name: "a".into(), value: "v".into() };
    let unknown = || ServiceError::unknown("the answer was lost");
    for later in [ServiceError::unavailable("busy"), Rejection::NotHeld.into()] {
        let net = network();
        let script = std::iter::once(unknown()).chain(vec![later; 1_000]);
        let _node = serve(&net, 1, Scripted::new(script, false));
        let service = NetLocks::new(Arc::new(net.join(100)), LOCKS, [1]);
        let set = service.set_value(&value, Instant::now() + SECOND).await;
        assert_eq!(set.expect_err("it is not confirmed").outcome(), Outcome::Unknown);
    }
    // The end of the session is final, whatever was before.
    let net = network();
    let script = [unknown(), Rejection::NoSession.into()];
    let _node = serve(&net, 1, Scripted::new(script, false));
    let service = NetLocks::new(Arc::new(net.join(100)), LOCKS, [1]);
    let set = service.set_value(&value, Instant::now() + SECOND).await;
    assert_eq!(set, Err(Rejection::NoSession.into()));
}

/// A try whose answer was lost between the nodes has ended as busy.
#[tokio::test(start_paused = true)]
async fn a_try_that_is_stale_at_its_first_answer_is_busy() {
    let net = network();
    let script = [Rejection::StaleRequest.into()];
    let _node = serve(&net, 1, Scripted::new(script, false));
    let session = open(&NetLocks::new(Arc::new(net.join(100)), LOCKS, [1])).await;
    assert!(session.lock("a").try_within(SECOND).await.expect("an answer").is_none());
}

/// An election may take longer than a client waits at one node: it asks on without a pause, in
/// which the leader may be elected.
#[tokio::test(start_paused = true)]
async fn a_client_that_waited_in_vain_for_a_leader_asks_on_at_once() {
    for step in 0..60_u32 {
        let net = network();
        let leads_at = Instant::now() + 5 * SECOND + step * 20 * MS;
        let _node = serve(&net, 1, Scripted::leading_at(leads_at, [], false));
        let service = NetLocks::new(Arc::new(net.join(100)), LOCKS, [1]);
        let granted = service.acquire(&acquisition(), leads_at + 10 * SECOND).await;
        assert_eq!(granted, Ok(Acquired::Granted { token: 1 }));
        let after = leads_at.elapsed();
        assert!(after <= 5 * MS, "{after:?} after the election, {step} steps after 5 s");
    }
}

/// An error that follows the answer of a wait does not replace it.
#[tokio::test(start_paused = true)]
async fn an_answer_that_was_heard_outlives_the_errors_after_it() {
    let net = network();
    let service = Scripted::new(vec![ServiceError::unavailable("busy"); 1_000], false);
    service.queued.store(true, Relaxed);
    let _node = serve(&net, 1, service);
    let service = NetLocks::new(Arc::new(net.join(100)), LOCKS, [1]);
    let acquired = service.acquire(&acquisition(), Instant::now() + SECOND).await;
    assert_eq!(acquired, Ok(Acquired::Queued));
}

/// A service behind the network may answer at once that the lock is held, or that nothing is new.
#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_wait_is_asked_in_pauses_over_a_network() {
    let net = network();
    let scripted = Scripted::new([], false);
    scripted.is_impatient.store(true, Relaxed);
    let _node = serve(&net, 1, scripted.clone());
    let service = NetLocks::new(Arc::new(net.join(100)), LOCKS, [1]);
    let acquired = service.acquire(&acquisition(), Instant::now() + 5 * SECOND).await;
    assert_eq!(acquired, Ok(Acquired::Queued));
    let asked = scripted.asked.swap(0, Relaxed);
    assert!((20..100).contains(&asked), "{asked} times in 5 s");
    let known = Some(LockView::default().version);
    let view = service.view(&"a".into(), known, Instant::now() + 5 * SECOND).await;
    assert_eq!(view, Ok(LockView::default()));
    let asked = scripted.asked.swap(0, Relaxed);
    assert!((20..100).contains(&asked), "{asked} times in 5 s");
}

/// A client that waits at its node hears of its place at the end of the wait; its session goes on
/// meanwhile.
#[tokio::test(start_paused = true)]
async fn a_wait_over_a_network_does_not_use_up_the_session() {
    let net = network();
    let memory = memory();
    let _node = serve(&net, 1, memory.clone());
    let mut config = LeaseConfig::default();
    config.ttl = 60 * SECOND;
    let service = NetLocks::new(Arc::new(net.join(100)), LOCKS, [1]);
    let clock = Arc::new(TokioClock::default());
    let opened = Session::open_with_clock(service, config, SECOND, clock).await;
    let session = opened.expect("the service works");
    let holder = NetLocks::new(Arc::new(net.join(101)), LOCKS, [1]);
    let held = open(&holder).await.lock("a").within(SECOND).await.expect("it is free");
    let waiting = session.clone();
    let waiter = tokio::spawn(async move { waiting.lock("a").within(3600 * SECOND).await });
    for round in 0..=10_000 {
        // Time passes, as it does in every real network.
        sleep(MS).await;
        let guard = session.lock("b").try_within(SECOND).await;
        let guard = guard.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let released = guard.expect("it is free").release(SECOND).await;
        assert_eq!(released, Released::Released, "round {round}");
    }
    assert_eq!(held.release(SECOND).await, Released::Released);
    waiter.await.expect("no panic").expect("its turn has come").permit().expect("it is held");
}

fn acquisition() -> Acquisition {
    Acquisition {
        session: SESSION,
        request: 1,
        floor: 1,
        name: "a".into(),
        mode: Mode::Exclusive,
        wait: true,
        lock_delay: Duration::ZERO,
    }
}

/// Acquisitions and values are answered by the script, then granted and set.
struct Scripted {
    errors: Mutex<VecDeque<ServiceError>>,
    is_silent: bool,
    /// Whether the next acquisition is answered with a place in the queue, before the script.
    queued: AtomicBool,
    /// Whether acquisitions wait for ever, and are told so at once.
    is_impatient: AtomicBool,
    /// Acquisitions and views that have come.
    asked: AtomicUsize,
    /// When this node, which is number 1, becomes the leader.
    leads_at: Instant,
}

impl Scripted {
    fn new(errors: impl IntoIterator<Item = ServiceError>, is_silent: bool) -> Arc<Self> {
        Self::leading_at(Instant::now(), errors, is_silent)
    }

    fn leading_at(
        leads_at: Instant,
        errors: impl IntoIterator<Item = ServiceError>,
        is_silent: bool,
    ) -> Arc<Self> {
        let errors = Mutex::new(errors.into_iter().collect());
        let (queued, is_impatient) = (AtomicBool::new(false), AtomicBool::new(false));
        let asked = AtomicUsize::new(0);
        Arc::new(Self { errors, is_silent, queued, is_impatient, asked, leads_at })
    }

    /// Time does not pass for a client that asks without a pause: it gets no answer in the end.
    async fn count(&self) {
        if self.asked.fetch_add(1, Relaxed) >= 1_000 {
            std::future::pending::<()>().await;
        }
    }

    async fn answer(&self) -> Result<(), ServiceError> {
        if self.is_silent {
            std::future::pending::<()>().await;
        }
        self.errors.lock().expect("no panic").pop_front().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl LockService for Scripted {
    type Grants = Fenced;

    async fn open_session(&self, _: Duration, _: Instant) -> Result<u64, ServiceError> {
        Ok(SESSION)
    }

    async fn renew_session(&self, _: u64, _: Instant) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn close_session(&self, _: u64, _: Instant) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn acquire(&self, _: &Acquisition, _: Instant) -> Result<Acquired, ServiceError> {
        if Instant::now() < self.leads_at {
            return Err(ServiceError::NotLeader { leader: None });
        }
        self.count().await;
        if self.queued.swap(false, Relaxed) || self.is_impatient.load(Relaxed) {
            return Ok(Acquired::Queued);
        }
        self.answer().await.map(|()| Acquired::Granted { token: 1 })
    }

    async fn release(&self, _: u64, _: u64, _: Instant) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn set_value(&self, _: &NewValue, _: Instant) -> Result<(), ServiceError> {
        self.answer().await
    }

    async fn view(&self, _: &Bytes, _: Option<u64>, _: Instant) -> Result<LockView, ServiceError> {
        self.count().await;
        Ok(LockView::default())
    }

    async fn wait_for_leader(&self, _: Option<u64>, deadline: Instant) -> Option<u64> {
        sleep_until(deadline.min(self.leads_at)).await;
        (Instant::now() >= self.leads_at).then_some(1)
    }
}
