//! The task that probes the endpoints of a balancer.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, Id, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Probe, ProbeError};
use crate::balancer::Balancer;
use crate::clock::{Clock, Monotonic};
use crate::endpoint::Endpoint;
use crate::error::{ConfigError, is_local};

/// When a [`Checker`] probes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckerConfig {
    /// Time from the start of one probe of an endpoint to the next, 1 ms to 1 day; default 5 s.
    pub interval: Duration,
    /// Share of the interval by which each is shortened or prolonged at random, 0 to 1; default
    /// 0.1. It keeps the checkers of many processes from probing at once.
    pub jitter: f64,
    /// Time after which a probe counts as failed, 1 ms to 1 hour; default 2 s.
    pub timeout: Duration,
    /// Probes that run at a time, 1 to 65,535; default 64. The others wait for their turn.
    pub max_probes: usize,
    /// Seed of the jitter. `None` takes the thread's generator.
    pub seed: Option<u64>,
}

impl Default for CheckerConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            jitter: 0.1,
            timeout: Duration::from_secs(2),
            max_probes: 64,
            seed: None,
        }
    }
}

impl CheckerConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (ms, hour) = (Duration::from_millis(1), Duration::from_secs(3_600));
        let check = |holds: bool, field, rule| {
            if holds { Ok(()) } else { Err(ConfigError::new(field, rule)) }
        };
        let interval = (ms..=24 * hour).contains(&self.interval);
        check(interval, "interval", "must be between 1 ms and 1 day")?;
        check((0.0..=1.0).contains(&self.jitter), "jitter", "must be between 0 and 1")?;
        let timeout = (ms..=hour).contains(&self.timeout);
        check(timeout, "timeout", "must be between 1 ms and 1 hour")?;
        let probes = (1..=65_535).contains(&self.max_probes);
        check(probes, "max_probes", "must be between 1 and 65535")
    }
}

/// What a checker has done so far.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CheckerStats {
    /// Probes that passed.
    pub passed: u64,
    /// Probes that failed, those that timed out or panicked included. One that failed because this
    /// process has no descriptor, port or memory left is counted, and says nothing of its endpoint.
    pub failed: u64,
    /// Probes that took longer than `timeout`.
    pub timed_out: u64,
    /// Probes that panicked, and results whose recording did: the strategy compiles the set then.
    pub panicked: u64,
    /// The last probe that failed.
    pub last_failure: Option<LastFailure>,
}

/// A probe that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastFailure {
    /// Name of the endpoint.
    pub endpoint: String,
    /// Why it failed.
    pub reason: String,
}

#[derive(Debug, Default)]
struct Counters {
    passed: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    panicked: AtomicU64,
    last_failure: Mutex<Option<LastFailure>>,
}

/// Probes every endpoint of a balancer's set until it is dropped.
///
/// An endpoint that joins is probed at once, one that leaves is not probed any more. Each probe
/// runs in a task of its own, so that one that blocks or panics holds up no other.
///
/// # Example
/// ```
/// use voussoir_lb::probe::{Checker, CheckerConfig, HttpProbe};
/// use voussoir_lb::{Balancer, CheckConfig, Config, EndpointConfig, strategy::RoundRobin};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = Config::default();
/// config.checks = Some(CheckConfig::default());
/// let balancer = Balancer::new(RoundRobin::default(), config)?;
/// balancer.update(["10.0.0.1:80", "10.0.0.2:80"].map(EndpointConfig::new), 0)?;
/// let probe = HttpProbe::new("/healthz");
/// let _checker = Checker::start(balancer, probe, CheckerConfig::default())?;
/// # Ok(())
/// # }
/// ```
#[must_use = "the checks end when the checker is dropped"]
pub struct Checker {
    task: JoinHandle<()>,
    counters: Arc<Counters>,
}

impl Checker {
    /// Starts a task on the current runtime, over the clock [`Monotonic`].
    ///
    /// # Errors
    /// A configuration that cannot work, or a balancer without [`Config::checks`].
    ///
    /// [`Config::checks`]: crate::Config::checks
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        balancer: Balancer,
        probe: impl Probe + 'static,
        config: CheckerConfig,
    ) -> Result<Self, ConfigError> {
        Self::with_clock(balancer, Arc::new(probe), config, Arc::new(Monotonic))
    }

    /// Starts a task over a clock of the caller's: the one that the balancer is given `now` from.
    ///
    /// # Errors
    /// A configuration that cannot work, or a balancer without [`Config::checks`].
    ///
    /// [`Config::checks`]: crate::Config::checks
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn with_clock(
        balancer: Balancer,
        probe: Arc<dyn Probe>,
        config: CheckerConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        if balancer.config().checks.is_none() {
            return Err(ConfigError::new("checks", "must be set for a checker"));
        }
        let counters = Arc::new(Counters::default());
        let rng = config.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let run = Run {
            balancer,
            probe,
            config,
            clock,
            counters: Arc::clone(&counters),
            rng,
            schedules: HashMap::new(),
            tasks: JoinSet::new(),
            endpoints_by_task: HashMap::new(),
        };
        Ok(Self { task: tokio::spawn(run.run()), counters })
    }

    /// What has been done so far.
    pub fn stats(&self) -> CheckerStats {
        let counters = &self.counters;
        CheckerStats {
            passed: counters.passed.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            timed_out: counters.timed_out.load(Relaxed),
            panicked: counters.panicked.load(Relaxed),
            last_failure: counters.last_failure.lock().clone(),
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// An endpoint and its next probe.
struct Schedule {
    endpoint: Arc<Endpoint>,
    /// When the next probe is due. While one runs: when it began.
    at: Instant,
    running: Option<AbortHandle>,
}

struct Run {
    balancer: Balancer,
    probe: Arc<dyn Probe>,
    config: CheckerConfig,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    rng: fastrand::Rng,
    /// By the ids of the endpoints.
    schedules: HashMap<u64, Schedule>,
    tasks: JoinSet<Result<(), Failure>>,
    endpoints_by_task: HashMap<Id, Arc<Endpoint>>,
}

enum Failure {
    TimedOut,
    Failed(ProbeError),
}

impl Run {
    async fn run(mut self) {
        let mut updates = self.balancer.updates();
        self.refresh();
        // Ends: the checker's drop aborts the task.
        loop {
            let next = self.launch();
            let is_idle = next.is_none();
            let wake = pin!(sleep_until(next.unwrap_or_else(Instant::now)));
            tokio::select! {
                Some(done) = self.tasks.join_next_with_id() => self.complete(done),
                changed = updates.changed() => {
                    // The balancer that this task holds keeps the sender.
                    if changed.is_ok() {
                        self.refresh();
                    }
                }
                () = wake, if !is_idle => (),
            }
        }
    }

    /// Takes over the set: probes those that joined at once, stops probing those that left.
    fn refresh(&mut self) {
        let mut old = std::mem::take(&mut self.schedules);
        for endpoint in self.balancer.endpoints() {
            let id = endpoint.id();
            let new = || Schedule { endpoint, at: Instant::now(), running: None };
            self.schedules.insert(id, old.remove(&id).unwrap_or_else(new));
        }
        for running in old.into_values().filter_map(|schedule| schedule.running) {
            running.abort();
        }
    }

    /// Starts the probes that are due, those that wait longest first. Returns when the next one is
    /// due; `None` while that depends on one that runs.
    fn launch(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let waiting = self.schedules.values_mut().filter(|schedule| schedule.running.is_none());
        let mut waiting: Vec<&mut Schedule> = waiting.collect();
        waiting.sort_unstable_by_key(|schedule| (schedule.at, schedule.endpoint.id()));
        for schedule in waiting {
            if self.tasks.len() >= self.config.max_probes {
                return None;
            }
            if schedule.at > now {
                return Some(schedule.at);
            }
            let endpoint = Arc::clone(&schedule.endpoint);
            let (probe, limit) = (Arc::clone(&self.probe), self.config.timeout);
            let probed = Arc::clone(&endpoint);
            let task = self.tasks.spawn(async move {
                match timeout(limit, probe.probe(&probed)).await {
                    Ok(answer) => answer.map_err(Failure::Failed),
                    Err(_) => Err(Failure::TimedOut),
                }
            });
            self.endpoints_by_task.insert(task.id(), endpoint);
            schedule.at = now;
            schedule.running = Some(task);
        }
        None
    }

    fn complete(&mut self, done: Result<(Id, Result<(), Failure>), JoinError>) {
        let is_failed_here = matches!(
            &done,
            Ok((_, Err(Failure::Failed(ProbeError::Io(error))))) if is_local(error)
        );
        let (task, reason) = match done {
            Ok((task, Ok(()))) => (task, None),
            Ok((task, Err(Failure::Failed(error)))) => (task, Some(error.to_string())),
            Ok((task, Err(Failure::TimedOut))) => {
                self.counters.timed_out.fetch_add(1, Relaxed);
                (task, Some(format!("no answer within {:?}", self.config.timeout)))
            }
            // The endpoint has left.
            Err(error) if error.is_cancelled() => {
                self.endpoints_by_task.remove(&error.id());
                return;
            }
            Err(error) => {
                self.counters.panicked.fetch_add(1, Relaxed);
                (error.id(), Some("the probe panicked".to_owned()))
            }
        };
        let Some(endpoint) = self.endpoints_by_task.remove(&task) else { return };
        let passed = reason.is_none();
        let counter = if passed { &self.counters.passed } else { &self.counters.failed };
        counter.fetch_add(1, Relaxed);
        if let Some(reason) = reason {
            let endpoint = endpoint.name().to_owned();
            *self.counters.last_failure.lock() = Some(LastFailure { endpoint, reason });
        }
        if let Some(schedule) = self.schedules.get_mut(&endpoint.id()) {
            let change = 1.0 + self.config.jitter * (2.0 * self.rng.f64() - 1.0);
            schedule.at += self.config.interval.mul_f64(change);
            schedule.running = None;
        }
        if is_failed_here {
            return;
        }
        let record = || self.balancer.record_check(endpoint.id(), passed, self.clock.now());
        if catch_unwind(AssertUnwindSafe(record)).is_err() {
            // Of the strategy or the clock. The next result compiles the set again.
            self.counters.panicked.fetch_add(1, Relaxed);
        }
    }
}
