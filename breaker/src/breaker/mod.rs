//! The breaker that callers hold: the core, a clock, and those who watch.

mod permit;
mod snapshot;
mod state;
mod timer;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};

pub use permit::Permit;
pub(crate) use permit::watch;
pub use snapshot::{BreakerSnapshot, BreakerStats, WindowPart};
pub use state::{Cause, State, Transition, Verdict};

use crate::clock::{Clock, default_clock};
use crate::config::{BreakerConfig, nanos};
use crate::core::{Machine, Phase, Rejection, Shift, Thresholds};
use crate::error::{BreakerError, ConfigError, Rejected, RestoreError};

/// Transitions that a slow listener may lag behind before it misses some.
const MAX_EVENTS: usize = 64;

/// A circuit breaker: stops calling what does not answer, and finds out gently when it is back.
///
/// All methods take `&self`; share it in an `Arc`. Admissions and answers are a few atomic
/// operations on an otherwise lock-free path. Changes of state happen on the calls themselves: an
/// open breaker becomes half-open with the first call after its wait, unless
/// [`keep_time`](Breaker::keep_time) or [`tick`](Breaker::tick) see to it earlier.
///
/// # Example
/// ```
/// use voussoir_breaker::{Breaker, BreakerConfig, BreakerError, State};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = BreakerConfig::default();
/// config.consecutive_failures = Some(3);
/// let breaker = Breaker::new("billing", &config)?;
///
/// for _ in 0..3 {
///     let answer = breaker.call(async { Err::<(), _>("connection refused") }).await;
///     assert_eq!(answer, Err(BreakerError::Inner("connection refused")));
/// }
/// assert_eq!(breaker.state(), State::Open);
/// # Ok(())
/// # }
/// ```
///
/// Source: M. Nygard, "Release It!" (2007), chapter "Stability patterns".
pub struct Breaker {
    machine: Machine,
    clock: Arc<dyn Clock>,
    /// Nanoseconds; only where slowness is looked at.
    slow_after: Option<u64>,
    /// [`BreakerConfig::max_half_open_for`].
    patience: Option<Duration>,
    on_drop: Verdict,
    on_panic: Verdict,
    on_overtaken: Verdict,
    shape: crate::core::WindowKind,
    name: Arc<str>,
    state: watch::Sender<State>,
    events: broadcast::Sender<Transition>,
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("name", &self.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Breaker {
    /// A closed breaker over the default clock.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(name: impl Into<Arc<str>>, config: &BreakerConfig) -> Result<Self, ConfigError> {
        Self::with_clock(name, config, default_clock())
    }

    /// A closed breaker over a clock of the caller's.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn with_clock(
        name: impl Into<Arc<str>>,
        config: &BreakerConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        let rules = config.rules()?;
        Ok(Self::build(name.into(), config, clock, rules, Machine::new))
    }

    /// A breaker that goes on where a snapshot left off.
    ///
    /// The state, the rest of an open wait and the window come back. A half-open breaker comes
    /// back as an open one whose wait is over: its probes were another process's.
    ///
    /// # Errors
    /// A configuration that cannot work, or a snapshot of another kind of window.
    pub fn restore(
        name: impl Into<Arc<str>>,
        config: &BreakerConfig,
        clock: Arc<dyn Clock>,
        snapshot: &BreakerSnapshot,
    ) -> Result<Self, RestoreError> {
        let rules = config.rules()?;
        let memory = snapshot.memory(rules.shape)?;
        Ok(Self::build(name.into(), config, clock, rules, |rules, now, observer| {
            Machine::restore(rules, now, &memory, observer)
        }))
    }

    fn build(
        name: Arc<str>,
        config: &BreakerConfig,
        clock: Arc<dyn Clock>,
        rules: Thresholds,
        machine: impl FnOnce(Thresholds, u64, Box<dyn Fn(Shift) + Send + Sync>) -> Machine,
    ) -> Self {
        let (state, _) = watch::channel(State::Closed);
        let (events, _) = broadcast::channel(MAX_EVENTS);
        let observer = {
            let (name, state, events) = (Arc::clone(&name), state.clone(), events.clone());
            Box::new(move |shift: Shift| announce(&name, &state, &events, shift))
        };
        Self {
            shape: rules.shape,
            machine: machine(rules, clock.now(), observer),
            clock,
            slow_after: config.slow_rate.map(|_| nanos(config.slow_after)),
            patience: config.max_half_open_for,
            on_drop: config.on_drop,
            on_panic: config.on_panic,
            on_overtaken: config.on_overtaken,
            name,
            state,
            events,
        }
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks for one call.
    ///
    /// Reads the clock only if the breaker is not closed, or looks at slowness.
    ///
    /// # Errors
    /// The breaker admits none at present.
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<&Self>, Rejected> {
        Permit::acquire(self, || self.clock.now())
    }

    /// [`try_acquire`](Self::try_acquire) with the time passed in: nanoseconds since the epoch of
    /// the breaker's clock.
    ///
    /// # Errors
    /// The breaker admits none at present.
    #[inline]
    pub fn try_acquire_at(&self, now: u64) -> Result<Permit<&Self>, Rejected> {
        Permit::acquire(self, || now)
    }

    /// [`try_acquire`](Self::try_acquire) for a call that outlives the borrow, a streamed body
    /// for instance.
    ///
    /// # Errors
    /// The breaker admits none at present.
    pub fn try_acquire_owned(self: &Arc<Self>) -> Result<Permit<Arc<Self>>, Rejected> {
        Permit::acquire(Arc::clone(self), || self.clock.now())
    }

    /// Runs a future if the breaker admits it: `Ok` is a success, `Err` a failure.
    ///
    /// A rejected future is dropped without having been polled.
    ///
    /// # Errors
    /// [`BreakerError::Rejected`] if it was not admitted, else the future's own error.
    ///
    /// # Cancel safety
    /// Dropping it drops the future. A probe's place is given back; the call counts as
    /// [`BreakerConfig::on_drop`] says, by default not at all. So put time limits inside the
    /// breaker, not around it, or have drops count. A future that panics counts as
    /// [`BreakerConfig::on_panic`] says, by default as a failure, and the panic goes on.
    pub async fn call<T, E>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, BreakerError<E>> {
        self.call_with(future, Verdict::of).await
    }

    /// [`call`](Self::call) with the caller's own idea of what a failure is, of results as well as
    /// of errors.
    ///
    /// # Errors
    /// As `call`.
    ///
    /// # Cancel safety
    /// As `call`.
    ///
    /// # Example
    /// ```
    /// # use voussoir_breaker::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let breaker = Breaker::new("users", &BreakerConfig::default())?;
    /// let status = breaker
    ///     .call_with(async { Ok::<u16, std::io::Error>(503) }, |answer| match answer {
    ///         Ok(500..) | Err(_) => Verdict::Failure,
    ///         // A proxy's own answer. A 404 would be a success: whoever answers it works.
    ///         Ok(407) => Verdict::Ignored,
    ///         Ok(_) => Verdict::Success,
    ///     })
    ///     .await?;
    /// assert_eq!((status, breaker.stats().window.failures), (503, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn call_with<T, E>(
        &self,
        future: impl Future<Output = Result<T, E>>,
        classify: impl FnOnce(&Result<T, E>) -> Verdict,
    ) -> Result<T, BreakerError<E>> {
        let permit = self.try_acquire().map_err(BreakerError::Rejected)?;
        let (answer, permit) = watch(permit, future).await;
        if let Some(permit) = permit {
            permit.record(classify(&answer));
        }
        answer.map_err(BreakerError::Inner)
    }

    /// [`call`](Self::call) for code without futures.
    ///
    /// # Errors
    /// As `call`.
    pub fn run<T, E>(&self, f: impl FnOnce() -> Result<T, E>) -> Result<T, BreakerError<E>> {
        let permit = self.try_acquire().map_err(BreakerError::Rejected)?;
        let answer = f();
        permit.record(Verdict::of(&answer));
        answer.map_err(BreakerError::Inner)
    }

    /// State of the breaker. Stays [`State::Open`] after the wait until the next call, or the next
    /// [`tick`](Self::tick).
    pub fn state(&self) -> State {
        State::of(self.machine.phase())
    }

    /// The state as a value to wait on. Holds the latest state only.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Every change of state from now on, in order, and nothing else: no event for a call, none
    /// where a state is set by hand that the breaker is in already. A listener more than 64 behind
    /// misses the oldest and is told how many.
    pub fn events(&self) -> broadcast::Receiver<Transition> {
        self.events.subscribe()
    }

    /// Opens it for `wait`, from whatever state; then it is half-open as after any other wait.
    /// For a maintenance window that the dependency has announced, for instance.
    ///
    /// The wait is not bounded by [`BreakerConfig::max_open_for`] and does not lengthen the next
    /// one. A snapshot that is restored elsewhere has the rest of the wait, up to `max_open_for`.
    pub fn open_for(&self, wait: Duration) {
        self.machine.open_for(nanos(wait), self.clock.now());
    }

    /// [`open_for`](Self::open_for) up to a moment: nanoseconds since the epoch of the breaker's
    /// clock. A moment that has passed makes it half-open at the next call.
    pub fn open_until(&self, at: u64) {
        let now = self.clock.now();
        self.machine.open_for(at.saturating_sub(now), now);
    }

    /// Makes it half-open, from whatever state: the next calls are probes, and their answers close
    /// or open it.
    pub fn force_half_open(&self) {
        self.machine.force(Phase::HalfOpen, self.clock.now());
    }

    /// Opens it until another state is set by hand. Waits that have grown by then stay so; what
    /// closes it forgets them.
    pub fn force_open(&self) {
        self.machine.force(Phase::ForcedOpen, self.clock.now());
    }

    /// Admits every call and looks at no answer, until another state is set by hand.
    pub fn force_closed(&self) {
        self.machine.force(Phase::ForcedClosed, self.clock.now());
    }

    /// Admits every call and counts the answers, but never opens;
    /// [`BreakerStats::would_open`] counts the bad answers at which it would have.
    pub fn metrics_only(&self) {
        self.machine.force(Phase::MetricsOnly, self.clock.now());
    }

    /// Closes it with an empty window, from whatever state.
    pub fn reset(&self) {
        self.machine.force(Phase::Closed, self.clock.now());
    }

    /// State and counters. Counters read while calls are being answered may differ from each other
    /// by those calls.
    pub fn stats(&self) -> BreakerStats {
        let totals = self.machine.totals();
        BreakerStats {
            state: self.state(),
            window: self.machine.counts(self.clock.now()),
            lifetime: totals.answers,
            rejected: totals.rejected,
            late: totals.late,
            openings: totals.openings,
            would_open: totals.would_open,
        }
    }

    /// Failures and slow calls that the window holds.
    pub(crate) fn bad_calls(&self, now: u64) -> u64 {
        let counts = self.machine.counts(now);
        counts.failures.saturating_add(counts.slow)
    }

    /// Since when it has waited for probes, or will.
    pub(crate) fn probing_since(&self) -> Option<u64> {
        self.machine.probing_since()
    }

    /// Whether a call would be admitted now, to choose among several dependencies for instance.
    /// Takes no permit and counts nothing; another caller may be quicker than a call that follows.
    pub fn would_admit(&self) -> bool {
        self.machine.would_admit(|| self.clock.now())
    }

    /// A snapshot for a later [`restore`](Self::restore).
    pub fn snapshot(&self) -> BreakerSnapshot {
        BreakerSnapshot::of(self.shape, self.machine.memory(self.clock.now()))
    }
}

/// Tells all listeners of a change. The core calls it without a lock, one change at a time and in
/// their order, so a listener may call the breaker.
///
/// A listener that panics (a `tracing` subscriber, the waker of a receiver) must not fail the call
/// that happened to change the state, which may itself be unwinding: the panic ends here.
fn announce(
    name: &str,
    state: &watch::Sender<State>,
    events: &broadcast::Sender<Transition>,
    shift: Shift,
) {
    let transition = Transition::of(shift);
    let log = || {
        tracing::info!(
            target: "voussoir::breaker",
            breaker = name,
            from = %transition.from,
            to = %transition.to,
            cause = %transition.cause,
            calls = transition.window.calls,
            failures = transition.window.failures,
            slow = transition.window.slow,
            "breaker changed state"
        );
    };
    let _ = catch_unwind(AssertUnwindSafe(log));
    let _ = catch_unwind(AssertUnwindSafe(|| state.send_replace(transition.to)));
    // A send without receivers is no error.
    let _ = catch_unwind(AssertUnwindSafe(|| events.send(transition.clone()).is_ok()));
}

impl From<Rejection> for Rejected {
    fn from(denied: Rejection) -> Self {
        let retry_after = denied.retry_after.map(Duration::from_nanos);
        Self { state: State::of(denied.phase), retry_after }
    }
}
