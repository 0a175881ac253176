//! Endpoints, and the leases on them.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use crate::core::{Decaying, Flight, WindowSample};

/// How a request ended at its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint did its work, also when the answer is an error of the client's.
    Success,
    /// The endpoint refused, timed out, or answered with an error of its own.
    Failure,
}

/// Ejects endpoints: the balancer, which endpoints know by this trait only.
pub(crate) trait Ejector: Send + Sync {
    /// Ejects an endpoint that failed too often in a row, if its share allows it.
    fn eject(self: Arc<Self>, endpoint: &Endpoint, now: u64);

    /// The latest `now` of a pick, less up to 1.05 ms.
    fn latest(&self) -> u64;
}

/// What an endpoint needs to know about its balancer's configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tracking {
    pub(crate) max_in_flight: u32,
    /// [`Decaying::rate`] of the failures.
    pub(crate) failure_rate: f32,
    /// [`Decaying::rate`] of the latencies; 0 if the strategy needs none.
    pub(crate) latency_rate: f32,
    /// Whether windows are counted.
    pub(crate) windows: bool,
    /// Failures in a row that eject.
    pub(crate) consecutive: u32,
}

/// A backend with its counters. A set that is replaced keeps the endpoints whose names stay.
// `repr(C)`: what each pick touches lies behind the counts of the `Arc`, on the same cache line.
#[repr(C)]
pub struct Endpoint {
    flight: Flight,
    latency: Decaying,
    failing: Decaying,
    /// The average of the latency at the last success, an `f32` in ns, which does not fade. 0
    /// before the first success: then `latency` is at most a lower bound.
    measured: AtomicU32,
    tracking: Tracking,
    consecutive: AtomicU32,
    /// Successes (upper half) and failures (lower half) of the current window.
    window: AtomicU64,
    window_latency: AtomicU64,
    failures: AtomicU64,
    cancelled: AtomicU64,
    id: u64,
    name_hash: u64,
    name: Box<str>,
    session: Box<str>,
    balancer: Weak<dyn Ejector>,
    /// The load that a bounded consistent hash counts for picks in flight. Which pick ends which
    /// assignment does not matter: all of them count for this endpoint.
    #[cfg(feature = "ring")]
    assignments: parking_lot::Mutex<Vec<voussoir_ring::Assignment>>,
}

impl Endpoint {
    pub(crate) fn new(
        id: u64,
        name: &str,
        tracking: Tracking,
        balancer: Weak<dyn Ejector>,
    ) -> Self {
        let name_hash = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
        Self {
            flight: Flight::new(),
            latency: Decaying::new(),
            failing: Decaying::new(),
            measured: AtomicU32::new(0),
            tracking,
            consecutive: AtomicU32::new(0),
            window: AtomicU64::new(0),
            window_latency: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            id,
            name_hash,
            name: name.into(),
            session: format!("{name_hash:016x}").into(),
            balancer,
            #[cfg(feature = "ring")]
            assignments: parking_lot::Mutex::default(),
        }
    }

    /// The name it was configured with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A number that no other endpoint of the balancer has or will have. An endpoint that leaves
    /// the set and returns gets a new one.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The XXH3-64 hash of the name: the same in every process.
    pub fn name_hash(&self) -> u64 {
        self.name_hash
    }

    /// The token that binds a session to this endpoint: set it as a cookie or header, and pass it
    /// back in [`Context::session`](crate::Context::session). 16 hexadecimal digits.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// Picks that have neither finished nor been dropped.
    pub fn in_flight(&self) -> u32 {
        self.flight.in_flight()
    }

    /// Requests in flight, and one for each recent failure, which fades by half in each
    /// `failure_half_life`.
    #[inline]
    pub fn load(&self, now: u64) -> f32 {
        self.flight.in_flight() as f32 + self.failing.read(now, self.tracking.failure_rate)
    }

    /// The peak-sensitive moving average of the latency in ns at `now`. It fades while nothing is
    /// measured. Requests that failed or were cancelled raise it, if they lasted longer, and never
    /// lower it. 0 if nothing was measured, or by a strategy that records no latencies.
    #[inline]
    pub fn latency(&self, now: u64) -> f32 {
        self.latency.read(now, self.tracking.latency_rate)
    }

    /// The average of the latency in ns at the last success. 0 if there was none.
    #[inline]
    pub(crate) fn measured_latency(&self) -> f32 {
        f32::from_bits(self.measured.load(Relaxed))
    }

    #[inline]
    pub(crate) fn try_take(&self) -> bool {
        self.flight.try_take(self.tracking.max_in_flight)
    }

    pub(crate) fn picks(&self) -> u64 {
        self.flight.picks()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    pub(crate) fn cancelled(&self) -> u64 {
        self.cancelled.load(Relaxed)
    }

    /// Ends the current window and returns what it counted.
    pub(crate) fn take_window(&self) -> WindowSample {
        let counts = self.window.swap(0, Relaxed);
        let latency_sum = self.window_latency.swap(0, Relaxed);
        WindowSample { successes: (counts >> 32) as u32, failures: counts as u32, latency_sum }
    }

    pub(crate) fn forget_failures_in_a_row(&self) {
        self.consecutive.store(0, Relaxed);
    }

    #[inline]
    fn succeeded(&self, now: u64, started: u64) {
        let latency = now.saturating_sub(started);
        if self.tracking.latency_rate > 0.0 {
            let rate = self.tracking.latency_rate;
            if let Some(average) = self.latency.peak(now, rate, latency as f32) {
                self.measured.store(average.to_bits(), Relaxed);
            }
        }
        if self.consecutive.load(Relaxed) != 0 {
            self.consecutive.store(0, Relaxed);
        }
        self.failing.forget(now, self.tracking.failure_rate);
        if self.tracking.windows {
            self.window.fetch_add(1 << 32, Relaxed);
            self.window_latency.fetch_add(latency, Relaxed);
        }
    }

    #[cold]
    fn failed(self: &Arc<Self>, now: u64, started: u64) {
        self.failures.fetch_add(1, Relaxed);
        self.failing.add(now, self.tracking.failure_rate, 1.0);
        // A failure says nothing good about the latency: only a longer one counts.
        self.lasted(now, started);
        if self.tracking.windows {
            self.window.fetch_add(1, Relaxed);
        }
        let row = self.consecutive.fetch_add(1, Relaxed).saturating_add(1);
        if row >= self.tracking.consecutive
            && let Some(balancer) = self.balancer.upgrade()
        {
            balancer.eject(self, now);
        }
    }

    /// A request has lasted from `started` to `now` without a success: the latency is no less.
    fn lasted(&self, now: u64, started: u64) {
        if self.tracking.latency_rate > 0.0 {
            let latency = now.saturating_sub(started);
            self.latency.raise(now, self.tracking.latency_rate, latency as f32);
        }
    }

    /// The caller gave a request up at `now`; `None` is the latest time that the balancer knows.
    #[cold]
    fn cancelled_at(&self, now: Option<u64>, started: u64) {
        self.cancelled.fetch_add(1, Relaxed);
        if self.tracking.latency_rate > 0.0 {
            let latest = || self.balancer.upgrade().map(|balancer| balancer.latest());
            if let Some(now) = now.or_else(latest) {
                self.lasted(now, started);
            }
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("name", &self.name)
            .field("id", &self.id)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// A lease on one endpoint for one request. It stays valid when the endpoint leaves the set.
///
/// End it with [`finish`](Pick::finish), or with [`cancel`](Pick::cancel) if the caller gives the
/// request up. A pick that is dropped gives its place back and counts as cancelled at the latest
/// `now` of any pick of the balancer: of a balancer without other traffic that is too early, so an
/// endpoint that hangs may go on looking fast.
#[must_use = "the place is given back when the pick is dropped"]
pub struct Pick {
    endpoint: Arc<Endpoint>,
    /// When the pick began, in ns, and the flags. One word, and the pick two: a pick is
    /// returned in registers. A flag in a byte of its own is stored, and then loaded together with
    /// its neighbours as the pick is moved, which the processor cannot forward: each such move
    /// costs as much as two of the atomics.
    word: u64,
}

/// Flag of [`Pick::word`]: the outcome was recorded.
const FINISHED: u64 = 1 << 63;
/// Flag of [`Pick::word`]: the endpoint holds an assignment for the pick.
#[cfg(feature = "ring")]
const ASSIGNED: u64 = 1 << 62;
/// Flag of [`Pick::word`]: if the pick is cancelled, its duration says nothing of the latency.
const SILENT: u64 = 1 << 61;
/// The bits of [`Pick::word`] that are the time: 73 years.
const TIME: u64 = SILENT - 1;

impl Pick {
    #[inline]
    pub(crate) fn new(endpoint: Arc<Endpoint>, started: u64) -> Self {
        Self { endpoint, word: started.min(TIME) }
    }

    /// The same pick, for which the endpoint holds `assignment`.
    #[cfg(feature = "ring")]
    pub(crate) fn assigned(mut self, assignment: voussoir_ring::Assignment) -> Self {
        self.word |= ASSIGNED;
        self.endpoint.assignments.lock().push(assignment);
        self
    }

    /// The endpoint that serves the request.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Ends the request: records its outcome, and its latency from the `now` of the pick to this.
    #[inline]
    pub fn finish(mut self, now: u64, outcome: Outcome) {
        self.record(now, outcome);
    }

    /// Records the outcome and the latency, and keeps the place until the pick is dropped: for a
    /// connection that was established at `now` and stays open. Only the first call counts.
    #[inline]
    pub fn record(&mut self, now: u64, outcome: Outcome) {
        if self.word & FINISHED != 0 {
            return;
        }
        self.word |= FINISHED;
        let started = self.word & TIME;
        match outcome {
            Outcome::Success => self.endpoint.succeeded(now, started),
            Outcome::Failure => self.endpoint.failed(now, started),
        }
    }

    /// Gives the request up at `now`: a time-out of the caller's, a client that hung up. This is no
    /// failure of the endpoint, but its latency is at least the time that the pick has lasted. Pass
    /// the `now` of the pick if the endpoint was not asked.
    pub fn cancel(mut self, now: u64) {
        self.record_cancelled(Some(now));
    }

    /// Counts the pick as cancelled, unless its outcome was recorded.
    pub(crate) fn record_cancelled(&mut self, now: Option<u64>) {
        if self.word & FINISHED != 0 {
            return;
        }
        let started = self.word & TIME;
        let now = if self.word & SILENT == 0 { now } else { Some(started) };
        self.word |= FINISHED;
        self.endpoint.cancelled_at(now, started);
    }

    /// From here on the endpoint is not waited for, or not known to be: if the pick is cancelled,
    /// its duration says nothing of the latency.
    #[cfg(feature = "l4")]
    pub(crate) fn ignore_duration(&mut self) {
        self.word |= SILENT;
    }
}

impl Drop for Pick {
    #[inline]
    fn drop(&mut self) {
        if self.word & FINISHED == 0 {
            self.record_cancelled(None);
        }
        #[cfg(feature = "ring")]
        if self.word & ASSIGNED != 0 {
            let ended = self.endpoint.assignments.lock().pop();
            drop(ended);
        }
        self.endpoint.flight.release();
    }
}

impl fmt::Debug for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pick").field("endpoint", &self.endpoint.name).finish_non_exhaustive()
    }
}

/// A pick whose endpoint is waited for: a drop cancels it at the time of the clock.
#[cfg(any(feature = "l4", feature = "tower"))]
pub(crate) struct Awaited<'a> {
    pick: &'a mut Pick,
    clock: &'a dyn crate::clock::Clock,
}

#[cfg(any(feature = "l4", feature = "tower"))]
impl<'a> Awaited<'a> {
    pub(crate) fn new(pick: &'a mut Pick, clock: &'a dyn crate::clock::Clock) -> Self {
        Self { pick, clock }
    }

    /// Ends the wait: the caller records how.
    pub(crate) fn end(self) {
        std::mem::forget(self);
    }
}

#[cfg(any(feature = "l4", feature = "tower"))]
impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.pick.record_cancelled(Some(self.clock.now()));
    }
}
