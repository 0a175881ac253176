//! Export through the `metrics` facade.
//!
//! Nothing on the path of a call touches the facade: the handles are registered once, and
//! `export` copies the snapshots into them, from a timer or when a scrape comes in.

use metrics::{Counter, Gauge, counter, gauge};

use crate::breaker::{Breaker, State};
use crate::gate::GateStats;
use crate::hedge::Hedge;
use crate::retry::RetryBudget;

/// Handles for one breaker, labelled `breaker`.
#[derive(Debug)]
pub struct BreakerMetrics {
    state: Gauge,
    calls: Counter,
    failures: Counter,
    slow: Counter,
    rejected: Counter,
    late: Counter,
    openings: Counter,
    would_open: Counter,
}

impl BreakerMetrics {
    /// Registers the handles with the installed recorder.
    pub fn new(breaker: &Breaker) -> Self {
        let name = breaker.name().to_owned();
        let counter = |metric: &'static str| counter!(metric, "breaker" => name.clone());
        Self {
            state: gauge!("voussoir_breaker_state", "breaker" => name.clone()),
            calls: counter("voussoir_breaker_calls_total"),
            failures: counter("voussoir_breaker_failures_total"),
            slow: counter("voussoir_breaker_slow_total"),
            rejected: counter("voussoir_breaker_rejected_total"),
            late: counter("voussoir_breaker_late_total"),
            openings: counter("voussoir_breaker_openings_total"),
            would_open: counter("voussoir_breaker_would_open_total"),
        }
    }

    /// Copies the breaker's figures into the handles.
    pub fn export(&self, breaker: &Breaker) {
        let stats = breaker.stats();
        self.state.set(match stats.state {
            State::Closed => 0.0,
            State::HalfOpen => 1.0,
            State::Open => 2.0,
            State::ForcedOpen => 3.0,
            State::ForcedClosed => 4.0,
            State::MetricsOnly => 5.0,
        });
        self.calls.absolute(stats.lifetime.calls);
        self.failures.absolute(stats.lifetime.failures);
        self.slow.absolute(stats.lifetime.slow);
        self.rejected.absolute(stats.rejected);
        self.late.absolute(stats.late);
        self.openings.absolute(stats.openings);
        self.would_open.absolute(stats.would_open);
    }
}

/// Handles for one retry budget, labelled `budget`.
#[derive(Debug)]
pub struct BudgetMetrics {
    calls: Counter,
    granted: Counter,
    spent: Counter,
    active: Counter,
    balance: Gauge,
}

impl BudgetMetrics {
    /// Registers the handles with the installed recorder.
    pub fn new(budget: &'static str) -> Self {
        let rejected = "voussoir_retry_rejected_total";
        Self {
            calls: counter!("voussoir_retry_calls_total", "budget" => budget),
            granted: counter!("voussoir_retry_granted_total", "budget" => budget),
            spent: counter!(rejected, "budget" => budget, "why" => "spent"),
            active: counter!(rejected, "budget" => budget, "why" => "active"),
            balance: gauge!("voussoir_retry_balance", "budget" => budget),
        }
    }

    /// Copies the budget's figures into the handles.
    pub fn export(&self, budget: &RetryBudget) {
        let stats = budget.stats();
        self.calls.absolute(stats.calls);
        self.granted.absolute(stats.granted);
        self.spent.absolute(stats.rejected_spent);
        self.active.absolute(stats.rejected_active);
        self.balance.set(stats.balance);
    }
}

/// Handles for one bulkhead or adaptive limit, labelled `gate`.
#[derive(Debug)]
pub struct GateMetrics {
    limit: Gauge,
    running: Gauge,
    waiting: Gauge,
    refused: Counter,
    expired: Counter,
}

impl GateMetrics {
    /// Registers the handles with the installed recorder.
    pub fn new(gate: &'static str) -> Self {
        Self {
            limit: gauge!("voussoir_gate_limit", "gate" => gate),
            running: gauge!("voussoir_gate_running", "gate" => gate),
            waiting: gauge!("voussoir_gate_waiting", "gate" => gate),
            refused: counter!("voussoir_gate_refused_total", "gate" => gate),
            expired: counter!("voussoir_gate_expired_total", "gate" => gate),
        }
    }

    /// Copies a gate's figures into the handles.
    pub fn export(&self, stats: &GateStats) {
        self.limit.set(stats.limit as f64);
        self.running.set(stats.running as f64);
        self.waiting.set(stats.waiting as f64);
        self.refused.absolute(stats.refused);
        self.expired.absolute(stats.expired);
    }
}

/// Handles for one hedge, labelled `hedge`.
#[derive(Debug)]
pub struct HedgeMetrics {
    calls: Counter,
    hedges: Counter,
    won: Counter,
    rejected: Counter,
    delay: Gauge,
}

impl HedgeMetrics {
    /// Registers the handles with the installed recorder.
    pub fn new(hedge: &'static str) -> Self {
        Self {
            calls: counter!("voussoir_hedge_calls_total", "hedge" => hedge),
            hedges: counter!("voussoir_hedge_sent_total", "hedge" => hedge),
            won: counter!("voussoir_hedge_won_total", "hedge" => hedge),
            rejected: counter!("voussoir_hedge_rejected_total", "hedge" => hedge),
            delay: gauge!("voussoir_hedge_delay_seconds", "hedge" => hedge),
        }
    }

    /// Copies the hedge's figures into the handles.
    pub fn export(&self, hedge: &Hedge) {
        let stats = hedge.stats();
        self.calls.absolute(stats.calls);
        self.hedges.absolute(stats.hedges);
        self.won.absolute(stats.won);
        self.rejected.absolute(stats.rejected);
        self.delay.set(stats.delay.as_secs_f64());
    }
}
