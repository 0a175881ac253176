//! 63-bit ids of a time, a worker number and a sequence number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::error::IdError;
use super::window::WorkerWindow;
use super::{MAX_TIME_MS, NS_PER_MS};
use crate::error::ConfigError;

/// The layout of [`Snowflake`] ids: from the top a zero bit, the time in ms since `epoch_ms`, the
/// worker number, the sequence number. The default is Twitter's: 41, 10 and 12 bits.
///
/// All processes that make ids of one kind must have the same layout, for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnowflakeConfig {
    /// Where the time of ids begins, in ms since the UNIX epoch. Below 2^48. Default
    /// 1,704,067,200,000 (1 January 2024): 41 bits last until 2093.
    pub epoch_ms: u64,
    /// Bits of the worker number. With `sequence_bits` at most 24, so that the time lasts for at
    /// least 17 years. Default 10: 1,024 workers.
    pub worker_bits: u32,
    /// Bits of the sequence number, at least 1. Default 12: 4,096 ids per ms and worker.
    pub sequence_bits: u32,
    /// A clock that steps back by up to this much only slows ids down: they take the sequence
    /// numbers that are left of the latest ms. Beyond it there is [`IdError::ClockBehind`]. Up to
    /// 1 minute. Default 10 ms.
    pub max_clock_behind: Duration,
}

impl Default for SnowflakeConfig {
    fn default() -> Self {
        Self {
            epoch_ms: 1_704_067_200_000,
            worker_bits: 10,
            sequence_bits: 12,
            max_clock_behind: Duration::from_millis(10),
        }
    }
}

impl SnowflakeConfig {
    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let low_bits = u64::from(self.worker_bits) + u64::from(self.sequence_bits);
        ConfigError::first_of(&[
            ("epoch_ms", self.epoch_ms < MAX_TIME_MS, "must be below 2^48"),
            ("sequence_bits", self.sequence_bits > 0, "must be at least 1"),
            ("worker_bits", low_bits <= 24, "must be at most 24 together with `sequence_bits`"),
            (
                "max_clock_behind",
                self.max_clock_behind <= Duration::from_secs(60),
                "must be at most 1 minute",
            ),
        ])
    }

    /// How many worker numbers there are.
    pub fn workers(&self) -> u32 {
        1_u32.checked_shl(self.worker_bits).unwrap_or(0)
    }

    /// Takes an id of this layout apart. Negative ids do not exist; the top bit is ignored.
    ///
    /// # Errors
    /// [`ConfigError`] if the layout is not valid.
    pub fn parts(&self, id: u64) -> Result<SnowflakeParts, ConfigError> {
        self.validate()?;
        let time = (id & (u64::MAX >> 1)) >> (self.worker_bits + self.sequence_bits);
        Ok(SnowflakeParts {
            time_ms: time + self.epoch_ms,
            worker: (id >> self.sequence_bits) as u32 & (self.workers() - 1),
            sequence: id as u32 & ((1 << self.sequence_bits) - 1),
        })
    }
}

/// What a [`Snowflake`] id is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnowflakeParts {
    /// When it was made, in ms since the UNIX epoch.
    pub time_ms: u64,
    /// Who made it.
    pub worker: u32,
    /// Its number among the ids of that worker and ms.
    pub sequence: u32,
}

/// Makes ids of a [`SnowflakeConfig`] layout. Ids of one generator grow. Shared by reference among
/// threads; no lock is taken.
///
/// # Example
/// ```
/// use voussoir_lock::ids::{Snowflake, SnowflakeConfig, WorkerWindow};
///
/// let layout = SnowflakeConfig::default();
/// // Number 7 is ours alone. See `WorkerLease` for numbers that are leased.
/// let ids = Snowflake::new(layout.clone(), WorkerWindow::unleased(7, 0))?;
/// let now = 1_767_225_600_000_000_000; // ns since the UNIX epoch
/// let (first, second) = (ids.next(now)?, ids.next(now)?);
/// assert!(first < second);
/// assert_eq!(layout.parts(second)?.worker, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Snowflake {
    /// The smallest time and sequence number that are not used yet, as `time << sequence_bits |
    /// sequence`; the time in ms since `epoch_ms`. It never falls.
    next_free: AtomicU64,
    window: WorkerWindow,
    epoch_ms: u64,
    sequence_bits: u32,
    /// Bits right of the time in an id.
    low_bits: u32,
    /// Times are below this, in ms since `epoch_ms`. Invariant: at most 2^(63 - low_bits), so that
    /// neither an id nor `next_free` overflows.
    end: u64,
    /// The worker number, where it stands in an id.
    worker: u64,
    max_behind_ms: u64,
}

impl Snowflake {
    /// A generator that uses the worker number of `window`, for its times only.
    ///
    /// # Errors
    /// [`ConfigError`] if the layout is not valid, or has no bits for the worker number.
    pub fn new(config: SnowflakeConfig, window: WorkerWindow) -> Result<Self, ConfigError> {
        config.validate()?;
        ConfigError::first_of(&[(
            "worker_bits",
            window.worker() < config.workers(),
            "must hold the worker number",
        )])?;
        let low_bits = config.worker_bits + config.sequence_bits;
        let end = 1 << (63 - low_bits);
        let start = window.start_ms().saturating_sub(config.epoch_ms).min(end);
        Ok(Self {
            next_free: AtomicU64::new(start << config.sequence_bits),
            epoch_ms: config.epoch_ms,
            sequence_bits: config.sequence_bits,
            low_bits,
            end,
            worker: u64::from(window.worker()) << config.sequence_bits,
            max_behind_ms: config.max_clock_behind.as_millis() as u64,
            window,
        })
    }

    /// The next id. `now` is the time of day, in ns since the UNIX epoch; it may step.
    ///
    /// # Errors
    /// [`IdError`]; nothing was used up.
    #[inline]
    pub fn next(&self, now: u64) -> Result<u64, IdError> {
        let now_ms = now / NS_PER_MS;
        // Before the epoch of the layout there is nothing to number: the clock is behind.
        let now_unit = now_ms.saturating_sub(self.epoch_ms).min(self.end);
        let mut free = self.next_free.load(Ordering::Relaxed);
        // Ends: each failed exchange means that another thread has made an id.
        loop {
            let candidate = free.max(now_unit << self.sequence_bits);
            let unit = candidate >> self.sequence_bits;
            self.check(unit, candidate, now_ms)?;
            // Relaxed: the exchange alone makes ids different; they publish nothing else.
            let exchanged = self.next_free.compare_exchange_weak(
                free,
                candidate + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match exchanged {
                Ok(_) => {
                    let sequence = candidate & ((1 << self.sequence_bits) - 1);
                    return Ok(unit << self.low_bits | self.worker | sequence);
                }
                Err(newer) => free = newer,
            }
        }
    }

    /// Whether the candidate, whose time is `unit`, may become an id now.
    #[inline]
    fn check(&self, unit: u64, candidate: u64, now_ms: u64) -> Result<(), IdError> {
        if unit >= self.end {
            return Err(IdError::LayoutFull);
        }
        let time_ms = unit + self.epoch_ms;
        if time_ms > now_ms {
            let behind_ms = time_ms - now_ms;
            if behind_ms > self.max_behind_ms.max(1) {
                return Err(IdError::ClockBehind { behind_ms, ready_at_ms: time_ms });
            }
            // A later ms than the clock's is not begun, only used up.
            let is_begun = candidate & ((1 << self.sequence_bits) - 1) != 0;
            if !is_begun || behind_ms > self.max_behind_ms {
                return Err(IdError::Exhausted { ready_at_ms: time_ms });
            }
        }
        self.window.check(time_ms)
    }
}
