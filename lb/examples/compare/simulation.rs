//! A deterministic simulation in virtual time: requests, backends, and a balancer between them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use voussoir_lb::strategy::*;
use voussoir_lb::{Balancer, Config, Context, EndpointConfig, Outcome, Pick};

pub(crate) const MS: u64 = 1_000_000;

/// How a backend serves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend {
    /// A request takes from `fastest` to `slowest` ns, all equally likely.
    pub(crate) fastest: u64,
    pub(crate) slowest: u64,
    /// Requests that it serves at a time; the others queue.
    pub(crate) workers: usize,
    pub(crate) outcome: Outcome,
}

/// When requests come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arrivals {
    /// At this many a second on average, whatever the answers: an open loop.
    PerSecond(u64),
    /// From this many clients, each of which waits for its answer: a closed loop.
    Clients(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) backends: Vec<Backend>,
    pub(crate) arrivals: Arrivals,
    pub(crate) requests: usize,
}

/// What the clients saw.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) strategy: &'static str,
    /// Sorted latencies of the requests that succeeded, in ns.
    pub(crate) latencies: Vec<u64>,
    /// Requests by backend.
    pub(crate) picks: Vec<u64>,
}

impl Report {
    /// The latency in ms that `per_mille` of 1,000 requests do not exceed.
    pub(crate) fn quantile(&self, per_mille: usize) -> f64 {
        let at = (self.latencies.len() * per_mille).div_ceil(1_000).max(1) - 1;
        self.latencies[at] as f64 / MS as f64
    }

    /// Requests to the backend as a multiple of its fair share.
    pub(crate) fn share(&self, backend: usize) -> f64 {
        let total: u64 = self.picks.iter().sum();
        self.picks[backend] as f64 * self.picks.len() as f64 / total as f64
    }
}

pub(crate) type Make = fn() -> Box<dyn Strategy>;

/// The strategies that choose by load, by latency, or by neither.
pub(crate) const STRATEGIES: [(&str, Make); 8] = [
    ("round robin", || Box::new(RoundRobin::default())),
    ("random", || Box::new(RandomChoice::default())),
    ("least connections", || Box::new(LeastConnections::default())),
    ("least request", || Box::new(LeastRequest::default())),
    ("least request of 3", || Box::new(LeastRequest::sampled(3))),
    ("power of two", || Box::new(PowerOfTwo::default())),
    ("peak EWMA", || Box::new(PeakEwma::default())),
    ("peak EWMA of all", || Box::new(PeakEwma::default().with_choices(0))),
];

/// Ten backends that take 5 to 15 ms, but the last but one takes ten times as long, and the last
/// fails at once.
pub(crate) fn one_slow_one_failing() -> Scenario {
    let backend = |factor| Backend {
        fastest: 5 * MS * factor,
        slowest: 15 * MS * factor,
        workers: 32,
        outcome: Outcome::Success,
    };
    let failing = Backend { fastest: 0, slowest: 0, workers: 32, outcome: Outcome::Failure };
    let mut backends = vec![backend(1); 8];
    backends.extend([backend(10), failing]);
    Scenario {
        name: "8 good, 1 slow (10x), 1 failing at once; 2,000 requests a second",
        backends,
        arrivals: Arrivals::PerSecond(2_000),
        requests: 100_000,
    }
}

/// The demonstration of tower's pull request 76: ten endpoints of up to 1 ms to 1 s.
pub(crate) fn from_1_ms_to_1_s() -> Scenario {
    let backend = |slowest| Backend {
        fastest: 0,
        slowest: slowest * MS,
        workers: 500,
        outcome: Outcome::Success,
    };
    Scenario {
        name: "10 endpoints of up to 1 ms to 1 s (tower #76); 500 clients",
        backends: [1, 5, 10, 10, 10, 100, 100, 100, 500, 1_000].map(backend).to_vec(),
        arrivals: Arrivals::Clients(500),
        requests: 100_000,
    }
}

struct Running {
    pick: Pick,
    started: u64,
    backend: usize,
}

struct World {
    balancer: Balancer,
    rng: fastrand::Rng,
    /// For each backend, when its workers are free.
    free: Vec<BinaryHeap<Reverse<u64>>>,
    /// Ends of the requests that run, and their places in `running`.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    running: Vec<Option<Running>>,
    report: Report,
}

impl World {
    fn begin(&mut self, scenario: &Scenario, now: u64) {
        let pick = self.balancer.pick(&Context::new(), now).expect("no endpoint is excluded");
        let at: usize = pick.endpoint().name().parse().expect("names are numbers");
        let backend = scenario.backends[at];
        let takes = self.rng.u64(backend.fastest..=backend.slowest);
        let Reverse(free) = self.free[at].pop().expect("there are workers");
        let end = now.max(free) + takes;
        self.free[at].push(Reverse(end));
        self.report.picks[at] += 1;
        self.ends.push(Reverse((end, self.running.len())));
        self.running.push(Some(Running { pick, started: now, backend: at }));
    }

    /// Ends the request that ends first. Returns when it did.
    fn end(&mut self, scenario: &Scenario) -> Option<u64> {
        let Reverse((end, at)) = self.ends.pop()?;
        let request = self.running[at].take().expect("each ends once");
        let outcome = scenario.backends[request.backend].outcome;
        if outcome == Outcome::Success {
            self.report.latencies.push(end - request.started);
        }
        request.pick.finish(end, outcome);
        Some(end)
    }
}

/// Runs the scenario under one strategy. The same seed gives the same report.
pub(crate) fn run(scenario: &Scenario, (name, make): (&'static str, Make), seed: u64) -> Report {
    let mut config = Config::default();
    config.seed = Some(seed);
    let balancer = Balancer::boxed(make(), config).expect("the defaults are valid");
    let names = (0..scenario.backends.len()).map(|at| EndpointConfig::new(at.to_string()));
    balancer.update(names, 0).expect("the names differ");
    let workers = |backend: &Backend| vec![Reverse(0); backend.workers].into();
    let report = Report {
        strategy: name,
        latencies: Vec::with_capacity(scenario.requests),
        picks: vec![0; scenario.backends.len()],
    };
    let mut world = World {
        balancer,
        rng: fastrand::Rng::with_seed(seed),
        free: scenario.backends.iter().map(workers).collect(),
        ends: BinaryHeap::new(),
        running: Vec::with_capacity(scenario.requests),
        report,
    };
    match scenario.arrivals {
        Arrivals::PerSecond(rate) => {
            let mut now = 0;
            for _ in 0..scenario.requests {
                now += world.rng.u64(0..=2 * 1_000 * MS / rate);
                while world.ends.peek().is_some_and(|Reverse((end, _))| *end <= now) {
                    world.end(scenario);
                }
                world.begin(scenario, now);
            }
        }
        Arrivals::Clients(clients) => {
            (0..clients).for_each(|_| world.begin(scenario, 0));
            for _ in clients..scenario.requests {
                let now = world.end(scenario).expect("each client waits for one");
                world.begin(scenario, now);
            }
        }
    }
    // Ends: nothing begins any more.
    while world.end(scenario).is_some() {}
    world.report.latencies.sort_unstable();
    world.report
}
