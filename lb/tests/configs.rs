//! Whatever validates works: every configuration over its whole range, extremes included.

use std::time::Duration;

use proptest::prelude::*;
use voussoir_lb::strategy::*;
use voussoir_lb::*;
use voussoir_sim::Situations;

static SITUATIONS: [&str; 9] = [
    "refused configuration",
    "nothing to pick",
    "ejection",
    "slow start over",
    "two priorities",
    "own zone",
    "full endpoint",
    "unchecked endpoint",
    "panic rejected",
];

fn any_duration() -> impl Strategy2<Value = Duration> {
    prop_oneof![
        prop::sample::select(vec![
            Duration::ZERO,
            Duration::from_millis(1),
            Duration::from_millis(10),
            Duration::from_millis(20),
            Duration::from_secs(3_600),
            Duration::from_secs(86_400),
            Duration::MAX,
        ]),
        (0..100_000_000_000_u64).prop_map(Duration::from_nanos),
    ]
}

use proptest::strategy::Strategy as Strategy2;

fn any_f64() -> impl Strategy2<Value = f64> {
    prop_oneof![
        prop::sample::select(vec![0.0, 0.05, 0.5, 1.0, 1.4, 10.0, 1_000.0, -1.0, f64::NAN]),
        0.0..2.0_f64,
    ]
}

fn any_count() -> impl Strategy2<Value = u32> {
    prop_oneof![0..6_u32, Just(u32::MAX), Just(0xFF_FFFF), 0..200_u32]
}

fn any_outliers() -> impl Strategy2<Value = OutlierConfig> {
    let windows = (any_count(), any_count(), any_f64());
    let durations = (any_duration(), any_duration(), any_duration());
    let options = (any::<bool>(), any::<bool>(), prop::option::of(any_count()));
    (windows, durations, options, any_f64()).prop_map(|(window, durations, options, share)| {
        let mut outliers = OutlierConfig::default();
        outliers.consecutive_failures = options.2;
        let mut rate = SuccessRateOutliers::default();
        (rate.min_endpoints, rate.min_requests, rate.factor) = window;
        outliers.success_rate = options.0.then_some(rate);
        let mut latency = LatencyOutliers::default();
        (latency.min_endpoints, latency.min_requests, latency.factor) = window;
        outliers.latency = options.1.then_some(latency);
        (outliers.interval, outliers.base_ejection, outliers.max_ejection) = durations;
        outliers.max_ejected_share = share;
        outliers
    })
}

fn any_config() -> impl Strategy2<Value = Config> {
    let slow = prop::option::of((any_duration(), any_f64()));
    let zone = prop::option::of((any::<bool>(), prop::option::of(any_f64())));
    let checks = prop::option::weighted(0.3, (any_count(), any_count()));
    let first = (
        any::<Option<u64>>(),
        prop::option::of(any_count()),
        prop_oneof![3 => Just(Duration::from_secs(1)), 1 => any_duration()],
        prop::option::weighted(0.5, any_outliers()),
    );
    let priorities = prop::option::of((any_f64(), any_f64(), any::<bool>()));
    let is_mended = prop::bool::weighted(0.8);
    let all = (first, slow, zone, checks, priorities, is_mended);
    all.prop_map(|(first, slow, zone, checks, priorities, is_mended)| {
        let mut config = Config::default();
        (config.seed, config.max_in_flight, config.failure_half_life, config.outliers) = first;
        config.slow_start = slow.map(|(window, floor)| {
            let mut slow = SlowStartConfig::default();
            (slow.window, slow.floor) = (window, floor);
            slow
        });
        config.zone = zone.map(|(is_known, callers)| {
            let mut zone = ZoneConfig::new(if is_known { "z0" } else { "" });
            zone.callers_share = callers;
            zone
        });
        config.checks = checks.map(|(rise, fall)| {
            let mut checks = CheckConfig::default();
            (checks.rise, checks.fall) = (rise, fall);
            checks
        });
        if let Some((factor, threshold, rejects)) = priorities {
            config.priorities.overprovisioning = factor;
            config.priorities.panic_threshold = threshold;
            config.priorities.on_panic = if rejects { OnPanic::Reject } else { OnPanic::UseAll };
        }
        if is_mended {
            mend(&mut config);
        }
        config
    })
}

/// The nearest number in the range, its lower end for no number.
fn near(value: f64, min: f64, max: f64) -> f64 {
    if value.is_nan() { min } else { value.clamp(min, max) }
}

/// Moves each field to the nearest value of its range. With a dozen fields whose values are drawn
/// from everywhere hardly any configuration would be valid, and no life would be long.
fn mend(config: &mut Config) {
    const MS: Duration = Duration::from_millis(1);
    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = Duration::from_secs(86_400);
    config.max_in_flight = config.max_in_flight.map(|max| max.clamp(1, 0xFF_FFFF));
    config.failure_half_life = config.failure_half_life.clamp(MS, HOUR);
    if let Some(checks) = &mut config.checks {
        (checks.rise, checks.fall) = (checks.rise.max(1), checks.fall.max(1));
    }
    if let Some(outliers) = &mut config.outliers {
        outliers.consecutive_failures = outliers.consecutive_failures.map(|row| row.max(1));
        if let Some(rate) = &mut outliers.success_rate {
            rate.min_endpoints = rate.min_endpoints.max(2);
            rate.min_requests = rate.min_requests.max(1);
            rate.factor = near(rate.factor, 0.01, 10.0);
        }
        if let Some(latency) = &mut outliers.latency {
            latency.min_endpoints = latency.min_endpoints.max(2);
            latency.min_requests = latency.min_requests.max(1);
            latency.factor = near(latency.factor, 1.01, 1_000.0);
        }
        outliers.interval = outliers.interval.clamp(10 * MS, HOUR);
        outliers.base_ejection = outliers.base_ejection.clamp(MS, DAY);
        outliers.max_ejection = outliers.max_ejection.clamp(outliers.base_ejection, DAY);
        outliers.max_ejected_share = near(outliers.max_ejected_share, 0.0, 1.0);
    }
    if let Some(slow) = &mut config.slow_start {
        slow.window = slow.window.clamp(20 * MS, DAY);
        slow.floor = near(slow.floor, 0.05, 1.0);
    }
    if let Some(zone) = &mut config.zone {
        zone.callers_share = zone.callers_share.map(|share| near(share, 0.01, 1.0));
    }
    let priorities = &mut config.priorities;
    priorities.overprovisioning = near(priorities.overprovisioning, 1.0, 10.0);
    priorities.panic_threshold = near(priorities.panic_threshold, 0.0, 1.0);
}

fn strategies(half_life: Duration, choices: u32, bound: f64) -> Vec<Box<dyn strategy::Strategy>> {
    let _ = bound;
    vec![
        Box::new(RoundRobin::from_random_start()),
        Box::new(RandomChoice::default()),
        Box::new(PowerOfTwo::default()),
        Box::new(PeakEwma::new(half_life)),
        Box::new(LeastConnections::default()),
        Box::new(LeastRequest::sampled(choices.min(50))),
        Box::new(IpHash::default()),
        Box::new(KeyHash::default()),
        #[cfg(feature = "ring")]
        Box::new(BoundedHash::new(bound)),
    ]
}

/// One step of a long life.
#[derive(Clone, Debug)]
enum Step {
    Request { take: u64, fails: bool },
    Hold,
    Release,
    Cancel,
    Update { weights: Vec<u32> },
    Drain { at: usize, draining: bool },
    Check { at: usize, passed: bool },
    Wait { nanos: u64 },
}

fn any_step() -> impl Strategy2<Value = Step> {
    prop_oneof![
        8 => (0..50_000_000_u64, any::<bool>())
            .prop_map(|(take, fails)| Step::Request { take, fails }),
        3 => Just(Step::Hold),
        2 => Just(Step::Release),
        1 => Just(Step::Cancel),
        1 => prop::collection::vec(prop_oneof![1..5_u32, 60_000..=65_535_u32], 1..9)
            .prop_map(|weights| Step::Update { weights }),
        1 => (0..8_usize, any::<bool>()).prop_map(|(at, draining)| Step::Drain { at, draining }),
        3 => (0..8_usize, any::<bool>()).prop_map(|(at, passed)| Step::Check { at, passed }),
        2 => prop_oneof![0..1_000_000_000_u64, 0..100_000_000_000_u64, Just(u64::MAX / 64)]
            .prop_map(|nanos| Step::Wait { nanos }),
    ]
}

struct Life<'a> {
    balancer: &'a Balancer,
    config: &'a Config,
    situations: &'a Situations,
    now: u64,
    held: Vec<Pick>,
}

impl Life<'_> {
    fn update(&self, weights: &[u32]) {
        let endpoint = |(at, &weight): (usize, &u32)| {
            EndpointConfig::new(at.to_string())
                .with_weight(weight)
                .with_zone(format!("z{}", at % 2))
                .with_priority(u8::from(at > 4))
        };
        self.balancer.update(weights.iter().enumerate().map(endpoint), self.now).expect("a set");
        if weights.len() > 5 {
            self.situations.reached("two priorities");
        }
    }

    /// Picks, and checks that what was picked may be picked.
    fn pick(&self) -> Option<Pick> {
        let key = self.now.to_le_bytes();
        let client = std::net::IpAddr::from([key[0], key[1], key[2], key[3]]);
        let ctx = Context::new().with_key(&key).with_client(client);
        let pick = self.balancer.pick(&ctx, self.now);
        let stats = self.balancer.stats(self.now);
        let max = self.config.max_in_flight.unwrap_or(u32::MAX);
        if stats.endpoints.iter().any(|endpoint| endpoint.in_flight == max) {
            self.situations.reached("full endpoint");
        }
        if stats.ejections > 0 {
            self.situations.reached("ejection");
        }
        let usable = |e: &&EndpointStats| e.healthy && !e.draining;
        let Some(pick) = pick else {
            self.situations.reached("nothing to pick");
            let free = |e: &&EndpointStats| usable(e) && e.in_flight < max;
            if stats.endpoints.iter().any(|e| free(&e)) {
                let rejects = self.config.priorities.on_panic == OnPanic::Reject;
                assert!(rejects, "an endpoint was free: {stats:?}");
                self.situations.reached("panic rejected");
            }
            return None;
        };
        let stat = stats.endpoints.iter().find(|e| e.name == pick.endpoint().name());
        let stat = stat.expect("an endpoint of the set");
        assert!(!stat.draining, "{stat:?}");
        assert!(stat.in_flight <= max, "{stat:?}");
        if !stat.healthy {
            let uses_all = self.config.priorities.on_panic == OnPanic::UseAll;
            assert!(uses_all, "an unhealthy endpoint without a panic: {stats:?}");
        }
        if self.config.zone.is_some() && pick.endpoint().name() == "0" {
            self.situations.reached("own zone");
        }
        Some(pick)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Request { take, fails } => {
                let outcome = if fails { Outcome::Failure } else { Outcome::Success };
                if let Some(pick) = self.pick() {
                    self.now = self.now.saturating_add(take);
                    pick.finish(self.now, outcome);
                }
            }
            Step::Hold => self.held.extend(self.pick()),
            Step::Release => {
                if let Some(pick) = self.held.pop() {
                    pick.finish(self.now, Outcome::Success);
                }
            }
            Step::Cancel => drop(self.held.pop()),
            Step::Update { weights } => self.update(&weights),
            Step::Drain { at, draining } => {
                self.balancer.set_draining(&at.to_string(), draining, self.now);
            }
            Step::Check { at, passed } => {
                if let Some(endpoint) = self.balancer.endpoints().get(at) {
                    self.balancer.record_check(endpoint.id(), passed, self.now);
                }
            }
            Step::Wait { nanos } => {
                self.now = self.now.saturating_add(nanos);
                self.balancer.tick(self.now);
                let window = self.config.slow_start.as_ref().map(|slow| slow.window);
                if window.is_some_and(|window| window < Duration::from_nanos(nanos)) {
                    self.situations.reached("slow start over");
                }
            }
        }
    }
}

fn live(
    strategy: Box<dyn strategy::Strategy>,
    config: &Config,
    steps: &[Step],
    situations: &Situations,
) {
    let is_valid = config.validate().is_ok();
    let balancer = match Balancer::boxed(strategy, config.clone()) {
        Ok(balancer) => balancer,
        Err(error) => {
            assert!(!is_valid && !error.rule.is_empty());
            situations.reached("refused configuration");
            return;
        }
    };
    assert!(is_valid);
    let mut life = Life { balancer: &balancer, config, situations, now: 0, held: Vec::new() };
    life.update(&[1, 2, 3, 1, 1, 1, 1]);
    if config.checks.is_some() {
        assert!(life.pick().is_none(), "nothing was checked");
        situations.reached("unchecked endpoint");
    }
    for step in steps {
        life.step(step.clone());
    }
    drop(life.held);
    let stats = balancer.stats(u64::MAX);
    assert!(stats.endpoints.iter().all(|endpoint| endpoint.in_flight == 0), "{stats:?}");
}

#[test]
fn a_balancer_that_validates_works_in_a_long_life() {
    let situations = Situations::new(&SITUATIONS);
    let cases = std::env::var("VOUSSOIR_LB_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let config = ProptestConfig { cases: cases.unwrap_or(1_500), ..config };
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let steps = prop::collection::vec(any_step(), 1..80);
    let inputs = (any_config(), steps, any_duration(), any_count(), any_f64(), 0..9_usize);
    let run = |(config, steps, half_life, choices, bound, at): (_, Vec<Step>, _, _, _, usize)| {
        let mut strategies = strategies(half_life, choices, bound);
        let strategy = strategies.swap_remove(at % strategies.len());
        live(strategy, &config, &steps, &situations);
        Ok(())
    };
    runner.run(&inputs, run).unwrap_or_else(|failure| panic!("{failure}"));
    situations.assert_all_reached();
}
