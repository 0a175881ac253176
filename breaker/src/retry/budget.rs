//! A bound on extra attempts, shared by all that make them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::time::Duration;

use crate::clock::{Clock, default_clock};
use crate::error::ConfigError;
use crossbeam_utils::CachePadded;

/// Parts of a token.
const TOKEN: u64 = 1_000_000;

/// How many extra attempts, retries and hedges together, there may be.
///
/// In any stretch of `t` seconds with `n` calls there are at most
/// `ratio * n + max_balance + per_sec * (t + 1) + 1` extra attempts, and at any moment at most
/// `max(min_active, active_ratio * active calls)` of them are waiting or running.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RetryBudgetConfig {
    /// Extra attempts that each call pays for. 0 to 10, rounded down to a millionth, default 0.2.
    pub ratio: f64,
    /// Maximum balance of unused deposits. 0 to 1,000,000, default 10.
    pub max_balance: u32,
    /// Extra attempts a second whatever the traffic, so that a quiet client can retry at all.
    /// 0 to 1,000,000, default 1. The time between two is rounded down to a nanosecond, and cut to
    /// 584 years.
    pub per_sec: f64,
    /// Share of the active calls that may be in an extra attempt or waiting for one. 0 to 1,
    /// default 0.2.
    pub active_ratio: f64,
    /// Number of extra attempts that may always be active, whatever the share. Default 3.
    pub min_active: u32,
}

impl Default for RetryBudgetConfig {
    fn default() -> Self {
        Self { ratio: 0.2, max_balance: 10, per_sec: 1.0, active_ratio: 0.2, min_active: 3 }
    }
}

impl RetryBudgetConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let ranges = [
            ("ratio", self.ratio, 10.0, "must be 0 to 10"),
            ("max_balance", f64::from(self.max_balance), 1e6, "must be 0 to 1000000"),
            ("per_sec", self.per_sec, 1e6, "must be 0 to 1000000"),
            ("active_ratio", self.active_ratio, 1.0, "must be 0 to 1"),
        ];
        for (field, value, max, rule) in ranges {
            if !(0.0..=max).contains(&value) {
                return Err(ConfigError::new(field, rule));
            }
        }
        Ok(())
    }
}

/// Why an extra attempt was not paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryRejected {
    /// The calls have not paid in enough.
    Spent,
    /// Too many extra attempts are waiting or running.
    TooManyActive,
}

/// A budget's figures at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RetryBudgetStats {
    /// Calls begun.
    pub calls: u64,
    /// Extra attempts paid for.
    pub granted: u64,
    /// Extra attempts refused because the calls had not paid in enough.
    pub rejected_spent: u64,
    /// Extra attempts refused because too many were waiting or running.
    pub rejected_active: u64,
    /// Calls under way.
    pub active_calls: u64,
    /// Extra attempts waiting in back-off or running.
    pub active_extra: u64,
    /// Extra attempts that are paid in.
    pub balance: f64,
}

/// Bounds the extra attempts of all calls to one dependency, so that retries cannot multiply an
/// outage. Share one in an `Arc` between retries and hedges, and between all clients of the
/// dependency.
///
/// An extra attempt takes its place before its back-off begins and keeps it to its end: a crowd of
/// waiting retries is as much a threat as a crowd of running ones.
///
/// Sources: Finagle `RetryBudget`; "SRE Book", chapter "Handling Overload"; Envoy
/// `retry_budget`.
#[derive(Debug)]
pub struct RetryBudget {
    config: RetryBudgetConfig,
    /// Parts of tokens.
    deposit: u64,
    max_balance: u64,
    /// Nanoseconds from one token of `per_sec` to the next.
    trickle: Option<u64>,
    clock: Arc<dyn Clock>,
    balance: CachePadded<AtomicU64>,
    /// When the next token of `per_sec` is due.
    due: AtomicU64,
    calls: CachePadded<AtomicU64>,
    active_calls: AtomicU64,
    active_extra: CachePadded<AtomicU64>,
    granted: AtomicU64,
    rejected_spent: AtomicU64,
    rejected_active: AtomicU64,
}

impl RetryBudget {
    /// A budget over the default clock.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(config: RetryBudgetConfig) -> Result<Arc<Self>, ConfigError> {
        Self::with_clock(config, default_clock())
    }

    /// A budget over a clock of the caller's.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn with_clock(
        config: RetryBudgetConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, ConfigError> {
        config.validate()?;
        let max_balance = u64::from(config.max_balance) * TOKEN;
        let second = Duration::from_secs(1).as_nanos() as f64;
        Ok(Arc::new(Self {
            deposit: (config.ratio * TOKEN as f64) as u64,
            max_balance,
            trickle: (config.per_sec > 0.0).then(|| (second / config.per_sec) as u64),
            // A new client starts with a full balance: its first calls may be the ones that fail.
            balance: CachePadded::new(AtomicU64::new(max_balance)),
            due: AtomicU64::new(clock.now()),
            calls: CachePadded::default(),
            active_calls: AtomicU64::new(0),
            active_extra: CachePadded::default(),
            granted: AtomicU64::new(0),
            rejected_spent: AtomicU64::new(0),
            rejected_active: AtomicU64::new(0),
            config,
            clock,
        }))
    }

    /// Begins a call, which pays in its share.
    pub fn begin(self: &Arc<Self>) -> BudgetedCall {
        self.calls.fetch_add(1, Relaxed);
        self.active_calls.fetch_add(1, Relaxed);
        let add = |balance: u64| Some((balance + self.deposit).min(self.max_balance));
        // The update always has a next value. It ends, here and below: lock-free, an exchange fails
        // because another call paid in or withdrew.
        let _ = self.balance.fetch_update(Relaxed, Relaxed, add);
        BudgetedCall { budget: Arc::clone(self) }
    }

    /// Asks for one extra attempt; hold what it returns through the back-off and the attempt.
    ///
    /// # Errors
    /// The budget does not allow it; the rejection is counted.
    pub fn try_extra(self: &Arc<Self>) -> Result<ExtraAttempt, RetryRejected> {
        let active = self.active_calls.load(Relaxed) as f64 * self.config.active_ratio;
        let max_active = (active as u64).max(u64::from(self.config.min_active));
        let enter = |extra: u64| (extra < max_active).then_some(extra + 1);
        if self.active_extra.fetch_update(AcqRel, Relaxed, enter).is_err() {
            self.rejected_active.fetch_add(1, Relaxed);
            return Err(RetryRejected::TooManyActive);
        }
        // Gives the place back if there is no token.
        let extra = ExtraAttempt { budget: Arc::clone(self) };
        if self.withdraw() {
            self.granted.fetch_add(1, Relaxed);
            Ok(extra)
        } else {
            self.rejected_spent.fetch_add(1, Relaxed);
            Err(RetryRejected::Spent)
        }
    }

    fn withdraw(&self) -> bool {
        let take = |balance: u64| balance.checked_sub(TOKEN);
        if self.balance.fetch_update(Relaxed, Relaxed, take).is_ok() {
            return true;
        }
        let Some(trickle) = self.trickle else { return false };
        let now = self.clock.now();
        // The generic cell rate algorithm, with a burst of one second's worth or one token.
        let burst = Duration::from_secs(1).as_nanos() as u64;
        let next = |due: u64| {
            let due = due.max(now.saturating_sub(burst.saturating_sub(trickle)));
            (due <= now).then(|| due.saturating_add(trickle))
        };
        self.due.fetch_update(Relaxed, Relaxed, next).is_ok()
    }

    /// Its figures.
    pub fn stats(&self) -> RetryBudgetStats {
        RetryBudgetStats {
            calls: self.calls.load(Relaxed),
            granted: self.granted.load(Relaxed),
            rejected_spent: self.rejected_spent.load(Relaxed),
            rejected_active: self.rejected_active.load(Relaxed),
            active_calls: self.active_calls.load(Relaxed),
            active_extra: self.active_extra.load(Relaxed),
            balance: self.balance.load(Relaxed) as f64 / TOKEN as f64,
        }
    }
}

/// A call under way that has paid in its share. Ends when dropped.
#[derive(Debug)]
#[must_use = "the call ends when this is dropped"]
pub struct BudgetedCall {
    budget: Arc<RetryBudget>,
}

impl BudgetedCall {
    /// Whether it is an account with this very budget.
    pub(crate) fn is_with(&self, budget: &Arc<RetryBudget>) -> bool {
        Arc::ptr_eq(&self.budget, budget)
    }
}

impl Drop for BudgetedCall {
    fn drop(&mut self) {
        self.budget.active_calls.fetch_sub(1, Relaxed);
    }
}

/// An extra attempt that was paid for. Its place is free again when this is dropped; its token is
/// spent.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct ExtraAttempt {
    budget: Arc<RetryBudget>,
}

impl Drop for ExtraAttempt {
    fn drop(&mut self) {
        self.budget.active_extra.fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ManualClock;
    use proptest::prelude::*;

    fn budget(config: RetryBudgetConfig) -> (Arc<RetryBudget>, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new());
        (RetryBudget::with_clock(config, Arc::<ManualClock>::clone(&clock)).unwrap(), clock)
    }

    #[test]
    fn waiting_retries_hold_their_places() {
        let config = RetryBudgetConfig { max_balance: 1_000, ..Default::default() };
        let (budget, _) = budget(config);
        let calls: Vec<_> = (0..100).map(|_| budget.begin()).collect();
        let waiting: Vec<_> = (0..100).map_while(|_| budget.try_extra().ok()).collect();
        assert_eq!(waiting.len(), 20, "a fifth of the 100 active calls");
        assert_eq!(budget.try_extra().err(), Some(RetryRejected::TooManyActive));
        drop(waiting);
        assert!(budget.try_extra().is_ok());
        assert_eq!(budget.stats().rejected_active, 2);
        drop(calls);
        assert_eq!((budget.stats().active_calls, budget.stats().active_extra), (0, 0));
    }

    #[test]
    fn a_quiet_client_gets_its_trickle() {
        let config =
            RetryBudgetConfig { ratio: 0.0, max_balance: 0, per_sec: 2.0, ..Default::default() };
        let (budget, clock) = budget(config);
        let mut granted = vec![];
        for _ in 0..40 {
            granted.push(budget.try_extra().is_ok());
            clock.advance(Duration::from_millis(100));
        }
        assert_eq!(granted.iter().filter(|granted| **granted).count(), 8, "{granted:?}");
        clock.advance(Duration::from_secs(100));
        let burst = (0..40).filter(|_| budget.try_extra().is_ok()).count();
        assert_eq!(burst, 2, "a second's worth");
    }

    proptest! {
        #[test]
        fn no_stretch_has_more_than_its_share(
            ratio in 0.0..2.0_f64,
            max_balance in 0..20_u32,
            per_sec in prop_oneof![Just(0.0), 0.1..50.0_f64],
            steps in prop::collection::vec((0..3_u8, 0..200_u64), 1..400),
        ) {
            let config = RetryBudgetConfig {
                ratio,
                max_balance,
                per_sec,
                active_ratio: 1.0,
                min_active: u32::MAX,
            };
            let (budget, clock) = budget(config);
            let mut log = vec![];
            let mut now = 0;
            for (what, wait) in steps {
                match what {
                    0 => {
                        clock.advance(Duration::from_millis(wait));
                        now += wait;
                    }
                    1 => {
                        drop(budget.begin());
                        log.push((now, true));
                    }
                    _ => if budget.try_extra().is_ok() {
                        log.push((now, false));
                    }
                }
            }
            for from in 0..log.len() {
                let (mut calls, mut extra) = (0.0, 0.0);
                for (at, is_call) in &log[from..] {
                    if *is_call { calls += 1.0 } else { extra += 1.0 }
                    let seconds = (at - log[from].0) as f64 / 1e3;
                    let bound = ratio * calls + f64::from(max_balance) + per_sec * (seconds + 1.0);
                    // One token of the trickle may be due at the very start.
                    prop_assert!(extra <= bound + f64::from(u8::from(per_sec > 0.0)) + 1e-6);
                }
            }
        }
    }
}
