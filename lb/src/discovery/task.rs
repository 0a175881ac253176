//! The task that asks a source and updates a balancer.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::{DiscoveryError, Resolved, Source};
use crate::balancer::{Availability, Balancer};
use crate::clock::{Clock, Monotonic};
use crate::config::EndpointConfig;
use crate::error::ConfigError;

/// When a [`Discovery`] asks its source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiscoveryConfig {
    /// Time after which the source is asked again though its answer has no TTL or a longer one,
    /// `min_interval` to 1 day; default 30 s.
    pub interval: Duration,
    /// The shortest time between two questions, also when a TTL is shorter and when all endpoints
    /// fail, and the first wait after an error, which doubles up to `interval`. 1 ms to 1 hour;
    /// default 1 s.
    pub min_interval: Duration,
    /// Time after which a question counts as failed, 1 ms to 1 hour; default 10 s.
    pub timeout: Duration,
    /// Share by which each wait is shortened or prolonged at random, 0 to 1; default 0.1. A wait
    /// is never shortened below `min_interval`.
    pub jitter: f64,
    /// Seed of the jitter. `None` takes one from the system.
    pub seed: Option<u64>,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            min_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            jitter: 0.1,
            seed: None,
        }
    }
}

impl DiscoveryConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (ms, hour) = (Duration::from_millis(1), Duration::from_secs(3_600));
        let check = |holds: bool, field, rule| {
            if holds { Ok(()) } else { Err(ConfigError::new(field, rule)) }
        };
        let min = (ms..=hour).contains(&self.min_interval);
        check(min, "min_interval", "must be between 1 ms and 1 hour")?;
        let interval = (self.min_interval..=24 * hour).contains(&self.interval);
        check(interval, "interval", "must be between `min_interval` and 1 day")?;
        let timeout = (ms..=hour).contains(&self.timeout);
        check(timeout, "timeout", "must be between 1 ms and 1 hour")?;
        check((0.0..=1.0).contains(&self.jitter), "jitter", "must be between 0 and 1")
    }
}

/// What a discovery has done so far.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DiscoveryStats {
    /// Answers with a set that can be used, whether it changed or not.
    pub resolved: u64,
    /// Sets that differed from the one before and went to the balancer.
    pub updates: u64,
    /// Questions that failed or timed out.
    pub failed: u64,
    /// Answers without an endpoint.
    pub empty: u64,
    /// Answers that the balancer did not accept.
    pub rejected: u64,
    /// Questions asked because all endpoints failed.
    pub forced: u64,
    /// Time since the last answer that could be used. `None` before the first. Alarm on it: a
    /// source that fell silent or fails shows nowhere else while its last set works.
    pub age: Option<Duration>,
    /// The last failure.
    pub last_error: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Its `age` is always `None`.
    stats: DiscoveryStats,
    last_success: Option<Instant>,
}

/// Keeps the set of a balancer up to date, in a task of its own, until it is dropped.
///
/// # Example
/// ```no_run
/// use voussoir_lb::discovery::{Discovery, DiscoveryConfig, DnsSource};
/// use voussoir_lb::{Balancer, Config, strategy::RoundRobin};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let balancer = Balancer::new(RoundRobin::default(), Config::default())?;
/// let source = DnsSource::new("backend.internal", 8080)?;
/// let discovery = Discovery::start(balancer.clone(), source, DiscoveryConfig::default())?;
/// println!("the set is {:?} old", discovery.stats().age);
/// # Ok(())
/// # }
/// ```
#[must_use = "the balancer keeps its last set when the discovery is dropped"]
pub struct Discovery {
    task: JoinHandle<()>,
    shared: Arc<Mutex<Shared>>,
}

impl Discovery {
    /// Starts a task on the current runtime, over the clock [`Monotonic`].
    ///
    /// # Errors
    /// A configuration that cannot work.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        balancer: Balancer,
        source: impl Source + 'static,
        config: DiscoveryConfig,
    ) -> Result<Self, ConfigError> {
        Self::with_clock(balancer, Arc::new(source), config, Arc::new(Monotonic))
    }

    /// Starts a task over a clock of the caller's: the one that the balancer is given `now` from.
    ///
    /// # Errors
    /// A configuration that cannot work.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn with_clock(
        balancer: Balancer,
        source: Arc<dyn Source>,
        config: DiscoveryConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let run = Run {
            balancer,
            clock,
            shared: Arc::clone(&shared),
            rng: config.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            wait: config.min_interval,
            stale_wait: config.min_interval,
            config,
            last_set: Vec::new(),
        };
        Ok(Self { task: tokio::spawn(run.run(source)), shared })
    }

    /// What has been done so far.
    pub fn stats(&self) -> DiscoveryStats {
        let shared = self.shared.lock();
        let age = shared.last_success.map(|at| at.elapsed());
        DiscoveryStats { age, ..shared.stats.clone() }
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

struct Run {
    balancer: Balancer,
    clock: Arc<dyn Clock>,
    shared: Arc<Mutex<Shared>>,
    rng: fastrand::Rng,
    config: DiscoveryConfig,
    /// The wait after the next failure.
    wait: Duration,
    /// The wait after the next answer while nothing is healthy.
    stale_wait: Duration,
    last_set: Vec<EndpointConfig>,
}

/// Whether the set has failed since `before`: nothing is healthy any more, or an endpoint failed so
/// often that only the limit on ejections keeps it in use.
fn has_failed(before: Availability, after: Availability) -> bool {
    let fell = after.healthy == 0 && before.healthy > 0;
    fell || after.refused_ejections > before.refused_ejections
}

/// Turns a panic of a source into a failed answer: the set goes on to be asked for.
async fn guarded<T>(foreign: impl Future<Output = T>) -> Result<T, DiscoveryError> {
    let mut foreign = pin!(foreign);
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| foreign.as_mut().poll(cx)));
        let reason = || DiscoveryError::Failed { reason: "the source panicked".to_owned() };
        polled.map_or_else(|_| Poll::Ready(Err(reason())), |polled| polled.map(Ok))
    })
    .await
}

impl Run {
    async fn run(mut self, source: Arc<dyn Source>) {
        let mut availability = self.balancer.availability();
        // Ends: the discovery's drop aborts the task.
        loop {
            let asked = Instant::now();
            let answer = timeout(self.config.timeout, guarded(source.resolve())).await;
            let seconds = self.config.timeout.as_secs_f64();
            let timed_out =
                || DiscoveryError::Failed { reason: format!("no answer within {seconds} s") };
            let answer = answer.unwrap_or_else(|_| Ok(Err(timed_out()))).unwrap_or_else(Err);
            let wait = self.apply(answer);
            let mut due = Instant::now() + wait;
            let mut before = *availability.borrow_and_update();
            let mut stale_due = self.stale_due(asked, before);
            let mut has_panicked = false;
            // Ends: when the source is to be asked again.
            loop {
                tokio::select! {
                    () = sleep_until(stale_due.map_or(due, |stale| stale.min(due))) => break,
                    sent = guarded(source.changed()), if !has_panicked => {
                        // Asked again, it would panic again at once.
                        has_panicked = sent.is_err();
                        due = Instant::now() + self.apply(sent.unwrap_or_else(Err));
                        before = *availability.borrow_and_update();
                    }
                    changed = availability.changed() => {
                        let after = *availability.borrow_and_update();
                        if changed.is_ok() && has_failed(before, after) {
                            self.shared.lock().stats.forced += 1;
                            sleep_until(asked + self.config.min_interval).await;
                            break;
                        }
                        if after.healthy > 0 {
                            stale_due = self.stale_due(asked, after);
                        }
                        before = after;
                    }
                }
            }
        }
    }

    /// Gives an answer to the balancer. Returns the time until the source is asked again.
    fn apply(&mut self, answer: Result<Resolved, DiscoveryError>) -> Duration {
        let failure = match answer {
            Ok(resolved) if resolved.endpoints.is_empty() => {
                self.shared.lock().stats.empty += 1;
                "the answer has no endpoint".to_owned()
            }
            Ok(resolved) => match self.update(resolved.endpoints) {
                Ok(()) => {
                    self.wait = self.config.min_interval;
                    let ttl = resolved.ttl.unwrap_or(Duration::MAX);
                    return self.jittered(ttl.min(self.config.interval));
                }
                Err(reason) => {
                    self.shared.lock().stats.rejected += 1;
                    reason
                }
            },
            Err(error) => {
                self.shared.lock().stats.failed += 1;
                error.to_string()
            }
        };
        self.shared.lock().stats.last_error = Some(failure);
        let wait = self.wait;
        self.wait = self.doubled(wait);
        self.jittered(wait)
    }

    fn doubled(&self, wait: Duration) -> Duration {
        (2 * wait).min(self.config.interval)
    }

    /// When the source is asked again because nothing is healthy; `None` while something is.
    fn stale_due(&mut self, asked: Instant, now: Availability) -> Option<Instant> {
        if now.healthy > 0 || now.total == 0 {
            self.stale_wait = self.config.min_interval;
            return None;
        }
        let wait = self.stale_wait;
        self.stale_wait = self.doubled(wait);
        Some(asked + self.jittered(wait))
    }

    fn jittered(&mut self, wait: Duration) -> Duration {
        let change = 1.0 + self.config.jitter * (2.0 * self.rng.f64() - 1.0);
        wait.mul_f64(change).max(self.config.min_interval)
    }

    /// Updates the balancer if the set changed.
    fn update(&mut self, endpoints: Vec<EndpointConfig>) -> Result<(), String> {
        let has_changed = endpoints != self.last_set;
        if has_changed {
            let given = endpoints.iter().cloned();
            let update = || self.balancer.update(given, self.clock.now());
            let updated = catch_unwind(AssertUnwindSafe(update));
            updated
                .map_err(|_| "the strategy or the clock panicked".to_owned())?
                .map_err(|error| error.to_string())?;
            self.last_set = endpoints;
        }
        let mut shared = self.shared.lock();
        shared.last_success = Some(Instant::now());
        shared.stats.resolved += 1;
        shared.stats.updates += u64::from(has_changed);
        Ok(())
    }
}
