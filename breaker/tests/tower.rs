//! The contract of `tower_service::Service`, over an inner service that checks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;
use voussoir_breaker::tower::{BreakerLayer, CopyRequest, Once, PolicyLayer, PolicyService};
use voussoir_breaker::*;

/// Must be called only when this very instance said it was ready: a clone is not.
#[derive(Debug, Default)]
struct Strict {
    is_ready: bool,
    calls: Arc<AtomicU32>,
    failures: u32,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { is_ready: false, calls: Arc::clone(&self.calls), failures: self.failures }
    }
}

impl Service<u32> for Strict {
    type Response = u32;
    type Error = &'static str;
    type Future = std::future::Ready<Result<u32, &'static str>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called without having been ready");
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        std::future::ready(if call < self.failures { Err("down") } else { Ok(request + 1) })
    }
}

fn breaker(failures: u32) -> Arc<Breaker> {
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(failures);
    Arc::new(Breaker::new("b", &config).expect("valid"))
}

async fn ready<S: Service<u32>>(service: &mut S) -> Result<(), S::Error> {
    std::future::poll_fn(|cx| service.poll_ready(cx)).await
}

#[tokio::test]
async fn a_breaker_calls_what_was_ready_and_rejects_without_calling() {
    let inner = Strict { failures: 2, ..Strict::default() };
    let calls = Arc::clone(&inner.calls);
    let mut service = BreakerLayer::new(breaker(2)).layer(inner);
    for _ in 0..2 {
        ready(&mut service).await.expect("ready");
        assert_eq!(service.call(1).await, Err(BreakerError::Inner("down")));
    }
    ready(&mut service).await.expect("ready");
    let rejected = service.call(1).await.expect_err("open");
    assert_eq!(rejected.outcome(), Outcome::NotApplied);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_unpolled_call_gives_its_probe_back() {
    let breaker = breaker(1);
    let mut service = BreakerLayer::new(Arc::clone(&breaker)).layer(Strict::default());
    ready(&mut service).await.expect("ready");
    drop(service.call(1));
    assert_eq!(breaker.stats().lifetime.calls, 0);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_policy_readies_a_service_for_each_attempt() {
    let inner = Strict { failures: 2, ..Strict::default() };
    let calls = Arc::clone(&inner.calls);
    let retry = Arc::new(Retry::new(RetryConfig::default()).expect("valid"));
    let policy = Policy::builder()
        .classify(Arc::new(Idempotent))
        .retry(retry)
        .breaker(breaker(9))
        .build()
        .expect("valid");
    let mut service = PolicyLayer::new(Arc::new(policy)).layer(inner);
    ready(&mut service).await.expect("ready");
    assert_eq!(service.call(41).await, Ok(42));
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

/// Never ready.
#[derive(Clone)]
struct Stuck;

impl Service<u32> for Stuck {
    type Response = u32;
    type Error = &'static str;
    type Future = std::future::Ready<Result<u32, &'static str>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Pending
    }

    fn call(&mut self, _request: u32) -> Self::Future {
        panic!("never ready")
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_never_ready_meets_the_time_limit() {
    let limit = Timeout::new(std::time::Duration::from_millis(20)).expect("above zero");
    let policy = Policy::builder().timeout(limit).build().expect("valid");
    let mut service = PolicyLayer::new(Arc::new(policy)).layer(Stuck);
    ready(&mut service).await.expect("the policy is");
    let error = service.call(1).await.expect_err("stuck");
    assert!(matches!(error.kind, PolicyErrorKind::TimedOut(_)));
}

/// `concurrency_limit`, as tower has it: readiness reserves a permit, which a clone does not have.
#[derive(Debug)]
struct Limited {
    permits: Arc<tokio::sync::Semaphore>,
    reserved: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Clone for Limited {
    fn clone(&self) -> Self {
        Self { permits: Arc::clone(&self.permits), reserved: None }
    }
}

impl Service<u32> for Limited {
    type Response = u32;
    type Error = &'static str;
    type Future = std::future::Ready<Result<u32, &'static str>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.reserved.is_none() {
            self.reserved = Arc::clone(&self.permits).try_acquire_owned().ok();
        }
        if self.reserved.is_some() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn call(&mut self, request: u32) -> Self::Future {
        let _permit = self.reserved.take().expect("called without having been ready");
        std::future::ready(Ok(request))
    }
}

fn limited() -> Limited {
    Limited { permits: Arc::new(tokio::sync::Semaphore::new(1)), reserved: None }
}

async fn is_ready<S: Service<u32>>(service: &mut S) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(service.poll_ready(cx).is_ready())).await
}

#[tokio::test]
async fn a_rejected_clone_keeps_nothing_of_the_inner_service() {
    let (breaker, inner) = (breaker(9), limited());
    let permits = Arc::clone(&inner.permits);
    let mut idle = BreakerLayer::new(Arc::clone(&breaker)).layer(inner);
    let mut other = idle.clone();
    // Ready before the breaker opens, rejected after.
    assert!(is_ready(&mut idle).await && !is_ready(&mut other).await);
    breaker.force_open();
    assert!(idle.call(1).await.is_err());
    assert_eq!(permits.available_permits(), 1);
    breaker.reset();
    assert!(is_ready(&mut other).await, "the idle clone keeps the only permit");
    assert_eq!(other.call(7).await, Ok(7));
}

/// The breaker fails fast though the inner service is never ready; and admits a call that was ready
/// by rejection when its wait has ended meanwhile.
#[tokio::test]
async fn an_open_breaker_does_not_wait_for_the_inner_service() {
    let (breaker, inner) = (breaker(9), limited());
    let taken = Arc::clone(&inner.permits).try_acquire_owned().expect("free");
    let mut service = BreakerLayer::new(Arc::clone(&breaker)).layer(inner);
    assert!(!is_ready(&mut service).await, "closed: it waits for the permit");
    breaker.force_open();
    assert!(is_ready(&mut service).await);
    assert!(matches!(service.call(1).await, Err(BreakerError::Rejected(_))));
    assert!(is_ready(&mut service).await);
    breaker.reset();
    drop(taken);
    assert_eq!(service.call(7).await, Ok(7), "it waits for the inner service after all");
}

#[tokio::test]
async fn a_classifier_says_which_answers_are_failures() {
    struct Evens;
    impl Classify<u32, &'static str> for Evens {
        fn verdict(&self, answer: &Result<u32, &'static str>) -> Verdict {
            match answer {
                Ok(value) if value % 2 == 0 => Verdict::Failure,
                _ => Verdict::Success,
            }
        }
    }
    let breaker = breaker(2);
    let mut service =
        BreakerLayer::new(Arc::clone(&breaker)).classify(Evens).layer(Strict::default());
    for request in [1, 3] {
        ready(&mut service).await.expect("ready");
        service.call(request).await.expect("a bad answer is an answer");
    }
    assert_eq!(breaker.state(), State::Open);
}

/// Requests that can be sent once are neither retried nor hedged, and need no `Clone`, no `Sync`.
#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_copied_is_sent_once() {
    struct Unique(std::cell::Cell<u32>);
    #[derive(Clone)]
    struct Counts(Arc<AtomicU32>);
    impl Service<Unique> for Counts {
        type Response = u32;
        type Error = &'static str;
        type Future = std::future::Ready<Result<u32, &'static str>>;

        fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Unique) -> Self::Future {
            self.0.fetch_add(request.0.get(), Ordering::Relaxed);
            std::future::ready(Err("down"))
        }
    }
    let retry = Arc::new(Retry::new(RetryConfig::default()).expect("valid"));
    let policy = Policy::builder().classify(Arc::new(Idempotent)).retry(retry).build();
    let layer = PolicyLayer::new(Arc::new(policy.expect("valid"))).copy_by(Once);
    let calls = Arc::new(AtomicU32::new(0));
    let mut service = layer.layer(Counts(Arc::clone(&calls)));
    std::future::poll_fn(|cx| service.poll_ready(cx)).await.expect("always");
    let failed = service.call(Unique(std::cell::Cell::new(1))).await.expect_err("down");
    assert_eq!((failed.attempts, calls.load(Ordering::Relaxed)), (1, 1));
}

/// The copy for the second attempt calls through the same layer, and panics when told to.
#[test]
fn copying_a_request_may_call_back_and_panic() {
    struct Calling {
        service: std::sync::Mutex<Option<Policed>>,
        copies: AtomicU32,
        inner_calls: AtomicU32,
        panics: bool,
    }
    struct Copies(Arc<Calling>);
    type Policed = PolicyService<Strict, PolicyLayer<Policy<u32, &'static str>, Copies>>;
    impl CopyRequest<u32> for Copies {
        fn copy(&self, request: &u32) -> Option<u32> {
            // The first copy of a call is made before anything is sent, the next by its retry.
            let Self(calling) = self;
            if *request == 1 && calling.copies.fetch_add(1, Ordering::Relaxed) == 1 {
                assert!(!calling.panics, "scripted: the copy panics");
                let service = calling.service.lock().expect("not poisoned").clone();
                let mut service = service.expect("set by the test");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                let call = service.call(2);
                let answer = std::thread::scope(|scope| {
                    let runtime = runtime.expect("starts");
                    scope.spawn(move || runtime.block_on(call)).join().expect("no panic")
                });
                calling.inner_calls.fetch_add(answer.map_or(1, |_| 0), Ordering::Relaxed);
            }
            Some(*request)
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("starts");
    for panics in [false, true] {
        let bulkhead = Bulkhead::new(8, QueueConfig::default()).expect("valid");
        let mut config = RetryConfig::default();
        config.max_attempts = 2;
        let retry = Arc::new(Retry::new(config).expect("valid"));
        let policy = Policy::builder().classify(Arc::new(Idempotent)).bulkhead(bulkhead.clone());
        let policy = Arc::new(policy.retry(retry).build().expect("valid"));
        let copies = Arc::new(Calling {
            service: std::sync::Mutex::default(),
            copies: AtomicU32::new(0),
            inner_calls: AtomicU32::new(0),
            panics,
        });
        let inner = Strict { failures: 100, ..Strict::default() };
        let mut service =
            PolicyLayer::new(policy).copy_by(Copies(Arc::clone(&copies))).layer(inner.clone());
        *copies.service.lock().expect("not poisoned") = Some(service.clone());
        let call = runtime.block_on(async { tokio::spawn(service.call(1)).await });
        assert_eq!(call.is_err(), panics, "a panic of the copy ends the call");
        assert_eq!(copies.inner_calls.load(Ordering::Relaxed), u32::from(!panics));
        assert_eq!(bulkhead.stats().running, 0, "the place of the call was given back");
        copies.service.lock().expect("not poisoned").take();
    }
}
