//! What must stay true of the public types: threads, object safety, sizes.

use std::sync::Arc;
use voussoir_breaker::*;

const fn is_send_sync<T: Send + Sync>() {}
const fn is_send<T: Send>(_: &T) {}

const _: () = {
    is_send_sync::<Breaker>();
    is_send_sync::<Permit<&Breaker>>();
    is_send_sync::<Permit<Arc<Breaker>>>();
    is_send_sync::<BreakerConfig>();
    is_send_sync::<BreakerSnapshot>();
    is_send_sync::<Transition>();
    is_send_sync::<Registry<String>>();
    is_send_sync::<Retry>();
    is_send_sync::<RetryBudget>();
    is_send_sync::<ExtraAttempt>();
    is_send_sync::<Hedge>();
    is_send_sync::<Bulkhead>();
    is_send_sync::<BulkheadPermit>();
    is_send_sync::<AdaptiveLimit>();
    is_send_sync::<AdaptivePermit>();
    is_send_sync::<Shedder>();
    is_send_sync::<Timeout>();
    is_send_sync::<Deadline>();
    is_send_sync::<Policy<String, std::io::Error>>();
    is_send_sync::<PolicyError<std::io::Error>>();
    is_send_sync::<ConfigError>();
};

#[test]
fn futures_can_move_between_threads() {
    let breaker = Breaker::new("b", &BreakerConfig::default()).unwrap();
    is_send(&breaker.call(async { Ok::<_, ()>(()) }));
    let bulkhead = Bulkhead::new(1, QueueConfig::default()).unwrap();
    is_send(&bulkhead.acquire());
    let retry = Retry::new(RetryConfig::default()).unwrap();
    is_send(&retry.call(|_| async { Ok::<_, ()>(()) }, |()| RetryAdvice::Stop));
    let hedge = Hedge::new(HedgeConfig::default()).unwrap();
    is_send(&hedge.call(|_| async { Ok::<_, ()>(()) }));
    let policy: Policy<(), ()> = Policy::builder().build().unwrap();
    is_send(&policy.call(|_| async { Ok(()) }));
    let timeout = Timeout::new(std::time::Duration::from_secs(1)).unwrap();
    is_send(&timeout.call(async { Ok::<_, ()>(()) }));
}

#[test]
fn seams_are_object_safe() {
    let _: Arc<dyn Clock> = default_clock();
    let _: Arc<dyn Classify<u8, String>> = Arc::new(ByResult);
    let _: Box<dyn LimitAlgorithm> = Box::new(Vegas::new(VegasConfig::default()));
    let bulkhead = Bulkhead::new(1, QueueConfig::default()).unwrap();
    let _: Arc<dyn LoadSource> = Arc::new(bulkhead);
}

#[test]
fn errors_are_errors_and_small() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>() -> usize {
        size_of::<E>()
    }
    assert!(is_error::<BreakerError<std::io::Error>>() <= 40);
    assert!(is_error::<PolicyError<std::io::Error>>() <= 56);
    assert!(is_error::<RetryError<std::io::Error>>() <= 24);
    assert!(is_error::<TimeoutError<std::io::Error>>() <= 24);
    assert!(is_error::<GateError>() <= 32);
    is_error::<ConfigError>();
    is_error::<RestoreError>();
    is_error::<RegistryFull>();
    is_error::<Rejected>();
}
