//! The contract of `tower_service::Service`, over inner services that check it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use tokio::time::sleep;
use tower_service::Service;
use voussoir_lb::strategy::{KeyHash, RoundRobin};
use voussoir_lb::tower::{BalanceError, BalanceService};
use voussoir_lb::*;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
struct Failed(&'static str);

/// What all services of a test count.
#[derive(Debug, Default)]
struct Counts {
    made: AtomicU32,
    living: AtomicUsize,
    calls: AtomicU32,
    reserved: AtomicUsize,
    loses_readiness: AtomicBool,
}

/// Must be called only when this very instance said that it was ready. Being ready reserves a
/// place, which a call uses and a drop gives back.
#[derive(Debug)]
struct Strict {
    name: String,
    counts: Arc<Counts>,
    is_ready: bool,
    polls: u32,
}

impl Strict {
    fn new(name: &str, counts: &Arc<Counts>) -> Self {
        counts.living.fetch_add(1, Relaxed);
        Self { name: name.to_owned(), counts: Arc::clone(counts), is_ready: false, polls: 0 }
    }
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::new(&self.name, &self.counts)
    }
}

impl Drop for Strict {
    fn drop(&mut self) {
        self.counts.living.fetch_sub(1, Relaxed);
        if self.is_ready {
            self.counts.reserved.fetch_sub(1, Relaxed);
        }
    }
}

impl Service<u32> for Strict {
    type Response = String;
    type Error = Failed;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<String, Failed>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Failed>> {
        if self.name == "unready" {
            return Poll::Ready(Err(Failed("unready")));
        }
        // Ready at the third poll only, and not for ever.
        self.polls += 1;
        if self.polls < 3 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.counts.loses_readiness.swap(false, Relaxed) {
            self.polls = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !std::mem::replace(&mut self.is_ready, true) {
            self.counts.reserved.fetch_add(1, Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, millis: u32) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called without having been ready");
        self.counts.reserved.fetch_sub(1, Relaxed);
        self.counts.calls.fetch_add(1, Relaxed);
        let name = self.name.clone();
        Box::pin(async move {
            sleep(Duration::from_millis(millis.into())).await;
            if name == "fails" { Err(Failed("fails")) } else { Ok(name) }
        })
    }
}

fn setup(names: &[&str]) -> (Balancer, BalanceService<Strict, u32>, Arc<Counts>) {
    let balancer = Balancer::new(RoundRobin::default(), Config::default()).expect("valid");
    balancer.update(names.iter().map(|&name| EndpointConfig::new(name)), 0).expect("a set");
    let counts = Arc::new(Counts::default());
    let of = Arc::clone(&counts);
    let service = BalanceService::new(balancer.clone(), move |endpoint| {
        of.made.fetch_add(1, Relaxed);
        Strict::new(endpoint.name(), &of)
    });
    (balancer, service, counts)
}

async fn call(
    service: &mut BalanceService<Strict, u32>,
    millis: u32,
) -> Result<String, BalanceError<Failed>> {
    std::future::poll_fn(|context| service.poll_ready(context)).await.expect("always ready");
    service.call(millis).await
}

fn in_flight(balancer: &Balancer) -> u32 {
    balancer.endpoints().iter().map(|endpoint| endpoint.in_flight()).sum()
}

#[tokio::test(start_paused = true)]
async fn calls_drive_the_clone_that_they_call_and_share_one_service_an_endpoint() {
    let (balancer, mut service, counts) = setup(&["a", "b"]);
    let mut other = service.clone();
    for _ in 0..4 {
        assert_eq!(call(&mut service, 1).await.expect("served"), "a");
        assert_eq!(call(&mut other, 1).await.expect("served"), "b");
    }
    assert_eq!((counts.made.load(Relaxed), counts.calls.load(Relaxed)), (2, 8));
    assert_eq!(counts.living.load(Relaxed), 2, "clones end with their calls");
    assert_eq!((in_flight(&balancer), counts.reserved.load(Relaxed)), (0, 0));
    assert!(balancer.stats(0).endpoints.iter().all(|endpoint| endpoint.picks == 4));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_loses_its_readiness_is_polled_on() {
    let (_, mut service, counts) = setup(&["a"]);
    counts.loses_readiness.store(true, Relaxed);
    assert_eq!(call(&mut service, 1).await.expect("served"), "a");
    assert!(!counts.loses_readiness.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_request_leaves_a_service_that_fails_before_it_is_ready() {
    let (balancer, mut service, counts) = setup(&["unready", "a"]);
    for _ in 0..6 {
        assert_eq!(call(&mut service, 1).await.expect("served"), "a");
    }
    assert!(balancer.stats(0).endpoints[0].failures >= 3);
    assert_eq!(in_flight(&balancer), 0);
    balancer.update([EndpointConfig::new("unready")], 0).expect("a set");
    let error = call(&mut service, 1).await.expect_err("not ready");
    assert_eq!(error, BalanceError::NotReady { tried: 1, last: Failed("unready") });
    assert!(!error.was_sent());
    assert_eq!(counts.calls.load(Relaxed), 6, "nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_gives_back_its_place_and_the_reservation() {
    let (balancer, mut service, counts) = setup(&["a"]);
    drop(service.call(1));
    assert_eq!((in_flight(&balancer), balancer.stats(0).endpoints[0].picks), (0, 0));
    // Dropped after each number of polls: while it becomes ready, and while it is served.
    for polls in 1..6 {
        let mut running = service.call(50);
        for _ in 0..polls {
            let poll = std::future::poll_fn(|context| Poll::Ready(running.as_mut().poll(context)));
            assert!(poll.await.is_pending());
        }
        assert_eq!(in_flight(&balancer), 1);
        drop(running);
        assert_eq!((in_flight(&balancer), counts.reserved.load(Relaxed)), (0, 0));
    }
    assert_eq!(balancer.stats(0).endpoints[0].cancelled, 5);
}

#[tokio::test(start_paused = true)]
async fn results_are_outcomes_and_an_error_says_whether_it_was_sent() {
    let (balancer, mut service, _) = setup(&["fails"]);
    let error = call(&mut service, 1).await.expect_err("it fails");
    assert_eq!(error, BalanceError::Inner(Failed("fails")));
    assert!(error.was_sent());
    assert_eq!(balancer.stats(0).endpoints[0].failures, 1);
    let mut lenient = service.clone().with_outcome(|_| Outcome::Success);
    call(&mut lenient, 1).await.expect_err("it fails");
    assert_eq!(balancer.stats(0).endpoints[0].failures, 1);
    let empty = Balancer::new(RoundRobin::default(), Config::default()).expect("valid");
    let counts = Arc::new(Counts::default());
    let mut service = BalanceService::new(empty, move |at| Strict::new(at.name(), &counts));
    assert_eq!(call(&mut service, 1).await, Err(BalanceError::NoEndpoint));
}

/// tower #856, #874: the endpoint was an index, which a removal made another's.
#[tokio::test(start_paused = true)]
async fn services_of_endpoints_that_left_end_and_running_calls_go_on() {
    let (balancer, mut service, counts) = setup(&["a", "b", "c"]);
    for _ in 0..3 {
        call(&mut service, 1).await.expect("served");
    }
    assert_eq!(counts.living.load(Relaxed), 3);
    let mut running = service.call(100);
    let poll = std::future::poll_fn(|context| Poll::Ready(running.as_mut().poll(context)));
    assert!(poll.await.is_pending());
    balancer.update(["b", "c"].map(EndpointConfig::new), 0).expect("a set");
    assert_ne!(call(&mut service, 1).await.expect("served"), "a");
    assert_eq!(counts.living.load(Relaxed), 3, "two services, and the clone that runs");
    assert_eq!(running.await.expect("served"), "a");
    assert_eq!(counts.living.load(Relaxed), 2);
    assert_eq!(counts.made.load(Relaxed), 3);
}

/// With checks, an old set serves on until one of the new set passes: it leaves without a new set.
#[tokio::test(start_paused = true)]
async fn services_of_endpoints_that_served_on_end_when_the_new_set_serves() {
    let mut config = Config::default();
    config.checks = Some(CheckConfig::default());
    let balancer = Balancer::new(RoundRobin::default(), config).expect("valid");
    let counts = Arc::new(Counts::default());
    let of = Arc::clone(&counts);
    let make = move |at: &Endpoint| Strict::new(at.name(), &of);
    let mut service = BalanceService::new(balancer.clone(), make);
    let pass = |at: usize| balancer.record_check(balancer.endpoints()[at].id(), true, 1);
    balancer.update([EndpointConfig::new("a")], 0).expect("a set");
    pass(0);
    assert_eq!(call(&mut service, 1).await.expect("served"), "a");
    balancer.update([EndpointConfig::new("b")], 2).expect("a set");
    assert_eq!(call(&mut service, 1).await.expect("served"), "a", "`b` is unchecked");
    let updates = *balancer.updates().borrow();
    pass(0);
    assert_eq!(call(&mut service, 1).await.expect("served"), "b");
    assert_eq!(*balancer.updates().borrow(), updates, "no set came");
    assert_eq!(counts.living.load(Relaxed), 1, "the service of `b`");
}

/// Another call drops what left before the service of an earlier pick is there.
#[tokio::test(start_paused = true)]
async fn the_service_of_an_endpoint_that_left_while_it_was_made_ends_with_its_call() {
    type Other = parking_lot::Mutex<Option<BalanceService<Strict, u32>>>;
    let balancer = Balancer::new(RoundRobin::default(), Config::default()).expect("valid");
    balancer.update([EndpointConfig::new("a")], 0).expect("a set");
    let counts = Arc::new(Counts::default());
    let other: Arc<Other> = Arc::default();
    let (of, taken, changed) = (Arc::clone(&counts), Arc::clone(&other), balancer.clone());
    let mut service = BalanceService::new(balancer, move |at: &Endpoint| {
        let other = taken.lock().take();
        if let Some(mut other) = other {
            changed.update([EndpointConfig::new("b")], 0).expect("a set");
            let mut running = other.call(1);
            let mut context = TaskContext::from_waker(std::task::Waker::noop());
            assert!(running.as_mut().poll(&mut context).is_pending(), "it has its service");
        }
        Strict::new(at.name(), &of)
    });
    *other.lock() = Some(service.clone());
    assert_eq!(call(&mut service, 1).await.expect("served"), "a");
    assert_eq!(counts.living.load(Relaxed), 1, "the service of `b`");
    assert_eq!(call(&mut service, 1).await.expect("served"), "b");
}

#[tokio::test(start_paused = true)]
async fn the_request_chooses_by_its_key() {
    let balancer = Balancer::new(KeyHash::default(), Config::default()).expect("valid");
    balancer.update((0..10).map(|at| EndpointConfig::new(at.to_string())), 0).expect("a set");
    let counts = Arc::new(Counts::default());
    let mut service = BalanceService::<ByKey, Vec<u8>>::new(balancer, move |at| {
        ByKey(Strict::new(at.name(), &counts))
    })
    .with_context(|key: &Vec<u8>| Context::new().with_key(key));
    let mut seen = std::collections::BTreeSet::new();
    for key in 0..40_u8 {
        let first = service.call(vec![key]).await.expect("served");
        assert_eq!(service.call(vec![key]).await.expect("served"), first);
        seen.insert(first);
    }
    assert!(seen.len() >= 8, "{seen:?}");
}

#[derive(Clone)]
struct ByKey(Strict);

impl Service<Vec<u8>> for ByKey {
    type Response = String;
    type Error = Failed;
    type Future = <Strict as Service<u32>>::Future;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Failed>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, _: Vec<u8>) -> Self::Future {
        self.0.call(1)
    }
}

/// A caller that retries around the service excludes where it has been.
#[tokio::test(start_paused = true)]
async fn the_exclusions_of_a_request_hold_also_after_a_service_was_not_ready() {
    let balancer = Balancer::new(RoundRobin::default(), Config::default()).expect("valid");
    balancer.update(["a", "unready", "b"].map(EndpointConfig::new), 0).expect("a set");
    let counts = Arc::new(Counts::default());
    let excluded = vec![balancer.endpoints()[0].id()];
    let mut service = BalanceService::<Excluding, Vec<u64>>::new(balancer.clone(), move |at| {
        Excluding(Strict::new(at.name(), &counts))
    })
    .with_context(|excluded: &Vec<u64>| Context::new().with_excluded(excluded));
    for _ in 0..6 {
        assert_eq!(service.call(excluded.clone()).await.expect("served"), "b");
    }
    assert!(balancer.stats(0).endpoints[1].failures > 0, "some were not ready at first");
}

#[derive(Clone)]
struct Excluding(Strict);

impl Service<Vec<u64>> for Excluding {
    type Response = String;
    type Error = Failed;
    type Future = <Strict as Service<u32>>::Future;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Failed>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, _: Vec<u64>) -> Self::Future {
        self.0.call(1)
    }
}

/// tower's `Timeout` outside of the balancer drops the call.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_hangs_is_avoided_though_time_outs_drop_the_calls() {
    let begin = tokio::time::Instant::now();
    let clock = Arc::new(move || 1_000_000_000 + begin.elapsed().as_nanos() as u64);
    let strategy = strategy::PeakEwma::default().with_choices(0);
    let balancer = Balancer::new(strategy, Config::default()).expect("valid");
    balancer.update(["a", "b"].map(EndpointConfig::new), clock()).expect("a set");
    let counts = Arc::new(Counts::default());
    let make = move |at: &Endpoint| Strict::new(at.name(), &counts);
    let mut service = BalanceService::<Strict, u32>::with_clock(balancer.clone(), make, clock);
    // One call at a time: no other one tells the balancer how late it is. Those to `a` hang.
    for _ in 0..2 {
        let slow = service.call(u32::MAX);
        let called = tokio::time::timeout(Duration::from_secs(1), slow).await;
        called.expect_err("it hangs");
    }
    let stats = balancer.stats(2_000_000_000 + 1_000_000_000);
    for endpoint in &stats.endpoints {
        let latency = endpoint.latency;
        assert_eq!(endpoint.cancelled, 1, "the second call avoids the endpoint of the first");
        assert!(latency > Duration::from_millis(900) && latency < Duration::from_secs(2));
    }
}
