//! UUIDs of version 7 with a 42-bit counter.

use std::time::Duration;

use fastrand::Rng;

use super::error::IdError;
use super::{MAX_TIME_MS, NS_PER_MS};
use crate::error::ConfigError;

/// How [`UuidV7`] makes ids.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UuidV7Config {
    /// A clock that steps back by up to this much is not noticed: ids go on from the latest ms.
    /// Beyond it there is [`IdError::ClockBehind`]. Up to 1 minute. Default 10 s.
    pub max_clock_behind: Duration,
    /// Seeds the random bits. `None` (the default) draws one.
    pub seed: Option<u64>,
}

impl Default for UuidV7Config {
    fn default() -> Self {
        Self { max_clock_behind: Duration::from_secs(10), seed: None }
    }
}

impl UuidV7Config {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::first_of(&[(
            "max_clock_behind",
            self.max_clock_behind <= Duration::from_secs(60),
            "must be at most 1 minute",
        )])
    }
}

/// Makes UUIDs of version 7: 48 bits of time in ms, a counter of 42 bits that begins at random in
/// each ms, and 32 random bits. Ids of one generator grow.
///
/// It needs no worker number: ids of several generators, and of one before and after a restart,
/// differ by chance, which is 1 in 2^73 for two ids of one ms. The random bits are not
/// cryptographic: ids can be guessed.
///
/// Source: RFC 9562, sections 5.7 and 6.2 (method 1).
///
/// # Example
/// ```
/// use voussoir_lock::ids::{UuidV7, UuidV7Config};
///
/// let mut ids = UuidV7::new(UuidV7Config::default())?;
/// let id = ids.next(1_767_225_600_000_000_000)?; // ns since the UNIX epoch
/// assert_eq!(id >> 76 & 0xf, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct UuidV7 {
    rng: Rng,
    /// Time of the latest id, in ms since the UNIX epoch.
    time_ms: u64,
    /// Counter of the latest id. Below 2^42.
    counter: u64,
    max_behind_ms: u64,
}

/// Bits of the counter.
const COUNTER_BITS: u32 = 42;

impl UuidV7 {
    /// A generator.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: UuidV7Config) -> Result<Self, ConfigError> {
        config.validate()?;
        let max_behind_ms = config.max_clock_behind.as_millis() as u64;
        let rng = config.seed.map_or_else(Rng::new, Rng::with_seed);
        Ok(Self { rng, time_ms: 0, counter: 0, max_behind_ms })
    }

    /// The next id, as the number whose big-endian bytes are the UUID. `now` is the time of day,
    /// in ns since the UNIX epoch; it may step.
    ///
    /// # Errors
    /// [`IdError`]; nothing was used up.
    pub fn next(&mut self, now: u64) -> Result<u128, IdError> {
        let now_ms = now / NS_PER_MS;
        let (time_ms, counter) = if now_ms > self.time_ms {
            // The top bit is 0, so that at least 2^41 ids follow within the ms.
            (now_ms, self.rng.u64(..) >> (64 - COUNTER_BITS + 1))
        } else {
            let behind_ms = self.time_ms - now_ms;
            if behind_ms > self.max_behind_ms {
                return Err(IdError::ClockBehind { behind_ms, ready_at_ms: self.time_ms });
            }
            (self.time_ms, self.counter + 1)
        };
        if counter >> COUNTER_BITS != 0 {
            return Err(IdError::Exhausted { ready_at_ms: time_ms + 1 });
        }
        if time_ms >= MAX_TIME_MS {
            return Err(IdError::LayoutFull);
        }
        (self.time_ms, self.counter) = (time_ms, counter);
        let (high, low) = (u128::from(counter >> 30), u128::from(counter & ((1 << 30) - 1)));
        let random = u128::from(self.rng.u32(..));
        Ok(u128::from(time_ms) << 80 | 7 << 76 | high << 64 | 2 << 62 | low << 32 | random)
    }
}
