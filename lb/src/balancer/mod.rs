//! A set of endpoints, and the strategy that picks among them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::config::{Config, EndpointConfig};
use crate::context::Context;
use crate::core::{Decaying, MAX_IN_FLIGHT};
use crate::endpoint::{Ejector, Endpoint, Pick, Tracking};
use crate::error::{ConfigError, UpdateError};
use crate::random::Random;
use crate::strategy::Strategy;

mod local;
mod plan;
mod state;
mod stats;
mod table;

use state::State;
pub use stats::{Availability, BalancerStats, EndpointStats};
use table::Table;

/// The most endpoints of one balancer.
pub const MAX_ENDPOINTS: usize = 65_535;

/// Picks an endpoint for a request. [`Balancer`] implements it; the trait is for those who want to
/// hold any balancer, or to wrap one.
pub trait Balance: fmt::Debug + Send + Sync {
    /// Leases an endpoint. `None` if no endpoint may be used now.
    fn pick(&self, ctx: &Context<'_>, now: u64) -> Option<Pick>;
}

/// Chooses which endpoint serves a request.
///
/// Cheap to clone; clones share everything. All methods may be called from any thread. `now` is in
/// nanoseconds since an epoch of the caller, the same for all calls.
///
/// # Example
/// ```
/// use voussoir_lb::{Balancer, Config, Context, EndpointConfig, Outcome, strategy::PowerOfTwo};
/// let balancer = Balancer::new(PowerOfTwo::default(), Config::default())?;
/// balancer.update(["10.0.0.1:80", "10.0.0.2:80"].map(EndpointConfig::new), 0)?;
/// let pick = balancer.pick(&Context::new(), 1_000).expect("two endpoints are healthy");
/// println!("connect to {}", pick.endpoint().name());
/// pick.finish(2_000, Outcome::Success);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Balancer {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: Config,
    strategy: Box<dyn Strategy>,
    random: Random,
    tracking: Tracking,
    table: ArcSwap<Table>,
    /// The serial of `table`, written after it: a thread that has the table of this serial may use
    /// it. Invariant: ascends.
    serial: AtomicU64,
    /// Where threads keep the table.
    slot: usize,
    state: Mutex<State>,
    availability: watch::Sender<Availability>,
    updates: watch::Sender<u64>,
    rejected: AtomicU64,
    /// The latest `now` of a pick, in ns; written once in [`LATEST_STEP`] of progress.
    latest: AtomicU64,
}

/// Progress of `now`, in ns, from which on the latest one is written anew.
const LATEST_STEP: u64 = 1 << 20;

impl Balancer {
    /// A balancer without endpoints.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(strategy: impl Strategy + 'static, config: Config) -> Result<Self, ConfigError> {
        Self::boxed(Box::new(strategy), config)
    }

    /// A balancer without endpoints, whose strategy was chosen at run time.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn boxed(strategy: Box<dyn Strategy>, config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        let outliers = config.outliers.as_ref();
        let windows =
            outliers.is_some_and(|given| given.success_rate.is_some() || given.latency.is_some());
        let tracking = Tracking {
            max_in_flight: config.max_in_flight.unwrap_or(MAX_IN_FLIGHT),
            failure_rate: Decaying::rate(config.failure_half_life.as_nanos() as u64),
            latency_rate: strategy.latency_half_life().map_or(0.0, Decaying::rate),
            windows,
            consecutive: outliers.and_then(|given| given.consecutive_failures).unwrap_or(u32::MAX),
        };
        let inner = Inner {
            random: Random::new(config.seed),
            config,
            strategy,
            tracking,
            table: ArcSwap::from_pointee(Table::default()),
            serial: AtomicU64::new(0),
            slot: local::new_slot(),
            state: Mutex::new(State::default()),
            availability: watch::Sender::new(Availability::default()),
            updates: watch::Sender::new(0),
            rejected: AtomicU64::new(0),
            latest: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Leases an endpoint for a request. `None` if no endpoint may be used now: the set is empty,
    /// unchecked, full, or rejected by a panic.
    #[inline]
    pub fn pick(&self, ctx: &Context<'_>, now: u64) -> Option<Pick> {
        self.inner.pick(ctx, now)
    }

    /// Replaces the set of endpoints. Endpoints whose names stay keep their counters, their health
    /// and their place; a weight, zone or priority may change.
    ///
    /// With [`Config::checks`], a set in which nothing passes its checks yet replaces the old one
    /// step by step: endpoints that leave and pass their checks go on serving, and stand behind the
    /// others in [`endpoints`](Balancer::endpoints), until one of the set may be used or their own
    /// checks fail. Check them too.
    ///
    /// # Errors
    /// A set that cannot be used; the old one stays.
    pub fn update(
        &self,
        endpoints: impl IntoIterator<Item = EndpointConfig>,
        now: u64,
    ) -> Result<(), UpdateError> {
        let endpoints: Vec<EndpointConfig> = endpoints.into_iter().collect();
        state::validate(&endpoints)?;
        self.inner.change(now, |state, inner| {
            state.replace(endpoints, inner, now);
            true
        });
        self.inner.updates.send_modify(|updates| *updates += 1);
        Ok(())
    }

    /// Stops or resumes new traffic to an endpoint; sessions bound to it go on. It is drained when
    /// its [`in_flight`](Endpoint::in_flight) is 0. Later sets with the name do not resume it, and
    /// an endpoint that its set drains is not resumed here. Returns false for an unknown name.
    pub fn set_draining(&self, name: &str, draining: bool, now: u64) -> bool {
        self.inner
            .change(now, |state, inner| state.set_draining(name, draining, &inner.config, now))
    }

    /// Records the result of an active check of the endpoint with this
    /// [`id`](Endpoint::id). Ignored for an endpoint that has left, and without
    /// [`Config::checks`].
    pub fn record_check(&self, id: u64, passed: bool, now: u64) {
        self.inner.change(now, |state, inner| state.record_check(id, passed, &inner.config, now));
    }

    /// Ends ejections and windows that are due. Each [`pick`](Balancer::pick) does so as well;
    /// call it to notice them while there is no traffic.
    pub fn tick(&self, now: u64) {
        if now >= self.inner.table.load().next_change {
            self.inner.change(now, |state, inner| state.advance(&inner.config, now));
        }
    }

    /// The endpoints of the set, in its order, and those that left it but still serve in its place.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.inner.state.lock().endpoints()
    }

    /// Whether [`endpoints`](Self::endpoints) has the endpoint with this id.
    #[cfg(feature = "tower")]
    pub(crate) fn has_endpoint(&self, id: u64) -> bool {
        self.inner.state.lock().entries.iter().any(|entry| entry.endpoint.id() == id)
    }

    /// How many endpoints are healthy, and each change of that.
    pub fn availability(&self) -> watch::Receiver<Availability> {
        self.inner.availability.subscribe()
    }

    /// How many sets were received, and each that is. Also notified, with the same count, when
    /// endpoints that had left the set stop serving.
    pub fn updates(&self) -> watch::Receiver<u64> {
        self.inner.updates.subscribe()
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The state of the set and of each endpoint.
    pub fn stats(&self, now: u64) -> BalancerStats {
        let rejected = self.inner.rejected.load(Relaxed);
        self.inner.state.lock().stats(rejected, now)
    }
}

impl Balance for Balancer {
    fn pick(&self, ctx: &Context<'_>, now: u64) -> Option<Pick> {
        self.inner.pick(ctx, now)
    }
}

impl fmt::Debug for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let availability = *self.inner.availability.borrow();
        f.debug_struct("Balancer")
            .field("strategy", &self.inner.strategy)
            .field("availability", &availability)
            .finish_non_exhaustive()
    }
}

impl Ejector for Inner {
    #[cold]
    fn eject(self: Arc<Self>, endpoint: &Endpoint, now: u64) {
        endpoint.forget_failures_in_a_row();
        let mut refused = 0;
        self.change(now, |state, inner| {
            let is_ejected = state.eject(endpoint.id(), &inner.config, now);
            refused = state.refused_ejections;
            is_ejected
        });
        self.availability.send_if_modified(|last| {
            let is_new = last.refused_ejections < refused;
            last.refused_ejections = last.refused_ejections.max(refused);
            is_new
        });
    }

    fn latest(&self) -> u64 {
        self.latest.load(Relaxed)
    }
}

impl Inner {
    #[inline]
    fn pick(self: &Arc<Self>, ctx: &Context<'_>, now: u64) -> Option<Pick> {
        if now >= self.latest.load(Relaxed).saturating_add(LATEST_STEP) {
            self.latest.fetch_max(now, Relaxed);
        }
        let mut table = self.table();
        if now >= table.next_change {
            self.advance(now);
            table = self.table();
        }
        let pick = table.pick(ctx, now, &self.random);
        local::put(self.slot, table);
        if pick.is_none() {
            self.rejected.fetch_add(1, Relaxed);
        }
        pick
    }

    /// The current table: the one that this thread keeps, if no other was published since.
    #[inline]
    fn table(&self) -> Arc<Table> {
        local::take(self.slot, self.serial.load(Acquire)).unwrap_or_else(|| self.table.load_full())
    }

    #[cold]
    fn advance(self: &Arc<Self>, now: u64) {
        // While another thread changes the state, its table is soon there.
        let Some(mut state) = self.state.try_lock() else { return };
        if state.advance(&self.config, now) {
            drop(state);
            self.publish(now);
        }
    }

    /// Changes the state, and the table if `change` returns true.
    fn change(
        self: &Arc<Self>,
        now: u64,
        change: impl FnOnce(&mut State, &Arc<Self>) -> bool,
    ) -> bool {
        let mut state = self.state.lock();
        let changed = change(&mut state, self);
        let is_due = changed || state.is_outdated;
        drop(state);
        if is_due {
            self.publish(now);
        }
        changed
    }

    /// Compiles the state into a table. Only one thread compiles; it repeats while others change
    /// the state. Foreign code (the strategy) runs without the lock.
    fn publish(self: &Arc<Self>, now: u64) {
        let mut state = self.state.lock();
        state.version += 1;
        if state.compiling {
            // The thread that compiles sees the new version.
            return;
        }
        state.compiling = true;
        // Declared first, so that what strategies made is dropped after the lock is released.
        let mut garbage = Vec::new();
        let mut guard = Compiling { inner: self, state: Some(state) };
        // Ends: another round follows only after another change.
        loop {
            let Some(mut state) = guard.state.take() else { return };
            let version = state.version;
            let plan = plan::plan(&mut state, &self.config, now);
            drop(state);
            let mut availability = plan.availability;
            let has_dropped = plan.has_dropped;
            let (table, compiled) = plan.compile(self.strategy.as_ref(), &self.random);
            let serial = table.serial;
            let old_table = self.table.swap(Arc::new(table));
            self.serial.store(serial, Release);
            self.availability.send_if_modified(|last| {
                // Another thread may have counted more meanwhile.
                let refused = last.refused_ejections.max(availability.refused_ejections);
                availability.refused_ejections = refused;
                std::mem::replace(last, availability) != availability
            });
            if has_dropped {
                // The count stays; those who follow the set look at it again.
                self.updates.send_modify(|_| ());
            }
            let mut state = self.state.lock();
            garbage.push((old_table, state.remember(compiled)));
            let is_done = state.version == version;
            if is_done {
                (state.compiling, state.is_outdated) = (false, false);
            } else {
                guard.state = Some(state);
                continue;
            }
            drop(state);
            std::mem::forget(guard);
            return;
        }
    }
}

/// Gives the right to compile back when a strategy panics.
struct Compiling<'a> {
    inner: &'a Inner,
    state: Option<parking_lot::MutexGuard<'a, State>>,
}

impl Drop for Compiling<'_> {
    fn drop(&mut self) {
        drop(self.state.take());
        let mut state = self.inner.state.lock();
        // The next change compiles it again, whatever it changes.
        (state.compiling, state.is_outdated) = (false, true);
    }
}
