//! Whatever validates works: the configurations of the checker and of discovery, over their whole
//! ranges, in virtual time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use std::sync::Arc;
use tokio::time::sleep;
use voussoir_lb::discovery::*;
use voussoir_lb::probe::*;
use voussoir_lb::strategy::RoundRobin;
use voussoir_lb::*;
use voussoir_sim::Situations;

static SITUATIONS: [&str; 6] = [
    "checker refused",
    "probe timed out",
    "probes waited for their turn",
    "discovery refused",
    "question timed out",
    "longest interval",
];

const DAY: Duration = Duration::from_secs(86_400);

fn any_duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        1 => prop::sample::select(vec![Duration::ZERO, Duration::MAX]),
        6 => prop::sample::select(vec![1, 10, 3_600_000, 86_400_000])
            .prop_map(Duration::from_millis),
        6 => (1..20_000_u64).prop_map(Duration::from_millis),
    ]
}

fn any_share() -> impl Strategy<Value = f64> {
    prop_oneof![
        prop::sample::select(vec![0.0, 1.0]),
        0.0..1.0_f64,
        prop::sample::select(vec![-0.1, f64::NAN, 0.5]),
    ]
}

/// Counts its calls; the first endpoint and every third question hang.
#[derive(Default)]
struct Counting(AtomicU64);

#[async_trait]
impl Probe for Counting {
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), ProbeError> {
        self.0.fetch_add(1, Relaxed);
        if endpoint.name() == "0" {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[async_trait]
impl Source for Counting {
    async fn resolve(&self) -> Result<Resolved, DiscoveryError> {
        let call = self.0.fetch_add(1, Relaxed);
        if call % 3 == 2 {
            std::future::pending::<()>().await;
        }
        Ok(Resolved::new([EndpointConfig::new(call.to_string())]))
    }
}

fn paused() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().expect("a runtime")
}

async fn check(config: CheckerConfig, situations: &Situations) {
    let mut with_checks = Config::default();
    with_checks.checks = Some(CheckConfig::default());
    let balancer = Balancer::new(RoundRobin::default(), with_checks).expect("valid");
    balancer.update((0..4).map(|at| EndpointConfig::new(at.to_string())), 0).expect("a set");
    let probe = Arc::new(Counting::default());
    let valid = config.validate();
    let started = Checker::start(balancer.clone(), Arc::clone(&probe), config.clone());
    assert_eq!(started.as_ref().err(), valid.as_ref().err());
    let Ok(checker) = started else { return situations.reached("checker refused") };
    // With one probe at a time, the one that hangs holds up the others for its time-out.
    sleep(config.timeout + Duration::from_millis(2)).await;
    assert_eq!(balancer.availability().borrow().healthy, 3, "{config:?}");
    sleep(4 * config.interval.max(config.timeout)).await;
    let stats = checker.stats();
    assert!(stats.timed_out >= 1 && stats.failed == stats.timed_out, "{config:?} {stats:?}");
    let probes = probe.0.load(Relaxed);
    assert!(probes >= 8, "{config:?}: {probes} probes in four intervals");
    situations.reached("probe timed out");
    situations.add("probes waited for their turn", u64::from(config.max_probes == 1));
    situations.add("longest interval", u64::from(config.interval == DAY));
}

async fn discover(config: DiscoveryConfig, situations: &Situations) {
    let balancer = Balancer::new(RoundRobin::default(), Config::default()).expect("valid");
    let source = Arc::new(Counting::default());
    let valid = config.validate();
    let started = Discovery::start(balancer.clone(), Arc::clone(&source), config.clone());
    assert_eq!(started.as_ref().err(), valid.as_ref().err());
    let Ok(discovery) = started else { return situations.reached("discovery refused") };
    // Two answers, a question that hangs, and another answer.
    let wait = 2 * config.interval + Duration::from_millis(1);
    sleep(3 * wait + config.timeout + wait).await;
    let stats = discovery.stats();
    assert!(stats.resolved >= 3 && stats.failed >= 1, "{config:?} {stats:?}");
    assert_eq!(stats.updates, stats.resolved, "each set differs");
    let longest = config.interval.max(config.timeout).mul_f64(2.0) + config.timeout;
    assert!(stats.age.expect("resolved") <= longest + 2 * wait, "{config:?} {stats:?}");
    let least = config.min_interval.as_nanos().max(1);
    let most = (4 * wait + config.timeout).as_nanos() / least + 2;
    assert!(u128::from(source.0.load(Relaxed)) <= most, "{config:?}: asked too often");
    situations.reached("question timed out");
}

/// Configurations with at most some thousand events, so that the test is quick.
fn is_quick(fast: Duration, slow: Duration) -> bool {
    slow.as_nanos() / fast.as_nanos().max(1) <= 5_000
}

#[test]
fn a_checker_and_a_discovery_that_validate_work() {
    let situations = Situations::new(&SITUATIONS);
    let durations = (any_duration(), any_duration(), any_duration());
    let any = (durations, any_share(), prop::sample::select(vec![0, 1, 2, 64, 65_535, 65_536]));
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() },
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let result = runner.run(&any, |((interval, min, timeout), jitter, max_probes)| {
        let mut checker = CheckerConfig::default();
        (checker.interval, checker.timeout, checker.jitter) = (interval, timeout, jitter);
        (checker.max_probes, checker.seed) = (max_probes, Some(1));
        // A jitter of 1 may draw intervals near 0.
        let fast = || interval.min(timeout).mul_f64((1.0 - jitter).clamp(0.01, 1.0) / 2.0);
        if checker.validate().is_err() || is_quick(fast(), interval.max(timeout)) {
            paused().block_on(check(checker, &situations));
        }
        let mut discovery = DiscoveryConfig::default();
        (discovery.interval, discovery.min_interval) = (interval, min);
        (discovery.timeout, discovery.jitter, discovery.seed) = (timeout, jitter, Some(1));
        if discovery.validate().is_err() || is_quick(min, interval.max(timeout)) {
            paused().block_on(discover(discovery, &situations));
        }
        Ok(())
    });
    result.expect("every configuration works");
    println!("{situations}");
    situations.assert_all_reached();
}
