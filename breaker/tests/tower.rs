//! The contract of `tower_service::Service`, over an inner service that checks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;
use voussoir_breaker::tower::{BreakerLayer, PolicyLayer};
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
    let policy = Policy::builder().retry(retry).breaker(breaker(9)).build().expect("valid");
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
