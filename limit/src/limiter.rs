//! A limiter without keys: one quota for all callers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::clock::{Clock, Monotonic};
use crate::core::{
    AtomicCell, Beyond, Cell, Kind, Receipt, Rules, Standing, Verdict, convert_all, step_all,
};
use crate::error::{ConfigError, Rejected, WaitError};
use crate::quota::{Quota, changed, least_limit, rules_of};

/// How a limiter is built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LimiterConfig {
    /// How many callers may wait in [`Limiter::until_ready`]. At least 1; default 1024.
    pub max_waiters: usize,
}

impl Default for LimiterConfig {
    fn default() -> Self {
        Self { max_waiters: 1024 }
    }
}

/// Units taken: the receipt of an admitted request.
#[derive(Debug, PartialEq, Eq)]
pub struct Admitted {
    standing: Standing,
    receipt: Receipt,
}

impl Admitted {
    pub(crate) const fn new(standing: Standing, at: u64, cost: u64) -> Self {
        Self { standing, receipt: Receipt { at, cost } }
    }

    pub(crate) const fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Where the tightest quota stands, this request counted.
    pub const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Units that can be taken right now.
    pub const fn remaining(&self) -> u64 {
        self.standing.remaining()
    }
}

/// The answer that a verdict means; `taken` units can be given back.
pub(crate) fn answer(verdict: &Verdict, taken: u64) -> Result<Admitted, Rejected> {
    if verdict.admitted() {
        return Ok(Admitted::new(verdict.standing, verdict.at, taken));
    }
    Err(Rejected::new(verdict.standing, verdict.wait))
}

/// A rate limiter, in as many tiers as it was given quotas.
///
/// With one quota by rate or by fixed window a check is a compare-and-swap of one word; with a
/// sliding window or several quotas it takes a lock for its few nanoseconds.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use voussoir_limit::{Limiter, Quota};
///
/// let limiter = Limiter::tiers(&[
///     Quota::gcra(10, Duration::from_secs(1)).burst(5),
///     Quota::sliding_log(1000, Duration::from_secs(86_400)),
/// ])?;
/// let admitted = (0..20).filter(|_| limiter.check().is_ok()).count();
/// assert_eq!(admitted, 5);
/// # Ok::<(), voussoir_limit::ConfigError>(())
/// ```
pub struct Limiter {
    state: State,
    clock: Arc<dyn Clock>,
    /// Held by the first of those that wait. tokio's mutex is handed on in order.
    turn: tokio::sync::Mutex<()>,
    /// Told of refunds and of changes of the quotas, so that the first in line decides again.
    changed: Notify,
    waiting: AtomicUsize,
    max_waiters: usize,
}

#[expect(clippy::large_enum_variant, reason = "one a limiter; a box would cost each check a load")]
enum State {
    Word(AtomicCell),
    Cells(Mutex<Cells>),
}

struct Cells {
    rules: Box<[Rules]>,
    cells: Box<[Cell]>,
}

impl Limiter {
    /// A limiter of one quota.
    ///
    /// # Errors
    /// [`ConfigError`] if the quota is out of range.
    pub fn new(quota: Quota) -> Result<Self, ConfigError> {
        Self::tiers(&[quota])
    }

    /// A limiter that admits what all of the quotas admit. A request takes from each or from none.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota is out of range, or there are none or too many.
    pub fn tiers(quotas: &[Quota]) -> Result<Self, ConfigError> {
        Self::with_config(quotas, LimiterConfig::default())
    }

    /// A limiter with limits of your choice.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota or a limit is out of range.
    pub fn with_config(quotas: &[Quota], config: LimiterConfig) -> Result<Self, ConfigError> {
        Self::with_clock(quotas, config, Arc::new(Monotonic))
    }

    /// The same over a clock of the caller's.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota or a limit is out of range.
    pub fn with_clock(
        quotas: &[Quota],
        config: LimiterConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        if config.max_waiters == 0 {
            return Err(ConfigError::new("max_waiters", "must be at least 1"));
        }
        let rules = rules_of(quotas)?;
        let state = if rules.len() == 1 && rules[0].kind.is_word() {
            State::Word(AtomicCell::new(&rules[0]))
        } else {
            let cells = rules.iter().map(|rules| Cell::new(rules.kind)).collect();
            State::Cells(Mutex::new(Cells { rules, cells }))
        };
        let turn = tokio::sync::Mutex::new(());
        let (waiting, max_waiters) = (AtomicUsize::new(0), config.max_waiters);
        let changed = Notify::new();
        Ok(Self { state, clock, turn, changed, waiting, max_waiters })
    }

    /// Takes one unit if there is one.
    ///
    /// # Errors
    /// [`Rejected`] if not; nothing was taken.
    #[inline]
    pub fn check(&self) -> Result<Admitted, Rejected> {
        self.check_at(self.clock.now(), 1)
    }

    /// Takes `cost` units, or none. A cost of 0 takes nothing and tells where the quota stands.
    ///
    /// # Errors
    /// [`Rejected`] if there are not as many; nothing was taken.
    #[inline]
    pub fn check_n(&self, cost: u64) -> Result<Admitted, Rejected> {
        self.check_at(self.clock.now(), cost)
    }

    /// [`Self::check_n`] at a time given by the caller, in nanoseconds of the limiter's clock.
    ///
    /// A `now` that is behind those of other callers is allowed: it never admits more.
    ///
    /// # Errors
    /// [`Rejected`] if there are not as many units; nothing was taken.
    #[inline]
    pub fn check_at(&self, now: u64, cost: u64) -> Result<Admitted, Rejected> {
        if let State::Word(word) = &self.state
            && let Some(answer) = word.take(now, cost)
        {
            return answer
                .map(|standing| Admitted::new(standing, now, cost))
                .map_err(|(standing, wait)| Rejected::new(standing, wait));
        }
        self.decide(now, cost)
    }

    #[inline(never)]
    fn decide(&self, now: u64, cost: u64) -> Result<Admitted, Rejected> {
        let verdict = match &self.state {
            State::Word(word) => word.step(now, cost),
            State::Cells(cells) => {
                let cells = &mut *cells.lock();
                step_all(&mut cells.cells, &cells.rules, now, cost)
            }
        };
        answer(&verdict, cost)
    }

    /// Gives back what was taken and not used, say because the call was not made after all.
    ///
    /// What time has given back already is not given back twice. Of a fixed window or a tick of a
    /// token bucket that is over nothing comes back; under GCRA a unit comes back less by the time
    /// it was out, so after a unit's time nothing; the sliding windows forget the units at once.
    /// After a change of the quotas that lowers a limit or changes a period (under GCRA the time of
    /// a unit) nothing comes back of what was taken before, but for the sliding log. The first of
    /// those that wait in [`Self::until_ready`] decides again.
    pub fn refund(&self, admitted: Admitted) {
        let now = self.clock.now();
        match &self.state {
            State::Word(word) => word.refund(admitted.receipt(), now),
            State::Cells(cells) => {
                let cells = &mut *cells.lock();
                for (cell, rules) in cells.cells.iter_mut().zip(&cells.rules) {
                    cell.refund(rules, admitted.receipt(), now);
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// Waits for one unit. See [`Self::until_ready_n`].
    ///
    /// # Errors
    /// [`WaitError::QueueFull`] if too many wait already.
    ///
    /// # Cancel safety
    /// Cancel safe: a caller that gives up takes nothing and leaves the queue.
    pub async fn until_ready(&self) -> Result<Admitted, WaitError> {
        self.until_ready_n(1).await
    }

    /// Waits until `cost` units could be taken, first come, first served.
    ///
    /// For one quota by [`Algorithm::Gcra`](crate::Algorithm::Gcra) the first of those that
    /// wait has its units set aside, so that callers of [`Self::check`] cannot overtake it
    /// for ever; with other algorithms they can. The first in line decides again after each
    /// [`Self::refund`] and each [`Self::set_quotas`]. Sleeps on tokio's timer, whose step is a
    /// millisecond: rates above 1000 a second need a burst to be reached by waiting.
    ///
    /// # Errors
    /// [`WaitError::QueueFull`] if too many wait already, [`WaitError::TooCostly`] if no waiting
    /// would help.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time, if it has to wait.
    ///
    /// # Cancel safety
    /// Cancel safe: a caller that gives up takes nothing and leaves the queue.
    pub async fn until_ready_n(&self, cost: u64) -> Result<Admitted, WaitError> {
        self.wait(cost, Beyond::Refused).await
    }

    /// [`Self::until_ready_n`] for a cost that may be above the limit: the quota goes into debt
    /// for the rest, and the caller waits until that has flowed in too. Everybody else waits until
    /// the debt is paid.
    ///
    /// The rate holds over time; at the moment of the answer up to `cost` units are used at once,
    /// so a window may hold `cost` less the limit more than [`Quota::most_in`]. Only for one quota
    /// by [`Algorithm::Gcra`](crate::Algorithm::Gcra) or
    /// [`LeakyBucket`](crate::Algorithm::LeakyBucket), and a wait of at most 73 years.
    ///
    /// # Errors
    /// [`WaitError::QueueFull`] if too many wait already, [`WaitError::NoDebt`] if the algorithm
    /// cannot owe, [`WaitError::TooCostly`] if the wait would be longer than 73 years.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time, if it has to wait.
    ///
    /// # Cancel safety
    /// Cancel safe: a caller that gives up takes nothing and leaves the queue.
    pub async fn until_ready_in_debt(&self, cost: u64) -> Result<Admitted, WaitError> {
        match &self.state {
            State::Word(word) if word.kind() == Kind::Gcra => self.wait(cost, Beyond::Owed).await,
            _ => Err(WaitError::NoDebt),
        }
    }

    async fn wait(&self, cost: u64, beyond: Beyond) -> Result<Admitted, WaitError> {
        if beyond == Beyond::Refused && cost > self.limit() {
            return Err(WaitError::TooCostly);
        }
        if self.waiting.load(Ordering::Relaxed) == 0
            && let Ok(admitted) = self.check_n(cost)
        {
            return Ok(admitted);
        }
        let _place = WaiterPermit::take(&self.waiting, self.max_waiters)?;
        let _turn = self.turn.lock().await;
        match &self.state {
            State::Word(word) if word.kind() == Kind::Gcra => {
                self.wait_with_reservation(word, cost, beyond).await
            }
            _ => self.wait_and_check(cost).await,
        }
    }

    /// Sleeps for as long as the rejection says, or until a refund or a change of the quotas. The
    /// caller is the first in line.
    async fn wait_and_check(&self, cost: u64) -> Result<Admitted, WaitError> {
        // Ends when the units are there. The caller chose to wait, and may give up at any time.
        loop {
            // From before the decision: a change right after it must end the sleep.
            let changed = self.changed.notified();
            let rejected = match self.check_n(cost) {
                Ok(admitted) => return Ok(admitted),
                Err(rejected) => rejected,
            };
            let Some(wait) = rejected.retry_after() else { return Err(WaitError::TooCostly) };
            // Either way the next turn decides.
            let _ = tokio::time::timeout(wait, changed).await;
        }
    }

    /// Sets units aside and sleeps until their time; after a refund or a change of the quotas they
    /// are reserved anew. The caller is the first in line.
    async fn wait_with_reservation(
        &self,
        word: &AtomicCell,
        cost: u64,
        beyond: Beyond,
    ) -> Result<Admitted, WaitError> {
        let mut aside = Aside { word, clock: &*self.clock, receipt: None };
        // Ends when the reservation's time has come. The caller may give up at any time.
        loop {
            // From before the decision: a change right after it must end the sleep.
            let changed = self.changed.notified();
            let receipt = aside.renew(cost, beyond)?;
            if !self.sleep_until(receipt.at, changed).await {
                continue;
            }
            let standing = word.step(self.clock.now(), 0).standing;
            return Ok(Admitted { standing, receipt: aside.take(receipt) });
        }
    }

    /// Returns true once it is `time`, and false if the quota has changed before.
    async fn sleep_until(&self, time: u64, changed: Notified<'_>) -> bool {
        let mut changed = std::pin::pin!(changed);
        // Ends with the clock: a sleep is as long as what is left, less at most the timer's step.
        loop {
            let now = self.clock.now();
            if now >= time {
                return true;
            }
            let rest = Duration::from_nanos(time - now);
            if tokio::time::timeout(rest, changed.as_mut()).await.is_ok() {
                return self.clock.now() >= time;
            }
        }
    }

    /// The most units that a request can have at one moment.
    fn limit(&self) -> u64 {
        match &self.state {
            State::Word(word) => word.rules().limit,
            State::Cells(cells) => least_limit(&cells.lock().rules),
        }
    }

    /// Changes the quotas. What is used stays used, in units: a full bucket of 10 of which 4 are
    /// taken becomes one of 100 of which 4 are taken. The first of those that wait in
    /// [`Self::until_ready`] decides again by the new quotas.
    ///
    /// # Errors
    /// [`ConfigError`] if a quota is out of range, or their number or an algorithm would change;
    /// then nothing is changed.
    pub fn set_quotas(&self, quotas: &[Quota]) -> Result<(), ConfigError> {
        let now = self.clock.now();
        match &self.state {
            State::Word(word) => {
                let new = changed(&[word.rules()], quotas)?;
                word.set_rules(&new[0], now);
            }
            State::Cells(cells) => {
                let cells = &mut *cells.lock();
                let new = changed(&cells.rules, quotas)?;
                convert_all(&mut cells.cells, &cells.rules, &new, now);
                cells.rules = Rules::all_succeeding(&new, &cells.rules, now);
            }
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// How many callers wait in [`Self::until_ready`].
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = match &self.state {
            State::Word(word) => vec![word.rules()],
            State::Cells(cells) => cells.lock().rules.to_vec(),
        };
        f.debug_struct("Limiter").field("rules", &rules).finish_non_exhaustive()
    }
}

/// A place among those that wait.
struct WaiterPermit<'a>(&'a AtomicUsize);

impl<'a> WaiterPermit<'a> {
    fn take(waiting: &'a AtomicUsize, max: usize) -> Result<Self, WaitError> {
        waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1))
            .map(|_| Self(waiting))
            .map_err(|_| WaitError::QueueFull)
    }
}

impl Drop for WaiterPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Units set aside for the first of those that wait; they go back if it gives up.
struct Aside<'a> {
    word: &'a AtomicCell,
    clock: &'a dyn Clock,
    receipt: Option<Receipt>,
}

impl Aside<'_> {
    /// Sets `cost` units aside in place of those that are.
    fn renew(&mut self, cost: u64, beyond: Beyond) -> Result<Receipt, WaitError> {
        let now = self.clock.now();
        let reserved = self.word.reserve(now, cost, beyond, self.receipt.as_ref());
        self.receipt = reserved.map(|(_, receipt)| receipt);
        self.receipt.ok_or(WaitError::TooCostly)
    }

    /// They are used.
    fn take(mut self, receipt: Receipt) -> Receipt {
        self.receipt = None;
        receipt
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Some(receipt) = self.receipt {
            self.word.refund(&receipt, self.clock.now());
        }
    }
}
