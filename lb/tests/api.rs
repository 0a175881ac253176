//! What must stay true of the public types: threads, object safety, sizes.

use std::sync::Arc;
use voussoir_lb::strategy::*;
use voussoir_lb::*;

const fn is_send_sync<T: Send + Sync>() {}

const _: () = {
    is_send_sync::<Balancer>();
    is_send_sync::<BalancerStats>();
    is_send_sync::<Config>();
    is_send_sync::<ConfigError>();
    is_send_sync::<Context<'_>>();
    is_send_sync::<Endpoint>();
    is_send_sync::<EndpointConfig>();
    is_send_sync::<Pick>();
    is_send_sync::<Random>();
    is_send_sync::<UpdateError>();
};

#[test]
fn seams_are_object_safe() {
    let strategy: Box<dyn Strategy> = Box::new(PowerOfTwo::default());
    let balancer = Balancer::boxed(strategy, Config::default()).expect("valid");
    balancer.update([EndpointConfig::new("a")], 0).expect("a set");
    let clock: Arc<dyn Clock> = Arc::new(Monotonic);
    assert!(clock.now() > 0);
    let shared: Arc<dyn Balance> = Arc::new(balancer);
    assert!(shared.pick(&Context::new(), 0).is_some());
}

#[test]
fn errors_are_errors_and_a_pick_is_small() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>() {}
    is_error::<ConfigError>();
    is_error::<UpdateError>();
    // Two words, so that it is returned in registers.
    assert_eq!((size_of::<Pick>(), size_of::<Option<Pick>>()), (16, 16));
}

#[test]
fn errors_name_the_field_and_the_rule() {
    let mut config = Config::default();
    config.max_in_flight = Some(0);
    let error = Balancer::new(RoundRobin::default(), config).expect_err("0 is no limit");
    assert_eq!(error.to_string(), "`max_in_flight` must be between 1 and 16777215");
}
