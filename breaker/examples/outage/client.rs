//! The users, behind one policy or another.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use voussoir_breaker::{
    AdaptiveLimit, Breaker, BreakerConfig, Bulkhead, Gradient2, Gradient2Config, Growth, Hedge,
    HedgeConfig, Idempotent, Jitter, Policy, PolicyBuilder, QueueConfig, Retry, RetryBudget,
    RetryBudgetConfig, RetryConfig, Timeout, TokioClock,
};

use crate::run::{PATIENCE, SECONDS};
use crate::server::{Failure, Server};

type Builder = PolicyBuilder<(), Failure>;

/// What stands before the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nothing,
    Timeout,
    NaiveRetry,
    BudgetedRetry,
    Hedge,
    Breaker,
    Bulkhead,
    Adaptive,
    All,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Nothing,
        Self::Timeout,
        Self::NaiveRetry,
        Self::BudgetedRetry,
        Self::Hedge,
        Self::Breaker,
        Self::Bulkhead,
        Self::Adaptive,
        Self::All,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Timeout => "timeout",
            Self::NaiveRetry => "timeout, 3 attempts",
            Self::BudgetedRetry => "timeout, 3 attempts, budget",
            Self::Hedge => "timeout, hedge, budget",
            Self::Breaker => "timeout, breaker",
            Self::Bulkhead => "timeout, bulkhead",
            Self::Adaptive => "timeout, adaptive limit",
            Self::All => "all of them",
        }
    }

    fn policy(self) -> Policy<(), Failure> {
        let attempt = Timeout::new(Duration::from_millis(300)).expect("above zero");
        let builder = Policy::builder().classify(Arc::new(Idempotent));
        let builder = match self {
            Self::Nothing => return builder.build().expect("no stage"),
            Self::Timeout => builder,
            Self::NaiveRetry => builder.retry(Arc::new(retry())),
            Self::BudgetedRetry => builder.retry(Arc::new(retry().with_budget(budget()))),
            Self::Hedge => builder.hedge(hedge(&budget())),
            Self::Breaker => breaker(builder),
            Self::Bulkhead => {
                builder.bulkhead(Bulkhead::new(32, QueueConfig::default()).expect("valid"))
            }
            Self::Adaptive => adaptive(builder),
            Self::All => {
                let budget = budget();
                let retry = Arc::new(retry().with_budget(Arc::clone(&budget)));
                let whole = Timeout::new(Duration::from_millis(900)).expect("above zero");
                let builder = builder.timeout(whole).retry(retry).hedge(hedge(&budget));
                adaptive(breaker(builder))
            }
        };
        builder.timeout(attempt).build().expect("at most one retry and one hedge")
    }
}

fn retry() -> Retry {
    let mut config = RetryConfig::default();
    config.backoff.first = Duration::from_millis(20);
    config.backoff.growth = Growth::Exponential { factor: 2.0, jitter: Jitter::Full };
    config.seed = Some(3);
    Retry::new(config).expect("valid")
}

fn budget() -> Arc<RetryBudget> {
    let clock = Arc::new(TokioClock::new());
    RetryBudget::with_clock(RetryBudgetConfig::default(), clock).expect("valid")
}

fn hedge(budget: &Arc<RetryBudget>) -> Arc<Hedge> {
    let mut config = HedgeConfig::default();
    config.max_delay = Duration::from_millis(250);
    Arc::new(Hedge::new(config).expect("valid").with_budget(Arc::clone(budget)))
}

fn breaker(builder: Builder) -> Builder {
    let mut config = BreakerConfig::default();
    config.open_for = Duration::from_secs(1);
    config.max_open_for = Duration::from_secs(8);
    config.seed = Some(4);
    let breaker = Breaker::with_clock("server", &config, Arc::new(TokioClock::new()));
    builder.breaker(Arc::new(breaker.expect("valid")))
}

fn adaptive(builder: Builder) -> Builder {
    let algorithm = Gradient2::new(Gradient2Config::default());
    let limit = AdaptiveLimit::with_tokio_clock(Box::new(algorithm), QueueConfig::default());
    builder.adaptive(limit.expect("valid"))
}

/// What the users got.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Good answers by the second in which the user came.
    pub(crate) good: Mutex<Vec<u32>>,
    /// Users by the second in which they came.
    pub(crate) users: Mutex<Vec<u32>>,
    /// Milliseconds until the answer, good or bad, or until the user left.
    times: Mutex<Vec<f64>>,
    pub(crate) attempts: AtomicU64,
    failed: AtomicU64,
    failed_fast: AtomicU64,
}

impl Tally {
    /// Percentage of the users from that second on who got a good answer.
    pub(crate) fn good_from(&self, second: usize) -> f64 {
        let sum = |counts: &Mutex<Vec<u32>>| -> u32 {
            counts.lock().expect("nobody panics holding it").iter().skip(second).sum()
        };
        100.0 * f64::from(sum(&self.good)) / f64::from(sum(&self.users).max(1))
    }

    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        let mut times = self.times.lock().expect("nobody panics holding it").clone();
        times.sort_by(f64::total_cmp);
        times.get((times.len() as f64 * quantile) as usize).copied().unwrap_or_default()
    }

    /// Percentage of the failures that took less than 50 ms: the user can do something else.
    pub(crate) fn fast_failures(&self) -> f64 {
        100.0 * self.failed_fast.load(Relaxed) as f64 / self.failed.load(Relaxed).max(1) as f64
    }
}

pub(crate) struct Client {
    policy: Policy<(), Failure>,
    server: Arc<Server>,
    tally: Arc<Tally>,
}

impl Client {
    pub(crate) fn new(kind: Kind, server: Arc<Server>) -> Self {
        let (good, users) = (Mutex::new(vec![0; SECONDS]), Mutex::new(vec![0; SECONDS]));
        let tally = Arc::new(Tally { good, users, ..Tally::default() });
        Self { policy: kind.policy(), server, tally }
    }

    pub(crate) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// One user, who comes in this second of the run.
    pub(crate) async fn user(&self, second: usize) {
        let start = Instant::now();
        let call = self.policy.call(|_attempt| {
            self.tally.attempts.fetch_add(1, Relaxed);
            Arc::clone(&self.server).call()
        });
        let is_good = matches!(timeout(PATIENCE, call).await, Ok(Ok(())));
        let millis = start.elapsed().as_secs_f64() * 1e3;
        self.tally.users.lock().expect("nobody panics holding it")[second] += 1;
        self.tally.times.lock().expect("nobody panics holding it").push(millis);
        if is_good {
            self.tally.good.lock().expect("nobody panics holding it")[second] += 1;
        } else {
            self.tally.failed.fetch_add(1, Relaxed);
            self.tally.failed_fast.fetch_add(u64::from(millis < 50.0), Relaxed);
        }
    }
}
