//! A bulkhead whose limit an algorithm adapts to the latency of the dependency.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::bulkhead::QueueConfig;
use crate::clock::{Clock, Monotonic, TokioClock};
use crate::core::{LimitAlgorithm, LimitSample};
use crate::error::{ConfigError, GateError};
use crate::gate::{Gate, GatePermit, GateStats};

/// A bulkhead whose size follows the latency of the dependency. Cloning shares it.
///
/// # Example
/// ```
/// use voussoir_breaker::{AdaptiveLimit, Gradient2, Gradient2Config, QueueConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let algorithm = Gradient2::new(Gradient2Config::default());
/// let limit = AdaptiveLimit::new(Box::new(algorithm), QueueConfig::default())?;
/// let permit = limit.acquire().await?;
/// // The call.
/// permit.success();
/// assert_eq!(limit.stats().running, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AdaptiveLimit {
    shared: Arc<Shared>,
}

/// Samples that wait for the algorithm, at most; further ones are left out.
const MAX_SAMPLES: usize = 1_024;
/// Samples that one call tells the algorithm, at most; the rest is left to the next call that ends.
const MAX_TURN: usize = 64;

#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    updates: Mutex<Updates>,
    clock: Arc<dyn Clock>,
}

/// The algorithm is foreign code, and is not run under the lock: one thread takes it out, feeds it
/// the samples of all, and puts it back.
#[derive(Debug)]
struct Updates {
    /// `None` while a thread runs it.
    algorithm: Option<Box<dyn LimitAlgorithm>>,
    samples: VecDeque<LimitSample>,
}

impl Shared {
    fn tell(&self, sample: LimitSample) {
        let mut updates = self.updates.lock();
        if updates.samples.len() < MAX_SAMPLES {
            updates.samples.push_back(sample);
        }
        let Some(algorithm) = updates.algorithm.take() else { return };
        let mut turn = Turn { shared: self, algorithm: Some(algorithm) };
        for _ in 0..MAX_TURN {
            let Some(sample) = updates.samples.pop_front() else { break };
            drop(updates);
            let limit = turn.algorithm.as_mut().map(|algorithm| algorithm.update(&sample).max(1));
            if let Some(limit) = limit {
                self.gate.set_limit(limit);
            }
            updates = self.updates.lock();
        }
        // Under the lock that found no more samples: none is left behind.
        updates.algorithm = turn.algorithm.take();
    }
}

/// A thread's turn to run the algorithm. Its drop puts the algorithm back, also after a panic.
struct Turn<'a> {
    shared: &'a Shared,
    algorithm: Option<Box<dyn LimitAlgorithm>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(algorithm) = self.algorithm.take() {
            self.shared.updates.lock().algorithm = Some(algorithm);
        }
    }
}

impl AdaptiveLimit {
    /// A limit that follows `algorithm`, timed by [`Monotonic`]: latencies need a fine clock.
    ///
    /// # Errors
    /// A queue that cannot work.
    pub fn new(
        algorithm: Box<dyn LimitAlgorithm>,
        queue: QueueConfig,
    ) -> Result<Self, ConfigError> {
        Self::with_clock(algorithm, queue, Arc::new(Monotonic))
    }

    /// The same over tokio's clock, for tests with paused time.
    ///
    /// # Errors
    /// A queue that cannot work.
    pub fn with_tokio_clock(
        algorithm: Box<dyn LimitAlgorithm>,
        queue: QueueConfig,
    ) -> Result<Self, ConfigError> {
        Self::with_clock(algorithm, queue, Arc::new(TokioClock::new()))
    }

    /// The same over a clock of the caller's.
    ///
    /// # Errors
    /// A queue that cannot work.
    pub fn with_clock(
        algorithm: Box<dyn LimitAlgorithm>,
        queue: QueueConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        queue.validate()?;
        let gate = queue.gate(algorithm.initial().max(1));
        let updates = Updates { algorithm: Some(algorithm), samples: VecDeque::new() };
        Ok(Self { shared: Arc::new(Shared { gate, updates: Mutex::new(updates), clock }) })
    }

    /// A permit, if one is free and no caller waits.
    ///
    /// # Errors
    /// There is none.
    pub fn try_acquire(&self) -> Result<AdaptivePermit, GateError> {
        Ok(self.permit(self.shared.gate.try_enter()?))
    }

    /// A permit, at once or after a wait in the queue. The wait is not part of the latency.
    ///
    /// # Errors
    /// The queue is full, or the wait was too long.
    ///
    /// # Cancel safety
    /// Dropping it leaves the queue; a place granted at that moment goes to the next in it.
    pub async fn acquire(&self) -> Result<AdaptivePermit, GateError> {
        Ok(self.permit(self.shared.gate.enter().await?))
    }

    fn permit(&self, gate: GatePermit) -> AdaptivePermit {
        AdaptivePermit {
            _gate: gate,
            shared: Arc::clone(&self.shared),
            start: self.shared.clock.now(),
            running: self.shared.gate.stats().running,
        }
    }

    /// Figures at this moment; `limit` is the algorithm's.
    pub fn stats(&self) -> GateStats {
        self.shared.gate.stats()
    }
}

/// The permit to run one call, to be returned with the call's result. When dropped without one it
/// is given back and the algorithm hears nothing.
#[derive(Debug)]
#[must_use = "the permit is given back when this is dropped"]
pub struct AdaptivePermit {
    _gate: GatePermit,
    shared: Arc<Shared>,
    start: u64,
    running: usize,
}

impl AdaptivePermit {
    /// The call was answered, well or badly: its latency counts.
    pub fn success(self) {
        self.tell(false);
    }

    /// The call timed out, or was turned away for load.
    pub fn overload(self) {
        self.tell(true);
    }

    fn tell(self, is_overload: bool) {
        let now = self.shared.clock.now();
        let latency = now.saturating_sub(self.start);
        let sample = LimitSample::new(now, latency, self.running, is_overload);
        self.shared.tell(sample);
    }
}
