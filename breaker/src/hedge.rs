//! A second attempt beside a slow first one.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use crate::breaker::Verdict;
use crate::clock::{Clock, TokioClock};
use crate::config::nanos;
use crate::core::LatencyWindow;
use crate::error::ConfigError;
use crate::retry::{BudgetedCall, ExtraAttempt, RetryBudget};

/// When to send another attempt beside the one under way.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct HedgeConfig {
    /// Quantile of recent latencies after which an attempt is hedged. 0.5 to 0.9999, default 0.95:
    /// one call in twenty is hedged.
    pub quantile: f64,
    /// Never hedges earlier. Default 1 ms.
    pub min_delay: Duration,
    /// Hedges at the latest, and as long as there are too few samples. Not below `min_delay`,
    /// default 1 s.
    pub max_delay: Duration,
    /// Samples that the window must hold for the quantile to count. Default 50.
    pub min_samples: u64,
    /// How far back latencies are looked at. Above 0, default 30 s.
    pub window: Duration,
    /// Attempts beside the first. 1 to 5, default 1.
    pub max_hedges: u32,
}

impl Default for HedgeConfig {
    fn default() -> Self {
        Self {
            quantile: 0.95,
            min_delay: Duration::from_millis(1),
            max_delay: Duration::from_secs(1),
            min_samples: 50,
            window: Duration::from_secs(30),
            max_hedges: 1,
        }
    }
}

impl HedgeConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(0.5..=0.9999).contains(&self.quantile) {
            return Err(ConfigError::new("quantile", "must be 0.5 to 0.9999"));
        }
        if self.max_delay < self.min_delay {
            return Err(ConfigError::new("max_delay", "must not be below `min_delay`"));
        }
        if self.window.is_zero() {
            return Err(ConfigError::new("window", "must be above 0"));
        }
        if !(1..=5).contains(&self.max_hedges) {
            return Err(ConfigError::new("max_hedges", "must be 1 to 5"));
        }
        Ok(())
    }
}

/// A hedge's figures at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HedgeStats {
    /// Calls.
    pub calls: u64,
    /// Attempts sent beside a first one.
    pub hedges: u64,
    /// Calls that such an attempt answered first.
    pub won: u64,
    /// Attempts that the budget did not pay for.
    pub rejected: u64,
    /// How long the next call waits before it hedges.
    pub delay: Duration,
}

/// Sends a second attempt when the first is slower than most, takes the first success, and drops
/// the loser. Only for calls that are safe to make twice.
///
/// The same budget as for retries should pay for hedges: both are extra load at the worst time.
/// An attempt that fails before its hedge is due ends the call: hedges are against slowness,
/// retries against failure.
///
/// Source: J. Dean, L. A. Barroso, "The Tail at Scale" (2013).
#[derive(Debug)]
pub struct Hedge {
    config: HedgeConfig,
    budget: Option<Arc<RetryBudget>>,
    clock: TokioClock,
    latencies: Mutex<LatencyWindow>,
    calls: AtomicU64,
    hedges: AtomicU64,
    won: AtomicU64,
    rejected: AtomicU64,
}

impl Hedge {
    /// Hedges without a budget: `max_hedges` bounds them, and the quantile does as long as the
    /// dependency does not get slower.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(config: HedgeConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let clock = TokioClock::new();
        let window = LatencyWindow::new(nanos(config.window), config.quantile, clock.now());
        Ok(Self {
            config,
            budget: None,
            clock,
            latencies: Mutex::new(window),
            calls: AtomicU64::new(0),
            hedges: AtomicU64::new(0),
            won: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        })
    }

    /// The same, paying for each hedge from `budget`.
    pub fn with_budget(mut self, budget: Arc<RetryBudget>) -> Self {
        self.budget = Some(budget);
        self
    }

    /// How long the next call waits before it hedges.
    pub fn delay(&self) -> Duration {
        let now = self.clock.now();
        let mut latencies = self.latencies.lock();
        if latencies.len(now) < self.config.min_samples {
            return self.config.max_delay;
        }
        let quantile = latencies.quantile(now).map(Duration::from_nanos);
        quantile.map_or(self.config.max_delay, |delay| {
            delay.clamp(self.config.min_delay, self.config.max_delay)
        })
    }

    /// Figures at this moment.
    pub fn stats(&self) -> HedgeStats {
        HedgeStats {
            calls: self.calls.load(Relaxed),
            hedges: self.hedges.load(Relaxed),
            won: self.won.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            delay: self.delay(),
        }
    }

    /// Starts attempt 0, and further attempts beside it as they become due.
    ///
    /// All of them may take effect: hedge only what is safe to do twice.
    ///
    /// # Errors
    /// The last attempt's error, once all attempts begun have failed.
    ///
    /// # Cancel safety
    /// Dropping it drops all attempts under way; places in the budget are given back.
    pub async fn call<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        attempt: impl FnMut(u32) -> F,
    ) -> Result<T, E> {
        self.call_with(attempt, Verdict::of).await
    }

    /// [`call`](Self::call) with the caller's own idea of what a failure is. Any answer but a
    /// failure ends the race, so a final one that is no success (a 404) is never thrown away.
    ///
    /// # Errors
    /// As `call`.
    ///
    /// # Cancel safety
    /// As `call`.
    pub async fn call_with<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        attempt: impl FnMut(u32) -> F,
        classify: impl Fn(&Result<T, E>) -> Verdict,
    ) -> Result<T, E> {
        let _account = self.budget.as_ref().map(RetryBudget::begin);
        self.race(true, attempt, |answer, _| Standing::of(classify(answer))).await
    }

    /// [`call`](Self::call) as a part of a call that has an account with the budget already: see
    /// [`Retry::call_within`](crate::Retry::call_within).
    ///
    /// # Errors
    /// As `call`.
    ///
    /// # Cancel safety
    /// As `call`.
    pub async fn call_within<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        account: &BudgetedCall,
        attempt: impl FnMut(u32) -> F,
    ) -> Result<T, E> {
        let other = self.budget.as_ref().filter(|budget| !account.is_with(budget));
        let _account = other.map(RetryBudget::begin);
        self.race(true, attempt, |answer, _| Standing::of(Verdict::of(answer))).await
    }

    /// The budget that it pays from.
    pub(crate) fn budget(&self) -> Option<&Arc<RetryBudget>> {
        self.budget.as_ref()
    }

    /// The race under [`call`](Self::call) and the policy. The account with the budget is the
    /// caller's. `judge` is asked about each answer, once, and told when its attempt began.
    pub(crate) async fn race<R, F: Future<Output = R>>(
        &self,
        may_hedge: bool,
        attempt: impl FnMut(u32) -> F,
        judge: impl Fn(&R, Instant) -> Standing,
    ) -> R {
        self.calls.fetch_add(1, Relaxed);
        let mut race = Race {
            hedge: self,
            attempt,
            judge,
            runners: Vec::with_capacity(1),
            begun: 0,
            hedges_left: if may_hedge { self.config.max_hedges } else { 0 },
            delay: self.delay(),
            timer: None,
            winner: None,
            failure: None,
        };
        race.begin(None);
        poll_fn(|cx| race.poll(cx)).await
    }
}

/// Rank of an answer in a race: of several, the highest is the answer of the race.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Rejected by this process: nothing was sent.
    Refused,
    /// No answer within a time limit of this process.
    TimedOut,
    /// The dependency's own failure: what the caller gets if nobody does better.
    Failed,
    /// Anything else ends the race.
    Ends,
}

impl Standing {
    pub(crate) fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Failure => Self::Failed,
            Verdict::Success | Verdict::Ignored => Self::Ends,
        }
    }
}

/// One attempt under way.
struct Runner<F> {
    future: Pin<Box<F>>,
    number: u32,
    start: Instant,
    _extra: Option<ExtraAttempt>,
}

struct Race<'a, A, J, F, R> {
    hedge: &'a Hedge,
    attempt: A,
    judge: J,
    runners: Vec<Runner<F>>,
    begun: u32,
    hedges_left: u32,
    delay: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    winner: Option<u32>,
    /// The best answer so far that does not end the race.
    failure: Option<(Standing, R)>,
}

impl<R, F, A, J> Race<'_, A, J, F, R>
where
    F: Future<Output = R>,
    A: FnMut(u32) -> F,
    J: Fn(&R, Instant) -> Standing,
{
    fn begin(&mut self, extra: Option<ExtraAttempt>) {
        let number = self.begun;
        self.begun += 1;
        let future = Box::pin((self.attempt)(number));
        self.runners.push(Runner { future, number, start: Instant::now(), _extra: extra });
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<R> {
        // Ends: each round but the last begins one of a bounded number of hedges.
        loop {
            if let Some(answer) = self.poll_runners(cx) {
                return Poll::Ready(answer);
            }
            if self.hedges_left == 0 {
                return Poll::Pending;
            }
            let delay = self.delay;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(delay)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.timer = None;
            self.hedge_now();
        }
    }

    /// The answer of the race, if there is one: the first that ends it, or the best failure.
    fn poll_runners(&mut self, cx: &mut Context<'_>) -> Option<R> {
        let mut at = 0;
        while at < self.runners.len() {
            let Poll::Ready(answer) = self.runners[at].future.as_mut().poll(cx) else {
                at += 1;
                continue;
            };
            let runner = self.runners.swap_remove(at);
            let standing = (self.judge)(&answer, runner.start);
            if standing == Standing::Ends {
                self.note(runner.start);
                self.winner = Some(runner.number);
                self.hedge.won.fetch_add(u64::from(runner.number > 0), Relaxed);
                return Some(answer);
            }
            if self.failure.as_ref().is_none_or(|(best, _)| *best <= standing) {
                self.failure = Some((standing, answer));
            }
        }
        if self.runners.is_empty() { self.failure.take().map(|(_, answer)| answer) } else { None }
    }

    fn hedge_now(&mut self) {
        let paid = self.hedge.budget.as_ref().map(RetryBudget::try_extra).transpose();
        if let Ok(extra) = paid {
            self.hedges_left -= 1;
            self.hedge.hedges.fetch_add(1, Relaxed);
            self.begin(extra);
        } else {
            self.hedge.rejected.fetch_add(1, Relaxed);
            self.hedges_left = 0;
        }
    }

    fn note(&self, start: Instant) {
        let latency = nanos(start.elapsed());
        self.hedge.latencies.lock().record(self.hedge.clock.now(), latency);
    }
}

impl<A, J, F, R> Drop for Race<'_, A, J, F, R> {
    /// A loser that was begun before the winner took at least this long. Without it the quantile
    /// would see only winners and creep down, and with it the delay. A loser begun later, or a
    /// call given up early, says nothing.
    fn drop(&mut self) {
        for runner in &self.runners {
            let elapsed = runner.start.elapsed();
            let is_known_slow = match self.winner {
                Some(winner) => runner.number < winner,
                None => runner.number == 0 && elapsed >= self.delay,
            };
            if is_known_slow {
                let now = self.hedge.clock.now();
                self.hedge.latencies.lock().record(now, nanos(elapsed));
            }
        }
    }
}
