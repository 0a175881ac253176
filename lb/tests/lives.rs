//! Long random lives of one balancer: sets, checks, outlier detection, priorities, zones, slow
//! start, limits and draining together, under every strategy, against invariants.
//!
//! `VOUSSOIR_LB_LIVES` sets the number of lives (default 400).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use voussoir_lb::strategy::*;
use voussoir_lb::*;
use voussoir_sim::Situations;

const MS: u64 = 1_000_000;
const STEPS: usize = 400;

static SITUATIONS: [&str; 18] = [
    "a drained endpoint was in a later set",
    "an endpoint left with requests in flight",
    "a name returned as another endpoint",
    "an endpoint was full",
    "everything was full",
    "an excluded endpoint was skipped",
    "a session went to its endpoint",
    "a session went to a draining endpoint",
    "an unhealthy endpoint was used in a panic",
    "a panic rejected",
    "an endpoint was ejected",
    "an ejection was refused",
    "an ejection ended",
    "a lower priority took traffic",
    "another zone took traffic",
    "an unchecked endpoint waited",
    "a request outlived three sets",
    "an endpoint that left served in place of its set",
];

/// What the test knows about a check's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Unknown,
    Healthy(u32),
    Unhealthy(u32),
}

struct Flying {
    pick: Pick,
    sets: u32,
}

struct Life<'a> {
    situations: &'a Situations,
    rng: fastrand::Rng,
    balancer: Balancer,
    now: u64,
    set: Vec<EndpointConfig>,
    /// Drained by hand, by id.
    drained: BTreeSet<u64>,
    /// By id; endpoints that left and serve no more are removed.
    checks: BTreeMap<u64, Check>,
    flying: Vec<Flying>,
    /// Every id and its name, also of endpoints that left.
    ids: BTreeMap<u64, String>,
}

fn strategy(at: u64) -> Box<dyn Strategy> {
    match at % 9 {
        0 => Box::new(RoundRobin::default()),
        1 => Box::new(RoundRobin::from_random_start()),
        2 => Box::new(RandomChoice::default()),
        3 => Box::new(PowerOfTwo::default()),
        4 => Box::new(PeakEwma::new(Duration::from_millis(50))),
        5 => Box::new(LeastConnections::default()),
        6 => Box::new(LeastRequest::sampled(3)),
        7 => Box::new(PeakEwma::new(Duration::from_millis(50)).with_choices(0)),
        _ => Box::new(KeyHash::default()),
    }
}

fn config(rng: &mut fastrand::Rng) -> Config {
    let mut config = Config::default();
    config.seed = Some(rng.u64(..));
    config.max_in_flight = rng.bool().then(|| rng.u32(1..=4));
    config.failure_half_life = Duration::from_millis(rng.u64(1..=500));
    if rng.bool() {
        let mut checks = CheckConfig::default();
        (checks.rise, checks.fall) = (rng.u32(1..=3), rng.u32(1..=3));
        config.checks = Some(checks);
    }
    if rng.bool() {
        let mut outliers = OutlierConfig::default();
        outliers.consecutive_failures = Some(rng.u32(1..=4));
        outliers.interval = Duration::from_millis(rng.u64(10..=200));
        outliers.base_ejection = Duration::from_millis(rng.u64(1..=100));
        outliers.max_ejection = Duration::from_millis(300);
        outliers.max_ejected_share = rng.f64();
        let mut rate = SuccessRateOutliers::default();
        (rate.min_endpoints, rate.min_requests) = (2, rng.u32(1..=5));
        outliers.success_rate = rng.bool().then_some(rate);
        let mut latency = LatencyOutliers::default();
        (latency.min_endpoints, latency.min_requests) = (2, 2);
        outliers.latency = rng.bool().then_some(latency);
        config.outliers = Some(outliers);
    }
    if rng.bool() {
        let mut slow = SlowStartConfig::default();
        slow.window = Duration::from_millis(rng.u64(20..=400));
        config.slow_start = Some(slow);
    }
    config.zone = rng.bool().then(|| ZoneConfig::new("z0"));
    config.priorities.panic_threshold = rng.f64();
    config.priorities.overprovisioning = 1.0 + rng.f64();
    config.priorities.on_panic = if rng.bool() { OnPanic::UseAll } else { OnPanic::Reject };
    config
}

fn random_set(rng: &mut fastrand::Rng) -> Vec<EndpointConfig> {
    let mut set = Vec::new();
    for at in 0..8 {
        if rng.u8(..3) == 0 {
            continue;
        }
        let weight = *rng.choice(&[1, 1, 2, 5, 65_535]).expect("not empty");
        let mut endpoint = EndpointConfig::new(format!("e{at}"))
            .with_weight(weight)
            .with_priority(rng.u8(..3) / 2)
            .with_zone(if rng.bool() { "z0" } else { "z1" });
        endpoint.draining = rng.u8(..8) == 0;
        set.push(endpoint);
    }
    if set.is_empty() { vec![EndpointConfig::new("e0")] } else { set }
}

impl Life<'_> {
    fn endpoints(&self) -> Vec<(std::sync::Arc<Endpoint>, EndpointConfig)> {
        let endpoints = self.balancer.endpoints().into_iter().zip(self.set.iter().cloned());
        let drained = endpoints.map(|(endpoint, mut config)| {
            config.draining |= self.drained.contains(&endpoint.id());
            (endpoint, config)
        });
        drained.collect()
    }

    fn update(&mut self) {
        let set = random_set(&mut self.rng);
        self.balancer.update(set.iter().cloned(), self.now).expect("a valid set");
        self.set = set;
        let mut ids = BTreeSet::new();
        for (endpoint, config) in self.endpoints() {
            assert_eq!(endpoint.name(), config.name, "the order of the set");
            ids.insert(endpoint.id());
            let is_new = self.ids.insert(endpoint.id(), config.name.clone()).is_none();
            let namesakes = self.ids.values().filter(|name| **name == config.name).count();
            if is_new && namesakes > 1 {
                self.situations.reached("a name returned as another endpoint");
            }
            assert!(!is_new || endpoint.in_flight() == 0, "a new endpoint begins with nothing");
            self.checks.entry(endpoint.id()).or_insert(Check::Unknown);
        }
        // With those that left and serve in place of the set.
        let listed: BTreeSet<u64> =
            self.balancer.endpoints().iter().map(|endpoint| endpoint.id()).collect();
        self.checks.retain(|id, _| listed.contains(id));
        self.drained.retain(|id| ids.contains(id));
        self.situations.add("a drained endpoint was in a later set", self.drained.len() as u64);
        for flying in &mut self.flying {
            flying.sets += 1;
            if !ids.contains(&flying.pick.endpoint().id()) {
                self.situations.reached("an endpoint left with requests in flight");
            }
        }
    }

    fn check(&mut self) {
        let Some(id) = self.rng.choice(self.checks.keys().copied().collect::<Vec<_>>()) else {
            return;
        };
        let passed = self.rng.u8(..3) > 0;
        self.balancer.record_check(id, passed, self.now);
        let Some(config) = &self.balancer.config().checks else { return };
        let next = match (self.checks[&id], passed) {
            (Check::Unknown | Check::Healthy(_), true) => Check::Healthy(0),
            (Check::Unknown | Check::Unhealthy(_), false) => Check::Unhealthy(0),
            (Check::Healthy(failed), false) if failed + 1 >= config.fall => Check::Unhealthy(0),
            (Check::Healthy(failed), false) => Check::Healthy(failed + 1),
            (Check::Unhealthy(passed), true) if passed + 1 >= config.rise => Check::Healthy(0),
            (Check::Unhealthy(passed), true) => Check::Unhealthy(passed + 1),
        };
        self.checks.insert(id, next);
    }

    fn is_known(&self, id: u64) -> bool {
        self.balancer.config().checks.is_none() || self.checks[&id] != Check::Unknown
    }

    /// What checks and ejections say together must be what the balancer tells.
    fn compare_health(&self) -> BTreeMap<u64, bool> {
        let stats = self.balancer.stats(self.now);
        let mut healthy = BTreeMap::new();
        let (mut could_serve, mut serve) = (0, 0);
        for ((endpoint, config), stats) in self.endpoints().into_iter().zip(stats.endpoints) {
            let check = self.balancer.config().checks.is_none()
                || matches!(self.checks[&endpoint.id()], Check::Healthy(_));
            assert_eq!(stats.healthy, check && stats.ejected_for.is_none(), "{stats:?}");
            assert_eq!((stats.name, stats.draining), (config.name, config.draining));
            could_serve += u32::from(check && !stats.draining);
            serve += u32::from(stats.healthy && !stats.draining);
            healthy.insert(endpoint.id(), stats.healthy);
        }
        assert!(serve > 0 || could_serve == 0, "all that pass their checks are ejected");
        healthy
    }

    fn pick(&mut self) {
        // Ejections that are due end first; the pick would do so as well.
        self.balancer.tick(self.now);
        let healthy = self.compare_health();
        let endpoints = self.endpoints();
        let is_excluded = self.rng.u8(..4) == 0;
        let any = self.rng.choice(&endpoints).expect("a set is never empty").0.clone();
        let excluded: Vec<u64> = is_excluded.then(|| any.id()).into_iter().collect();
        let key = self.rng.u64(..).to_le_bytes();
        let session = (self.rng.u8(..4) == 0).then(|| any.session().to_owned());
        let mut ctx = Context::new().with_key(&key).with_excluded(&excluded);
        if let Some(session) = &session {
            ctx = ctx.with_session(session);
        }
        let max = self.balancer.config().max_in_flight.unwrap_or(u32::MAX);
        let is_free = |endpoint: &Endpoint| endpoint.in_flight() < max;
        let (had_room, was_healthy) = (is_free(&any), healthy[&any.id()]);
        let usable = endpoints.iter().filter(|(endpoint, config)| {
            healthy[&endpoint.id()] && !config.draining && !excluded.contains(&endpoint.id())
        });
        let usable: Vec<_> = usable.collect();
        let free = usable.iter().filter(|(endpoint, _)| is_free(endpoint)).count();
        let pick = self.balancer.pick(&ctx, self.now);
        self.situations.add("an endpoint was full", u64::from(free < usable.len()));
        let waits = endpoints.iter().any(|(endpoint, _)| !self.is_known(endpoint.id()));
        self.situations.add("an unchecked endpoint waited", u64::from(waits));
        let on_panic = self.balancer.config().priorities.on_panic;
        let Some(pick) = pick else {
            if free > 0 {
                assert_eq!(on_panic, OnPanic::Reject, "{free} of {usable:?} have room");
                self.situations.reached("a panic rejected");
            } else if !usable.is_empty() {
                self.situations.reached("everything was full");
            }
            return;
        };
        let id = pick.endpoint().id();
        let found = endpoints.iter().find(|(endpoint, _)| endpoint.id() == id);
        assert!(!excluded.contains(&id), "an excluded endpoint was picked");
        let Some((endpoint, config)) = found else {
            let is_usable = |(at, config): &(std::sync::Arc<Endpoint>, EndpointConfig)| {
                healthy[&at.id()] && !config.draining
            };
            assert!(self.balancer.config().checks.is_some(), "it left the set");
            assert!(!endpoints.iter().any(is_usable), "it left a set that may serve");
            assert!(matches!(self.checks[&id], Check::Healthy(_)), "its checks fail");
            assert!(pick.endpoint().in_flight() <= max, "above the limit");
            self.situations.reached("an endpoint that left served in place of its set");
            self.flying.push(Flying { pick, sets: 0 });
            return;
        };
        assert!(endpoint.in_flight() <= max, "above the limit");
        assert!(self.is_known(id), "an endpoint that was never checked was picked");
        self.situations.add("an excluded endpoint was skipped", u64::from(is_excluded));
        if session.is_some() && !is_excluded && was_healthy && had_room {
            assert_eq!(id, any.id(), "a session goes to its healthy endpoint");
            self.situations.reached("a session went to its endpoint");
            let draining = u64::from(config.draining);
            self.situations.add("a session went to a draining endpoint", draining);
        } else {
            assert!(!config.draining, "a draining endpoint was picked");
            self.situations.add("a lower priority took traffic", u64::from(config.priority > 0));
            let is_remote =
                self.balancer.config().zone.is_some() && config.zone.as_deref() == Some("z1");
            self.situations.add("another zone took traffic", u64::from(is_remote));
        }
        if !healthy[&id] {
            assert_eq!(on_panic, OnPanic::UseAll, "an unhealthy endpoint was picked");
            self.assert_panics(config.priority, &endpoints, &healthy);
            self.situations.reached("an unhealthy endpoint was used in a panic");
        }
        self.flying.push(Flying { pick, sets: 0 });
    }

    /// Only a priority whose healthy share is below the threshold uses unhealthy endpoints, or one
    /// while nothing is healthy at all.
    fn assert_panics(
        &self,
        priority: u8,
        endpoints: &[(std::sync::Arc<Endpoint>, EndpointConfig)],
        healthy: &BTreeMap<u64, bool>,
    ) {
        let of =
            endpoints.iter().filter(|(_, config)| config.priority == priority && !config.draining);
        let sum = |only_healthy: bool| -> u64 {
            let counted = of.clone().filter(|(at, _)| !only_healthy || healthy[&at.id()]);
            counted.map(|(_, config)| u64::from(config.weight)).sum()
        };
        let share = sum(true) as f64 / sum(false) as f64;
        let nothing = endpoints.iter().all(|(at, config)| config.draining || !healthy[&at.id()]);
        let threshold = self.balancer.config().priorities.panic_threshold;
        assert!(nothing || share < threshold + 1e-9, "{share} healthy, {threshold} is a panic");
    }

    fn finish(&mut self) {
        if self.flying.is_empty() {
            return;
        }
        let at = self.rng.usize(..self.flying.len());
        let Flying { pick, sets } = self.flying.swap_remove(at);
        self.situations.add("a request outlived three sets", u64::from(sets >= 3));
        let before = self.balancer.stats(self.now);
        let refused = self.balancer.availability().borrow().refused_ejections;
        match self.rng.u8(..8) {
            0 => drop(pick),
            1..4 => pick.finish(self.now, Outcome::Failure),
            _ => pick.finish(self.now, Outcome::Success),
        }
        let after = self.balancer.stats(self.now);
        let is_refused = self.balancer.availability().borrow().refused_ejections > refused;
        self.situations.add("an ejection was refused", u64::from(is_refused));
        if after.ejections > before.ejections {
            self.situations.reached("an endpoint was ejected");
            let counted = after.endpoints.iter().filter(|endpoint| !endpoint.draining);
            let total = counted.clone().count();
            let out = counted.filter(|endpoint| endpoint.ejected_for.is_some()).count();
            let share = self.balancer.config().outliers.as_ref().expect("on").max_ejected_share;
            assert!(out < total, "one always stays: {after:?}");
            assert!(out as f64 <= share * total as f64 + 1e-6, "{out} of {total}, {share} may");
        }
    }

    fn advance(&mut self) {
        self.now += self.rng.u64(..20 * MS);
        let ejected = |stats: &BalancerStats| {
            stats.endpoints.iter().filter(|endpoint| endpoint.ejected_for.is_some()).count()
        };
        let before = ejected(&self.balancer.stats(self.now));
        self.balancer.tick(self.now);
        let after = ejected(&self.balancer.stats(self.now));
        self.situations.add("an ejection ended", u64::from(after < before));
    }

    /// Counts of each endpoint equal the leases that the test holds.
    fn count(&self) {
        for (endpoint, _) in self.endpoints() {
            let held = self.flying.iter().filter(|held| held.pick.endpoint().id() == endpoint.id());
            assert_eq!(endpoint.in_flight() as usize, held.count(), "{endpoint:?}");
        }
    }
}

fn live(seed: u64, situations: &Situations) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let balancer =
        Balancer::boxed(strategy(seed), config(&mut rng)).expect("a valid configuration");
    let mut life = Life {
        situations,
        rng,
        balancer,
        now: 1,
        set: Vec::new(),
        checks: BTreeMap::new(),
        drained: BTreeSet::new(),
        flying: Vec::new(),
        ids: BTreeMap::new(),
    };
    life.update();
    for _ in 0..STEPS {
        match life.rng.u8(..40) {
            0 => life.update(),
            1..6 => life.check(),
            6..9 => life.advance(),
            9 => {
                let at = life.rng.usize(..life.set.len());
                let draining = life.rng.bool();
                let name = life.set[at].name.clone();
                assert!(life.balancer.set_draining(&name, draining, life.now));
                let id = life.balancer.endpoints()[at].id();
                if draining {
                    life.drained.insert(id);
                } else {
                    life.drained.remove(&id);
                }
            }
            10..26 => life.pick(),
            _ => life.finish(),
        }
        life.count();
    }
    life.flying.clear();
    life.count();
}

#[test]
fn long_random_lives_keep_every_invariant() {
    let lives = std::env::var("VOUSSOIR_LB_LIVES").ok().map(|lives| lives.parse());
    let lives: u64 = lives.unwrap_or(Ok(400)).expect("a number of lives");
    let situations = Situations::new(&SITUATIONS);
    for seed in 0..lives {
        let life = std::panic::AssertUnwindSafe(|| live(seed, &situations));
        if let Err(panic) = std::panic::catch_unwind(life) {
            eprintln!("seed {seed}; VOUSSOIR_LB_LIVES={} reaches it", seed + 1);
            std::panic::resume_unwind(panic);
        }
    }
    println!("{situations}");
    situations.assert_all_reached();
}
